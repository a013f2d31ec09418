"""Every BSON type and odd value through the whole worker: what SQL shows, and the document rebuilt equal."""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import bson
import pytest
from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pymongo import ReplaceOne

from cartridge_warp.config import SchemaConfig, UnitSettings
from cartridge_warp.kernel import decode, equal
from cartridge_warp.observe.events import Misfit
from warp_testing.direct import direct, upsert
from warp_testing.servers import MongoServer, PostgresServer
from warp_testing.world import World, insert_raw, raw, world

OID = ObjectId("5eedda7a5eedda7a5eedda7a")
DEEP = {"b": 1, "a": {"deep": [1, "two", 3.5, None, True]}}
WAYS = pytest.mark.parametrize("way", ["snap", "stream"])

UTC_TIME = "timestamp with time zone"
BEFORE_1970 = datetime(1969, 12, 31, 23, 59, 58, 500000, UTC)
REGEX = {"$regularExpression": {"pattern": "^a.*z$", "options": "im"}}
SCOPE = {"$code": "return n;", "$scope": {"n": {"$numberInt": "1"}}}
JANUARY = datetime(2026, 1, 5, tzinfo=UTC)
ONE = (0x10, b"_id", struct.pack("<i", 1))

# name -> (value, the column's type, what SQL gives, whether `_warp_extra` keeps the original)
VALUES: dict[str, tuple[Any, str, Any, bool]] = {
    "double": (0.1, "double precision", 0.1, False),
    "whole double": (5.0, "double precision", 5.0, False),
    "infinity": (float("inf"), "double precision", float("inf"), False),
    "minus infinity": (float("-inf"), "double precision", float("-inf"), False),
    "smallest double": (5e-324, "double precision", 5e-324, False),
    "largest double": (1.7976931348623157e308, "double precision", 1.7976931348623157e308, False),
    "string": ("plain", "text", "plain", False),
    "empty string": ("", "text", "", False),
    "emoji": ("shelf 🗄️ naïve 漢字", "text", "shelf 🗄️ naïve 漢字", False),
    "NUL": ("before\0after", "text", "before\u2400after", True),
    "long string": ("0123456789" * 20_000, "text", "0123456789" * 20_000, False),
    "document": (DEEP, "jsonb", DEEP, False),
    "empty document": ({}, "jsonb", {}, False),
    "dots and dollars": ({"a.b": 1, "$price": 2, "": 3}, "jsonb", {"a.b": 1, "$price": 2, "": 3}, True),
    "NUL inside": ({"text": "x\0y"}, "jsonb", {"text": "x\u2400y"}, True),
    "NUL in a list": (["x\0y"], "jsonb", ["x\u2400y"], True),
    "date inside": ({"at": JANUARY}, "jsonb", {"at": {"$date": "2026-01-05T00:00:00.000Z"}}, False),
    "array": ([1, "1", 2.5, None, True, {"n": 1}, [1]], "jsonb", [1, "1", 2.5, None, True, {"n": 1}, [1]], False),
    "empty array": ([], "jsonb", [], False),
    "int64 inside": ([Int64(2**53 + 1)], "jsonb", [2**53 + 1], False),
    "binary 0": (b"\x00\x01\xff", "bytea", b"\x00\x01\xff", False),
    "binary 2": (Binary(b"old", 2), "bytea", b"old", True),
    "binary 3": (Binary(bytes(range(16)), 3), "bytea", bytes(range(16)), True),
    "binary 4": (Binary(bytes(range(16)), 4), "uuid", UUID(bytes=bytes(range(16))), False),
    "binary 5": (Binary(bytes(range(16)), 5), "bytea", bytes(range(16)), True),
    "binary 128": (Binary(b"own", 128), "bytea", b"own", True),
    "empty binary": (b"", "bytea", b"", False),
    "ObjectId": (OID, "text", str(OID), False),
    "true": (True, "boolean", True, False),
    "false": (False, "boolean", False, False),
    "date": (datetime(2026, 1, 5, 20, 0, 0, 123000, UTC), "timestamp with time zone",
             datetime(2026, 1, 5, 20, 0, 0, 123000, UTC), False),
    "date before 1970": (DatetimeMS(-1500), UTC_TIME, BEFORE_1970, False),
    "regular expression": (Regex("^a.*z$", "im"), "jsonb", REGEX, False),
    "code": (Code("return 1;"), "jsonb", {"$code": "return 1;"}, False),
    "code with scope": (Code("return n;", {"n": 1}), "jsonb", SCOPE, False),
    "timestamp": (Timestamp(1_736_121_600, 7), "jsonb", {"$timestamp": {"t": 1_736_121_600, "i": 7}}, False),
    "smallest key": (MinKey(), "jsonb", {"$minKey": 1}, False),
    "largest key": (MaxKey(), "jsonb", {"$maxKey": 1}, False),
    "int32": (-(2**31), "bigint", -(2**31), False),
    "int64": (Int64(2**63 - 1), "bigint", 2**63 - 1, False),
    "beyond a double": (Int64(2**53 + 1), "bigint", 2**53 + 1, False),
    "decimal": (Decimal128("19.90"), "numeric", Decimal("19.90"), False),
    "small decimal": (Decimal128("1E-6176"), "numeric", Decimal("1E-6176"), False),
    "big decimal": (Decimal128("9.999999999999999999999999999999999E+6144"), "numeric",
                    Decimal("9.999999999999999999999999999999999E+6144"), False),
    "decimal infinity": (Decimal128("-Infinity"), "numeric", Decimal("-Infinity"), False),
    "decimal minus zero": (Decimal128("-0"), "numeric", Decimal(0), False),
}  # fmt: skip
NULLS = ["null", "absent"]
SHIFTED = list(VALUES)

