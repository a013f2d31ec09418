"""What a worker asks the source for while it copies: every read of a chunk is a majority read at the chunk's own
stamp, and that stamp is the version of its rows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from bson import ObjectId
from bson.timestamp import Timestamp
from pymongo import monitoring

from cartridge_warp.connectors.mongodb import snapshot
from cartridge_warp.connectors.mongodb import source as mongodb_source
from cartridge_warp.connectors.mongodb.position import version_of
from cartridge_warp.connectors.mongodb.unit import MongoDBUnit
from cartridge_warp.records import Stamp
from warp_testing.replica import Replica, config_for
from warp_testing.world import state, until


class Listener(monitoring.CommandListener):
    """Remembers every command."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, dict[str, Any]]] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.commands.append((event.command_name, dict(event.command)))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Of no interest."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Of no interest."""

    def reads(self, collection: str) -> list[dict[str, Any]]:
        """The queries by the index on `_id` that read whole documents of a collection."""
        return [
            command
            for name, command in self.commands
            if name == "find" and command["find"] == collection and "hint" in command and not command.get("projection")
        ]


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    """Hears the client of every worker of this test."""
    listener = Listener()
    original = mongodb_source._options
    monkeypatch.setattr(mongodb_source, "_options", lambda config: original(config) | {"event_listeners": [listener]})
    return listener


@pytest.fixture
def stamps(monkeypatch: pytest.MonkeyPatch) -> list[Stamp]:
    """Every stamp that a chunk was read with."""
    heard: list[Stamp] = []
    original = MongoDBUnit.read_chunk

    async def read(self: MongoDBUnit, table: str, bounds: Any, stamp: Stamp, rows: int, max_bytes: int) -> Any:
        heard.append(stamp)
        return await original(self, table, bounds, stamp, rows, max_bytes)

    monkeypatch.setattr(MongoDBUnit, "read_chunk", read)
    return heard


def rigged(mongo: Any, postgres: str, **schema: Any) -> Replica:
    return Replica(config_for(mongo.uri, postgres, mongo.name, schemas=[{"name": mongo.name, **schema}]))


KEYS: dict[str, Any] = {
    "integers": lambda n: n,
    "ObjectIds": lambda n: ObjectId(f"{0x68000000 + n * 7:08x}0123456789abcdef"),
    "strings": lambda n: f"key {n:06}",
    # The test server misorders numbers inside documents, so that its min is not where its index says.
    "mixed": lambda n: [n, f"key {n}", n + 0.5, {"n": f"{n:04}"}][n % 4],
}


@pytest.mark.parametrize("pages", ["one query for all pages", "a query for each page"])
@pytest.mark.parametrize("keys", list(KEYS))
async def test_every_chunk_query_carries_its_stamp(
    mongo: Any, postgres: str, listener: Listener, stamps: list[Stamp], monkeypatch: pytest.MonkeyPatch,
    keys: str, pages: str,
) -> None:  # fmt: skip
    """Each query of a chunk is a majority read with afterClusterTime equal to a stamp of its own and walks the index
    on `_id`; all rows that it brings, in one page or in several, bear that very stamp as their version."""
    if pages == "a query for each page":
        monkeypatch.setattr(snapshot, "_LONGEST_WALK", -1.0)
    mongo.db.t.insert_many([{"_id": KEYS[keys](n), "v": n} for n in range(700)])
    replica = rigged(mongo, postgres, full_load_batch_size=100)
    await replica.once()
    reads = listener.reads("t")
    times = [version_of(command["readConcern"]["afterClusterTime"]) for command in reads]
    assert all(command["readConcern"]["level"] == "majority" for command in reads)
    assert set(times) <= {stamp.version for stamp in stamps}
    assert len(reads) >= 7 if pages == "a query for each page" else len(reads) == 1
    assert all("skip" not in command and not command.get("filter") for command in reads)
    assert all("min" in command for command in reads[1:])
    versions = {version for (version,) in replica.query("SELECT DISTINCT _warp_version FROM t")}
    assert versions
    assert versions <= set(times)
    assert replica.query("SELECT count(*) FROM t") == [(700,)]
    assert await replica.differences() == []


async def test_stamps_never_lie(mongo: Any, postgres: str, stamps: list[Stamp]) -> None:
    """While documents change all the time, every row of a copy holds what its document was at the row's version or
    later: no change with a smaller version than the row's is missing in it."""
    mongo.db.t.insert_many([{"_id": n, "n": 0} for n in range(3000)])
    replica = rigged(mongo, postgres, full_load_batch_size=50, max_parallel_streams=3)
    stop = asyncio.Event()

    async def change() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            await asyncio.to_thread(mongo.db.t.update_many, {"_id": {"$mod": [37, turn % 37]}}, {"$inc": {"n": 1}})

    writer = asyncio.create_task(change())
    async with replica.running():
        await until(lambda: state(replica, "t") == "complete", "the copy does not end")
        stop.set()
        await writer
        await replica.settled()
    assert len(stamps) > 20


async def test_a_retried_chunk_takes_a_new_stamp(mongo: Any, postgres: str, stamps: list[Stamp]) -> None:
    """A chunk that is read again after a restart has a new stamp, so that its rows are as new as they say."""
    mongo.db.t.insert_many([{"_id": n} for n in range(10)])
    replica = rigged(mongo, postgres)
    replica.query(f'CREATE SCHEMA "{replica.unit.target}"')
    replica.query("CREATE TABLE t (_id bigint)")  # refused: no primary key
    with pytest.raises(Exception, match="primary key"):
        await replica.once()
    replica.query("DROP TABLE t")
    mongo.db.t.update_one({"_id": 1}, {"$set": {"v": 1}})
    await replica.once()
    assert len(stamps) == 2
    assert stamps[1].version > stamps[0].version
    assert replica.query("SELECT v FROM t WHERE _id = 1") == [(1,)]


async def test_fetches_are_majority_reads_at_the_batch(mongo: Any, postgres: str, listener: Listener) -> None:
    """The documents of updates are read by `_id` with majority, not before the batch's position, once for each
    collection and batch."""
    mongo.db.t.insert_many([{"_id": n, "n": 0} for n in range(50)])
    replica = rigged(mongo, postgres)
    async with replica.running():
        await replica.settled()
        mongo.db.t.update_many({}, {"$inc": {"n": 1}})
        await replica.settled()
    fetches = [c for name, c in listener.commands if name == "find" and c["find"] == "t" and "$in" in str(c["filter"])]
    assert fetches
    assert sum(len(c["filter"]["_id"]["$in"]) for c in fetches) == 50
    for command in fetches:
        assert command["readConcern"]["level"] == "majority"
        assert isinstance(command["readConcern"]["afterClusterTime"], Timestamp)
