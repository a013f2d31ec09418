"""Interleavings and inputs that once lost, revived or held up something: found by review, each with the moment
arranged by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from cartridge_warp.config import SchemaConfig, UnitSettings
from cartridge_warp.connectors.postgresql import PostgreSQLDestinationConnector
from cartridge_warp.errors import ConfigError, SourceChanged
from cartridge_warp.records import Bounds, SourceIdentity
from warp_testing.direct import delete, direct, upsert
from warp_testing.replica import Replica, config_for

TARGET = "target"


def settings(**parts: Any) -> UnitSettings:
    return UnitSettings.of(SchemaConfig(name=TARGET, **parts))


def rows(uri: str, query: str) -> list[Any]:
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(f"SET search_path = {TARGET}, cartridge_warp_metadata")
        return connection.execute(query).fetchall()


def run(uri: str, *statements: str) -> None:
    with psycopg.connect(uri, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize("way", ["stream", "snapshot"])
async def test_a_table_whose_creation_is_blocked_takes_its_rows_later(postgres: str, way: str) -> None:
    """A reader's lock on a table that is to be adopted delays the first rows of its collection; it loses none."""
    run(postgres, f"CREATE SCHEMA {TARGET}", f"CREATE TABLE {TARGET}.t (_id bigint PRIMARY KEY, a text)")
    async with direct(postgres, settings()) as d:
        with psycopg.connect(postgres) as reader:
            reader.execute(f"SELECT * FROM {TARGET}.t")
            if way == "stream":
                task = asyncio.create_task(d.stream(upsert(1, {"_id": 1, "a": "x"})))
            else:
                task = asyncio.create_task(d.snapshot(t=[{"_id": 1, "a": "x"}]))
            await asyncio.wait({task}, timeout=4)
            reader.rollback()
        await asyncio.wait_for(task, 30)
        if way == "stream":
            assert (await d.target.tables())["t"].open_chunks
    assert rows(postgres, "SELECT _id, a FROM t") == [(1, "x")]


async def test_a_structure_change_that_was_rolled_back_leaves_nothing_behind(postgres: str) -> None:
    """After a transaction that added columns has failed, the same version may have other columns."""
    async with direct(postgres, settings()) as d:
        await d.stream(upsert(1, {"_id": 1}))
        save = d.target.markers.advance

        async def fails(*_: Any) -> Any:
            raise psycopg.OperationalError("the connection is lost")

        d.target.markers.advance = fails  # type: ignore[method-assign]
        with pytest.raises(Exception, match="lost"):
            await d.stream(upsert(2, {"_id": 2, "a": 1, "b": 2}))
        d.target.markers.advance = save  # type: ignore[method-assign]
        await d.target.resume()
        await d.stream(upsert(2, {"_id": 2, "a": 1}))
        await d.stream(upsert(3, {"_id": 3, "b": 2}))
    assert rows(postgres, "SELECT _id, a, b FROM t ORDER BY _id") == [(1, None, None), (2, 1, None), (3, None, 2)]


