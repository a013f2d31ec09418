"""Documents into a real PostgreSQL by the core's own steps, without a source server: for what the test server
refuses to store (dates after the year 9999, keys that differ only in their binary subtype), and for moments that
only a test can arrange."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import bson
from bson.codec_options import CodecOptions, DatetimeConversion

from cartridge_warp.config import UnitSettings
from cartridge_warp.connectors.postgresql import PostgreSQLDestinationConnector
from cartridge_warp.connectors.postgresql.target import PostgreSQLTarget
from cartridge_warp.core.batch import Budget, compact
from cartridge_warp.core.session import Session
from cartridge_warp.kernel import decode
from cartridge_warp.observe.events import Event, Observer
from cartridge_warp.records import (
    Barrier,
    Batch,
    BatchMarker,
    Bounds,
    Change,
    ChunkPage,
    Collection,
    Op,
    OperationType,
    SourceIdentity,
    Stamp,
    TableBatch,
)

__all__ = ["Direct", "delete", "direct", "encoded", "upsert"]

_OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
START = 1 << 40  # the version before the first change


def encoded(document: Mapping[str, Any] | bytes) -> bytes:
    """Raw BSON of a document."""
    return document if isinstance(document, bytes) else bson.encode(document, codec_options=_OPTIONS)


def upsert(version: int, document: Mapping[str, Any] | bytes, **parts: Any) -> Change:
    """The insert of a document, at a version."""
    raw = encoded(document)
    return Change(Op.UPSERT, decode(raw)["_id"], START + version, raw, 1000, **parts)


def delete(version: int, key: Any) -> Change:
    """A delete, at a version."""
    return Change(
        Op.DELETE, decode(encoded({"_id": key}))["_id"], START + version, None, 1000, None, OperationType.DELETE
    )


class Direct:
    """A session whose source is what the test hands it. Implements as much of `SourceUnit` as the steps need."""

    observer: Observer | None = None

    def __init__(self, target: PostgreSQLTarget, settings: UnitSettings) -> None:
        self.events: list[Event] = []
        self.documents: dict[str, list[bytes]] = {}
        self.clock = 0
        self.target = target
        self.session = Session(
            settings, self, target, Observer(self.events.append), Budget(),  # type: ignore[arg-type]
            stop=asyncio.Event(), once=False,
        )  # fmt: skip

    def heard(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def stamp(self) -> Stamp:
        return Stamp(START + self.clock, {"at": self.clock}, datetime.now(UTC))

    async def moment(self) -> Stamp:
        return self.stamp()

    async def collections(self) -> list[Collection]:
        return [Collection(name) for name in self.documents]

    async def key_sample(self, table: str) -> list[Any]:
        ends = self.documents.get(table, [])
        return [decode(raw)["_id"] for raw in (ends[:1] + ends[-1:])]

    async def plan_chunks(self, table: str, parts: int) -> list[Bounds]:
        return [Bounds()]

    async def read_chunk(self, table: str, bounds: Bounds, stamp: Stamp, rows: int, max_bytes: int) -> ChunkPage:
        return ChunkPage(self.documents.get(table, []), None)

    async def stream(self, *changes: Change, table: str = "t") -> None:
        """Commit one batch of changes."""
        versions = [change.version - START for change in changes]
        self.clock = max([self.clock, *versions])
        batch = Batch(BatchMarker({"at": self.clock}, None, len(changes)), {table: TableBatch(table, list(changes))})
        compact(batch, self.session.marker.version_offset)
        await self.target.prepare(batch)
        await self.session._commit(batch)

    async def barrier(
        self, version: int, kind: str = "drop", *, tables: Sequence[str] | None = ("t",), again: Sequence[str] = ()
    ) -> None:
        """Commit a barrier."""
        self.clock = max(self.clock, version)
        barrier = Barrier(START + version, kind, None if tables is None else tuple(tables), tuple(again))
        await self.session._commit(Batch(BatchMarker({"at": version}), barrier=barrier))

    async def snapshot(self, **documents: Sequence[Mapping[str, Any] | bytes]) -> None:
        """Copy collections that hold these documents."""
        self.documents |= {name: [encoded(each) for each in found] for name, found in documents.items()}
        await self.session.snapshotter.plan()
        for name, state in (await self.target.tables()).items():
            if state.state == "snapshotting":
                await self.session.snapshotter._table(name, state)


@asynccontextmanager
async def direct(uri: str, settings: UnitSettings) -> AsyncIterator[Direct]:
    """A target that is open, with its first position stored."""
    connector = PostgreSQLDestinationConnector(uri)
    await connector.connect()
    try:
        target = connector.target(settings)
        await target.open(SourceIdentity("direct", settings.database))
        found = Direct(target, settings)
        found.session.marker = await target.marker() or await target.create_marker(found.stamp())
        yield found
    finally:
        await connector.disconnect()
