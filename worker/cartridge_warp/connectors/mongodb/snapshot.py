"""Copies collections in ranges of `_id`, each read at its own stamp."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Final

from bson.objectid import ObjectId
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.read_concern import ReadConcern

from cartridge_warp.config import UnitSettings
from cartridge_warp.connectors.mongodb.keys import dump_key, key_of, key_type, load_key, raw_query
from cartridge_warp.connectors.mongodb.position import position_time
from cartridge_warp.connectors.mongodb.reads import session_at, split_documents
from cartridge_warp.connectors.mongodb.sizes import Sizes, statistics
from cartridge_warp.kernel.bson import identity
from cartridge_warp.records import Bounds, ChunkPage, Collection, Stamp

__all__ = ["Ranges", "list_collections"]

_WORTH_SPLITTING: Final = 20_000
_SAMPLES_PER_RANGE: Final = 10
_LARGEST_SAMPLE: Final = 0.045  # above a twentieth of the collection $sample reads all of it
_STATISTICS_AT_ONCE: Final = 8
_BY_KEY: Final = [("_id", 1)]
_OBJECT_ID_BYTES: Final = 12
_OBJECT_ID: Final = 0x07


async def list_collections(
    database: AsyncDatabase[Any], settings: UnitSettings, *, capped_allowed: bool
) -> list[Collection]:
    """What exists now and passes the filters, with estimated sizes of what can be mirrored."""
    limit = asyncio.Semaphore(_STATISTICS_AT_ONCE)

    async def describe(each: Mapping[str, Any]) -> Collection:
        reason = _reason(each, capped_allowed=capped_allowed)
        uuid = each.get("info", {}).get("uuid")
        rows = size = 0
        if reason is None:
            async with limit:
                rows, size = await statistics(database, each["name"])
        return Collection(each["name"], None if uuid is None else bytes(uuid).hex(), reason, rows, size)

    found = [each async for each in await database.list_collections() if settings.wants(each["name"])]
    return sorted(await asyncio.gather(*map(describe, found)), key=lambda collection: collection.name)


def _reason(each: Mapping[str, Any], *, capped_allowed: bool) -> str | None:
    """Why a collection cannot be mirrored, else None. Not every server says `timeseries` as the type."""
    options = each.get("options", {})
    if each["name"].startswith("system."):
        return "a collection of the system"
    if each.get("type") == "view" or "viewOn" in options:
        return "a view: it has no changes of its own, mirror what it reads"
    if each.get("type") == "timeseries" or "timeseries" in options:
        return "a time-series collection: MongoDB has no change streams for these"
    if options.get("capped") and not capped_allowed:
        return "a capped collection: before MongoDB 5.0 its own deletes are not in the stream"
    return None


class Ranges:
    """The ranges of `_id` of one database's collections, and the reading of them."""

    def __init__(self, database: AsyncDatabase[Any], sizes: Sizes, timeout_ms: int) -> None:
        self._database = database
        self._majority = database.with_options(read_concern=ReadConcern("majority"))
        self._sizes = sizes
        self._timeout_ms = timeout_ms

    async def ends(self, table: str) -> list[bytes]:
        """The first and the last document by the index on `_id`, with only that field."""
        ends: list[bytes] = []
        for direction in (1, -1):
            cursor = self._database[table].find_raw_batches(
                {}, {"_id": 1}, sort=[("_id", direction)], hint=_BY_KEY, limit=1
            )
            async for raw in cursor:
                ends.extend(split_documents(raw))
        return ends

    async def plan(self, table: str, parts: int) -> list[Bounds]:
        """At most `parts` ranges of about the same size. A small collection is one range."""
        rows, _ = await statistics(self._database, table)
        if rows < _WORTH_SPLITTING or parts < 2:
            return [Bounds()]
        ends = await self.ends(table)
        if len(ends) < 2:
            return [Bounds()]
        if {key_type(end) for end in ends} == {_OBJECT_ID}:
            # The index orders by type first: all keys in between are of this type too.
            cuts = _interpolate(key_of(ends[0]), key_of(ends[1]), parts)
        else:
            cuts = await self._sample(table, parts, rows)
        edges: list[str | None] = [None, *dict.fromkeys(map(dump_key, cuts)), None]
        return [Bounds(lower, upper) for lower, upper in pairwise(edges)]

    async def _sample(self, table: str, parts: int, rows: int) -> list[Any]:
        """Keys between the ranges, from a random sample that the server sorts by its own order."""
        size = max(1, min(parts * _SAMPLES_PER_RANGE, int(rows * _LARGEST_SAMPLE)))
        pipeline = [{"$sample": {"size": size}}, {"$project": {"_id": 1}}, {"$sort": {"_id": 1}}]
        keys: list[bytes] = []
        async for raw in await self._database[table].aggregate_raw_batches(pipeline):
            keys.extend(split_documents(raw))
        return [key_of(keys[len(keys) * part // parts]) for part in range(1, parts)] if keys else []

    async def read(self, table: str, bounds: Bounds, stamp: Stamp, rows: int, max_bytes: int) -> ChunkPage:
        """One page of a range. Documents in key order; the rest begins behind the last of them."""
        wanted = rows + 1 if bounds.after else rows
        per_answer = max(1, min(wanted, max_bytes // max(1, await self._sizes.of(table)) + 1))
        options: dict[str, Any] = {}
        if bounds.lower is not None:
            options["min"] = raw_query("_id", load_key(bounds.lower))
        if bounds.upper is not None:
            options["max"] = raw_query("_id", load_key(bounds.upper))
        async with session_at(self._database.client, position_time(stamp.position)) as session:
            cursor = self._majority[table].find_raw_batches(
                {},
                sort=_BY_KEY,
                hint=_BY_KEY,  # with min and max; a plain $gte would skip keys of other types
                limit=wanted,
                batch_size=per_answer,
                session=session,
                max_time_ms=self._timeout_ms,
                **options,
            )
            page = _Page(bounds, rows, max_bytes)
            async for raw in cursor:
                if page.add(split_documents(raw)):
                    break
            await cursor.close()
        self._sizes.saw(table, len(page.documents), page.bytes)
        return page.result()


class _Page:
    """Collects documents up to the bounds of a page."""

    def __init__(self, bounds: Bounds, rows: int, max_bytes: int) -> None:
        self.documents: list[bytes] = []
        self.bytes = 0
        self._bounds = bounds
        self._rows = rows
        self._max_bytes = max_bytes
        self._full = False
        self._seen = None if bounds.lower is None or not bounds.after else identity(load_key(bounds.lower))

    def add(self, documents: Iterable[bytes]) -> bool:
        """Take what fits. True when the page is full."""
        for document in documents:
            if self._seen is not None:
                seen, self._seen = self._seen, None
                if identity(key_of(document)) == seen:
                    continue
            if self.documents and self.bytes + len(document) > self._max_bytes:
                self._full = True
                break
            self.documents.append(document)
            self.bytes += len(document)
            if len(self.documents) >= self._rows:
                self._full = True
                break
        return self._full

    def result(self) -> ChunkPage:
        """The page with the range that is left."""
        rest = None
        if self._full:
            rest = Bounds(dump_key(key_of(self.documents[-1])), self._bounds.upper, after=True)
        return ChunkPage(self.documents, rest, self.bytes)


def _interpolate(first: ObjectId, last: ObjectId, parts: int) -> list[ObjectId]:
    """ObjectIds that cut the span between two into equal parts."""
    low, high = (int.from_bytes(each.binary, "big") for each in (first, last))
    numbers = (low + (high - low) * part // parts for part in range(1, parts))
    return [ObjectId(number.to_bytes(_OBJECT_ID_BYTES, "big")) for number in numbers]
