"""Compaction of a batch, and source transactions that stay whole; simple connectors through the runner; the
PostgreSQL destination by the project's own conformance suite."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bson import Decimal128, Int64, ObjectId
from hypothesis import given
from hypothesis import strategies as st
from psycopg.rows import dict_row

from cartridge_warp.config import DestinationConfig, SchemaConfig, UnitSettings, load_config
from cartridge_warp.conformance import DestinationConformance
from cartridge_warp.connectors.postgresql import PostgreSQLDestinationConnector
from cartridge_warp.core import WarpRunner
from cartridge_warp.core.batch import compact
from cartridge_warp.kernel import identity
from cartridge_warp.observe.events import Committed
from cartridge_warp.records import Batch, BatchMarker, Change, Op, OperationType, TableBatch
from warp_testing.direct import START, delete, direct, upsert
from warp_testing.proxy import Proxy
from warp_testing.replica import Replica, config_for
from warp_testing.servers import PostgresServer
from warp_testing.world import until

EXAMPLES = Path(__file__).parents[1] / "examples" / "connectors"

# -- compaction -----------------------------------------------------------------------------------------------------


def batch_of(*changes: Change, table: str = "t") -> Batch:
    return Batch(BatchMarker({}), {table: TableBatch(table, list(changes))})


def compacted(*changes: Change, offset: int = 0) -> list[Change]:
    batch = batch_of(*changes)
    compact(batch, offset)
    return batch.tables["t"].changes


def fetch(version: int, key: Any) -> Change:
    return Change(Op.FETCH, key, START + version, operation=OperationType.UPDATE)


def test_the_last_change_of_a_key_wins() -> None:
    """One change for each key is left, the last one, in the order of the last changes."""
    left = compacted(upsert(1, {"_id": 1}), upsert(2, {"_id": 2}), upsert(3, {"_id": 1, "v": 3}))
    assert [(change.key, change.version - START) for change in left] == [(2, 2), (1, 3)]


@pytest.mark.parametrize("same", [(5, 5.0), (5, Decimal128("5")), (5, Int64(5)), ({"a": 1}, {"a": 1.0})])
def test_keys_that_mongodb_holds_equal_are_one(same: tuple[Any, Any]) -> None:
    """5 and 5.0 are one key, recursively."""
    assert len(compacted(upsert(1, {"_id": same[0]}), upsert(2, {"_id": same[1]}))) == 1


@pytest.mark.parametrize("two", [(1, "1"), (1, True), (None, ""), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), (b"a", "a")])
def test_keys_that_look_alike_are_two(two: tuple[Any, Any]) -> None:
    """What MongoDB holds apart stays apart."""
    assert len(compacted(upsert(1, {"_id": two[0]}), upsert(2, {"_id": two[1]}))) == 2
    oid = ObjectId()
    assert len(compacted(upsert(1, {"_id": oid}), delete(2, str(oid)))) == 2


def test_a_delete_keeps_the_last_image() -> None:
    """A delete carries the last whole document before it, over updates without a document; a delete behind that of
    the same key does too."""
    (change,) = compacted(upsert(1, {"_id": 1, "v": 1}), upsert(2, {"_id": 1, "v": 2}), fetch(3, 1), delete(4, 1))
    assert change.op is Op.DELETE
    assert change.image == upsert(2, {"_id": 1, "v": 2}).image
    (change,) = compacted(upsert(1, {"_id": 1}), delete(2, 1), delete(3, 1))
    assert change.image is not None
    (change,) = compacted(fetch(1, 1), delete(2, 1))
    assert change.image is None


def test_an_insert_behind_a_delete() -> None:
    """A new document of a deleted key is an upsert of that document."""
    (change,) = compacted(upsert(1, {"_id": 1, "v": "old"}), delete(2, 1), upsert(3, {"_id": 1, "v": "new"}))
    assert (change.op, change.image) == (Op.UPSERT, upsert(3, {"_id": 1, "v": "new"}).image)


CHANGES = st.lists(st.tuples(st.sampled_from(["upsert", "fetch", "delete"]), st.integers(0, 3)), max_size=25)


@given(CHANGES, st.integers(-5, 5))
def test_compaction_never_changes_the_outcome(steps: list[tuple[str, int]], offset: int) -> None:
    """For every history: one change a key, that key's last one, with the offset added once; compacting again leaves
    all as it is."""
    changes = [
        upsert(n, {"_id": key, "n": n}) if kind == "upsert" else fetch(n, key) if kind == "fetch" else delete(n, key)
        for n, (kind, key) in enumerate(steps)
    ]
    last = {key: (kind, n) for n, (kind, key) in enumerate(steps)}
    batch = batch_of(*changes)
    compact(batch, offset)
    left = batch.tables["t"].changes
    assert {identity(change.key): (change.op.value, change.version - START - offset) for change in left} == last
    assert len(left) == len(last)
    assert [change.version for change in left] == sorted(change.version for change in left)
    before = list(left)
    compact(batch, 0)
    assert batch.tables["t"].changes == before


async def test_operations_are_counted_once(postgres: str) -> None:
    """What a commit reports is what happened to rows: a soft delete of a row inserted in the same batch is one."""
    async with direct(postgres, UnitSettings.of(SchemaConfig(name="s", deletion_strategy="soft"))) as worker:
        await worker.stream(upsert(1, {"_id": 1}), upsert(2, {"_id": 2}), delete(3, 2))
        (event,) = worker.heard(Committed)
        assert event.operations == {"t": {"insert": 1, "delete": 1}}


# -- transactions ---------------------------------------------------------------------------------------------------


async def test_a_source_transaction_is_one_transaction_here(mongo: Any, postgres: str) -> None:
    """All documents of a multi-document transaction, in several collections and far above the batch sizes, are
    written by one destination transaction each time; single writes around them are not mixed up."""
    small = {"stream_batch_size": 3, "write_batch_size": 2}
    replica = Replica(config_for(mongo.uri, postgres, mongo.name, schemas=[{"name": mongo.name, **small}]))
    mongo.db.a.insert_one({"_id": 0, "turn": 0})
    mongo.db.b.insert_one({"_id": 0, "turn": 0})
    await replica.once()
    replica.query("CREATE TABLE written (turn bigint, transaction bigint)")
    replica.query(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f' INSERT INTO "{replica.unit.target}".written VALUES (NEW.turn, txid_current()); RETURN NULL; END $$'
    )
    for table in ("a", "b"):
        replica.query(f"CREATE TRIGGER note AFTER INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION note()")

    def transact(turn: int) -> None:
        with mongo.client.start_session() as session, session.start_transaction():
            for n in range(40):
                table = mongo.db["ab"[n % 2]]
                table.insert_one({"_id": turn * 1000 + n, "turn": turn}, session=session)
            mongo.db.a.update_one({"_id": turn * 1000}, {"$set": {"more": turn}}, session=session)

    async with replica.running():
        for turn in range(1, 6):
            mongo.db.a.insert_one({"_id": -turn, "turn": -turn})
            await asyncio.to_thread(transact, turn)
            mongo.db.b.insert_many([{"_id": -turn * 100 - n, "turn": -turn * 100 - n} for n in range(7)])
        await replica.settled()
    transactions = dict(
        replica.query("SELECT turn, count(DISTINCT transaction) FROM written WHERE turn > 0 GROUP BY turn")
    )
    assert transactions == dict.fromkeys(range(1, 6), 1)
    single = replica.query("SELECT count(DISTINCT transaction) FROM written WHERE turn < 0")
    assert single[0][0] > 1


async def test_a_transaction_beyond_its_bound_is_cut_and_said(mongo: Any, postgres: str) -> None:
    """A source transaction above max_transaction_bytes is written in parts, nothing of it is lost, and it is said."""
    from cartridge_warp.observe.events import Note

    limits = {"max_transaction_bytes": 65536, "max_batch_bytes": 65536}
    replica = Replica(config_for(mongo.uri, postgres, mongo.name, schemas=[{"name": mongo.name, **limits}]))
    mongo.db.t.insert_one({"_id": 0})
    async with replica.running():
        await replica.settled()
        with mongo.client.start_session() as session, session.start_transaction():
            mongo.db.t.insert_many([{"_id": n, "text": "x" * 4000} for n in range(1, 60)], session=session)
        await replica.settled()
    assert replica.query("SELECT count(DISTINCT xmin::text) > 1 FROM t WHERE _id > 0") == [(True,)]
    assert [e for e in replica.heard(Note) if "max_transaction_bytes" in e.message]


# -- simple connectors through the runner -----------------------------------------------------------------------------


def put(folder: Path, table: str, *rows: Mapping[str, Any]) -> None:
    (folder / "shop").mkdir(parents=True, exist_ok=True)
    with (folder / "shop" / f"{table}.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def folded(folder: Path, schema: str, table: str, key: str) -> dict[Any, dict[str, Any]]:
    """What a log of lines comes to."""
    rows: dict[Any, dict[str, Any]] = {}
    path = folder / schema / f"{table}.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        rows.pop(row[key], None)
        if not row.get("_deleted"):
            rows[row[key]] = row
    return rows


def config(source: dict[str, Any], destination: dict[str, Any], **more: Any) -> Any:
    base = {
        "mode": "single",
        "plugins": ["jsonl_source", "jsonl_destination"],
        "source": source,
        "destination": destination,
        "polling_interval": "100ms",
        "schemas": [{"name": "shop"}],
    }
    return load_config(environ={}, overrides=base | more)


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    if str(EXAMPLES) not in sys.path:
        monkeypatch.syspath_prepend(str(EXAMPLES))


async def test_files_into_postgresql(tmp_path: Path, postgres: str) -> None:
    """The example's own configuration: rows of files are rows of tables, followed while it runs and after a restart."""
    inbox = tmp_path / "inbox"
    put(inbox, "orders", {"id": 1, "total": 9.5}, {"id": 2, "total": 1}, {"id": 1, "total": 10.5})
    environ = {
        "CARTRIDGE_WARP_DESTINATION__CONNECTION_STRING": postgres,
        "CARTRIDGE_WARP_SOURCE__PARAMETERS__FOLDER": str(inbox),
    }
    settings = load_config(
        EXAMPLES / "config.yaml", environ=environ, overrides={"source": {"parameters": {"folder": str(inbox)}}}
    )
    replica = Replica(settings)
    async with replica.running():
        await until(lambda: replica.query("SELECT to_regclass('shop.orders') IS NOT NULL") == [(True,)])
        await until(lambda: len(replica.query("SELECT id FROM shop.orders")) == 2)
        put(inbox, "orders", {"id": 3, "total": 7, "note": "late"}, {"id": 2, "_deleted": True})
        put(inbox, "people", {"id": "bob", "n": 1}, {"id": "ada", "n": 1}, {"id": "ada", "list": [1, {"x": "y"}]})
        await until(lambda: [row[0] for row in replica.query("SELECT id FROM shop.orders ORDER BY id")] == [1, 3])
        await until(lambda: replica.query("SELECT to_regclass('shop.people') IS NOT NULL") == [(True,)])
        await until(lambda: replica.query("SELECT id FROM shop.people ORDER BY id") == [("ada",), ("bob",)])
        people = replica.query("SELECT n, list FROM shop.people ORDER BY id")
        assert people == [(None, [1, {"x": "y"}]), (1, None)]
    put(inbox, "orders", {"id": 1, "total": 11})
    await replica.once()
    rows = replica.query("SELECT id, total::float, note FROM shop.orders ORDER BY id")
    assert rows == [(1, 11.0, None), (3, 7.0, "late")]


