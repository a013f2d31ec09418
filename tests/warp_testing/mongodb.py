"""Helpers for tests of the MongoDB source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from cartridge_warp.config import SchemaConfig, SourceConfig, UnitSettings
from cartridge_warp.connectors.mongodb import MongoDBSourceConnector, MongoDBUnit
from cartridge_warp.observe.events import Event, Observer
from cartridge_warp.records import Batch, Change, Marker, Position


@asynccontextmanager
async def open_unit(
    uri: str, database: str, source: dict[str, Any] | None = None, **schema: Any
) -> AsyncIterator[MongoDBUnit]:
    """A connected unit on `database`; `heard` of its observer collects the notes."""
    config = SourceConfig(connection_string=uri, **(source or {}))
    connector = MongoDBSourceConnector(config)
    await connector.connect()
    unit = connector.unit(UnitSettings.of(SchemaConfig(name=database, **schema)))
    unit.observer = Observer()
    try:
        yield unit
    finally:
        await unit.close()
        await connector.disconnect()


def notes_of(unit: MongoDBUnit) -> list[Event]:
    """A list that fills with what the unit reports from now on."""
    heard: list[Event] = []
    assert unit.observer is not None
    unit.observer.add(heard.append)
    return heard


async def follow(
    unit: MongoDBUnit, position: Position, until: Callable[[list[Batch]], bool], *, seconds: float = 20
) -> list[Batch]:
    """Batches behind `position` until the condition holds."""
    batches: list[Batch] = []
    stream = unit.batches(Marker(position, 0))
    try:
        async with asyncio.timeout(seconds):
            async for batch in stream:
                batches.append(batch)
                if until(batches):
                    return batches
    finally:
        await stream.aclose()
    raise AssertionError("the stream ended")


def rows(count: int) -> Callable[[list[Batch]], bool]:
    """True when the batches hold so many changes."""
    return lambda batches: sum(batch.rows for batch in batches) >= count


def changes_of(batches: list[Batch], table: str) -> list[Change]:
    """All changes of one table in their order."""
    return [change for batch in batches if table in batch.tables for change in batch.tables[table].changes]
