"""Every BSON type and odd value, in every kind of column, through a real PostgreSQL and back."""

from __future__ import annotations

import datetime
import struct
from decimal import Decimal
from typing import Any
from uuid import UUID

import bson
import psycopg
import pytest
from bson import Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.binary import Binary
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef

from cartridge_warp.kernel import (
    ColumnKind,
    canonical,
    decode,
    encode_rows,
    equal,
    parse_canonical,
    rebuild,
    relaxed_json,
    value_kind,
)
from warp_testing.kernel_rows import COPY, UNNEST, plan_of, read, through, write

OID = ObjectId("65a1b2c3d4e5f60718293a4b")
DAY = 86_400_000
VALUES: dict[str, Any] = {
    "int32": 5, "zero": 0, "int32 end": -(2**31), "int64": Int64(5), "int64 end": 2**63 - 1, "int64 low": -(2**63),
    "beyond 2^53": 2**53 + 1, "double": 0.1, "whole double": 5.0, "minus zero": -0.0, "nan": float("nan"),
    "inf": float("inf"), "minus inf": float("-inf"), "1e22": 1e22, "1e23": 1e23, "1e16": 1e16, "2^60": 2.0**60,
    "max double": 1.7976931348623157e308, "denormal": 5e-324, "1e-7": 1e-7, "-1.5": -1.5,
    "decimal": Decimal128("123.4500"), "decimal int": Decimal128("5"), "decimal -0": Decimal128("-0"),
    "decimal 0E+5": Decimal128("0E+5"), "decimal huge": Decimal128("9.999999999999999999999999999999999E+6144"),
    "decimal tiny": Decimal128("1E-6176"), "decimal nan": Decimal128("NaN"), "decimal snan": Decimal128("sNaN"),
    "decimal -nan": Decimal128("-NaN"), "decimal inf": Decimal128("Infinity"),
    "decimal -inf": Decimal128("-Infinity"), "decimal small": Decimal128("0.00012340000"),
    "decimal groups": Decimal128("100000000.00000001"), "decimal neg": Decimal128("-12345678901234567890.5"),
    "string": "héllo 😀", "empty": "", "numeral": "42", "numeral 0.5": "0.5", "not numeral": "042",
    "nul": "a\0b", "escape": "a\\u0000b", "hex": str(OID), "HEX": "65A1B2C3D4E5F60718293A4B", "dollar": "$date",
    "e+": "1e+5", "quotes": '"\\\n\t\x7f\u2028', "uuid text": "12345678-1234-5678-1234-567812345678",
    "arabic digits": "٤٢", "long": "x" * 10_000,
    "true": True, "false": False, "objectid": OID, "date": DatetimeMS(1_700_000_000_123),
    "date before 1970": DatetimeMS(-1), "year 1": DatetimeMS(-62_135_596_800_000),
    "year 9999": DatetimeMS(253_402_300_799_999), "year 10000": DatetimeMS(253_402_300_800_000),
    "year 294276": DatetimeMS(9_224_318_015_999_999), "too late": DatetimeMS(9_224_318_016_000_000),
    "4713 BC": DatetimeMS(-210_866_803_200_000), "too early": DatetimeMS(-210_866_803_200_001),
    "last date": DatetimeMS(2**63 - 1), "first date": DatetimeMS(-(2**63)), "year 0": DatetimeMS(-62_150_000_000_000),
    "uuid": Binary(bytes(range(16)), 4), "old uuid": Binary(bytes(range(16)), 3), "short uuid": Binary(b"abc", 4),
    "bytes": b"\0\xff", "no bytes": b"", "user binary": Binary(b"xyz", 128), "md5": Binary(b"1" * 16, 5),
    "old binary": Binary(b"xyz", 2),
    "document": {"b": 1, "a": {"c": [1, 2.0, None, "x"]}}, "empty document": {}, "array": [], "nested": [[[]], {}],
    "numbers": [1, 1.0, Int64(1), Decimal128("1.0"), -0.0, float("nan"), 1e22, 2**53 + 1],
    "all inside": {"o": OID, "d": DatetimeMS(5), "late": DatetimeMS(2**60), "u": Binary(b"1" * 16, 4), "x": b"1",
                   "r": Regex("^a", "im"), "t": Timestamp(1, 2), "k": MinKey(), "K": MaxKey(), "n": None,
                   "D": Decimal128("NaN"), "c": Code("f"), "s": Code("f", {"x": 1}), "q": DBRef("c", OID, "d")},
    "nul inside": {"a": ["x\0y"]}, "nul like": {"a": "\\u0000"}, "empty name": {"": 1},
    "user $date": {"$date": "2020-01-01T00:00:00Z"}, "user $numberInt": {"a": {"$numberInt": "5"}},
    "user $oid": [{"$oid": "xyz"}], "user $warpBson": {"$warpBson": "AAAA"}, "user $ref": {"$ref": 5, "$id": 1},
    "user $": {"$": 1}, "text $": {"price": "$5", "e": "1e+3", "z": "-0.05"},
    "regex": Regex("^a.*$", "imsx"), "regex quote": Regex('"', ""), "code": Code("function() { return 1 }"),
    "code scope": Code("x", {"a": 1, "b": {"c": OID}}), "code nul": Code("a\0b"), "timestamp": Timestamp(2**32 - 1, 7),
    "min": MinKey(), "max": MaxKey(), "dbref": DBRef("c", OID), "dbref more": DBRef("c", 5, "db", extra=1),
    "deep": __import__("functools").reduce(lambda inner, _: {"x": [inner]}, range(45), 1),
}  # fmt: skip

