"""What a person sees of a run."""

import asyncio
import io
import logging

import pytest
import structlog
from rich.console import Console

from cartridge_warp.config import LoggingConfig
from cartridge_warp.observe.events import (
    ChunkCommitted,
    Committed,
    DeadLettered,
    Failed,
    Lag,
    SnapshotDone,
    SnapshotStarted,
    State,
)
from cartridge_warp.observe.logs import configure
from cartridge_warp.observe.progress import Progress
from cartridge_warp.observe.terminal import display, render, report


@pytest.fixture(autouse=True)
def _restored():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def shown(progress, width=80, height=40):
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(render(progress, height))
    return console.file.getvalue()


def chunk(table, rows, done, estimated, size=0):
    return ChunkCommitted("shop", "sales", table, rows=rows, bytes=size, rows_done=done, rows_estimated=estimated)


def test_a_snapshot_shows_rows_estimate_rate_eta_and_bytes():
    """During a snapshot each table shows rows, estimate, share, rate, time left and bytes."""
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    progress(State("shop", "sales", state="snapshotting"))
    progress(SnapshotStarted("shop", "sales", "orders", rows_estimated=200_000))
    for done in range(10_000, 60_000, 10_000):
        now[0] += 1
        progress(chunk("orders", 10_000, done, 200_000, 3 << 20))
    text = shown(progress)
    assert text.splitlines()[0].split() == ["table", "rows", "of", "done", "rows/s", "left", "size"]
    assert text.splitlines()[1].split() == ["orders", "50,000", "200,000", "25%", "10,000", "0:15", "15.0", "MiB"]


def test_afterwards_changes_and_lag():
    """After the copy a schema is one line with changes a second, lag, and what needs attention."""
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    progress(SnapshotStarted("shop", "sales", "orders", rows_estimated=5))
    progress(SnapshotDone("shop", "sales", "orders", rows=5))
    progress(State("shop", "sales", state="streaming"))
    now[0] += 1
    progress(Committed("shop", "sales", operations={"orders": {"insert": 100, "delete": 20}}))
    progress(Lag("shop", "sales", lag_seconds=0.25))
    progress(DeadLettered("shop", "sales", "orders", count=3))
    (line,) = shown(progress, width=100).splitlines()
    assert " ".join(line.split()) == "sales streaming 120 changes/s lag 250 ms 1 copied, 3 dead letters"


def test_a_problem_is_shown_until_it_is_over():
    """A failure is shown, without secrets and control characters, until the next commit."""
    progress = Progress()
    progress(Failed("shop", "sales", message="mongodb://u:pw@h \x1b[2Jgone", attempt=2))
    assert "gone (attempt 2)" in shown(progress)
    assert "pw" not in shown(progress)
    assert "\x1b" not in shown(progress)
    progress(Committed("shop", "sales"))
    assert "gone" not in shown(progress)


@pytest.mark.parametrize("height", [10, 24, 50])
def test_fits_the_terminal(height):
    """Hundreds of tables and many schemas never need more lines or columns than the terminal has."""
    progress = Progress()
    for schema in range(30):
        progress(Failed("shop", f"s{schema}", message="x" * 500))
        for table in range(50):
            name = "table with a very long name " * 4 + str(table)
            progress(ChunkCommitted("shop", f"s{schema}", name, rows=10**9, rows_done=10**9))
    lines = shown(progress, height=height).splitlines()
    assert len(lines) < height
    assert all(len(line) <= 80 for line in lines)
    assert any("more tables" in line for line in lines)
    assert all("1,000,000,000" in line for line in lines if "table with" in line), "figures are never cut"


async def test_log_lines_stand_whole_above_the_display():
    """Lines that are logged while the display is up are neither cut nor overwritten."""
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=20)
    configure(LoggingConfig(format="console"), console=console)
    progress, stop = Progress(), asyncio.Event()
    progress(State("shop", "sales", state="streaming"))
    task = asyncio.create_task(display(progress, console, stop, interval=0.01))
    for number in range(20):
        await asyncio.sleep(0.01)
        structlog.stdlib.get_logger("x").warning(f"line {number} is here, whole, and longer than the width of it")
    stop.set()
    await task
    text = console.file.getvalue()
    assert all(f"line {number} is here, whole, and longer than the width of it" in text for number in range(20))
    assert text.rstrip().endswith("\x1b[?25h"), "the cursor is shown again"


async def test_plain_lines_while_something_moves():
    """Without a terminal a schema is told of when rows moved, and not while nothing happens."""
    stream = io.StringIO()
    configure(LoggingConfig(format="console"), stream=stream)
    progress, stop = Progress(), asyncio.Event()
    task = asyncio.create_task(report(progress, stop, interval=0.02))
    progress(SnapshotStarted("shop", "sales", "orders", rows_estimated=10))
    progress(chunk("orders", 5, 5, 10))
    await asyncio.sleep(0.2)
    stop.set()
    await task
    (line,) = stream.getvalue().splitlines()
    assert all(part in line for part in ("progress", "rows=5", "rows_estimated=10", "schema=sales"))
