"""Collections that come, go, change their names and are left out for a while: in the middle of a snapshot and in
the stream; soft deletion; several schemas in one worker; restarts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cartridge_warp.config import SchemaConfig, UnitSettings, load_config
from cartridge_warp.core import WarpRunner
from cartridge_warp.errors import TargetOwned
from cartridge_warp.observe.events import ChunkCommitted, Failed, Note, Observer, SnapshotDone, SnapshotStarted
from warp_testing.direct import delete, direct, upsert
from warp_testing.replica import Replica, config_for
from warp_testing.world import columns, state, until

SLOW_COPY = {"full_load_batch_size": 10, "stream_batch_size": 50}
MANY = 1500


@pytest.fixture
def replica(mongo: Any, postgres: str) -> Replica:
    return Replica(config_for(mongo.uri, postgres, mongo.name))


@pytest.fixture
def slow(mongo: Any, postgres: str) -> Replica:
    """A replica whose snapshots take many pages."""
    return Replica(config_for(mongo.uri, postgres, mongo.name, schemas=[{"name": mongo.name, **SLOW_COPY}]))


def many(first: int = 0, **fields: Any) -> list[dict[str, Any]]:
    return [{"_id": n, "v": n, **fields} for n in range(first, first + MANY)]


async def half_way(replica: Replica, table: str = "t") -> None:
    """Wait until some pages of a table are copied, but not all."""
    await until(lambda: sum(e.rows for e in replica.heard(ChunkCommitted) if e.table == table) >= 50, "no page came")


def drop(db: Any) -> None:
    db.t.drop()


def drop_and_create(db: Any) -> None:
    db.t.drop()
    db.t.insert_many([{"_id": n, "v": -n} for n in range(MANY - 50, MANY + 50)])


def rename_away(db: Any) -> None:
    db.t.rename("away")


def rename_and_create(db: Any) -> None:
    db.t.rename("away")
    db.t.insert_many([{"_id": n, "v": "new"} for n in range(5)])


def rename_onto(db: Any) -> None:
    db.other.rename("t", dropTarget=True)


def swap(db: Any) -> None:
    """Two renames behind each other: the names change places."""
    db.t.rename("tmp")
    db.other.rename("t")
    db.tmp.rename("other")


def drop_database(db: Any) -> None:
    db.client.drop_database(db.name)


def drop_database_and_fill(db: Any) -> None:
    db.client.drop_database(db.name)
    db.t.insert_many([{"_id": n, "v": "after"} for n in range(30)])


def out(db: Any) -> None:
    db.other.aggregate([{"$addFields": {"out": True}}, {"$out": "t"}])


CHANGES = [
    drop, drop_and_create, rename_away, rename_and_create, rename_onto, swap,
    drop_database, drop_database_and_fill, out,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_in_the_middle_of_a_snapshot(mongo: Any, slow: Replica, change: Any) -> None:
    """What happens to a collection while it is copied is so in the destination, too: no row of the old one stays or
    comes back, none of the new one is missing."""
    mongo.db.t.insert_many(many())
    mongo.db.other.insert_many([{"_id": n, "other": n} for n in range(300)])
    async with slow.running():
        await half_way(slow)
        assert state(slow, "t") == "snapshotting"
        await asyncio.to_thread(change, mongo.db)
        await slow.settled()
        mongo.db.t.insert_one({"_id": "last", "v": 1})
        await slow.settled()
        await until(lambda: slow.query("SELECT 1 FROM tables WHERE state <> 'complete'") == [], "not complete")
    assert slow.query("SELECT count(*) FROM tombstones") == [(0,)]
    # A read that the server ends because its collection goes is repeated; nothing else may fail.
    assert {e.error_type for e in slow.heard(Failed)} <= {"unavailable"}


async def test_a_collection_whose_identity_changed(postgres: str) -> None:
    """A barrier that voids no row but asks for a new copy (resharding) keeps the rows, and the copy settles them."""
    async with direct(postgres, UnitSettings.of(SchemaConfig(name="s"))) as worker:
        await worker.snapshot(t=[{"_id": 1, "v": "old"}, {"_id": 2, "v": "unseen delete"}])
        await worker.barrier(5, "reshardCollection", tables=(), again=("t",))
        assert (await worker.target.tables())["t"].state == "stale"
        async with worker.target.transaction([]) as t:
            cursor = await t.c.execute("SELECT count(*) FROM s.t")
            assert await cursor.fetchone() == (2,)
        worker.clock = 6
        await worker.snapshot(t=[{"_id": 1, "v": "new"}])
        async with worker.target.transaction([]) as t:
            cursor = await t.c.execute("SELECT _id, v FROM s.t")
            assert await cursor.fetchall() == [(1, "new")]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_in_the_stream(mongo: Any, replica: Replica, change: Any) -> None:
    """The same once everything is copied; each row that went is in the audit once."""
    mongo.db.t.insert_many([{"_id": n, "v": n} for n in range(100)])
    mongo.db.other.insert_many([{"_id": n, "other": n} for n in range(50)])
    async with replica.running():
        await replica.settled()
        mongo.db.t.update_many({"_id": {"$lt": 10}}, {"$set": {"v": "changed just before"}})
        await asyncio.to_thread(change, mongo.db)
        mongo.db.t.update_one({"_id": 1}, {"$set": {"v": "changed just behind"}}, upsert=True)
        await replica.settled()
    gone = replica.query("SELECT count(*), count(DISTINCT (key, version)) FROM deletion_audit WHERE \"table\" = 't'")
    assert gone[0][0] == gone[0][1] >= (0 if change is out else 50)


async def test_a_rename_to_a_name_that_nobody_knew(mongo: Any, replica: Replica) -> None:
    """A collection that is renamed to a name without a table is copied there at once, while the worker runs."""
    mongo.db.t.insert_many([{"_id": n} for n in range(20)])
    async with replica.running():
        await replica.settled()
        mongo.db.t.rename("fresh")
        await replica.settled(15)
    assert replica.query("SELECT count(*) FROM fresh") == [(20,)]


async def test_a_rename_out_of_the_filter_and_in(mongo: Any, postgres: str) -> None:
    """Renaming into a name that is wanted brings the documents, renaming out of it removes them."""
    config = config_for(
        mongo.uri, postgres, mongo.name, schemas=[{"name": mongo.name, "table_whitelist": ["t", "late*"]}]
    )
    replica = Replica(config)
    mongo.db.t.insert_many([{"_id": n} for n in range(20)])
    mongo.db.hidden.insert_many([{"_id": n, "hidden": True} for n in range(7)])
    async with replica.running():
        await replica.settled()
        mongo.db.hidden.rename("late_1")
        mongo.db.t.rename("unwanted")
        await replica.settled(15)
    assert replica.query("SELECT count(*) FROM late_1") == [(7,)]
    assert replica.query("SELECT count(*) FROM t") == [(0,)]
    assert replica.query("SELECT to_regclass('unwanted')") == [(None,)]


async def test_what_cannot_be_mirrored(mongo: Any, replica: Replica) -> None:
    """Views, time-series and system.* are named once with the reason and get no table, also those made later."""
    mongo.db.t.insert_many([{"_id": n} for n in range(5)])
    mongo.db.create_collection("view", viewOn="t", pipeline=[])
    mongo.db.create_collection("series", timeseries={"timeField": "at"})
    async with replica.running():
        await until(lambda: state(replica, "t") == "complete")
        mongo.db.create_collection("later_view", viewOn="t", pipeline=[])
        mongo.db.t.insert_one({"_id": 6})
        mongo.db.other.insert_one({"_id": 1})
        await until(lambda: state(replica, "other") == "complete")
        mongo.db.other.rename("t", dropTarget=True)  # plans again
        await until(lambda: replica.query("SELECT _id FROM t") == [(1,)])
    known = {name for (name,) in replica.query("SELECT collection FROM tables")}
    assert known <= {"t", "other"}
    for name in ("view", "series"):
        notes = [e.message for e in replica.heard(Note) if e.table == name]
        assert len(notes) == 1, notes
        assert name in notes[0]
        assert "not mirrored" in notes[0]


async def test_a_collection_that_became_a_view_unseen(mongo: Any, replica: Replica) -> None:
    """A collection that is a view when everything is copied again loses its rows, and the worker goes on."""
    mongo.db.t.insert_many([{"_id": n} for n in range(5)])
    mongo.db.base.insert_one({"_id": 1})
    await replica.once()
    mongo.db.t.drop()
    mongo.db.create_collection("t", viewOn="base", pipeline=[])
    replica.query(
        "UPDATE sync_markers SET position ="
        " jsonb_set(position, '{time,0}', to_jsonb((position #>> '{time,0}')::bigint + 3600))"
    )
    await replica.once()
    assert replica.query("SELECT count(*) FROM t") == [(0,)]
    assert [e for e in replica.heard(Note) if e.table == "t"]


async def test_new_and_empty_collections(mongo: Any, replica: Replica) -> None:
    """Collections made while the worker runs are copied and followed; an empty one is complete without a table."""
    mongo.db.create_collection("empty")
    mongo.db.t.insert_one({"_id": 1})
    async with replica.running():
        await replica.settled()
        mongo.db.fresh.insert_many([{"_id": n, "v": n} for n in range(50)])
        mongo.db.create_collection("also_empty")
        await replica.settled()
        mongo.db.empty.insert_one({"_id": "first"})
        mongo.db.also_empty.insert_one({"_id": 2.5})
        mongo.db.fresh.delete_many({"_id": {"$gte": 10}})
        await replica.settled()
        await until(lambda: state(replica, "fresh") == "complete")
    assert state(replica, "empty") == "complete"
    assert replica.query("SELECT count(*) FROM fresh") == [(10,)]


async def test_a_filter_narrowed_and_widened_again(mongo: Any, postgres: str) -> None:
    """What happened to a collection while the filter left it out is there after the filter lets it in again."""

    def filtered(**filters: Any) -> Replica:
        return Replica(config_for(mongo.uri, postgres, mongo.name, schemas=[{"name": mongo.name, **filters}]))

    wide, narrow = filtered(), filtered(table_blacklist=["t", "gone*"])
    for name in ("t", "gone", "stays"):
        mongo.db[name].insert_many([{"_id": n, "v": n} for n in range(30)])
    await wide.once()
    async with narrow.running():
        mongo.db.t.insert_many([{"_id": n, "v": n} for n in range(100, 110)])
        mongo.db.t.update_many({"_id": {"$lt": 5}}, {"$set": {"v": "changed"}})
        mongo.db.t.delete_many({"_id": {"$gte": 20, "$lt": 30}})
        mongo.db.gone.drop()
        mongo.db.stays.insert_one({"_id": 1000})
        await until(lambda: narrow.query("SELECT 1 FROM stays WHERE _id = 1000"))
        assert narrow.query("SELECT count(*), max(_id) FROM t") == [(30, 29)]
        assert (state(narrow, "t"), state(narrow, "gone")) == ("excluded", "excluded")
    await narrow.once()
    async with wide.running():
        await wide.settled()
        await until(lambda: state(wide, "t") == "complete" and state(wide, "gone") == "complete")
    assert wide.query("SELECT count(*) FROM gone") == [(0,)]
    swept = wide.query("SELECT \"table\", count(*) FROM deletion_audit WHERE reason = 'sweep' GROUP BY 1 ORDER BY 1")
    assert swept == [("gone", 30), ("t", 10)]
    assert {e.table for e in wide.heard(SnapshotStarted)} == {"t", "gone", "stays"}


# -- soft deletion ----------------------------------------------------------------------------------------------


def soft(mongo: Any, postgres: str, **more: Any) -> Replica:
    return Replica(
        config_for(mongo.uri, postgres, mongo.name, schemas=[{"name": mongo.name, "deletion_strategy": "soft", **more}])
    )


@pytest.mark.parametrize("column", ["is_deleted", "weg"])
async def test_soft_deletion(mongo: Any, postgres: str, column: str) -> None:
    """A deleted document's row stays with its values, marked with the time; an insert of the same key unmarks it; a
    drop marks all that is left; the source's own fields of these names keep their values."""
    replica = soft(mongo, postgres, soft_delete_column=column)
    mongo.db.t.insert_many([{"_id": n, "v": n, column: "own", "deleted_at": "own"} for n in range(6)])
    async with replica.running():
        await replica.settled()
        mongo.db.t.delete_many({"_id": {"$lt": 3}})
        await replica.settled()
        rows = replica.query(f"SELECT _id, v, {column}, deleted_at IS NOT NULL FROM t ORDER BY _id")
        assert rows == [(n, n, n < 3, n < 3) for n in range(6)]
        fresh = replica.query("SELECT bool_and(deleted_at BETWEEN now() - interval '1 min' AND now() + '1 min') FROM t")
        assert fresh == [(True,)]
        mongo.db.t.insert_one({"_id": 0, "again": True})
        await replica.settled()
        assert replica.query(f"SELECT v, again, {column}, deleted_at FROM t WHERE _id = 0") == [
            (None, True, False, None)
        ]
        mongo.db.t.drop()
        await replica.settled()
        assert replica.query(f"SELECT count(*) FILTER (WHERE {column}), count(*) FROM t") == [(6, 6)]
    reasons = replica.query("SELECT reason, count(*) FROM deletion_audit GROUP BY 1 ORDER BY 1")
    assert reasons == [("delete", 3), ("drop", 4)]