RAW = {  # types that the driver no longer has, and bytes that are not what they should be
    "symbol": raw(ONE, (0x0E, b"v", struct.pack("<i", 4) + b"sym\0")),
    "undefined": raw(ONE, (0x06, b"v", b""), (0x10, b"w", struct.pack("<i", 2))),
    "DBPointer": raw(ONE, (0x0C, b"v", struct.pack("<i", 6) + b"books\0" + OID.binary)),
    "invalid UTF-8": raw(ONE, (0x02, b"v", struct.pack("<i", 4) + b"a\xffb\0")),
    "a name twice": raw(ONE, (0x10, b"v", struct.pack("<i", 1)), (0x10, b"v", struct.pack("<i", 2))),
    "a name twice inside": raw(
        ONE,
        (0x03, b"v", raw((0x10, b"x", struct.pack("<i", 1)), (0x10, b"x", struct.pack("<i", 2)))),
    ),
    "NaN": raw(ONE, (0x01, b"v", struct.pack("<d", float("nan")))),
    "decimal NaN": bson.encode({"_id": 1, "v": Decimal128("NaN")}),
    "signalling decimal": raw(ONE, (0x13, b"v", bytes(15) + b"\x7e")),
    "minus zero": bson.encode({"_id": 1, "v": -0.0}),
    "date beyond 9999": raw(ONE, (0x09, b"v", struct.pack("<q", 400_000_000_000_000))),
    "date beyond PostgreSQL": raw(ONE, (0x09, b"v", struct.pack("<q", 2**63 - 1))),
    "date before PostgreSQL": raw(ONE, (0x09, b"v", struct.pack("<q", -(2**63)))),
    "$numberInt of the user": bson.encode({"_id": 1, "v": {"$numberInt": "5"}}),
    "$warpBson of the user": bson.encode({"_id": 1, "v": {"$warpBson": "AAAA"}, "$warpBson": 1}),
    "DBRef": bson.encode({"_id": 1, "v": DBRef("books", OID, "library", more=1)}),
    "deep": bson.encode({"_id": 1, "v": [[[[[[[[[[{"x": [[[[[[1]]]]]]}]]]]]]]]]]}),
    "no field": bson.encode({"_id": 1}),
}


def documents() -> list[dict[str, Any]]:
    """One document with every value in a field of its own; the same with each field one further, so that nearly all
    are of another type than their column; one of nulls, one without fields."""
    values = [VALUES[name][0] for name in VALUES]
    return [
        {"_id": 1} | dict(zip(VALUES, values, strict=True)),
        {"_id": 2} | dict.fromkeys(VALUES),
        {"_id": 3},
        {"_id": 4} | dict(zip(VALUES, values[1:] + values[:1], strict=True)),
        {"_id": 5} | dict(zip(VALUES, values[17:] + values[:17], strict=True)),
        {"_id": 6} | dict(zip(VALUES, reversed(values), strict=True)),
    ]


