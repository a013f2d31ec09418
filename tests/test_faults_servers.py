"""Servers that crash, restart, go away, forget; connections that break in the middle of a batch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from cartridge_warp.observe.events import Committed, Failed, SnapshotDone, SnapshotStarted, State
from cartridge_warp.observe.health import Health
from warp_testing.audit import Audit
from warp_testing.process import WorkerProcess, until
from warp_testing.proxy import Proxy
from warp_testing.replica import Replica, config_for
from warp_testing.servers import MongoServer, PostgresServer

LOSING = {"synchronous_commit": "off", "wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}


@pytest.fixture
def own_mongo() -> Iterator[MongoServer]:
    """A MongoDB-protocol server that the test may kill; what it has acknowledged is on its disk."""
    server = MongoServer("--sync-on-commit").start()
    yield server
    server.close()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that the test may crash. Commits that nobody waited for stay in memory for 10 s."""
    server = PostgresServer(settings=LOSING).start()
    yield server
    server.close()


class CommitCutter(Proxy):
    """Breaks a connection after PostgreSQL has committed and before the worker hears of it."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.to_cut = 0
        self.cuts = 0

    async def _bytes(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pending: Any) -> None:
        while data := await reader.read(1 << 16):
            if self.to_cut and b"C\x00\x00\x00\x0bCOMMIT\x00" in data:
                self.to_cut -= 1
                self.cuts += 1
                return  # the proxy ends both ways when one has ended
            writer.write(data)
            await writer.drain()


def seq(uri: str) -> int:
    with psycopg.connect(uri) as connection:
        return connection.execute("SELECT seq FROM cartridge_warp_metadata.sync_markers").fetchone()[0]


def fill(database: Any, count: int, start: int = 0) -> None:
    database.items.insert_many([{"_id": i, "n": 0, "text": f"item {i}"} for i in range(start, start + count)])


def dead_letters(replica: Replica) -> int:
    return replica.query("SELECT count(*) FROM dead_letters")[0][0]


# -- PostgreSQL loses commits that it acknowledged ---------------------------------------------------------


async def test_lost_commits_of_a_crashed_postgresql_come_again(mongo, own_postgres):
    """PostgreSQL is killed with acknowledged commits in memory only: they are really gone, position and rows
    alike, and the worker, which remembers them as done, brings all of them again."""
    behind = Replica(config_for(mongo.uri, own_postgres.uri(), mongo.name))
    lost = []
    with Proxy(own_postgres.port) as proxy:
        replica = Replica(config_for(mongo.uri, f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres", mongo.name))
        fill(mongo.db, 200)
        async with replica.running():
            await behind.settled()
            for turn in range(2):
                with psycopg.connect(own_postgres.uri(), autocommit=True) as connection:
                    connection.execute("SET synchronous_commit = on; CREATE TEMP TABLE flush AS SELECT 1")
                for step in range(5):
                    mongo.db.items.update_many({}, {"$set": {"n": turn * 10 + step}})
                    mongo.db.items.delete_one({"_id": turn * 10 + step})
                    mongo.db.items.insert_one({"_id": 1000 + turn * 10 + step, f"new{turn}": step})
                    await behind.settled()
                before = seq(own_postgres.uri())
                proxy.refuse()
                own_postgres.crash()
                own_postgres.start()
                lost.append(before - seq(own_postgres.uri()))
                proxy.accept()
                await behind.settled()
    print("commits lost", lost)
    assert all(count > 0 for count in lost), lost
    assert dead_letters(behind) == 0


async def test_lost_commits_of_a_snapshot_come_again(mongo, own_postgres):
    """PostgreSQL is killed while a snapshot is copied: chunks whose commit was lost are copied again."""
    behind = Replica(config_for(mongo.uri, own_postgres.uri(), mongo.name))
    fill(mongo.db, 3000)
    lost = []
    with Proxy(own_postgres.port) as proxy:
        uri = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        options = {"full_load_batch_size": 50, "max_parallel_streams": 2}
        replica = Replica(config_for(mongo.uri, uri, mongo.name, **options))
        async with replica.running():
            for goal in (300, 1200):
                await until(lambda goal=goal: copied(behind) >= goal)
                before = copied(behind)
                proxy.refuse()
                own_postgres.crash()
                own_postgres.start()
                lost.append(before - copied(behind))
                proxy.accept()
            await behind.settled()
    print("rows lost", lost)
    assert max(lost) > 0
    assert dead_letters(behind) == 0


def copied(replica: Replica) -> int:
    try:
        return replica.query("SELECT coalesce(sum(rows_done), 0)::bigint FROM tables")[0][0]
    except psycopg.errors.UndefinedTable:
        return 0


# -- connections break -------------------------------------------------------------------------------------


async def test_cut_connections_on_both_sides(mongo, mongo_server, postgres, postgres_server):
    """Connections to either server break again and again, in snapshot and stream: both ends become equal,
    nothing is written twice, no row is blamed for it."""
    seed = 77
    chance = random.Random(seed)
    audit = Audit(postgres, mongo.name)
    behind = Replica(config_for(mongo.uri, postgres, mongo.name))
    fill(mongo.db, 1500)
    name = postgres.rpartition("/")[2]
    with (
        Proxy(mongo_server.port, hook=lambda *_: None) as source,
        Proxy(postgres_server.port) as destination,
    ):
        options = {"full_load_batch_size": 50, "max_parallel_streams": 2}
        uri = f"postgresql://postgres@127.0.0.1:{destination.port}/{name}"
        replica = Replica(config_for(source.mongo_uri, uri, mongo.name, **options))
        async with replica.running():
            for turn in range(10):
                broken = (source, destination)[turn % 2]
                for step in range(20):
                    key = chance.randrange(2000)
                    mongo.db.items.update_one({"_id": key}, {"$set": {"n": turn, f"f{step % 3}": step}}, upsert=True)
                    mongo.db.items.delete_one({"_id": chance.randrange(2000)})
                heard = len(replica.events)
                await until(lambda h=heard: len(replica.events) > h)
                await asyncio.sleep(chance.uniform(0, 0.1))
                broken.cut()
                if turn % 5 == 4:
                    await behind.settled()
            await behind.settled()
    failed = {event.error_type for event in replica.heard(Failed)}
    assert failed == {"unavailable"}, failed
    assert dead_letters(behind) == 0
    audit.check()


async def test_a_commit_whose_answer_is_lost_is_not_written_again(mongo, postgres, postgres_server):
    """The connection breaks after the server has committed and before the worker hears of it: the stored
    position tells, and nothing is written a second time."""
    audit = Audit(postgres, mongo.name)
    behind = Replica(config_for(mongo.uri, postgres, mongo.name))
    fill(mongo.db, 100)
    with CommitCutter(postgres_server.port) as proxy:
        uri = f"postgresql://postgres@127.0.0.1:{proxy.port}/{postgres.rpartition('/')[2]}"
        replica = Replica(config_for(mongo.uri, uri, mongo.name))
        async with replica.running():
            await behind.settled()
            for turn in range(4):
                proxy.to_cut = 1
                mongo.db.items.update_many({}, {"$set": {"n": turn + 1}})
                mongo.db.items.delete_one({"_id": turn})
                await until(lambda t=turn: proxy.cuts > t)
                await behind.settled()
    assert proxy.cuts == 4
    assert replica.heard(Failed)
    audit.check()


async def test_a_cut_in_the_middle_of_a_batch(mongo, postgres, postgres_server):
    """The connection breaks while the server works on a batch's rows: nothing of it stays, all of it comes
    again."""
    audit = Audit(postgres, mongo.name)
    behind = Replica(config_for(mongo.uri, postgres, mongo.name))
    fill(mongo.db, 100)
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with Proxy(postgres_server.port) as proxy:
        uri = f"postgresql://postgres@127.0.0.1:{proxy.port}/{postgres.rpartition('/')[2]}"
        replica = Replica(config_for(mongo.uri, uri, mongo.name))
        async with replica.running():
            await behind.settled()
            with psycopg.connect(postgres) as blocker:
                blocker.execute(f'SELECT 1 FROM "{mongo.name}".items WHERE _id = 50 FOR UPDATE')
                mongo.db.items.update_one({"_id": 50}, {"$set": {"n": 1}})
                await until(lambda: behind.query(waiting))
                before = seq(postgres)
                proxy.cut()
                await until(lambda: replica.heard(Failed))
                assert seq(postgres) == before
                mongo.db.items.update_many({}, {"$set": {"n": 2}})
            await behind.settled()
    audit.check()
    assert dead_letters(behind) == 0


async def test_a_cut_in_the_middle_of_a_chunk(mongo, postgres, postgres_server):
    """The connection breaks while pages of a snapshot are written: the chunks that were claimed are open again
    for the same process, each of their rows is copied once, and the copy ends."""
    audit = Audit(postgres, mongo.name)
    behind = Replica(config_for(mongo.uri, postgres, mongo.name))
    fill(mongo.db, 3000)
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with Proxy(postgres_server.port) as proxy:
        uri = f"postgresql://postgres@127.0.0.1:{proxy.port}/{postgres.rpartition('/')[2]}"
        options = {"full_load_batch_size": 20, "max_parallel_streams": 2}
        replica = Replica(config_for(mongo.uri, uri, mongo.name, **options))
        async with replica.running():
            await until(lambda: copied(behind) > 0)
            with psycopg.connect(postgres) as blocker:
                lock = f'LOCK TABLE "{mongo.name}".items IN ACCESS EXCLUSIVE MODE'
                await asyncio.to_thread(blocker.execute, lock)
                await until(lambda: behind.query(waiting))
                assert behind.query("SELECT 1 FROM snapshot_chunks WHERE state = 'claimed'")
                proxy.cut()
                await until(lambda: replica.heard(Failed))
            await behind.settled()
            await until(lambda: replica.heard(SnapshotDone))
    audit.check()
    assert len(replica.heard(SnapshotStarted)) < 20


# -- servers restart ---------------------------------------------------------------------------------------


async def test_the_source_restarts(own_mongo, postgres):
    """The source is killed and comes back, several times, while it is copied and followed."""
    with own_mongo.client() as client:
        database = client["shop"]
        replica = Replica(config_for(own_mongo.uri, postgres, "shop", full_load_batch_size=50))
        fill(database, 2000)
        async with replica.running():
            for turn in range(3):
                await until(lambda t=turn: copied(replica) > t * 300)
                database.items.update_many({}, {"$set": {"n": turn}})
                own_mongo.kill()
                own_mongo.start()
                database.items.delete_one({"_id": turn})
            await replica.settled()
            database.items.insert_one({"_id": "late"})
            await replica.settled()
    assert {event.error_type for event in replica.heard(Failed)} == {"unavailable"}
    assert dead_letters(replica) == 1  # "late" has a key of another kind; it waited there, and was replayed
    assert replica.query("SELECT class, state FROM dead_letters") == [("key_type", "replayed")]


async def test_postgresql_is_down_for_a_while(mongo, own_postgres):
    """While PostgreSQL is away the worker is alive and not ready, tries for ever, and blames no row; when it is
    back the worker is ready again, and nothing is missing."""
    replica = Replica(config_for(mongo.uri, own_postgres.uri(), mongo.name))
    fill(mongo.db, 200)
    with WorkerProcess(mongo.uri, own_postgres.uri(), mongo.name) as worker:
        await asyncio.to_thread(worker.until, lambda: worker.page("/readyz")[0] == 200)
        await replica.settled()
        own_postgres.stop()
        mongo.db.items.update_many({}, {"$set": {"n": 1}})
        status, text = await asyncio.to_thread(
            worker.until, lambda: (found := worker.page("/readyz"))[0] == 503 and found
        )
        assert (status, "unavailable" in text) == (503, True)
        assert worker.page("/healthz")[0] == 200
        fill(mongo.db, 50, start=1000)
        own_postgres.start()
        await replica.settled()
        await asyncio.to_thread(worker.until, lambda: worker.page("/readyz")[0] == 200)
        assert worker.said("recovered")
        assert dead_letters(replica) == 0
        worker.stop_signal()
        assert await asyncio.to_thread(worker.wait, 20) == 0


async def test_states_of_an_outage(mongo, own_postgres):
    """An outage is state `retrying`; from the third attempt the worker counts as not ready, until it streams."""
    replica = Replica(config_for(mongo.uri, own_postgres.uri(), mongo.name))
    health = Health([mongo.name])
    fill(mongo.db, 10)
    async with replica.running():
        await replica.settled()
        own_postgres.crash()
        await until(lambda: [event for event in replica.heard(Failed) if event.attempt >= 3])
        assert "retrying" in {event.state for event in replica.heard(State)}
        for event in replica.events:
            health(event)
        assert "(unavailable, attempt 3)" in "".join(health.unready())
        replica.events.clear()
        own_postgres.start()
        mongo.db.items.insert_one({"_id": 99})
        await replica.settled()
        await until(lambda: replica.heard(Committed))
        await until(lambda: any(event.state == "streaming" for event in replica.heard(State)))
        for event in replica.events:
            health(event)
        assert health.unready() == []


async def test_sigterm_while_a_server_is_away(mongo, own_postgres, own_mongo):
    """SIGTERM during an outage of either server: exit code 0 within the grace period."""
    fill(mongo.db, 10)
    with own_mongo.client() as client:
        fill(client["shop"], 10)
    with (
        WorkerProcess(mongo.uri, own_postgres.uri(), mongo.name) as one,
        WorkerProcess(own_mongo.uri, own_postgres.uri(), "shop", source__connection_timeout=3) as two,
    ):
        for worker in (one, two):
            await asyncio.to_thread(worker.until_said, "streaming")
        own_mongo.kill()
        await asyncio.to_thread(two.until_said, "failed, will be tried again")
        two.stop_signal()
        assert await asyncio.to_thread(two.wait, 25) == 0, two.text
        own_postgres.crash()
        await asyncio.to_thread(one.until_said, "failed, will be tried again")
        one.stop_signal()
        assert await asyncio.to_thread(one.wait, 25) == 0, one.text


# -- the source forgets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_token", [True, False])
async def test_a_trimmed_oplog_leads_to_a_recorded_copy_with_sweep(postgres, with_token):
    """The position has left the oplog: this is recorded, the tables are copied again online, and what was
    deleted in the gap is swept and audited."""
    server = MongoServer("--oplog-max-entries", "200").start()
    try:
        with server.client() as client:
            database = client["shop"]
            replica = Replica(config_for(server.uri, postgres, "shop"))
            fill(database, 100)
            async with replica.running():
                await replica.settled()
                if with_token:  # else the position is the moment at which the first copy began
                    database.items.insert_one({"_id": 1000})
                    await replica.settled()
            token = replica.query("SELECT position ->> 'token' FROM sync_markers")[0][0]
            assert (token is not None) is with_token
            database.items.delete_many({"_id": {"$lt": 10}})
            database.items.update_many({"_id": {"$gte": 90}}, {"$set": {"n": 5}})
            database.items.insert_one({"_id": 5, "back": True})
            for number in range(20):  # this server trims every 1000 entries
                database.noise.insert_many([{"n": number, "i": i} for i in range(100)])
            async with replica.running():
                await replica.settled()
                await until(lambda: [done for done in replica.heard(SnapshotDone) if done.swept])
                database.items.insert_one({"_id": 1})
                await replica.settled()
    finally:
        server.close()
    (failed,) = [event for event in replica.heard(Failed) if event.error_type == "position_lost"]
    assert "no longer holds the changes after the position" in failed.message
    ((logged,),) = replica.query("SELECT message FROM error_log WHERE class = 'position_lost'")
    assert logged == failed.message
    assert sum(done.swept for done in replica.heard(SnapshotDone)) == 9
    swept = replica.query("SELECT document_id #>> '{$numberLong}' FROM deletion_audit WHERE reason = 'sweep'")
    assert sorted(int(key) for (key,) in swept) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert replica.query("SELECT DISTINCT state FROM tables") == [("complete",)]
