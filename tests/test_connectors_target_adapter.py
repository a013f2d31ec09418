"""RecordTarget: simple destinations are written structure first, rows next, position last, at least once."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import bson
import pytest

from cartridge_warp.config import DestinationConfig, SchemaConfig, SourceConfig, TableConfig, UnitSettings
from cartridge_warp.connectors import (
    BaseDestinationConnector,
    ColumnType,
    OperationType,
    SchemaChangeType,
    record_target,
)
from cartridge_warp.connectors.adapter import RecordSource, RecordTarget
from cartridge_warp.connectors.record_target import column_type
from cartridge_warp.errors import ConfigError, DestinationRefused, PositionLost, RowError, Unavailable
from cartridge_warp.records import Barrier, Batch, BatchMarker, Change, Op, TableBatch

EXAMPLES = Path(__file__).parents[1] / "examples" / "connectors"
sys.path.insert(0, str(EXAMPLES))

from jsonl_destination import JsonlDestination  # noqa: E402
from jsonl_source import JsonlSource  # noqa: E402


class Recording(BaseDestinationConnector):
    """Keeps every call in order, and the markers."""

    def __init__(self) -> None:
        super().__init__("recording")
        self.connected = True
        self.calls: list[tuple[Any, ...]] = []
        self.markers: dict[tuple[str, str], Any] = {}
        self.failing: str | None = None

    def note(self, *call: Any) -> None:
        if self.failing == call[0]:
            raise ConnectionResetError("cut off")
        self.calls.append(call)

    async def create_schema_if_not_exists(self, schema_name):
        self.note("schema", schema_name)

    async def create_table_if_not_exists(self, schema_name, table_schema):
        columns = [(column.name, column.type, column.nullable) for column in table_schema.columns]
        self.note("table", table_schema.name, columns, tuple(table_schema.primary_keys))

    async def apply_schema_changes(self, schema_name, changes):
        for change in changes:
            self.note(change.change_type.value, change.table_name, *([change.column.name] if change.column else []))

    async def write_batch(self, schema_name, records):
        for record in records:
            self.note("row", record.table_name, record.operation, dict(record.primary_key_values), record.data)
        self.note("written", len(records))

    async def update_marker(self, schema_name, table_name, marker):
        self.note("marker", table_name)
        self.markers[schema_name, table_name] = json.loads(json.dumps(marker))

    async def get_marker(self, schema_name, table_name):
        return self.markers.get((schema_name, table_name))

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


def settings(**given: Any) -> UnitSettings:
    return UnitSettings.of(SchemaConfig(name="shop", **({"polling_interval": 0.02} | given)))


def put(key: Any, **data: Any) -> Change:
    return Change(Op.UPSERT, key, 1, {"id": key, **data})


def gone(key: Any) -> Change:
    return Change(Op.DELETE, key, 1, operation=OperationType.DELETE)


def batch(*changes: Change, table: str = "items", position: Any = None, **more: Any) -> Batch:
    tables = {table: TableBatch(table, list(changes), key_field="id")} if changes else {}
    return Batch(BatchMarker(position or {"marker": 1}), tables, **more)


async def opened(destination: Any = None, **given: Any) -> tuple[Any, RecordTarget]:
    destination = destination or Recording()
    target = RecordTarget(destination, settings(**given), "recording")
    await target.open()
    await target.marker()
    return destination, target


async def test_structure_then_rows_then_position() -> None:
    """A table is made before its first row, a column before the first row that has it, the position last."""
    destination, target = await opened()
    await target.apply(batch(put(1, name="a")))
    await target.apply(batch(put(2, name="b", size=0.5), gone(1)))
    assert destination.calls == [
        ("schema", "shop"),
        ("table", "items", [("id", ColumnType.BIGINT, False), ("name", ColumnType.STRING, True)], ("id",)),
        ("row", "items", OperationType.INSERT, {"id": 1}, {"id": 1, "name": "a"}),
        ("written", 1),
        ("marker", ""),
        ("add_column", "items", "size"),
        ("row", "items", OperationType.INSERT, {"id": 2}, {"id": 2, "name": "b", "size": 0.5}),
        ("row", "items", OperationType.DELETE, {"id": 1}, {}),
        ("written", 2),
        ("marker", ""),
    ]


async def test_promise_is_stated() -> None:
    """A simple destination says that it is at least once, not exactly once."""
    _, target = await opened()
    assert target.capabilities.exactly_once is False
    assert "at least once" in target.capabilities.promise


async def test_marker_is_kept_for_the_next_run() -> None:
    """Position, counter and source time come back as they were stored; nothing stored gives None."""
    destination, target = await opened()
    assert await target.marker() is None
    at = datetime(2024, 5, 6, 7, 8, 9, 123000, tzinfo=UTC)
    await target.apply(Batch(BatchMarker({"marker": {"items": 5}, "version": 9}, at, 3)))
    await target.apply(Batch(BatchMarker({"marker": {"items": 6}, "version": 10}, at, 3)))
    _, restarted = await opened(destination)
    found = await restarted.marker()
    assert found is not None
    assert (found.position, found.seq, found.source_time) == ({"marker": {"items": 6}, "version": 10}, 2, at)
    assert found.version_offset == 0


async def test_copied_tables_are_remembered() -> None:
    """A table counts as copied once it was marked, also after a restart, and not once it is reopened."""
    destination, target = await opened()
    assert not await target.table_done("items")
    await target.mark_table_done("items")
    _, restarted = await opened(destination)
    assert await restarted.table_done("items")
    assert not await restarted.table_done("other")
    await restarted.mark_table_done("items", done=False)
    assert not await restarted.table_done("items")


async def test_write_batch_size_bounds_each_call() -> None:
    """A table's write_batch_size bounds the records of one call, and their order is kept."""
    destination, target = await opened(tables=[TableConfig(name="items", write_batch_size=2)])
    await target.apply(batch(*(put(n) for n in range(5))))
    assert [call[1] for call in destination.calls if call[0] == "written"] == [2, 2, 1]
    assert [call[3]["id"] for call in destination.calls if call[0] == "row"] == [0, 1, 2, 3, 4]