async def test_mongodb_into_files(mongo: Any, tmp_path: Path) -> None:
    """Collections into the example's folder of files: inserts, updates, deletes, a drop, and a restart."""
    out = tmp_path / "out"
    settings = config(
        {"type": "mongodb", "connection_string": mongo.uri, "database": mongo.name},
        {"type": "jsonl", "parameters": {"folder": str(out)}},
    )
    mongo.db.t.insert_many([{"_id": n, "v": n, "nested": {"list": [1, "2"]}} for n in range(50)])
    replica = Replica(settings)

    def rows() -> dict[Any, dict[str, Any]]:
        return folded(out, "shop", "t", "_id")

    async with replica.running():
        await until(lambda: len(rows()) == 50)
        mongo.db.t.update_one({"_id": 1}, {"$set": {"v": "changed"}, "$unset": {"nested": 1}})
        mongo.db.t.delete_many({"_id": {"$gte": 40}})
        mongo.db.u.insert_one({"_id": ObjectId("5eedda7a5eedda7a5eedda7a")})
        await until(lambda: len(rows()) == 40 and rows()[1] == {"_id": 1, "v": "changed"})
        await until(lambda: folded(out, "shop", "u", "_id"))
    mongo.db.t.insert_one({"_id": "later"})
    await replica.once()
    assert len(rows()) == 41
    async with replica.running():
        mongo.db.t.drop()
        await until(lambda: not rows())


