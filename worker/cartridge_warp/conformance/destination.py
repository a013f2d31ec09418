"""What every destination must do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from cartridge_warp.conformance.contract import LARGE, UNICODE, DestinationUnderTest
from cartridge_warp.connectors.base import DestinationConnector
from cartridge_warp.errors import WarpError
from cartridge_warp.records import (
    ColumnDefinition,
    ColumnType,
    OperationType,
    Record,
    SchemaChange,
    SchemaChangeType,
    TableSchema,
)

__all__ = ["DestinationConformance"]

ITEMS = TableSchema(
    "items",
    (
        ColumnDefinition("id", ColumnType.BIGINT, nullable=False),
        ColumnDefinition("name", ColumnType.STRING),
        ColumnDefinition("size", ColumnType.DOUBLE),
    ),
    ("id",),
)
MARKER = {"position": {"offset": 2**53, "name": UNICODE, "parts": [1, None, True, 0.5]}, "seq": 7}


class DestinationConformance:
    """Subclass it; each test takes the fixture `conformant_destination`."""

    pytestmark = pytest.mark.asyncio

    async def test_connecting_and_disconnecting_twice(self, conformant_destination: DestinationUnderTest) -> None:
        """Connecting or disconnecting again is harmless, also before the first connection."""
        connector = conformant_destination.new()
        await connector.disconnect()
        await connector.connect()
        await connector.connect()
        assert await connector.test_connection(), "test_connection is false right after connect"
        await connector.disconnect()
        await connector.disconnect()

    async def test_answers_for_itself(self, conformant_destination: DestinationUnderTest) -> None:
        """test_connection is false, not an exception, once the destination is gone; a write then fails."""
        async with _ready(conformant_destination) as connector:
            await conformant_destination.break_off()
            assert not await connector.test_connection(), "test_connection is true though it is gone"
            with pytest.raises(WarpError):
                await connector.write_batch(conformant_destination.schema, [_put(1)])

    async def test_no_marker_at_first(self, conformant_destination: DestinationUnderTest) -> None:
        """A destination that was never written to has no marker."""
        async with _ready(conformant_destination) as connector:
            for table in ("", "items"):
                found = await connector.get_marker(conformant_destination.schema, table)
                assert found is None, f"a marker nobody stored: {found}"

    async def test_markers_are_apart(self, conformant_destination: DestinationUnderTest) -> None:
        """Each schema and table has its own marker, the last one stored, unchanged."""
        first, second = conformant_destination.schema, conformant_destination.other_schema
        async with _ready(conformant_destination) as connector:
            await connector.create_schema_if_not_exists(second)
            await connector.update_marker(first, "", {"n": 0})
            await connector.update_marker(first, "", MARKER)
            await connector.update_marker(first, "items", {"snapshot": "done"})
            await connector.update_marker(second, "", {"n": 2})
            assert await connector.get_marker(first, "") == MARKER, "the schema's marker changed"
            assert await connector.get_marker(first, "items") == {"snapshot": "done"}, "the table's changed"
            assert await connector.get_marker(second, "") == {"n": 2}, "schemas share a marker"
            assert await connector.get_marker(second, "items") is None, "a table's marker reaches another schema"

    async def test_survives_a_restart(self, conformant_destination: DestinationUnderTest) -> None:
        """Rows and marker are there for a connector that starts anew, even if the first was killed."""
        target, killed = conformant_destination, conformant_destination.new()
        await killed.connect()
        await _create(target, killed)
        await killed.write_batch(target.schema, [_put(1)])
        await killed.update_marker(target.schema, "", MARKER)
        async with _ready(target) as connector:
            assert await connector.get_marker(target.schema, "") == MARKER, "the marker did not survive"
            await connector.write_batch(target.schema, [_put(2)])
            assert await _ids(target) == [1, 2], "rows did not survive"
        await killed.disconnect()

    async def test_creating_twice(self, conformant_destination: DestinationUnderTest) -> None:
        """Creating what exists keeps its rows, and adds the columns that it lacks."""
        target = conformant_destination
        async with _ready(target) as connector:
            await connector.write_batch(target.schema, [_put(1)])
            await _create(target, connector)
            note = ColumnDefinition("note", ColumnType.STRING)
            wider = TableSchema("items", (*ITEMS.columns, note), ("id",))
            await connector.create_table_if_not_exists(target.schema, wider)
            await connector.write_batch(target.schema, [_put(2, note="new")])
            await _same(target, {"id": 1, "name": "a"}, {"id": 2, "name": "a", "note": "new"})

    async def test_structure_changes_twice(self, conformant_destination: DestinationUnderTest) -> None:
        """A structure change that comes again is harmless."""
        target = conformant_destination
        note = ColumnDefinition("note", ColumnType.STRING)
        add = SchemaChange(target.schema, "items", SchemaChangeType.ADD_COLUMN, column=note)
        drop = SchemaChange(target.schema, "items", SchemaChangeType.DROP_TABLE)
        async with _ready(target) as connector:
            await connector.write_batch(target.schema, [_put(1)])
            await connector.apply_schema_changes(target.schema, [add])
            await connector.apply_schema_changes(target.schema, [add, add])
            await connector.write_batch(target.schema, [_put(2, note="new")])
            await _same(target, {"id": 1, "name": "a"}, {"id": 2, "name": "a", "note": "new"})
            await connector.apply_schema_changes(target.schema, [drop])
            await connector.apply_schema_changes(target.schema, [drop])
            assert await _ids(target) == [], "a dropped table still has rows"
            await _create(target, connector)
            await connector.write_batch(target.schema, [_put(3)])
            assert await _ids(target) == [3], "a table that is made anew has rows of the old one"

    async def test_a_batch_that_comes_again(self, conformant_destination: DestinationUnderTest) -> None:
        """The same batch twice, also by a restarted worker, leads to the same rows."""
        target = conformant_destination
        batch = [_put(1), _put(2, "b"), _gone(1), _put(3, "c", size=0.5), _put(2, "changed")]
        for _ in range(2):
            async with _ready(target) as connector:
                for _ in range(2):
                    await connector.write_batch(target.schema, batch)
                await _same(target, {"id": 2, "name": "changed"}, {"id": 3, "name": "c", "size": 0.5})

    async def test_order_within_a_batch(self, conformant_destination: DestinationUnderTest) -> None:
        """The last record of a key decides: row or no row."""
        target = conformant_destination
        async with _ready(target) as connector:
            await connector.write_batch(target.schema, [_put(1, "old"), _put(4, "old")])
            batch = [_gone(1), _put(1, "again"), _put(2), _gone(2), _put(3, "x"), _put(3, "y"), _gone(4)]
            await connector.write_batch(target.schema, batch)
            await _same(target, {"id": 1, "name": "again"}, {"id": 3, "name": "y"})

    async def test_a_record_is_the_whole_row(self, conformant_destination: DestinationUnderTest) -> None:
        """A row is replaced as a whole, insert and update alike: what the record lacks is NULL afterwards."""
        target = conformant_destination
        async with _ready(target) as connector:
            await connector.write_batch(target.schema, [_put(1, size=1.5), _put(2, "b", size=2.5)])
            await connector.write_batch(target.schema, [_put(1, "b", operation=OperationType.UPDATE), _put(2, None)])
            await connector.write_batch(target.schema, [_put(3, "c", operation=OperationType.UPDATE)])
            await _same(target, {"id": 1, "name": "b"}, {"id": 2}, {"id": 3, "name": "c"})

    async def test_nothing_to_delete(self, conformant_destination: DestinationUnderTest) -> None:
        """Deleting a key that has no row, or writing nothing at all, is harmless."""
        target = conformant_destination
        async with _ready(target) as connector:
            await connector.write_batch(target.schema, [])
            await connector.write_batch(target.schema, [_put(1), _gone(2)])
            await connector.write_batch(target.schema, [_gone(2)])
            assert await _ids(target) == [1]

    async def test_large_and_odd_text(self, conformant_destination: DestinationUnderTest) -> None:
        """A value of 1 MiB and text of many scripts arrive unchanged."""
        target = conformant_destination
        async with _ready(target) as connector:
            await connector.write_batch(target.schema, [_put(1, UNICODE), _put(2, LARGE)])
            rows = {row["id"]: row["name"] for row in await target.rows(target.schema, "items")}
        assert rows[1] == UNICODE, "odd text changed"
        assert rows[2] == LARGE, "large text changed"

    async def test_every_type(self, conformant_destination: DestinationUnderTest) -> None:
        """A value of every column type can be written, in the form in which the worker hands it over."""
        values: dict[ColumnType, Any] = {
            ColumnType.BIGINT: 2**62, ColumnType.DOUBLE: 0.1, ColumnType.NUMERIC: Decimal("12.30"),
            ColumnType.STRING: "text", ColumnType.BOOLEAN: True, ColumnType.UUID: UUID(int=7),
            ColumnType.TIMESTAMP: datetime(2024, 2, 29, 12, tzinfo=UTC), ColumnType.BINARY: b"\x00\xff",
            ColumnType.JSON: {"deep": [{"er": None}, 1.5]},
        }  # fmt: skip
        columns = [ColumnDefinition("id", ColumnType.BIGINT, nullable=False)]
        columns += [ColumnDefinition(f"c_{kind.value}", kind) for kind in values]
        row = {"id": 1} | {f"c_{kind.value}": value for kind, value in values.items()}
        target = conformant_destination
        async with _ready(target) as connector:
            await connector.create_table_if_not_exists(target.schema, TableSchema("typed", columns, ("id",)))
            await connector.write_batch(target.schema, [Record("typed", row, primary_key_values={"id": 1})])
            found = await target.rows(target.schema, "typed")
        lost = [name for name in row if found[0].get(name) is None]
        assert not lost, f"no value arrived in {lost}"


@asynccontextmanager
async def _ready(target: DestinationUnderTest) -> AsyncIterator[DestinationConnector]:
    """A connected connector, the schema and the table `items`."""
    connector = target.new()
    await connector.connect()
    try:
        await _create(target, connector)
        yield connector
    finally:
        await connector.disconnect()


async def _create(target: DestinationUnderTest, connector: DestinationConnector) -> None:
    await connector.create_schema_if_not_exists(target.schema)
    await connector.create_table_if_not_exists(target.schema, ITEMS)


def _put(key: int, name: str | None = "a", operation: OperationType = OperationType.INSERT, **more: Any) -> Record:
    data = {"id": key} | ({} if name is None else {"name": name}) | more
    return Record("items", data, operation, primary_key_values={"id": key})


def _gone(key: int) -> Record:
    return Record("items", {}, OperationType.DELETE, primary_key_values={"id": key})


async def _ids(target: DestinationUnderTest) -> list[int]:
    return sorted(row["id"] for row in await target.rows(target.schema, "items"))


async def _same(target: DestinationUnderTest, *expected: dict[str, Any]) -> None:
    found = [
        {name: value for name, value in row.items() if value is not None and not name.startswith("_warp_")}
        for row in await target.rows(target.schema, "items")
    ]
    found.sort(key=lambda row: row["id"])
    assert found == list(expected), f"the table holds {found}, expected {list(expected)}"
