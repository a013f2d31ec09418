"""The change stream of the MongoDB source, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import bson
import pytest
from bson import Int64, ObjectId

from cartridge_warp.errors import Unavailable
from cartridge_warp.kernel.bson import decode
from cartridge_warp.observe.events import Note
from cartridge_warp.records import Barrier, Batch, Marker, Op, OperationType, Position
from conftest import Mongo
from warp_testing.mongodb import changes_of, follow, notes_of, open_unit, rows
from warp_testing.proxy import Proxy
from warp_testing.servers import MongoServer


def barriers(batches: list[Batch]) -> list[Barrier]:
    return [batch.barrier for batch in batches if batch.barrier is not None]


def keys(batches: list[Batch], table: str) -> list[Any]:
    return [change.key for change in changes_of(batches, table)]


async def test_each_operation(mongo: Mongo) -> None:
    """Insert and replace carry their document, update asks for a fetch, delete deletes; versions grow."""
    async with open_unit(mongo.uri, mongo.name) as unit:
        start = await unit.now()
        mongo.db.a.insert_one({"_id": 1, "x": 1})
        mongo.db.a.update_one({"_id": 1}, {"$set": {"x": 2}})
        mongo.db.a.replace_one({"_id": 1}, {"y": 3})
        mongo.db.a.delete_one({"_id": 1})
        batches = await follow(unit, start.position, rows(4))
    changes = changes_of(batches, "a")
    assert [change.op for change in changes] == [Op.UPSERT, Op.FETCH, Op.UPSERT, Op.DELETE]
    kinds = OperationType
    assert [change.operation for change in changes] == [kinds.INSERT, kinds.UPDATE, kinds.UPDATE, kinds.DELETE]
    assert decode(changes[0].image or b"") == {"_id": 1, "x": 1}
    assert decode(changes[2].image or b"") == {"_id": 1, "y": 3}
    assert all(older.version < newer.version for older, newer in pairwise(changes))
    assert changes[0].version > start.version
    assert all(change.key == 1 and len(change.origin or b"") == 16 and change.at_ms for change in changes)
    assert batches[-1].marker.source_time is not None
    assert sum(batch.marker.events for batch in batches) == 4 + sum(len(batch.created) for batch in batches)


async def test_batches_resume_without_gap_or_repeat(mongo: Mongo) -> None:
    """Going on behind any batch's marker gives exactly the changes that came after it."""
    async with open_unit(mongo.uri, mongo.name, stream_batch_size=7) as unit:
        start = await unit.now()
        for number in range(40):
            mongo.db[f"t{number % 3}"].insert_one({"_id": number})
        batches = await follow(unit, start.position, rows(40))
        order = [key for batch in batches for table in batch.tables.values() for key in sorted(keys_in(table))]
        assert sorted(order) == list(range(40))
        seen: set[int] = set()
        for batch in batches[:-1]:
            seen |= {key for table in batch.tables.values() for key in keys_in(table)}
            rest = await follow(unit, batch.marker.position, rows(40 - len(seen)))
            got = [key for each in rest for table in each.tables.values() for key in keys_in(table)]
            assert sorted(got) == sorted(set(range(40)) - seen)


def keys_in(table: Any) -> list[Any]:
    return [change.key for change in table.changes]


async def test_byte_bound(mongo: Mongo) -> None:
    """A batch ends at the byte bound, and a document above it travels alone."""
    async with open_unit(mongo.uri, mongo.name, max_batch_bytes=100_000) as unit:
        start = await unit.now()
        mongo.db.a.insert_many([{"_id": n, "x": "x" * 30_000} for n in range(8)])
        mongo.db.a.insert_one({"_id": 8, "x": "x" * 300_000})
        mongo.db.a.insert_one({"_id": 9})
        batches = await follow(unit, start.position, rows(10))
    assert keys(batches, "a") == list(range(10))
    assert all(batch.bytes <= 100_000 or batch.rows == 1 for batch in batches)