async def play(found: World) -> None:
    one, *others = documents()
    found.db.snap.insert_one(one)
    async with found.replica.running():
        await found.replica.settled()
        found.db.stream.insert_one(one)
        await found.replica.settled()  # so that the first document alone decides on the columns
        for table in (found.db.snap, found.db.stream):
            table.insert_many(others)
        await found.replica.settled()


@pytest.fixture(scope="module")
def played(mongo_server: MongoServer, postgres_server: PostgresServer) -> Iterator[World]:
    with world(mongo_server, postgres_server) as found:
        asyncio.run(play(found))
        yield found


@pytest.fixture(scope="module")
def rows(played: World) -> dict[str, dict[int, tuple[Any, ...]]]:
    """Each table's typed columns and `_warp_extra`, by `_id`."""
    found: dict[str, dict[int, tuple[Any, ...]]] = {}
    names = ", ".join(f'"{name}"' for name in VALUES)
    for way in ("snap", "stream"):
        selected = played.replica.query(f"SELECT _id, _warp_extra, {names} FROM {way}")
        found[way] = {row[0]: row[1:] for row in selected}
    return found


@WAYS
@pytest.mark.parametrize("name", list(VALUES))
def test_what_sql_shows(played: World, rows: Any, way: str, name: str) -> None:
    """A value's column has the type of the table of types, and SQL shows the value; `_warp_extra` holds the original
    where the column cannot, and is NULL for the rest."""
    _, kind, shown, kept = VALUES[name]
    assert played.columns(way)[name] == kind
    extra, *values = rows[way][1]
    assert values[list(VALUES).index(name)] == shown
    assert (name in extra) is kept


@WAYS
def test_nulls(rows: Any, way: str) -> None:
    """A null and an absent field are NULL in every column."""
    for key in (2, 3):
        assert set(rows[way][key]) == {None}


@WAYS
@pytest.mark.parametrize("key", [4, 5, 6])
def test_values_of_other_types(rows: Any, way: str, key: int) -> None:
    """A value whose column has another type is in `_warp_extra`, or the column alone rebuilds it."""
    document = next(each for each in documents() if each["_id"] == key)
    extra, *values = rows[way][key]
    for name, value in zip(VALUES, values, strict=True):
        assert value is not None or name in extra or document[name] is None


def test_everything_is_rebuilt_equal(played: World) -> None:
    """Every document, also those whose values do not fit, is rebuilt equal from its row; misfits were reported."""
    assert asyncio.run(played.replica.differences()) == []
    assert {"NUL", "dots and dollars"} <= {event.column for event in played.replica.heard(Misfit)}
    assert played.replica.query("SELECT count(*) FROM dead_letters") == [(0,)]


@pytest.mark.parametrize("way", ["snapshot", "stream"])
async def test_raw_documents(postgres: str, way: str) -> None:
    """Types that drivers no longer write, invalid UTF-8, repeated names, NaN and dates of any year: each is rebuilt
    byte for byte, or equal where two types mean the same, by the core's own steps."""
    from cartridge_warp.cli.demo_check import _rows, plans

    async with direct(postgres, UnitSettings.of(SchemaConfig(name="s"))) as worker:
        tables = {f"t{n}": each for n, each in enumerate(RAW.values())}
        if way == "snapshot":
            await worker.snapshot(**{name: [each] for name, each in tables.items()})
        else:
            for name, each in tables.items():
                await worker.stream(upsert(worker.clock + 1, each), table=name)
        unit = worker.session.settings
        async with worker.target.transaction([]) as t:
            known = await plans(t.c, unit)
            for (label, each), name in zip(RAW.items(), tables, strict=True):
                (document,) = (await _rows(t.c, unit, known[name])).values()
                assert equal(document, decode(each)), label
            cursor = await t.c.execute("SELECT count(*) FROM cartridge_warp_metadata.dead_letters")
            assert await cursor.fetchone() == (0,)
            cursor = await t.c.execute("SELECT v::text FROM s.t9")
            assert await cursor.fetchone() == ("-0",)


