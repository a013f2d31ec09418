"""What fails and how fast things move, told from the events alone: shared by the listeners."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from cartridge_warp.observe.events import ChunkCommitted, Committed, Event, Failed, SnapshotDone, State

__all__ = ["ALARM_ATTEMPT", "Clock", "Rate", "Trouble", "Troubles"]

ALARM_ATTEMPT = 3
"""From this attempt on an outage counts as an error: `sync_status` is -1 and the worker is not ready."""

Clock = Callable[[], float]

# A unit in one of these states got past whatever failed before, or has been told to rest.
_WELL = frozenset({"standby", "snapshotting", "streaming", "paused", "stopped", "done"})


@dataclass
class Trouble:
    """A run of failures of one table ('*': of the whole schema) without a success in between."""

    schema: str
    table: str
    error_type: str
    message: str
    attempt: int
    final: bool
    since: float
    count: int = 1

    @property
    def alarming(self) -> bool:
        """True from the third attempt, and at once for what will not be tried again."""
        return self.final or self.attempt >= ALARM_ATTEMPT


class Troubles:
    """The runs of failures that go on now."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[tuple[str, str], Trouble] = {}

    def hear(self, event: Event) -> list[Trouble]:
        """Take an event in; returns the runs that it ended."""
        match event:
            case Failed():
                self._failed(event)
            case Committed():
                # The stream works; only tables that it wrote are known to be well again.
                return self._end(event.schema, "*", *event.operations)
            case ChunkCommitted() | SnapshotDone():
                return self._end(event.schema, event.table)
            case State(state=state) if state in _WELL:
                return self._end(event.schema, event.table)
        return []

    def find(self, schema: str, table: str = "*") -> Trouble | None:
        """The run of failures of this table, or None."""
        return self._open.get((schema, table))

    def of(self, schema: str) -> list[Trouble]:
        """All runs of failures in a schema."""
        return [trouble for trouble in self._open.values() if trouble.schema == schema]

    def _failed(self, event: Failed) -> None:
        key = (event.schema, event.table)
        before = self._open.get(key)
        self._open[key] = Trouble(
            schema=event.schema,
            table=event.table,
            error_type=event.error_type,
            message=event.message,
            attempt=event.attempt,
            final=event.retry_in is None,
            since=before.since if before else self._clock(),
            count=before.count + 1 if before else 1,
        )

    def _end(self, schema: str, *tables: str) -> list[Trouble]:
        if not self._open:
            return []
        ended = (self._open.pop((schema, table), None) for table in tables)
        return [trouble for trouble in ended if trouble is not None]


class Rate:
    """Amount per second over a sliding window of whole seconds."""

    def __init__(self, window: int = 10, clock: Clock = time.monotonic) -> None:
        self._window = window
        self._clock = clock
        self._start = clock()
        self._seconds: deque[tuple[int, float]] = deque()

    def add(self, amount: float) -> None:
        """Count `amount` at this moment."""
        second = int(self._clock())
        if self._seconds and self._seconds[-1][0] == second:
            amount += self._seconds.pop()[1]
        self._seconds.append((second, amount))
        self._forget(second)

    def value(self) -> float:
        """Amount per second over the last seconds; over the time since the start while that is shorter."""
        now = self._clock()
        self._forget(int(now))
        span = min(float(self._window), max(1.0, now - self._start))
        return sum(amount for _, amount in self._seconds) / span

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - self._window:
            self._seconds.popleft()
