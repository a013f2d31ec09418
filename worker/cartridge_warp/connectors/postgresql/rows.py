"""Rows of one table inside a transaction: guarded upserts and deletes, tombstones, dead letters, bisection."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

from cartridge_warp.config import UnitSettings
from cartridge_warp.connectors.postgresql.arrays import BinaryArray, copy_buffer, parameters
from cartridge_warp.connectors.postgresql.errors import is_row_error, translate
from cartridge_warp.connectors.protocols import TableState
from cartridge_warp.errors import RowError, StructureChanged
from cartridge_warp.kernel.bson import canonical, decode, identity, key_hash, key_text
from cartridge_warp.kernel.encode import EncodedRows, Rejected, encode_keys, encode_rows
from cartridge_warp.kernel.plan import KeyKind, TablePlan
from cartridge_warp.records import KEY_IN_IMAGE, Change, Document, Observed, Op, TableBatch

if TYPE_CHECKING:
    from cartridge_warp.connectors.postgresql.transaction import DataTransaction

__all__ = ["Prepared", "RowWriter", "encode"]

SLICE = 5000  # rows in one statement: beyond this the server's function scan spills to disk

# A page of a snapshot may be older than what the stream has done to the same key: a delete that it came before,
# or a newer document that waits already. Then nothing is left to wait for.
_BURY = """
INSERT INTO {m}.dead_letters (target, "table", key, document_id, version, row, class, message)
SELECT {t}, %(table)s, %(key)s, %(document_id)s::jsonb, %(version)s, %(row)s::jsonb, %(class)s, %(message)s
WHERE NOT EXISTS (SELECT FROM {m}.tombstones k WHERE k.target = {t} AND k."table" = %(table)s
    AND k.key = %(key)s AND k.version > %(version)s)
AND NOT EXISTS (SELECT FROM {m}.dead_letters d WHERE d.target = {t} AND d."table" = %(table)s
    AND d.key = %(key)s AND d.state IN ('open', 'waiting') AND d.version > %(version)s)
"""


@dataclass
class Prepared:
    """A table's part of a batch, encoded for one version of its plan (0: there is none yet)."""

    plan: TablePlan | None
    upserts: list[Change]
    deletes: list[Change]
    rows: EncodedRows
    observed: Observed = field(default_factory=Observed)

    @property
    def version(self) -> int:
        """The plan's version."""
        return self.plan.version if self.plan else 0

    @property
    def rejected(self) -> Sequence[Rejected]:
        """Documents that are in no encoded row."""
        return self.rows.rejected


def encode(plan: TablePlan | None, table: TableBatch, settings: UnitSettings) -> Prepared:
    """Encode a table's changes. Without a plan this only observes what a plan will need."""
    deletes = [change for change in table.changes if change.op is Op.DELETE]
    upserts = [change for change in table.changes if change.op is Op.UPSERT]
    if settings.table(table.table).deletion_strategy == "soft":
        # A row that was inserted and deleted between two commits must exist, marked as deleted.
        upserts += [change for change in deletes if change.image is not None]
    used = plan or TablePlan(table.table, table.table, KeyKind.hash, table.key_field)
    images: list[Document] = [change.image if change.image is not None else {} for change in upserts]
    inside = bool(upserts) and upserts[0].key is KEY_IN_IMAGE
    keys = None if inside else [change.key for change in upserts]
    rows = encode_rows(used, images, [change.version for change in upserts], keys=keys)
    if rows.lossy and not settings.error_handling.ignore_type_conversion_errors:
        _set_aside(rows, table.table)
    return Prepared(plan, upserts, deletes, rows, rows.observed)


def _set_aside(rows: EncodedRows, table: str) -> None:
    """Turn rows with values that do not fit their columns into dead letters, as the settings ask."""
    message = f"a value does not fit its column of {table}, and ignore_type_conversion_errors is false"
    rows.rejected += [Rejected(rows.index[row], "conversion", message) for row in sorted(rows.lossy)]
    kept = [row for row in range(len(rows.index)) if row not in rows.lossy]
    rows.fields = [[column[row] for row in kept] for column in rows.fields]
    rows.index = [rows.index[row] for row in kept]
    rows.lossy = set()


def _key(change: Change, field_: str | None) -> Any:
    """A change's key; a snapshot leaves it in the document, which may be unreadable (then: null)."""
    if change.key is KEY_IN_IMAGE:
        try:
            change.key = decode(change.image).get(field_) if change.image is not None and field_ else None
        except Exception:  # undecodable bytes are kept whole, under no key
            change.key = None
    return change.key


