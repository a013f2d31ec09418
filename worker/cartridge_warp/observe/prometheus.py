"""The metrics: a listener that counts events, over a registry of its own.

Values that the whole schema shares carry `table="*"`. Tables beyond the configured number share
`table="_other"`, so that a database with thousands of collections does not flood Prometheus.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from cartridge_warp.config import PrometheusConfig
from cartridge_warp.observe.events import (
    ChunkCommitted,
    Committed,
    DeadLettered,
    Event,
    Failed,
    Misfit,
    Pool,
    Queue,
    SchemaChanged,
    SnapshotDone,
    SnapshotStarted,
)
from cartridge_warp.observe.failing import Clock
from cartridge_warp.observe.scrape import Scrape

__all__ = ["Metrics"]

_BASE = ("database", "schema", "table")
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

# The stream may still be on its way through changes that a snapshot has already read: a refused write is
# then the guard at work. The margin covers clocks that differ.
_CLOCK_MARGIN = timedelta(seconds=5)


class Metrics:
    """Hears events and renders the metrics. `registry` holds nothing of any other library."""

    def __init__(
        self,
        settings: PrometheusConfig | None = None,
        *,
        clock: Clock = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        # Without this each counter brings a `_created` series of its own, which nobody asked for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._max_tables = (settings or PrometheusConfig()).max_tables
        self._now = now
        self._named: set[tuple[str, str]] = set()
        self._copying: dict[str, set[str]] = {}
        self._settled: dict[str, datetime] = {}
        self.registry = CollectorRegistry()
        self._make()
        self._scrape = Scrape(self._table, clock)
        self.registry.register(self._scrape)
        ProcessCollector(registry=self.registry)

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        self._settled.setdefault(event.schema, self._now())
        self._scrape.hear(event)
        match event:
            case Committed():
                self._committed(event)
            case ChunkCommitted():
                self._chunk(event)
            case SnapshotStarted():
                self._copying.setdefault(event.schema, set()).add(event.table)
            case SnapshotDone():
                self._copying.get(event.schema, set()).discard(event.table)
                self._settled[event.schema] = self._now()
            case _:
                self._occurrence(event)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics in the format that the `Accept` header asks for, and the content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _make(self) -> None:
        self._records = self._counter("records_processed", "Rows written, snapshot and stream", "operation")
        self._bytes = self._counter("bytes_processed", "Bytes of source documents whose rows are durable")
        self._errors = self._counter("error_count", "Failures, each attempt counted", "error_type")
        self._changes = self._counter("schema_changes", "Changes of destination tables", "change_type")
        self._misfits = self._counter(
            "type_conversion_warnings", "Values that did not fit their column and are kept in _warp_extra"
        )
        self._letters = self._counter("dead_letters", "Rows sent to the dead-letter table", "error_class")
        self._refused = self._counter("refused_writes", "Writes that the version guard refused")
        self._unexpected = self._counter(
            "unexpected_refused_writes", "Refused writes with no snapshot to explain them: an alert"
        )
        self._last = self._gauge("last_successful_sync", "Unix time of the last commit")
        self._queue = self._gauge("queue_size", "Changes read from the source and not yet committed")
        self._pool = self._gauge("pool_connections", "Connections to the destination", "state")
        self._seconds = Histogram(
            "cartridge_warp_batch_processing_duration_seconds",
            "From the first event read to the commit",
            _BASE,
            buckets=_BUCKETS,
            registry=self.registry,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"cartridge_warp_{name}", text, (*_BASE, *labels), registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"cartridge_warp_{name}", text, (*_BASE, *labels), registry=self.registry)

    def _table(self, schema: str, table: str) -> str:
        """The label of a table: its name while there is room."""
        if table == "*" or (schema, table) in self._named:
            return table
        if len(self._named) >= self._max_tables:
            return "_other"
        self._named.add((schema, table))
        return table

    def _labels(self, event: Event, table: str | None = None) -> tuple[str, str, str]:
        name = event.table if table is None else table
        return event.database, event.schema, self._table(event.schema, name)

    def _committed(self, event: Committed) -> None:
        everything = self._labels(event)
        at = self._now().timestamp()
        self._bytes.labels(*everything).inc(event.bytes)
        self._seconds.labels(*everything).observe(event.seconds)
        self._last.labels(*everything).set(at)
        for table, operations in event.operations.items():
            labels = self._labels(event, table)
            self._last.labels(*labels).set(at)
            for operation, rows in operations.items():
                self._records.labels(*labels, operation).inc(rows)
        if event.refused:
            self._refused.labels(*everything).inc(event.refused)
        # Present from the first commit on: an alert on an increase needs the zero before it.
        self._unexpected.labels(*everything).inc(0 if self._expected(event) else event.refused)

    def _expected(self, event: Committed) -> bool:
        if self._copying.get(event.schema):
            return True
        settled = self._settled[event.schema] + _CLOCK_MARGIN
        return event.source_time is not None and event.source_time <= settled

    def _chunk(self, event: ChunkCommitted) -> None:
        labels = self._labels(event)
        self._records.labels(*labels, "snapshot").inc(event.rows)
        self._bytes.labels(*labels).inc(event.bytes)
        self._seconds.labels(*labels).observe(event.seconds)
        self._last.labels(*labels).set(self._now().timestamp())

    def _occurrence(self, event: Event) -> None:
        labels = self._labels(event)
        match event:
            case Failed():
                self._errors.labels(*labels, event.error_type).inc()
            case SchemaChanged():
                self._changes.labels(*labels, event.change_type).inc()
            case Misfit():
                self._misfits.labels(*labels).inc(event.count)
            case DeadLettered():
                self._letters.labels(*labels, event.error_class).inc(event.count)
            case Queue():
                self._queue.labels(*labels).set(event.size)
            case Pool():
                self._pool.labels(*labels, "open").set(event.open)
                self._pool.labels(*labels, "used").set(event.used)
