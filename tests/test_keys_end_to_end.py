"""Keys that others merge stay two rows, however they arrive; and the change of a live table's key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from types import MethodType
from typing import Any

import psycopg
import pytest
from bson import Binary, Decimal128, Int64, MaxKey, MinKey, ObjectId, Timestamp
from bson.datetime_ms import DatetimeMS

from cartridge_warp.config import SchemaConfig, UnitSettings
from cartridge_warp.connectors.postgresql import rekey as steps
from cartridge_warp.connectors.postgresql.target import PostgreSQLTarget
from cartridge_warp.core import processor
from cartridge_warp.errors import Unavailable
from cartridge_warp.kernel import identity
from cartridge_warp.observe.events import DeadLettered
from warp_testing.direct import Direct, delete, direct, encoded, upsert
from warp_testing.replica import Replica, config_for
from warp_testing.servers import MongoServer, PostgresServer
from warp_testing.world import World, until, world

HEX = "5eedda7a5eedda7a5eedda7a"
UUID = Binary(bytes(range(16)), 4)
PAIRS: dict[str, tuple[Any, Any]] = {
    "an ObjectId and its hex": (ObjectId(HEX), HEX),
    "a number and its text": (1, "1"),
    "two orders of fields": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "two orders deep down": ({"k": {"a": 1, "b": 2}}, {"k": {"b": 2, "a": 1}}),
    "binary 0 and its text": (b"abc", "abc"),
    "null and empty": (None, ""),
    "null and its text": (None, "null"),
    "long strings": ("x" * 3000, "x" * 2999 + "y"),
    "a long and a short string": ("x" * 3000, "x"),
    "true and 1": (True, 1),
    "false and 0": (False, 0),
    "a NUL": ("a\0b", "ab"),
    "a date and a number": (DatetimeMS(86_400_000), 86_400_000),
    "a date and a timestamp": (DatetimeMS(1000), Timestamp(1, 0)),
    "a document and its text": ({"a": 1}, '{"a": 1}'),
    "beyond a double": (Int64(2**53 + 1), float(2**53)),
    "a decimal beyond int64": (Decimal128("9223372036854775808"), Int64(2**63 - 1)),
    "case": ("A", "a"),
    "composed and decomposed": ("é", "e\u0301"),
    "ends": (MinKey(), MaxKey()),
    "trailing space": ("a ", "a"),
}
REFUSED_BY_THE_TEST_SERVER: dict[str, tuple[Any, Any]] = {
    "binary 4 and 3": (UUID, Binary(bytes(range(16)), 3)),
    "binary 0 and 5": (bytes(range(16)), Binary(bytes(range(16)), 5)),
    "binary 0 and 2": (b"old", Binary(b"old", 2)),
    "dates that PostgreSQL lacks": (DatetimeMS(2**63 - 1), DatetimeMS(2**63 - 2)),
    "a date that it has": (DatetimeMS(0), DatetimeMS(-(2**63) + 1)),
}
NATIVE = {
    "objectid": [ObjectId(), ObjectId(HEX)],
    "int": [1, Int64(2**40), -7],
    "string": ["plain", "1", HEX, ""],
    "uuid": [UUID, Binary(bytes(16), 4)],
    "date": [DatetimeMS(0), DatetimeMS(1_736_121_600_123), DatetimeMS(-1)],
}
LATE = [
    ObjectId(HEX), HEX, 1, "1", True, 1.5, Decimal128("2.50"), Int64(2**53 + 1), None, "", "k\0y", "long" * 750,
    {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"bb": 1, "a": {"z": 1, "y": 2}}, UUID, Binary(bytes(range(2, 18)), 3),
    bytes(range(1, 17)), DatetimeMS(1_736_121_600_000), Timestamp(1_736_121_600, 1), MinKey(), MaxKey(),
    {"text": "x\0y"},
]  # fmt: skip


def fill(db: Any, way: str) -> None:
    for number, (one, two) in enumerate(PAIRS.values()):
        db[f"{way}_{number}"].insert_many([{"_id": one, "v": "one"}, {"_id": two, "v": "two"}])


def touch(db: Any, way: str) -> None:
    """Change one of each pair by its own key."""
    for number, (one, two) in enumerate(PAIRS.values()):
        db[f"{way}_{number}"].update_one({"_id": two}, {"$set": {"changed": True}})
        db[f"{way}_{number}"].replace_one({"_id": one}, {"v": "one, replaced"})


def remove(db: Any, way: str) -> None:
    for number, (one, _) in enumerate(PAIRS.values()):
        db[f"{way}_{number}"].delete_one({"_id": one})


async def play(found: World) -> dict[str, list[Any]]:
    """Both ways at once; what the tables held after each step."""
    seen: dict[str, list[Any]] = {}

    async def look(step: str) -> None:
        await found.replica.settled()
        for way in ("snap", "stream"):
            for number in range(len(PAIRS)):
                rows = found.replica.query(f"SELECT v FROM {way}_{number} ORDER BY v")
                seen[f"{step} {way} {number}"] = [v for (v,) in rows]

    fill(found.db, "snap")
    async with found.replica.running():
        await found.replica.settled()
        fill(found.db, "stream")
        await look("filled")
        for step in (touch, remove):
            for way in ("snap", "stream"):
                step(found.db, way)
            await look(step.__name__)
    return seen


@pytest.fixture(scope="module")
def played(mongo_server: MongoServer, postgres_server: PostgresServer) -> Iterator[dict[str, list[Any]]]:
    with world(mongo_server, postgres_server) as found:
        yield asyncio.run(play(found))


@pytest.mark.parametrize("way", ["snap", "stream"])
@pytest.mark.parametrize("number", range(len(PAIRS)), ids=list(PAIRS))
def test_two_keys_are_two_rows(played: dict[str, list[Any]], way: str, number: int) -> None:
    """Two keys that look alike are two rows, each changed and deleted by its own key alone."""
    assert played[f"filled {way} {number}"] == ["one", "two"]
    assert played[f"touch {way} {number}"] == ["one, replaced", "two"]
    assert played[f"remove {way} {number}"] == ["two"]


@pytest.mark.parametrize("way", ["snapshot", "stream", "late"])
@pytest.mark.parametrize("number", range(len(REFUSED_BY_THE_TEST_SERVER)), ids=list(REFUSED_BY_THE_TEST_SERVER))
async def test_keys_that_the_test_server_refuses(postgres: str, way: str, number: int) -> None:
    """Keys that differ in their binary subtype alone, and dates beyond PostgreSQL's, are two rows, too."""
    one, two = list(REFUSED_BY_THE_TEST_SERVER.values())[number]
    async with direct(postgres, UnitSettings.of(SchemaConfig(name="s"))) as worker:
        documents = [{"_id": one, "v": "one"}, {"_id": two, "v": "two"}]
        if way == "snapshot":
            await worker.snapshot(t=documents)
        elif way == "stream":
            await worker.stream(*(upsert(1 + n, each) for n, each in enumerate(documents)))
        else:
            await worker.stream(upsert(1, documents[0]))
            await worker.stream(upsert(2, documents[1]))
            await worker.target.rekey("t")
        await worker.stream(upsert(3, {"_id": two, "v": "two, changed"}))
        assert values(postgres) == ["one", "two, changed"]
        await worker.stream(delete(4, one))
        assert values(postgres) == ["two, changed"]


