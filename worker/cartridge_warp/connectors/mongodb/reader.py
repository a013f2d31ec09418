"""Reads a change stream ahead of the batching, so that a batch sees what is ready without waiting."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from bson.raw_bson import RawBSONDocument
from pymongo.asynchronous.change_stream import AsyncDatabaseChangeStream

from cartridge_warp.connectors.mongodb.events import Fragments
from cartridge_warp.connectors.mongodb.position import Token

__all__ = ["Reader"]

_MOST_EVENTS: Final = 10_000
_SLICE_SECONDS: Final = 0.01
_CANCEL_AGAIN_SECONDS: Final = 1.0
_SHORTEST_WAIT: Final = 0.02
_WAITED_SECONDS: Final = 0.001  # longer than taking a buffered event: it was a getMore


class Reader:
    """A task that moves events from `stream` into a queue bounded by count and bytes.

    `idle` is True while the server has nothing more, `settled` once it has said so twice, `done` when nothing
    more will come; `error` is what ended the reading, None for a stream that the server closed behind an
    invalidate.
    """

    def __init__(self, stream: AsyncDatabaseChangeStream[RawBSONDocument], max_bytes: int) -> None:
        self.idle = False
        self.settled = False
        self.done = False
        self.error: Exception | None = None
        self._stopping = False
        self._stream = stream
        self._max_bytes = max_bytes
        self._bytes = 0
        self._queue: deque[tuple[Mapping[str, Any], int]] = deque()
        self._fragments = Fragments()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="change-stream-reader")

    def __len__(self) -> int:
        return len(self._queue)

    def pop(self) -> tuple[Mapping[str, Any], int] | None:
        """The next event and its size in bytes; None when none is ready."""
        if not self._queue:
            return None
        event, size = self._queue.popleft()
        self._bytes -= size
        self._room.set()
        return event, size

    def token(self) -> Token | None:
        """The position behind the last event that was taken, never older than that event; None when events
        still wait or one is incomplete. Valid until the next await."""
        if self._queue or self._fragments.pending:
            return None
        return self._stream.resume_token

    async def wait(self, seconds: float) -> None:
        """Return when something is ready, the server has nothing more, reading has ended, or time is up."""
        if self.done:
            return
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    async def close(self) -> None:
        """End the reading and the stream on the server."""
        self._stopping = True
        # Python 3.11's wait_for, inside the driver, loses a cancellation that comes just as it is done. The
        # pause is long enough for the driver to take leave of the server.
        while not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_CANCEL_AGAIN_SECONDS)

    async def _run(self) -> None:
        try:
            await self._read()
        except Exception as exc:
            self.error = exc  # raised again by whoever takes the last event
        finally:
            self.done = True
            self._news.set()
            with suppress(Exception):  # the server forgets the cursor by itself when it cannot be told
                await self._stream.close()

    async def _read(self) -> None:
        clock = asyncio.get_running_loop().time
        started = clock()
        while self._stream.alive and not self._stopping:
            asked = clock()
            # A buffered event returns without a switch to other tasks, else this is one getMore.
            event = await self._stream.try_next()
            if (now := clock()) - asked > _WAITED_SECONDS:
                started = now
            if event is None:
                self.settled = self.idle  # the first None may only mean that the driver has resumed the stream
                self.idle = True
                self._news.set()
                await asyncio.sleep(max(0.0, _SHORTEST_WAIT - (now - asked)))
                continue
            self._queue_up(event)
            if self._bytes >= self._max_bytes or len(self._queue) >= _MOST_EVENTS:
                await self._wait_for_room()
                started = clock()
            elif now - started > _SLICE_SECONDS:
                await asyncio.sleep(0)
                started = clock()

    def _queue_up(self, event: RawBSONDocument) -> None:
        complete = self._fragments.add(event)
        if complete is not None:
            self.idle = self.settled = False
            self._queue.append(complete)
            self._bytes += complete[1]
            self._news.set()

    async def _wait_for_room(self) -> None:
        while self._bytes >= self._max_bytes or len(self._queue) >= _MOST_EVENTS:
            self._room.clear()
            await self._room.wait()
