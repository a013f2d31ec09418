"""A simple source as a full `SourceUnit`, for a destination of the full level: its tables are copied beside
its stream, and rows and position commit together."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

from cartridge_warp.connectors.adapter import RecordSource
from cartridge_warp.records import Bounds, ChunkPage, Collection, Stamp, TableBatch

__all__ = ["RecordUnit"]


class RecordUnit(RecordSource):
    """Implements `SourceUnit`. A table is one chunk: a simple source cannot begin in the middle, so a copy
    that was interrupted reads it again from the start, which leads to the same rows."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._pages: dict[str, tuple[AsyncGenerator[TableBatch, None], int, int]] = {}

    async def moment(self) -> Stamp:
        """A version for now, without a position to stream from."""
        return Stamp(self._next_version(), {}, datetime.now(UTC))

    async def collections(self) -> list[Collection]:
        """The tables that exist and pass the filters."""
        return [Collection(name) for name in await self.tables()]

    async def key_sample(self, table: str) -> list[Any]:
        """Unknown without reading the table."""
        return []

    async def plan_chunks(self, table: str, parts: int) -> list[Bounds]:
        """The whole table."""
        return [Bounds()]

    async def read_chunk(self, table: str, bounds: Bounds, stamp: Stamp, rows: int, max_bytes: int) -> ChunkPage:
        """The next page of the table. All pages carry the version that was taken before the first was read:
        the source may show the table as it was then."""
        number = 0 if bounds.lower is None else json.loads(bounds.lower)
        going = self._pages.pop(table, None)
        if going is None or going[1] != number:
            if going is not None:
                await going[0].aclose()
            going = (self.snapshot(table, rows, max_bytes, stamp.version), number, stamp.version)
        pages, _, version = going
        page = await anext(pages, None)
        if page is None:
            return ChunkPage([], None, version=version)
        self._pages[table] = (pages, number + 1, version)
        return ChunkPage(
            [change.image for change in page.changes if change.image is not None],
            Bounds(lower=json.dumps(number + 1), after=True),
            version=version,
            keys=[change.key for change in page.changes],
            key_field=page.key_field,
        )

    async def close(self) -> None:
        """Close what was begun."""
        await super().close()
        for pages, _, _ in self._pages.values():
            await pages.aclose()
        self._pages.clear()
