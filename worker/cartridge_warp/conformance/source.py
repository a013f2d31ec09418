"""What every source must do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cartridge_warp.conformance.contract import LARGE, UNICODE, SourceUnderTest
from cartridge_warp.connectors.base import SourceConnector
from cartridge_warp.connectors.calls import Ahead, Pause, changes, snapshots
from cartridge_warp.errors import WarpError
from cartridge_warp.records import ChangeEvent, OperationType, Record

__all__ = ["SourceConformance"]

Seen = tuple[str, int, str | None]
"""Of one event: the table, the key, and the row's `text`; None for a delete."""


class SourceConformance:
    """Subclass it; each test takes the fixture `conformant_source`."""

    pytestmark = pytest.mark.asyncio

    async def test_connecting_and_disconnecting_twice(self, conformant_source: SourceUnderTest) -> None:
        """Connecting or disconnecting again is harmless, also before the first connection."""
        connector = conformant_source.new()
        await connector.disconnect()
        await connector.connect()
        await connector.connect()
        assert await connector.test_connection(), "test_connection is false right after connect"
        await connector.disconnect()
        await connector.disconnect()

    async def test_answers_for_itself(self, conformant_source: SourceUnderTest) -> None:
        """test_connection is false, not an exception, once the source is gone; connect raises our errors."""
        async with _open(conformant_source) as connector:
            await conformant_source.break_off()
            assert not await connector.test_connection(), "test_connection is true though the source is gone"
        late = conformant_source.new()
        with pytest.raises(WarpError):
            await late.connect()
        await late.disconnect()

    async def test_schema_names_tables_and_keys(self, conformant_source: SourceUnderTest) -> None:
        """get_schema names every table and its key."""
        await _put(conformant_source, "first", 1, "a")
        await _put(conformant_source, "second", 1, "b")
        async with _open(conformant_source) as connector:
            schema = await connector.get_schema(conformant_source.schema)
        tables = {table.name: table for table in schema.tables}
        assert tables.keys() >= {"first", "second"}, f"get_schema names only {sorted(tables)}"
        assert list(tables["first"].primary_keys) == [conformant_source.key], "get_schema names another key"

    async def test_snapshot_is_complete_and_current(self, conformant_source: SourceUnderTest) -> None:
        """A snapshot holds each row once, as it is now, with its key; deleted rows are not in it."""
        source = conformant_source
        for number in range(25):
            await _put(source, "items", number, f"row {number}")
        await _put(source, "items", 3, "changed")
        await source.remove("items", 7)
        async with _open(source) as connector:
            rows = await _snapshot(source, connector, "items", 10)
        expected = {number: f"row {number}" for number in range(25)} | {3: "changed"}
        del expected[7]
        assert sorted(_key(source, row) for row in rows) == sorted(expected), "rows are missing or repeated"
        assert {_key(source, row): row.data["text"] for row in rows} == expected, "a row is not as it is now"
        assert all(row.data[source.key] == _key(source, row) for row in rows), "data lacks the key field"

    async def test_snapshot_of_an_emptied_table(self, conformant_source: SourceUnderTest) -> None:
        """A table whose rows are all gone has an empty snapshot."""
        await _put(conformant_source, "items", 1, "a")
        await conformant_source.remove("items", 1)
        async with _open(conformant_source) as connector:
            assert await _snapshot(conformant_source, connector, "items", 10) == []

    async def test_nothing_between_position_and_stream(self, conformant_source: SourceUnderTest) -> None:
        """What happens after the first position was taken, and before changes are read, is delivered."""
        await _put(conformant_source, "items", 1, "before")
        async with _open(conformant_source) as connector:
            start = await _start(conformant_source, connector)
            await _put(conformant_source, "items", 2, "after")
            await _expect(conformant_source, connector, start, [("items", 2, "after")])

    async def test_operations_in_order(self, conformant_source: SourceUnderTest) -> None:
        """Inserts, updates and deletes of a key arrive in order; all but deletes carry the whole row."""
        source = conformant_source
        async with _open(source) as connector:
            start = await _start(source, connector)
            await _put(source, "items", 1, "one")
            await _put(source, "items", 1, "two")
            await source.remove("items", 1)
            await _put(source, "items", 1, "three")
            expected: list[Seen] = [
                ("items", 1, "one"), ("items", 1, "two"), ("items", 1, None), ("items", 1, "three")
            ]  # fmt: skip
            events = await _expect(source, connector, start, expected)
        assert all(event.schema_name == source.schema for event in events), "events name another schema"

    async def test_resumes_after_every_marker(self, conformant_source: SourceUnderTest) -> None:
        """Whatever event was the last one, a restarted connector goes on behind it: no loss, no gap."""
        source = conformant_source
        async with _open(source) as connector:
            start = await _start(source, connector)
            history = await _history(source)
            events = await _expect(source, connector, start, history)
        for count, event in enumerate(events, 1):
            rest = [_seen(source, later) for later in events[count:]]
            async with _open(source) as restarted:
                await _expect(source, restarted, _stored(event.position_marker), rest)

    async def test_left_and_taken_up(self, conformant_source: SourceUnderTest) -> None:
        """A stream that is closed in the middle can be opened again on the same connector."""
        source = conformant_source
        async with _open(source) as connector:
            start = await _start(source, connector)
            history = await _history(source)
            first = (await _follow(source, connector, start, lambda events: len(events) >= 2))[:2]
            marker = first[-1].position_marker
            events = await _follow(
                source, connector, marker, lambda later: _complete(source, [*first, *later], history)
            )
        _check(source, [*first, *events], history)

    async def test_calls_of_one(self, conformant_source: SourceUnderTest) -> None:
        """A batch size of one delivers everything, too."""
        source = conformant_source
        async with _open(source) as connector:
            start = await _start(source, connector)
            history = await _history(source)
            await _expect(source, connector, start, history, batch_size=1)

    async def test_markers_are_json(self, conformant_source: SourceUnderTest) -> None:
        """Each marker is a JSON value, never None, and the same after it was stored."""
        source = conformant_source
        async with _open(source) as connector:
            start = await _start(source, connector)
            events = await _expect(source, connector, start, await _history(source))
        for event in events:
            assert event.position_marker is not None, "a position_marker is None"
            assert _stored(event.position_marker) == event.position_marker, "a marker changes when it is stored"

    async def test_large_and_odd_text(self, conformant_source: SourceUnderTest) -> None:
        """A value of 1 MiB and text of many scripts arrive unchanged by both ways."""
        source = conformant_source
        async with _open(source) as connector:
            start = await _start(source, connector)
            await _put(source, "items", 1, UNICODE)
            await _put(source, "items", 2, LARGE)
            await _expect(source, connector, start, [("items", 1, UNICODE), ("items", 2, LARGE)])
            rows = await _snapshot(source, connector, "items", 10)
        found = {_key(source, row): row.data["text"] for row in rows}
        assert found == {1: UNICODE, 2: LARGE}, "a snapshot changes large or odd text"