async def test_soft_deletion_switched_on_later(mongo: Any, postgres: str) -> None:
    """Soft deletion switched on for a table that exists adds its columns; deletes from then on are marked."""
    mongo.db.t.insert_many([{"_id": n} for n in range(4)])
    await Replica(config_for(mongo.uri, postgres, mongo.name)).once()
    replica = soft(mongo, postgres)
    async with replica.running():
        mongo.db.t.insert_one({"_id": 4})
        mongo.db.t.delete_one({"_id": 1})
        await replica.settled()
    assert columns(replica, "t")["deleted_at"] == "timestamp with time zone"
    assert replica.query("SELECT _id, is_deleted FROM t WHERE _id IN (1, 4) ORDER BY 1") == [(1, True), (4, False)]


async def test_soft_deletion_and_the_sweep(mongo: Any, postgres: str) -> None:
    """A sweep marks what was deleted unseen, and leaves what was marked before as it is."""
    wide = soft(mongo, postgres)
    narrow = soft(mongo, postgres, table_blacklist=["t"])
    mongo.db.t.insert_many([{"_id": n} for n in range(6)])
    async with wide.running():
        await wide.settled()
        mongo.db.t.delete_one({"_id": 0})
        await wide.settled()
    before = wide.query("SELECT deleted_at, _warp_version FROM t WHERE _id = 0")
    async with narrow.running():
        await until(lambda: state(narrow, "t") == "excluded")
    mongo.db.t.delete_many({"_id": {"$in": [1, 2]}})
    await wide.once()
    assert wide.query("SELECT array_agg(_id ORDER BY _id) FROM t WHERE is_deleted") == [([0, 1, 2],)]
    assert wide.query("SELECT deleted_at, _warp_version FROM t WHERE _id = 0") == before