async def test_files_into_files(tmp_path: Path) -> None:
    """Both ends of the simple level: the same rows, also after a restart, also behind a batch that came twice."""
    inbox, out = tmp_path / "inbox", tmp_path / "out"
    put(inbox, "orders", *({"id": n, "v": n} for n in range(30)), {"id": 3, "_deleted": True})
    settings = config(
        {"type": "jsonl", "parameters": {"folder": str(inbox)}}, {"type": "jsonl", "parameters": {"folder": str(out)}}
    )
    await asyncio.wait_for(WarpRunner(settings, once=True).start(), 60)
    assert folded(out, "shop", "orders", "id") == folded(inbox, "shop", "orders", "id")
    put(inbox, "orders", {"id": 3, "v": "again"}, {"id": 4, "_deleted": True})
    put(inbox, "new", {"id": 1})
    markers = out / "shop" / "markers.json"
    before = markers.read_bytes()
    await asyncio.wait_for(WarpRunner(settings, once=True).start(), 60)
    markers.write_bytes(before)  # as if it had been killed before the position was stored
    await asyncio.wait_for(WarpRunner(settings, once=True).start(), 60)
    for table in ("orders", "new"):
        assert folded(out, "shop", table, "id") == folded(inbox, "shop", table, "id")


# -- the PostgreSQL destination's simple methods --------------------------------------------------------------------


