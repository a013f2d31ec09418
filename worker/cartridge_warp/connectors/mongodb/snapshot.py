"""Copies collections in ranges of `_id`, each read at its own stamp."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from itertools import pairwise
from typing import Any, Final

from bson.objectid import ObjectId
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from cartridge_warp.config import UnitSettings
from cartridge_warp.connectors.mongodb.keys import dump_key, key_of, key_type, load_key, raw_query
from cartridge_warp.connectors.mongodb.position import position_time, version_of
from cartridge_warp.connectors.mongodb.reads import session_at, split_documents
from cartridge_warp.connectors.mongodb.sizes import Sizes, statistics
from cartridge_warp.kernel.bson import identity
from cartridge_warp.records import Bounds, ChunkPage, Collection, Stamp

__all__ = ["Ranges", "list_collections"]

_WORTH_SPLITTING: Final = 20_000
_SAMPLES_PER_RANGE: Final = 10
_LARGEST_SAMPLE: Final = 0.045  # above a twentieth of the collection $sample reads all of it
_STATISTICS_AT_ONCE: Final = 8
_LONGEST_WALK: Final = 60.0  # seconds; the older a page's stamp, the more rows the stream has overtaken
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
        self._walks: dict[tuple[str, Bounds], _Walk] = {}

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
        if parts < 2:
            return [Bounds()]
        rows, _ = await statistics(self._database, table)
        if rows < _WORTH_SPLITTING:
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
        """One page of a range. Documents in key order; the rest begins behind the last of them.

        The query goes on with the next page of the same range for a while, instead of seeking again: its
        documents are then still as of the stamp that it began with, which the page names.
        """
        walk = self._walks.pop((table, bounds), None)
        if walk is not None and walk.age > _LONGEST_WALK:
            await walk.close()
            walk = None
        if walk is None:
            walk = await self._begin(table, bounds, stamp, max(1, min(rows, max_bytes // await self._size(table) + 1)))
        try:
            page = await walk.page(rows, max_bytes)
        except BaseException:
            await walk.close()
            raise
        self._sizes.saw(table, len(page), sum(map(len, page)))
        rest = None
        if walk.more:
            rest = Bounds(dump_key(key_of(page[-1])), bounds.upper, after=True)
            older, self._walks[table, rest] = self._walks.get((table, rest)), walk
            if older is not None:
                await older.close()
        else:
            await walk.close()
        return ChunkPage(page, rest, sum(map(len, page)), version_of(position_time(walk.stamp.position)))

    async def _size(self, table: str) -> int:
        return max(1, await self._sizes.of(table))

    async def _begin(self, table: str, bounds: Bounds, stamp: Stamp, answer: int) -> _Walk:
        for left in [key for key, walk in self._walks.items() if walk.age > _LONGEST_WALK]:
            await self._walks.pop(left).close()  # of chunks that a barrier has voided
        options: dict[str, Any] = {}
        if bounds.lower is not None:
            options["min"] = raw_query("_id", load_key(bounds.lower))
        if bounds.upper is not None:
            options["max"] = raw_query("_id", load_key(bounds.upper))
        stack = AsyncExitStack()
        session = await stack.enter_async_context(session_at(self._database.client, position_time(stamp.position)))
        cursor = self._majority[table].find_raw_batches(
            {},
            sort=_BY_KEY,
            hint=_BY_KEY,  # with min and max; a plain $gte would skip keys of other types
            batch_size=answer,
            session=session,
            max_time_ms=self._timeout_ms + int(_LONGEST_WALK * 1000),
            **options,
        )
        stack.push_async_callback(cursor.close)
        seen = identity(load_key(bounds.lower)) if bounds.lower is not None and bounds.after else None
        return _Walk(stack, cursor, stamp, seen)

    async def close(self) -> None:
        """End the queries that were to go on."""
        while self._walks:
            await self._walks.popitem()[1].close()


class _Walk:
    """One query on its way through a range. `more` is False when the range has no further document."""

    def __init__(self, stack: AsyncExitStack, cursor: Any, stamp: Stamp, seen: object) -> None:
        self.stamp = stamp
        self.more = True
        self._stack = stack
        self._cursor = cursor
        self._seen = seen
        self._left: deque[bytes] = deque()
        self._began = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the query began."""
        return time.monotonic() - self._began

    async def page(self, rows: int, max_bytes: int) -> list[bytes]:
        """The next documents: at least one unless none is left, then as many as fit."""
        page: list[bytes] = []
        size = 0
        while await self._filled():
            if page and (len(page) >= rows or size + len(self._left[0]) > max_bytes):
                return page
            document = self._left.popleft()
            size += len(document)
            page.append(document)
        self.more = False
        return page

    async def _filled(self) -> bool:
        """Make sure that a document waits; False at the end."""
        while not self._left:
            raw = await anext(self._cursor, None)
            if raw is None:
                return False
            self._left.extend(split_documents(raw))
            seen, self._seen = self._seen, None
            if seen is not None and self._left and identity(key_of(self._left[0])) == seen:
                self._left.popleft()  # the lower end itself was copied with the page before
        return True

    async def close(self) -> None:
        """End the query on the server."""
        with suppress(PyMongoError):  # the server forgets it by itself when it cannot be told
            await self._stack.aclose()


def _interpolate(first: ObjectId, last: ObjectId, parts: int) -> list[ObjectId]:
    """ObjectIds that cut the span between two into equal parts."""
    low, high = (int.from_bytes(each.binary, "big") for each in (first, last))
    numbers = (low + (high - low) * part // parts for part in range(1, parts))
    return [ObjectId(number.to_bytes(_OBJECT_ID_BYTES, "big")) for number in numbers]
