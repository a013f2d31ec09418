"""A source in memory with a clock, collections, and an oplog: everything that a worker can meet, on demand.

Time is a counter; `BASE` puts it where MongoDB's versions are. A chunk read shows each document as of some moment
between its stamp and the present, in one pass, as a cursor does that yields to writers.
"""

from __future__ import annotations

import bisect
import itertools
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cartridge_warp.errors import PositionLost, Unavailable
from cartridge_warp.observe.events import Observer
from cartridge_warp.records import (
    Barrier,
    Batch,
    BatchMarker,
    Bounds,
    Change,
    ChunkPage,
    Collection,
    Marker,
    Op,
    OperationType,
    Position,
    SourceIdentity,
    Stamp,
    TableBatch,
)

__all__ = ["BASE", "SimSource", "SimUnit"]

BASE = (1_750_000_000 << 32) - 2**63
EPOCH = datetime(2025, 6, 15, tzinfo=UTC)
Gate = Callable[[str], Awaitable[None]]
Doc = dict[str, Any]


@dataclass
class SimCollection:
    """One collection under one UUID: each key's states, oldest first (None: deleted)."""

    uuid: bytes
    states: dict[Any, list[tuple[int, Doc | None]]] = field(default_factory=dict)

    def at(self, key: Any, time: int) -> Doc | None:
        states = self.states.get(key, [])
        position = bisect.bisect_right(states, time, key=lambda state: state[0])
        return states[position - 1][1] if position else None

    def now(self) -> dict[Any, Doc]:
        return {key: states[-1][1] for key, states in self.states.items() if states[-1][1] is not None}


@dataclass
class Event:
    """One entry of the oplog. `transaction` is equal for the writes of one source transaction."""

    time: int
    name: str = ""
    op: Op | None = None
    key: Any = None
    image: Doc | None = None
    uuid: bytes | None = None
    operation: OperationType = OperationType.INSERT
    barrier: Barrier | None = None
    transaction: int | None = None


