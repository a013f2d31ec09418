"""Short interleavings, each of which goes wrong without one safeguard. The steps are the worker's own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from cartridge_warp.config import SchemaConfig, UnitSettings
from cartridge_warp.connectors.postgresql import PostgreSQLDestinationConnector
from cartridge_warp.core.batch import Budget, compact
from cartridge_warp.core.session import Session
from cartridge_warp.errors import ChunkVoid, Fenced, MarkerMoved
from cartridge_warp.kernel import rebuild
from cartridge_warp.observe.events import Observer
from cartridge_warp.records import Batch, Op
from warp_testing.sim_source import BASE, SimSource, SimUnit

__all__ = ["SCENARIOS", "Bench"]

Scenario = Callable[["Bench"], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


async def _no_gate(_: str) -> None:
    """Nothing waits: the scenario itself is the order."""


class Bench:
    """One worker of one target, taken through its steps by hand."""

    def __init__(self, uri: str, source: SimSource | None = None, **schema: Any) -> None:
        self.uri = uri
        self.source = source or SimSource(random.Random(1))
        config = SchemaConfig(name="sim", table_blacklist=["x"], **schema)
        self.settings = UnitSettings.of(config)
        self.unit = SimUnit(self.source, self.settings.wants, _no_gate)
        self.destination = PostgreSQLDestinationConnector(uri)
        self.target = self.destination.target(self.settings)
        self.at = 0

    async def open(self) -> Bench:
        """As the processor begins: epoch, position, session."""
        await self.destination.connect()
        await self.target.open(await self.unit.identity())
        await self.begin()
        return self

    async def begin(self, lost: str = "") -> None:
        """A session, after an error too; `lost` says that the position is."""
        await self.target.resume()
        marker = await self.target.marker() or await self.target.create_marker(await self.unit.now())
        if lost:
            marker = await self.target.restart_marker(await self.unit.now(), lost)
        budget, stop = Budget(100), asyncio.Event()
        self.session = Session(self.settings, self.unit, self.target, Observer(), budget, stop=stop, once=False)
        self.session.marker = marker
        self.snapshot = self.session.snapshotter
        self.at = marker.position["at"]

    async def close(self) -> None:
        await self.destination.disconnect()

    # -- steps ----------------------------------------------------------------------------------------

    async def ahead(self, events: int = 1000) -> Batch:
        """The next events as a batch, read and prepared ahead as `core.batch` does it."""
        batch, self.at = self.unit.take(self.source.era, self.at, self.at + events)
        compact(batch, self.session.marker.version_offset)
        await self.unit.complete(batch)
        await self.target.prepare(batch)
        return batch

    async def commit(self, batch: Batch) -> None:
        self.session.report(await self.session._write(batch, careful=False))

    async def stream(self, events: int = 1000) -> None:
        await self.commit(await self.ahead(events))

    async def follow(self) -> None:
        """The stream to its end."""
        while self.at < len(self.source.oplog):
            await self.stream()

    async def claim_and_read(self, table: str = "a") -> tuple[Any, Any]:
        chunk = await self.target.claim_chunk(table)
        assert chunk is not None
        page = await self.snapshot._read(table, chunk.bounds)
        return chunk, page

    async def copy(self) -> None:
        """Everything that needs it."""
        while True:
            await self.snapshot.plan()
            states = await self.target.tables()
            waiting = [name for name, state in states.items() if state.state == "snapshotting"]
            if not waiting:
                return
            for name in waiting:
                await self.snapshot._table(name, states[name])

    async def rekey(self) -> None:
        for table in sorted(self.session.rekeying):
            await self.target.rekey(table)
        self.session.rekeying.clear()

    # -- what is there --------------------------------------------------------------------------------

    def put(self, key: Any, value: Any, table: str = "a", **fields: Any) -> None:
        self.source.write(table, key, {"_id": key, "v": value, **fields})

    def remove(self, key: Any, table: str = "a") -> None:
        self.source.write(table, key, None)

    def query(self, query: str, *parameters: Any) -> list[Any]:
        with psycopg.connect(self.uri, autocommit=True) as connection:
            text = sql.SQL(query).format(m=sql.Identifier(self.settings.metadata_schema))
            cursor = connection.execute(text, parameters)
            return cursor.fetchall() if cursor.description else []

    def rows(self, table: str = "a") -> dict[Any, Any]:
        """`v` by `_id` of the rows that count as present."""
        plan = self.target.plan(table)
        if plan is None:
            return {}
        alive = f" WHERE NOT {plan.soft_column}" if plan.soft_column else ""
        with psycopg.connect(self.uri, row_factory=dict_row) as connection:
            found = connection.execute(f'SELECT * FROM sim."{plan.relation}"{alive}').fetchall()
        documents = [rebuild(plan, row) for row in found]
        return {document["_id"]: document["v"] for document in documents}

    def blocked(self) -> bool:
        return bool(self.query("SELECT 1 FROM pg_locks WHERE NOT granted"))


async def _refused(step: Awaitable[Any], error: type[Exception]) -> None:
    """The step must end with this error."""
    with suppress(error):
        await step
        raise AssertionError(f"the step went through without {error.__name__}")


# -- what a chunk may not undo -----------------------------------------------------------------------------


@scenario
async def chunk_after_newer_update(bench: Bench) -> None:
    """A chunk that was read before an update, and is written after it, does not take it back."""
    bench.put(1, "old")
    await bench.snapshot.plan()
    chunk, page = await bench.claim_and_read()
    bench.put(1, "new")
    await bench.follow()
    await bench.snapshot._write(chunk, page)
    assert bench.rows() == {1: "new"}


@scenario
async def chunk_after_delete(bench: Bench) -> None:
    """A chunk that was read before a delete, and is written after it, does not bring the row back."""
    bench.put(1, "old")
    await bench.snapshot.plan()
    chunk, page = await bench.claim_and_read()
    bench.remove(1)
    await bench.follow()
    await bench.snapshot._write(chunk, page)
    assert bench.rows() == {}


@scenario
async def late_delete(bench: Bench) -> None:
    """A delete does not remove what a chunk has read after it."""
    bench.put(1, "first")
    await bench.copy()
    bench.remove(1)
    bench.put(1, "again")
    await bench.target.set_state("a", "stale", "test")
    await bench.copy()
    await bench.stream(1)
    await bench.stream(1)
    assert bench.rows() == {1: "again"}, "an older delete removed a newer row"
    await bench.follow()
    assert bench.rows() == {1: "again"}


@scenario
async def chunk_of_a_dropped_collection(bench: Bench) -> None:
    """A chunk that was read before its collection was dropped writes nothing."""
    bench.put(1, "old")
    await bench.snapshot.plan()
    chunk, page = await bench.claim_and_read()
    bench.source.drop("a")
    await bench.follow()
    with suppress(ChunkVoid):
        await bench.snapshot._write(chunk, page)
    assert bench.rows() == {}


@scenario
async def chunk_older_than_a_drop(bench: Bench) -> None:
    """A chunk of the present generation whose stamp lies before a drop is void: its source lags behind."""
    bench.put(1, "old")
    await bench.follow()
    bench.source.drop("a")
    bench.put(1, "new")
    await bench.follow()
    await bench.target.set_state("a", "stale", "test")
    await bench.snapshot.plan()
    chunk, page = await bench.claim_and_read()
    stale = replace(page.stamp, version=BASE + bench.source.time - 2)
    await _refused(bench.snapshot._write(chunk, replace(page, stamp=stale)), ChunkVoid)


@scenario
async def chunk_at_the_very_time_of_a_rename(bench: Bench) -> None:
    """A chunk whose stamp equals the barrier's time is good: it was read after it, and nothing newer may come."""
    bench.put(1, "theirs", "x")
    bench.put(2, "ours", "a")
    await bench.copy()
    bench.source.rename("x", "a")
    await bench.follow()
    await bench.copy()
    assert bench.rows() == {1: "theirs"}


