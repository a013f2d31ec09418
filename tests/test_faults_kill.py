"""Workers that are killed, frozen, doubled and stopped: real processes, real servers."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pymongo
import pytest
from warp_testing.audit import Audit
from warp_testing.process import WorkerProcess
from warp_testing.replica import Replica, config_for

from cartridge_warp.connectors.postgresql import claims
from cartridge_warp.observe.events import State

KILLS = 22
SNAPSHOT = {"full_load_batch_size": 20, "max_parallel_streams": 2}


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


def position(replica: Replica) -> int:
    """The counter of the stored position."""
    try:
        return replica.query("SELECT coalesce(max(seq), -1) FROM sync_markers")[0][0]
    except psycopg.errors.UndefinedTable:
        return -1


def rows_done(replica: Replica) -> int:
    try:
        return replica.query("SELECT coalesce(sum(rows_done), 0) FROM tables")[0][0]
    except psycopg.errors.UndefinedTable:
        return 0


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
    """22 times kill -9, in snapshot and stream, while the source changes: both ends are equal, every write was
    committed once, together with its position, and every delete is audited once."""
    seed = 20240607
    chance = random.Random(seed)
    audit = Audit(postgres, mongo.name)
    mongo.db.items.insert_many([{"_id": i, "n": i, "text": f"item {i}"} for i in range(4000)])
    mongo.db.notes.insert_many([{"_id": i, "n": i} for i in range(1500)])
    hit = {"starting": 0, "snapshot": 0, "stream": 0}
    with writing(mongo.db, seed, ids=6000) as writer:
        for number in range(KILLS):
            if number == KILLS // 2:
                mongo.db.later.insert_many([{"_id": i, "n": i} for i in range(1500)])
            before, copied = position(replica), rows_done(replica)
            with WorkerProcess(mongo.uri, postgres, mongo.name, **SNAPSHOT) as worker:
                if number % 5:  # every fifth is killed before it has committed anything, perhaps
                    worker.until(lambda b=before, c=copied: position(replica) > b + 1 or rows_done(replica) > c)
                    time.sleep(chance.uniform(0, 0.3))
                else:
                    time.sleep(chance.uniform(0.3, 1.5))
                worker.kill()
                states = set(tables(replica).values())
                moved = position(replica) > before or rows_done(replica) > copied
                hit["starting" if not moved else "stream" if states == {"complete"} else "snapshot"] += 1
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
