"""A listener that tells the events in the log, at levels that let an operator sleep."""

from __future__ import annotations

import time
from collections.abc import Collection

import structlog

from cartridge_warp.observe.events import (
    ChunkCommitted,
    Committed,
    DeadLettered,
    Event,
    Failed,
    Lag,
    Misfit,
    Note,
    SchemaChanged,
    SnapshotDone,
    SnapshotStarted,
    State,
)
from cartridge_warp.observe.failing import Clock, Trouble, Troubles

__all__ = ["Narrator"]

_QUIET_SECONDS = 60.0
"""A line of one kind about one thing is repeated at most so often; what came meanwhile is counted in it."""


class Narrator:
    """Hears events. For the schemas in `without_misfits` values that did not fit are not logged (they are
    still counted in the metrics)."""

    def __init__(self, without_misfits: Collection[str] = (), *, clock: Clock = time.monotonic) -> None:
        self._log = structlog.stdlib.get_logger("cartridge_warp")
        self._without_misfits = frozenset(without_misfits)
        self._clock = clock
        self._troubles = Troubles(clock)
        self._states: dict[str, tuple[str, str]] = {}
        self._said: dict[tuple[str, ...], float] = {}
        self._unsaid: dict[tuple[str, ...], int] = {}

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        for trouble in self._troubles.hear(event):
            self._recovered(trouble)
        log = self._log.bind(schema=event.schema)
        if event.table != "*":
            log = log.bind(table=event.table)
        match event:
            case Committed() | ChunkCommitted() | Lag():
                self._routine(log, event)
            case SnapshotStarted():
                log.info(
                    "snapshot started",
                    rows_estimated=event.rows_estimated,
                    generation=event.generation,
                    **_given(reason=event.reason),
                )
            case SnapshotDone():
                log.info("snapshot done", rows=event.rows, swept=event.swept, seconds=round(event.seconds, 3))
            case State():
                self._state(log, event)
            case _:
                self._notable(log, event)

    def _routine(self, log: structlog.stdlib.BoundLogger, event: Event) -> None:
        match event:
            case Committed():
                log.debug(
                    "committed",
                    batch=event.batch,
                    events=event.events,
                    rows=sum(sum(each.values()) for each in event.operations.values()),
                    bytes=event.bytes,
                    refused=event.refused,
                    seconds=round(event.seconds, 4),
                )
            case ChunkCommitted():
                log.debug(
                    "chunk committed",
                    rows=event.rows,
                    bytes=event.bytes,
                    rows_done=event.rows_done,
                    rows_estimated=event.rows_estimated,
                    seconds=round(event.seconds, 4),
                )
            case Lag():
                log.debug(
                    "lag",
                    lag_seconds=event.lag_seconds,
                    token_age_seconds=event.token_age_seconds,
                    oplog_headroom_seconds=event.oplog_headroom_seconds,
                )

    def _notable(self, log: structlog.stdlib.BoundLogger, event: Event) -> None:
        match event:
            case Misfit():
                self._misfit(log, event)
            case DeadLettered():
                count = self._due(("dead", event.schema, event.table, event.error_class), event.count)
                if count:
                    log.warning(
                        "rows went to the dead letters",
                        error_class=event.error_class,
                        count=count,
                        message=event.message,
                    )
            case Failed():
                self._failed(log, event)
            case SchemaChanged():
                log.info("destination structure changed", change=event.change_type, detail=event.detail)
            case Note():
                log.log(30 if event.level == "warning" else 20, event.message)

    def _misfit(self, log: structlog.stdlib.BoundLogger, event: Misfit) -> None:
        if event.schema in self._without_misfits:
            return
        count = self._due(("misfit", event.schema, event.table, event.column), event.count)
        if count:
            log.warning(
                "values do not fit their column and are kept in _warp_extra",
                column=event.column,
                count=count,
                first=event.first,
            )

    def _failed(self, log: structlog.stdlib.BoundLogger, event: Failed) -> None:
        trouble = self._troubles.find(event.schema, event.table)
        fields = {"error_type": event.error_type, "attempt": event.attempt, "message": event.message}
        key = ("failed", event.schema, event.table)
        if event.retry_in is None:
            self._said.pop(key, None)
            log.error("failed, and will not be tried again", **fields)
            return
        if trouble is not None and trouble.count == 1:
            self._said.pop(key, None)
        due = self._due(key, 1)
        log.log(30 if due else 10, "failed, will be tried again", retry_in=round(event.retry_in, 3), **fields)

    def _recovered(self, trouble: Trouble) -> None:
        log = self._log.bind(schema=trouble.schema)
        if trouble.table != "*":
            log = log.bind(table=trouble.table)
        log.info("recovered", failures=trouble.count, seconds=round(self._clock() - trouble.since, 1))

    def _state(self, log: structlog.stdlib.BoundLogger, event: State) -> None:
        told = (event.state, event.detail)
        key = f"{event.schema}.{event.table}"
        # During an outage the state changes with each attempt; the failures themselves tell that.
        if self._states.get(key) == told or event.state == "retrying":
            return
        self._states[key] = told
        log.log(40 if event.state == "failed" else 20, event.state, **_given(detail=event.detail))

    def _due(self, key: tuple[str, ...], count: int) -> int:
        """How many to tell of now, those kept back included; 0 while it is too early to repeat the line."""
        count += self._unsaid.pop(key, 0)
        now = self._clock()
        if now - self._said.get(key, -_QUIET_SECONDS) < _QUIET_SECONDS:
            self._unsaid[key] = count
            return 0
        self._said[key] = now
        return count


def _given(**texts: str) -> dict[str, str]:
    """Those that are not empty."""
    return {name: text for name, text in texts.items() if text}
