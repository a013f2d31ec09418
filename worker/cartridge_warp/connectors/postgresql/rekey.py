"""Moving a live table from a native key to `_warp_key`, when a key of another type has appeared.

Until the end the documents with the other keys wait in the dead letters, so nothing is lost; each step can be
repeated, so that a worker killed in between goes on where it was.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cartridge_warp.connectors.postgresql.structure import primary_key
from cartridge_warp.connectors.protocols import TableState
from cartridge_warp.errors import StructureChanged
from cartridge_warp.kernel.bson import from_ejson
from cartridge_warp.kernel.plan import KEY_COLUMN, PG_TYPES, ColumnKind, ColumnPlan, KeyKind, TablePlan
from cartridge_warp.records import Change, Op, TableBatch

if TYPE_CHECKING:
    from cartridge_warp.connectors.postgresql.target import PostgreSQLTarget
    from cartridge_warp.connectors.postgresql.transaction import DataTransaction

__all__ = ["rekey"]

FILL_PAGE = 5000
REPLAY_PAGE = 500
_DATA_KIND = {
    KeyKind.objectid: ColumnKind.objectid,
    KeyKind.int: ColumnKind.bigint,
    KeyKind.string: ColumnKind.string,
    KeyKind.uuid: ColumnKind.uuid,
    KeyKind.date: ColumnKind.timestamp,
}


async def rekey(target: PostgreSQLTarget, table: str) -> int:
    """Add `_warp_key`, fill it, index it, swap it in, replay what waited. Returns how many were replayed."""
    if not await _needed(target, table):
        return 0
    plan = await _add_column(target, table)
    if plan is not None:
        await _fill(target, table)
        await _build_index(target, plan)
        await _swap(target, table)
    return await _replay(target, table)


async def _needed(target: PostgreSQLTarget, table: str) -> bool:
    async with target.transaction([table]) as t:
        plan = t.plan(table)
        if plan is not None and plan.fills_key:
            return True
        cursor = await t.c.execute(
            target.statements.m(
                'SELECT EXISTS (SELECT FROM {m}.dead_letters WHERE target = {t} AND "table" = %s'
                " AND state = 'open' AND class = 'key_type')"
            ),
            (table,),
        )
        row = await cursor.fetchone()
        return bool(row and row[0])


async def _save(t: DataTransaction, before: TablePlan, change: str, **parts: Any) -> None:
    plan = replace(before, version=before.version + 1, **parts)
    await t.target.markers.save_plan(t.c, plan, change)
    await t.reload([plan.table])


async def _add_column(target: PostgreSQLTarget, table: str) -> TablePlan | None:
    """From here on every new write fills the new key too. None when the key is a hash already."""
    async with target.transaction([table]) as t:
        await t.durable()
        plan = t.plan(table)
        if plan is None or not plan.native:
            return None
        if not plan.fills_key:
            await t.c.execute("SET LOCAL lock_timeout = '5s'")
            columns = [(KEY_COLUMN, PG_TYPES[ColumnKind.bytes])]
            await t.c.execute(target.statements.add_columns(plan, columns, soft=False))
            await _save(t, plan, "key_type: fill _warp_key", fills_key=True)
        return t.plan(table)


async def _fill(target: PostgreSQLTarget, table: str) -> None:
    """In pages of the old key, so that each transaction and each look at the table is short."""
    last: tuple[str, ...] = ()
    while True:
        async with target.transaction([table]) as t:
            await t.durable()
            plan = t.plan(table)
            if plan is None or not plan.native:
                return
            page = target.statements.page(plan, first=not last)
            end = await (await t.c.execute(page, (*last, FILL_PAGE))).fetchone()
            if end is None:
                return
            await t.c.execute(target.statements.fill_keys(plan, first=not last), (*last, end[0]))
            last = (end[0],)


async def _build_index(target: PostgreSQLTarget, plan: TablePlan) -> None:
    """CONCURRENTLY needs a connection of its own without a transaction; a failed build leaves an invalid
    index, which the next try drops first."""
    drop, build = target.statements.key_index(plan)
    async with target.destination.connection(target.where) as c:
        await c.execute(drop)
        await c.execute(build)


async def _swap(target: PostgreSQLTarget, table: str) -> None:
    async with target.transaction([table]) as t:
        await t.durable()
        plan = t.plan(table)
        if plan is None or not plan.native:
            return
        key = await primary_key(t.c, target.name, plan.relation)
        if key is None:
            raise StructureChanged(f"{target.where}: table {plan.relation} has lost its primary key")
        await t.c.execute("SET LOCAL lock_timeout = '5s'")
        await t.c.execute(target.statements.swap_key(plan, key[0]))
        column = ColumnPlan(plan.key_field or "_id", plan.key_column, _DATA_KIND[plan.key_kind])
        await _save(
            t, plan, "key_type: _warp_key is the key",
            key_kind=KeyKind.hash, fills_key=False, columns=(column, *plan.columns),
        )  # fmt: skip


async def _replay(target: PostgreSQLTarget, table: str) -> int:
    """Write the documents that waited, with their own versions: a newer row always stays."""
    done = 0
    while True:
        async with target.transaction([table]) as t:
            await t.durable()
            state = t.states[table]
            cursor = await t.c.execute(
                target.statements.m(
                    "SELECT id, row, version, document_id FROM {m}.dead_letters WHERE target = {t}"
                    " AND \"table\" = %s AND state = 'open' AND class = 'key_type' ORDER BY id LIMIT %s"
                ),
                (table, REPLAY_PAGE),
            )
            rows = await cursor.fetchall()
            if not rows or state.plan is None:
                return done
            await t.c.execute(
                target.statements.m(
                    "UPDATE {m}.dead_letters SET state = 'replayed', attempts = attempts + 1, updated_at = now()"
                    " WHERE id = ANY (%s)"
                ),
                ([row[0] for row in rows],),
            )
            await _write(t, state, rows)
            done += len(rows)


async def _write(t: DataTransaction, state: TableState, rows: list[Any]) -> None:
    assert state.plan is not None
    batch = TableBatch(state.collection, key_field=state.plan.key_field)
    for _, document, version, key in rows:  # both come parsed out of jsonb
        batch.changes.append(Change(Op.UPSERT, from_ejson(key), version, from_ejson(document)))
    await t.write_table(state, batch)