EVERY = plan_of({kind.value: kind for kind in ColumnKind} | {"_id": ColumnKind.json})


def _documents() -> list[bytes]:
    return [
        bson.encode({"_id": name, **{kind.value: value for kind in ColumnKind}, "unplanned": value})
        for name, value in VALUES.items()
    ]


@pytest.mark.parametrize("how", [COPY, UNNEST])
@pytest.mark.parametrize("times", ["ms", "text"])
def test_every_value_in_every_column_is_rebuilt(postgres: str, how: str, times: str) -> None:
    """Whatever the column's kind, and also without a column, each value comes back from its row."""
    documents = _documents()
    with psycopg.connect(postgres) as connection:
        rebuilt = through(connection, EVERY, documents, how, times=times)
    for name, raw, document in zip(VALUES, documents, rebuilt, strict=True):
        original = bson.decode(raw, bson.CodecOptions(datetime_conversion=3))
        for field in original:
            assert equal(original[field], document.get(field)), (name, field, original[field], document.get(field))
        assert equal(original, document)


OWN_COLUMN = [
    (ColumnKind.bigint, "int32", "5"), (ColumnKind.bigint, "int64 low", str(-(2**63))),
    (ColumnKind.double, "double", "0.1"), (ColumnKind.double, "nan", "NaN"),
    (ColumnKind.double, "minus zero", "-0"), (ColumnKind.double, "minus inf", "-Infinity"),
    (ColumnKind.numeric, "int32", "5"), (ColumnKind.numeric, "double", "0.1"),
    (ColumnKind.numeric, "whole double", "5"), (ColumnKind.numeric, "2^60", str(2**60)),
    (ColumnKind.numeric, "beyond 2^53", str(2**53 + 1)), (ColumnKind.numeric, "decimal", "123.4500"),
    (ColumnKind.numeric, "decimal -0", "0"), (ColumnKind.numeric, "decimal small", "0.00012340000"),
    (ColumnKind.numeric, "decimal groups", "100000000.00000001"),
    (ColumnKind.numeric, "decimal neg", "-12345678901234567890.5"), (ColumnKind.numeric, "zero", "0"),
    (ColumnKind.numeric, "decimal nan", "NaN"), (ColumnKind.numeric, "inf", "Infinity"),
    (ColumnKind.numeric, "decimal -inf", "-Infinity"), (ColumnKind.string, "string", "héllo 😀"),
    (ColumnKind.string, "empty", ""), (ColumnKind.objectid, "objectid", str(OID)),
    (ColumnKind.boolean, "true", "true"), (ColumnKind.timestamp, "date", "2023-11-14 22:13:20.123+00"),
    (ColumnKind.timestamp, "4713 BC", "4714-11-24 00:00:00+00 BC"),
    (ColumnKind.timestamp, "year 294276", "294276-12-31 23:59:59.999+00"),
    (ColumnKind.uuid, "uuid", "00010203-0405-0607-0809-0a0b0c0d0e0f"), (ColumnKind.bytes, "bytes", "\\x00ff"),
    (ColumnKind.json, "whole double", "5.0"), (ColumnKind.json, "string", '"héllo 😀"'),
    (ColumnKind.json, "document", '{"a": {"c": [1, 2.0, null, "x"]}, "b": 1}'),
    (ColumnKind.json, "date", '{"$date": "2023-11-14T22:13:20.123Z"}'),
    (ColumnKind.json, "objectid", f'{{"$oid": "{OID}"}}'), (ColumnKind.json, "1e22", '{"$numberDouble": "1e+22"}'),
    (ColumnKind.json, "timestamp", '{"$timestamp": {"i": 7, "t": 4294967295}}'),
    (ColumnKind.json, "text $", '{"e": "1e+3", "z": "-0.05", "price": "$5"}'),
]  # fmt: skip

