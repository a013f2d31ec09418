"""Tasks that end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["end", "together"]


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended. Again and again: Python 3.11's `asyncio.wait_for`, which
    drivers use, loses a cancellation that arrives just as it returns (python/cpython#86296)."""
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=1)


async def together(*coroutines: Coroutine[Any, Any, None], until: Coroutine[Any, Any, None] | None = None) -> None:
    """Run all of them; an error of one ends the others and is raised (in a group when there are several).
    With `until` all end as soon as that one has ended; else when each has."""
    tasks = [asyncio.create_task(each) for each in coroutines]
    last = None if until is None else asyncio.create_task(until)
    every = {*tasks, last} if last is not None else set(tasks)
    waiting: set[asyncio.Task[None]] = set(every)
    try:
        while waiting and not (last is not None and last.done()):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if any(task.exception() for task in done if not task.cancelled()):
                break
    finally:
        await end(*every)
    errors = [error for task in every if not task.cancelled() and (error := task.exception()) is not None]
    if errors:
        raise BaseExceptionGroup("replication", errors)