def in_transaction(mongo: Mongo, documents: list[dict[str, Any]]) -> None:
    with mongo.client.start_session() as session, session.start_transaction():
        for document in documents:
            mongo.db.a.insert_one(document, session=session)


async def test_transaction_is_not_cut(mongo: Mongo) -> None:
    """All changes of a source transaction are in one batch, whatever the thresholds say."""
    mongo.db.create_collection("a")
    async with open_unit(mongo.uri, mongo.name, stream_batch_size=2, max_batch_bytes=65536) as unit:
        start = await unit.now()
        mongo.db.a.insert_one({"_id": "before"})
        in_transaction(mongo, [{"_id": n, "x": "x" * 2000} for n in range(60)])
        mongo.db.a.insert_one({"_id": "after"})
        batches = await follow(unit, start.position, rows(62))
    assert keys(batches, "a") == ["before", *range(60), "after"]
    owners = [index for index, batch in enumerate(batches) for key in keys([batch], "a") if isinstance(key, int)]
    assert len(set(owners)) == 1


async def test_huge_transaction_is_cut_and_reported(mongo: Mongo) -> None:
    """A transaction above its bound is written in parts, with a note, and its inner markers have passed nothing."""
    mongo.db.create_collection("a")
    async with open_unit(mongo.uri, mongo.name, max_batch_bytes=65536, max_transaction_bytes=65536) as unit:
        heard = notes_of(unit)
        start = await unit.now()
        in_transaction(mongo, [{"_id": n, "x": "x" * 8000} for n in range(20)])
        present = await unit.now()
        batches = await follow(unit, start.position, rows(20))
        assert keys(batches, "a") == list(range(20))
        assert len(batches) > 1
        assert any(isinstance(note, Note) and "max_transaction_bytes" in note.message for note in heard)
        assert not unit.passed(batches[0].marker.position, present)
        rest = await follow(unit, batches[0].marker.position, rows(20 - batches[0].rows))
        assert keys(batches[:1] + rest, "a") == list(range(20))


async def test_drop_is_a_barrier_of_its_own(mongo: Mongo) -> None:
    """A drop gives a barrier between the changes before and after it, with a version between theirs."""
    async with open_unit(mongo.uri, mongo.name) as unit:
        start = await unit.now()
        mongo.db.a.insert_one({"_id": 1})
        mongo.db.a.drop()
        mongo.db.create_collection("a")
        mongo.db.create_collection("v", viewOn="a", pipeline=[])
        mongo.db.a.insert_one({"_id": 2})
        batches = await follow(unit, start.position, rows(2))
    barrier = next(batch for batch in batches if batch.barrier)
    assert barrier.barrier is not None
    assert (barrier.barrier.kind, barrier.barrier.tables, barrier.rows) == ("drop", ("a",), 0)
    before, after = (change.version for change in changes_of(batches, "a"))
    assert before < barrier.barrier.version < after
    assert [batch.created for batch in batches if batch.created] == [("a",)]


@pytest.mark.parametrize(
    ("whitelist", "tables", "resnapshot"),
    [([], ("old", "new"), ("new",)), (["old"], ("old",), ()), (["n*"], ("new",), ("new",))],
)
async def test_rename(mongo: Mongo, whitelist: list[str], tables: Any, resnapshot: Any) -> None:
    """A rename voids the old name; into a wanted name it also voids that and asks for a copy of what is there."""
    mongo.db.old.insert_one({"_id": 1})
    mongo.db.new.insert_one({"_id": 2})
    async with open_unit(mongo.uri, mongo.name, table_whitelist=whitelist) as unit:
        start = await unit.now()
        mongo.db.old.rename("new", dropTarget=True)
        found = await follow(
            unit, start.position, lambda b: barriers(b)[-1:] != [] and barriers(b)[-1].kind == "rename"
        )
    assert barriers(found)[-1].tables == tables
    assert barriers(found)[-1].resnapshot == resnapshot


