"""RecordSource: simple sources of every shape as batches with positions, without loss."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cartridge_warp.config import SchemaConfig, SourceConfig, TableConfig, UnitSettings
from cartridge_warp.connectors import (
    BaseSourceConnector,
    ChangeEvent,
    DatabaseSchema,
    OperationType,
    Record,
    TableSchema,
)
from cartridge_warp.connectors.adapter import RecordSource, changes
from cartridge_warp.errors import PositionLost, SourceRefused, Unavailable
from cartridge_warp.records import Batch, Marker, Op

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "connectors"))

from jsonl_source import JsonlSource


def settings(**given: Any) -> UnitSettings:
    return UnitSettings.of(SchemaConfig(name="shop", **({"polling_interval": 0.02} | given)))


def event(number: int, marker: Any = ..., table: str = "items", **record: Any) -> ChangeEvent:
    data = record.pop("data", {"id": number, "text": f"row {number}"})
    keys = record.pop("primary_key_values", {"id": number})
    return ChangeEvent(
        Record(table, data, primary_key_values=keys, **record), number if marker is ... else marker, "shop"
    )


class Listed(BaseSourceConnector):
    """A source with a fixed list of events; a marker is the number of events before it."""

    def __init__(self, events: list[ChangeEvent], position: Any = 0) -> None:
        super().__init__("listed")
        self.events = events
        self.asked: list[Any] = []
        self.position = position
        self.closed = 0

    async def get_position(self, schema_name: str) -> Any:
        return self.position

    async def get_schema(self, schema_name: str) -> DatabaseSchema:
        return DatabaseSchema(schema_name, [TableSchema("items"), TableSchema("hidden")])

    async def get_changes(self, schema_name: str, marker: Any = None, batch_size: int = 1000):
        self.asked.append(marker)
        try:
            for each in self.events[int(marker or 0) :]:
                yield each
        finally:
            self.closed += 1

    async def get_full_snapshot(self, schema_name: str, table_name: str, batch_size: int = 10000):
        for each in self.events:
            yield each.record


async def take(source: RecordSource, position: Any, count: int, version: int = 0) -> list[Batch]:
    """The first batches after a position."""
    found: list[Batch] = []
    async with aclosing(source.batches(Marker({"marker": position, "version": version}, 1))) as batches:
        async for batch in batches:
            found.append(batch)
            if len(found) == count:
                break
    return found


def keys(batch: Batch, table: str = "items") -> list[Any]:
    return [change.key for change in batch.tables[table].changes] if table in batch.tables else []


async def async_list(iterator: AsyncIterator[Any]) -> list[Any]:
    return [each async for each in iterator]


@pytest.fixture
def jsonl(tmp_path: Path) -> tuple[JsonlSource, Callable[..., None]]:
    """A connected source on a folder, and how to append a line to a table."""
    (tmp_path / "shop").mkdir()

    def write(line: str, table: str = "items") -> None:
        with (tmp_path / "shop" / f"{table}.jsonl").open("a") as file:
            file.write(line)

    source = JsonlSource(SourceConfig(type="jsonl", parameters={"folder": str(tmp_path)}))
    return source, write


# -- shapes ------------------------------------------------------------------------------------------------


class AsCoroutine(Listed):
    """get_changes is a coroutine that returns an async generator, as the first documents showed it."""

    async def get_changes(self, schema_name, marker=None, batch_size=1000):  # type: ignore[override]
        return Listed.get_changes(self, schema_name, marker, batch_size)


class AsIterator(Listed):
    """get_changes is a coroutine that returns an async iterator that is no generator."""

    async def get_changes(self, schema_name, marker=None, batch_size=1000):  # type: ignore[override]
        class Steps:
            def __init__(self, events):
                self.events = iter(events)

            def __aiter__(self):
                return self

            async def __anext__(self):
                for each in self.events:
                    return each
                raise StopAsyncIteration

        return Steps(self.events[int(marker or 0) :])


@pytest.mark.parametrize("kind", [Listed, AsCoroutine, AsIterator])
async def test_every_shape_of_iterator(kind: type[Listed]) -> None:
    """An async generator, a coroutine returning one, and one returning a plain async iterator do alike."""
    source = kind([event(1), event(2)])
    assert [each.position_marker for each in await async_list(await changes(source, "shop", 0, 10))] == [1, 2]
    [batch] = await take(RecordSource(source, settings(), "listed"), 0, 1)
    assert keys(batch) == [1, 2]


async def test_no_iterator_at_all() -> None:
    """A source that returns something else is named as the one at fault."""

    class Wrong(Listed):
        async def get_changes(self, schema_name, marker=None, batch_size=1000):  # type: ignore[override]
            return [event(1)]

    with pytest.raises(SourceRefused, match=r"source 'wrong' failed while opening .* not list"):
        await take(RecordSource(Wrong([]), settings(), "wrong"), 0, 1)


# -- batches -----------------------------------------------------------------------------------------------


async def test_batches_end_at_thresholds() -> None:
    """A batch ends when a table reaches its own threshold, and its position is that of its last event."""
    events = [event(n, table="small" if n % 2 else "items") for n in range(1, 10)]
    unit = settings(stream_batch_size=100, tables=[TableConfig(name="small", stream_batch_size=2)])
    found = await take(RecordSource(Listed(events), unit, "listed"), 0, 4)
    assert [batch.marker.position["marker"] for batch in found] == [3, 7, 9, 9]
    assert [batch.rows for batch in found] == [3, 4, 2, 0]
    assert [batch.marker.events for batch in found] == [3, 4, 2, 0]


async def test_batches_end_at_bytes() -> None:
    """A batch stays within the byte bound, and a larger document travels alone."""
    sizes = [400, 400, 400, 5000, 10]
    events = [event(n, data={"id": n, "text": "x" * size}) for n, size in enumerate(sizes, 1)]
    unit = replace(settings(), max_batch_bytes=1000)
    found = await take(RecordSource(Listed(events), unit, "listed"), 0, 4)
    assert [keys(batch) for batch in found] == [[1, 2], [3], [4], [5]]


async def test_unwanted_tables_move_only_the_position() -> None:
    """Events that the filters refuse carry no rows, but the position passes them."""
    unit = settings(table_blacklist=["hidden"])
    source = RecordSource(Listed([event(1, table="hidden"), event(2), event(3, table="hidden")]), unit, "listed")
    [batch] = await take(source, 0, 1)
    assert list(batch.tables) == ["items"]
    assert batch.marker.position["marker"] == 3
    assert await source.tables() == ["items"]


async def test_empty_batch_when_nothing_is_ready() -> None:
    """When the source has nothing more an empty batch says so, with the same position; then it is asked again
    after the polling interval, from where it stood."""
    listed = Listed([event(1)])
    started = asyncio.get_running_loop().time()
    found = await take(RecordSource(listed, settings(polling_interval=0.2), "listed"), 0, 3)
    assert [batch.rows for batch in found] == [1, 0, 0]
    assert listed.asked == [0, 1, 1]
    assert asyncio.get_running_loop().time() - started >= 0.2
    assert listed.closed == 3


async def test_pushed_source_is_not_held_back_nor_cut() -> None:
    """A source that waits for more: what is there is delivered at once, and waiting does not close it."""
    opened = 0

    class Pushed(Listed):
        async def get_changes(self, schema_name, marker=None, batch_size=1000):
            nonlocal opened
            opened += 1
            for each in self.events:
                yield each
                await asyncio.sleep(0.3)

    source = RecordSource(Pushed([event(1), event(2)]), settings(polling_interval=0.1), "pushed")
    loop = asyncio.get_running_loop()
    started = loop.time()
    rows: list[Any] = []
    async with aclosing(source.batches(Marker({"marker": 0}, 1))) as batches:
        async for batch in batches:
            rows += keys(batch)
            if keys(batch) == [1]:
                assert loop.time() - started < 0.25
            if rows == [1, 2]:
                break
    assert opened == 1


async def test_stream_is_closed_when_it_is_left() -> None:
    """Leaving the batches in the middle closes the source's own generator at once."""
    listed = Listed([event(n) for n in range(1, 50)])
    await take(RecordSource(listed, settings(stream_batch_size=5), "listed"), 0, 1)
    assert listed.closed == 1


