"""What the core reports, as plain data. Metrics, logs, health and the terminal are listeners; the core knows
only `Observer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

__all__ = [
    "ChunkCommitted",
    "Committed",
    "DeadLettered",
    "Event",
    "Failed",
    "Lag",
    "Listener",
    "Misfit",
    "Note",
    "Observer",
    "Pool",
    "Queue",
    "SchemaChanged",
    "SnapshotDone",
    "SnapshotStarted",
    "State",
]


@dataclass(frozen=True)
class Event:
    """Base of all: which source database, which schema (the unit's name) and which table ('*' for all)."""

    database: str
    schema: str
    table: str = "*"


@dataclass(frozen=True)
class Committed(Event):
    """A batch is durable. `operations` counts rows per table and operation (insert, update, delete), `refused`
    the writes that the version guard refused, `seconds` the time from its first event read to the commit."""

    operations: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    events: int = 0
    bytes: int = 0
    seconds: float = 0.0
    refused: int = 0
    batch: str = ""
    source_time: datetime | None = None


@dataclass(frozen=True)
class ChunkCommitted(Event):
    """Part of a table's snapshot is durable: rows and bytes of this part, and the table's progress so far."""

    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    rows_done: int = 0
    rows_estimated: int = 0


@dataclass(frozen=True)
class SnapshotStarted(Event):
    """A table's snapshot begins, or goes on after a restart."""

    generation: int = 1
    rows_estimated: int = 0
    reason: str = ""


@dataclass(frozen=True)
class SnapshotDone(Event):
    """A table is complete: rows copied, rows that the sweep removed, and how long it took in seconds."""

    rows: int = 0
    swept: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class SchemaChanged(Event):
    """The destination's structure changed: add_table, add_column, key_type, soft_delete."""

    change_type: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Misfit(Event):
    """Values of `column` did not fit and are kept in `_warp_extra`; `first` names the first document's key."""

    column: str = ""
    count: int = 1
    first: str = ""


@dataclass(frozen=True)
class DeadLettered(Event):
    """Rows went to the dead-letter table in the same transaction as the position that passes them."""

    error_class: str = ""
    count: int = 1
    message: str = ""


@dataclass(frozen=True)
class Failed(Event):
    """Something failed. `attempt` counts from 1; `retry_in` is None when it will not be tried again."""

    error_type: str = ""
    message: str = ""
    attempt: int = 1
    retry_in: float | None = None


@dataclass(frozen=True)
class State(Event):
    """The unit's state: starting, standby, snapshotting, streaming, retrying, paused, stopped, failed, done."""

    state: str = "starting"
    detail: str = ""


@dataclass(frozen=True)
class Lag(Event):
    """Seconds that the destination is behind the source, the age of the stored position, and how much of the
    source's change history is still in front of that position (both in seconds, None when unknown)."""

    lag_seconds: float = 0.0
    token_age_seconds: float | None = None
    oplog_headroom_seconds: float | None = None


@dataclass(frozen=True)
class Queue(Event):
    """How many changes wait in memory, read from the source but not committed."""

    size: int = 0


@dataclass(frozen=True)
class Pool(Event):
    """The destination's connections: open and in use."""

    open: int = 0
    used: int = 0


@dataclass(frozen=True)
class Note(Event):
    """Something that an operator should read once: `level` is info or warning."""

    level: str = "info"
    message: str = ""


Listener = Callable[[Event], None]


class Observer:
    """Hands each event to every listener, in the order in which they were added."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = list(listeners)

    def add(self, listener: Listener) -> None:
        """Hear all further events."""
        self._listeners.append(listener)

    def emit(self, event: Event) -> None:
        """Report `event`."""
        for listener in self._listeners:
            listener(event)
