"""Batches on their way: compaction, the bound on what is in flight, and reading ahead of the writer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from cartridge_warp.connectors.protocols import BatchSource
from cartridge_warp.core.tasks import end
from cartridge_warp.kernel.bson import identity
from cartridge_warp.records import Batch, Change, Marker, Op, TableBatch

__all__ = ["Budget", "Share", "batches", "compact"]

IN_FLIGHT = 4  # batches in one process, shared by all schemas; each has one at least
AHEAD = 2  # batches that one schema may have ready while it writes another


class Budget:
    """What may be in flight in a process: one permit for each batch or page of a snapshot, from its reading to its
    commit. A share that holds none is always given one: a schema that waits for a lock with all it has read must
    not stop the others."""

    def __init__(self, most: int = IN_FLIGHT) -> None:
        self.most = most
        self.used = 0
        self._waiting: list[asyncio.Future[None]] = []

    def share(self) -> Share:
        """The part of one stream, or of one schema's snapshots."""
        return Share(self)

    async def released(self) -> None:
        """Wait until some permit is given back."""
        self._waiting.append(asyncio.get_running_loop().create_future())
        await self._waiting[-1]

    def release(self) -> None:
        """Take a permit back; whoever waits looks again, in the order in which they came."""
        self.used -= 1
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)


class Share:
    """The permits of one user of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._held = 0

    async def acquire(self) -> None:
        """Take a permit, when there is one."""
        while self._held and self._budget.used >= self._budget.most:
            await self._budget.released()
        self._held += 1
        self._budget.used += 1

    def release(self) -> None:
        """Give a permit back."""
        self._held -= 1
        self._budget.release()


def compact(batch: Batch, version_offset: int) -> None:
    """Keep each key's last change, and add the offset to every version.

    Two rows with one key in one upsert are an error in PostgreSQL (21000). A delete keeps the last image
    before it: with soft deletion the row must exist, however the batches were cut.
    """
    for table in batch.tables.values():
        _compact(table, version_offset)


def _compact(table: TableBatch, version_offset: int) -> None:
    last: dict[object, Change] = {}
    for change in table.changes:
        change.version += version_offset
        key = identity(change.key)
        before = last.pop(key, None)
        if before is not None and change.image is None and change.op is not Op.UPSERT:
            change.image = before.image
        last[key] = change
    table.changes = list(last.values())


async def batches(
    source: BatchSource,
    marker: Marker,
    budget: Share,
    prepare: Callable[[Batch], Awaitable[object]],
    stop: asyncio.Event,
) -> AsyncGenerator[Batch, None]:
    """The source's batches, compacted, completed and prepared, read ahead of the consumer.

    The consumer must release one permit of `budget` for each batch it was given. After `stop` nothing more is
    read; what is ready is still handed out, so that a stop flushes.
    """
    ready: asyncio.Queue[Batch] = asyncio.Queue(AHEAD)
    arrived = asyncio.Event()
    reader = asyncio.create_task(_read(source, marker, budget, prepare, ready, arrived))
    stopped = asyncio.create_task(stop.wait())
    try:
        while True:
            while not ready.empty():
                yield ready.get_nowait()
            if stopped.done():
                return
            if reader.done():
                reader.result()
                return
            arrived.clear()
            news = asyncio.create_task(arrived.wait())
            try:
                await asyncio.wait({news, reader, stopped}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()
    finally:
        await end(stopped, reader)
        while not ready.empty():
            ready.get_nowait()
            budget.release()


async def _read(
    source: BatchSource,
    marker: Marker,
    budget: Share,
    prepare: Callable[[Batch], Awaitable[object]],
    ready: asyncio.Queue[Batch],
    arrived: asyncio.Event,
) -> None:
    async with aclosing(source.batches(marker)) as stream:
        async for batch in stream:
            await budget.acquire()
            handed_over = False
            try:
                compact(batch, marker.version_offset)
                await source.complete(batch)
                await prepare(batch)
                await ready.put(batch)
                handed_over = True
                arrived.set()
            finally:
                if not handed_over:
                    budget.release()