class Rig:
    """PostgreSQL behind a proxy, so that it can be made unreachable."""

    schema = "shop"
    other_schema = "library"

    def __init__(self, server: PostgresServer, database: str) -> None:
        self.direct = server.uri(database)
        self.proxy = Proxy(server.port)
        self.uri = f"postgresql://postgres@127.0.0.1:{self.proxy.port}/{database}?connect_timeout=2"

    def new(self) -> Any:
        """What a restarted worker would have: the connections of the killed one are gone, and the server knows."""
        self.proxy.cut()
        with psycopg.connect(self.direct, autocommit=True) as connection:
            gone = (
                "SELECT count(*) = 0 FROM pg_stat_activity"
                " WHERE application_name LIKE 'cartridge-warp%%' AND datname = %s"
            )
            while connection.execute(gone, (connection.info.dbname,)).fetchone() != (True,):
                time.sleep(0.01)
        return PostgreSQLDestinationConnector(DestinationConfig(type="postgresql", connection_string=self.uri))

    async def rows(self, schema: str, table: str) -> Sequence[Mapping[str, Any]]:
        async with await psycopg.AsyncConnection.connect(self.direct, row_factory=dict_row) as connection:
            found = await connection.execute(
                "SELECT to_regclass(format('%%I.%%I', %s::text, %s::text)) t", (schema, table)
            )
            row = await found.fetchone()
            if row is None or row["t"] is None:
                return []
            return await (await connection.execute(f'SELECT * FROM "{schema}"."{table}"')).fetchall()  # type: ignore[arg-type]

    async def break_off(self) -> None:
        self.proxy.refuse()
        self.proxy.cut()


class TestPostgreSQL(DestinationConformance):
    @pytest.fixture
    async def conformant_destination(self, postgres_server: PostgresServer, postgres: str) -> AsyncIterator[Rig]:
        rig = Rig(postgres_server, postgres.rsplit("/", 1)[1])
        yield rig
        rig.proxy.close()


async def test_a_missing_position_is_never_taken_for_now(mongo, postgres):
    """Tables without a stored position are copied again with a sweep: the gap cannot be known."""
    replica = Replica(config_for(mongo.uri, postgres, mongo.name))
    mongo.db.things.insert_many([{"_id": i} for i in range(20)])
    await replica.once()
    replica.query("DELETE FROM sync_markers")
    mongo.db.things.delete_many({"_id": {"$lt": 5}})
    mongo.db.things.insert_one({"_id": 100})
    await replica.once()
    assert await replica.differences() == []
    assert replica.query("SELECT count(*) FROM workers WHERE config_hash <> ''")[0][0] >= 1