async def test_drop_database_and_on(mongo: Mongo) -> None:
    """dropDatabase voids every table, and the stream goes on behind the invalidate, also after a restart there."""
    mongo.db.a.insert_one({"_id": 0})
    async with open_unit(mongo.uri, mongo.name) as unit:
        start = await unit.now()
        mongo.client.drop_database(mongo.name)
        mongo.db.b.insert_one({"_id": 1})
        batches = await follow(unit, start.position, rows(1))
        assert [barrier.kind for barrier in barriers(batches)][-2:] == ["dropDatabase", "invalidate"]
        assert all(barrier.tables is None for barrier in barriers(batches)[-2:])
        for batch in batches:
            if batch.barrier is not None:
                again = await follow(unit, batch.marker.position, rows(1))
                assert keys(again, "b") == [1]


async def test_filters(mongo: Mongo) -> None:
    """Only wanted tables arrive, by name and by pattern, also when the server cannot express the pattern."""
    names = ["orders", "orders_2", "users", "tmp_a", "tmp_b", "x[1"]
    cases: list[tuple[dict[str, list[str]], set[str]]] = [
        ({"table_whitelist": ["orders*"]}, {"orders", "orders_2"}),
        ({"table_whitelist": ["user[r-t]", "tmp_?"]}, {"users", "tmp_a", "tmp_b"}),
        ({"table_blacklist": ["tmp_[a]", "users"]}, {"orders", "orders_2", "tmp_b", "x[1"}),
        ({"table_whitelist": ["x[[]1"]}, {"x[1"}),
    ]
    for filters, wanted in cases:
        async with open_unit(mongo.uri, mongo.name, **filters) as unit:
            start = await unit.now()
            for name in names:
                mongo.db[name].insert_one({})
            batches = await follow(unit, start.position, rows(len(wanted)))
            assert {table for batch in batches for table in batch.tables} == wanted
            assert {each.name for each in await unit.collections()} == wanted


async def test_quiet_source_moves_its_position(mongo: Mongo) -> None:
    """Writes that are not ours move the position by an empty batch, at most once a second."""
    async with open_unit(mongo.uri, mongo.name) as unit:
        start = await unit.now()
        other = mongo.client[mongo.name + "x"]
        other.a.insert_one({})
        present = await unit.now()
        batches = await follow(unit, start.position, lambda _: True)
        assert not batches[0].tables
        assert unit.passed(batches[0].marker.position, present)
        assert not unit.passed(start.position, start)
        quiet: list[Batch] = []
        with pytest.raises(TimeoutError):
            await follow(unit, batches[0].marker.position, lambda b: quiet.append(b[-1]) or False, seconds=2.5)
        assert len(quiet) <= 2
    mongo.client.drop_database(other.name)


async def test_complete_reads_present_documents(mongo: Mongo) -> None:
    """Updates get the document as it is now, or become deletes when it is gone; equal numbers are one key."""
    ids = [1, 2.0, Int64(3), "s", ObjectId(), {"a": 1, "b": [2]}, None, bson.Decimal128("7")]
    mongo.db.a.insert_many([{"_id": each, "v": 0} for each in [*ids, "gone"]])
    async with open_unit(mongo.uri, mongo.name) as unit:
        start = await unit.now()
        mongo.db.a.update_many({}, {"$set": {"v": 1}})
        batches = await follow(unit, start.position, rows(9))
        mongo.db.a.update_many({}, {"$set": {"v": 2}})
        mongo.db.a.delete_one({"_id": "gone"})
        mongo.db.a.delete_one({"_id": 1})
        mongo.db.a.insert_one({"_id": 1.0, "v": 2})
        for batch in batches:
            await unit.complete(batch)
    changes = changes_of(batches, "a")
    assert [change.op for change in changes] == [Op.UPSERT] * 8 + [Op.DELETE]
    assert all(decode(change.image or b"")["v"] == 2 for change in changes[:8])
    assert changes[8].operation is OperationType.DELETE