async def test_drop_is_carried_out_before_the_position() -> None:
    """A barrier drops its tables, opens their copies again, and its position is stored last."""
    destination, target = await opened()
    await target.apply(batch(put(1)))
    await target.mark_table_done("items")
    destination.calls.clear()
    await target.apply(batch(barrier=Barrier(2, "drop", ("items",)), position={"marker": 2}))
    assert destination.calls == [("marker", "items"), ("drop_table", "items"), ("marker", "")]
    assert not await target.table_done("items")
    await target.apply(batch(put(2)))
    assert ("table", "items", [("id", ColumnType.BIGINT, False)], ("id",)) in destination.calls


async def test_drop_of_everything_after_a_restart() -> None:
    """A dropped database takes every table with it, also those that were copied before a restart and had no
    change since."""
    destination, target = await opened()
    await target.apply(Batch(BatchMarker({"marker": 0})))
    await target.write(TableBatch("copied", [put(1)], key_field="id"))
    await target.mark_table_done("copied")
    _, restarted = await opened(destination)
    destination.calls.clear()
    await restarted.apply(batch(barrier=Barrier(2, "dropDatabase"), position={"marker": 2}))
    assert ("drop_table", "copied") in destination.calls
    assert not await restarted.table_done("copied")


async def test_table_under_another_name_is_copied_again() -> None:
    """A rename onto a mirrored table drops what was there and asks for a copy of what is there now."""
    destination, target = await opened()
    await target.apply(batch(put(1)))
    await target.mark_table_done("items")
    await target.apply(batch(barrier=Barrier(2, "rename", ("old",), resnapshot=("items",))))
    assert ("drop_table", "items") in destination.calls
    assert not await target.table_done("items")


