"""One screen for each schema: what the metadata says, for people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cartridge_warp.errors import mask

__all__ = ["status_screen"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_STYLES = {"complete": "green", "streaming": "green", "done": "green", "failed": "red", "stopped": "yellow"}


def status_screen(units: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The status of schemas, in the order given. Whatever a destination tells is shown: plain values as lines,
    lists of entries as tables."""
    if not units:
        return Text("no schema is configured")
    parts: list[RenderableType] = []
    for unit in units:
        if parts:
            parts.append(Text())
        parts += _unit(unit)
    return Group(*parts)


def _unit(unit: Mapping[str, Any]) -> list[RenderableType]:
    name = _show(unit.get("schema", unit.get("target", "")))
    state = _show(unit.get("state"))
    parts: list[RenderableType] = [
        Text.assemble((name, "bold"), "  ", (state, _STYLES.get(state, "")), overflow="fold")
    ]
    plain = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    plain.add_column(style="dim", no_wrap=True)
    plain.add_column(overflow="fold")
    lists: list[tuple[str, Sequence[Mapping[str, Any]]]] = []
    for key, value in _flat(unit):
        if _is_entries(value):
            lists.append((key, value))
        elif key not in ("schema", "state") and value not in (None, "", [], {}):
            plain.add_row(_words(key), Text(_show(value)))
    if plain.row_count:
        parts.append(Padding(plain, (0, 0, 0, 2)))
    for key, entries in lists:
        parts += [Padding(Text(_words(key), style="dim"), (0, 0, 0, 2)), Padding(_entries(entries), (0, 0, 0, 4))]
    return parts


def _flat(unit: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Groups inside are shown as `group name`."""
    found: list[tuple[str, Any]] = []
    for key, value in unit.items():
        if isinstance(value, Mapping):
            found += [(f"{key} {inner}", each) for inner, each in value.items()]
        else:
            found.append((key, value))
    return found


def _is_entries(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _entries(entries: Sequence[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(key for entry in entries for key in entry))
    # What holds nothing, or repeats the first column, only takes the room of what matters.
    names = [
        name
        for name in names
        if any(entry.get(name) not in (None, "", 0) for entry in entries)
        and (name == names[0] or any(entry.get(name) != entry.get(names[0]) for entry in entries))
    ]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in names:
        values = [entry.get(name) for entry in entries]
        numbers = all(isinstance(value, int | float | None) for value in values)
        # Nothing here may be cut, numbers least of all: where room is short, heads and values wrap.
        table.add_column(_words(name), justify="right" if numbers else "left", overflow="fold")
    for entry in entries:
        row = [_show(entry.get(name)) for name in names]
        table.add_row(*(Text(text, style=_STYLES.get(text, "")) for text in row))
    return table


def _words(key: str) -> str:
    return key.replace("_", " ")


def _show(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    if isinstance(value, datetime):
        return _ago(value)
    if isinstance(value, list | tuple):
        return ", ".join(_show(each) for each in value)
    return _CONTROL.sub("?", mask(str(value)))


def _ago(at: datetime) -> str:
    """How long ago; a moment ahead, from a clock that is ahead, is now."""
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    seconds = max(0, int((datetime.now(UTC) - at).total_seconds()))
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"