async def test_complete_of_a_replaced_collection(mongo: Mongo) -> None:
    """A change of a collection that was dropped and made anew never takes a document of the new one."""
    mongo.db.a.insert_one({"_id": 1, "v": "old"})
    mongo.db.b.insert_one({"_id": 1, "v": 0})
    async with open_unit(mongo.uri, mongo.name) as unit:
        start = await unit.now()
        mongo.db.a.update_one({"_id": 1}, {"$set": {"w": 1}})
        mongo.db.b.update_one({"_id": 1}, {"$set": {"v": 1}})
        batches = await follow(unit, start.position, rows(2))
        mongo.db.a.drop()
        mongo.db.a.insert_one({"_id": 1, "v": "stranger"})
        for batch in batches:
            await unit.complete(batch)
    assert changes_of(batches, "a") == []
    assert [change.op for change in changes_of(batches, "b")] == [Op.UPSERT]


async def test_large_documents_bound_the_fetch(mongo: Mongo) -> None:
    """Updates of large documents are cut so that what must be fetched fits the byte bound."""
    mongo.db.a.insert_many([{"_id": n, "x": "x" * 200_000} for n in range(12)])
    async with open_unit(mongo.uri, mongo.name, max_batch_bytes=1 << 20) as unit:
        start = await unit.now()
        mongo.db.a.update_many({}, {"$set": {"v": 1}})
        sizes = []
        stream = unit.batches(_marker(start.position))
        async for batch in stream:
            await unit.complete(batch)
            sizes.append((batch.rows, batch.bytes))
            if sum(count for count, _ in sizes) == 12:
                break
        await stream.aclose()
        # The server does not say how large documents are; after the first fetch it is known.
        mongo.db.a.update_many({}, {"$set": {"v": 2}})
        second = await follow(unit, batch.marker.position, rows(12))
        assert all(each.rows <= 5 for each in second)


def _marker(position: Position) -> Marker:
    return Marker(position, 0)


# -- a server restarts -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_server() -> Iterator[MongoServer]:
    server = MongoServer().start()
    yield server
    server.close()


async def test_lost_connection_and_resume(own_server: MongoServer) -> None:
    """A connection that breaks, and stays broken, is reported as Unavailable; nothing is lost behind the marker."""
    with own_server.client() as client, Proxy(own_server.port, hook=lambda *_: None) as proxy:
        source = {"connection_timeout": 1.5}
        async with open_unit(proxy.mongo_uri, "cut", source) as unit:
            start = await unit.now()
            client.cut.a.insert_one({"_id": 1})
            batches: list[Batch] = []

            async def follow_until_it_breaks() -> None:
                async for batch in unit.batches(_marker(start.position)):
                    batches.append(batch)
                    proxy.refuse()
                    client.cut.a.insert_one({"_id": 2})

            with pytest.raises(Unavailable):
                await asyncio.wait_for(follow_until_it_breaks(), 20)
            proxy.accept()
            rest = await follow(unit, batches[-1].marker.position, rows(1))
    assert keys(batches, "a") == [1]
    assert keys(rest, "a") == [2]


async def test_kill_of_the_server(own_server: MongoServer) -> None:
    """After SIGKILL and restart of the server the stored position still leads to every change."""
    with own_server.client() as client:
        async with open_unit(own_server.uri, "kill", {"connection_timeout": 5}) as unit:
            start = await unit.now()
            client.kill.a.insert_many([{"_id": n} for n in range(10)])
            first = await follow(unit, start.position, rows(10))
            own_server.kill()
            own_server.start()
            client.kill.a.insert_one({"_id": 10})
            with suppress(Unavailable):  # connections from before the restart
                await unit.now()
            rest = await follow(unit, first[-1].marker.position, rows(1))
            assert keys(rest, "a") == [10]