def values(uri: str) -> list[str]:
    with psycopg.connect(uri) as connection:
        return [row[0] for row in connection.execute("SELECT v FROM s.t ORDER BY v")]


async def test_a_late_key_that_was_deleted_while_its_page_was_read(postgres: str) -> None:
    """A document with another kind of key that a page of the snapshot read before its delete does not come back
    when what waited is replayed, not even after the table is complete."""
    async with direct(postgres, UnitSettings.of(SchemaConfig(name="s"))) as worker:
        await worker.stream(upsert(1, {"_id": 1, "v": "one"}))
        worker.clock = 5
        worker.documents["t"] = [encoded({"_id": 1, "v": "one"}), encoded({"_id": "late", "v": "late"})]
        read = Direct.read_chunk

        async def delete_meanwhile(self: Direct, *arguments: Any) -> Any:
            page = await read(self, *arguments)
            await worker.stream(delete(7, "late"))
            return page

        worker.read_chunk = MethodType(delete_meanwhile, worker)  # type: ignore[method-assign]
        state = (await worker.target.tables())["t"]
        await worker.session.snapshotter._table("t", state)
        assert (await worker.target.tables())["t"].state == "complete"
        await worker.target.rekey("t")
        assert values(postgres) == ["one"]


async def test_a_late_key_that_came_by_stream_and_by_snapshot(postgres: str) -> None:
    """A document that waits twice, newer from the stream and older from a page, is replayed with its newer state."""
    async with direct(postgres, UnitSettings.of(SchemaConfig(name="s"))) as worker:
        await worker.stream(upsert(1, {"_id": 1, "v": "one"}))
        worker.clock = 5
        worker.documents["t"] = [encoded({"_id": "late", "v": "late, old"})]
        read = Direct.read_chunk

        async def change_meanwhile(self: Direct, *arguments: Any) -> Any:
            page = await read(self, *arguments)
            await worker.stream(upsert(7, {"_id": "late", "v": "late, new"}))
            return page

        worker.read_chunk = MethodType(change_meanwhile, worker)  # type: ignore[method-assign]
        await worker.session.snapshotter._table("t", (await worker.target.tables())["t"])
        await worker.target.rekey("t")
        assert values(postgres) == ["late, new", "one"]