async def test_a_batch_that_is_tried_again_meets_another_plan_of_the_same_version(postgres: str) -> None:
    """What a batch prepared for its own rolled back version does not serve somebody else's version of that number."""
    async with direct(postgres, settings()) as d:
        await d.stream(upsert(1, {"_id": 1}))
        save, tries = d.target.markers.advance, []

        async def fails_once(*parts: Any) -> Any:
            tries.append(1)
            if len(tries) == 1:
                raise psycopg.errors.LockNotAvailable("somebody has a lock")
            return await save(*parts)

        d.target.markers.advance = fails_once  # type: ignore[method-assign]
        pause = d.session.backoff

        async def meanwhile(*parts: Any) -> None:
            d.session.backoff = pause  # type: ignore[method-assign]
            await d.snapshot(t=[{"_id": 7, "c": "seven"}])

        d.session.backoff = meanwhile  # type: ignore[method-assign]
        await d.stream(upsert(2, {"_id": 2, "a": 1}))
    assert rows(postgres, "SELECT _id, a, c FROM t ORDER BY _id")[-2:] == [(2, 1, None), (7, None, "seven")]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_document_that_waited_and_went_unseen_does_not_come_back(postgres: str, when: str) -> None:
    """A dead letter of a document that was deleted in a gap of the stream is settled by the copy that follows."""
    async with direct(postgres, settings()) as d:
        await d.stream(upsert(1, {"_id": 1, "n": 1}))
        await d.snapshot(t=[{"_id": 1, "n": 1}])
        await d.stream(upsert(2, {"_id": "x", "n": 2}))
        d.clock = 10
        d.session.marker = await d.target.restart_marker(d.stamp(), "lost")
        if when == "before":
            await d.target.rekey("t")
        await d.snapshot(t=[{"_id": 1, "n": 1}])
        await d.target.rekey("t")
    assert rows(postgres, "SELECT n FROM t") == [(1,)]
    assert rows(postgres, "SELECT count(*) FROM dead_letters WHERE state IN ('open', 'waiting')") == [(0,)]


async def test_a_row_is_swept_although_an_old_dead_letter_names_its_key(postgres: str) -> None:
    """Only a dead letter of this very copy proves that the document still exists."""
    async with direct(postgres, settings()) as d:
        await d.stream(upsert(1, {"_id": 1, "n": 1}), upsert(1, {"_id": 2, "n": 1}))
        await d.snapshot(t=[{"_id": 1, "n": 1}, {"_id": 2, "n": 1}])
        run(postgres, f"ALTER TABLE {TARGET}.t ADD CHECK (n < 5)")
        await d.stream(upsert(2, {"_id": 2, "n": 7}))
        assert rows(postgres, "SELECT state FROM dead_letters") == [("open",)]
        d.clock = 10
        d.session.marker = await d.target.restart_marker(d.stamp(), "lost")
        await d.snapshot(t=[{"_id": 1, "n": 1}])
    assert rows(postgres, "SELECT _id FROM t") == [(1,)]


async def test_softly_deleted_with_a_key_of_another_type(postgres: str) -> None:
    """A document that came and went in one batch is not written as a living row once its key has a place."""
    async with direct(postgres, settings(deletion_strategy="soft")) as d:
        await d.stream(upsert(1, {"_id": 1}))
        await d.stream(upsert(2, {"_id": "x"}), delete(3, "x"))
        await d.target.rekey("t")
    assert rows(postgres, "SELECT _id FROM t WHERE NOT is_deleted") == [(1,)]
    assert rows(postgres, "SELECT count(*) FROM dead_letters WHERE state = 'open'") == [(0,)]


@pytest.mark.parametrize("way", ["stream", "snapshot"])
async def test_a_collection_of_poison_alone(postgres: str, way: str) -> None:
    """The first document of a collection cannot be decoded: it waits in the dead letters like any other."""
    poison = b"\x10\x00\x00\x00\x10_id\x00\x01\x00\x00\x00\x55x\x00"
    async with direct(postgres, settings()) as d:
        if way == "stream":
            change = upsert(1, {"_id": 1})
            change.image = poison
            await d.stream(change)
        else:
            d.documents["t"] = [poison]
            d.key_sample = _no_sample  # type: ignore[method-assign]
            await d.snapshot()
    assert rows(postgres, "SELECT class FROM dead_letters") == [("poison",)]


async def _no_sample(_: str) -> list[Any]:
    return []


async def test_no_sweep_while_a_chunk_is_not_copied(postgres: str) -> None:
    """A range that another reader still has to copy keeps its rows."""
    async with direct(postgres, settings()) as d:
        await d.stream(upsert(1, {"_id": 1}))
        await d.snapshot(t=[{"_id": 1}])
        d.clock = 10
        await d.target.begin_snapshot("t", [Bounds()], d.stamp(), None, "again")
        assert await d.target.claim_chunk("t") is not None
        assert await d.target.sweep("t") == 0
    assert rows(postgres, "SELECT _id FROM t") == [(1,)]


