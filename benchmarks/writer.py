"""What writes to the source, in a process of its own, so that it neither waits for the measuring nor slows it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import documents
from pymongo import MongoClient

__all__ = ["Writer"]

Client = MongoClient[dict[str, Any]]
BATCH = 1000
LARGE_BATCH = 8


class Writer:
    """Gives orders to the writing process, one at a time. Use it as a context."""

    def __init__(self, uri: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(uri, other), daemon=True)
        self._process.start()
        other.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def begin(self, order: str, database: str, **values: Any) -> None:
        """Start an order; `ended` waits for it."""
        self._pipe.send((order, database, values))

    def ended(self, seconds: float = 600) -> Any:
        """What the order came to."""
        if not self._pipe.poll(seconds):
            raise TimeoutError(f"the writer is not done within {seconds} s")
        result = self._pipe.recv()
        if isinstance(result, str):
            raise RuntimeError(f"the writer failed: {result}")
        return result

    def do(self, order: str, database: str, **values: Any) -> Any:
        """Start an order and wait for it."""
        self.begin(order, database, **values)
        return self.ended()


def _serve(uri: str, pipe: Connection) -> None:
    orders: dict[str, Callable[..., Any]] = {
        "load": _load, "load_large": _load_large, "change": _change, "change_large": _change_large, "tick": _tick,
    }  # fmt: skip
    with MongoClient(uri) as client:
        while True:
            try:
                order, database, values = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send(orders[order](client, database, **values))
            except Exception as error:
                pipe.send(f"{type(error).__name__}: {error}")


def _load(client: Client, database: str, rows: int) -> int:
    collection = client[database].rows
    for start in range(0, rows, BATCH):
        collection.insert_many([documents.small(n) for n in range(start, min(start + BATCH, rows))], ordered=False)
    return rows


def _load_large(client: Client, database: str, rows: int) -> int:
    collection = client[database].rows
    for start in range(0, rows, LARGE_BATCH):
        collection.insert_many([documents.large(n) for n in range(start, min(start + LARGE_BATCH, rows))])
    return rows


def _change(
    client: Client, database: str, kind: str, count: int, first: int, existing: int, turn: int
) -> tuple[float, float, int]:
    """Make changes as fast as the source takes them, then insert the document that marks their end. The documents
    are made before, so that the time is the source's. Returns begin, end and the number of changes."""
    work = list(documents.operations(kind, count, first, existing, turn))
    collection = client[database].rows
    began = time.monotonic()
    for part in work:
        collection.bulk_write(part, ordered=False)
    ended = time.monotonic()
    collection.insert_one(documents.small(documents.LAST + turn))
    return began, ended, sum(map(len, work))


def _change_large(client: Client, database: str, rows: int, turn: int) -> int:
    """Insert as many large documents again, and update the old ones."""
    collection = client[database].rows
    for start in range(0, rows, LARGE_BATCH):
        numbers = range(start, min(start + LARGE_BATCH, rows))
        collection.insert_many([documents.large(rows + n) for n in numbers])
        for n in numbers:
            collection.update_one({"_id": documents.key(n)}, {"$set": {"amount": -1.5}})
    collection.insert_one(documents.small(documents.LAST + turn))
    return 2 * rows


def _tick(client: Client, database: str, first: int, rate: float, seconds: float) -> list[float]:
    """Insert single documents at a steady rate; returns the moment at which each was acknowledged."""
    collection = client[database].ticks
    ready = [documents.tick(number) for number in range(first, first + int(rate * seconds))]
    acknowledged = []
    began = time.monotonic()
    for position, document in enumerate(ready):
        wait = began + position / rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        collection.insert_one(document)
        acknowledged.append(time.monotonic())
    return acknowledged