@pytest.fixture
def replica(mongo: Any, postgres: str) -> Replica:
    return Replica(config_for(mongo.uri, postgres, mongo.name))


def key_type(replica: Replica, table: str) -> str:
    return replica.query("SELECT key_type FROM tables WHERE collection = %s", table)[0][0]


def primary_key(replica: Replica, table: str) -> list[str]:
    rows = replica.query(
        "SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid"
        " AND a.attnum = ANY (i.indkey) WHERE i.indisprimary AND i.indrelid = %s::regclass",
        table,
    )
    return [name for (name,) in rows]


def waiting(replica: Replica) -> int:
    return replica.query("SELECT count(*) FROM dead_letters WHERE state IN ('open', 'waiting')")[0][0]


def late_for(kind: str) -> list[Any]:
    taken = {identity(key) for key in NATIVE[kind]}
    return [key for key in LATE if identity(key) not in taken]


async def test_another_type_of_key_comes_late(mongo: Any, replica: Replica) -> None:
    """Keys of every other type that come after a table has a native key wait as dead letters, are replayed, and the
    table's key is `_warp_key`; old keys keep their `_id`; each key still is changed and deleted by itself."""
    for kind, keys in NATIVE.items():
        mongo.db[kind].insert_many([{"_id": key, "v": "old"} for key in keys])
    async with replica.running():
        await replica.settled()
        assert {kind: key_type(replica, kind) for kind in NATIVE} == {kind: kind for kind in NATIVE}
        before = {kind: replica.query(f"SELECT _id FROM {kind} ORDER BY _id") for kind in NATIVE}
        for kind in NATIVE:
            mongo.db[kind].insert_many([{"_id": key, "v": "late"} for key in late_for(kind)])
        await replica.settled()
        await until(lambda: waiting(replica) == 0, "dead letters stay open")
        for kind in NATIVE:
            assert key_type(replica, kind) == "hash"
            assert primary_key(replica, kind) == ["_warp_key"]
            assert replica.query(f"SELECT _id FROM {kind} WHERE v = 'old' ORDER BY _id") == before[kind]
            count = len(NATIVE[kind]) + len(late_for(kind))
            assert replica.query(f"SELECT count(*) FROM {kind}") == [(count,)]
            everything = [*NATIVE[kind], *late_for(kind)]
            for key in everything[::2]:
                mongo.db[kind].update_one({"_id": key}, {"$set": {"v": "changed", "more": 1}})
            for key in everything[1::2]:
                mongo.db[kind].delete_one({"_id": key})
        await replica.settled()
    tables = {event.table for event in replica.heard(DeadLettered) if event.error_class == "key_type"}
    assert tables == set(NATIVE)
    states = replica.query("SELECT DISTINCT class, state FROM dead_letters")
    assert set(states) <= {("key_type", "replayed"), ("key_type", "superseded")}


