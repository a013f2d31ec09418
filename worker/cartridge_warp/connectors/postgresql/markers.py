"""The metadata schema: positions, tables, chunks, registry. Each method is one step inside a transaction that
somebody else has begun and fenced."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from cartridge_warp.connectors.postgresql.sql import Statements
from cartridge_warp.connectors.protocols import Chunk, TableState
from cartridge_warp.errors import ChunkVoid, MarkerMoved
from cartridge_warp.kernel.plan import TablePlan
from cartridge_warp.records import BatchMarker, Bounds, Collection, Marker, Stamp

__all__ = ["Markers"]

Connection = AsyncConnection[Any]

_STATES = """
SELECT t.collection, t.state, t.generation, t.tombstone, t.start_version, t.sweep, t.rows_done, t.rows_estimated,
    t.reason, r.version,
    EXISTS (SELECT FROM {m}.snapshot_chunks c WHERE c.target = {t} AND c."table" = t.collection
        AND c.state IN ('open', 'claimed')),
    EXISTS (SELECT FROM {m}.tombstones k WHERE k.target = {t} AND k."table" = t.collection),
    EXISTS (SELECT FROM {m}.dead_letters d WHERE d.target = {t} AND d."table" = t.collection
        AND d.state IN ('open', 'waiting'))
FROM {m}.tables t
LEFT JOIN LATERAL (SELECT version FROM {m}.schema_registry r WHERE r.target = {t}
    AND r."table" = t.collection AND r.status = 'applied' ORDER BY r.version DESC LIMIT 1) r ON true
