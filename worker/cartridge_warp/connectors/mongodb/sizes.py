"""How large the documents of a collection are, so that memory can be bounded before they are read."""

from __future__ import annotations

from typing import Any, Final

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

__all__ = ["Sizes", "statistics"]

_UNKNOWN: Final = 1024
_OLD_WEIGHT: Final = 0.7


async def statistics(database: AsyncDatabase[Any], table: str) -> tuple[int, int]:
    """Estimated documents and bytes of a collection, without counting; zeros where it is not known."""
    try:
        cursor = await database[table].aggregate([{"$collStats": {"storageStats": {}}}])
        parts = [part.get("storageStats", {}) async for part in cursor]  # one for each shard
    except OperationFailure:
        return 0, 0
    return sum(int(part.get("count", 0)) for part in parts), sum(int(part.get("size", 0)) for part in parts)


class Sizes:
    """Bytes of an average document of each table: from the server's statistics at first, then from what is
    read."""

    def __init__(self, database: AsyncDatabase[Any]) -> None:
        self._database = database
        self._bytes: dict[str, float] = {}

    async def of(self, table: str) -> int:
        """The estimate for one table."""
        known = self._bytes.get(table)
        if known is None:
            rows, total = await statistics(self._database, table)
            known = self._bytes[table] = total / rows if rows and total else _UNKNOWN
        return int(known)

    def saw(self, table: str, rows: int, total: int) -> None:
        """Learn from documents that were read. Growth counts at once, shrinking slowly."""
        if rows:
            average = total / rows
            known = self._bytes.get(table, average)
            self._bytes[table] = max(average, known * _OLD_WEIGHT + average * (1 - _OLD_WEIGHT))