async def test_a_large_barrier_takes_its_time(mongo, postgres) -> None:
    """Removing all rows of a dropped collection may take longer than any other transaction."""
    replica = Replica(config_for(mongo.uri, postgres, mongo.name, destination={"transaction_timeout": 1.0}))
    mongo.db.a.insert_many([{"_id": i} for i in range(4)])
    async with replica.running():
        await replica.settled()
        run(
            postgres,
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(0.5); RETURN OLD; END $$",
            f'CREATE TRIGGER slow BEFORE DELETE ON "{mongo.name}".a FOR EACH ROW EXECUTE FUNCTION slow()',
        )
        mongo.db.a.drop()
        mongo.db.b.insert_one({"_id": 1})
        await replica.settled(15)


async def test_once_waits_for_keys_of_another_type(mongo, postgres) -> None:
    """A single run ends when nothing waits for a change of key any more."""
    replica = Replica(config_for(mongo.uri, postgres, mongo.name))
    mongo.db.a.insert_many([{"_id": 1}, {"_id": 2.5}, {"_id": 3}])
    await replica.once()
    assert await replica.differences() == []


async def test_a_collection_that_is_a_view_now_holds_up_nothing(mongo, postgres) -> None:
    """A stale table whose name is a view's by now does not keep the others from being copied."""
    replica = Replica(config_for(mongo.uri, postgres, mongo.name))
    mongo.db.a.insert_one({"_id": 1})
    mongo.db.b.insert_one({"_id": 1})
    await replica.once()
    mongo.db.a.drop()
    mongo.db.create_collection("a", viewOn="b", pipeline=[])
    mongo.db.b.insert_one({"_id": 2})
    replica.query("UPDATE tables SET state = 'stale'")
    await asyncio.wait_for(replica.once(), 20)
    assert replica.query("SELECT _id FROM b ORDER BY _id") == [(1,), (2,)]


async def test_a_schema_that_waits_for_a_lock_leaves_the_others_room(mongo, mongo_client, postgres) -> None:
    """Batches of one schema that wait behind a foreign lock do not use up what may be in flight."""
    other = f"{mongo.name}b"
    config = config_for(
        mongo.uri, postgres, mongo.name, mode="multi", single_schema_name=None,
        source={"connection_string": mongo.uri.rsplit("/", 1)[0] + "/", "database": None},
        schemas=[{"name": mongo.name, "stream_batch_size": 1}, {"name": other}],
    )  # fmt: skip
    replica = Replica(config)
    mongo.db.a.insert_one({"_id": 0})
    mongo_client[other].b.insert_one({"_id": 0})
    try:
        async with replica.running():
            await _until(lambda: _count(postgres, f'"{mongo.name}".a') == 1 and _count(postgres, f'"{other}".b') == 1)
            with psycopg.connect(postgres) as holder:
                holder.execute(f'LOCK TABLE "{mongo.name}".a IN ACCESS EXCLUSIVE MODE')
                for i in range(1, 30):
                    mongo.db.a.insert_one({"_id": i})
                    await asyncio.sleep(0.1)
                mongo_client[other].b.insert_one({"_id": 1})
                await _until(lambda: _count(postgres, f'"{other}".b') == 2, 8)
                holder.rollback()
            await _until(lambda: _count(postgres, f'"{mongo.name}".a') == 30, 30)
    finally:
        mongo_client.drop_database(other)


def _count(uri: str, table: str) -> int:
    with psycopg.connect(uri, autocommit=True) as connection:
        if connection.execute("SELECT to_regclass(%s)", (table,)).fetchone()[0] is None:
            return -1
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


async def _until(condition: Any, seconds: float = 30) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.1)


