"""Workers that are killed, frozen, doubled and stopped: real processes, real servers."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import psycopg
import pymongo
import pytest

from cartridge_warp.connectors.postgresql import PostgreSQLDestinationConnector, claims
from cartridge_warp.errors import Fenced, Unavailable
from cartridge_warp.observe.events import State
from cartridge_warp.records import BatchMarker, SourceIdentity, Stamp
from warp_testing.audit import Audit
from warp_testing.process import WorkerProcess, until
from warp_testing.replica import Replica, config_for

KILLS = 20
SNAPSHOT = {"full_load_batch_size": 25, "max_parallel_streams": 2}


class Writer(threading.Thread):
    """Inserts, updates, deletes and re-inserts without a pause, until stopped."""

    def __init__(self, database: pymongo.database.Database, seed: int, ids: int) -> None:
        super().__init__(daemon=True)
        self.database = database
        self.random = random.Random(seed)
        self.ids = ids
        self.done = 0
        self.error: Exception | None = None
        self._stopped = threading.Event()

    def run(self) -> None:
        try:
            while not self._stopped.wait(0.002):
                self._write()
                self.done += 1
        except Exception as error:
            self.error = error

    def _write(self) -> None:
        table = self.database[self.random.choice(("items", "items", "notes"))]
        key = self.random.randrange(self.ids)
        match self.random.randrange(4):
            case 0:
                table.replace_one({"_id": key}, {"_id": key, "n": self.done, "new": "x" * 20}, upsert=True)
            case 1:
                table.delete_one({"_id": key})
            case 2:
                table.update_one({"_id": key}, {"$set": {f"f{self.random.randrange(3)}": self.done}})
            case _:
                table.update_one({"_id": key}, {"$inc": {"n": 1}, "$unset": {"f0": 1}}, upsert=True)

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        if self.error is not None:
            raise self.error


@contextmanager
def writing(database: pymongo.database.Database, seed: int, ids: int) -> Iterator[Writer]:
    writer = Writer(database, seed, ids)
    writer.start()
    try:
        yield writer
    finally:
        writer.stop()


@pytest.fixture
def replica(mongo, postgres) -> Replica:
    return Replica(config_for(mongo.uri, postgres, mongo.name))


def tables(replica: Replica) -> dict[str, str]:
    """The state of each collection that is known so far."""
    try:
        return dict(replica.query("SELECT collection, state FROM tables"))
    except psycopg.errors.UndefinedTable:
        return {}


def progress(replica: Replica) -> tuple[int, int]:
    """How far the workers have come: rows copied, and the counter of the stored position."""
    try:
        return replica.query(
            "SELECT (SELECT coalesce(sum(rows_done), 0)::bigint FROM tables),"
            " (SELECT coalesce(max(seq), -1) FROM sync_markers)"
        )[0]
    except psycopg.errors.UndefinedTable:
        return (0, -1)


async def finish(worker: WorkerProcess, replica: Replica, seconds: float = 60) -> None:
    """Both ends become equal, then the worker ends in order."""
    settling = asyncio.create_task(replica.settled(seconds))
    while not settling.done():
        assert worker.process.poll() is None, worker.text
        await asyncio.wait({settling}, timeout=0.2)
    await settling
    await asyncio.to_thread(worker.until, lambda: set(tables(replica).values()) == {"complete"})
    worker.stop_signal()
    assert await asyncio.to_thread(worker.wait, 25) == 0, worker.text


@pytest.mark.slow
async def test_kill_nine_at_any_moment_loses_and_doubles_nothing(mongo, postgres, replica):
    """20 times kill -9, in snapshot and stream, while the source changes: both ends are equal, every write was
    committed once, together with its position, and every delete is audited once."""
    seed = 20240607
    chance = random.Random(seed)
    audit = Audit(postgres, mongo.name)
    mongo.db.items.insert_many([{"_id": i, "n": i, "text": f"item {i}"} for i in range(2500)])
    mongo.db.notes.insert_many([{"_id": i, "n": i} for i in range(800)])
    hit = {"starting": 0, "snapshot": 0, "stream": 0}
    with writing(mongo.db, seed, ids=4000) as writer:
        for number in range(KILLS):
            if number == 14:
                mongo.db.later.insert_many([{"_id": i, "n": i} for i in range(500)])
            before = progress(replica)
            with WorkerProcess(mongo.uri, postgres, mongo.name, **SNAPSHOT) as worker:
                if number % 6 == 5:  # perhaps before it has committed anything
                    time.sleep(chance.uniform(0.3, 1.5))
                else:
                    worker.until(lambda b=before: progress(replica) > b)
                    if number > 8:
                        worker.until(lambda: set(tables(replica).values()) == {"complete"})
                    time.sleep(chance.uniform(0, 0.3))
                worker.kill()
            complete = set(tables(replica).values()) == {"complete"}
            hit["starting" if progress(replica) == before else "stream" if complete else "snapshot"] += 1
    print(f"seed {seed}, kills {hit}, changes {writer.done}")
    with WorkerProcess(mongo.uri, postgres, mongo.name, **SNAPSHOT) as worker:
        await finish(worker, replica)
    assert hit["snapshot"] >= 5, hit
    assert hit["stream"] >= 5, hit
    audit.check()
    assert replica.query("SELECT count(*) FROM deletion_audit")[0][0] == audit.deletes()
    assert replica.query("SELECT count(*) FROM dead_letters") == [(0,)]
    killed = replica.query("SELECT count(*) FROM sync_runs WHERE state = 'killed'")[0][0]
    assert killed >= hit["snapshot"] + hit["stream"]


# -- a second worker ---------------------------------------------------------------------------------------


def waiting_backends(replica: Replica) -> list[int]:
    """Sessions of a worker that wait for a lock in the middle of a transaction."""
    return [row[0] for row in replica.query(
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'cartridge-warp %%'"
        " AND datname = current_database() AND wait_event_type = 'Lock'"
    )]  # fmt: skip


def standing_by(replica: Replica) -> list[str]:
    return [event.detail for event in replica.heard(State) if event.state == "standby"]


def told(replica: Replica) -> set[str]:
    return {event.state for event in replica.heard(State)}


async def test_a_worker_frozen_in_a_transaction_writes_nothing_after_a_take_over(mongo, postgres, replica, monkeypatch):
    """A worker that is stopped between its rows and its commit cannot commit any more once another one has
    taken over: it ends with exit code 8, and every row is the successor's."""
    monkeypatch.setattr(claims, "DEAD_AFTER", 6)
    audit = Audit(postgres, mongo.name)
    mongo.db.items.insert_many([{"_id": i, "n": 0} for i in range(50)])
    with WorkerProcess(mongo.uri, postgres, mongo.name) as frozen:
        await asyncio.to_thread(frozen.until_said, "streaming")
        await replica.settled()
        with psycopg.connect(postgres) as blocker:
            blocker.execute(f'SELECT 1 FROM "{mongo.name}".items WHERE _id = 7 FOR UPDATE')
            mongo.db.items.update_one({"_id": 7}, {"$set": {"n": 1}})
            await until(lambda: waiting_backends(replica))
            frozen.freeze()
            blocker.rollback()
        # The server has run the frozen worker's statement by now, and waits for its COMMIT.
        await until(lambda: not waiting_backends(replica))
        assert replica.query("SELECT DISTINCT n FROM items") == [(0,)]
        mongo.db.items.update_many({"_id": {"$lt": 25}}, {"$set": {"n": 2}})
        async with replica.running():
            await replica.settled()
            line = standing_by(replica)[0]
            assert "\n" not in line
            assert "writes to it (last sign of life" in line
            assert "this one stands by and takes over when that one ends" in line
            before = audit.writes()
            frozen.thaw()
            assert await asyncio.to_thread(frozen.wait, 30) == 8
            assert audit.writes() == before
            assert "another worker has taken over" in frozen.last_line()
            mongo.db.items.update_one({"_id": 3}, {"$set": {"n": 3}})
            await replica.settled()
    audit.check()
    assert replica.query("SELECT epoch FROM fence") == [(2,)]