WHERE t.target = {t} AND (%s::text[] IS NULL OR t.collection = ANY (%s))
"""


class Markers:
    """Reads and writes of the metadata of one target."""

    def __init__(self, statements: Statements) -> None:
        self.statements = statements
        self.plans: dict[str, TablePlan] = {}
        m = statements.m
        self._states = m(_STATES)
        self._advance = m(
            "UPDATE {m}.sync_markers SET position = %s, seq = seq + 1, source_time = coalesce(%s, source_time),"
            " version = greatest(version, %s), rows = rows + %s, epoch = %s, updated_at = now()"
            " WHERE target = {t} AND \"table\" = '' AND kind = 'stream' AND seq = %s"
        )

    # -- the stream's position ------------------------------------------------------------------------

    async def load(self, c: Connection) -> Marker | None:
        """The stream's position, or None before the first."""
        cursor = await c.execute(
            self.statements.m(
                "SELECT position, seq, version_offset, source_time FROM {m}.sync_markers"
                " WHERE target = {t} AND \"table\" = '' AND kind = 'stream'"
            ),
            (),
        )
        row = await cursor.fetchone()
        return Marker(*row) if row else None

    async def create(self, c: Connection, stamp: Stamp, identity: str, epoch: int) -> Marker:
        """Store the position that a fresh target starts from."""
        await c.execute(
            self.statements.m(
                'INSERT INTO {m}.sync_markers (target, "table", kind, position, source_time, source_identity, epoch)'
                " VALUES ({t}, '', 'stream', %s, %s, %s, %s)"
            ),
            (Jsonb(stamp.position), stamp.time, identity, epoch),
        )
        return Marker(stamp.position, 0, 0, stamp.time)

    async def advance(
        self, c: Connection, marker: Marker, new: BatchMarker, version: int, rows: int, epoch: int
    ) -> Marker:
        """Move the position on, if it still is the one that this worker knows."""
        cursor = await c.execute(
            self._advance, (Jsonb(new.position), new.source_time, version, rows, epoch, marker.seq)
        )
        if cursor.rowcount != 1:
            raise MarkerMoved(
                f"the stored position of {self.statements.target} is not the one that this worker wrote last;"
                " everything in memory is dropped and read again"
            )
        return Marker(new.position, marker.seq + 1, marker.version_offset, new.source_time or marker.source_time)

    async def restart(self, c: Connection, stamp: Stamp, epoch: int, reason: str) -> Marker:
        """Begin again at `stamp` with every table stale. The offset is raised where the source's time is not
        above what was written before, so that new versions exceed all old ones."""
        cursor = await c.execute(
            self.statements.m(
                "UPDATE {m}.sync_markers s SET position = %(position)s, seq = seq + 1, epoch = %(epoch)s,"
                " source_time = %(time)s, updated_at = now(), version_offset = greatest(version_offset::numeric,"
                " (SELECT greatest(s.version, coalesce(max(greatest(t.stamp, t.tombstone)), s.version))::numeric"
                "  FROM {m}.tables t WHERE t.target = {t}) - %(version)s::numeric + 1)::bigint"
                " WHERE target = {t} AND \"table\" = '' AND kind = 'stream'"
                " RETURNING position, seq, version_offset, source_time"
            ),
            {"position": Jsonb(stamp.position), "epoch": epoch, "time": stamp.time, "version": stamp.version},
        )
        row = await cursor.fetchone()
        if row is None:
            raise MarkerMoved(f"the stored position of {self.statements.target} is gone; it is read again")
        await c.execute(
            self.statements.m(
                "UPDATE {m}.tables SET state = 'stale', generation = generation + 1, reason = %s,"
                " updated_at = now() WHERE target = {t} AND state IN ('snapshotting', 'complete', 'stale')"
            ),
            (reason,),
        )
        await self._cancel_chunks(c, None)
        return Marker(*row)

    # -- tables ---------------------------------------------------------------------------------------

    async def states(self, c: Connection, tables: Sequence[str] | None = None) -> dict[str, TableState]:
        """The tables named (or all that are known), with their current plans."""
        names = None if tables is None else list(tables)
        cursor = await c.execute(self._states, (names, names))
        states = {}
        for row in await cursor.fetchall():
            plan = None if row[9] is None else await self._plan(c, row[0], row[9])
            states[row[0]] = TableState(*row[:9], plan, *row[10:13])  # type: ignore[call-arg] # mypy counts ends apart
        return states

    async def _plan(self, c: Connection, table: str, version: int) -> TablePlan:
        """A version of a table's structure never changes, so it is read once."""
        plan = self.plans.get(table)
        if plan is None or plan.version != version:
            cursor = await c.execute(
                self.statements.m(
                    'SELECT definition FROM {m}.schema_registry WHERE target = {t} AND "table" = %s AND version = %s'
                ),
                (table, version),
            )
            row = await cursor.fetchone()
            assert row is not None
            plan = self.plans[table] = TablePlan.from_json({**row[0], "version": version})
        return plan

    def forget(self, tables: Iterable[str]) -> None:
        """Drop the cached plans of these tables."""
        for table in tables:
            self.plans.pop(table, None)

    async def register(self, c: Connection, table: str, state: str, uuid_: str | None, reason: str) -> None:
        """Note a collection that is not known yet."""
        await c.execute(
            self.statements.m(
                "INSERT INTO {m}.tables (target, collection, collection_uuid, state, reason, started_at)"
                " VALUES ({t}, %s, %s, %s, %s, now()) ON CONFLICT DO NOTHING"
            ),
            (table, uuid_, state, reason),
        )

    async def set_state(self, c: Connection, table: str, state: str, reason: str) -> None:
        """Set a table's state and cancel its chunks."""
        await c.execute(
            self.statements.m(
                "UPDATE {m}.tables SET state = %s, reason = %s, generation = generation + 1, updated_at = now()"
                " WHERE target = {t} AND collection = %s"
            ),
            (state, reason, table),
        )
        await self._cancel_chunks(c, table)

    async def save_plan(self, c: Connection, plan: TablePlan, change: str) -> None:
        """A new current version of a table's structure."""
        definition = plan.to_json()
        text = json.dumps(definition, sort_keys=True)
        await c.execute(
            self.statements.m(
                'INSERT INTO {m}.schema_registry (target, "table", version, definition, hash, change)'
                " VALUES ({t}, %s, %s, %s, %s, %s)"
            ),
            (plan.table, plan.version, Jsonb(definition), hashlib.sha256(text.encode()).hexdigest(), change),
        )
        await c.execute(
            self.statements.m(
                "UPDATE {m}.tables SET relation = %s, key_type = %s, updated_at = now()"
                " WHERE target = {t} AND collection = %s"
            ),
            (plan.relation, plan.key_kind.value, plan.table),
        )

    async def relations(self, c: Connection) -> set[str]:
        """Names of the destination tables that belong to some collection already."""
        cursor = await c.execute(
            self.statements.m("SELECT relation FROM {m}.tables WHERE target = {t} AND relation IS NOT NULL"), ()
        )
        return {row[0] for row in await cursor.fetchall()}

    async def barrier(self, c: Connection, table: str, version: int, kind: str, *, again: bool) -> None:
        """Void what a table was: raise its generation, cancel its chunks, settle its dead letters."""
        await c.execute(
            self.statements.m(
                "UPDATE {m}.tables SET tombstone = greatest(tombstone, %s), generation = generation + 1,"
                " state = CASE WHEN state IN ('stopped', 'excluded') THEN state WHEN %s THEN 'stale'"
                " ELSE 'complete' END, reason = %s, collection_uuid = NULL, updated_at = now()"
                " WHERE target = {t} AND collection = %s"
            ),
            (version, again, kind, table),
        )
        await self._cancel_chunks(c, table)
        await self.supersede(c, table, version)
        await c.execute(
            self.statements.m('DELETE FROM {m}.tombstones WHERE target = {t} AND "table" = %s AND version <= %s'),
            (table, version),
        )

    async def supersede(self, c: Connection, table: str, version: int) -> None:
        """Settle a table's dead letters up to a version: their documents are gone, or have come again since."""
        await c.execute(
            self.statements.m(
                "UPDATE {m}.dead_letters SET state = 'superseded', updated_at = now() WHERE target = {t}"
                " AND \"table\" = %s AND state IN ('open', 'waiting') AND version <= %s"
            ),
            (table, version),
        )

    # -- snapshots ------------------------------------------------------------------------------------

    async def begin_snapshot(
        self, c: Connection, table: str, bounds: Sequence[Bounds], start: int, collection: Collection | None,
        reason: str,
    ) -> None:  # fmt: skip
        """A new generation. It ends with a sweep unless no older row can exist."""
        await self.register(c, table, "snapshotting", None, reason)
        await c.execute(
            self.statements.m(
                "UPDATE {m}.tables SET state = 'snapshotting', generation = generation + 1, start_version = %s,"
                " sweep = sweep OR relation IS NOT NULL OR state <> 'snapshotting',"
                " rows_done = 0, bytes_done = 0, rows_estimated = %s, collection_uuid = %s, reason = %s,"
                " started_at = now(), completed_at = NULL, updated_at = now()"
                " WHERE target = {t} AND collection = %s"
            ),
            (
                start,
                collection.rows if collection else 0,
                collection.uuid if collection else None,
                reason,
                table,
            ),
        )
        await self._cancel_chunks(c, table)
        await self.add_chunks(c, table, bounds)

    async def add_chunks(self, c: Connection, table: str, bounds: Sequence[Bounds]) -> None:
        """Open chunks for the table's current generation."""
        for part in bounds:
            await c.execute(
                self.statements.m(
                    'INSERT INTO {m}.snapshot_chunks (target, "table", generation, lower, upper, after)'
                    " SELECT {t}, collection, generation, %s, %s, %s FROM {m}.tables"
                    " WHERE target = {t} AND collection = %s"
                ),
                (part.lower, part.upper, part.after, table),
            )

    async def release_chunks(self, c: Connection, instance: uuid.UUID | None = None, table: str | None = None) -> None:
        """Open every claimed chunk again, or those of one worker and table: the old claims are void."""
        await c.execute(
            self.statements.m(
                "UPDATE {m}.snapshot_chunks SET state = 'open', claim = NULL, instance = NULL, updated_at = now()"
                " WHERE target = {t} AND state = 'claimed' AND instance = coalesce(%s, instance)"
                ' AND "table" = coalesce(%s, "table")'
            ),
            (instance, table),
        )

    async def claim(self, c: Connection, table: str, instance: uuid.UUID) -> Chunk | None:
        """Claim a table's next open chunk under a fresh token."""
        token = uuid.uuid4()
        cursor = await c.execute(
            self.statements.m(
                "UPDATE {m}.snapshot_chunks SET state = 'claimed', claim = %s, instance = %s, updated_at = now()"
                " WHERE id = (SELECT c.id FROM {m}.snapshot_chunks c JOIN {m}.tables t ON t.target = c.target"
                ' AND t.collection = c."table" AND t.generation = c.generation WHERE c.target = {t}'
                " AND c.\"table\" = %s AND c.state = 'open' ORDER BY c.id LIMIT 1 FOR UPDATE OF c SKIP LOCKED)"
                " RETURNING id, generation, lower, upper, after"
            ),
            (token, instance, table),
        )
        row = await cursor.fetchone()
        return None if row is None else Chunk(row[0], table, row[1], Bounds(*row[2:]), str(token))

    async def finish_chunk(
        self, c: Connection, chunk: Chunk, stamp: int, rows: int, size: int, rest: Bounds | None
    ) -> str:
        """Close a chunk, if it is still ours and current; the remainder is claimed under a new token."""
        cursor = await c.execute(
            self.statements.m(
                "UPDATE {m}.snapshot_chunks SET state = 'done', stamp = %s, rows = %s, updated_at = now()"
                " WHERE id = %s AND claim = %s AND generation = %s AND state = 'claimed' RETURNING instance"
            ),
            (stamp, rows, chunk.id, chunk.claim, chunk.generation),
        )
        done = await cursor.fetchone()
        if done is None:
            raise ChunkVoid(f"a chunk of {chunk.table} belongs to another reader or generation by now")
        await c.execute(
            self.statements.m(
                "UPDATE {m}.tables SET rows_done = rows_done + %s, bytes_done = bytes_done + %s,"
                " stamp = greatest(stamp, %s), updated_at = now() WHERE target = {t} AND collection = %s"
            ),
            (rows, size, stamp, chunk.table),
        )
        if rest is None:
            return ""
        token = uuid.uuid4()
        cursor = await c.execute(
            self.statements.m(
                'INSERT INTO {m}.snapshot_chunks (target, "table", generation, lower, upper, after, claim, instance,'
                " state) VALUES ({t}, %s, %s, %s, %s, %s, %s, %s, 'claimed') RETURNING id"
            ),
            (chunk.table, chunk.generation, rest.lower, rest.upper, rest.after, token, done[0]),
        )
        return f"{(await cursor.fetchone())[0]}:{token}"  # type: ignore[index]

    async def complete(self, c: Connection, table: str, generation: int) -> bool:
        """Mark a table as complete, unless a chunk is left or its generation has moved."""
        cursor = await c.execute(
            self.statements.m(
                "UPDATE {m}.tables SET state = 'complete', sweep = false, reason = '', completed_at = now(),"
                " updated_at = now() WHERE target = {t} AND collection = %s AND generation = %s"
                " AND state = 'snapshotting' AND NOT EXISTS (SELECT FROM {m}.snapshot_chunks c"
                " WHERE c.target = {t} AND c.\"table\" = collection AND c.state IN ('open', 'claimed'))"
            ),
            (table, generation),
        )
        if cursor.rowcount != 1:
            return False
        for statement in (
            'DELETE FROM {m}.tombstones WHERE target = {t} AND "table" = %s',
            "DELETE FROM {m}.snapshot_chunks WHERE target = {t} AND \"table\" = %s AND state IN ('done', 'cancelled')",
        ):
            await c.execute(self.statements.m(statement), (table,))
        return True

    async def settle_unseen(self, c: Connection, table: str, start: int) -> None:
        """At the end of a copy: what waits since before it began was not seen by it, so its document is gone."""
        await c.execute(
            self.statements.m(
                "UPDATE {m}.dead_letters SET state = 'superseded', updated_at = now() WHERE target = {t}"
                " AND \"table\" = %s AND state IN ('open', 'waiting') AND version < %s"
            ),
            (table, start),
        )

    async def _cancel_chunks(self, c: Connection, table: str | None) -> None:
        await c.execute(
            self.statements.m(
                "UPDATE {m}.snapshot_chunks SET state = 'cancelled', updated_at = now()"
                " WHERE target = {t} AND state IN ('open', 'claimed') AND (%s::text IS NULL OR \"table\" = %s)"
            ),
            (table, table),
        )

    # -- history --------------------------------------------------------------------------------------

    async def log_error(self, c: Connection, table: str, code: str, message: str) -> None:
        """Keep an error for people."""
        await c.execute(
            self.statements.m('INSERT INTO {m}.error_log (target, "table", class, message) VALUES ({t}, %s, %s, %s)'),
            (table, code, message),
        )