def _key_of_row(plan: TablePlan, key: Any) -> Any:
    """The key of the row that a delete means. 5.0 is 5 to MongoDB: the row may be of a document that was replaced
    by one with the other type of number, which waits for a key of all types."""
    same = identity(key) if plan.key_kind is KeyKind.int else key
    return same if type(same) is int else key


def _document(change: Change) -> str:
    """A change's document as canonical Extended JSON; undecodable bytes as base64."""
    try:
        return canonical(decode(change.image)) if change.image is not None else "null"
    except Exception:  # whatever is wrong with the document, its bytes must be kept
        raw = change.image if isinstance(change.image, bytes) else repr(change.image).encode()
        return json.dumps({"$warpRaw": base64.b64encode(raw).decode()})


class RowWriter:
    """Writes the rows of a transaction and counts what it did."""

    def __init__(self, transaction: DataTransaction) -> None:
        self.t = transaction

    async def write(
        self,
        state: TableState,
        prepared: Prepared,
        table: TableBatch,
        *,
        careful: bool,
        snapshot: bool = False,
    ) -> None:
        """Write a table's prepared rows. A snapshot's page leaves no tombstones, and obeys them."""
        plan, written = prepared.plan, self.t.written
        if state.dead_letters:
            await self._supersede(table, table.changes)
        if state.open_chunks and not snapshot:
            await self._leave_tombstones(table.table, prepared.deletes)
        if plan is None:
            await self._without_table(table, prepared)
            return
        await self._reject(plan, prepared)
        check = snapshot and state.tombstones
        statement = self.t.target.statements.upsert(plan, check_tombstones=check)

        async def upsert(low: int, high: int) -> None:
            fields = [column[low:high] for column in prepared.rows.fields]
            cursor = await self.t.c.execute(statement, parameters(plan, fields))
            if not snapshot:
                written.refused += high - low - cursor.rowcount

        def upserted(position: int) -> Change | None:
            change = prepared.upserts[prepared.rows.index[position]]
            return None if change.op is Op.DELETE else change

        await self._in_slices(plan, len(prepared.rows.index), upsert, upserted, careful=careful)
        await self._delete(plan, prepared.deletes, careful=careful)
        self._count(plan, prepared)

    async def _without_table(self, table: TableBatch, prepared: Prepared) -> None:
        """The first document makes the table. Before it there are deletes, and documents that nobody can read."""
        if prepared.rows.index:
            raise StructureChanged(f"collection {table.table} has documents, but no table was made for them")
        await self._reject(TablePlan(table.table, table.table, KeyKind.hash, table.key_field), prepared)

    def _count(self, plan: TablePlan, prepared: Prepared) -> None:
        operations = self.t.written.operations.setdefault(plan.table, {})
        upserts = [prepared.upserts[i] for i in prepared.rows.index]
        # The image of a soft delete is written to be marked: that is the delete, which is counted below.
        for change in (*(each for each in upserts if each.op is Op.UPSERT), *prepared.deletes):
            name = "delete" if change.op is Op.DELETE else change.operation.value
            operations[name] = operations.get(name, 0) + 1
        for name, count in prepared.observed.misfits.items():
            first = prepared.rows.misfit_first.get(name, "")
            self.t.written.misfits[plan.table, name] = (count, first)

    async def copy(self, prepared: Prepared) -> None:
        """COPY a page straight into the table."""
        assert prepared.plan is not None
        if not prepared.rows.index:
            return
        statement = self.t.target.statements.copy(prepared.plan)
        async with self.t.c.cursor() as cursor, cursor.copy(statement) as copy:
            await copy.write(copy_buffer(prepared.rows.fields))
        self._count(prepared.plan, prepared)

    # -- slices and bisection -------------------------------------------------------------------------

    async def _in_slices(
        self,
        plan: TablePlan,
        count: int,
        run: Callable[[int, int], Awaitable[None]],
        change_at: Callable[[int], Change | None],
        *,
        careful: bool,
    ) -> None:
        for low in range(0, count, SLICE):
            high = min(low + SLICE, count)
            if careful:
                await self._bisect(plan, low, high, run, change_at)
                continue
            try:
                await run(low, high)
            except psycopg.Error as error:
                if is_row_error(error):
                    raise translate(error, f"table {self.t.target.name}.{plan.relation}") from error
                raise

    async def _bisect(
        self,
        plan: TablePlan,
        low: int,
        high: int,
        run: Callable[[int, int], Awaitable[None]],
        change_at: Callable[[int], Change | None],
    ) -> None:
        """Halve a slice that is refused, until the bad rows are alone; those become dead letters."""
        try:
            async with self.t.c.transaction():
                await run(low, high)
            return
        except psycopg.Error as error:
            if not is_row_error(error):
                raise
            if high - low == 1:
                refused = translate(error, f"table {self.t.target.name}.{plan.relation}")
                if (change := change_at(low)) is not None:
                    await self._bury(plan, change, error.sqlstate or "row", str(refused))
                return
        middle = (low + high) // 2
        await self._bisect(plan, low, middle, run, change_at)
        await self._bisect(plan, middle, high, run, change_at)

    # -- deletes --------------------------------------------------------------------------------------

    async def _leave_tombstones(self, table: str, changes: Sequence[Change]) -> None:
        """A chunk that read a document before its delete must not bring it back."""
        if changes:
            await self.t.c.execute(
                self.t.target.statements.m(
                    'INSERT INTO {m}.tombstones (target, "table", key, version)'
                    " SELECT {t}, %s, key, max(version) FROM unnest(%s::bytea[], %s::bigint[]) k (key, version)"
                    ' GROUP BY key ON CONFLICT (target, "table", key)'
                    " DO UPDATE SET version = greatest(tombstones.version, excluded.version)"
                ),
                (table, [key_hash(change.key) for change in changes], [change.version for change in changes]),
            )

    async def _delete(self, plan: TablePlan, changes: Sequence[Change], *, careful: bool) -> None:
        if not changes:
            return
        hashes = [key_hash(change.key) for change in changes]
        keys = encode_keys(plan, [_key_of_row(plan, change.key) for change in changes])
        chosen = [changes[position] for position in keys.index]
        chosen_hashes = [hashes[position] for position in keys.index]
        statement = self.t.target.statements.delete(plan, soft=self._soft(plan))

        async def delete(low: int, high: int) -> None:
            part = chosen[low:high]
            await self.t.c.execute(
                statement,
                (
                    BinaryArray(keys.pg, keys.field[low:high]),
                    [change.version for change in part],
                    [change.at_ms for change in part],
                    chosen_hashes[low:high],
                    [key_text(change.key) for change in part],
                    "delete",
                ),
            )

        await self._in_slices(plan, len(chosen), delete, lambda position: chosen[position], careful=careful)

    def _soft(self, plan: TablePlan) -> bool:
        return self.t.target.settings.table(plan.table).deletion_strategy == "soft"

    async def void(self, plan: TablePlan, version: int, reason: str) -> int:
        """Remove (or mark) every row up to a version; returns how many."""
        statement = self.t.target.statements.void(plan, soft=self._soft(plan))
        return (await self.t.c.execute(statement, (version, reason))).rowcount

    # -- dead letters ---------------------------------------------------------------------------------

    async def _reject(self, plan: TablePlan, prepared: Prepared) -> None:
        for rejected in prepared.rejected:
            change = prepared.upserts[rejected.index]
            if change.op is Op.DELETE:
                continue  # its last image, for soft deletion: nothing waits for a document that is gone
            if rejected.reason == "key_type":
                self.t.written.rekey.add(plan.table)
            await self._bury(plan, change, rejected.reason, rejected.message)

    async def _bury(self, plan: TablePlan, change: Change, class_: str, message: str) -> None:
        if not self.t.target.settings.error_handling.dead_letter_queue and class_ != "key_type":
            raise RowError(
                f"{message}; the document {key_text(_key(change, plan.key_field))} of {plan.table} cannot be written"
                " and error_handling.dead_letter_queue is false: correct the document or allow dead letters"
            )
        key = _key(change, plan.key_field)
        cursor = await self.t.c.execute(
            self.t.target.statements.m(_BURY),
            {
                "table": plan.table, "key": key_hash(key), "document_id": key_text(key), "version": change.version,
                "row": _document(change), "class": class_, "message": message,
            },
        )  # fmt: skip
        if cursor.rowcount == 0:
            return
        dead = self.t.written.dead
        dead[plan.table, class_] = dead.get((plan.table, class_), 0) + 1

    async def _supersede(self, table: TableBatch, changes: Sequence[Change]) -> None:
        """A later write or delete of a key settles its open dead letters. A key that cannot be read is not one
        of them."""
        await self.t.c.execute(
            self.t.target.statements.m(
                "UPDATE {m}.dead_letters d SET state = 'superseded', updated_at = now()"
                " FROM unnest(%s::bytea[], %s::bigint[]) k (key, version) WHERE d.target = {t}"
                " AND d.\"table\" = %s AND d.state IN ('open', 'waiting') AND d.key = k.key"
                " AND d.version <= k.version"
            ),
            (
                [key_hash(_key(change, table.key_field)) for change in changes],
                [change.version for change in changes],
                table.table,
            ),
        )
