"""Updates carry no document: read the present ones by `_id`, once per collection and batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import bson
from bson.timestamp import Timestamp
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.read_concern import ReadConcern

from cartridge_warp.connectors.mongodb.keys import key_of, raw_query
from cartridge_warp.connectors.mongodb.position import position_time
from cartridge_warp.connectors.mongodb.reads import session_at, split_documents
from cartridge_warp.connectors.mongodb.sizes import Sizes
from cartridge_warp.kernel.bson import identity
from cartridge_warp.records import Batch, Change, Op, OperationType, TableBatch

__all__ = ["Documents"]

_SLICE_IDS: Final = 1000
_SLICE_BYTES: Final = 1 << 20
Found = dict[object, bytes]


class Documents:
    """Completes batches of one database.

    A document is looked up by the collection's name, so the name must mean the collection that the event was
    about: its UUID is compared before and after. The answer of the last comparison serves as the next one's
    "before", since a UUID never comes back.
    """

    def __init__(self, database: AsyncDatabase[Any], sizes: Sizes, timeout_ms: int) -> None:
        self._database = database
        self._majority = database.with_options(read_concern=ReadConcern("majority"))
        self._sizes = sizes
        self._timeout_ms = timeout_ms
        self._known: dict[str, bytes | None] = {}

    async def complete(self, batch: Batch) -> None:
        """Turn each FETCH into an upsert or a delete, or leave it out when its collection is another now."""
        tables = [table for table in batch.tables.values() if any(_waits(change) for change in table.changes)]
        if not tables:
            return
        await self._compare_before(tables)
        time = position_time(batch.marker.position)
        found: list[Found] = []
        for table in tables:
            changes = [change for change in table.changes if self._is_same(table.table, change)]
            found.append(await self._find(table.table, changes, time))
        before = dict(self._known)
        await self._learn(table.table for table in tables)
        for table, documents in zip(tables, found, strict=True):
            same = self._known.get(table.table) == before.get(table.table)
            batch.bytes += sum(map(len, documents.values()))
            table.changes = [
                change
                for change in table.changes
                if not _waits(change) or self._settle(table.table, change, documents, same=same)
            ]

    def _settle(self, table: str, change: Change, documents: Found, *, same: bool) -> bool:
        """Give the change its document. False when it must be left out: a barrier follows and settles it."""
        if change.origin is not None and not (same and self._is_same(table, change)):
            return False
        image = documents.get(identity(change.key))
        if image is None:
            change.op, change.operation = Op.DELETE, OperationType.DELETE
        else:
            change.op, change.image = Op.UPSERT, image
            if change.operation is OperationType.DELETE:
                change.operation = OperationType.UPDATE
        return True

    def _is_same(self, table: str, change: Change) -> bool:
        """True when the name means the change's collection, as far as is known. Where events have no UUIDs,
        each barrier brings a re-snapshot instead."""
        return change.origin is None or self._known.get(table) == change.origin

    async def _compare_before(self, tables: list[TableBatch]) -> None:
        unsure = [
            table.table
            for table in tables
            if any(_waits(change) and not self._is_same(table.table, change) for change in table.changes)
        ]
        if unsure:
            await self._learn(unsure)

    async def _learn(self, tables: Iterable[str]) -> None:
        """Ask which collections bear these names now."""
        names = list(tables)
        self._known.update(dict.fromkeys(names))
        async for each in await self._database.list_collections(filter={"name": {"$in": names}}):
            uuid = each.get("info", {}).get("uuid")
            self._known[each["name"]] = None if uuid is None else bytes(uuid)

    async def _find(self, table: str, changes: list[Change], time: Timestamp) -> Found:
        """The present documents of the changes' keys, raw, by the identity of their key."""
        keys = {identity(change.key): change.key for change in changes if _waits(change)}
        found: Found = {}
        for part in _slices(keys.values()):
            found.update(await self._find_part(table, part, time))
        self._sizes.saw(table, len(found), sum(map(len, found.values())))
        return found

    async def _find_part(self, table: str, keys: list[Any], time: Timestamp) -> Found:
        found: Found = {}
        async with session_at(self._database.client, time) as session:
            cursor = self._majority[table].find_raw_batches(
                raw_query("_id", {"$in": keys}),
                session=session,
                batch_size=len(keys) + 1,
                max_time_ms=self._timeout_ms,
            )
            async for raw in cursor:
                found.update((identity(key_of(document)), document) for document in split_documents(raw))
        return found


def _waits(change: Change) -> bool:
    return change.op is Op.FETCH


def _slices(keys: Iterable[Any]) -> Iterator[list[Any]]:
    """Parts of a size that fits one query well."""
    part: list[Any] = []
    size = 0
    for key in keys:
        size += _rough_size(key)
        part.append(key)
        if len(part) >= _SLICE_IDS or size >= _SLICE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _rough_size(key: Any) -> int:
    return len(key) if isinstance(key, (str, bytes)) else len(bson.encode({"": key})) if isinstance(key, dict) else 16
