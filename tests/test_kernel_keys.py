"""Keys: which are one and the same, their hashes in Python and in PostgreSQL, and key columns."""

from __future__ import annotations

import datetime
import itertools
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID

import bson
import psycopg
import pytest
from bson import Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.binary import Binary
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from hypothesis import given
from hypothesis import strategies as st
from pymongo.errors import DuplicateKeyError

from cartridge_warp.kernel import (
    ColumnKind,
    KeyKind,
    PoisonDocument,
    encode_keys,
    encode_rows,
    equal,
    from_ejson,
    identity,
    key_hash,
    key_text,
    native_key_kind,
    parse_canonical,
    rebuild,
)
from warp_testing.kernel_rows import plan_of, read, write

OID = ObjectId("65a1b2c3d4e5f60718293a4b")
U = UUID(int=0x12345678_1234_5678_9ABC_DEF012345678)

# Each list holds keys that are one for MongoDB's unique index.
SAME: list[list[Any]] = [
    [OID], [str(OID)], [5, Int64(5), 5.0, Decimal128("5"), Decimal128("5.00"), Decimal128("50E-1")], ["5"], [True],
    [False], [1, 1.0], [0, 0.0, -0.0, Decimal128("0"), Decimal128("-0"), Decimal128("0E+9")], ["1"], ["True"], [None],
    ["None"], [""], [b""], [b"a"], ["a"], ["A"], [Binary(b"a", 128)], [Binary(U.bytes, 4)], [Binary(U.bytes, 3)],
    [U.bytes], [U.hex], [2**53, 2.0**53, Decimal128(str(2**53))], [2**53 + 1], [2**63 - 1], [-(2**63), -(2.0**63)],
    [2.0**63, Decimal128("9223372036854775808")], [1e22, Decimal128("1E+22"), Decimal128("10000E+18")],
    [1.5, Decimal128("1.5"), Decimal128("1.500")], [-1.5], [0.1], [Decimal128("0.1")],
    [float("nan"), Decimal128("NaN")], [float("inf"), Decimal128("Infinity")],
    [float("-inf"), Decimal128("-Infinity")], [Decimal128("1E-6176")], [Decimal128("1E+6111"), Decimal128("10E+6110")],
    [DatetimeMS(5)], [DatetimeMS(-(2**63))], [Timestamp(0, 5)], [Timestamp(5, 0)], [{}], [{"a": 1}, {"a": 1.0}],
    [{"a": 1, "b": 2}, {"a": Int64(1), "b": Decimal128("2")}], [{"b": 2, "a": 1}], [{"a": {"b": 1}}], [{"a": None}],
    [{"a": "1"}], [{"a": True}], [{"ab": "c"}], [{"a": "bc"}], [{"a": [1, 2]}], [{"a": [2, 1]}], [{"a": [[1], 2]}],
    [{"a": ["1,2"]}], [{"a": "x", "b": "y"}], [{"a": 'x", "b": "y'}], [MinKey()], [MaxKey()], ["x" * 3000],
    ["x" * 2000], ["x" * 2001], ["nul\0"], ["nul"], [{"r": Regex("a", "i")}], [{"r": Regex("a", "")}],
    [{"r": Regex("ai", "")}], [Code("x")], ["x"], [Code("x", {})], [Code("x", {"a": 1})],
    [DBRef("c", 1), DBRef("c", 1.0)], [DBRef("c", 2)],
]  # fmt: skip
KEYS = [(group, key) for group, keys in enumerate(SAME) for key in keys]
NATIVE: dict[KeyKind, list[Any]] = {
    KeyKind.objectid: [OID, ObjectId(b"\0" * 12), ObjectId(b"\xff" * 12)],
    KeyKind.int: [0, 5, -5, Int64(7), 2**63 - 1, -(2**63)],
    KeyKind.string: ["", "a", "é😀", "x" * 2000, '"quoted"', "\t\n\x7f"],
    KeyKind.uuid: [Binary(U.bytes, 4), Binary(b"\0" * 16, 4)],
    KeyKind.date: [DatetimeMS(ms) for ms in (0, 1, -1, 1_700_000_000_123, -210_866_803_200_000, 9_224_318_015_999_999)],
}
HASH_SQL = {
    KeyKind.objectid: "'o' || _id",
    KeyKind.int: "'n' || _id",
    KeyKind.string: "'s' || _id",
    KeyKind.uuid: "'b04' || replace(_id::text, '-', '')",
    KeyKind.date: "'d' || (extract(epoch FROM _id) * 1000)::bigint",
}