class SimSource:
    """The source itself, written to by the history. `uuids` False is a server whose events carry none."""

    honest = True  # False: chunk reads may be older than their stamp

    def __init__(self, rng: random.Random, *, uuids: bool = True) -> None:
        self.rng = rng
        self.uuids = uuids
        self.time = 10
        self.era = 0
        self.oplog: list[Event] = []
        self.lost = 0  # events before this index are gone
        self.latest_page: tuple[str, list[Any]] = ("a", [])
        self.names: dict[str, list[tuple[int, SimCollection | None]]] = {}
        self._uuids = itertools.count(1)
        self._transactions = itertools.count(1)
        self._transaction: int | None = None

    # -- what exists ----------------------------------------------------------------------------------

    def collection(self, name: str, time: int | None = None) -> SimCollection | None:
        history = self.names.get(name, [])
        position = bisect.bisect_right(history, self.time if time is None else time, key=lambda entry: entry[0])
        return history[position - 1][1] if position else None

    def documents(self, name: str) -> dict[Any, Doc]:
        found = self.collection(name)
        return found.now() if found else {}

    def existing(self) -> list[str]:
        return sorted(name for name in self.names if self.collection(name) is not None)

    # -- writes ---------------------------------------------------------------------------------------

    def _tick(self) -> int:
        if self._transaction is None:
            self.time += 1
        return self.time

    def transaction(self, writes: Callable[[], None]) -> None:
        """Several writes at one time, of which none may be seen alone."""
        self._tick()
        self._transaction = next(self._transactions)
        try:
            writes()
        finally:
            self._transaction = None

    def noop(self) -> None:
        """The clock of a quiet source moves too."""
        self._tick()

    def write(self, name: str, key: Any, image: Doc | None, *, how: Op = Op.UPSERT) -> None:
        """Insert, replace (`how` UPSERT), update (FETCH) or delete (image None)."""
        time = self._tick()
        found = self.collection(name)
        if found is None:
            found = self._appear(name, SimCollection(self._uuid()), time)
        existed = found.at(key, time) is not None
        if image is None and not existed:
            return
        found.states.setdefault(key, []).append((time, image))
        op = Op.DELETE if image is None else how if existed else Op.UPSERT
        operation = OperationType.DELETE if image is None else OperationType.INSERT
        if image is not None and existed:
            operation = OperationType.UPDATE
        shown = image if op is Op.UPSERT else None
        self._log(Event(time, name, op, key, shown, found.uuid, operation, transaction=self._transaction))

    def drop(self, name: str) -> None:
        time = self._tick()
        self.names[name].append((time, None))
        self._log(Event(time, barrier=Barrier(time, "drop", (name,), () if self.uuids else (name,))))

    def rename(self, old: str, new: str) -> None:
        """Rename, onto an existing name too; SecantusDB notes the drop of that one, mongod does not."""
        found = self.collection(old)
        assert found is not None
        if self.collection(new) is not None and self.rng.random() < 0.5:
            self.drop(new)
        time = self._tick()
        self.names[old].append((time, None))
        self._appear(new, found, time)
        again = (new,) if self.uuids else (new, old)
        self._log(Event(time, barrier=Barrier(time, "rename", (old, new), again)))

    def drop_database(self) -> None:
        for name in self.existing():
            self.drop(name)
        time = self._tick()
        self._log(Event(time, barrier=Barrier(time, "dropDatabase")))
        self._log(Event(time, barrier=Barrier(time, "invalidate")))

    def reshard(self, name: str) -> None:
        """The same documents in a collection with another UUID."""
        time = self._tick()
        found = self.collection(name)
        assert found is not None
        self._appear(name, SimCollection(self._uuid(), {k: list(v) for k, v in found.states.items()}), time)
        self._log(Event(time, barrier=Barrier(time, "reshardCollection", (), (name,))))

    def trim(self) -> None:
        """The oplog loses everything up to now."""
        self.lost = len(self.oplog)

    def restore(self) -> None:
        """Another copy of the data, of an earlier time: the clock goes back too. No open read survives."""
        back = self.rng.randint(max(5, self.time - 20), self.time)
        for name in self.names:
            old, fresh = self.collection(name, back), None
            if old is not None:
                fresh = SimCollection(self._uuid())
                for key in old.states:
                    if (document := old.at(key, back)) is not None:
                        fresh.states[key] = [(0, document)]
            self.names[name] = [(0, fresh)]
        self.era += 1
        self.time = back
        self.oplog.clear()
        self.lost = 0

    def _appear(self, name: str, found: SimCollection, time: int) -> SimCollection:
        self.names.setdefault(name, []).append((time, found))
        return found

    def _uuid(self) -> bytes:
        return next(self._uuids).to_bytes(16, "big")

    def _log(self, event: Event) -> None:
        self.oplog.append(event)

    # -- reads ----------------------------------------------------------------------------------------

    def read(self, name: str, bounds: Bounds, stamp: int, rows: int) -> ChunkPage:
        """Documents of a range, each as of some time from the stamp to now, later keys at later times."""
        time = self.rng.randint(stamp, self.time) if self.honest else max(1, stamp - 6)
        found = self.collection(name, time)
        if found is None:
            return ChunkPage([], None)
        gone = [start for start, other in self.names[name] if start > time and other is not found]
        last = min([self.time, *(start - 1 for start in gone)])
        documents: list[Doc] = []
        for key in sorted((key for key in found.states if _inside(key, bounds)), key=order):
            time = self.rng.randint(time, last) if self.honest and self.rng.random() < 0.5 else time
            document = found.at(key, time)
            if document is None:
                continue
            documents.append(document)
            if len(documents) == rows:
                return ChunkPage(documents, Bounds(json.dumps(key), bounds.upper, after=True), 100)
        return ChunkPage(documents, None, 100)


def order(key: Any) -> tuple[int, Any]:
    """MongoDB's order: numbers before strings."""
    return (isinstance(key, str), key)


def _inside(key: Any, bounds: Bounds) -> bool:
    if bounds.lower is not None:
        lower = order(json.loads(bounds.lower))
        if order(key) < lower or (bounds.after and order(key) == lower):
            return False
    return bounds.upper is None or order(key) < order(json.loads(bounds.upper))


