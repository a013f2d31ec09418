"""Ranges and chunk reads of the MongoDB source, against a real server."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import bson
import pytest
from bson import Binary, Decimal128, Int64, MaxKey, MinKey, ObjectId, Timestamp
from bson.raw_bson import RawBSONDocument
from hypothesis import given, settings
from hypothesis import strategies as st

from cartridge_warp.connectors.mongodb import MongoDBUnit
from cartridge_warp.connectors.mongodb.keys import dump_key, key_of, load_key, raw_query
from cartridge_warp.kernel.bson import decode, identity
from cartridge_warp.records import Bounds, ChunkPage
from conftest import Mongo
from warp_testing.mongodb import open_unit
from warp_testing.proxy import Proxy
from warp_testing.servers import MongoServer

ODD_IDS: list[Any] = [
    MinKey(), None, -5, 1, 2.5, Int64(2**40), Decimal128("2e50"), "", "a", "ab", {}, {"a": 1}, {"a": 1, "b": 2},
    {"b": 2, "a": 1}, b"x", Binary(b"x" * 16, 4), Binary(b"xy", 5), ObjectId(), ObjectId(), False, True,
    datetime(1960, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC), Timestamp(1, 1), MaxKey(),
]  # fmt: skip


async def read_all(
    unit: MongoDBUnit, table: str, bounds: Bounds, rows: int, max_bytes: int = 1 << 23
) -> list[ChunkPage]:
    stamp = await unit.now()
    pages, rest = [], bounds
    while True:
        page = await unit.read_chunk(table, rest, stamp, rows, max_bytes)
        pages.append(page)
        if page.rest is None:
            return pages
        rest = page.rest


def ids(pages: list[ChunkPage]) -> list[Any]:
    return [identity(decode(document)["_id"]) for page in pages for document in page.documents]


async def test_pages_of_every_key_type(mongo: Mongo) -> None:
    """Pages of one row walk through keys of every type in the server's order, none twice, none left out."""
    mongo.db.a.insert_many([{"_id": each} for each in reversed(ODD_IDS)])
    order = [identity(decode(raw)["_id"]) for raw in raw_documents(mongo)]
    async with open_unit(mongo.uri, mongo.name) as unit:
        for rows in (1, 2, 7):
            assert ids(await read_all(unit, "a", Bounds(), rows)) == order
        for cut in ODD_IDS:
            text = dump_key(key_of(bson.encode({"_id": cut})))
            below = ids(await read_all(unit, "a", Bounds(None, text), 5))
            above = ids(await read_all(unit, "a", Bounds(text, None), 5))
            assert below + above == order
            assert above[0] == identity(load_key(text))
            assert ids(await read_all(unit, "a", Bounds(text, None, after=True), 5)) == above[1:]
        first, last = await unit.key_sample("a")
        assert [identity(first), identity(last)] == [order[0], order[-1]]
        assert await unit.key_sample("none") == []


def raw_documents(mongo: Mongo) -> list[bytes]:
    raw = b"".join(mongo.db.a.find_raw_batches({}, sort=[("_id", 1)]))
    return [bson.encode(each) for each in bson.decode_all(raw)]


async def test_page_bounds(mongo: Mongo) -> None:
    """A page ends at its rows or its bytes; a document above the bound travels alone; the bytes are counted."""
    mongo.db.a.insert_many([{"_id": n, "x": "x" * (50_000 if n == 5 else 1000)} for n in range(20)])
    async with open_unit(mongo.uri, mongo.name) as unit:
        pages = await read_all(unit, "a", Bounds(), 4, max_bytes=3500)
        assert ids(pages) == list(range(20))
        assert all(len(page.documents) <= 3 for page in pages)
        assert all(page.bytes <= 3500 or len(page.documents) == 1 for page in pages)
        assert all(page.bytes == sum(map(len, page.documents)) for page in pages)
        assert [len(page.documents) for page in await read_all(unit, "a", Bounds(), 8)] == [8, 8, 4]
        empty = (await read_all(unit, "none", Bounds(), 8))[0]
        assert (list(empty.documents), empty.rest, empty.bytes) == ([], None, 0)


async def test_the_last_document_of_a_page_is_deleted(mongo: Mongo) -> None:
    """The rest of a range does not depend on the document at its lower end, which may be gone by then."""
    mongo.db.a.insert_many([{"_id": n} for n in range(6)])
    async with open_unit(mongo.uri, mongo.name) as unit:
        page = await unit.read_chunk("a", Bounds(), await unit.now(), 3, 1 << 20)
        mongo.db.a.delete_one({"_id": 2})
        assert page.rest is not None
        assert ids(await read_all(unit, "a", page.rest, 2)) == [3, 4, 5]