async def test_versions_never_fall_behind() -> None:
    """Versions rise from event to event, and above the stored position's even when the clock went back."""
    ahead = 2**62
    source = RecordSource(Listed([event(1), event(2)]), settings(), "listed")
    [batch] = await take(source, 0, 1, version=ahead)
    versions = [change.version for change in batch.tables["items"].changes]
    assert versions == [ahead + 1, ahead + 2]
    assert batch.marker.position == {"marker": 2, "version": ahead + 2}


async def test_changes_carry_what_the_core_needs() -> None:
    """Operation, key, image and times; an image gets the key field that the source left out of it."""
    at = datetime(2024, 5, 6, tzinfo=UTC)
    listed = Listed([
        event(1, data={"text": "a"}, timestamp=at),
        event(2, data={}, operation=OperationType.DELETE, timestamp=at.replace(tzinfo=None)),
        event(3, table="pairs", data={"n": 1}, primary_key_values={"b": 2, "a": 1}),
    ])  # fmt: skip
    [batch] = await take(RecordSource(listed, settings(), "listed"), 0, 1)
    first, gone = batch.tables["items"].changes
    assert (first.op, first.key, first.image) == (Op.UPSERT, 1, {"id": 1, "text": "a"})
    assert (gone.op, gone.key, gone.image) == (Op.DELETE, 2, None)
    assert first.at_ms == gone.at_ms == int(at.timestamp() * 1000)
    assert batch.marker.source_time == at
    assert batch.tables["items"].key_field == "id"
    assert batch.tables["pairs"].key_field is None
    assert list(batch.tables["pairs"].changes[0].key.items()) == [("a", 1), ("b", 2)]