@pytest.mark.parametrize("cuts", ["one batch", "a batch each"])
async def test_how_batches_are_cut_does_not_matter(postgres: str, cuts: str) -> None:
    """Insert, change and delete lead to the same rows in one batch and in several; the delete of a key without a row
    makes none."""
    settings = UnitSettings.of(SchemaConfig(name="s", deletion_strategy="soft"))
    changes = [
        upsert(1, {"_id": 1, "v": "stays"}),
        upsert(2, {"_id": 2, "v": "old"}),
        upsert(3, {"_id": 2, "v": "deleted"}),
        delete(4, 2),
        upsert(5, {"_id": 3, "v": "first"}),
        delete(6, 3),
        upsert(7, {"_id": 3, "v": "again"}),
        delete(8, 99),
    ]
    async with direct(postgres, settings) as worker:
        for part in [changes] if cuts == "one batch" else [[change] for change in changes]:
            await worker.stream(*part)
        async with worker.target.transaction([]) as t:
            cursor = await t.c.execute("SELECT _id, v, is_deleted, deleted_at IS NOT NULL FROM s.t ORDER BY _id")
            rows = await cursor.fetchall()
            cursor = await t.c.execute("SELECT count(*) FROM cartridge_warp_metadata.deletion_audit WHERE version > 0")
            audited = await cursor.fetchone()
    assert rows == [(1, "stays", False, False), (2, "deleted", True, True), (3, "again", False, False)]
    assert audited is not None
    assert audited[0] >= 1