async def test_every_chunk_query_carries_its_stamp(mongo_server: MongoServer, mongo: Mongo) -> None:
    """Each query of a chunk has read concern majority with afterClusterTime equal to the stamp of its pages."""
    mongo.db.a.insert_many([{"_id": n} for n in range(30)])
    edges = [None, *(dump_key(n) for n in (7, 14, 21)), None]
    with Proxy(mongo_server.port, hook=lambda *_: None) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name) as unit:
            stamps, versions = [], []
            for lower, upper in pairwise(edges):
                stamp = await unit.moment()
                mongo.db.a.insert_one({"_id": f"later {lower}"})
                await unit.now()  # the client has seen a newer time by now
                rest: Bounds | None = Bounds(lower, upper)
                while rest is not None:
                    page = await unit.read_chunk("a", rest, stamp, 3, 1 << 20)
                    versions.append((page.version or stamp.version) == stamp.version)
                    rest = page.rest
                stamps.append(Timestamp(*stamp.position["time"]))
            finds = [command for name, command in proxy.commands if name == "find" and command["find"] == "a"]
    concerns = [(command["readConcern"]["level"], command["readConcern"]["afterClusterTime"]) for command in finds]
    assert set(concerns) == {("majority", stamp) for stamp in stamps}
    assert concerns == sorted(concerns)
    assert len(set(stamps)) == 4
    assert all(versions)
    assert all(command["hint"] == {"_id": 1} and command["sort"] == {"_id": 1} for command in finds)
    assert all(("min" in command) == (number > 0) for number, command in enumerate(finds))


async def test_frozen_pages_are_as_of_their_own_version(mongo: Mongo) -> None:
    """A page that goes on with an older query says so: its version is never newer than its documents."""
    mongo.db.a.insert_many([{"_id": n, "v": 0} for n in range(10)])
    async with open_unit(mongo.uri, mongo.name) as unit:
        first = await unit.read_chunk("a", Bounds(), await unit.moment(), 5, 1 << 20)
        mongo.db.a.update_many({}, {"$set": {"v": 1}})
        later = await unit.moment()
        assert first.rest is not None
        second = await unit.read_chunk("a", first.rest, later, 5, 1 << 20)
    if (second.version or later.version) >= later.version:
        assert all(decode(document)["v"] == 1 for document in second.documents)


async def test_completion_carries_the_time_of_the_batch(mongo_server: MongoServer, mongo: Mongo) -> None:
    """The fetch of changed documents is a majority read that is not before the batch's last event."""
    from warp_testing.mongodb import follow, rows

    mongo.db.a.insert_one({"_id": 1})
    with Proxy(mongo_server.port, hook=lambda *_: None) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name) as unit:
            start = await unit.now()
            mongo.db.a.update_one({"_id": 1}, {"$set": {"x": 1}})
            batch = (await follow(unit, start.position, rows(1)))[-1]
            proxy.commands.clear()
            await unit.complete(batch)
            find = next(command for name, command in proxy.commands if name == "find")
    assert find["readConcern"] == {"level": "majority", "afterClusterTime": Timestamp(*batch.marker.position["time"])}


@pytest.mark.parametrize("kind", ["objectid", "mixed"])
async def test_plan_covers_everything(mongo: Mongo, kind: str) -> None:
    """The ranges of a large collection follow each other without gap; together they give each document once."""
    count = 21_000
    keys: list[Any] = [ObjectId() if kind == "objectid" else (n if n % 2 else str(n)) for n in range(count)]
    mongo.db.a.insert_many([{"_id": each} for each in keys])
    async with open_unit(mongo.uri, mongo.name) as unit:
        ranges = await unit.plan_chunks("a", 4)
        assert 1 < len(ranges) <= 4
        assert (ranges[0].lower, ranges[-1].upper) == (None, None)
        assert all(left.upper == right.lower for left, right in pairwise(ranges))
        found: list[Any] = []
        for each in ranges:
            found += ids(await read_all(unit, "a", each, 10_000))
        assert sorted(map(str, found)) == sorted(map(str, map(identity, keys)))
        assert await unit.plan_chunks("a", 1) == [Bounds()]
        mongo.db.small.insert_one({})
        assert await unit.plan_chunks("small", 8) == [Bounds()]


async def test_collections(mongo: Mongo) -> None:
    """Views, time-series and system collections have a reason; the others an estimate and a UUID."""
    mongo.db.plain.insert_many([{}, {}])
    mongo.db.create_collection("view", viewOn="plain", pipeline=[])
    mongo.db.create_collection("series", timeseries={"timeField": "t"})
    mongo.db.create_collection("capped", capped=True, size=4096)
    async with open_unit(mongo.uri, mongo.name) as unit:
        found = {each.name: each for each in await unit.collections() if not each.name.startswith("system.")}
    assert found["plain"].reason is None
    assert found["capped"].reason is None
    assert (found["plain"].rows, len(found["plain"].uuid or "")) == (2, 32)
    assert "view" in (found["view"].reason or "")
    assert "time-series" in (found["series"].reason or "")


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | st.binary(max_size=20),
        lambda inner: st.dictionaries(st.text("ab$.", max_size=3), inner, max_size=3),
        max_leaves=5,
    )
)
def test_a_key_survives_as_text(key: Any) -> None:
    """A key that becomes the text of a bound comes back into a query byte by byte."""
    raw = bson.encode({"_id": key, "more": 1})
    assert raw_query("_id", load_key(dump_key(key_of(raw)))).raw == bson.encode({"_id": key})


def test_a_key_that_is_not_utf8() -> None:
    """A string key with invalid UTF-8, which servers accept, keeps its bytes through text and query."""
    raw = bson.encode({"_id": "abc"}).replace(b"abc", b"a\xffc")
    assert raw_query("_id", load_key(dump_key(key_of(raw)))).raw == raw
    query = raw_query("_id", {"$in": [key_of(raw)]})
    assert b"a\xffc" in query.raw
    assert isinstance(query, RawBSONDocument)