async def test_nothing_new_is_not_written() -> None:
    """The empty batches of a quiet source do not rewrite a position that is stored already."""
    destination, target = await opened()
    for number in (1, 1, 2, 2):
        await target.apply(batch(position={"marker": number}))
    assert destination.names().count("marker") == 2


async def test_repeated_after_a_failure() -> None:
    """Cut off before the position was stored, the batch is written again and nothing is passed over."""
    destination, target = await opened()
    await target.apply(batch(put(1), position={"marker": 1}))
    destination.failing = "marker"
    with pytest.raises(Unavailable, match="destination 'recording' failed while storing the position"):
        await target.apply(batch(put(2), position={"marker": 2}))
    destination.failing = None
    found = await target.marker()
    assert found is not None
    assert (found.position, found.seq) == ({"marker": 1}, 1)
    await target.apply(batch(put(2), position={"marker": 2}))
    found = await target.marker()
    assert found is not None
    assert (found.position, found.seq) == ({"marker": 2}, 2)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (BrokenPipeError("cut"), Unavailable),
        (ZeroDivisionError("oops"), DestinationRefused),
        (RowError("too long"), RowError),
    ],
)
async def test_errors_are_translated(raised: Exception, expected: type[Exception]) -> None:
    """What the network reports is an outage, a fault of the connector stops, errors of ours pass."""

    class Failing(Recording):
        async def write_batch(self, schema_name, records):
            raise raised

    _, target = await opened(Failing())
    with pytest.raises(expected):
        await target.apply(batch(put(1)))


async def test_destination_that_does_not_answer() -> None:
    """open says which destination does not answer, before anything is read from the source."""
    destination = Recording()
    destination.connected = False
    with pytest.raises(Unavailable, match="destination 'recording' does not answer"):
        await opened(destination)


@pytest.mark.parametrize(
    "given", [{"deletion_strategy": "soft"}, {"tables": [TableConfig(name="x*", deletion_strategy="soft")]}]
)
async def test_soft_deletes_are_refused(given: dict[str, Any]) -> None:
    """A simple destination cannot mark rows; the configuration is refused instead of deleting them."""
    with pytest.raises(ConfigError, match="cannot mark rows as deleted: set deletion_strategy"):
        await opened(**given)


@pytest.mark.parametrize("stored", [{"foreign": 1}, {"position": 3, "seq": 1}, "text", [1]])
async def test_marker_of_a_stranger(stored: Any) -> None:
    """A marker that is not ours is named, not taken for "nothing stored"."""
    destination = Recording()
    destination.markers["shop", ""] = stored
    with pytest.raises(DestinationRefused):
        await opened(destination)


async def test_dry_run_writes_nothing() -> None:
    """With dry_run no call reaches the destination but those that read."""

    destination = Recording()
    target = RecordTarget(destination, replace(settings(), dry_run=True), "recording")
    await target.open()
    await target.apply(batch(put(1)))
    await target.apply(batch(barrier=Barrier(2, "drop", ("items",))))
    await target.write(TableBatch("items", [put(1)], key_field="id"))
    await target.mark_table_done("items")
    assert destination.calls == []
    assert destination.markers == {}


async def test_unfinished_change_is_not_written() -> None:
    """A change whose document was never fetched must not become an empty row."""
    _, target = await opened()
    with pytest.raises(ValueError, match="not completed"):
        await target.apply(batch(Change(Op.FETCH, 1, 1)))


