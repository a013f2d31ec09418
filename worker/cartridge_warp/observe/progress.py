"""How far each schema is: the model behind the terminal's display and the plain progress lines."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from cartridge_warp.observe.events import (
    ChunkCommitted,
    Committed,
    DeadLettered,
    Event,
    Failed,
    Lag,
    SnapshotDone,
    SnapshotStarted,
    State,
)
from cartridge_warp.observe.failing import Clock, Rate

__all__ = ["Progress", "TableProgress", "UnitProgress"]


@dataclass
class TableProgress:
    """The snapshot of one table. `estimated` is 0 when nothing is known."""

    table: str
    rate: Rate
    rows: int = 0
    estimated: int = 0
    bytes: int = 0

    @property
    def share(self) -> float | None:
        """Part that is done, 0 to 1; None when unknown."""
        return min(1.0, self.rows / self.estimated) if self.estimated else None

    @property
    def eta(self) -> float | None:
        """Seconds that are left at the present rate; None when unknown."""
        rate = self.rate.value()
        return max(0, self.estimated - self.rows) / rate if self.estimated and rate else None


@dataclass
class UnitProgress:
    """One schema. `copying` holds the snapshots that run, `copied` how many are done."""

    schema: str
    rate: Rate
    state: str = "starting"
    copying: dict[str, TableProgress] = field(default_factory=dict)
    copied: int = 0
    rows: int = 0
    bytes: int = 0
    changes: int = 0
    lag: float | None = None
    dead_letters: int = 0
    problem: str = ""


class Progress:
    """Hears events and keeps one `UnitProgress` for each schema, in the order of their names."""

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._units: dict[str, UnitProgress] = {}

    @property
    def units(self) -> list[UnitProgress]:
        """All schemas, sorted by name."""
        return [self._units[name] for name in sorted(self._units)]

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        unit = self._units.get(event.schema)
        if unit is None:
            unit = self._units[event.schema] = UnitProgress(event.schema, Rate(clock=self._clock))
        match event:
            case ChunkCommitted() | SnapshotStarted() | SnapshotDone():
                self._snapshot(unit, event)
            case Committed():
                rows = sum(sum(each.values()) for each in event.operations.values())
                unit.changes += rows
                unit.bytes += event.bytes
                unit.rate.add(rows)
                unit.problem = ""
            case Lag():
                unit.lag = max(0.0, event.lag_seconds)
            case State() if event.table == "*":
                unit.state = event.state
                if event.state in ("streaming", "snapshotting", "done"):
                    unit.problem = ""
            case DeadLettered():
                unit.dead_letters += event.count
            case Failed():
                where = "" if event.table == "*" else f"{event.table}: "
                unit.problem = f"{where}{event.message} (attempt {event.attempt})"

    def _snapshot(self, unit: UnitProgress, event: ChunkCommitted | SnapshotStarted | SnapshotDone) -> None:
        if isinstance(event, SnapshotDone):
            unit.copying.pop(event.table, None)
            unit.copied += 1
            return
        table = unit.copying.get(event.table)
        if table is None:
            table = unit.copying[event.table] = TableProgress(event.table, Rate(clock=self._clock))
        table.estimated = event.rows_estimated
        if isinstance(event, ChunkCommitted):
            table.rows = event.rows_done
            table.bytes += event.bytes
            table.rate.add(event.rows)
            unit.rows += event.rows
            unit.bytes += event.bytes
