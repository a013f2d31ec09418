"""Metrics: names, labels and meaning of what Prometheus reads."""

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cartridge_warp.config import PrometheusConfig
from cartridge_warp.observe.events import (
    ChunkCommitted,
    Committed,
    DeadLettered,
    Failed,
    Lag,
    Misfit,
    Note,
    Pool,
    Queue,
    SchemaChanged,
    SnapshotDone,
    SnapshotStarted,
    State,
)
from cartridge_warp.observe.prometheus import Metrics

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Clock:
    def __init__(self):
        self.at = 1000.0

    def __call__(self):
        return self.at


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def metrics(clock):
    return Metrics(clock=clock, now=lambda: NOW + timedelta(seconds=clock.at - 1000))


def value(metrics, name, **labels):
    labels = {"database": "shop", "schema": "sales", "table": "*"} | labels
    labels = {key: each for key, each in labels.items() if each is not None}
    return metrics.registry.get_sample_value(f"cartridge_warp_{name}", labels)


def committed(operations=None, **values):
    return Committed("shop", "sales", operations=operations or {}, **values)


def everything(metrics):
    for event in (
        State("shop", "sales", state="streaming"),
        committed({"orders": {"insert": 3, "update": 2}}, bytes=100, seconds=0.2, refused=1),
        SnapshotStarted("shop", "sales", "orders", rows_estimated=10),
        ChunkCommitted("shop", "sales", "orders", rows=4, bytes=50, rows_done=4, rows_estimated=10),
        SchemaChanged("shop", "sales", "orders", change_type="add_column"),
        Misfit("shop", "sales", "orders", column="price", count=7),
        DeadLettered("shop", "sales", "orders", error_class="22P02", count=2),
        Failed("shop", "sales", error_type="unavailable", attempt=1, retry_in=1.0),
        Lag("shop", "sales", lag_seconds=1.5, token_age_seconds=3.0, oplog_headroom_seconds=900.0),
        Queue("shop", "sales", size=12),
        Pool("shop", "sales", open=4, used=1),
        Note("shop", "sales", message="hello"),
    ):
        metrics(event)


def test_all_promised_metrics_with_their_labels(metrics):
    """The eleven promised metrics, and those added, exist under exactly these names with these labels."""
    everything(metrics)
    found = {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(metrics.render()[0].decode())
        for sample in family.samples
        if sample.name.startswith("cartridge_warp_") and not sample.name.endswith("_bucket")
    }
    base = {"database", "schema", "table"}
    assert found == {
        "cartridge_warp_records_processed_total": base | {"operation"},
        "cartridge_warp_processing_rate": base,
        "cartridge_warp_lag_seconds": base,
        "cartridge_warp_sync_status": base,
        "cartridge_warp_last_successful_sync": base,
        "cartridge_warp_error_count_total": base | {"error_type"},
        "cartridge_warp_batch_processing_duration_seconds_count": base,
        "cartridge_warp_batch_processing_duration_seconds_sum": base,
        "cartridge_warp_queue_size": base,
        "cartridge_warp_memory_usage_bytes": base - {"table"},
        "cartridge_warp_schema_changes_total": base | {"change_type"},
        "cartridge_warp_type_conversion_warnings_total": base,
        "cartridge_warp_bytes_processed_total": base,
        "cartridge_warp_snapshot_rows": base,
        "cartridge_warp_snapshot_rows_estimated": base,
        "cartridge_warp_snapshot_progress_ratio": base,
        "cartridge_warp_dead_letters_total": base | {"error_class"},
        "cartridge_warp_token_age_seconds": base,
        "cartridge_warp_oplog_headroom_seconds": base,
        "cartridge_warp_pool_connections": base | {"state"},
        "cartridge_warp_refused_writes_total": base,
        "cartridge_warp_unexpected_refused_writes_total": base,
    }


def test_counts_are_what_was_reported(metrics):
    """Counters add up the events; stream-wide values carry the table `*`."""
    everything(metrics)
    assert value(metrics, "records_processed_total", table="orders", operation="insert") == 3
    assert value(metrics, "records_processed_total", table="orders", operation="snapshot") == 4
    assert value(metrics, "bytes_processed_total") == 100
    assert value(metrics, "bytes_processed_total", table="orders") == 50
    assert value(metrics, "type_conversion_warnings_total", table="orders") == 7
    assert value(metrics, "dead_letters_total", table="orders", error_class="22P02") == 2
    assert value(metrics, "error_count_total", error_type="unavailable") == 1
    assert value(metrics, "queue_size") == 12
    assert value(metrics, "pool_connections", state="open") == 4
    assert value(metrics, "last_successful_sync") == NOW.timestamp()
    assert value(metrics, "memory_usage_bytes", table=None) > 1e6
    assert value(metrics, "snapshot_progress_ratio", table="orders") == pytest.approx(0.4)


def test_two_instances_share_nothing(metrics):
    """Each instance has a registry of its own, so that two workers in one process do not mix."""
    everything(metrics)
    assert value(Metrics(), "queue_size") is None


