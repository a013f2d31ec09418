"""Snapshots beside the stream: what needs a copy, chunks claimed, read, written, and the sweep at the end."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cartridge_warp.connectors.protocols import Chunk, TableState
from cartridge_warp.core.evolution import evolve
from cartridge_warp.core.tasks import end, together
from cartridge_warp.errors import ChunkVoid, LockTimeout
from cartridge_warp.observe.events import ChunkCommitted, Note, SnapshotDone, SnapshotStarted
from cartridge_warp.records import (
    KEY_IN_IMAGE,
    Batch,
    BatchMarker,
    Bounds,
    Change,
    ChunkPage,
    Collection,
    Op,
    Stamp,
    TableBatch,
)

if TYPE_CHECKING:
    from cartridge_warp.core.session import Session

__all__ = ["Snapshotter"]

PARTS = 4  # ranges for each parallel reader, so that none waits long for the last
ELSEWHERE = 0.2  # seconds until a table is looked at again whose last chunks are somebody else's


@dataclass
class _Page:
    """Documents that were read for a chunk, encoded, and the moment as of which they were read."""

    batch: Batch
    table: TableBatch
    stamp: Stamp
    rest: Bounds | None
    size: int


class Snapshotter:
    """Copies every table that is not complete, then waits until another one needs it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.source, self.target = session.source, session.target
        self.settings = session.settings
        self.idle = asyncio.Event()
        self._wake = asyncio.Event()
        self.named: set[str] = set()  # collections that cannot be mirrored and were reported

    def wake(self) -> None:
        """Some table's state has changed: look again."""
        self.idle.clear()
        self._wake.set()

    # -- what is to be copied -------------------------------------------------------------------------

    async def plan(self) -> None:
        """List the collections (after the stream's position is stored, so that whatever comes later comes by
        the stream) and begin what is missing."""
        # Before the list is made: a sweep must spare what comes into a collection that the list does not hold.
        start = await self.source.moment()
        found = {collection.name: collection for collection in await self.source.collections()}
        states = await self.target.tables()
        listed = {name: collection for name, collection in sorted(found.items()) if collection.reason is None}
        for name in sorted(found.keys() - listed.keys() - self.named):
            self.named.add(name)
            self._note(name, f"{name} is not mirrored: {found[name].reason}")
        for name, collection in listed.items():
            await self._begin(name, collection, states.get(name), start)
        for name, state in sorted(states.items()):
            if not self.settings.wants(name):
                if state.state != "excluded":
                    await self.target.set_state(name, "excluded", "left out by the filters")
            elif name not in listed and state.state in ("stale", "excluded"):
                # It is gone from the source, or a view now, which could be read: the sweep without a copy settles it.
                await self._begin(name, None, state, start)

    async def _begin(self, name: str, collection: Collection | None, state: TableState | None, start: Stamp) -> None:
        if state is not None and state.state not in ("stale", "excluded"):
            return
        settings = self.settings.table(name)
        if not settings.full_load_enabled:
            await self.target.set_state(name, "complete", "full load is switched off: only later changes")
            return
        reason = state.reason or state.state if state else "first copy"
        parts = settings.max_parallel_streams * PARTS if settings.max_parallel_streams > 1 else 1
        bounds = await self.source.plan_chunks(name, parts) if collection else []
        await self.target.begin_snapshot(name, bounds, start, collection, reason)

    def _note(self, table: str, message: str) -> None:
        self.session.emit(Note, table=table, level="warning", message=message)

    # -- copying --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Copy until cancelled; `idle` is set while nothing is left to do."""
        while True:
            self._wake.clear()
            states = await self.target.tables()
            stale = [s for s in states.values() if s.state == "stale" and self.settings.wants(s.collection)]
            if stale:
                await self.plan()
                continue
            waiting = [name for name, state in sorted(states.items()) if state.state == "snapshotting"]
            if not waiting:
                self.idle.set()
                self.session.set_state("streaming")
                await self._wake.wait()
            for name in waiting:
                await self._table(name, states[name])

    async def _table(self, name: str, state: TableState) -> None:
        started = time.monotonic()
        self.session.emit(
            SnapshotStarted, table=name, generation=state.generation, rows_estimated=state.rows_estimated,
            reason=state.reason,
        )  # fmt: skip
        await together(*(self._reader(name) for _ in range(self.session.parallel(name))))
        state = (await self.target.tables())[name]
        swept = await self.target.sweep(name) if state.sweep else 0
        if await self.target.complete_table(name, state.generation):
            self.session.emit(
                SnapshotDone,
                table=name,
                rows=state.rows_done,
                swept=swept,
                seconds=time.monotonic() - started,
            )
        else:
            await asyncio.sleep(ELSEWHERE)

    async def _reader(self, name: str) -> None:
        while (chunk := await self.target.claim_chunk(name)) is not None:
            try:
                await self._chunk(chunk)
            except ChunkVoid as void:
                self._note(name, str(void))

    async def _chunk(self, chunk: Chunk) -> None:
        """Copy a chunk page by page. The next page is read while this one is written: its range has been an
        open chunk since the chunk was planned, so deletes of its keys leave tombstones already."""
        page: _Page | None = await self._read(chunk.table, chunk.bounds)
        following: asyncio.Task[_Page] | None = None
        try:
            while page is not None:
                if page.rest is not None:
                    following = asyncio.create_task(self._read(chunk.table, page.rest))
                current, page = page, None
                try:
                    token = await self._write(chunk, current)
                finally:
                    self.session.pages.release()
                if following is not None and current.rest is not None:
                    number, claim = token.split(":", 1)
                    chunk = replace(chunk, id=int(number), claim=claim, bounds=current.rest)
                    page, following = await following, None
        finally:
            await self._drop(following)

    async def _drop(self, following: asyncio.Task[_Page] | None) -> None:
        """Give back the permit of a page that nobody will write."""
        if following is None:
            return
        await end(following)
        if not following.cancelled() and following.exception() is None:
            self.session.pages.release()

    async def _read(self, name: str, bounds: Bounds) -> _Page:
        """Read and encode one page, as of a stamp of its own."""
        settings = self.settings.table(name)
        await self.session.pages.acquire()
        try:
            stamp = await self.source.moment()
            found = await self.source.read_chunk(
                name, bounds, stamp, settings.full_load_batch_size, settings.max_batch_bytes
            )
            raw = stamp.version if found.version is None else found.version
            version = raw + self.session.marker.version_offset
            table = TableBatch(name, _changes(found, version), found.key_field)
            batch = Batch(BatchMarker(stamp.position), {name: table})
            await self.target.prepare(batch)
        except BaseException:
            self.session.pages.release()
            raise
        return _Page(batch, table, replace(stamp, version=version), found.rest, found.bytes)

    async def _write(self, chunk: Chunk, page: _Page) -> str:
        started = time.monotonic()
        while True:
            try:
                await self._make_room(page)
                async with self.target.transaction([chunk.table], shared=True) as t:
                    token = await t.write_chunk(chunk, page.table, page.stamp.version, page.rest, page.size)
                break
            except LockTimeout as error:
                await self.session.backoff(error, chunk.table)
        self.session.report(t.written)
        state = t.states[chunk.table]
        rows = len(page.table.changes)
        self.session.emit(
            ChunkCommitted, table=chunk.table, rows=rows, bytes=page.size, seconds=time.monotonic() - started,
            rows_done=state.rows_done + rows, rows_estimated=state.rows_estimated,
        )  # fmt: skip
        return token

    async def _make_room(self, page: _Page) -> None:
        """The table and columns that a page needs, in a short exclusive transaction of its own."""
        name = page.table.table
        known = {name: TableState(name, "snapshotting", plan=self.target.plan(name))}
        if not page.table.changes or not evolve(known, {name: page.table.prepared.observed}, self.settings):
            return
        await self.session.evolve(page.batch)


def _changes(page: ChunkPage, version: int) -> list[Change]:
    if page.keys is None:
        return [Change(Op.UPSERT, KEY_IN_IMAGE, version, image) for image in page.documents]
    pairs = zip(page.keys, page.documents, strict=True)
    return [Change(Op.UPSERT, key, version, image) for key, image in pairs]