async def test_new_tables_are_named_once() -> None:
    """A table that did not exist when the tables were listed is reported as created, once."""
    source = RecordSource(Listed([event(1), event(2, table="late"), event(3, table="late")]), settings(), "x")
    await source.tables()
    first, second = await take(source, 0, 2)
    assert first.created == ("late",)
    assert second.created == ()


async def test_marker_object_that_the_source_goes_on_changing() -> None:
    """A position is taken when its event arrives: a source that reuses its object cannot move it ahead."""

    class Reusing(Listed):
        async def get_changes(self, schema_name, marker=None, batch_size=1000):
            offsets = {"n": 0}
            for number in range(1, 4):
                offsets["n"] = number
                yield event(number, offsets)
            offsets["n"] = 99
            await asyncio.sleep(5)

    [batch] = await take(RecordSource(Reusing([]), settings(), "reusing"), 0, 1)
    assert keys(batch) == [1, 2, 3]
    assert batch.marker.position["marker"] == {"n": 3}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (event(1, primary_key_values={}), "table 'items': a record has no primary_key_values"),
        (event(1, None), "position_marker None"),
        (event(1, {1, 2}), "position_marker is not JSON"),
        (event(1, float("nan")), "position_marker is not JSON"),
        ("nonsense", "yielded str, not ChangeEvent"),
        (event(1, primary_key_values={"other": 1}), r"key is \(other\), but earlier ones had \(id\)"),
    ],
)
async def test_what_breaks_the_contract(wrong: Any, message: str) -> None:
    """An event that cannot be carried safely stops with one sentence; the position does not pass it."""
    source = RecordSource(Listed([event(1), wrong]), settings(stream_batch_size=1), "listed")
    async with aclosing(source.batches(Marker({"marker": 0}, 1))) as batches:
        assert (await anext(batches)).marker.position["marker"] == 1
        with pytest.raises(SourceRefused, match=f"source 'listed'.*{message}"):
            await anext(batches)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ConnectionResetError("cut"), Unavailable),
        (TimeoutError(), Unavailable),
        (KeyError("x"), SourceRefused),
        (PositionLost("gone"), PositionLost),
    ],
)
async def test_errors_are_translated(raised: Exception, expected: type[Exception]) -> None:
    """What the network reports is an outage, a fault of the connector stops, errors of ours pass."""

    class Failing(Listed):
        async def get_changes(self, schema_name, marker=None, batch_size=1000):
            raise raised
            yield

        async def get_schema(self, schema_name):
            raise raised

        async def get_full_snapshot(self, schema_name, table_name, batch_size=10000):
            raise raised
            yield

    source = RecordSource(Failing([]), settings(), "failing")
    with pytest.raises(expected):
        await take(source, 0, 1)
    with pytest.raises(expected):
        await source.tables()
    with pytest.raises(expected):
        await async_list(source.snapshot("items", 10, 1000))