@pytest.mark.parametrize(("first", "second"), [(5, 5.0), (5.0, 5), (Decimal128("5"), 5), (Int64(5), 5)])
async def test_equal_numbers_are_one_row(mongo: Any, replica: Replica, first: Any, second: Any) -> None:
    """5 and 5.0 are one document in MongoDB and one row here: changed, replaced and deleted by either."""
    mongo.db.t.insert_many([{"_id": first, "v": 1}, {"_id": 7, "v": 7}])
    async with replica.running():
        await replica.settled()
        mongo.db.t.update_one({"_id": second}, {"$set": {"v": 2}})
        await replica.settled()
        assert replica.query("SELECT v FROM t ORDER BY v") == [(2,), (7,)]
        with mongo.client.start_session() as session, session.start_transaction():  # one batch, surely
            mongo.db.t.delete_one({"_id": first}, session=session)
            mongo.db.t.insert_one({"_id": second, "v": 3}, session=session)
        await replica.settled()
        await until(lambda: waiting(replica) == 0, "dead letters stay open")
        assert replica.query("SELECT v FROM t ORDER BY v") == [(3,), (7,)]
        mongo.db.t.delete_one({"_id": first})
        await replica.settled()
    assert replica.query("SELECT v FROM t") == [(7,)]


async def test_a_number_that_changed_its_type_and_went(mongo: Any, replica: Replica) -> None:
    """A key 5 that came back as 5.0 and was deleted while the change of key was still to come leaves no row."""
    mongo.db.t.insert_many([{"_id": 5, "v": 1}, {"_id": 7, "v": 7}])
    async with replica.running():
        await replica.settled()
    with mongo.client.start_session() as session, session.start_transaction():
        mongo.db.t.delete_one({"_id": 5}, session=session)
        mongo.db.t.insert_one({"_id": 5.0, "v": 2}, session=session)
    async with held_rekey(), replica.running():
        await until(lambda: waiting(replica) == 1, "5.0 does not wait")
        mongo.db.t.delete_one({"_id": 5.0})
        await until(lambda: waiting(replica) == 0, "the delete does not settle the dead letter")
        assert replica.query("SELECT _id FROM t") == [(7,)]
    await replica.once()
    assert await replica.differences() == []


@asynccontextmanager
async def held_rekey() -> Any:
    """No change of key begins inside this block."""
    original = PostgreSQLTarget.rekey

    async def never(self: PostgreSQLTarget, table: str) -> int:
        await asyncio.sleep(3600)
        return 0

    PostgreSQLTarget.rekey = never  # type: ignore[method-assign]
    try:
        yield
    finally:
        PostgreSQLTarget.rekey = original  # type: ignore[method-assign]


