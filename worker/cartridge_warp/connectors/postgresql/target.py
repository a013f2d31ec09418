"""One unit's destination schema: ownership, fence, heartbeat, transactions, and the steps of a snapshot."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import AsyncConnection

from cartridge_warp import __version__
from cartridge_warp.config import UnitSettings
from cartridge_warp.connectors.postgresql import claims, rekey, sweep
from cartridge_warp.connectors.postgresql.errors import translate
from cartridge_warp.connectors.postgresql.markers import Markers
from cartridge_warp.connectors.postgresql.migrate import migrate
from cartridge_warp.connectors.postgresql.rows import encode
from cartridge_warp.connectors.postgresql.sql import Statements, lock_key
from cartridge_warp.connectors.postgresql.transaction import DataTransaction
from cartridge_warp.connectors.protocols import Chunk, TableState
from cartridge_warp.errors import Fenced, MarkerMoved
from cartridge_warp.kernel.plan import TablePlan
from cartridge_warp.records import Batch, Bounds, Collection, Marker, Observed, SourceIdentity, Stamp

if TYPE_CHECKING:
    from cartridge_warp.connectors.postgresql.destination import PostgreSQLDestinationConnector

__all__ = ["PostgreSQLTarget"]


class PostgreSQLTarget:
    """Implements `connectors.base.Target`."""

    def __init__(self, destination: PostgreSQLDestinationConnector, settings: UnitSettings) -> None:
        self.destination = destination
        self.settings = settings
        self.name = settings.target
        self.config_hash = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
        self.statements = Statements(settings.metadata_schema, settings.target)
        self.markers = Markers(self.statements)
        self.instance = destination.instance
        self.epoch = 0
        self.identity = ""
        self._marker: Marker | None = None
        self._watch: AsyncConnection[Any] | None = None
        self.fence_statement = self.statements.m(
            "SELECT 1 FROM {m}.fence WHERE target = {t} AND epoch = %s AND instance = %s FOR SHARE"
        )
        self.begin_statement = destination.begin_statement()

    @property
    def fence(self) -> tuple[int, uuid.UUID]:
        """What every transaction checks."""
        return (self.epoch, self.instance)

    @property
    def where(self) -> str:
        """How errors name this place."""
        return f"destination {self.destination.where}, schema {self.name}"

    def table_lock(self, table: str) -> int:
        """The advisory lock of a table."""
        return lock_key(self.settings.metadata_schema, self.name, table)

    def current_marker(self) -> Marker:
        """The position as this worker knows it."""
        if self._marker is None:
            raise MarkerMoved(f"{self.where}: the position is not known; it is read again")
        return self._marker

    # -- life -----------------------------------------------------------------------------------------

    async def open(self, identity: SourceIdentity, *, take_over: bool = False) -> None:
        """Migrate, claim the target, take a new epoch."""
        self.identity = f"{identity.cluster}/{identity.database}"
        async with self.destination.connection(self.where) as c:
            await migrate(c, self.settings.metadata_schema)
        await self._connect_watch()
        async with self._translated():
            assert self._watch is not None
            await claims.stand_by_or_go(self, self._watch)
        async with self.destination.connection(self.where) as c:
            self.epoch = await claims.take(self, c, identity, take_over=take_over)
        await self.resume()

    async def _connect_watch(self) -> None:
        """The connection of the heartbeat; it also holds the lock that keeps a second worker quiet."""
        if self._watch is not None:
            await self._watch.close()
        self._watch = await self.destination.dedicated()

    async def _watch_works(self) -> bool:
        """A connection that the server has closed looks open until it is used."""
        if self._watch is None or self._watch.closed:
            return False
        try:
            await self._watch.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True

    async def resume(self) -> None:
        """Forget everything cached; make sure that the epoch is still ours; read the position again. Chunks that
        a broken session had claimed are open again: nobody reads them any more."""
        self.markers.plans.clear()
        self._marker = None
        if not await self._watch_works():
            await self._connect_watch()
        async with self.transaction([]) as t:
            await self.markers.release_chunks(t.c)
            self._marker = await self.markers.load(t.c)

    async def heartbeat(self, state: str, detail: str = "", lag_seconds: float | None = None) -> None:
        """A sign of life, on a connection of its own."""
        async with self._translated():
            if self._watch is None or self._watch.closed:
                await self._connect_watch()
            assert self._watch is not None
            await self._watch.execute(
                self.statements.m(
                    "INSERT INTO {m}.workers"
                    " (target, instance, epoch, state, detail, version, host, lag_seconds, config_hash)"
                    " VALUES ({t}, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (target, instance) DO UPDATE SET"
                    " state = excluded.state, detail = excluded.detail, lag_seconds = excluded.lag_seconds,"
                    " epoch = excluded.epoch, heartbeat = now()"
                ),
                (self.instance, self.epoch, state, detail, __version__, socket.gethostname(), lag_seconds,
                 self.config_hash),
            )  # fmt: skip
            held = await self._watch.execute(
                self.statements.m("SELECT 1 FROM {m}.fence WHERE target = {t} AND epoch = %s AND instance = %s"),
                self.fence,
            )
            if self.epoch and await held.fetchone() is None:
                raise Fenced(f"{self.where}: another worker has taken over; this one ends")
            await claims.try_lock(self, self._watch)
        _heed_cancellation()

    async def close(self, state: str, detail: str = "") -> None:
        """Say how it ended and release the target."""
        watch, self._watch = self._watch, None
        if watch is None:
            return
        try:
            await claims.leave(self, watch, state, detail)
        except psycopg.Error:
            return  # the destination is away; a heartbeat that stops says the same, 20 s later
        finally:
            await watch.close()

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise translate(error, self.where) from error

    # -- transactions ---------------------------------------------------------------------------------

    def plan(self, table: str) -> TablePlan | None:
        """A table's structure as far as this worker has seen it."""
        return self.markers.plans.get(table)

    async def prepare(self, batch: Batch) -> dict[str, Observed]:
        """Encode ahead, in a thread: the event loop keeps answering probes meanwhile."""
        observed = {}
        for name, table in batch.tables.items():
            table.prepared = await asyncio.to_thread(encode, self.plan(name), table, self.settings)
            observed[name] = table.prepared.observed
        return observed

    @asynccontextmanager
    async def transaction(self, tables: Sequence[str], *, shared: bool = False) -> AsyncIterator[DataTransaction]:
        """One fenced transaction; committed when the block ends without an error."""
        async with self.destination.connection(self.where) as c:
            t = DataTransaction(self, c)
            try:
                await t.begin(tables, shared=shared)
                yield t
                done = await c.execute("COMMIT")
                if done.statusmessage != "COMMIT":  # PostgreSQL ends a failed transaction so, without an error
                    raise MarkerMoved(f"{self.where}: a transaction was rolled back instead of committed")
            except BaseException:
                await self._roll_back(c)
                self.markers.forget(t.states)  # with structure that never came to be
                raise
        if t.moved is not None:
            self._marker = t.moved
        _heed_cancellation()

    async def _roll_back(self, c: AsyncConnection[Any]) -> None:
        try:
            await c.execute("ROLLBACK")
        except psycopg.Error:
            await c.close()  # the server rolls back what it no longer hears of

    # -- position and tables --------------------------------------------------------------------------

    async def marker(self) -> Marker | None:
        """The stream's position, as read by the last `resume` or written since."""
        return self._marker

    async def create_marker(self, stamp: Stamp) -> Marker:
        """Store the first position."""
        async with self.transaction([]) as t:
            await t.durable()
            marker = await self.markers.create(t.c, stamp, self.identity, self.epoch)
        self._marker = marker
        return marker

    async def restart_marker(self, stamp: Stamp, reason: str) -> Marker:
        """The position is lost: go on from `stamp`, with every table stale."""
        async with self.transaction([]) as t:
            await t.durable()
            marker = await self.markers.restart(t.c, stamp, self.epoch, reason)
            await self.markers.log_error(t.c, "", "position_lost", reason)
        self._marker = marker
        return marker

    async def tables(self) -> dict[str, TableState]:
        """Every collection that is known."""
        async with self.transaction([]) as t:
            return await self.markers.states(t.c)

    async def set_state(self, table: str, state: str, reason: str) -> None:
        """Set a table's state."""
        async with self.transaction([table]) as t:
            await t.durable()
            await self.markers.register(t.c, table, state, None, reason)
            await self.markers.set_state(t.c, table, state, reason)

    async def begin_snapshot(
        self, table: str, bounds: Sequence[Bounds], stamp: Stamp, collection: Collection | None, reason: str
    ) -> None:
        """A new generation with these chunks."""
        start = stamp.version + self.current_marker().version_offset
        async with self.transaction([table]) as t:
            await t.durable()
            await self.markers.begin_snapshot(t.c, table, bounds, start, collection, reason)

    async def claim_chunk(self, table: str) -> Chunk | None:
        """Claim the next open chunk of a table."""
        async with self.transaction([], shared=True) as t:
            return await self.markers.claim(t.c, table, self.instance)

    async def complete_table(self, table: str, generation: int) -> bool:
        """Mark a table as complete when no chunk of it is left. A chunk that this worker still holds has lost its
        reader (a commit of it was acknowledged, and then lost in a crash of the server): it is open again."""
        async with self.transaction([table], shared=False) as t:
            await t.durable()
            complete = await self.markers.complete(t.c, table, generation)
            if not complete:
                await self.markers.release_chunks(t.c, self.instance, table)
            return complete

    async def log_error(self, table: str, code: str, message: str) -> None:
        """Keep an error for people."""
        async with self.transaction([], shared=True) as t:
            await self.markers.log_error(t.c, table, code, message)

    async def sweep(self, table: str) -> int:
        """Remove what a finished snapshot did not see; returns how many rows."""
        return await sweep.sweep(self, table)

    def connections(self) -> tuple[int, int]:
        """Connections of the whole pool: open, and in use."""
        return self.destination.pool_use()

    async def rekey(self, table: str) -> int:
        """Move a table to `_warp_key` and write the documents that waited for it."""
        return await rekey.rekey(self, table)


def _heed_cancellation() -> None:
    """Raise a cancellation that was lost: Python 3.11's wait_for, inside the driver, swallows one that comes just
    as it is done. That is no rare chance: the task that fails and rolls back, for which its siblings are cancelled,
    releases the very lock that a sibling waits for."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
