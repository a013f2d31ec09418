"""Ordinary life in the demo's source: inserts, updates, replacements, deletes, and fields that nobody had."""

from __future__ import annotations

import random
import re
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bson import Binary, DatetimeMS, Int64, ObjectId
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import DuplicateKeyError

from cartridge_warp.cli.demo_data import CODEC, Client

__all__ = ["NEW_FIELD", "PULSE_FIELD", "Traffic"]

NEW_FIELD = "reviewed_at"
PULSE_FIELD = "demo_pulse"
_PATTERNS = 200  # documents of each collection that new ones are modelled on
_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


@dataclass
class _Herd:
    """One collection, the keys that live in it now, and documents to model new ones on."""

    collection: AsyncCollection[dict[str, Any]]
    keys: list[Any] = field(default_factory=list)
    patterns: list[dict[str, Any]] = field(default_factory=list)
    fewest: int = 0


class Traffic:
    """Makes changes to the given (database, collection) pairs, in an order that `seed` decides."""

    def __init__(self, client: Client, tables: Sequence[tuple[str, str]], seed: int = 1) -> None:
        self.counts: Counter[str] = Counter()
        self.chance = random.Random(seed)  # noqa: S311 - sample data, no secrets
        self.pulses = 0
        self._fresh = 10_000_000
        self._herds = [_Herd(client[database].get_collection(name, codec_options=CODEC)) for database, name in tables]
        self._pulse_key: Any = None

    @property
    def total(self) -> int:
        """How many changes were made so far."""
        return sum(self.counts.values())

    @property
    def pulse_table(self) -> tuple[str, str]:
        """Database and collection of the document that `pulse` changes."""
        collection = self._herds[0].collection
        return collection.database.name, collection.name

    async def learn(self) -> None:
        """Read the keys and some documents of each collection. Empty collections are left alone."""
        for herd in self._herds:
            herd.keys = [document["_id"] async for document in herd.collection.find({}, {"_id": 1})]
            herd.patterns = await herd.collection.find({}).limit(_PATTERNS).to_list()
            herd.fewest = len(herd.keys) // 2
        self._herds = [herd for herd in self._herds if herd.keys]
        if self._herds:
            self._pulse_key = self._herds[0].keys.pop(0)  # out of reach of deletes

    async def change(self, number: int) -> None:
        """Make so many changes, one after the other, as an application would."""
        for _ in range(number if self._herds else 0):
            herd = self.chance.choice(self._herds)
            kind = self.chance.choices(["insert", "update", "replace", "delete"], [45, 30, 10, 15])[0]
            if kind == "insert" or not herd.keys:
                await self._insert(herd)
            elif kind == "delete" and len(herd.keys) > herd.fewest:
                key = herd.keys.pop(self.chance.randrange(len(herd.keys)))
                await herd.collection.delete_one({"_id": key})
                self.counts["deletes"] += 1
            else:
                await self._update(herd, whole=kind == "replace")

    async def pulse(self) -> int:
        """Change one document of the first collection, so that it holds a number that was never seen before;
        returns the number. Seeing it in the destination is what lag is measured by."""
        self.pulses += 1
        change = {"$set": {PULSE_FIELD: self.pulses}}
        await self._herds[0].collection.update_one({"_id": self._pulse_key}, change)
        self.counts["updates"] += 1
        return self.pulses

    async def _insert(self, herd: _Herd) -> None:
        pattern = self.chance.choice(herd.patterns)
        self._fresh += 1
        key = _similar_key(pattern["_id"], self._fresh)
        try:
            await herd.collection.insert_one({**pattern, "_id": key})
        except DuplicateKeyError:
            return
        herd.keys.append(key)
        self.counts["inserts"] += 1

    async def _update(self, herd: _Herd, *, whole: bool) -> None:
        key, pattern = self.chance.choice(herd.keys), self.chance.choice(herd.patterns)
        names = [name for name in pattern if name != "_id"]
        plain = [name for name in names if _PLAIN_NAME.match(name)] or [NEW_FIELD]
        if whole and len(plain) == len(names):
            await herd.collection.replace_one({"_id": key}, {**pattern, "_id": key})
        elif self.chance.random() < 0.2:
            await herd.collection.update_one({"_id": key}, {"$unset": {self.chance.choice(plain): ""}})
        else:
            values = {name: pattern.get(name) for name in self.chance.sample(plain, min(2, len(plain)))}
            seen = {NEW_FIELD: DatetimeMS(time.time_ns() // 1_000_000)}
            await herd.collection.update_one({"_id": key}, {"$set": values | seen})
        self.counts["updates"] += 1


def _similar_key(key: Any, number: int) -> Any:
    """A key of the same type that no document has; an ObjectId where the type has but a few values."""
    makers: dict[type, Any] = {
        int: lambda: number,
        Int64: lambda: Int64(number),
        float: lambda: number + 0.5,
        str: lambda: f"{key[:40]}~{number}",
        dict: lambda: {**key, "number": number},
        DatetimeMS: lambda: DatetimeMS(int(key) + number),
        Binary: lambda: Binary(uuid.uuid4().bytes, key.subtype),
        bytes: lambda: uuid.uuid4().bytes,
    }
    return makers.get(type(key), ObjectId)()
