"""What the demo shows: on a terminal a board that keeps itself current, elsewhere plain lines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cartridge_warp.cli.demo_check import TableCheck

__all__ = ["Screen", "board"]

_MOST_DIFFERENCES = 10
_PLAIN_EVERY = 5.0  # seconds between two lines where there is no terminal


class Screen:
    """Writes to `console`; with `live` False also a terminal gets plain lines only."""

    def __init__(self, console: Console, *, live: bool = True) -> None:
        self.console = console
        self._live = live and console.is_terminal
        self._last_plain = 0.0

    def title(self, text: str) -> None:
        """A heading, set off from what came before."""
        self.console.print()
        self.line(text, style="bold")

    def line(self, text: str, style: str = "") -> None:
        """One line; never wrapped, so that what it holds can be copied."""
        self.console.print(Text(text, style=style), soft_wrap=True, highlight=False)

    def pairs(self, values: Mapping[str, str]) -> None:
        """Names and values, aligned."""
        width = max(map(len, values))
        for name, value in values.items():
            self.line(f"  {name:{width}}  {value}")

    def tables(self, results: Sequence[TableCheck]) -> None:
        """Every table with what the full comparison found, and the first differences."""
        self.console.print(board(results, checked=True))
        found = [(result, each) for result in results for each in result.differences]
        for result, each in found[:_MOST_DIFFERENCES]:
            self.line(f"\n  {result.schema}.{result.table} {each.key}: {each.what}", style="red")
            if each.source or each.destination:
                self.pairs({"  document": each.source, "  row": each.destination})

    @contextmanager
    def running(self) -> Iterator[Running]:
        """A board for as long as something is under way. It leaves nothing behind."""
        if not self._live:
            yield Running(self, None)
            return
        with Live(console=self.console, transient=True, auto_refresh=False) as live:
            yield Running(self, live)


class Running:
    """The present state of something that goes on."""

    def __init__(self, screen: Screen, live: Live | None) -> None:
        self._screen = screen
        self._live = live
        self._last = time.monotonic()

    def show(self, results: Sequence[TableCheck], status: str) -> None:
        """Redraw the board with `status` below it; without a terminal a line every few seconds."""
        if self._live is not None:
            self._live.update(Group(board(results, checked=False), Text(f"\n  {status}", style="cyan")), refresh=True)
            return
        now = time.monotonic()
        if now - self._last >= _PLAIN_EVERY:
            self._last = now
            documents, rows = sum(r.documents for r in results), sum(r.rows for r in results)
            self._screen.line(f"  {time.strftime('%H:%M:%S')}  {documents:,} documents  {rows:,} rows  {status}")


def board(results: Iterable[TableCheck], *, checked: bool) -> RenderableType:
    """The tables, one a line. `checked`: the last column speaks of content, not of numbers."""
    table = Table(box=None, padding=(0, 2), pad_edge=True, header_style="dim")
    table.add_column("table", overflow="ellipsis", no_wrap=True, max_width=40)
    for name in ("documents", "rows"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("equal" if checked else "", no_wrap=True)
    for result in results:
        name, documents, rows = f"{result.schema}.{result.table}", f"{result.documents:,}", f"{result.rows:,}"
        table.add_row(Text(name), documents, rows, _verdict(result, checked))
    return table


def _verdict(result: TableCheck, checked: bool) -> Text:
    if not checked:
        return Text("=", style="green") if result.documents == result.rows else Text("…", style="yellow")
    if result.equal:
        return Text("yes", style="green")
    return Text(f"no ({result.differing or abs(result.documents - result.rows)})", style="bold red")