# -- positions ---------------------------------------------------------------------------------------------


async def test_nothing_is_lost_between_position_and_stream(jsonl: Any) -> None:
    """What is appended after now() and before the first batch, or while tables are copied, arrives."""
    connector, write = jsonl
    write('{"id": 1}\n')
    await connector.connect()
    source = RecordSource(connector, settings(), "jsonl")
    stamp = await source.now()
    write('{"id": 2}\n')
    pages = await async_list(source.snapshot("items", 10, 10_000))
    write('{"id": 3}\n')
    [batch] = await take(source, stamp.position["marker"], 1, stamp.version)
    assert [change.key for page in pages for change in page.changes] == [1, 2]
    assert keys(batch) == [2, 3]
    assert all(change.version > pages[0].changes[0].version for change in batch.tables["items"].changes)


async def test_restart_goes_on_behind_the_stored_position(jsonl: Any) -> None:
    """A new object with the stored position delivers the rest, across deletes and half-written lines."""
    connector, write = jsonl
    await connector.connect()
    write('{"id": 1}\n{"id": 2}\n{"id": 3, "te')
    [first] = await take(RecordSource(connector, settings(), "jsonl"), {}, 1)
    write('xt": "x"}\n{"id": 1, "_deleted": true}\n')
    stored = first.marker.position
    [second] = await take(RecordSource(connector, settings(), "jsonl"), stored["marker"], 1)
    assert keys(first) == [1, 2]
    assert [(change.key, change.op) for change in second.tables["items"].changes] == [
        (3, Op.UPSERT), (1, Op.DELETE)
    ]  # fmt: skip


class Silent(JsonlSource):
    """A source that cannot name its position, and stands where it was first asked."""

    get_position = None

    async def get_changes(self, schema_name, marker=None, batch_size=1000):
        if marker is None and schema_name not in self.start:
            self.start[schema_name] = await JsonlSource.get_position(self, schema_name)
        async for each in super().get_changes(schema_name, marker, batch_size):
            yield each


class BarePushed(Listed):
    """A source that cannot name its position and pushes: what happens before it is asked is lost to it."""

    get_position = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__([])
        self.listeners: list[asyncio.Queue[ChangeEvent]] = []

    async def get_changes(self, schema_name, marker=None, batch_size=1000):
        queue: asyncio.Queue[ChangeEvent] = asyncio.Queue()
        self.listeners.append(queue)
        while True:
            yield await queue.get()


async def test_source_without_position_stands_before_the_copy(tmp_path: Path) -> None:
    """Without get_position the stream itself is begun by now(), so that the copy cannot lose a change."""
    pushed = BarePushed()
    source = RecordSource(pushed, settings(), "pushed")
    stamp = await asyncio.wait_for(source.now(), 5)
    assert len(pushed.listeners) == 1
    pushed.listeners[0].put_nowait(event(1))
    async with aclosing(source.batches(Marker(stamp.position, 1))) as batches:
        async for batch in batches:
            if batch.rows:
                assert keys(batch) == [1]
                break
    assert len(pushed.listeners) == 1