class Bombs:
    """Each step of the change of key fails the first time it is reached, once before and once after its commit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[str], Awaitable[None]]) -> None:
        self.gone: list[str] = []
        self.meanwhile = meanwhile
        self.step: str | None = None
        for name in ("_add_column", "_fill", "_build_index", "_swap", "_replay"):
            monkeypatch.setattr(steps, name, self._wrapped(name, getattr(steps, name)))
        transaction = PostgreSQLTarget.transaction
        bombs = self

        @asynccontextmanager
        async def watched(target: PostgreSQLTarget, tables: Any, *, shared: bool = False) -> Any:
            mine = bombs.step if asyncio.current_task() is bombs.task else None
            async with transaction(target, tables, shared=shared) as t:
                yield t
                if mine:
                    await bombs.reach(f"{mine}: before commit")
            if mine:
                await bombs.reach(f"{mine}: after commit")

        monkeypatch.setattr(PostgreSQLTarget, "transaction", watched)
        self.task: asyncio.Task[Any] | None = None

    def _wrapped(self, name: str, function: Any) -> Any:
        async def wrapped(*arguments: Any) -> Any:
            self.task, self.step = asyncio.current_task(), name
            try:
                found = await function(*arguments)
                await self.reach(f"{name}: done")
            finally:
                self.step = None
            return found

        return wrapped

    async def reach(self, label: str) -> None:
        if label not in self.gone:
            self.gone.append(label)
            await self.meanwhile(label)
            raise Unavailable(f"injected at {label}")


async def test_a_change_of_key_that_is_killed_at_each_step(
    mongo: Any, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of key that dies before and after every commit goes on where it was, while documents of both kinds
    are inserted, changed and deleted at each of these moments; in the end all is equal."""
    monkeypatch.setattr(steps, "FILL_PAGE", 7)
    monkeypatch.setattr(steps, "REPLAY_PAGE", 5)
    monkeypatch.setattr(processor, "LONGEST_WAIT", 0.05)
    keys = [*range(20), *(f"k{n}" for n in range(12)), 2.5, {"b": 1, "a": 2}]
    turn = 0

    async def meanwhile(label: str) -> None:
        nonlocal turn
        turn += 1
        await asyncio.to_thread(write, turn)

    def write(turn: int) -> None:
        table = mongo.db.t
        table.update_one({"_id": turn % 20}, {"$set": {"v": turn}}, upsert=True)
        table.delete_one({"_id": (turn * 3) % 20})
        table.update_one({"_id": f"k{turn % 12}"}, {"$set": {"v": turn, "w": str(turn)}}, upsert=True)
        table.delete_one({"_id": f"k{(turn * 5) % 12}"})
        table.insert_many([{"_id": 1000 + turn}, {"_id": f"new{turn}"}, {"_id": {"z": turn, "a": 1}}])

    mongo.db.t.insert_many([{"_id": n, "v": n} for n in range(20)])
    async with replica.running():
        await replica.settled()
        bombs = Bombs(monkeypatch, meanwhile)
        mongo.db.t.insert_many([{"_id": key, "v": "late"} for key in keys[20:]])
        await until(lambda: "_replay: done" in bombs.gone, "the change of key does not end")
        await replica.settled()
        await until(lambda: waiting(replica) == 0, "dead letters stay open")
    for step in ("_add_column", "_fill", "_swap", "_replay"):
        assert {f"{step}: before commit", f"{step}: after commit"} <= set(bombs.gone), bombs.gone
    assert {"_fill: done", "_build_index: done", "_replay: done"} <= set(bombs.gone), bombs.gone
    assert primary_key(replica, "t") == ["_warp_key"]
    assert replica.query("SELECT count(*) FROM pg_index WHERE indrelid = 't'::regclass") == [(1,)]


async def test_an_index_whose_build_was_killed(mongo: Any, replica: Replica) -> None:
    """An index that a killed build left invalid is built again, and the change of key goes on."""
    mongo.db.t.insert_many([{"_id": n} for n in range(10)])
    async with replica.running():
        await replica.settled()
    mongo.db.t.insert_one({"_id": "late"})
    async with held_rekey(), replica.running():
        await until(lambda: waiting(replica) == 1, "the document does not wait")
    replica.query("ALTER TABLE t ADD COLUMN _warp_key bytea")
    plan = await replica.plan("t")
    from cartridge_warp.connectors.postgresql.sql import Statements

    name = Statements(replica.unit.metadata_schema, replica.unit.target)._key_index_name(plan)
    replica.query(f"CREATE UNIQUE INDEX {name} ON t (_warp_key)")
    replica.query(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}'::regclass")
    async with replica.running():
        await replica.settled()
    assert primary_key(replica, "t") == ["_warp_key"]


async def test_other_dead_letters_do_not_change_the_key(mongo: Any, replica: Replica) -> None:
    """A row that PostgreSQL refused waits as a dead letter, and the table keeps its native key over a restart."""
    mongo.db.t.insert_many([{"_id": n, "v": n} for n in range(5)])
    await replica.once()
    replica.query("ALTER TABLE t ADD CHECK (v < 100)")
    mongo.db.t.insert_one({"_id": 100, "v": 100})
    await replica.once()
    assert replica.query("SELECT class, state FROM dead_letters") == [("23514", "open")]
    async with replica.running():
        mongo.db.t.insert_one({"_id": 6, "v": 6})
        await until(lambda: replica.query("SELECT 1 FROM t WHERE _id = 6"))
        await asyncio.sleep(1)  # several rounds of the loop that looks for keys to change
    assert key_type(replica, "t") == "int"