CONVERTED = [
    (ColumnKind.bigint, "numeral", "42"), (ColumnKind.bigint, "whole double", "5"),
    (ColumnKind.bigint, "decimal int", "5"), (ColumnKind.bigint, "not numeral", None),
    (ColumnKind.bigint, "arabic digits", None), (ColumnKind.bigint, "1e22", None), (ColumnKind.bigint, "true", None),
    (ColumnKind.bigint, "double", None), (ColumnKind.bigint, "decimal huge", None), (ColumnKind.bigint, "nan", None),
    (ColumnKind.double, "int32", "5"), (ColumnKind.double, "beyond 2^53", None), (ColumnKind.double, "numeral", "42"),
    (ColumnKind.double, "numeral 0.5", "0.5"), (ColumnKind.double, "decimal huge", None),
    (ColumnKind.numeric, "numeral", "42"), (ColumnKind.numeric, "string", None), (ColumnKind.numeric, "true", None),
    (ColumnKind.numeric, "minus zero", "0"), (ColumnKind.numeric, "decimal snan", "NaN"),
    (ColumnKind.string, "objectid", str(OID)), (ColumnKind.string, "nul", "a␀b"), (ColumnKind.string, "int32", None),
    (ColumnKind.string, "code", None), (ColumnKind.objectid, "hex", str(OID)), (ColumnKind.objectid, "HEX", None),
    (ColumnKind.boolean, "int32", None), (ColumnKind.timestamp, "too late", None),
    (ColumnKind.timestamp, "too early", None), (ColumnKind.timestamp, "timestamp", None),
    (ColumnKind.uuid, "old uuid", None), (ColumnKind.uuid, "short uuid", None), (ColumnKind.uuid, "uuid text", None),
    (ColumnKind.bytes, "user binary", "\\x78797a"), (ColumnKind.bytes, "string", None),
    (ColumnKind.json, "nul inside", '{"a": ["x␀y"]}'),
    (ColumnKind.json, "user $date", '{"$date": "2020-01-01T00:00:00Z"}'),
]  # fmt: skip


def test_what_the_columns_show(postgres: str) -> None:
    """A value in its own column shows as PostgreSQL writes it, and leaves nothing in `_warp_extra`; a value
    of another type is converted when that is exact, else NULL, and its original is kept."""
    names = list(VALUES)
    with psycopg.connect(postgres) as connection:
        rows = encode_rows(EVERY, _documents(), range(len(VALUES)))
        write(connection, EVERY, rows)
        connection.execute("SET timezone = 'UTC'")
        for kinds, kept in ((OWN_COLUMN, False), (CONVERTED, True)):
            for kind, name, text in kinds:
                found = connection.execute(
                    f'SELECT "{kind}"::text, _warp_extra ? %s FROM t WHERE _warp_version = %s',
                    (kind.value, names.index(name)),
                ).fetchone()
                assert found == (text, kept), (kind, name)


