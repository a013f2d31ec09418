"""Replication into a destination of the simple level: copy table by table, then follow the changes.

Rows and position are separate calls of such a destination, so this is at least once; a repeated batch leads to
the same rows.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import aclosing
from typing import Any

from cartridge_warp.config import UnitSettings
from cartridge_warp.connectors.adapter import RecordSource
from cartridge_warp.connectors.record_target import RecordTarget
from cartridge_warp.connectors.unit_records import UnitRecords
from cartridge_warp.core.batch import Budget, batches
from cartridge_warp.observe.events import (
    ChunkCommitted,
    Committed,
    Event,
    Note,
    Observer,
    SnapshotDone,
    SnapshotStarted,
    State,
)
from cartridge_warp.records import Batch, BatchMarker, Marker, Op

__all__ = ["SequentialSession"]


class SequentialSession:
    """One stretch of replication into a simple destination."""

    def __init__(
        self, settings: UnitSettings, source: RecordSource | UnitRecords, target: RecordTarget, observer: Observer,
        budget: Budget, *, stop: asyncio.Event, once: bool, again: bool = False,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.source = source
        self.target = target
        self.observer = observer
        self.budget = budget.share()
        self.stop = stop
        self.once = once
        self.again = again
        self.commits = 0
        self._announced: set[str] = set()

    def emit(self, kind: type[Event], **values: Any) -> None:
        """Report an event of this schema."""
        self.observer.emit(kind(database=self.settings.database, schema=self.settings.name, **values))

    async def run(self) -> None:
        """Copy what is missing from a position on that is stored first, then follow the changes."""
        await self.target.open()
        self.emit(Note, message=self.target.capabilities.promise)
        if self.again:
            # The position is lost, or everything is wanted again. A simple destination cannot be swept, so its
            # tables are dropped and filled anew.
            await self.target.restart(await self.source.now())
            self.again = False
        marker = await self.target.marker()
        if marker is None:
            stamp = await self.source.now()
            await self.target.apply(Batch(BatchMarker(stamp.position, stamp.time)))
            marker = Marker(stamp.position, 0)
        self.emit(State, state="snapshotting")
        for table in await self.source.tables():
            if not self.stop.is_set():
                await self._copy(table)
        if not self.stop.is_set():
            self.emit(State, state="streaming")
            await self._follow(marker)

    async def _copy(self, table: str) -> None:
        settings = self.settings.table(table)
        if not settings.full_load_enabled or await self.target.table_done(table):
            return
        self.emit(SnapshotStarted, table=table)
        started, rows = time.monotonic(), 0
        pages = self.source.snapshot(table, settings.full_load_batch_size, settings.max_batch_bytes)
        async with aclosing(pages):
            async for page in pages:
                await self.target.write(page)
                rows += len(page.changes)
                self.commits += 1
                self.emit(ChunkCommitted, table=table, rows=len(page.changes), rows_done=rows)
        await self.target.mark_table_done(table)
        self.emit(SnapshotDone, table=table, rows=rows, seconds=time.monotonic() - started)

    async def _follow(self, marker: Marker) -> None:
        stream = batches(self.source, marker, self.budget, self._nothing, self.stop)
        async with aclosing(stream):
            async for batch in stream:
                started = time.monotonic()
                try:
                    await self.target.apply(batch)
                finally:
                    self.budget.release()
                for table in (*batch.created, *(batch.barrier.resnapshot if batch.barrier else ())):
                    await self._copy(table)
                if batch.rows:
                    self._committed(batch, time.monotonic() - started)
                elif self.once and not batch.marker.events:
                    return

    async def _nothing(self, batch: Batch) -> None:
        """Simple destinations take records as they are."""

    def _committed(self, batch: Batch, seconds: float) -> None:
        self.commits += 1
        operations: dict[str, dict[str, int]] = {}
        for name, table in batch.tables.items():
            counts = operations.setdefault(name, {})
            for change in table.changes:
                kind = "delete" if change.op is Op.DELETE else change.operation.value
                counts[kind] = counts.get(kind, 0) + 1
        self.emit(
            Committed, operations=operations, events=batch.marker.events, bytes=batch.bytes, seconds=seconds,
            batch=uuid.uuid4().hex[:12], source_time=batch.marker.source_time,
        )  # fmt: skip
