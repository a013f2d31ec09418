"""Whole documents: rebuilt from their rows whatever they hold; bad ones are left out alone."""

from __future__ import annotations

import datetime
import random
from typing import Any

import bson
import psycopg
import pytest
from bson import Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.binary import Binary
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cartridge_warp.kernel import (
    ColumnKind,
    KeyKind,
    PoisonDocument,
    TablePlan,
    copy_columns,
    decide_kind,
    decode,
    encode_rows,
    equal,
    key_hash,
    rebuild,
    to_record,
)
from cartridge_warp.records import OperationType
from warp_testing.kernel_rows import COPY, UNNEST, plan_of, read, through, write

MS: CodecOptions[dict[str, Any]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.one_of(
    TEXT.filter(lambda name: "\0" not in name),
    st.sampled_from(
        ["a", "A", "b", "$date", "$oid", "$numberInt", "$ref", "$id", "$warpBson", "_warp_extra", "ctid", "", "x.y"]
    ),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.integers(-9, 9).map(Int64), st.floats(), TEXT,
    st.integers(-99, 99).map(float),
    st.sampled_from(["\0", "a\0b", "\\u0000", "42", "-0.0", "1e+5", "65a1b2c3d4e5f60718293a4b"]),
    st.binary(max_size=20), st.builds(Binary, st.binary(max_size=5), st.sampled_from([2, 5, 128])),
    st.binary(min_size=16, max_size=16).map(lambda data: Binary(data, 4)),
    st.binary(min_size=12, max_size=12).map(ObjectId), st.integers(-(2**63), 2**63 - 1).map(DatetimeMS),
    st.integers(0, 2**41).map(DatetimeMS),
    st.builds(lambda n, e: Decimal128(f"{n}E{e}"), st.integers(-(10**33), 10**33), st.integers(-6000, 6000)),
    st.sampled_from([MinKey(), MaxKey(), Regex("^a", "im"), Code("f()"), Code("f()", {"x": 1}), Timestamp(4, 2)]),
    st.sampled_from([Decimal128("NaN"), Decimal128("-Infinity"), Decimal128("-0"), float("nan"), -0.0, 1e300]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=8)


@pytest.mark.parametrize("how", [COPY, UNNEST])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_documents_are_rebuilt(postgres: str, how: str, data: st.DataObject) -> None:
    """Any documents, under any plan, come back from PostgreSQL equal to what was sent."""
    documents = data.draw(st.lists(DOCUMENTS, min_size=1, max_size=6))
    fields = sorted({name for document in documents for name in document} - {"$warpBson", "_id"})
    kinds = data.draw(st.dictionaries(st.sampled_from(fields), st.sampled_from(ColumnKind))) if fields else {}
    raws = [bson.encode({**document, "_id": position}) for position, document in enumerate(documents)]
    with psycopg.connect(postgres) as connection:
        rebuilt = through(connection, plan_of(kinds, KeyKind.int), raws, how)
    for raw, found in zip(raws, rebuilt, strict=True):
        assert equal(bson.decode(raw, MS), found)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(DOCUMENTS, min_size=1, max_size=6))
def test_observed_fields_make_a_plan_without_extra_fields(postgres: str, documents: list[dict[str, Any]]) -> None:
    """A plan made of what was observed has a column for every field, and documents are rebuilt from it."""
    raws = [bson.encode({**document, "_id": position}) for position, document in enumerate(documents)]
    first = encode_rows(TablePlan("t", "t", KeyKind.int), raws, range(len(raws)))
    plan = plan_of({field: decide_kind(counts) for field, counts in first.observed.fields.items()}, KeyKind.int)
    assert encode_rows(plan, raws, range(len(raws))).observed.fields == {}
    with psycopg.connect(postgres) as connection:
        for raw, found in zip(raws, through(connection, plan, raws), strict=True):
            assert equal(bson.decode(raw, MS), found)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=5), st.randoms(use_true_random=False))
def test_garbage_never_raises(garbage: list[bytes], rng: random.Random) -> None:
    """Bytes that are no BSON, or BSON with a changed byte, are rejected or encoded, and never raise."""
    good = bytearray(bson.encode({"_id": 1, "a": "text", "b": {"c": [1, 2.5, None]}, "d": DatetimeMS(5)}))
    good[rng.randrange(len(good))] = rng.randrange(256)
    documents = [*garbage, bytes(good), bson.encode({"_id": 2, "a": 1})]
    plan = plan_of({"a": ColumnKind.string, "b": ColumnKind.json}, KeyKind.int)
    rows = encode_rows(plan, documents, range(len(documents)))
    assert sorted([*rows.index, *(one.index for one in rows.rejected)]) == list(range(len(documents)))
    assert rows.index[-1] == len(documents) - 1
    assert {len(column) for column in rows.fields} == {len(rows.index)}


