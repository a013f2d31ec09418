"""Values that are worked out when they are scraped: rates, state, ages that grow while nothing is heard."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cartridge_warp.observe.events import (
    ChunkCommitted,
    Committed,
    Event,
    Lag,
    SnapshotDone,
    SnapshotStarted,
    State,
)
from cartridge_warp.observe.failing import Clock, Rate, Troubles

__all__ = ["Scrape", "resident_bytes"]

_BASE = ("database", "schema", "table")
_ACTIVE = frozenset({"running", "snapshotting", "streaming"})
_IDLE = frozenset({"stopped", "done"})

_SILENCE = 15.0
"""Seconds without news after which an age is taken to grow with the clock: a stuck worker must not go on
reporting the small lag of its last good moment."""

Labels = tuple[str, str, str]


@dataclass
class _Snapshot:
    done: int = 0
    estimated: int = 0
    complete: bool = False


class Scrape(Collector):
    """A collector of gauges over what it has heard. `table_label` caps the number of table names."""

    def __init__(self, table_label: Callable[[str, str], str], clock: Clock = time.monotonic) -> None:
        self._label = table_label
        self._clock = clock
        self._databases: dict[str, str] = {}
        self._states: dict[str, str] = {}
        self._active: dict[str, bool] = {}
        self._tables: set[tuple[str, str]] = set()
        self._rates: dict[Labels, Rate] = {}
        self._lags: dict[str, tuple[Lag, float]] = {}
        self._snapshots: dict[tuple[str, str], _Snapshot] = {}
        self.troubles = Troubles(clock)

    def hear(self, event: Event) -> None:
        """Take an event in."""
        self._databases[event.schema] = event.database
        self.troubles.hear(event)
        match event:
            case Committed():
                for table, operations in event.operations.items():
                    self._rows(event, table, sum(operations.values()))
            case ChunkCommitted():
                self._rows(event, event.table, event.rows)
                self._progress(event).done = event.rows_done
                self._progress(event).estimated = event.rows_estimated
            case SnapshotStarted():
                self._snapshots[event.schema, event.table] = _Snapshot(0, event.rows_estimated)
            case SnapshotDone():
                # The estimate was one; from here on the count is known, and progress is 1.
                self._snapshots[event.schema, event.table] = _Snapshot(event.rows, event.rows, complete=True)
            case Lag():
                self._lags[event.schema] = (event, self._clock())
            case State(state=state) if event.table == "*":
                self._states[event.schema] = state
                # A retry leaves the status as it was until it becomes alarming (see `_status`).
                if state != "retrying":
                    self._active[event.schema] = state in _ACTIVE

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: the registry must not scrape at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every gauge, as of now."""
        yield self._family("processing_rate", "Rows per second, last 10 s", self._rate_values())
        yield self._family("sync_status", "1 active, 0 inactive, -1 error", self._status_values())
        yield from self._ages()
        yield from self._snapshot_progress()
        memory = GaugeMetricFamily(
            "cartridge_warp_memory_usage_bytes",
            "Resident memory of the worker process; schemas of one process share it",
            labels=_BASE[:2],
        )
        resident = resident_bytes()
        for schema, database in self._databases.items():
            memory.add_metric((database, schema), resident)
        yield memory

    def _rows(self, event: Event, table: str, rows: int) -> None:
        self._tables.add((event.schema, table))
        for name in ("*", table):
            labels = self._labels(event.schema, name)
            if labels not in self._rates:
                self._rates[labels] = Rate(clock=self._clock)
            self._rates[labels].add(rows)

    def _progress(self, event: Event) -> _Snapshot:
        return self._snapshots.setdefault((event.schema, event.table), _Snapshot())

    def _labels(self, schema: str, table: str) -> Labels:
        return self._databases[schema], schema, self._label(schema, table)

    def _family(self, name: str, text: str, values: dict[Labels, float]) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"cartridge_warp_{name}", text, labels=_BASE)
        for labels, value in values.items():
            family.add_metric(labels, value)
        return family

    def _rate_values(self) -> dict[Labels, float]:
        return {labels: rate.value() for labels, rate in self._rates.items()}

    def _status_values(self) -> dict[Labels, float]:
        values: dict[Labels, float] = {}
        troubled = {(t.schema, t.table) for schema in self._databases for t in self.troubles.of(schema)}
        for schema, table in {(schema, "*") for schema in self._databases} | self._tables | troubled:
            labels = self._labels(schema, table)
            # Tables that share `_other` show the worst of them.
            values[labels] = min(values.get(labels, 1.0), self._status(schema, table))
        return values

    def _status(self, schema: str, table: str) -> float:
        troubles = (self.troubles.find(schema), self.troubles.find(schema, table))
        if self._states.get(schema) == "failed" or any(t is not None and t.alarming for t in troubles):
            return -1.0
        return 1.0 if self._active.get(schema) else 0.0

    def _ages(self) -> Iterator[Metric]:
        lag: dict[Labels, float] = {}
        age: dict[Labels, float] = {}
        headroom: dict[Labels, float] = {}
        for schema, (event, heard) in self._lags.items():
            labels = self._labels(schema, event.table)
            silent = self._clock() - heard
            grown = silent if silent > _SILENCE and self._states.get(schema) not in _IDLE else 0.0
            lag[labels] = max(0.0, event.lag_seconds) + grown
            if event.token_age_seconds is not None:
                age[labels] = event.token_age_seconds + grown
            if event.oplog_headroom_seconds is not None:
                headroom[labels] = event.oplog_headroom_seconds - grown
        yield self._family("lag_seconds", "How far the destination is behind the source", lag)
        yield self._family("token_age_seconds", "Age of the stored stream position", age)
        yield self._family("oplog_headroom_seconds", "Source history left before the stored position", headroom)

    def _snapshot_progress(self) -> Iterator[Metric]:
        groups: dict[Labels, list[_Snapshot]] = {}
        for (schema, table), snapshot in self._snapshots.items():
            groups.setdefault(self._labels(schema, table), []).append(snapshot)
        done = {labels: float(sum(each.done for each in group)) for labels, group in groups.items()}
        # Documents may arrive while they are counted: progress never passes 1.
        total = {
            labels: float(sum(max(each.estimated, each.done) for each in group)) for labels, group in groups.items()
        }
        ratio = {
            labels: 1.0 if all(each.complete for each in group) else done[labels] / (total[labels] or 1.0)
            for labels, group in groups.items()
        }
        yield self._family("snapshot_rows", "Rows copied by the current or last snapshot", done)
        yield self._family("snapshot_rows_estimated", "Rows that it expects to copy", total)
        yield self._family("snapshot_progress_ratio", "Part of the snapshot that is done, 0 to 1", ratio)


def resident_bytes() -> int:
    """Resident memory of this process; where the system does not tell it, the largest it has ever been."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")