async def test_raw_documents_arrive_as_python_values() -> None:
    """A document of MongoDB, raw, arrives with Python's own types, its columns announced accordingly."""
    destination, target = await opened()
    key, at = bson.ObjectId(), datetime(2024, 1, 2, tzinfo=UTC)
    document = {
        "_id": key, "n": bson.Int64(2**40), "price": bson.Decimal128("1.50"), "at": at, "raw": b"\x00",
        "uuid": bson.Binary.from_uuid(UUID(int=3)), "tags": ["a"], "nothing": None,
    }  # fmt: skip
    table = TableBatch("items", [Change(Op.UPSERT, key, 1, bson.encode(document))])
    await target.apply(Batch(BatchMarker({"marker": 1}), {"items": table}))
    [created] = [call for call in destination.calls if call[0] == "table"]
    [row] = [call for call in destination.calls if call[0] == "row"]
    assert {name: kind for name, kind, _ in created[2]} == {
        "_id": ColumnType.STRING, "n": ColumnType.BIGINT, "price": ColumnType.NUMERIC,
        "at": ColumnType.TIMESTAMP, "raw": ColumnType.BINARY, "uuid": ColumnType.UUID,
        "tags": ColumnType.JSON,
    }  # fmt: skip
    assert created[3] == ("_id",)
    assert row[3] == {"_id": str(key)}
    assert row[4] == {
        "_id": str(key), "n": 2**40, "price": Decimal("1.50"), "at": at, "raw": b"\x00", "uuid": UUID(int=3),
        "tags": ["a"], "nothing": None,
    }  # fmt: skip


async def test_python_values_of_a_simple_source_pass_unchanged() -> None:
    """Values of a source without BSON reach a simple destination as they are."""
    values = {
        "id": 1,
        "u": UUID(int=5),
        "d": Decimal("1.5"),
        "t": datetime(2024, 1, 1, tzinfo=UTC),
        "b": b"x",
    }
    destination, target = await opened()
    await target.apply(batch(Change(Op.UPSERT, 1, 1, values)))
    [row] = [call for call in destination.calls if call[0] == "row"]
    assert row[4] == values


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([None, None], None),
        ([1, 2], ColumnType.BIGINT),
        ([True, None], ColumnType.BOOLEAN),
        ([True, 1], ColumnType.JSON),
        ([1, 0.5], ColumnType.NUMERIC),
        ([1, "x"], ColumnType.JSON),
        ([{"a": 1}, [1]], ColumnType.JSON),
    ],
)
def test_column_types(values: list[Any], expected: ColumnType | None) -> None:
    """A column's type holds every value seen: numbers meet in numeric, anything else in JSON."""
    assert column_type(values) is expected


def test_what_a_simple_destination_is_asked_for() -> None:
    """Only the structure changes that the contract names are ever sent: columns added, tables dropped."""

    text = inspect.getsource(record_target)
    assert {each for each in SchemaChangeType if f"SchemaChangeType.{each.name}" in text} == {
        SchemaChangeType.ADD_COLUMN, SchemaChangeType.DROP_TABLE
    }  # fmt: skip


# -- the two adapters together, over the example connectors ------------------------------------------------


class Folders:
    """An inbox that is read and an outbox that is written."""

    def __init__(self, root: Path) -> None:
        self.inbox, self.outbox = root / "inbox", root / "outbox"
        (self.inbox / "shop").mkdir(parents=True)

    def write(self, *rows: dict[str, Any], table: str = "items") -> None:
        with (self.inbox / "shop" / f"{table}.jsonl").open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    def rows(self, folder: Path, table: str = "items") -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for line in (folder / "shop" / f"{table}.jsonl").read_text().splitlines():
            row = json.loads(line)
            found.pop(row["id"], None)
            if not row.get("_deleted"):
                found[row["id"]] = row
        return found

    async def pair(self) -> tuple[RecordSource, RecordTarget]:
        source = JsonlSource(SourceConfig(type="jsonl", parameters={"folder": str(self.inbox)}))
        destination = JsonlDestination(DestinationConfig(type="jsonl", parameters={"folder": str(self.outbox)}))
        await source.connect()
        await destination.connect()
        return RecordSource(source, settings(), "jsonl"), RecordTarget(destination, settings(), "jsonl")