async def test_a_frozen_idle_worker_is_replaced(mongo, postgres, replica, monkeypatch):
    """While the first one lives a second worker waits; when it freezes the second goes on; the first, awake
    again, notices that without writing anything and ends with exit code 8."""
    monkeypatch.setattr(claims, "DEAD_AFTER", 6)
    audit = Audit(postgres, mongo.name)
    mongo.db.items.insert_many([{"_id": i, "n": 0} for i in range(50)])
    with WorkerProcess(mongo.uri, postgres, mongo.name) as first:
        await asyncio.to_thread(first.until_said, "streaming")
        await replica.settled()
        async with replica.running():
            await until(lambda: standing_by(replica))
            instance = replica.query("SELECT instance::text FROM fence")[0][0]
            assert instance in standing_by(replica)[0]
            mongo.db.items.update_one({"_id": 1}, {"$set": {"n": 1}})
            await replica.settled()
            assert replica.query("SELECT epoch FROM fence") == [(1,)]
            first.freeze()
            mongo.db.items.update_many({}, {"$set": {"n": 2}})
            await replica.settled()
            before = audit.writes()
            first.thaw()
            assert await asyncio.to_thread(first.wait, 30) == 8
            assert audit.writes() == before
            assert "standby" in told(replica)
    audit.check()


