"""Is the worker alive, started and ready: a listener that answers from the events."""

from __future__ import annotations

import time
from collections.abc import Iterable

from cartridge_warp.errors import mask
from cartridge_warp.observe.events import ChunkCommitted, Committed, Event, Lag, State
from cartridge_warp.observe.failing import Clock, Trouble, Troubles

__all__ = ["STALLED_SECONDS", "Health"]

STALLED_SECONDS = 120.0
"""A unit that should advance and has said nothing of it for so long is not ready."""

_NOT_READY = {
    "starting": "is not connected yet",
    "stopped": "has stopped",
    "failed": "has failed",
}
_ADVANCING = frozenset({"running", "snapshotting", "streaming"})


class Health:
    """Hears events. `units` are the schemas that are to run, so that one that never reports is noticed."""

    def __init__(self, units: Iterable[str] = (), *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._states: dict[str, tuple[str, str]] = dict.fromkeys(units, ("starting", ""))
        self._heard: dict[str, float] = {}
        self._troubles = Troubles(clock)

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        self._troubles.hear(event)
        match event:
            case State() if event.table == "*":
                self._states[event.schema] = (event.state, event.detail)
                self._heard[event.schema] = self._clock()
            case Committed() | ChunkCommitted() | Lag():
                self._heard[event.schema] = self._clock()

    def unready(self) -> list[str]:
        """Why the worker is not ready, a line each; empty when every unit is connected and advances.

        A table that has been stopped for good does not count: it holds back nothing else, and no restart
        would help it. Status and metrics show it.
        """
        reasons: list[str] = []
        for unit, (state, detail) in self._states.items():
            if what := _NOT_READY.get(state):
                reasons.append(f"{unit} {what}" + (f": {detail}" if detail else ""))
            elif state in _ADVANCING and (silent := self._clock() - self._heard[unit]) > STALLED_SECONDS:
                reasons.append(f"{unit} has not advanced for {silent:.0f} s")
            reasons += [_reason(each) for each in self._troubles.of(unit) if _counts(each)]
        return [_line(reason) for reason in reasons]

    def unstarted(self) -> list[str]:
        """Units that have not begun, a line each. One that waits for a server to come back has begun: killing
        the process would not bring the server back."""
        return [
            _line(f"{unit} is starting")
            for unit, (state, _) in self._states.items()
            if state == "starting" and self._troubles.find(unit) is None
        ]

    def states(self) -> list[str]:
        """The state of each unit, a line each."""
        return [f"{unit} {state}" for unit, (state, _) in self._states.items()]


def _counts(trouble: Trouble) -> bool:
    return trouble.alarming and (trouble.table == "*" or not trouble.final)


def _reason(trouble: Trouble) -> str:
    where = trouble.schema if trouble.table == "*" else f"{trouble.schema}.{trouble.table}"
    return f"{where} fails ({trouble.error_type}, attempt {trouble.attempt}): {trouble.message}"


def _line(text: str) -> str:
    return " ".join(mask(text).split())