async def run_once(source: RecordSource, target: RecordTarget) -> None:
    """What the core does with such a pair: position, copies, then changes until nothing more is ready."""
    await target.open()
    marker = await target.marker()
    if marker is None:
        await target.apply(Batch(BatchMarker((await source.now()).position)))
        marker = await target.marker()
    assert marker is not None
    for table in await source.tables():
        if not await target.table_done(table):
            async for page in source.snapshot(table, 10, 10_000):
                await target.write(page)
            await target.mark_table_done(table)
    async with aclosing(source.batches(marker)) as batches:
        async for each in batches:
            if not each.marker.events:
                break
            await target.apply(each)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


async def test_pair_end_to_end(folders: Folders) -> None:
    """Rows, replacements and deletes arrive by copy and by stream, over several runs."""
    folders.write(*({"id": n, "text": f"row {n}"} for n in range(30)))
    folders.write({"id": 3, "_deleted": True}, {"id": 4, "text": "changed"})
    await run_once(*await folders.pair())
    assert folders.rows(folders.outbox) == folders.rows(folders.inbox)
    folders.write({"id": 4, "_deleted": True}, {"id": 5, "size": 0.5}, {"id": 99, "text": "new"})
    folders.write({"id": 1}, table="later")
    await run_once(*await folders.pair())
    assert folders.rows(folders.outbox) == folders.rows(folders.inbox)
    assert folders.rows(folders.outbox, "later") == {1: {"id": 1}}
    size = (folders.outbox / "shop" / "items.jsonl").stat().st_size
    await run_once(*await folders.pair())
    assert (folders.outbox / "shop" / "items.jsonl").stat().st_size == size


async def test_lost_position_begins_anew(folders: Folders) -> None:
    """After a lost position the tables are dropped and copied again: what vanished in the gap is gone, too."""
    folders.write({"id": 1}, {"id": 2})
    await run_once(*await folders.pair())
    (folders.inbox / "shop" / "items.jsonl").write_text('{"id": 7}\n')
    with pytest.raises(PositionLost):
        await run_once(*await folders.pair())
    source, target = await folders.pair()
    await target.restart(await source.now())
    await run_once(source, target)
    assert folders.rows(folders.outbox) == folders.rows(folders.inbox) == {7: {"id": 7}}
    folders.write({"id": 8})
    await run_once(*await folders.pair())
    assert folders.rows(folders.outbox).keys() == {7, 8}


async def test_half_a_line_of_a_killed_process(folders: Folders) -> None:
    """The example destination cuts off what a killed process left, and the batch that follows is whole."""
    folders.write({"id": 1, "text": "a"})
    await run_once(*await folders.pair())
    with (folders.outbox / "shop" / "items.jsonl").open("a") as file:
        file.write('{"id": 2, "te')
    folders.write({"id": 2, "text": "b"})
    await run_once(*await folders.pair())
    assert folders.rows(folders.outbox) == folders.rows(folders.inbox)


KILLED = """
import asyncio, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from test_connectors_target_adapter import Folders, run_once
async def main():
    folders = Folders.__new__(Folders)
    folders.inbox, folders.outbox = Path(sys.argv[1], "inbox"), Path(sys.argv[1], "outbox")
    pair = await folders.pair()
    print("ready", flush=True)
    while True:
        await run_once(*pair)
        pair = await folders.pair()
asyncio.run(main())
"""


async def test_killed_at_any_moment(folders: Folders, tmp_path: Path) -> None:
    """kill -9 of the process that drives the pair, at several moments while rows are being added, loses
    nothing and leaves nothing that cannot be read."""
    paths = [str(EXAMPLES), str(Path(__file__).parent)]
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), *paths], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            await asyncio.to_thread(process.stdout.readline)
            for number in range(20):
                folders.write(*({"id": number * 10 + n, "run": attempt} for n in range(10)))
                await asyncio.sleep(0.003 * (attempt + 1))
        finally:
            process.kill()
            process.wait()
        folders.write({"id": attempt, "_deleted": True})
    await run_once(*await folders.pair())
    assert folders.rows(folders.outbox) == folders.rows(folders.inbox)