@asynccontextmanager
async def _open(source: SourceUnderTest) -> AsyncIterator[SourceConnector]:
    connector = source.new()
    await connector.connect()
    try:
        yield connector
    finally:
        await connector.disconnect()


async def _put(source: SourceUnderTest, table: str, key: int, text: str) -> None:
    await source.put(table, {source.key: key, "text": text, "size": key / 4, "active": key % 2 == 0})


async def _history(source: SourceUnderTest) -> list[Seen]:
    """A few changes of two tables."""
    for number in range(4):
        await _put(source, "first", number, f"a{number}")
        await _put(source, "second", number, f"b{number}")
    await source.remove("first", 2)
    await _put(source, "second", 1, "last")
    first: list[Seen] = [("first", number, f"a{number}") for number in range(4)]
    second: list[Seen] = [("second", number, f"b{number}") for number in range(4)]
    return [*first, ("first", 2, None), *second, ("second", 1, "last")]


async def _start(source: SourceUnderTest, connector: SourceConnector) -> Any:
    """The present position. A source that cannot name it stands where it was first asked for changes."""
    get_position = getattr(connector, "get_position", None)
    if get_position is not None:
        marker = await get_position(source.schema)
        assert marker is not None, "get_position returned None"
        return _stored(marker)
    ahead = Ahead(await changes(connector, source.schema, None, 1000))
    await ahead.ready(min(1.0, source.patience))
    await ahead.close()
    return None


async def _snapshot(source: SourceUnderTest, connector: SourceConnector, table: str, batch_size: int) -> list[Record]:
    return [record async for record in await snapshots(connector, source.schema, table, batch_size)]


async def _follow(
    source: SourceUnderTest,
    connector: SourceConnector,
    marker: Any,
    enough: Callable[[Sequence[ChangeEvent]], bool],
    batch_size: int = 1000,
) -> list[ChangeEvent]:
    """Events after `marker` until there are enough, or patience ends. Asks again as the worker does."""
    loop, events = asyncio.get_running_loop(), list[ChangeEvent]()
    deadline = loop.time() + source.patience
    while not enough(events) and loop.time() < deadline:
        ahead = Ahead(await changes(connector, source.schema, marker, batch_size))
        try:
            while not enough(events):
                event = await ahead.next(max(0.0, deadline - loop.time()))
                if isinstance(event, Pause):
                    break
                events.append(event)
                marker = _stored(event.position_marker)
        finally:
            await ahead.close()
        await asyncio.sleep(0.01)
    return events


async def _expect(
    source: SourceUnderTest,
    connector: SourceConnector,
    marker: Any,
    expected: Sequence[Seen],
    batch_size: int = 1000,
) -> list[ChangeEvent]:
    """The events after `marker`, which must bring all that is expected."""
    events = await _follow(source, connector, marker, lambda found: _complete(source, found, expected), batch_size)
    _check(source, events, expected)
    return events


def _complete(source: SourceUnderTest, events: Sequence[ChangeEvent], expected: Sequence[Seen]) -> bool:
    """True when each table's events end with those expected: earlier ones may come again, none may lack, and
    the order between tables is free."""
    found = [_seen(source, event) for event in events]
    for table in {each[0] for each in expected}:
        wanted = [each for each in expected if each[0] == table]
        if [each for each in found if each[0] == table][-len(wanted) :] != wanted:
            return False
    return True


def _check(source: SourceUnderTest, events: Sequence[ChangeEvent], expected: Sequence[Seen]) -> None:
    found = [(table, key, _short(text)) for table, key, text in (_seen(source, event) for event in events)]
    wanted = [(table, key, _short(text)) for table, key, text in expected]
    assert _complete(source, events, expected), f"changes are lost or out of order: {found}, expected {wanted}"


def _seen(source: SourceUnderTest, event: ChangeEvent) -> Seen:
    record = event.record
    gone = record.operation is OperationType.DELETE
    return record.table_name, _key(source, record), None if gone else record.data.get("text", "(no text)")


def _key(source: SourceUnderTest, record: Record) -> int:
    assert list(record.primary_key_values) == [source.key], "primary_key_values must hold the key and only it"
    return int(record.primary_key_values[source.key])


def _stored(marker: Any) -> Any:
    return json.loads(json.dumps(marker, allow_nan=False))


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) < 80 else f"{text[:40]}... ({len(text)} characters)"