def test_rate_is_rows_per_second_over_ten_seconds(metrics, clock):
    """The rate is taken over the last 10 s and falls to 0 when nothing moves any more."""
    for _ in range(20):
        metrics(committed({"orders": {"insert": 50}}))
        clock.at += 1
    assert value(metrics, "processing_rate", table="orders") == pytest.approx(50, rel=0.11)
    assert value(metrics, "processing_rate") == pytest.approx(50, rel=0.11)
    clock.at += 10
    assert value(metrics, "processing_rate") == 0


def test_status_is_an_error_from_the_third_attempt_until_a_success(metrics):
    """sync_status is 1 while active, -1 from the third failed attempt on, 1 after recovery, 0 when stopped."""
    metrics(State("shop", "sales", state="starting"))
    assert value(metrics, "sync_status") == 0
    metrics(State("shop", "sales", state="streaming"))
    for attempt, expected in ((1, 1), (2, 1), (3, -1), (4, -1)):
        metrics(State("shop", "sales", state="retrying"))
        metrics(Failed("shop", "sales", error_type="unavailable", attempt=attempt, retry_in=1.0))
        assert value(metrics, "sync_status") == expected
    metrics(State("shop", "sales", state="streaming"))
    assert value(metrics, "sync_status") == 1
    metrics(State("shop", "sales", state="stopped"))
    assert value(metrics, "sync_status") == 0
    metrics(State("shop", "sales", state="failed"))
    assert value(metrics, "sync_status") == -1


def test_a_stopped_table_is_an_error_of_its_own(metrics):
    """A table that will not be tried again is -1 while its schema goes on."""
    metrics(State("shop", "sales", state="streaming"))
    metrics(Failed("shop", "sales", "orders", error_type="schema", retry_in=None))
    assert value(metrics, "sync_status") == 1
    assert value(metrics, "sync_status", table="orders") == -1


def test_tables_beyond_the_limit_share_a_label():
    """Tables beyond max_tables are counted as `_other`; the first ones keep their label."""
    metrics = Metrics(PrometheusConfig(max_tables=2))
    for table in ("a", "b", "c", "d", "a"):
        metrics(committed({table: {"insert": 1}}))
        metrics(SnapshotDone("shop", "sales", table, rows=5))
    assert value(metrics, "records_processed_total", table="a", operation="insert") == 2
    assert value(metrics, "records_processed_total", table="_other", operation="insert") == 2
    assert value(metrics, "records_processed_total", table="c", operation="insert") is None
    assert value(metrics, "snapshot_rows", table="_other") == 10


def test_lag_grows_while_nothing_is_heard(metrics, clock):
    """A worker that is stuck does not go on showing the small lag of its last good moment."""
    metrics(State("shop", "sales", state="streaming"))
    metrics(Lag("shop", "sales", lag_seconds=0.5, token_age_seconds=1.0, oplog_headroom_seconds=600.0))
    clock.at += 10
    assert value(metrics, "lag_seconds") == 0.5
    clock.at += 110
    assert value(metrics, "lag_seconds") == pytest.approx(120.5)
    assert value(metrics, "token_age_seconds") == pytest.approx(121)
    assert value(metrics, "oplog_headroom_seconds") == pytest.approx(480)
    metrics(State("shop", "sales", state="done"))
    assert value(metrics, "lag_seconds") == 0.5


def test_refused_writes_are_unexpected_only_without_a_snapshot(metrics, clock):
    """The guard's refusals count as unexpected only where no snapshot explains them."""

    def refuse(age):
        metrics(committed(refused=1, source_time=metrics._now() - timedelta(seconds=age)))
        return value(metrics, "unexpected_refused_writes_total")

    metrics(SnapshotStarted("shop", "sales", "orders"))
    assert refuse(0) == 0
    clock.at += 60
    metrics(SnapshotDone("shop", "sales", "orders"))
    clock.at += 30
    assert refuse(40) == 0, "a change from before the end of the snapshot, still on its way"
    assert refuse(0) == 1
    assert value(metrics, "refused_writes_total") == 3


def test_progress_is_complete_when_done_and_never_above_one(metrics):
    """More rows than estimated, and an empty table, both end at exactly 1."""
    metrics(SnapshotStarted("shop", "sales", "grown", rows_estimated=10))
    metrics(ChunkCommitted("shop", "sales", "grown", rows=15, rows_done=15, rows_estimated=10))
    assert value(metrics, "snapshot_progress_ratio", table="grown") == 1
    metrics(SnapshotStarted("shop", "sales", "empty"))
    assert value(metrics, "snapshot_progress_ratio", table="empty") == 0
    metrics(SnapshotDone("shop", "sales", "empty"))
    assert value(metrics, "snapshot_progress_ratio", table="empty") == 1


def test_openmetrics_on_demand(metrics):
    """The format follows the Accept header."""
    body, content_type = metrics.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    assert metrics.render()[1].startswith("text/plain")
