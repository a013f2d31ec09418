"""One schema, from source to destination: the heart is `Session._commit`."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any

from cartridge_warp.config import UnitSettings
from cartridge_warp.connectors.protocols import PlanChange, SourceUnit, TableState, Target, Transaction, Written
from cartridge_warp.core.background import beat, calibrate, rekey
from cartridge_warp.core.batch import IN_FLIGHT, Budget, batches
from cartridge_warp.core.evolution import evolve
from cartridge_warp.core.snapshot import Snapshotter
from cartridge_warp.core.tasks import together
from cartridge_warp.errors import LockTimeout, RowError, WarpError
from cartridge_warp.kernel.bson import native_key_kind
from cartridge_warp.observe.events import (
    Committed,
    DeadLettered,
    Event,
    Failed,
    Misfit,
    Note,
    Observer,
    SchemaChanged,
    State,
)
from cartridge_warp.records import SMALLEST_VERSION, Batch, Marker, Stamp

__all__ = ["Session"]

QUIET_MARKER = 10.0  # seconds between stored positions while nothing changes
SILENCE = 12.0  # seconds
DDL_RETRY = 10.0  # seconds until a blocked DDL is tried again


class Session:
    """One connected stretch of replication: from the stored position until an error, a stop, or the end."""

    def __init__(
        self, settings: UnitSettings, source: SourceUnit, target: Target, observer: Observer, budget: Budget,
        *, stop: asyncio.Event, once: bool,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.source = source
        self.target = target
        self.observer = observer
        self.budget, self.pages = budget.share(), budget.share()
        self.stop = stop
        self.once = once
        self.marker = Marker({}, 0)
        self.snapshotter = Snapshotter(self)
        self.commits = 0
        self.lag = 0.0
        self._goal: Stamp | None = None
        self._quiet_since = 0.0
        self.heard_at = time.monotonic()  # when the source said anything, if only that nothing is new
        self._blocked: dict[str, float] = {}
        self.rekeying: set[str] = set()
        self.stored_at = 0.0  # when a position was stored
        self.waiting = 0  # changes read but not committed
        self.source_time: datetime | None = None
        self.clock_ahead = 0.0  # how far the source's clock is ahead of ours, seconds
        self._state = "starting"

    # -- what listeners hear --------------------------------------------------------------------------

    def emit(self, kind: type[Event], **values: Any) -> None:
        """Report an event of this schema."""
        self.observer.emit(kind(database=self.settings.database, schema=self.settings.name, **values))

    def set_state(self, state: str, detail: str = "") -> None:
        """Report a change of the unit's state."""
        if state != self._state:
            self._state = state
            self.emit(State, state=state, detail=detail)

    def report(self, written: Written) -> None:
        """Report what a transaction had to put aside."""
        for (table, class_), count in written.dead.items():
            message = f"{count} documents of {table} wait in dead_letters, class {class_}"
            self.emit(DeadLettered, table=table, error_class=class_, count=count, message=message)
        for (table, column), (count, first) in written.misfits.items():
            self.emit(Misfit, table=table, column=column, count=count, first=first)
        for table in written.rekey:
            self.rekeying.add(table)

    def parallel(self, table: str) -> int:
        """How many chunks of a table are read at once: more than may be in flight would only wait."""
        return max(1, min(self.settings.table(table).max_parallel_streams, IN_FLIGHT))

    async def backoff(self, error: WarpError, table: str, attempt: int = 1) -> None:
        """Wait before the next try of what a lock has stopped."""
        handling = self.settings.error_handling
        limit = min(handling.max_backoff_seconds, handling.backoff_factor**attempt)
        delay = random.uniform(0, limit)  # noqa: S311 (jitter, not a secret)
        self.emit(Failed, table=table, error_type=error.code, message=str(error), attempt=attempt, retry_in=delay)
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), delay)

    # -- the session ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Replicate until `stop`, or until everything is copied and caught up when `once`."""
        await calibrate(self)
        # The heart beats while many collections are listed: a standby takes over 20 s after the last beat.
        await together(beat(self), until=self._replicate())

    async def _replicate(self) -> None:
        await self.snapshotter.plan()
        states = await self.target.tables()
        self.rekeying |= {name for name, state in states.items() if state.dead_letters}
        await together(self.snapshotter.run(), rekey(self), until=self._stream())

    async def _stream(self) -> None:
        async with aclosing(batches(self.source, self.marker, self.budget, self._prepare, self.stop)) as stream:
            async for batch in stream:
                try:
                    done = await self._take(batch)
                finally:
                    self.budget.release()
                if done:
                    return

    async def _prepare(self, batch: Batch) -> None:
        self.waiting += batch.rows
        await self.target.prepare(batch)

    async def _take(self, batch: Batch) -> bool:
        """Commit a batch, unless it is nothing but a fresher position and the last one is fresh enough;
        True when a single run has reached its end."""
        self.waiting -= batch.rows
        self.heard_at = time.monotonic()
        reached = self._reached(batch)
        empty = not batch.tables and batch.barrier is None
        if not empty or (await self._worth_storing(batch, reached=reached)):
            await self._commit(batch)
        if empty:
            self.source_time, self.lag = None, 0.0
        else:
            self.source_time = batch.marker.source_time
        if self.once and self._goal is None and self.snapshotter.idle.is_set():
            self._goal = await self.source.moment()
            self._quiet_since = time.monotonic()
            reached = self._reached(batch)
        return self.once and reached and self.snapshotter.idle.is_set() and not self.rekeying

    def _reached(self, batch: Batch) -> bool:
        """True when the stream has passed the moment that a single run ends at. A source whose positions move
        only with its writes never says so; then 12 s of silence do (MongoDB itself notes its time every 10)."""
        if self._goal is None:
            return False
        if batch.marker.events:
            self._quiet_since = time.monotonic()
        silent = time.monotonic() - self._quiet_since > SILENCE
        return silent or self.source.passed(batch.marker.position, self._goal)

    async def _worth_storing(self, batch: Batch, *, reached: bool) -> bool:
        """A quiet stream's position is stored every 10 s, so that its token never leaves the oplog."""
        marker = await self.target.marker()
        if marker is not None and marker.position == batch.marker.position:
            return False
        return reached or time.monotonic() - self.stored_at >= QUIET_MARKER

    # -- the heart ------------------------------------------------------------------------------------

    async def _commit(self, batch: Batch) -> None:
        """Write a batch; a lock is waited for, a refused row is isolated; every other error ends the session,
        which begins again at the stored position."""
        started, attempt, careful = time.monotonic(), 0, False
        while True:
            try:
                written = await self._write(batch, careful=careful)
                break
            except RowError:
                if careful:
                    raise
                careful = True
            except LockTimeout as error:
                if attempt >= self.settings.error_handling.max_retries:
                    raise  # the session begins again, and the schema counts as failing until a batch gets through
                if self.stop.is_set():  # whoever waits for our end does not wait for the lock; the batch comes again
                    raise
                attempt += 1
                await self.backoff(error, "*", attempt)
        self.commits += 1
        self.stored_at = time.monotonic()
        self._committed(batch, written, time.monotonic() - started)

    async def _write(self, batch: Batch, *, careful: bool) -> Written:
        samples = await self._sample(batch)
        tables = await self._tables(batch)
        async with self.target.transaction(tables) as t:  # the fence, then the locks in order
            for name in batch.tables.keys() - t.states.keys():
                await t.register(name, snapshot=self.settings.table(name).full_load_enabled, reason="new")
            if batch.barrier is not None:
                await t.void(batch.barrier, batch.barrier.version + self.marker.version_offset)
                for name in set(batch.barrier.resnapshot) - t.states.keys():
                    await t.register(name, snapshot=self.settings.table(name).full_load_enabled, reason="new")
            else:
                await self._evolve(t, batch, samples)
                await t.write(batch, careful=careful)
            await t.save_marker(batch.marker, _newest(batch))  # compare-and-set, last
        return t.written

    async def evolve(self, batch: Batch) -> None:
        """Give a page of a snapshot the columns that it needs, in a transaction of its own."""
        samples = await self._sample(batch)
        async with self.target.transaction(sorted(batch.tables)) as t:
            await self._evolve(t, batch, samples)
        self._schema_changed(t.written)

    async def _evolve(self, t: Transaction, batch: Batch, samples: dict[str, set[str]]) -> None:
        observed = await t.observe(batch)
        for name, kinds in samples.items():
            observed[name].keys.update(kinds)
        now = time.monotonic()
        fields = {name: table.key_field for name, table in batch.tables.items()}
        changes = evolve(t.states, observed, self.settings, key_fields=fields)
        if any(change.change == "add_table" for change in changes):  # the names that are taken matter only now
            changes = evolve(t.states, observed, self.settings, relations=await t.relations(), key_fields=fields)
        needed = {change.plan.table for change in changes if _is_needed(change, t.states.get(change.plan.table))}
        changes = [c for c in changes if c.plan.table in needed or self._blocked.get(c.plan.table, 0.0) <= now]
        await t.evolve(changes)
        if waiting := sorted(needed & t.written.blocked):
            raise LockTimeout(f"a lock on {waiting[0]} keeps out what its rows need; end the session that holds it")
        for name in t.written.blocked:
            self._blocked[name] = now + DDL_RETRY
            self.emit(
                Note, table=name, level="warning",
                message=f"a lock on {name} keeps new columns out; their values go to _warp_extra until it ends",
            )  # fmt: skip
        t.written.changes = [change for change in changes if change.plan.table not in t.written.blocked]

    async def _sample(self, batch: Batch) -> dict[str, set[str]]:
        """The kinds of the first and last key of tables without a plan: a mixed key is seen at the start."""
        samples = {}
        for name, table in batch.tables.items():
            if self.target.plan(name) is None and table.key_field is not None:
                samples[name] = {native_key_kind(key).value for key in await self.source.key_sample(name)}
        return samples

    async def _tables(self, batch: Batch) -> list[str]:
        if batch.barrier is None:
            return sorted(batch.tables)
        if batch.barrier.tables is None:
            return sorted(await self.target.tables())
        return sorted({*batch.barrier.tables, *batch.barrier.resnapshot})

    def _schema_changed(self, written: Written) -> None:
        for change in written.changes:
            self.emit(
                SchemaChanged, table=change.plan.table, change_type=change.change,
                detail=f"{change.plan.relation}: {', '.join(change.columns)}",
            )  # fmt: skip

    def _committed(self, batch: Batch, written: Written, seconds: float) -> None:
        self.report(written)
        self._schema_changed(written)
        if written.registered or batch.barrier is not None:
            self.snapshotter.wake()
        self.emit(
            Committed, operations=written.operations, events=batch.marker.events, bytes=batch.bytes,
            seconds=seconds, refused=written.refused, batch=uuid.uuid4().hex[:12],
            source_time=batch.marker.source_time,
        )  # fmt: skip


def _is_needed(change: PlanChange, state: TableState | None) -> bool:
    """True for what rows cannot do without: the table itself, and the columns of soft deletion. The values of other
    columns have a place in `_warp_extra`."""
    plan = state.plan if state else None
    return plan is None or plan.soft_column != change.plan.soft_column


def _newest(batch: Batch) -> int:
    versions = [change.version for table in batch.tables.values() for change in table.changes]
    return max(versions, default=SMALLEST_VERSION)
