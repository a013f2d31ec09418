"""Logs: masking, correlation, levels."""

import io
import json
import logging
import warnings

import pytest
import structlog
from rich.console import Console

from cartridge_warp.config import LoggingConfig
from cartridge_warp.observe.events import (
    Committed,
    DeadLettered,
    Failed,
    Misfit,
    Note,
    SchemaChanged,
    SnapshotDone,
    State,
)
from cartridge_warp.observe.logs import configure, mask_all
from cartridge_warp.observe.narrator import Narrator

URI = "mongodb://app:hunter2@db.example:27017/shop"


@pytest.fixture(autouse=True)
def _restored():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)
    structlog.reset_defaults()


class Log:
    """What was logged, as parsed JSON lines."""

    def __init__(self, **settings):
        self.stream = io.StringIO()
        self.run = configure(LoggingConfig(**{"format": "json"} | settings), stream=self.stream)

    @property
    def lines(self):
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


def logger():
    return structlog.stdlib.get_logger("cartridge_warp")


@pytest.mark.parametrize("format_", ["json", "console"])
def test_no_secret_leaves_by_any_way(format_):
    """Passwords are masked in events, nested values, keys, exceptions, foreign loggers and warnings."""
    log = Log(format=format_, level="DEBUG")
    logger().info(f"connecting to {URI}", uri=URI, nested={"list": [URI, {"password": "hunter2"}]}, password="hunter2")
    logger().info("positional %s", URI)
    logging.getLogger("pymongo.client").warning("cannot reach %s", URI)
    logging.getLogger("psycopg.pool").error("connection failed: password=hunter2 host=db")
    warnings.warn(f"odd: {URI}", stacklevel=1)
    try:
        try:
            raise ValueError(f"inner {URI}")
        except ValueError as error:
            raise RuntimeError(f"outer {URI}") from error
    except RuntimeError as error:
        logger().exception("failed", cause=error)
        logging.getLogger("asyncio").exception("foreign %s", URI)
    text = log.stream.getvalue()
    assert "hunter2" not in text
    assert text.count("inner mongodb://app:***@db.example") >= 2


def test_mask_all_survives_odd_values():
    """Masking ends on deep, circular and unprintable values."""

    class Odd:
        def __str__(self):
            raise ZeroDivisionError

    circle = []
    circle.append(circle)
    assert mask_all(Odd()) == "<Odd, not printable: ZeroDivisionError>"
    assert "..." in json.dumps(mask_all(circle))
    assert mask_all({"n": 1, "b": True, "none": None, "bytes": b"x"}) == {
        "n": 1, "b": True, "none": None, "bytes": "b'x'",
    }  # fmt: skip


def test_lines_carry_run_schema_table_and_batch():
    """Every line has the run's id; lines of events have schema, table and batch."""
    log = Log(level="DEBUG")
    Narrator()(Committed("shop", "sales", operations={"orders": {"insert": 2}}, batch="b1"))
    Narrator()(SnapshotDone("shop", "sales", "orders", rows=5))
    logging.getLogger("other").warning("foreign")
    first, second, third = log.lines
    assert (first["schema"], first["batch"], first["rows"], first["level"]) == ("sales", "b1", 2, "debug")
    assert (second["table"], second["rows"], second["level"]) == ("orders", 5, "info")
    assert {line["run"] for line in log.lines} == {log.run}
    assert third["logger"] == "other"
    assert third["timestamp"].endswith("Z")


def test_correlation_ids_can_be_switched_off():
    """Without correlation ids a line has neither run nor batch."""
    log = Log(level="DEBUG", correlation_id_enabled=False)
    Narrator()(Committed("shop", "sales", batch="b1"))
    assert not {"run", "batch"} & set(log.lines[0])


def test_drivers_do_not_log_documents():
    """At DEBUG the drivers would write every command with its documents; they stay at INFO."""
    log = Log(level="DEBUG")
    logging.getLogger("pymongo.command").debug("Command started: {'insert': ...}")
    logger().debug("ours")
    assert [line["event"] for line in log.lines] == ["ours"]


def test_console_on_a_terminal_above_the_display():
    """With a live display lines go through its console, with their markup untouched."""
    stream = io.StringIO()
    configure(LoggingConfig(), console=Console(file=stream, force_terminal=True, width=40))
    logger().info("a [bold]name[/bold] that is much longer than the terminal is wide", uri=URI)
    text = stream.getvalue()
    assert "[bold]name[/bold] that is much longer than the terminal is wide" in text
    assert "hunter2" not in text


def test_a_line_that_cannot_be_written_does_not_stop_the_worker():
    """A log call with wrong arguments is named, without its content."""
    log = Log()
    logging.getLogger("driver").warning("%d of %s", URI)
    assert log.stream.getvalue() == "a log line of driver could not be written: TypeError\n"


def test_only_the_first_failure_of_a_burst_is_a_warning():
    """An outage is one warning a minute and one line when it is over, however often it is retried."""
    log, now = Log(), [0.0]
    tell = Narrator(clock=lambda: now[0])
    for attempt in range(1, 31):
        tell(State("shop", "sales", state="retrying"))
        tell(Failed("shop", "sales", error_type="unavailable", message=URI, attempt=attempt, retry_in=2.0))
        now[0] += 3
    tell(Committed("shop", "sales"))
    tell(Failed("shop", "sales", error_type="unavailable", attempt=1, retry_in=1.0))
    tell(Failed("shop", "sales", error_type="fenced", message="over", attempt=2))
    shown = [(line["level"], line["event"], line.get("attempt", line.get("failures"))) for line in log.lines]
    assert shown == [
        ("warning", "failed, will be tried again", 1),
        ("warning", "failed, will be tried again", 21),
        ("info", "recovered", 30),
        ("warning", "failed, will be tried again", 1),
        ("error", "failed, and will not be tried again", 2),
    ]


def test_misfits_once_a_minute_for_each_column():
    """Misfits of a column are told at most once a minute, with the number of those kept back."""
    log, now = Log(), [0.0]
    tell = Narrator(without_misfits={"quiet"}, clock=lambda: now[0])
    for second in range(0, 90, 10):
        now[0] = float(second)
        tell(Misfit("shop", "sales", "orders", column="price", count=2, first="7"))
    tell(Misfit("shop", "sales", "orders", column="size"))
    tell(Misfit("shop", "quiet", "orders", column="size"))
    assert [(line["column"], line["count"]) for line in log.lines] == [("price", 2), ("price", 12), ("size", 1)]


def test_levels_of_the_other_events():
    """Dead letters and warnings are warnings, structure and state are information, a failure is an error."""
    log = Log()
    tell = Narrator()
    tell(DeadLettered("shop", "sales", "orders", error_class="22P02", count=3))
    tell(SchemaChanged("shop", "sales", "orders", change_type="add_column", detail="price"))
    tell(Note("shop", "sales", level="warning", message="the oplog is short"))
    tell(Note("shop", "sales", message="hello"))
    tell(State("shop", "sales", state="streaming"))
    tell(State("shop", "sales", state="streaming"))
    tell(State("shop", "sales", state="failed", detail=URI))
    assert [(line["level"], line["event"]) for line in log.lines] == [
        ("warning", "rows went to the dead letters"),
        ("info", "destination structure changed"),
        ("warning", "the oplog is short"),
        ("info", "hello"),
        ("info", "streaming"),
        ("error", "failed"),
    ]
