"""A source of the full level in front of a destination of the simple level. Its own batches are used, because the
simple methods of such a source cannot express a drop or a rename."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from cartridge_warp.connectors.protocols import SourceUnit
from cartridge_warp.kernel import decode
from cartridge_warp.observe.events import Observer
from cartridge_warp.records import Batch, Bounds, Change, Marker, Op, Position, SourceIdentity, Stamp, TableBatch

__all__ = ["UnitRecords"]


class UnitRecords:
    """What `SequentialSession` needs of a source, by way of a `SourceUnit`."""

    def __init__(self, unit: SourceUnit, observer: Observer) -> None:
        self.observer: Observer | None = observer
        unit.observer = observer
        self._unit = unit

    async def preflight(self) -> list[str]:
        """See `BatchSource.preflight`."""
        return await self._unit.preflight()

    async def identity(self) -> SourceIdentity:
        """See `BatchSource.identity`."""
        return await self._unit.identity()

    async def now(self) -> Stamp:
        """A position that every later change comes after."""
        return await self._unit.now()

    async def tables(self) -> list[str]:
        """Names of the collections that exist now and can be mirrored."""
        return [found.name for found in await self._unit.collections() if found.reason is None]

    async def snapshot(self, table: str, batch_rows: int, max_bytes: int) -> AsyncGenerator[TableBatch, None]:
        """Every document of a collection, page by page, each as of its own present."""
        rest: Bounds | None = Bounds()
        while rest is not None:
            stamp = await self._unit.moment()
            page = await self._unit.read_chunk(table, rest, stamp, batch_rows, max_bytes)
            found = page.keys or [decode(each).get(page.key_field or "") for each in page.documents]
            pairs = zip(found, page.documents, strict=True)
            changes = [Change(Op.UPSERT, key, stamp.version, document) for key, document in pairs]
            if changes:
                yield TableBatch(table, changes, page.key_field)
            rest = page.rest

    def batches(self, marker: Marker) -> AsyncGenerator[Batch, None]:
        """See `BatchSource.batches`."""
        return self._unit.batches(marker)

    async def complete(self, batch: Batch) -> None:
        """See `BatchSource.complete`."""
        await self._unit.complete(batch)

    def passed(self, position: Position, stamp: Stamp) -> bool:
        """See `BatchSource.passed`."""
        return self._unit.passed(position, stamp)

    async def headroom_seconds(self, marker: Marker) -> float | None:
        """See `BatchSource.headroom_seconds`."""
        return await self._unit.headroom_seconds(marker)
