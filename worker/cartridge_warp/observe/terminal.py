"""What a person sees while the worker runs: a live display on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable

import structlog
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cartridge_warp.errors import mask
from cartridge_warp.observe.failing import Clock
from cartridge_warp.observe.progress import Progress, TableProgress, UnitProgress

__all__ = ["display", "is_terminal", "render", "report"]

_STYLES = {
    "streaming": "green",
    "snapshotting": "cyan",
    "failed": "red",
    "retrying": "yellow",
    "done": "green",
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_IDLE_SECONDS = 60.0


def is_terminal(console: Console) -> bool:
    """True when a live display makes sense there."""
    return console.is_terminal and not console.is_dumb_terminal and os.environ.get("CI") is None


async def display(progress: Progress, console: Console, stop: asyncio.Event, *, interval: float = 0.25) -> None:
    """Show `progress` at the foot of the terminal until `stop` is set."""
    # The display is drawn from this task, never from rich's own thread: the model changes on the event loop.
    with Live(console=console, auto_refresh=False, transient=False, redirect_stdout=False) as live:
        while not await _wait(stop, interval):
            live.update(render(progress, console.height), refresh=True)
        live.update(render(progress, console.height), refresh=True)


async def report(
    progress: Progress, stop: asyncio.Event, *, interval: float = 10.0, clock: Clock = time.monotonic
) -> None:
    """Log a line for each schema every `interval` seconds until `stop` is set; one on which nothing moves is
    told of once a minute."""
    log = structlog.stdlib.get_logger("cartridge_warp")
    told: dict[str, tuple[int, float]] = {}
    while not await _wait(stop, interval):
        for unit in progress.units:
            moved, at = told.get(unit.schema, (-1, clock()))
            if unit.rows + unit.changes == moved and clock() - at < _IDLE_SECONDS:
                continue
            told[unit.schema] = (unit.rows + unit.changes, clock())
            log.info("progress", schema=unit.schema, **_fields(unit))


async def _wait(stop: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await stop.wait()
    except TimeoutError:
        return False


def _fields(unit: UnitProgress) -> dict[str, object]:
    fields: dict[str, object] = {
        "state": unit.state,
        "changes": unit.changes,
        "changes_per_second": round(unit.rate.value(), 1),
        "lag_seconds": None if unit.lag is None else round(unit.lag, 3),
        "bytes": unit.bytes,
    }
    if unit.copying:
        tables = unit.copying.values()
        fields["tables"] = len(tables)
        fields["rows"] = sum(table.rows for table in tables)
        fields["rows_estimated"] = sum(max(table.estimated, table.rows) for table in tables)
        fields["rows_per_second"] = round(sum(table.rate.value() for table in tables), 1)
        etas = [table.eta for table in tables]
        fields["eta_seconds"] = None if None in etas else round(max(eta for eta in etas if eta is not None))
    if unit.dead_letters:
        fields["dead_letters"] = unit.dead_letters
    return fields


def render(progress: Progress, height: int = 40) -> RenderableType:
    """The display: the snapshots that run and a line for each schema, in fewer than `height` lines."""
    units = progress.units
    running = [(unit, table) for unit in units for table in unit.copying.values()]
    running.sort(key=lambda pair: (pair[1].rows == 0, pair[0].schema, pair[1].table))
    # One line stays free for the log above; two tell what is left out, one is the head of the tables.
    room = max(2, height - 4)
    shown = units[: max(1, room // 2 if running else room)]
    problems = [unit for unit in shown if unit.problem][: max(0, room - len(shown) - min(1, len(running)))]
    tables = running[: max(0, room - len(shown) - len(problems))]
    parts: list[RenderableType] = []
    if tables:
        parts.append(_tables(tables, several=len(units) > 1))
    if len(running) > len(tables):
        parts.append(Text(f"and {len(running) - len(tables)} more tables", style="dim"))
    parts.append(_units(shown))
    parts += [_problem(unit) for unit in problems]
    if len(units) > len(shown):
        parts.append(Text(f"and {len(units) - len(shown)} more schemas", style="dim"))
    return Group(*parts)


def _problem(unit: UnitProgress) -> Text:
    text = _clean(f"{unit.schema}: {unit.problem}")
    return Text(text, style="yellow", no_wrap=True, overflow="ellipsis")


def _tables(running: list[tuple[UnitProgress, TableProgress]], *, several: bool) -> Table:
    grid = _grid()
    grid.show_header = True
    # Only the names give way where it is narrow: a column that may wrap is the first to be made smaller.
    grid.add_column("table", ratio=1)
    for name in ("rows", "of", "done", "rows/s", "left", "size"):
        grid.add_column(name, justify="right", no_wrap=True)
    for unit, table in running:
        name = f"{unit.schema}.{table.table}" if several else table.table
        grid.add_row(
            _name(name),
            f"{table.rows:,}",
            f"{table.estimated:,}" if table.estimated else "",
            _known(table.share, lambda share: f"{share:.0%}"),
            f"{table.rate.value():,.0f}",
            _known(table.eta, _duration),
            _size(table.bytes),
        )
    return grid


def _units(units: list[UnitProgress]) -> Table:
    grid = _grid()
    grid.add_column(ratio=1)
    for _ in range(4):
        grid.add_column(justify="right", no_wrap=True)
    for unit in units:
        notes = [f"{unit.copied:,} copied"] if unit.copied else []
        notes += [f"{unit.dead_letters:,} dead letters"] if unit.dead_letters else []
        grid.add_row(
            _name(unit.schema, style="bold"),
            Text(_clean(unit.state), style=_STYLES.get(unit.state, "")),
            f"{unit.rate.value():,.0f} changes/s",
            _known(unit.lag, lambda lag: f"lag {_lag(lag)}"),
            ", ".join(notes),
        )
    return grid


def _name(text: str, style: str = "") -> Text:
    return Text(_clean(text), style=style, no_wrap=True, overflow="ellipsis")


def _grid() -> Table:
    return Table(box=None, show_header=False, expand=True, padding=(0, 1), pad_edge=False, header_style="dim")


def _known(value: float | None, show: Callable[[float], str]) -> str:
    return "" if value is None else show(value)


def _duration(seconds: float) -> str:
    whole = int(seconds + 0.999)
    if whole >= 360_000:
        return "> 100 h"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def _lag(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s" if seconds < 60 else _duration(seconds)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _clean(text: str) -> str:
    """Names come from the source: they must not move the cursor."""
    return _CONTROL.sub("?", mask(text))