async def test_source_without_position_after_a_restart(jsonl: Any, tmp_path: Path) -> None:
    """A position that was never named holds for one run only: another one reports it as lost, not as now."""
    _, write = jsonl
    write('{"id": 1}\n')
    connector = Silent(SourceConfig(type="jsonl", parameters={"folder": str(tmp_path)}))
    await connector.connect()
    source = RecordSource(connector, settings(), "silent")
    assert "has no get_position" in (await source.preflight())[0]
    stamp = await source.now()
    write('{"id": 2}\n')
    async with aclosing(source.batches(Marker(stamp.position, 1))) as batches:
        batch = await anext(batches)
        while not batch.rows:
            batch = await anext(batches)
    assert keys(batch) == [2]
    restarted = RecordSource(connector, settings(), "silent")
    with pytest.raises(PositionLost, match="copied again"):
        await anext(restarted.batches(Marker(stamp.position, 1)))
    [after] = await take(restarted, batch.marker.position["marker"], 1)
    assert after.rows == 0


async def test_position_that_is_none_is_refused() -> None:
    """get_position must name a position; None would mean "from now on" after each restart."""
    with pytest.raises(SourceRefused, match="get_position returned None"):
        await RecordSource(Listed([], position=None), settings(), "listed").now()


async def test_replaced_file_is_a_lost_position(jsonl: Any, tmp_path: Path) -> None:
    """The example notices a file that became shorter than what was read of it."""
    connector, write = jsonl
    write('{"id": 1}\n{"id": 2}\n')
    await connector.connect()
    [batch] = await take(RecordSource(connector, settings(), "jsonl"), {}, 1)
    (tmp_path / "shop" / "items.jsonl").write_text('{"id": 9}\n')
    with pytest.raises(PositionLost, match="was replaced"):
        await take(RecordSource(connector, settings(), "jsonl"), batch.marker.position["marker"], 1)


async def test_malformed_line_stops_where_it_is(jsonl: Any) -> None:
    """A line that is no row stops the source with file and byte; it is never passed over."""
    connector, write = jsonl
    write('{"id": 1}\n{"nokey": 2}\n')
    await connector.connect()
    with pytest.raises(SourceRefused, match=r"ends at byte 23 of .*items\.jsonl .*field 'id'"):
        await take(RecordSource(connector, settings(), "jsonl"), {}, 2)


async def test_folder_that_is_gone_is_an_outage(jsonl: Any, tmp_path: Path) -> None:
    """A folder that is not mounted is never taken for a source without tables."""
    connector, write = jsonl
    write('{"id": 1}\n')
    await connector.connect()
    source = RecordSource(connector, settings(), "jsonl")
    tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-gone"))
    with pytest.raises(Unavailable):
        await source.tables()
    with pytest.raises(Unavailable, match="does not answer"):
        await source.preflight()


# -- snapshots ---------------------------------------------------------------------------------------------


async def test_snapshot_pages_are_bounded() -> None:
    """Pages end at rows and at bytes; all rows have one version, below that of any later change."""
    listed = Listed([event(n, data={"id": n, "text": "x" * (5000 if n == 4 else 10)}) for n in range(1, 8)])
    source = RecordSource(listed, settings(), "listed")
    pages = await async_list(source.snapshot("items", 3, 1000))
    assert [[change.key for change in page.changes] for page in pages] == [[1, 2, 3], [4], [5, 6, 7]]
    versions = {change.version for page in pages for change in page.changes}
    assert len(versions) == 1
    assert (await source.now()).version > versions.pop()
    assert all(page.key_field == "id" for page in pages)
    [stamped] = await async_list(source.snapshot("items", 10, 10**6, version=5))
    assert {change.version for change in stamped.changes} == {5}


async def test_snapshot_of_deletes_is_refused() -> None:
    """A snapshot that yields anything but rows is a fault of the connector."""
    listed = Listed([event(1, operation=OperationType.DELETE)])
    with pytest.raises(SourceRefused, match="get_full_snapshot of 'items' must yield rows"):
        await async_list(RecordSource(listed, settings(), "listed").snapshot("items", 3, 1000))


async def test_identity_names_type_and_database() -> None:
    """A simple source is known by its type and the database; it has no known headroom."""
    source = RecordSource(Listed([]), settings(database="warehouse"), "listed")
    identity = await source.identity()
    assert (identity.cluster, identity.database) == ("listed", "warehouse")
    assert await source.headroom_seconds(Marker({}, 1)) is None
    await source.close()
    await source.close()
