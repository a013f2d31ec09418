"""The documents of the benchmark, and the work of its writer. Everything follows from a number, so that every run
has the same documents."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from bson import Int64, ObjectId
from pymongo import DeleteOne, InsertOne, UpdateOne

__all__ = ["KINDS", "LARGE", "LAST", "Operation", "key", "large", "operations", "small", "tick"]

Operation = InsertOne[dict[str, Any]] | UpdateOne | DeleteOne

KINDS = ("insert", "update", "mix")
LARGE = 1_000_000  # bytes of a large document
LAST = 10_000_000  # numbers from here on mark the end of a piece of work
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_WORDS = ["amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "hazel"]


def key(number: int) -> ObjectId:
    """The `_id` of a document: ascending, as a driver makes them."""
    return ObjectId((0x6955B900 + number // 1000).to_bytes(4) + b"bench" + (number % 2**24).to_bytes(3))


def small(number: int) -> dict[str, Any]:
    """A document of 9 fields and 200 bytes."""
    return {
        "_id": key(number),
        "customer": key(number * 7 % 100_003),
        "number": number % 2**31,
        "quantity": Int64(number * 1_000_003),
        "amount": number * 0.25 + 0.1,
        "active": number % 3 == 0,
        "created": _BEGIN + timedelta(milliseconds=number * 137),
        "name": f"{_WORDS[number % 8]}-{number:08d}",
        "note": f"delivered to {_WORDS[number // 8 % 8]} street {number:012d}, 2nd door",
    }


def tick(number: int) -> dict[str, Any]:
    """The same with an integer key, of which the largest that has arrived is quickly asked for."""
    return {**small(number), "_id": number}


def large(number: int) -> dict[str, Any]:
    """A document of 9 fields and 1 MB, which does not compress well."""
    return {**small(number), "note": random.Random(number).randbytes(LARGE // 2).hex()}


def operations(kind: str, count: int, first: int, existing: int, turn: int) -> Iterator[Sequence[Operation]]:
    """`count` changes in parts of 1,000, each of another document: inserts get numbers from `first` on; updates
    and deletes take documents below `existing`, the even and the odd ones. `turn` keeps deletes of one call from
    being those of another."""
    chance = random.Random(f"{kind} {turn}")
    counts = {"insert": (count, 0, 0), "update": (0, count, 0), "mix": (count // 2, count * 3 // 10, count // 5)}
    inserts, updates, deletes = counts[kind]
    odd = range(1, existing, 2)[turn * deletes : (turn + 1) * deletes]
    work: list[Operation] = [InsertOne(small(number)) for number in range(first, first + inserts)]
    for number in chance.sample(range(0, existing, 2), min(updates, existing // 2)):
        work.append(UpdateOne({"_id": key(number)}, {"$set": {"amount": turn + number / 7, "active": True}}))
    work += [DeleteOne({"_id": key(number)}) for number in odd]
    if kind == "mix":
        chance.shuffle(work)
    for start in range(0, len(work), 1000):
        yield work[start : start + 1000]
