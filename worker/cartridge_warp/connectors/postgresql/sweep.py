"""The end of an online copy: rows that it did not see are gone from the source."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cartridge_warp.connectors.postgresql.target import PostgreSQLTarget

__all__ = ["sweep"]

SWEEP_PAGE = 5000


async def sweep(target: PostgreSQLTarget, table: str) -> int:
    """Remove what a finished snapshot did not see; returns how many rows.

    In pages in key order, each a fenced transaction under the table's lock. A restart begins again at the first
    page, which then has nothing left to do, and so does a table that moves to another key meanwhile. While a chunk
    is left nothing is removed: it may hold the rows.
    """
    key, last, removed = "", None, 0
    soft = target.settings.table(table).deletion_strategy == "soft"
    while True:
        async with target.transaction([table]) as t:
            await t.durable()
            state = t.states[table]
            if state.plan is None or state.start_version is None or state.state != "snapshotting":
                return removed
            if state.open_chunks:
                return removed
            if state.plan.key_column != key:
                key, last = state.plan.key_column, None
                await target.markers.supersede(t.c, table, state.start_version - 1)
            first = () if last is None else (last,)
            page = target.statements.page(state.plan, first=last is None)
            end = await (await t.c.execute(page, (*first, SWEEP_PAGE))).fetchone()
            if end is None:
                return removed
            statement = target.statements.sweep(state.plan, first=last is None, soft=soft)
            cursor = await t.c.execute(statement, (state.start_version, *first, end[0], "sweep"))
            removed += cursor.rowcount
            last = end[0]