# -- several schemas, modes, restarts -------------------------------------------------------------------------------


def multi(mongo: Any, postgres: str, *schemas: dict[str, Any], **more: Any) -> Any:
    base: dict[str, Any] = {
        "mode": "multi",
        "source": {"type": "mongodb", "connection_string": mongo.uri.rsplit("/", 1)[0] + "/"},
        "destination": {"type": "postgresql", "connection_string": postgres},
        "schemas": list(schemas),
    }
    return load_config(environ={}, overrides=base | more)


@pytest.fixture
def second(mongo: Any) -> Any:
    """Another database on the same server."""
    name = f"{mongo.name}b"
    yield mongo.client[name]
    mongo.client.drop_database(name)


async def test_two_databases_into_one_destination(mongo: Any, second: Any, postgres: str) -> None:
    """Collections of one name in two databases are two tables, in schemas whose names the configuration gives."""
    mongo.db.t.insert_one({"_id": 1, "from": "first"})
    second.t.insert_one({"_id": 1, "from": "second"})
    config = multi(
        mongo, postgres, {"name": mongo.name, "target_schema": "one"}, {"name": "x", "database": second.name}
    )
    replica = Replica(config)
    assert [unit.target for unit in config.units()] == ["one", "x"]
    async with replica.running():
        await until(lambda: None not in replica.query("SELECT to_regclass('one.t'), to_regclass('x.t')")[0])
        mongo.db.t.update_one({"_id": 1}, {"$set": {"n": 1}})
        second.t.update_one({"_id": 1}, {"$set": {"n": 2}})
        both = 'SELECT a."from", a.n, b."from", b.n FROM one.t a, x.t b'
        await until(lambda: "n" in columns_of(replica, "one") and "n" in columns_of(replica, "x"))
        await until(lambda: replica.query(both) == [("first", 1, "second", 2)])