async def test_a_constraint_that_is_checked_at_the_end(postgres: str) -> None:
    """A row that a deferred constraint refuses is a dead letter like any other; the rest is written."""
    async with direct(postgres, settings()) as d:
        await d.stream(upsert(1, {"_id": 1, "n": 1}))
        run(
            postgres,
            "CREATE TABLE public.allowed (n bigint PRIMARY KEY)",
            "INSERT INTO public.allowed VALUES (1)",
            f"ALTER TABLE {TARGET}.t ADD FOREIGN KEY (n) REFERENCES public.allowed DEFERRABLE INITIALLY DEFERRED",
        )
        await d.stream(upsert(2, {"_id": 2, "n": 1}), upsert(2, {"_id": 3, "n": 7}))
    assert rows(postgres, "SELECT _id FROM t ORDER BY _id") == [(1,), (2,)]
    assert rows(postgres, "SELECT class FROM dead_letters") == [("23503",)]


async def test_the_heart_beats_while_collections_are_listed(postgres: str) -> None:
    """A start that takes long does not look dead to a standby."""
    async with direct(postgres, settings()) as d:
        listed = asyncio.Event()

        async def slowly() -> list[Any]:
            await listed.wait()
            raise asyncio.CancelledError

        d.collections = slowly  # type: ignore[method-assign]
        d.headroom_seconds = _none  # type: ignore[attr-defined]
        task = asyncio.create_task(d.session.run())
        await _until(lambda: rows(postgres, "SELECT count(*) FROM workers") == [(1,)])
        task.cancel()
        await asyncio.wait({task})


async def _none(_: object) -> None:
    return None


@pytest.mark.parametrize("other", ["replicaSet:rs:5f", "replicaSet:rs", "replicaSet:rt", "replicaSet:rs2"])
async def test_a_source_that_tells_less_of_itself_is_the_same(postgres: str, other: str) -> None:
    """A user who may no longer, or only now, read the id of the replica set does not make it another source."""
    for cluster in ("replicaSet:rs", other):
        connector = PostgreSQLDestinationConnector(postgres)
        await connector.connect()
        try:
            target = connector.target(settings())
            if cluster == other and not other.startswith("replicaSet:rs:") and other != "replicaSet:rs":
                with pytest.raises(SourceChanged):
                    await target.open(SourceIdentity(cluster, "d"))
            else:
                await target.open(SourceIdentity(cluster, "d"))
        finally:
            await connector.disconnect()


@pytest.mark.parametrize("end", ["source", "destination"])
@pytest.mark.parametrize("password", ["s3/cret", "s3@cret", "/cret", "s3/cret@x"])
def test_a_password_that_is_not_escaped_is_refused_unseen(end: str, password: str) -> None:
    """A password with a bare / or @ is refused at the start: drivers would print parts of it as host or database."""
    ends = {"source": "mongodb://u:good@h/db", "destination": "postgresql://u:good@h/db?host=a@b"}
    ends[end] = ends[end].replace("good", password)
    with pytest.raises(ConfigError) as found:
        config_for(ends["source"], ends["destination"], "s")
    assert "%2F" in str(found.value)
    assert "cret" not in str(found.value)


def test_uris_that_are_right() -> None:
    """What looks alike and is right passes."""
    for source in ("mongodb://h:1,i:2/db", "mongodb+srv://u:a%2Fb%40c@h/?appName=a@b", "mongodb://h/?x=a/b@c"):
        config_for(source, "postgresql:///db?host=/tmp&user=a@b", "s")


async def test_a_collection_that_comes_back_after_the_listing(postgres: str) -> None:
    """What the stream writes after the collections were listed is younger than any sweep that the list leads to."""
    async with direct(postgres, settings()) as d:
        await d.stream(upsert(1, {"_id": 1}))
        await d.snapshot(t=[{"_id": 1}])
        d.clock = 10
        d.session.marker = await d.target.restart_marker(d.stamp(), "lost")

        async def listed_as_gone() -> list[Any]:
            await d.stream(upsert(12, {"_id": 2}))
            d.clock = 20
            return []

        d.collections = listed_as_gone  # type: ignore[method-assign]
        await d.snapshot()
    assert rows(postgres, "SELECT _id FROM t") == [(2,)]
