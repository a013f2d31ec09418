"""What other tools lose, measured (design/opponents.md, second table): here each line arrives, in the snapshot
(collections `snap_*`, filled before the worker starts) and in the stream (`stream_*`, filled while it runs)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from bson import Decimal128, Int64, ObjectId

from warp_testing.servers import MongoServer, PostgresServer
from warp_testing.world import World, world

BIG = 2**53 + 1
HEX = "5eedda7a5eedda7a5eedda7a"
WAYS = pytest.mark.parametrize("way", ["snap", "stream"])


def fill(db: Any, way: str) -> None:
    """The documents of every line."""
    db[f"{way}_nul"].insert_many([{"_id": 1, "text": "before\0after"}, {"_id": 2, "text": "plain"}])
    db[f"{way}_later"].insert_many([{"_id": n, "a": n} for n in range(2000)] + [{"_id": 2000, "late": "value"}])
    db[f"{way}_types"].insert_many([{"_id": n, "v": n} for n in range(5)] + [{"_id": 5, "v": "text"}])
    db[f"{way}_types"].insert_many([{"_id": 6, "v": [1]}, {"_id": 7, "v": "42"}, {"_id": 8, "v": 2.5}])
    db[f"{way}_big"].insert_many([{"_id": 1, "n": Int64(BIG)}, {"_id": 2, "n": 0.1}, {"_id": 3, "n": Int64(-BIG)}])
    db[f"{way}_ids"].insert_many([{"_id": 1, "v": "number"}, {"_id": "1", "v": "text"}])
    db[f"{way}_oids"].insert_many([{"_id": ObjectId(HEX), "v": "oid"}, {"_id": HEX, "v": "hex"}])
    db[f"{way}_nested"].insert_one({"_id": 1, "doc": {"a": {"b": [1, {"c": None}]}}, "list": [1, "2", 3.5, {"x": []}]})
    db[f"{way}_decimal"].insert_many(
        [{"_id": 1, "d": Decimal128("19.90")}, {"_id": 2, "d": Decimal128("9999999999999999999999999999999999")}]
    )
    db[f"{way}_unset"].insert_many([{"_id": n, "a": n, "b": f"b{n}"} for n in range(4)])


def change(db: Any, way: str) -> None:
    """What happens to documents that have a row already."""
    db[f"{way}_unset"].update_one({"_id": 1}, {"$unset": {"b": 1}})
    db[f"{way}_unset"].replace_one({"_id": 2}, {"a": 22})
    db[f"{way}_unset"].update_one({"_id": 3}, {"$set": {"b": None}})
    db[f"{way}_later"].update_one({"_id": 7}, {"$set": {"later still": [7]}})


async def play(found: World) -> None:
    fill(found.db, "snap")
    async with found.replica.running():
        await found.replica.settled()
        fill(found.db, "stream")
        await found.replica.settled()
        for way in ("snap", "stream"):
            change(found.db, way)
        await found.replica.settled()


@pytest.fixture(scope="module")
def played(mongo_server: MongoServer, postgres_server: PostgresServer) -> Iterator[World]:
    with world(mongo_server, postgres_server) as found:
        asyncio.run(play(found))
        yield found


@WAYS
def test_a_nul_in_a_string(played: World, way: str) -> None:
    """A NUL in a string: the row arrives readable, and the original value is kept beside it."""
    rows = played.replica.query(f"SELECT _id, text, _warp_extra ? 'text' FROM {way}_nul ORDER BY _id")
    assert rows == [(1, "before\u2400after", True), (2, "plain", None)]


@WAYS
def test_unset_and_replace_leave_null(played: World, way: str) -> None:
    """$unset, a replacement without the field, and an explicit null leave NULL, never the old value."""
    rows = played.replica.query(f"SELECT _id, a, b FROM {way}_unset ORDER BY _id")
    assert rows == [(0, 0, "b0"), (1, 1, None), (2, 22, None), (3, 3, None)]


@WAYS
def test_a_field_that_appears_later(played: World, way: str) -> None:
    """A field first seen in document 2,001, or in a later update, gets its column and has its value there."""
    rows = played.replica.query(f"SELECT _id, late FROM {way}_later WHERE late IS NOT NULL")
    assert rows == [(2000, "value")]
    rows = played.replica.query(f'SELECT _id, "later still" FROM {way}_later WHERE "later still" IS NOT NULL')
    assert rows == [(7, [7])]


@WAYS
def test_a_value_of_another_type(played: World, way: str) -> None:
    """A value of another type stands in its column when that is exact, and is whole in `_warp_extra` otherwise."""
    rows = played.replica.query(f"SELECT _id, v, _warp_extra FROM {way}_types ORDER BY _id")
    assert [key for key, _, _ in rows] == list(range(9))
    for (_, value, extra), original in zip(rows, [0, 1, 2, 3, 4, "text", [1], "42", 2.5], strict=True):
        assert value == original or "v" in extra, (value, extra, original)
    if played.columns(f"{way}_types")["v"] != "jsonb":  # as the first batch or page happened to be cut
        assert (rows[5][1], rows[5][2]) == (None, {"v": "text"})
        assert (rows[7][1], rows[7][2]) == (42, {"v": "42"})


@WAYS
def test_large_integers_among_doubles(played: World, way: str) -> None:
    """int64 beyond 2^53 in one field with doubles stays exact."""
    assert played.columns(f"{way}_big")["n"] == "numeric"
    rows = played.replica.query(f"SELECT n FROM {way}_big ORDER BY _id")
    assert rows == [(Decimal(BIG),), (Decimal("0.1"),), (Decimal(-BIG),)]


@WAYS
@pytest.mark.parametrize("table", ["ids", "oids"])
def test_keys_that_look_alike(played: World, way: str, table: str) -> None:
    """`_id` 1 and "1", an ObjectId and its digits as a string: two rows each."""
    values = {row[0] for row in played.replica.query(f"SELECT v FROM {way}_{table}")}
    assert values == ({"number", "text"} if table == "ids" else {"oid", "hex"})


@WAYS
def test_nested_documents_and_mixed_arrays(played: World, way: str) -> None:
    """Nested documents and heterogeneous arrays are jsonb that SQL can look into."""
    assert played.columns(f"{way}_nested")["doc"] == "jsonb"
    rows = played.replica.query(f"SELECT doc #> '{{a,b,1}}', list ->> 1, list -> 2 FROM {way}_nested")
    assert rows == [({"c": None}, "2", 3.5)]


@WAYS
def test_decimals_are_numeric(played: World, way: str) -> None:
    """Decimal128 is numeric, so that sums are exact."""
    assert played.columns(f"{way}_decimal")["d"] == "numeric"
    rows = played.replica.query(f"SELECT sum(d) FROM {way}_decimal")
    assert rows == [(Decimal("10000000000000000000000000000000018.90"),)]


def test_everything_is_equal(played: World) -> None:
    """Every document of every line can be rebuilt from its row."""
    assert asyncio.run(played.replica.differences()) == []


async def test_a_restart_in_mid_stream(mongo: Any, postgres: str) -> None:
    """Restarts in the middle of the stream write no row twice: an audit of every write holds each version once."""
    from warp_testing.replica import Replica, config_for

    replica = Replica(config_for(mongo.uri, postgres, mongo.name))
    mongo.db.t.insert_many([{"_id": n, "n": 0} for n in range(50)])
    await replica.once()
    replica.query("CREATE TABLE audit (key bigint, version bigint)")
    replica.query(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f' INSERT INTO "{replica.unit.target}".audit VALUES (NEW._id, NEW._warp_version); RETURN NULL; END $$'
    )
    replica.query("CREATE TRIGGER note AFTER INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION note()")
    for turn in range(3):
        for n in range(50):
            mongo.db.t.update_one({"_id": n}, {"$inc": {"n": 1}})
            if n == 25:
                async with replica.running():
                    await replica.settled()
        await replica.once()
        assert replica.query("SELECT min(n), max(n) FROM t") == [(turn + 1, turn + 1)]
    assert replica.query("SELECT key, version FROM audit GROUP BY 1, 2 HAVING count(*) > 1") == []
    assert replica.query("SELECT count(DISTINCT key) FROM audit") == [(50,)]