def columns_of(replica: Replica, schema: str) -> set[str]:
    found = replica.query(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = 't'", schema
    )
    return {name for (name,) in found}


@pytest.mark.parametrize("once", [False, True])
async def test_a_failing_schema_stops_no_other(mongo: Any, second: Any, postgres: str, once: bool) -> None:
    """In multi mode a schema whose target belongs to somebody else fails with one sentence; the other one goes on."""
    mongo.db.t.insert_one({"_id": 1})
    second.t.insert_one({"_id": 1})
    owner = multi(mongo, postgres, {"name": second.name}, identity="somebody else")
    await asyncio.wait_for(WarpRunner(owner, once=True).start(), 60)
    replica = Replica(multi(mongo, postgres, {"name": second.name}, {"name": mongo.name}))
    good = Replica(config_for(mongo.uri, postgres, mongo.name))
    if once:
        with pytest.raises(TargetOwned, match="somebody else"):
            await replica.once()
    else:
        async with replica.running():
            await good.settled()
            second.t.insert_one({"_id": 2})
            mongo.db.t.insert_one({"_id": 2})
            await good.settled()
    assert await good.differences() == []
    assert replica.query(f'SELECT _id FROM "{second.name}".t') == [(1,)]
    assert "somebody else" in next(e.message for e in replica.heard(Failed) if e.error_type == "target_owned")


async def test_a_restart_goes_on_where_it_was(mongo: Any, replica: Replica) -> None:
    """After a restart nothing is copied a second time; what happened meanwhile comes by the stream."""
    mongo.db.t.insert_many([{"_id": n} for n in range(100)])
    await replica.once()
    mongo.db.t.insert_one({"_id": 100})
    mongo.db.t.delete_one({"_id": 0})
    copied = len(replica.heard(ChunkCommitted))
    for _ in range(2):
        async with replica.running():
            await replica.settled()
    assert len(replica.heard(ChunkCommitted)) == copied
    assert len(replica.heard(SnapshotDone)) == 1