def test_identity_and_hash_agree_on_every_pair() -> None:
    """Two keys have one identity, and one hash, exactly when they are one key for MongoDB."""
    for (group_a, a), (group_b, b) in itertools.product(KEYS, KEYS):
        assert (identity(a) == identity(b)) == (group_a == group_b), (a, b)
        assert (key_hash(a) == key_hash(b)) == (group_a == group_b), (a, b)
        if group_a == group_b:
            assert hash(identity(a)) == hash(identity(b))


def test_a_server_agrees_about_keys(mongo: Any) -> None:
    """The server's unique index refuses a second key exactly where the identities are equal."""
    seen: dict[Any, Any] = {}
    # Where SecantusDB 0.7 is not as mongod: it ignores the subtype of a binary and the scope of code, compares
    # large numbers and decimals as doubles, keeps {a: 1} and {a: 1.0} apart, and takes no DBRef.
    other = (Binary, bytes, Decimal128, Code, DBRef, dict)
    for _, key in KEYS:
        if isinstance(key, other) or key in (-(2.0**63), 2.0**63) or key == DatetimeMS(-(2**63)):
            continue
        known = identity(key) in seen
        try:
            mongo.db.keys.insert_one({"_id": key})
            assert not known, (key, seen[identity(key)])
        except DuplicateKeyError:
            assert known, key
        seen.setdefault(identity(key), key)


NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-20, 20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-20, 20).map(float),
    st.builds(lambda n, e: Decimal128(f"{n}E{e}"), st.integers(-(10**33), 10**33), st.integers(-6000, 6000)),
    st.builds(lambda n, e: Decimal128(f"{n}E{e}"), st.integers(-200, 200), st.integers(-3, 3)),
)


def _exact(number: Any) -> Fraction:
    return Fraction(number.to_decimal() if isinstance(number, Decimal128) else number)


@given(NUMBERS, NUMBERS)
def test_numbers_are_one_when_their_exact_values_are(a: Any, b: Any) -> None:
    """Numbers of any type are one key exactly when their values are the same fraction."""
    same = _exact(a) == _exact(b)
    assert (identity(a) == identity(b)) == same
    assert (key_hash({"x": [a]}) == key_hash({"x": [b]})) == same


def test_python_keys_of_other_connectors() -> None:
    """Python's own types give the same keys as BSON's, and unknown types are refused."""
    moment = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    pairs = [
        (U, Binary(U.bytes, 4)), (moment, DatetimeMS(1_577_836_800_000)), (moment.replace(tzinfo=None), moment),
        (datetime.date(2020, 1, 1), moment), (2**70, Decimal128(str(2**70))), ((1, 2), [1, 2]),
        (bytearray(b"x"), b"x"), (Binary(b"x", 0), b"x"),
    ]  # fmt: skip
    for a, b in pairs:
        assert identity(a) == identity(b)
        assert key_hash(a) == key_hash(b)
        assert native_key_kind(a) is native_key_kind(b)
    assert identity(Decimal("5")) == identity(5)
    assert native_key_kind(Decimal("5")) is KeyKind.hash
    assert native_key_kind(moment) is KeyKind.date
    assert key_hash(moment) != key_hash(moment + datetime.timedelta(microseconds=1))
    assert native_key_kind(moment + datetime.timedelta(microseconds=1)) is KeyKind.hash
    with pytest.raises(PoisonDocument, match="object"):
        key_hash(object())


def test_native_key_kinds() -> None:
    """Only the five native kinds, within PostgreSQL's limits, have a column of their own."""
    for kind, keys in NATIVE.items():
        assert {native_key_kind(key) for key in keys} == {kind}
    others = [
        None, True, 5.0, Decimal128("5"), "a\0", "x" * 2001, "é" * 1001, "\udcff", "\ud800", b"x", Binary(b"x", 4),
        Binary(U.bytes, 3), DatetimeMS(9_224_318_016_000_000), DatetimeMS(-210_866_803_200_001), {}, {"a": 1}, [],
        Timestamp(1, 1), MinKey(), Code("x"), Regex("x"), 2**63, DBRef("c", 1), float("nan"),
    ]  # fmt: skip
    assert {native_key_kind(key) for key in others} == {KeyKind.hash}