@scenario
async def delete_beside_a_chunk(bench: Bench) -> None:
    """A delete waits for a chunk that is being written, or the chunk would not see its tombstone."""
    bench.put(1, "old")
    bench.put(2, "other")
    await bench.stream()
    chunk, page = await bench.claim_and_read()
    bench.remove(1)
    batch = await bench.ahead()
    bench.query("DELETE FROM sim.a WHERE _id = 1")  # as if the stream had not been here yet
    async with bench.target.transaction(["a"], shared=True) as t:
        task = asyncio.create_task(bench.commit(batch))
        while not task.done() and not bench.blocked():
            await asyncio.sleep(0.005)
        await t.write_chunk(chunk, page.table, page.stamp.version, page.rest, page.size)
    await task
    assert bench.rows() == {2: "other"}


@scenario
async def reader_that_was_replaced(bench: Bench) -> None:
    """A reader whose chunk was claimed by another one writes nothing, also when that one has finished."""
    bench.put(1, "old")
    await bench.snapshot.plan()
    chunk, page = await bench.claim_and_read()
    async with bench.target.transaction([]) as t:
        await bench.target.markers.release_chunks(t.c)
    await bench.snapshot._write(*await bench.claim_and_read())
    bench.remove(1)
    await bench.follow()
    with suppress(ChunkVoid):
        await bench.snapshot._write(chunk, page)
    assert bench.rows() == {}


