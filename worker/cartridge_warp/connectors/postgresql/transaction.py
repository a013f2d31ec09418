"""One destination transaction: fence, locks, structure, rows, position; committed together or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import AsyncConnection
from psycopg.sql import SQL

from cartridge_warp.connectors.postgresql.errors import is_row_error
from cartridge_warp.connectors.postgresql.rows import Prepared, RowWriter, encode
from cartridge_warp.connectors.postgresql.structure import apply_change
from cartridge_warp.connectors.protocols import Chunk, PlanChange, TableState, Written
from cartridge_warp.errors import ChunkVoid, Fenced
from cartridge_warp.kernel.plan import TablePlan
from cartridge_warp.records import Barrier, Batch, BatchMarker, Bounds, Marker, Observed, TableBatch

if TYPE_CHECKING:
    from cartridge_warp.connectors.postgresql.target import PostgreSQLTarget

__all__ = ["DataTransaction"]

DDL_LOCK_TIMEOUT = "2s"


class DataTransaction:
    """Implements `connectors.base.Transaction`; made by `PostgreSQLTarget.transaction`."""

    def __init__(self, target: PostgreSQLTarget, connection: AsyncConnection[Any]) -> None:
        self.target = target
        self.c = connection
        self.written = Written()
        self.moved: Marker | None = None  # the position after a commit
        self._states: dict[str, TableState] = {}
        self._rows = RowWriter(self)

    @property
    def states(self) -> Mapping[str, TableState]:
        """The locked tables."""
        return self._states

    async def begin(self, tables: Sequence[str], *, shared: bool) -> None:
        """Check the fence under a row lock, then lock the tables in order, then read them.

        The states are read after the locks, in a statement of its own: only then does READ COMMITTED show what
        the last holder of a lock has committed.
        """
        await self.c.execute(self.target.begin_statement)
        cursor = await self.c.execute(self.target.fence_statement, self.target.fence)
        if await cursor.fetchone() is None:
            raise Fenced(f"another worker has taken over {self.target.name}; this one ends and writes nothing more")
        if not tables:
            return
        keys = [self.target.table_lock(table) for table in sorted(tables)]
        function = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        await self.c.execute(SQL("SELECT {}(k) FROM unnest(%s::bigint[]) k").format(SQL(function)), (keys,))
        await self.reload(tables)

    async def reload(self, tables: Sequence[str]) -> None:
        """Read the tables' states and plans under the lock; the cache learns them too."""
        self._states |= await self.target.markers.states(self.c, tables)

    async def durable(self) -> None:
        """Let this commit wait for the disk. The stream notices by its marker when a crash of the server has taken
        commits back; what prepares or ends a copy has no such mark."""
        await self.c.execute("SET LOCAL synchronous_commit = on")

    def plan(self, table: str) -> TablePlan | None:
        """A table's structure as it is under the lock."""
        state = self._states.get(table)
        return state.plan if state else None

    # -- structure ------------------------------------------------------------------------------------

    async def relations(self) -> set[str]:
        """Names of the destination tables that belong to some collection already."""
        return await self.target.markers.relations(self.c)

    async def observe(self, batch: Batch) -> dict[str, Observed]:
        """What the documents show that the current plans lack."""
        for table in batch.tables.values():
            await self._current(table)
        return {name: table.prepared.observed for name, table in batch.tables.items()}

    async def _current(self, table: TableBatch) -> Prepared:
        """The table's rows, encoded with the plan that holds under the lock."""
        plan = self.plan(table.table)
        prepared: Prepared | None = table.prepared
        if prepared is None or prepared.plan != plan:  # never by version alone: that of a rollback is given again
            prepared = table.prepared = await asyncio.to_thread(encode, plan, table, self.target.settings)
        return prepared

    async def evolve(self, changes: Sequence[PlanChange]) -> None:
        """Apply structure changes, each under a savepoint with a short lock timeout: readers of the table
        queue behind a waiting DDL, and replication must not wait for theirs."""
        for change in changes:
            try:
                async with self.c.transaction():
                    await self.c.execute(SQL("SET LOCAL lock_timeout = {}").format(DDL_LOCK_TIMEOUT))
                    await apply_change(self.target, self.c, change, self.plan(change.plan.table))
                    await self.target.markers.save_plan(self.c, change.plan, change.change)
            except psycopg.errors.LockNotAvailable:
                self.written.blocked.add(change.plan.table)
        if changes:
            await self.reload([change.plan.table for change in changes])

    async def register(self, table: str, *, snapshot: bool, uuid: str | None = None, reason: str = "") -> None:
        """Note a collection that is not known yet."""
        markers = self.target.markers
        await markers.register(self.c, table, "snapshotting" if snapshot else "complete", uuid, reason)
        if snapshot:
            await markers.add_chunks(self.c, table, [Bounds()])
        self.written.registered.add(table)
        await self.reload([table])

    # -- rows -----------------------------------------------------------------------------------------

    async def write(self, batch: Batch, *, careful: bool = False) -> None:
        """Write the prepared rows of every table that takes rows now."""
        if careful:  # a constraint that is checked at the end would name no row
            await self.c.execute("SET CONSTRAINTS ALL IMMEDIATE")
        for name, table in sorted(batch.tables.items()):
            state = self._states[name]
            if state.state in ("stopped", "excluded"):
                continue  # such a table gets an online snapshot with sweep when it is wanted again
            await self._rows.write(state, await self._current(table), table, careful=careful)

    async def write_table(self, state: TableState, batch: TableBatch) -> None:
        """Write documents that waited in the dead letters; they obey tombstones as a snapshot's page does."""
        await self._rows.write(state, await self._current(batch), batch, careful=True, snapshot=True)

    async def void(self, barrier: Barrier, version: int) -> None:
        """Apply a barrier to its tables. One that it only wants copied again keeps its rows; one that is not known
        yet begins with its copy, since what it holds came without events."""
        # As long as it takes: all rows of a table, in the transaction that passes the barrier.
        await self.c.execute("SET LOCAL statement_timeout = 0")
        for name in sorted(self._states):
            if barrier.tables is not None and name not in barrier.tables:
                await self._copy_again(name, barrier)
                continue
            plan = self.plan(name)
            if plan is not None:
                removed = await self._rows.void(plan, version, barrier.kind)
                self.written.operations.setdefault(name, {})["delete"] = removed
            await self.target.markers.barrier(self.c, name, version, barrier.kind, again=name in barrier.resnapshot)

    async def _copy_again(self, name: str, barrier: Barrier) -> None:
        if self._states[name].state not in ("stopped", "excluded"):
            await self.target.markers.set_state(self.c, name, "stale", barrier.kind)

    async def save_marker(self, marker: BatchMarker, version: int) -> None:
        """Compare-and-set of the position."""
        target = self.target
        self.moved = await target.markers.advance(
            self.c, target.current_marker(), marker, version, marker.events, target.epoch
        )

    # -- snapshot -------------------------------------------------------------------------------------

    async def write_chunk(self, chunk: Chunk, batch: TableBatch, stamp: int, rest: Bounds | None, size: int) -> str:
        """Write one page of a chunk and close it."""
        state = self._states.get(chunk.table)
        if state is None or state.generation != chunk.generation or stamp < state.tombstone:
            raise ChunkVoid(f"{chunk.table} moved on while a chunk of it was read")
        if batch.changes:
            await self._copy(state, batch)
        return await self.target.markers.finish_chunk(self.c, chunk, stamp, len(batch.changes), size, rest)

    async def _copy(self, state: TableState, batch: TableBatch) -> None:
        """COPY straight into the table while no key of the page can be there; else the guarded upsert."""
        prepared = await self._current(batch)
        clear = not (state.sweep or state.tombstones or state.dead_letters or prepared.rejected)
        if clear and state.plan is not None:
            try:
                async with self.c.transaction():
                    await self._rows.copy(prepared)
                return
            except psycopg.Error as error:
                if not is_row_error(error):
                    raise
        await self._rows.write(state, prepared, batch, careful=True, snapshot=True)