def test_misfits_are_counted_with_the_first_key() -> None:
    """Each value that its column cannot hold alone counts, and the first document is named."""
    plan = plan_of({"_id": ColumnKind.bigint, "n": ColumnKind.bigint})
    documents = [bson.encode({"_id": i, "n": n}) for i, n in enumerate([1, "x", None, "7", 2])]
    rows = encode_rows(plan, documents, range(5))
    assert rows.observed.misfits == {"n": 2}
    assert rows.misfit_first == {"n": '{"$numberInt": "1"}'}


@pytest.mark.parametrize("name", VALUES)
def test_canonical_reads_back(name: str, postgres_server: Any) -> None:
    """Canonical Extended JSON, or its base64 form, reads back as the same value."""
    value = decode(bson.encode({"v": VALUES[name]}))["v"]
    assert equal(parse_canonical(canonical(value)), value)


def test_canonical_survives_jsonb(postgres: str) -> None:
    """What `canonical` writes is the same value after a stay in a jsonb column."""
    with psycopg.connect(postgres) as connection:
        for name, given in VALUES.items():
            value = decode(bson.encode({"v": given}))["v"]
            text = connection.execute("SELECT %s::jsonb::text", (canonical(value),)).fetchone()
            assert text is not None
            assert equal(parse_canonical(text[0]), value), name


# -- what PyMongo itself cannot write ------------------------------------------------------------------------


def element(kind: int, name: bytes, payload: bytes) -> bytes:
    return bytes([kind]) + name + b"\0" + payload


def text(name: bytes, value: bytes, kind: int = 2) -> bytes:
    return element(kind, name, struct.pack("<i", len(value) + 1) + value + b"\0")


def int32(name: bytes, value: int) -> bytes:
    return element(16, name, struct.pack("<i", value))


def raw(*elements: bytes) -> bytes:
    body = b"".join(elements)
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def sub(name: bytes, *elements: bytes, kind: int = 3) -> bytes:
    return element(kind, name, raw(*elements))


def scoped(name: bytes, code: bytes, *elements: bytes) -> bytes:
    body = struct.pack("<i", len(code) + 1) + code + b"\0" + raw(*elements)
    return element(15, name, struct.pack("<i", len(body) + 4) + body)


ODD = {
    "invalid text": raw(int32(b"_id", 1), text(b"string", b"a\xffb\xc3")),
    "surrogate in text": raw(int32(b"_id", 1), text(b"string", b"\xed\xa0\x80")),
    "invalid and nul": raw(int32(b"_id", 1), text(b"string", b"\0\xff")),
    "invalid text in jsonb": raw(int32(b"_id", 1), sub(b"json", text(b"x", b"\xff"), int32(b"y", 2))),
    "invalid name in jsonb": raw(int32(b"_id", 1), sub(b"json", int32(b"\xff", 1), int32(b"\xfe", 2))),
    "invalid name": raw(int32(b"_id", 1), int32(b"\xff", 1), text(b"\xfe\xff", b"\xff")),
    "name twice": raw(int32(b"_id", 1), text(b"string", b"one"), text(b"string", b"two")),
    "name twice, unplanned": raw(int32(b"_id", 1), int32(b"x", 1), element(10, b"x", b""), int32(b"x", 3)),
    "name twice inside": raw(int32(b"_id", 1), sub(b"json", int32(b"a", 1), int32(b"b", 2), int32(b"a", 3))),
    "name twice in an array": raw(int32(b"_id", 1), sub(b"json", sub(b"0", int32(b"a", 1), int32(b"a", 1)), kind=4)),
    "name twice, unplanned, inside": raw(int32(b"_id", 1), sub(b"x", int32(b"a", 1), text(b"a", b"\xff"))),
    "reference twice": raw(int32(b"_id", 1), sub(b"json", text(b"$ref", b"c"), int32(b"$id", 1), int32(b"$id", 2))),
    "reserved name": raw(int32(b"_id", 1), int32(b"$warpBson", 1), int32(b"bigint", 4)),
    "reserved name twice": raw(int32(b"_id", 1), int32(b"$warpBson", 1), int32(b"$warpBson", 2)),
    "undefined": raw(int32(b"_id", 1), element(6, b"string", b""), element(6, b"x", b"")),
    "symbol": raw(int32(b"_id", 1), text(b"string", b"sym", kind=14)),
    "pointer": raw(int32(b"_id", 1), element(12, b"json", struct.pack("<i", 2) + b"c\0" + b"1" * 12)),
    "invalid code": raw(int32(b"_id", 1), text(b"json", b"\xff", kind=13)),
    "invalid regex": raw(int32(b"_id", 1), element(11, b"json", b"\xff\0im\0")),
    "invalid code beside scope": raw(int32(b"_id", 1), scoped(b"json", b"f\xff", int32(b"a", 1))),
    "name twice in scope": raw(int32(b"_id", 1), scoped(b"json", b"f", int32(b"a", 1), int32(b"a", 2))),
    "scope beside a name twice": raw(int32(b"_id", 1), scoped(b"json", b"f", int32(b"a", 1)), int32(b"_id", 1)),
    "key not first": raw(int32(b"bigint", 1), int32(b"_id", 1)),
    "top-level $ref": raw(int32(b"_id", 1), text(b"$ref", b"c"), int32(b"$id", 2)),
}