# -- who may write, and from where -------------------------------------------------------------------------


@scenario
async def worker_that_was_replaced(bench: Bench) -> None:
    """A worker that wakes after a take-over writes nothing: neither rows nor position nor metadata."""
    bench.put(1, "old")
    await bench.copy()
    bench.put(1, "new")
    batch = await bench.ahead()
    await bench.target.close("stopped")
    other = await Bench(bench.uri, bench.source).open()
    try:
        before = bench.query("SELECT seq, position FROM {m}.sync_markers")
        await _refused(bench.commit(batch), Fenced)
        await _refused(bench.target.set_state("a", "stale", "test"), Fenced)
        assert bench.rows() == {1: "old"}
        assert bench.query("SELECT seq, position FROM {m}.sync_markers") == before
        await other.follow()
        assert other.rows() == {1: "new"}
    finally:
        await other.close()


@scenario
async def commit_that_a_crash_took_back(bench: Bench) -> None:
    """When PostgreSQL loses an acknowledged commit, the next batch does not pass over the gap."""
    bench.put(1, "first")
    await bench.copy()
    await bench.follow()
    before = bench.query("SELECT seq, position::text FROM {m}.sync_markers")[0]
    bench.put(2, "lost")
    await bench.follow()
    bench.query("DELETE FROM sim.a WHERE _id = 2")
    bench.query("UPDATE {m}.sync_markers SET seq = %s, position = %s::jsonb", *before)
    bench.put(3, "next")
    with suppress(MarkerMoved):
        await bench.follow()
    await bench.begin()
    await bench.follow()
    assert bench.rows() == {1: "first", 2: "lost", 3: "next"}


@scenario
async def batch_encoded_for_an_older_plan(bench: Bench) -> None:
    """A field that a document has lost becomes NULL, also when its column is younger than the batch's encoding."""
    bench.put(1, 1)
    await bench.follow()
    bench.put(1, 2, f="a value")
    bench.put(1, 3)
    first = await bench.ahead(1)
    second = await bench.ahead(1)
    await bench.commit(first)
    await bench.commit(second)
    assert bench.query("SELECT v, f FROM sim.a") == [(3, None)]


@scenario
async def chunk_read_at_its_stamp(bench: Bench) -> None:
    """What a chunk writes is not older than its stamp, so a newer event is never overwritten."""
    bench.put(1, "old")
    for _ in range(5):
        bench.source.noop()
    bench.put(1, "new")
    await bench.follow()
    await bench.copy()
    assert bench.rows() == {1: "new"}


# -- online copies and their sweep -------------------------------------------------------------------------


@scenario
async def delete_in_a_gap(bench: Bench) -> None:
    """What was deleted while the position was lost is swept; everything else stays."""
    for key in (1, 2, 3):
        bench.put(key, key)
    await bench.copy()
    await bench.follow()
    bench.remove(2)
    bench.source.trim()
    await bench.begin("trimmed")
    await bench.copy()
    assert bench.rows() == {1: 1, 3: 3}
    audit = bench.query("SELECT document_id->>'$numberLong', reason FROM {m}.deletion_audit")
    assert audit == [("2", "sweep")]


