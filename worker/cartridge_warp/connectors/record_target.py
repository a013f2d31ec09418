"""A simple destination as the core drives it: structure, rows, and the position last, in calls of their own.
Killed between two of them it repeats the batch, which leads to the same rows: at least once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from cartridge_warp.config import UnitSettings
from cartridge_warp.connectors.base import DestinationConnector
from cartridge_warp.connectors.calls import translated
from cartridge_warp.errors import ConfigError, DestinationRefused, Unavailable
from cartridge_warp.kernel.bson import to_record
from cartridge_warp.records import (
    Barrier,
    Batch,
    BatchMarker,
    Change,
    ColumnDefinition,
    ColumnType,
    Marker,
    Op,
    OperationType,
    Record,
    SchemaChange,
    SchemaChangeType,
    Stamp,
    TableBatch,
    TableSchema,
)

__all__ = ["Capabilities", "RecordTarget", "column_type"]

_TYPES: dict[type, ColumnType] = {
    bool: ColumnType.BOOLEAN,
    int: ColumnType.BIGINT,
    float: ColumnType.DOUBLE,
    Decimal: ColumnType.NUMERIC,
    str: ColumnType.STRING,
    datetime: ColumnType.TIMESTAMP,
    date: ColumnType.TIMESTAMP,
    UUID: ColumnType.UUID,
    bytes: ColumnType.BINARY,
}
_NUMBERS = {ColumnType.BIGINT, ColumnType.DOUBLE, ColumnType.NUMERIC}


@dataclass(frozen=True)
class Capabilities:
    """What a destination can promise, and the sentence that says so to people."""

    exactly_once: bool
    promise: str


class RecordTarget:
    """A simple `DestinationConnector`, connected already; `kind` is its type.

    The position is stored for table '' as `{"position", "seq", "version_offset", "source_time", "tables"}`; a
    copied table has the marker `{"snapshot": "done"}`. `tables` is what a barrier on everything has to drop.
    """

    def __init__(self, connector: DestinationConnector, settings: UnitSettings, kind: str) -> None:
        self._connector = connector
        self._settings = settings
        self._schema = settings.target
        self._name = f"destination '{kind}'"
        self._columns: dict[str, set[str]] = {}
        self._tables: set[str] = set()
        self._saved: dict[str, Any] = {"seq": 0, "version_offset": 0}
        self.capabilities = Capabilities(
            exactly_once=False,
            promise=f"{self._name} commits rows and position one after the other: at least once, and a batch "
            "that is repeated after a failure leads to the same rows",
        )

    async def open(self) -> None:
        """Make sure that the destination answers and the schema exists. Raises `ConfigError` for settings
        that a simple destination cannot carry out, `Unavailable`, `DestinationRefused`."""
        strategies = {self._settings.defaults.deletion_strategy}
        strategies.update(table.deletion_strategy or "hard" for group in self._settings.overrides for table in group)
        if "soft" in strategies:
            raise ConfigError(
                f"{self._name} cannot mark rows as deleted: set deletion_strategy of schema "
                f"'{self._settings.name}' and its tables to hard"
            )
        with self._calling("testing the connection"):
            if not await self._connector.test_connection():
                raise Unavailable(f"{self._name} does not answer; check its section of the configuration")
        if not self._settings.dry_run:
            with self._calling(f"creating schema '{self._schema}'"):
                await self._connector.create_schema_if_not_exists(self._schema)

    async def marker(self) -> Marker | None:
        """The stored position; None when nothing was ever stored. Forgets what was known of the tables, so
        that it serves after a failure, too."""
        self._columns.clear()
        stored = await self._stored("")
        if stored is None:
            return None
        self._saved = dict(stored)
        try:
            at = stored.get("source_time")
            found = Marker(
                position=dict(stored["position"]),
                seq=int(stored["seq"]),
                version_offset=int(stored["version_offset"]),
                source_time=None if at is None else datetime.fromisoformat(at),
            )
            self._tables = set(stored["tables"])
        except (KeyError, TypeError, ValueError) as error:
            raise DestinationRefused(
                f"{self._name} holds a marker of schema '{self._schema}' that cartridge-warp did not write "
                f"({type(error).__name__}: {error}); remove it to copy everything again"
            ) from error
        return found

    async def table_done(self, table: str) -> bool:
        """True when the table has been copied completely."""
        return (await self._stored(table) or {}).get("snapshot") == "done"

    async def mark_table_done(self, table: str, done: bool = True) -> None:
        """Remember that the table has been copied, or with `done=False` that it must be copied again."""
        if not self._settings.dry_run:
            with self._calling(f"storing the state of table '{table}'"):
                await self._connector.update_marker(self._schema, table, {"snapshot": "done" if done else "open"})

    async def apply(self, batch: Batch) -> None:
        """Write a batch: what its barrier voids, structure, rows, and the position last. A batch that says
        nothing new writes nothing."""
        news = batch.barrier or batch.tables or batch.marker.position != self._saved.get("position")
        if self._settings.dry_run or not news:
            return
        if batch.barrier is not None:
            await self._void(batch.barrier)
        for table in batch.tables.values():
            await self.write(table)
        await self._save(batch.marker)

    async def restart(self, stamp: Stamp) -> None:
        """Begin anew from `stamp` (a lost position, a resync): every table is dropped and counts as not copied.
        Rows that were deleted in the gap cannot be told from others, so that a copy on top would keep them."""
        await self.marker()
        void = Barrier(stamp.version, "restart")
        await self.apply(Batch(BatchMarker(stamp.position, stamp.time), barrier=void))

    async def write(self, table: TableBatch) -> None:
        """Write the rows of one table (a page of a snapshot) without a position."""
        if self._settings.dry_run or not table.changes:
            return
        records = [_record(table, change) for change in table.changes]
        await self._fit(table.table, records)
        size = self._settings.table(table.table).write_batch_size
        with self._calling(f"writing table '{table.table}'"):
            for start in range(0, len(records), size):
                await self._connector.write_batch(self._schema, records[start : start + size])

    # -- inside ------------------------------------------------------------------------------------------

    async def _fit(self, table: str, records: list[Record]) -> None:
        """Create the table, or add the columns that it lacks, before rows that need them are written."""
        known = self._columns.get(table)
        missing = _columns(records, known or ())
        with self._calling(f"preparing table '{table}'"):
            if known is None:
                keys = tuple(records[0].primary_key_values)
                await self._connector.create_table_if_not_exists(self._schema, TableSchema(table, tuple(missing), keys))
            elif missing:
                await self._connector.apply_schema_changes(
                    self._schema,
                    [
                        SchemaChange(self._schema, table, SchemaChangeType.ADD_COLUMN, column=column)
                        for column in missing
                    ],
                )
        self._columns.setdefault(table, set()).update(column.name for column in missing)
        if table not in self._tables:
            self._tables.add(table)
            if "position" in self._saved:  # at once: a page of a snapshot is followed by no position of its own
                await self._store({})

    async def _void(self, barrier: Barrier) -> None:
        """A simple destination cannot empty a table, only drop it; later rows make it anew."""
        names = self._tables if barrier.tables is None else set(barrier.tables)
        for table in sorted(names | set(barrier.resnapshot)):
            # First, so that a table that was dropped and then not marked is never taken for a complete one.
            await self.mark_table_done(table, done=False)
            with self._calling(f"dropping table '{table}'"):
                await self._connector.apply_schema_changes(
                    self._schema, [SchemaChange(self._schema, table, SchemaChangeType.DROP_TABLE)]
                )
            self._columns.pop(table, None)
        self._tables -= names

    async def _save(self, marker: BatchMarker) -> None:
        at = None if marker.source_time is None else marker.source_time.isoformat()
        seq = int(self._saved["seq"]) + 1
        await self._store({"position": marker.position, "seq": seq, "source_time": at})

    async def _store(self, changed: dict[str, Any]) -> None:
        value = self._saved | changed | {"tables": sorted(self._tables)}
        with self._calling("storing the position"):
            await self._connector.update_marker(self._schema, "", value)
        self._saved = value

    async def _stored(self, table: str) -> Mapping[str, Any] | None:
        with self._calling("reading the stored position"):
            stored = await self._connector.get_marker(self._schema, table)
        if stored is not None and not isinstance(stored, Mapping):
            raise DestinationRefused(
                f"{self._name}: get_marker returned {type(stored).__name__} where a JSON object was stored"
            )
        return stored

    def _calling(self, doing: str) -> AbstractContextManager[None]:
        return translated(self._name, doing, DestinationRefused)


def _record(table: TableBatch, change: Change) -> Record:
    if change.op is Op.FETCH:
        raise ValueError(f"a change of '{table.table}' was not completed from the source before it was written")
    gone = change.op is Op.DELETE
    return to_record(
        table.table,
        None if gone else change.image,
        OperationType.DELETE if gone else change.operation,
        change.key,
        table.key_field,
        change.at_ms,
    )


def column_type(values: Iterable[Any]) -> ColumnType | None:
    """The column type that holds all values: mixed numbers are NUMERIC, other mixes JSON; None: all null."""
    found = {_TYPES.get(type(value), ColumnType.JSON) for value in values if value is not None}
    if len(found) > 1:
        return ColumnType.NUMERIC if found <= _NUMBERS else ColumnType.JSON
    return next(iter(found), None)


def _columns(records: list[Record], known: Iterable[str]) -> list[ColumnDefinition]:
    """The columns that the records need beyond `known`, key columns first, then as they appear."""
    keys = records[0].primary_key_values
    values: dict[str, list[Any]] = {name: [] for name in keys}
    for record in records:
        for name, value in (*record.primary_key_values.items(), *record.data.items()):
            values.setdefault(name, []).append(value)
    for name in known:
        values.pop(name, None)
    types = {name: column_type(seen) for name, seen in values.items()}
    return [ColumnDefinition(name, kind, nullable=name not in keys) for name, kind in types.items() if kind is not None]
