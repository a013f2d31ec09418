"""The simple connector methods of the PostgreSQL destination: each is one transaction of the full level."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from psycopg.types.json import Jsonb

from cartridge_warp.config import SchemaConfig, UnitSettings
from cartridge_warp.connectors.gather import Keys
from cartridge_warp.connectors.protocols import PlanChange
from cartridge_warp.errors import DestinationRefused
from cartridge_warp.kernel.bson import identity, native_key_kind
from cartridge_warp.kernel.plan import ColumnKind, ColumnPlan, KeyKind, TablePlan, column_name, relation_name
from cartridge_warp.records import (
    Barrier,
    Batch,
    BatchMarker,
    ColumnDefinition,
    ColumnType,
    Record,
    SchemaChange,
    SchemaChangeType,
    SourceIdentity,
    TableBatch,
    TableSchema,
)

if TYPE_CHECKING:
    from cartridge_warp.connectors.postgresql.target import PostgreSQLTarget
    from cartridge_warp.connectors.postgresql.transaction import DataTransaction

__all__ = ["SimpleMethods"]

_KINDS = {
    ColumnType.BIGINT: ColumnKind.bigint,
    ColumnType.DOUBLE: ColumnKind.double,
    ColumnType.NUMERIC: ColumnKind.numeric,
    ColumnType.STRING: ColumnKind.string,
    ColumnType.BOOLEAN: ColumnKind.boolean,
    ColumnType.TIMESTAMP: ColumnKind.timestamp,
    ColumnType.UUID: ColumnKind.uuid,
    ColumnType.BINARY: ColumnKind.bytes,
    ColumnType.JSON: ColumnKind.json,
}
_KEYS = {
    ColumnType.BIGINT: KeyKind.int,
    ColumnType.STRING: KeyKind.string,
    ColumnType.UUID: KeyKind.uuid,
    ColumnType.TIMESTAMP: KeyKind.date,
}


class SimpleMethods:
    """Implements the writing half of `DestinationConnector` by way of `target()`."""

    _simple: dict[str, PostgreSQLTarget] | None = None
    _version = 0

    if TYPE_CHECKING:

        def target(self, settings: UnitSettings) -> PostgreSQLTarget:
            """The destination schema of a unit."""

    async def _opened(self, schema: str) -> PostgreSQLTarget:
        if self._simple is None:
            self._simple = {}
        if schema not in self._simple:
            target = self.target(UnitSettings.of(SchemaConfig(name=schema)))
            await target.open(SourceIdentity("records", schema))
            self._simple[schema] = target
        return self._simple[schema]

    async def create_schema_if_not_exists(self, schema_name: str) -> None:
        """Claim the schema, and create it when it is missing."""
        await self._opened(schema_name)

    async def create_table_if_not_exists(self, schema_name: str, table_schema: TableSchema) -> None:
        """Create a table, or add the columns that it lacks."""
        target = await self._opened(schema_name)
        async with target.transaction([table_schema.name]) as t:
            await _ensure(t, table_schema.name, table_schema)

    async def apply_schema_changes(self, schema_name: str, changes: list[SchemaChange]) -> None:
        """Additions are applied; a dropped table stays without its rows, a dropped column with its values, as
        everywhere in this destination."""
        target = await self._opened(schema_name)
        for change in changes:
            async with target.transaction([change.table_name]) as t:
                if change.change_type is SchemaChangeType.ADD_TABLE:
                    await _ensure(t, change.table_name, change.table or TableSchema(change.table_name))
                elif change.change_type is SchemaChangeType.ADD_COLUMN and change.column is not None:
                    await _ensure(t, change.table_name, TableSchema(change.table_name, [change.column]))
                elif change.change_type is SchemaChangeType.DROP_TABLE:
                    version = self._next_version()
                    await t.void(Barrier(version, "drop", (change.table_name,)), version)

    async def write_batch(self, schema_name: str, records: list[Record]) -> None:
        """Write records in order, in one transaction; later records of a key go before earlier ones."""
        target = await self._opened(schema_name)
        names = sorted({record.table_name for record in records})
        async with target.transaction(names) as t:
            for batch in self._runs(records):
                for name, table in batch.tables.items():
                    if t.plan(name) is None:
                        await _ensure(t, name, _bare(table))
                await t.write(batch, careful=True)

    def _next_version(self) -> int:
        self._version = max(self._version + 1, time.time_ns() // 1000)
        return self._version

    def _runs(self, records: list[Record]) -> Iterator[Batch]:
        """Batches without a repeated key."""
        keys = Keys("records")
        seen: set[tuple[str, object]] = set()
        batch = Batch(BatchMarker({}))
        for record in records:
            key_field, change = keys.change(record.table_name, record, self._next_version())
            mark = (record.table_name, identity(change.key))
            if mark in seen:
                yield batch
                batch, seen = Batch(BatchMarker({})), set()
            seen.add(mark)
            table = batch.tables.setdefault(record.table_name, TableBatch(record.table_name, [], key_field))
            table.changes.append(change)
        yield batch

    async def update_marker(self, schema_name: str, table_name: str, marker: Any) -> None:
        """Store any JSON value as the position of a table ('' for the whole schema)."""
        target = await self._opened(schema_name)
        async with target.transaction([]) as t:
            await t.c.execute(
                target.statements.m(
                    'INSERT INTO {m}.sync_markers AS s (target, "table", kind, position, epoch)'
                    " VALUES ({t}, %s, 'stream', %s, %s) ON CONFLICT (target, \"table\", kind) DO UPDATE SET"
                    " position = excluded.position, epoch = excluded.epoch, seq = s.seq + 1, updated_at = now()"
                ),
                (table_name, Jsonb({"marker": marker}), target.epoch),
            )

    async def get_marker(self, schema_name: str, table_name: str) -> Any | None:
        """The value that `update_marker` stored, or None."""
        target = await self._opened(schema_name)
        async with target.transaction([]) as t:
            cursor = await t.c.execute(
                target.statements.m(
                    "SELECT position -> 'marker' FROM {m}.sync_markers WHERE target = {t} AND \"table\" = %s"
                    " AND kind = 'stream'"
                ),
                (table_name,),
            )
            row = await cursor.fetchone()
        return row[0] if row else None


def _bare(table: TableBatch) -> TableSchema:
    """A table of which only the keys are known: every other field is kept in `_warp_extra`."""
    kinds = {native_key_kind(change.key) for change in table.changes}
    types = {kind: column for column, kind in _KEYS.items()}
    kind = next(iter(kinds)) if len(kinds) == 1 else KeyKind.hash
    if table.key_field is None:
        return TableSchema(table.table, (), ("", ""))
    column = ColumnDefinition(table.key_field, types.get(kind, ColumnType.JSON), nullable=False)
    return TableSchema(table.table, (column,), (table.key_field,))


async def _ensure(t: DataTransaction, name: str, wanted: TableSchema) -> None:
    """Bring a table to at least these columns."""
    if name not in t.states:
        await t.register(name, snapshot=False, reason="records")
    plan = t.plan(name)
    if plan is None:
        keys = {column.name: column.type for column in wanted.columns}
        single = wanted.primary_keys[0] if len(wanted.primary_keys) == 1 else None
        kind = _KEYS.get(keys.get(single, ColumnType.STRING), KeyKind.hash) if single else KeyKind.hash
        fresh = TablePlan(name, relation_name(name, await t.relations()), kind, single)
        plan, change = fresh, "add_table"
    else:
        change = "add_column"
    columns = list(plan.columns)
    for column in wanted.columns:
        if column.name not in plan.known and all(column.name != known.field for known in columns):
            taken = {*plan.taken, *(known.column for known in columns)}
            columns.append(ColumnPlan(column.name, column_name(column.name, taken), _KINDS[column.type]))
    if change == "add_table" or len(columns) > len(plan.columns):
        grown = replace(plan, columns=tuple(columns), version=plan.version + 1)
        await t.evolve([PlanChange(grown, change)])
    if name in t.written.blocked:
        raise DestinationRefused(f"table {name} is locked by another session; try again when that has ended")
