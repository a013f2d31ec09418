"""Calling a simple connector safely: every shape of an iterator that the contract allows, reading ahead
without ever losing an element, and foreign exceptions translated in one place."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from typing import Any, Generic, TypeVar

from cartridge_warp.connectors.base import SourceConnector
from cartridge_warp.errors import Unavailable, WarpError
from cartridge_warp.records import ChangeEvent, Record

__all__ = ["Ahead", "Pause", "changes", "each", "snapshots", "translated"]

Item = TypeVar("Item")


class Pause(Enum):
    """Why `Ahead.next` has no element."""

    IDLE = "idle"  # nothing within the time given; more may come
    END = "end"  # the iterator is exhausted


@contextmanager
def translated(connector: str, doing: str, refused: type[WarpError]) -> Iterator[None]:
    """Errors of ours pass. What the operating system or a network reports counts as an outage; anything else
    is a fault that retrying cannot help, and becomes `refused`. `connector` reads like "source 'jsonl'"."""
    try:
        yield
    except WarpError:
        raise
    except (OSError, EOFError) as error:
        raise Unavailable(f"{connector} failed while {doing}: {_named(error)}; it is tried again") from error
    except Exception as error:
        raise refused(
            f"{connector} failed while {doing}: {_named(error)}; this is for the connector's author to mend, "
            "or to report as Unavailable when it is an outage"
        ) from error


async def changes(source: SourceConnector, schema: str, marker: Any, batch_size: int) -> AsyncIterator[ChangeEvent]:
    """The source's `get_changes` as one async iterator, whichever of the allowed shapes it has: an async
    generator, or a coroutine that returns an async generator or another async iterator."""
    return await _iterator(source.get_changes(schema, marker, batch_size))


async def snapshots(source: SourceConnector, schema: str, table: str, batch_size: int) -> AsyncIterator[Record]:
    """The source's `get_full_snapshot`, likewise."""
    return await _iterator(source.get_full_snapshot(schema, table, batch_size))


async def _iterator(given: AsyncIterator[Item] | Awaitable[AsyncIterator[Item]]) -> AsyncIterator[Item]:
    found = await given if inspect.isawaitable(given) else given
    if not hasattr(found, "__aiter__"):
        raise TypeError(f"an async iterator was expected, not {type(found).__name__}")
    return aiter(found)


async def each(
    iterator: AsyncIterator[Item], calling: Callable[[], AbstractContextManager[None]]
) -> AsyncGenerator[Item, None]:
    """Every element, each taken inside `calling()`; closes the iterator in the end."""
    try:
        while True:
            with calling():
                try:
                    item = await anext(iterator)
                except StopAsyncIteration:
                    return
            yield item
    finally:
        await _close(iterator)


class Ahead(Generic[Item]):
    """Takes elements from an async iterator one at a time, without cancelling the read when none is ready:
    cancelling `__anext__` of a generator would close it, and with it the source's stream."""

    def __init__(self, iterator: AsyncIterator[Item]) -> None:
        self._iterator = iterator
        self._pending: asyncio.Task[Item | Pause] | None = None

    async def next(self, patience: float) -> Item | Pause:
        """The next element, or the reason why there is none within `patience` seconds."""
        if not await self.ready(patience) or self._pending is None:
            return Pause.IDLE
        task, self._pending = self._pending, None
        return task.result()

    async def ready(self, patience: float) -> bool:
        """Begin to read, and wait up to `patience` seconds; True when `next` will answer at once."""
        if self._pending is None:
            self._pending = asyncio.create_task(_pull(self._iterator))
        done, _ = await asyncio.wait({self._pending}, timeout=patience)
        return bool(done)

    async def close(self) -> None:
        """Stop reading and close the iterator."""
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.wait({self._pending})
            if not self._pending.cancelled():
                self._pending.exception()  # seen: nobody waits for this element any more
            self._pending = None
        await _close(self._iterator)


async def _pull(iterator: AsyncIterator[Item]) -> Item | Pause:
    try:
        return await anext(iterator)
    except StopAsyncIteration:
        return Pause.END


async def _close(iterator: AsyncIterator[Any]) -> None:
    """Generators can be closed; other iterators need not."""
    if (aclose := getattr(iterator, "aclose", None)) is not None:
        await aclose()


def _named(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