async def test_raw_documents_that_the_server_stores(mongo: Any, postgres: str) -> None:
    """The same through the whole worker for what the test server stores."""
    from warp_testing.replica import Replica, config_for

    stored = 0
    replica = Replica(config_for(mongo.uri, postgres, mongo.name))
    for way in ("snap", "stream"):
        async with replica.running():
            await replica.settled()
            for number, each in enumerate(RAW.values()):
                try:
                    insert_raw(mongo.db, f"{way}_{number}", each)
                except Exception:  # this server is stricter than MongoDB with some of them
                    continue
                stored += 1
            if way == "stream":
                await replica.settled()
        if way == "snap":
            await replica.once()
            assert await replica.differences() == []
    assert stored >= 16


async def test_the_curiosities_of_the_demo(mongo: Any, postgres: str) -> None:
    """The sample data's odd names as fields and as collections, in one document and in the stream."""
    from warp_testing.replica import Replica, config_for

    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "data"))
    from curiosities import ODD_NAMES

    replica = Replica(config_for(mongo.uri, postgres, mongo.name))
    mongo.db.t.insert_one({"_id": 1} | {name: n for n, name in enumerate(ODD_NAMES) if not name.startswith("$")})
    async with replica.running():
        await replica.settled()
        for name in ODD_NAMES:
            if "$" not in name:
                mongo.db[name].insert_one({"_id": 1, name: "x", "plain": True})
        mongo.db.t.insert_one({"_id": 2} | {f"{name} too": n for n, name in enumerate(ODD_NAMES)})
        await replica.settled()


# -- random documents -----------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NAMES = st.one_of(
    st.sampled_from(["a", "b", "c", "A", "Ä", "is_deleted", "_warp_extra", "x" * 70, "sel ect", "", "a.b"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
).filter(lambda name: not name.startswith("$") and name != "_id")
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1).map(Int64),
    st.floats(allow_nan=True), TEXT, st.binary(max_size=20),
    st.builds(Binary, st.binary(min_size=16, max_size=16), st.sampled_from([0, 3, 4, 5, 128])),
    st.binary(min_size=12, max_size=12).map(ObjectId),
    st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(lambda d: d.replace(microsecond=0, tzinfo=UTC)),
    st.decimals(allow_nan=False, places=3, min_value=-(10**9), max_value=10**9).map(lambda d: Decimal128(str(d))),
    st.builds(Timestamp, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.just(MinKey()), st.just(MaxKey()), st.just(Regex("^x", "i")), st.just(Code("f()")),
)  # fmt: skip
ANY = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)
DOCUMENTS = st.dictionaries(NAMES, ANY, max_size=6)


def random_documents(count: int) -> list[dict[str, Any]]:
    """As many documents as hypothesis makes of a fixed seed; each is a test of its own only in the end."""
    made: list[dict[str, Any]] = []

    @seed(20261121)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(DOCUMENTS)
    def collect(document: dict[str, Any]) -> None:
        made.append(document)

    collect()
    return made


@pytest.mark.slow
async def test_random_documents(mongo: Any, postgres: str) -> None:
    """Some 300 random documents (nested, odd names, mixed types) in a few large batches, in the snapshot and in the
    stream, then replaced by others: each is rebuilt equal, and none is a dead letter."""
    from warp_testing.replica import Replica, config_for

    replica = Replica(config_for(mongo.uri, postgres, mongo.name))
    documents = random_documents(320)
    assert len(documents) >= 300
    numbered = [{"_id": n} | each for n, each in enumerate(documents)]
    mongo.db.snap.insert_many(numbered[:160])
    async with replica.running():
        await replica.settled()
        mongo.db.stream.insert_many(numbered[160:])
        await replica.settled()
        mongo.db.snap.bulk_write([ReplaceOne({"_id": n}, documents[n + 160]) for n in range(160)])
        mongo.db.stream.bulk_write([ReplaceOne({"_id": n + 160}, documents[n]) for n in range(160)])
        await replica.settled()
    assert replica.query("SELECT count(*) FROM dead_letters") == [(0,)]