@pytest.mark.parametrize("how", [COPY, UNNEST])
def test_odd_bson_is_rebuilt(postgres: str, how: str) -> None:
    """Invalid UTF-8, repeated names and reserved names, at the top and inside, come back exactly."""
    with psycopg.connect(postgres) as connection:
        rebuilt = through(connection, EVERY, list(ODD.values()), how)
    for (name, document), found in zip(ODD.items(), rebuilt, strict=True):
        assert equal(decode(document), found), (name, found)


def test_odd_bson_is_decoded_exactly() -> None:
    """A document with repeated names or invalid UTF-8 is not equal to what PyMongo would make of it."""
    assert equal(decode(ODD["symbol"]), {"_id": 1, "string": "sym"})
    assert equal(decode(ODD["undefined"]), {"_id": 1})
    for name in ("name twice", "name twice inside", "name twice in an array", "reference twice"):
        assert not equal(decode(ODD[name]), bson.decode(ODD[name])), name
    assert decode(ODD["name twice"])["string"] == "two"


def test_columns_show_odd_text(postgres: str) -> None:
    """Invalid UTF-8 shows as U+FFFD, and the last of repeated values is shown."""
    with psycopg.connect(postgres) as connection:
        names = list(ODD)
        write(connection, EVERY, encode_rows(EVERY, list(ODD.values()), range(len(ODD))))
        rows = dict(zip(names, read(connection, EVERY), strict=True))
    assert rows["invalid text"]["string"] == "a\ufffdb\ufffd"
    assert rows["name twice"]["string"] == "two"
    assert rows["name twice inside"]["json"] == {"a": 3, "b": 2}
    assert rows["invalid text in jsonb"]["json"] == {"x": "\ufffd", "y": 2}
    assert list(rows["name twice"]["_warp_extra"]) == ["$warpBson"]