async def test_full_load_switched_off(mongo: Any, postgres: str) -> None:
    """With full_load_enabled: false a table begins with the first change after the start."""
    table = {"name": "t", "full_load_enabled": False}
    replica = Replica(config_for(mongo.uri, postgres, mongo.name, schemas=[{"name": mongo.name, "tables": [table]}]))
    mongo.db.t.insert_many([{"_id": n} for n in range(10)])
    mongo.db.whole.insert_many([{"_id": n} for n in range(10)])
    async with replica.running():
        await until(lambda: state(replica, "whole") == "complete")
        mongo.db.t.insert_one({"_id": 10})
        mongo.db.t.update_one({"_id": 3}, {"$set": {"v": 1}})
        await until(lambda: state(replica, "t") and replica.query("SELECT to_regclass('t') IS NOT NULL") == [(True,)])
        await until(lambda: replica.query("SELECT array_agg(_id ORDER BY _id) FROM t") == [([3, 10],)])
    await replica.once()
    assert replica.query("SELECT array_agg(_id ORDER BY _id) FROM t") == [([3, 10],)]
    assert [e.table for e in replica.heard(SnapshotDone)] == ["whole"]


async def test_mode_snapshot_ends(mongo: Any, postgres: str) -> None:
    """Mode snapshot copies everything, ends by itself, and a second run brings what has changed since."""
    replica = Replica(config_for(mongo.uri, postgres, mongo.name, schemas=[{"name": mongo.name, "mode": "snapshot"}]))
    mongo.db.t.insert_many([{"_id": n} for n in range(100)])
    await asyncio.wait_for(WarpRunner(replica.config, observer=replica.observer()).start(), 60)
    assert await replica.differences() == []
    mongo.db.t.delete_many({"_id": {"$lt": 50}})
    await asyncio.wait_for(WarpRunner(replica.config, observer=replica.observer()).start(), 60)
    assert await replica.differences() == []


async def test_a_source_whose_time_went_back(mongo: Any, replica: Replica) -> None:
    """A restored source, whose time is behind what was written: the position counts as lost, it is recorded, versions
    are raised above the old ones, and every row is replaced by what the source holds now."""
    mongo.db.t.insert_many([{"_id": n, "v": "old"} for n in range(20)])
    await replica.once()
    mongo.db.t.update_many({"_id": {"$lt": 10}}, {"$set": {"v": "restored"}})
    mongo.db.t.delete_many({"_id": {"$gte": 15}})
    replica.query(  # as if all this had been written an hour later than the source's present
        "UPDATE sync_markers SET version = version + (3600::bigint << 32),"
        " position = jsonb_set(position, '{time,0}', to_jsonb((position #>> '{time,0}')::bigint + 3600))"
    )
    replica.query("UPDATE t SET _warp_version = _warp_version + (3600::bigint << 32), v = 'from the future'")
    replica.query("UPDATE tables SET stamp = stamp + (3600::bigint << 32)")
    async with replica.running():
        await replica.settled()
        mongo.db.t.update_one({"_id": 1}, {"$set": {"v": "and on"}})
        await replica.settled()
    assert replica.query("SELECT version_offset > 0 FROM sync_markers WHERE kind = 'stream'") == [(True,)]
    assert [e.error_type for e in replica.heard(Failed)] == ["position_lost"]
    assert replica.query("SELECT class FROM error_log") == [("position_lost",)]
    assert replica.query("SELECT count(*) FROM deletion_audit WHERE reason = 'sweep'") == [(5,)]


async def test_a_position_lost_before_anything_was_written(mongo: Any, replica: Replica) -> None:
    """The position of an empty destination can be lost, too: no offset is needed then."""
    await replica.once()
    replica.query(
        "UPDATE sync_markers SET position ="
        " jsonb_set(position, '{time,0}', to_jsonb((position #>> '{time,0}')::bigint + 3600))"
    )
    mongo.db.t.insert_one({"_id": 1})
    await replica.once()
    assert await replica.differences() == []
    assert replica.query("SELECT version_offset FROM sync_markers WHERE kind = 'stream'") == [(0,)]


async def test_notes_reach_the_observer_of_each_schema(mongo: Any, second: Any, postgres: str) -> None:
    """Every event names its schema, so that two schemas in one worker can be told apart."""
    mongo.db.t.insert_one({"_id": 1})
    second.t.insert_one({"_id": 1})
    events: list[Any] = []
    config = multi(mongo, postgres, {"name": mongo.name}, {"name": second.name})
    await asyncio.wait_for(WarpRunner(config, observer=Observer(events.append), once=True).start(), 60)
    assert {e.schema for e in events if isinstance(e, SnapshotDone)} == {mongo.name, second.name}
