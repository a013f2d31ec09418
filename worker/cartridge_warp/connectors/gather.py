"""Records of a simple source as changes with keys, gathered into batches within the settings' bounds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from cartridge_warp.config import UnitSettings
from cartridge_warp.errors import SourceRefused
from cartridge_warp.records import (
    Batch,
    BatchMarker,
    Change,
    Op,
    OperationType,
    Position,
    Record,
    TableBatch,
)

__all__ = ["Gathered", "Keys", "size_of"]


class Keys:
    """Turns records into changes. The names of a table's key fields are fixed by its first record."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._names: dict[str, tuple[str, ...]] = {}

    def change(self, table: str, record: Record, version: int) -> tuple[str | None, Change]:
        """The key field (None: several make up the key) and the change. Raises `SourceRefused`."""
        names = self._fields(table, record)
        values, key_field = record.primary_key_values, names[0] if len(names) == 1 else None
        key = values[names[0]] if key_field is not None else {name: values[name] for name in names}
        deleted = record.operation is OperationType.DELETE
        at = record.timestamp
        return key_field, Change(
            op=Op.DELETE if deleted else Op.UPSERT,
            key=key,
            version=version,
            image=None if deleted else _with_key(record.data, values),
            at_ms=None if at is None else int(_aware(at).timestamp() * 1000),
            operation=record.operation,
        )

    def _fields(self, table: str, record: Record) -> tuple[str, ...]:
        # Sorted, so that a key of several fields is the same document however the source orders it.
        names = tuple(sorted(record.primary_key_values))
        if not names:
            raise SourceRefused(
                f"{self._source}, table '{table}': a record has no primary_key_values; name the fields that "
                "identify a row"
            )
        if self._names.setdefault(table, names) != names:
            raise SourceRefused(
                f"{self._source}, table '{table}': a record's key is ({', '.join(names)}), but earlier ones "
                f"had ({', '.join(self._names[table])}); a table has one key"
            )
        return names


class Gathered:
    """What has been read since the last batch: changes per table, bytes, and the position behind them."""

    def __init__(self, settings: UnitSettings, marker: Any) -> None:
        self._settings = settings
        self._marker = json.dumps(marker)
        self._time: datetime | None = None
        self._tables: dict[str, TableBatch] = {}
        self._bytes = 0
        self.events = 0
        self.created: list[str] = []

    def skip(self, marker: str) -> None:
        """Pass an event that nobody wants; only the position moves. `marker` is JSON text."""
        self._marker = marker
        self.events += 1

    def add(self, table: str, key_field: str | None, change: Change, size: int, marker: str) -> None:
        """Add a change of `size` bytes and move the position to `marker` (JSON text)."""
        self._tables.setdefault(table, TableBatch(table, key_field=key_field)).changes.append(change)
        self._bytes += size
        if change.at_ms is not None:
            self._time = datetime.fromtimestamp(change.at_ms / 1000, UTC)
        self.skip(marker)

    def overflows(self, table: str, size: int) -> bool:
        """True when a change of `size` bytes must wait for the next batch."""
        return bool(self._tables) and self._bytes + size > self._max_bytes(table)

    def full(self, table: str) -> bool:
        """True when the last change, of `table`, filled the batch."""
        if self._bytes >= self._max_bytes(table):
            return True
        if table not in self._tables:
            return self.events >= self._settings.defaults.stream_batch_size
        return len(self._tables[table].changes) >= self._settings.table(table).stream_batch_size

    def take(self, position: Callable[[Any], Position]) -> Batch:
        """The batch of all that was gathered, perhaps nothing but a position; begins anew."""
        marker = BatchMarker(position(json.loads(self._marker)), self._time, self.events)
        batch = Batch(marker, tables=self._tables, created=tuple(self.created), bytes=self._bytes)
        self._tables, self._bytes, self.events, self.created, self._time = {}, 0, 0, [], None
        return batch

    def _max_bytes(self, table: str) -> int:
        return min(self._settings.max_batch_bytes, self._settings.table(table).max_batch_bytes)


def size_of(value: Any) -> int:
    """Roughly how many bytes a value takes on its way; walks containers of any depth."""
    total, stack = 0, [value]
    while stack:
        each = stack.pop()
        if isinstance(each, str | bytes | bytearray):
            total += len(each) + 8
        elif isinstance(each, Mapping):
            total += sum(len(str(name)) + 8 for name in each)
            stack.extend(each.values())
        elif isinstance(each, list | tuple):
            total += 8
            stack.extend(each)
        else:
            total += 16
    return total


def _with_key(data: Mapping[str, Any], key: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with its key fields, which a source may have left out of `data`."""
    return data if key.keys() <= data.keys() else {**key, **data}


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