def test_a_value_too_large_for_jsonb_is_kept(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the size limit the jsonb column is NULL and the original is kept in its compact form."""
    monkeypatch.setattr("cartridge_warp.kernel.ejson._MAX_JSON", 1000)
    big = {"_id": 1, "json": ["x" * 100] * 20}
    assert relaxed_json(big["json"]) == (None, True)
    with psycopg.connect(postgres) as connection:
        (found,) = through(connection, EVERY, [bson.encode(big)])
        assert connection.execute("SELECT json FROM t").fetchone() == (None,)
    assert equal(big, found)


def test_python_values_of_other_connectors(postgres: str) -> None:
    """Python's own types have columns too; times keep their microseconds."""
    micros = datetime.datetime(2020, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
    document = {
        "_id": 1, "timestamp": micros, "numeric": Decimal("1" * 50 + ".5"), "uuid": UUID(int=5),
        "bytes": bytearray(b"x"), "json": ({"when": datetime.date(2020, 1, 1)}, {1, }), "bigint": 5,
    }  # fmt: skip
    with psycopg.connect(postgres) as connection:
        (found,) = through(connection, EVERY, [document], times="text")
        row = read(connection, EVERY)[0]
    assert equal(document, found)
    assert row["_warp_extra"] is None
    assert row["uuid"] == UUID(int=5)
    kinds = [value_kind(v) for v in (micros, Decimal(1), UUID(int=1), bytearray(), datetime.date(2020, 1, 1), ())]
    assert kinds == ["date", "decimal", "uuid", "binary", "date", "array"]


def test_naive_datetimes_are_utc() -> None:
    """A datetime without a zone means UTC."""
    naive = datetime.datetime(2020, 1, 1, 12)
    assert equal(naive, naive.replace(tzinfo=datetime.UTC))
    assert equal({"a": naive}, decode({"a": naive}))


def test_rebuild_takes_datetimes_and_json_text() -> None:
    """A row may come with datetimes and with jsonb as text."""
    row: dict[str, Any] = dict.fromkeys([column.column for column in EVERY.columns])
    row |= {"timestamp": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), "json": '"5"', "_warp_extra": '{"x": 5}'}
    assert equal(rebuild(EVERY, row, json_text=True), {"timestamp": row["timestamp"], "json": "5", "x": 5})
    row["timestamp"] = "yesterday"
    with pytest.raises(ValueError, match="yesterday"):
        rebuild(EVERY, row, json_text=True)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (5, 5.0), (True, 1), (0.0, -0.0), ("5", 5), (5, Decimal128("5")), (5.0, Decimal128("5")), (b"x", "x"),
        (b"x", Binary(b"x", 128)), (OID, str(OID)), (Code("x"), "x"), (Code("x"), Code("x", {})), ([1, 2], [2, 1]),
        ({"a": {"b": None}}, {"a": {}}), ({"a": 1}, {"a": 1, "b": 0}), (Decimal128("NaN"), Decimal128("sNaN")),
        (Decimal("0"), -0.0), (Decimal("1"), True), (Decimal("NaN"), 1), (Decimal("NaN"), Decimal128("sNaN")),
        (Regex("a"), Regex("a", "i")), (DatetimeMS(1), 1), (MinKey(), MaxKey()), (Timestamp(1, 2), Timestamp(2, 1)),
        (Decimal("1.5"), 1.25), (Decimal("0.1"), "0.1"), ([None], []), (1, float("nan")),
    ],
)  # fmt: skip
def test_not_equal(a: Any, b: Any) -> None:
    """What a row can tell apart is not equal, in both directions and inside a document."""
    for left, right in ((a, b), (b, a), ({"x": [a]}, {"x": [b]})):
        assert not equal(left, right)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (5, Int64(5)), ({"a": 1, "b": {"x": 1, "y": 2}}, {"b": {"y": 2, "x": 1}, "a": 1}), ({"a": None}, {}),
        (Decimal128("5.00"), Decimal128("5")), (Decimal128("-0"), Decimal128("0")), (float("nan"), float("nan")),
        (Decimal("5"), 5.0), (Decimal("5"), 5), (Decimal("5.0"), Decimal128("5")), (Decimal("0.1"), 0.1),
        (Decimal("NaN"), float("nan")), (Decimal("Infinity"), float("inf")), (Binary(b"x", 0), b"x"),
        (DBRef("c", 1), {"$ref": "c", "$id": 1}), (UUID(int=3), Binary(UUID(int=3).bytes, 4)),
        (Decimal("NaN"), Decimal128("NaN")), (Code("x", {"a": 1}), Code("x", {"a": 1})),
    ],
)  # fmt: skip
def test_equal(a: Any, b: Any) -> None:
    """What the table of allowed differences names is equal, in both directions."""
    assert equal(a, b)
    assert equal(b, a)


def test_code_inside_a_reference_is_rebuilt(postgres: str) -> None:
    """PyMongo takes a document with `$ref` for a DBRef whatever it holds; its parts are kept as they are."""
    values = [{"$ref": Code("f"), "$id": None}, {"$ref": "c", "$id": Code("f")}, DBRef("c", Code("f"), x=Code("g"))]
    raws = [bson.encode({"_id": i, "json": value, "x": [value]}) for i, value in enumerate(values)]
    with psycopg.connect(postgres) as connection:
        rebuilt = through(connection, EVERY, raws)
    assert all(equal(bson.decode(raw), found) for raw, found in zip(raws, rebuilt, strict=True))
    assert all(equal(parse_canonical(canonical(value)), value) for value in values)