class SimUnit:
    """Implements `SourceUnit` over a `SimSource`; stops at `gate` wherever a real one would wait for the network."""

    def __init__(self, source: SimSource, wants: Callable[[str], bool], gate: Gate) -> None:
        self.source = source
        self.wants = wants
        self.gate = gate
        self.observer: Observer | None = None

    def _stamp(self) -> Stamp:
        source = self.source
        position = {"era": source.era, "at": len(source.oplog)}
        return Stamp(BASE + source.time, position, EPOCH + timedelta(seconds=source.time))

    def _check(self, era: int) -> None:
        if era != self.source.era:
            raise Unavailable("the simulated source was restored; its cursors are gone")

    async def preflight(self) -> list[str]:
        return []

    async def identity(self) -> SourceIdentity:
        return SourceIdentity("sim", "sim")

    async def now(self) -> Stamp:
        await self.gate("now")
        return self._stamp()

    async def moment(self) -> Stamp:
        await self.gate("moment")
        return self._stamp()

    async def collections(self) -> list[Collection]:
        await self.gate("collections")
        return [Collection(name) for name in self.source.existing() if self.wants(name)]

    async def key_sample(self, table: str) -> list[Any]:
        await self.gate("key sample")
        keys = sorted(self.source.documents(table), key=order)
        return [keys[0], keys[-1]] if keys else []

    async def plan_chunks(self, table: str, parts: int) -> list[Bounds]:
        await self.gate("plan chunks")
        keys = sorted(self.source.documents(table), key=order)
        chosen = sorted(self.source.rng.sample(keys, min(len(keys), self.source.rng.randint(0, 3))), key=order)
        ends = [None, *(json.dumps(key) for key in chosen), None]
        return [Bounds(low, high) for low, high in itertools.pairwise(ends)] if parts > 1 else [Bounds()]

    async def read_chunk(self, table: str, bounds: Bounds, stamp: Stamp, rows: int, max_bytes: int) -> ChunkPage:
        await self.gate("read chunk")
        self._check(stamp.position["era"])
        page = self.source.read(table, bounds, stamp.version - BASE, rows)
        self.source.latest_page = (table, [document["_id"] for document in page.documents])
        await self.gate("chunk was read")
        self._check(stamp.position["era"])
        return page

    async def headroom_seconds(self, marker: Marker) -> float | None:
        return None

    def passed(self, position: Position, stamp: Stamp) -> bool:
        there, here = stamp.position, position
        return bool(here["era"] == there["era"] and here["at"] >= there["at"])

    async def close(self) -> None:
        """Nothing is held."""

    # -- the stream -----------------------------------------------------------------------------------

    async def batches(self, marker: Marker) -> AsyncGenerator[Batch, None]:
        era, at = marker.position["era"], marker.position["at"]
        while True:
            quiet = era == self.source.era and at == len(self.source.oplog)
            await self.gate("quiet stream" if quiet else "stream")
            if era != self.source.era or at < self.source.lost or at > len(self.source.oplog):
                raise PositionLost("the simulated source no longer holds the position")
            batch, at = self._cut(era, at)
            yield batch

    def _cut(self, era: int, at: int) -> tuple[Batch, int]:
        """The next few events; a transaction whole, but now and then cut as a large one is."""
        return self.take(era, at, at + self.source.rng.randint(1, 6), whole=self.source.rng.random() < 0.8)

    def take(self, era: int, at: int, limit: int, *, whole: bool = True) -> tuple[Batch, int]:
        """Events from index `at` on, up to `limit`; a barrier alone."""
        source, start = self.source, at
        tables: dict[str, TableBatch] = {}
        barrier = None
        while at < len(source.oplog):
            event = source.oplog[at]
            inside = (
                at > start and event.transaction is not None and event.transaction == source.oplog[at - 1].transaction
            )
            if at >= limit and not (inside and whole):
                break
            if event.barrier is not None and at > start:
                break
            at += 1
            if event.barrier is not None:
                barrier = self._barrier(event.barrier)
                break
            if self.wants(event.name):
                tables.setdefault(event.name, TableBatch(event.name)).changes.append(self._change(event))
        time = EPOCH + timedelta(seconds=source.time)
        return Batch(BatchMarker({"era": era, "at": at}, time, at - start), tables, barrier), at

    def _barrier(self, barrier: Barrier) -> Barrier | None:
        """None for one that concerns nothing that is mirrored."""
        again = tuple(name for name in barrier.resnapshot if self.wants(name))
        tables = barrier.tables if barrier.tables is None else tuple(filter(self.wants, barrier.tables))
        if tables is not None and not tables and not again:
            return None
        return Barrier(BASE + barrier.version, barrier.kind, tables, again)

    def _change(self, event: Event) -> Change:
        assert event.op is not None
        origin = event.uuid if self.source.uuids else None
        at_ms = int((EPOCH + timedelta(seconds=event.time)).timestamp() * 1000)
        return Change(event.op, event.key, BASE + event.time, event.image, at_ms, origin, event.operation)

    async def complete(self, batch: Batch) -> None:
        if any(change.op is Op.FETCH for table in batch.tables.values() for change in table.changes):
            await self.gate("fetch")
            self._check(batch.marker.position["era"])
        for table in batch.tables.values():
            table.changes = [change for change in table.changes if self._settle(table.table, change)]

    def _settle(self, name: str, change: Change) -> bool:
        if change.op is not Op.FETCH:
            return True
        found = self.source.collection(name)
        if change.origin is not None and (found is None or found.uuid != change.origin):
            return False
        image = found.at(change.key, self.source.time) if found else None
        if image is None:
            change.op, change.operation = Op.DELETE, OperationType.DELETE
        else:
            change.op, change.image = Op.UPSERT, image
        return True