@scenario
async def sweep_waits_for_every_chunk(bench: Bench) -> None:
    """Nothing is swept while a chunk is left: it may hold the rows."""
    bench.put(1, 1)
    await bench.copy()
    await bench.target.set_state("a", "stale", "test")
    bench.source.noop()
    await bench.snapshot.plan()
    chunk, page = await bench.claim_and_read()
    assert await bench.target.sweep("a") == 0
    assert bench.rows() == {1: 1}
    await bench.snapshot._write(chunk, page)


@scenario
async def chunk_that_lost_its_reader(bench: Bench) -> None:
    """A claim whose reader is gone does not keep its table from being completed."""
    bench.put(1, 1)
    await bench.snapshot.plan()
    await bench.claim_and_read()
    await bench.copy()
    assert bench.rows() == {1: 1}
    assert (await bench.target.tables())["a"].state == "complete"


@scenario
async def source_of_an_earlier_time(bench: Bench) -> None:
    """After the source was set back, its documents overwrite rows that carry later times."""
    bench.put(1, "old")
    await bench.copy()
    for _ in range(5):
        bench.put(1, "lost")
    await bench.follow()
    bench.source.time -= 5
    bench.source.names["a"] = bench.source.names["a"][:1]
    states = bench.source.names["a"][0][1].states  # type: ignore[union-attr]
    states[1] = [(0, {"_id": 1, "v": "restored"})]
    bench.source.era += 1
    bench.source.oplog.clear()
    await bench.begin("restored")
    await bench.copy()
    assert bench.rows() == {1: "restored"}
    bench.put(1, "after")
    await bench.follow()
    assert bench.rows() == {1: "after"}


# -- barriers ----------------------------------------------------------------------------------------------


@scenario
async def drop(bench: Bench) -> None:
    """A drop removes every row, and what comes after it is there."""
    bench.put(1, 1)
    await bench.copy()
    bench.source.drop("a")
    bench.put(2, 2)
    await bench.follow()
    assert bench.rows() == {2: 2}


@scenario
async def rename_to_an_unknown_name(bench: Bench) -> None:
    """A collection that is renamed to a name which nobody has met is copied: no event speaks of its documents."""
    bench.put(1, "theirs", "x")
    await bench.copy()
    bench.source.rename("x", "fresh")
    await bench.follow()
    for name, state in (await bench.target.tables()).items():
        if state.state == "snapshotting":
            await bench.snapshot._table(name, state)
    assert bench.rows("fresh") == {1: "theirs"}


@scenario
async def reshard(bench: Bench) -> None:
    """When a collection gets another UUID, updates from before, whose documents cannot be fetched, are not lost."""
    bench.put(1, "old")
    await bench.copy()
    await bench.follow()
    bench.source.write("a", 1, {"_id": 1, "v": "new"}, how=Op.FETCH)
    bench.source.reshard("a")
    await bench.follow()
    assert bench.rows() == {1: "old"}, "the rows stay meanwhile"
    await bench.copy()
    assert bench.rows() == {1: "new"}


# -- keys of a second type ---------------------------------------------------------------------------------


@scenario
async def delete_of_a_waiting_document(bench: Bench) -> None:
    """A document that waits for another kind of key, and is deleted, does not come."""
    bench.put(1, 1)
    await bench.copy()
    bench.put("k", 2)
    await bench.follow()
    bench.remove("k")
    await bench.follow()
    await bench.rekey()
    assert bench.rows() == {1: 1}


@scenario
async def waiting_document_deleted_in_a_gap(bench: Bench) -> None:
    """A document that waits for another kind of key, and is deleted while the position is lost, does not come."""
    bench.put(1, 1)
    await bench.copy()
    bench.put("k", 2)
    await bench.follow()
    bench.remove("k")
    bench.source.trim()
    await bench.begin("trimmed")
    await bench.copy()
    bench.session.rekeying.add("a")
    await bench.rekey()
    assert bench.rows() == {1: 1}