async def test_the_fence_stops_every_step_of_a_replaced_worker(postgres, replica, monkeypatch):
    """A take-over ends the transaction that its predecessor has open, at once; after that the predecessor can
    begin none, and neither a heartbeat nor a fresh start gets past the fence."""
    monkeypatch.setattr(claims, "DEAD_AFTER", -1)
    identity, stamp = SourceIdentity("cluster", "shop"), Stamp(1, {"at": 1}, datetime.now(UTC))
    ends = [PostgreSQLDestinationConnector(postgres) for _ in range(2)]
    first, second = (end.target(replica.unit) for end in ends)
    for end in ends:
        await end.connect()
    try:
        await first.open(identity)
        await first.create_marker(stamp)

        async def replaced_before_its_commit() -> None:
            async with first.transaction(["items"]) as t:
                await t.save_marker(BatchMarker({"at": 2}), 2)
                await second.open(identity)

        with pytest.raises(Unavailable):
            await asyncio.wait_for(replaced_before_its_commit(), 15)

        async def begin() -> None:
            async with first.transaction(["items"]) as t:
                await t.save_marker(BatchMarker({"at": 3}), 3)

        for step in (begin, first.resume, lambda: first.heartbeat("streaming")):
            with pytest.raises(Fenced):
                await step()
        assert replica.query("SELECT position, seq FROM sync_markers") == [({"at": 1}, 0)]
        async with second.transaction(["items"]) as t:
            await t.save_marker(BatchMarker({"at": 4}), 4)
    finally:
        for end in ends:
            await end.disconnect()
    assert replica.query("SELECT position, seq FROM sync_markers") == [({"at": 4}, 1)]


async def test_of_two_workers_started_together_one_works(mongo, postgres, replica):
    """One takes the target and the other stands by; when the first is killed the second goes on from there."""
    audit = Audit(postgres, mongo.name)
    mongo.db.items.insert_many([{"_id": i, "n": 0} for i in range(500)])
    with (
        WorkerProcess(mongo.uri, postgres, mongo.name) as one,
        WorkerProcess(mongo.uri, postgres, mongo.name) as two,
    ):
        quiet = await until(lambda: [each for each in (one, two) if each.said("standby")])
        assert len(quiet) == 1
        (second,) = quiet
        first = one if second is two else two
        await asyncio.to_thread(first.until_said, "streaming")
        mongo.db.items.update_many({}, {"$set": {"n": 1}})
        await replica.settled()
        assert not second.said("streaming")
        (line,) = second.said("standby")
        assert "writes to it (last sign of life" in line["detail"]
        first.kill()
        mongo.db.items.update_many({"_id": {"$lt": 9}}, {"$set": {"n": 2}})
        await finish(second, replica)
    audit.check()
    assert replica.query("SELECT epoch FROM fence") == [(2,)]
    assert sorted(replica.query("SELECT state FROM sync_runs")) == [("killed",), ("stopped",)]


# -- an orderly end ----------------------------------------------------------------------------------------


async def test_sigterm_commits_what_was_read_and_says_so(mongo, postgres, replica):
    """SIGTERM under load: exit code 0 within the grace period, state `stopped` in both tables, and the next
    worker has nothing to repair."""
    audit = Audit(postgres, mongo.name)
    mongo.db.items.insert_many([{"_id": i, "n": 0} for i in range(300)])
    with writing(mongo.db, seed=5, ids=400), WorkerProcess(mongo.uri, postgres, mongo.name) as worker:
        await asyncio.to_thread(worker.until_said, "streaming")
        seq = progress(replica)[1]
        await until(lambda: progress(replica)[1] > seq + 3)
        worker.stop_signal()
        assert await asyncio.to_thread(worker.wait, 20) == 0, worker.text
        assert worker.said("stopped")
    assert replica.query("SELECT w.state, r.state, r.ended_at IS NOT NULL FROM workers w JOIN sync_runs r"
                         " USING (target, instance)") == [("stopped", "stopped", True)]  # fmt: skip
    with WorkerProcess(mongo.uri, postgres, mongo.name) as worker:
        await finish(worker, replica)
        assert not worker.said("standby")
    audit.check()


async def test_sigterm_does_not_wait_for_a_lock(mongo, postgres, replica):
    """SIGTERM while another session locks the table: the worker gives the batch up, ends with exit code 0 and
    within the grace period; the batch comes again."""
    mongo.db.items.insert_many([{"_id": i, "n": 0} for i in range(5)])
    with WorkerProcess(mongo.uri, postgres, mongo.name) as worker, psycopg.connect(postgres) as blocker:
        await asyncio.to_thread(worker.until_said, "streaming")
        await replica.settled()
        blocker.execute(f'LOCK TABLE "{mongo.name}".items IN ACCESS EXCLUSIVE MODE')
        mongo.db.items.update_many({}, {"$set": {"n": 1}})
        await until(lambda: waiting_backends(replica))
        worker.stop_signal()
        assert await asyncio.to_thread(worker.wait, 25) == 0, worker.text
    with WorkerProcess(mongo.uri, postgres, mongo.name) as worker:
        await finish(worker, replica)