class Unwritable:
    """A value from a connector that has no place in a row."""


def test_poison_is_isolated() -> None:
    """Undecodable and keyless documents and values without a place are named; all others are in rows."""
    plan = plan_of({"a": ColumnKind.bigint}, KeyKind.int)
    good = bson.encode({"_id": 1, "a": 1})
    documents: list[Any] = [
        good, good[:-3], good, bson.encode({"a": 1}), {"_id": 5, "a": Unwritable()}, {"_id": 6, "a": 6}, b"",
        {"_id": 8, "x\0y": 1}, {"_id": 9, 5: 1}, good,
    ]  # fmt: skip
    rows = encode_rows(plan, documents, range(100, 110))
    assert rows.index == [0, 2, 5, 9]
    assert {one.index: one.reason for one in rows.rejected} == dict.fromkeys((1, 3, 4, 6, 7, 8), "poison")
    assert "no field '_id'" in rows.rejected[1].message
    assert "Unwritable" in rows.rejected[2].message
    assert rows.fields[-2] == encode_rows(plan, [good] * 4, [100, 102, 105, 109]).fields[-2]


def test_a_document_that_breaks_the_encoder_is_isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever one document does to the encoder, the others of the batch are written."""
    from cartridge_warp.kernel import columns

    real = columns._CONVERT[ColumnKind.json]

    def breaking(value: Any) -> Any:
        if value in ({"bad": 1}, {"bad": 2}):
            raise AttributeError("broken")
        return real(value)

    monkeypatch.setitem(columns._CONVERT, ColumnKind.json, breaking)
    plan = plan_of({"a": ColumnKind.json}, KeyKind.int)
    documents = [{"_id": i, "a": {"good": i}} for i in range(20)]
    documents[3]["a"], documents[17]["a"] = {"bad": 1}, {"bad": 2}
    rows = encode_rows(plan, documents, range(20))
    assert [one.index for one in rows.rejected] == [3, 17]
    assert rows.index == [i for i in range(20) if i not in (3, 17)]
    assert len(rows.fields[1]) == 18


def test_memory_errors_are_not_the_documents_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running out of memory never turns a good document into a dead letter."""

    def exhausted(_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("cartridge_warp.kernel.encode.decode", exhausted)
    with pytest.raises(MemoryError):
        encode_rows(plan_of({}, KeyKind.int), [bson.encode({"_id": 1})], [1])


def test_deep_documents_are_poison_not_a_crash() -> None:
    """Nesting beyond Python's limit rejects the document alone."""
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    rows = encode_rows(plan_of({"a": ColumnKind.json}, KeyKind.int), [{"_id": 1, "a": deep}, {"_id": 2}], [1, 2])
    assert rows.index == [1]
    assert [one.reason for one in rows.rejected] == ["poison"]


def test_an_empty_batch_has_all_columns() -> None:
    """Without documents there is still one empty list for each column."""
    plan = plan_of({"a": ColumnKind.json, "b": ColumnKind.uuid}, KeyKind.date, fills_key=True)
    rows = encode_rows(plan, [], [])
    assert rows.fields == [[] for _ in copy_columns(plan)]
    assert rows.observed.keys == set()


def test_unplanned_fields_are_kept_and_counted(postgres: str) -> None:
    """A field without a column is in `_warp_extra` and observed with its kinds; nulls are neither."""
    plan = plan_of({}, KeyKind.int)
    documents = [bson.encode({"_id": i, "x": x, "n": None}) for i, x in enumerate([1, "s", 2, None])]
    rows = encode_rows(plan, documents, range(4))
    assert rows.observed.fields == {"x": {"int": 2, "string": 1}}
    with psycopg.connect(postgres) as connection:
        write(connection, plan, rows)
        extras = [row["_warp_extra"] for row in read(connection, plan)]
    assert extras == [{"x": {"$numberInt": "1"}}, {"x": "s"}, {"x": {"$numberInt": "2"}}, None]


def test_versions_are_signed(postgres: str) -> None:
    """The smallest and the largest version are stored as they are."""
    plan = plan_of({}, KeyKind.int)
    versions = [-(2**63), -1, 0, 2**63 - 1]
    with psycopg.connect(postgres) as connection:
        write(connection, plan, encode_rows(plan, [bson.encode({"_id": i}) for i in range(4)], versions))
        assert [row["_warp_version"] for row in read(connection, plan)] == versions


def test_a_late_kind_of_key_is_rebuilt_under_a_hash(postgres: str) -> None:
    """After a change to a hash key, an `_id` that does not fit its old column is NULL there and kept whole."""
    plan = plan_of({"_id": ColumnKind.objectid, "a": ColumnKind.bigint})
    keys = [ObjectId(), "a string", 5, None, {"x": 1}]
    raws = [bson.encode({"_id": key, "a": 1}) for key in keys]
    with psycopg.connect(postgres) as connection:
        rebuilt = through(connection, plan, raws)
        stored = [row["_warp_key"] for row in read(connection, plan)]
    assert stored == [key_hash(key) for key in keys]
    assert all(equal(bson.decode(raw), found) for raw, found in zip(raws, rebuilt, strict=True))


def test_columns_with_and_without_nulls_are_the_same_bytes() -> None:
    """The quick way for uniform columns and the careful one agree, field by field."""
    values: dict[ColumnKind, list[Any]] = {
        ColumnKind.bigint: [1, Int64(-5), 2**62], ColumnKind.double: [1.5, float("inf"), -0.0],
        ColumnKind.string: ["", "é", "x" * 300], ColumnKind.objectid: [ObjectId(), ObjectId()],
        ColumnKind.boolean: [True, False], ColumnKind.timestamp: [DatetimeMS(0), DatetimeMS(-(10**13))],
        ColumnKind.uuid: [Binary(b"1" * 16, 4)], ColumnKind.bytes: [b"", b"\xff"],
    }  # fmt: skip
    for kind, own in values.items():
        plan = plan_of({"v": kind}, KeyKind.int)

        def fields(cells: list[Any], plan: TablePlan = plan) -> list[bytes]:
            return encode_rows(plan, [{"_id": i, "v": v} for i, v in enumerate(cells)], range(len(cells))).fields[1]

        quick = fields(own)
        assert [field for field in fields([None, *own, None]) if field != b"\xff" * 4] == quick
        assert fields([*own, MinKey()])[:-1] == quick, kind


def test_decode_keeps_values_apart() -> None:
    """Decoding gives dates beyond Python's, subtypes and code as values of their own, never as lookalikes."""
    document = decode(bson.encode({"d": DatetimeMS(2**60), "u": Binary(b"1" * 16, 4), "c": Code("x"), "n": Int64(1)}))
    assert int(document["d"]) == 2**60
    assert document["u"].subtype == 4
    assert not isinstance(document["c"], str)
    with pytest.raises(PoisonDocument, match="not valid BSON"):
        decode(b"\x05\0\0\0\x01")


def test_records_for_simple_connectors() -> None:
    """A simple connector sees Python's own types, and Extended JSON objects for the rest."""
    oid, moment = ObjectId(), datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    raw = bson.encode(
        {"_id": oid, "d": moment, "late": DatetimeMS(2**60), "m": Decimal128("1.50"), "u": Binary(b"1" * 16, 4),
         "b": b"x", "n": Int64(5), "t": Timestamp(1, 2), "x": {"y": [oid, moment]}, "c": Code("f")}
    )  # fmt: skip
    record = to_record("t", raw, OperationType.UPDATE, oid, at_ms=1_577_836_800_000)
    assert record.primary_key_values == {"_id": str(oid)}
    assert record.timestamp == moment
    assert record.data["d"] == moment
    assert record.data["x"] == {"y": [str(oid), moment]}
    assert record.data["late"] == {"$date": {"$numberLong": str(2**60)}}
    assert record.data["t"] == {"$timestamp": {"t": 1, "i": 2}}
    assert record.data["c"] == {"$code": "f"}
    assert [type(record.data[name]).__name__ for name in "mubn"] == ["Decimal", "UUID", "bytes", "int"]
    deleted = to_record("t", None, OperationType.DELETE, {"a": 1, "b": oid}, None)
    assert deleted.data == {}
    assert deleted.primary_key_values == {"a": 1, "b": str(oid)}


def test_dead_letters_can_be_written_again(postgres: str) -> None:
    """A decoded document, odd or not, encodes to the same row as its bytes."""
    plan = plan_of({"a": ColumnKind.json}, KeyKind.int)
    raw = b"\x1f\0\0\0\x10_id\0\1\0\0\0\x10a\0\1\0\0\0\x10a\0\2\0\0\0\0"
    raw = len(raw).to_bytes(4, "little") + raw[4:]
    for document in (raw, bson.encode({"_id": 1, "a": {"$x": "\0"}})):
        assert encode_rows(plan, [decode(document)], [1]).fields == encode_rows(plan, [document], [1]).fields
    with psycopg.connect(postgres) as connection:
        write(connection, plan, encode_rows(plan, [raw], [1]))
        (row,) = read(connection, plan)
    assert equal(rebuild(plan, row), decode(raw))