@pytest.mark.parametrize("kind", NATIVE)
def test_postgres_computes_the_same_hash(postgres: str, kind: KeyKind) -> None:
    """sha256 of the native column's tagged text in SQL is `key_hash`, and what a filled `_warp_key` holds."""
    plan = plan_of({}, kind, fills_key=True)
    keys = NATIVE[kind]
    rows = encode_rows(plan, [bson.encode({"_id": key}) for key in keys], range(len(keys)))
    assert rows.rejected == []
    with psycopg.connect(postgres) as connection:
        write(connection, plan, rows)
        found = connection.execute(
            f"SELECT sha256(convert_to({HASH_SQL[kind]}, 'UTF8')), _warp_key FROM t ORDER BY _warp_version"
        ).fetchall()
    assert found == [(key_hash(key), key_hash(key)) for key in keys]


@pytest.mark.parametrize("kind", NATIVE)
def test_native_keys_find_their_rows(postgres: str, kind: KeyKind) -> None:
    """A key encoded alone equals the key of its row, and the row gives the key back."""
    plan = plan_of({}, kind)
    keys = NATIVE[kind]
    with psycopg.connect(postgres) as connection:
        write(connection, plan, encode_rows(plan, [bson.encode({"_id": key}) for key in keys], range(len(keys))))
        rebuilt = [rebuild(plan, row)["_id"] for row in read(connection, plan)]
    encoded = encode_keys(plan, keys)
    rows = encode_rows(plan, [{"_id": key} for key in keys], range(len(keys)))
    assert encoded.field == rows.fields[0]
    assert [identity(key) for key in rebuilt] == [identity(key) for key in keys]


def test_keys_of_another_kind_are_set_apart() -> None:
    """Documents and deletes whose key does not fit the native column are named, and the others go on."""
    plan = plan_of({}, KeyKind.objectid)
    keys = [OID, str(OID), OID, 5, None, "x" * 3000]
    documents = [bson.encode({"_id": key}) for key in keys]
    rows = encode_rows(plan, documents, range(len(keys)))
    assert rows.index == [0, 2]
    assert [(one.index, one.reason) for one in rows.rejected] == [(i, "key_type") for i in (1, 3, 4, 5)]
    assert all(len(one.message) < 400 for one in rows.rejected)
    assert rows.observed.keys == {"objectid", "string", "int", "hash"}
    encoded = encode_keys(plan, keys)
    assert (encoded.index, encoded.other) == ([0, 2], [1, 3, 4, 5])
    assert len(encoded.field) == 2


def test_a_hash_key_takes_everything(postgres: str) -> None:
    """With a hash key every key has a row of its own, and `_id` is ordinary data."""
    plan = plan_of({"_id": ColumnKind.json})
    firsts = [keys[0] for keys in SAME]
    with psycopg.connect(postgres) as connection:
        rows = encode_rows(plan, [bson.encode({"_id": key}) for key in firsts], range(len(firsts)))
        assert rows.rejected == []
        write(connection, plan, rows)
        connection.execute("ALTER TABLE t ADD PRIMARY KEY (_warp_key)")
        rebuilt = [rebuild(plan, row).get("_id") for row in read(connection, plan)]
    assert all(map(equal, rebuilt, firsts))  # but for the order of names, which only the hash keeps
    encoded = encode_keys(plan, firsts)
    assert encoded.field == rows.fields[0]
    assert encoded.other == []


def test_key_text_reads_back(postgres: str) -> None:
    """A key's text gives the same key again, with the order of its names, also after a stay in jsonb."""
    with psycopg.connect(postgres) as connection:
        for _, key in KEYS:
            text = key_text(key)
            assert identity(parse_canonical(text)) == identity(key)
            row = connection.execute("SELECT %s::jsonb::text, %s::jsonb", (text, text)).fetchone()
            assert row is not None
            assert identity(parse_canonical(row[0])) == identity(from_ejson(row[1])) == identity(key)
    assert key_text(OID) == f'{{"$oid": "{OID}"}}'
    assert key_text("a") == '"a"'


def test_keys_of_several_fields() -> None:
    """A table keyed by a mapping takes the keys that the caller hands over, in the order of their fields."""
    plan = plan_of({"a": ColumnKind.bigint}, key_field=None)
    keys = [{"region": "x", "_id": 1}, {"_id": 1, "region": "x"}]
    rows = encode_rows(plan, [{"a": 1}, {"a": 2}], [1, 2], keys)
    assert rows.fields[0] == encode_keys(plan, keys).field
    assert len(set(rows.fields[0])) == 2
    without = encode_rows(plan, [{"a": 1}], [1])
    assert [one.reason for one in without.rejected] == ["poison"]
