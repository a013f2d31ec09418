"""What `library.curiosities` holds: every BSON type, keys that look alike, names that are hard to quote."""

from __future__ import annotations

from typing import Any

from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS


def date(seconds: float) -> DatetimeMS:
    """A BSON date of a moment in seconds since 1970."""
    return DatetimeMS(round(seconds * 1000))


OID = ObjectId("5eedda7a5eedda7a5eedda7a")
SYMBOL = {"$symbol": "old string"}  # types that the driver no longer has are written as they stand
UNDEFINED = {"$undefined": True}
POINTER = {"$dbPointer": {"$ref": "books", "$id": {"$oid": str(OID)}}}

ODD_VALUES: list[tuple[str, Any]] = [
    ("double", 0.1),
    ("whole double", 5.0),
    ("NaN", float("nan")),
    ("infinity", float("inf")),
    ("minus infinity", float("-inf")),
    ("minus zero", -0.0),
    ("smallest double", 5e-324),
    ("largest double", 1.7976931348623157e308),
    ("string", "plain"),
    ("empty string", ""),
    ("emoji", "shelf 🗄️ naïve 漢字"),
    ("string with NUL", "before\x00after"),
    ("long string", "0123456789" * 60),
    ("document", {"b": 1, "a": {"deep": [1, "two", 3.5]}}),
    ("empty document", {}),
    ("document with dotted and dollar names", {"a.b": 1, "$price": 2, "": 3}),
    ("NUL inside a document", {"text": "x\x00y"}),
    ("NaN inside a document", {"n": float("nan"), "z": -0.0}),
    (
        "array of many types",
        [1, "1", 1.0, None, True, {"n": 1}, [1], Int64(1), OID, date(0), Decimal128("1")],
    ),
    ("empty array", []),
    ("binary 0", b"\x00\x01\xff"),
    ("binary 2", Binary(b"old", 2)),
    ("binary 3", Binary(bytes(range(16)), 3)),
    ("binary 4", Binary(bytes(range(16)), 4)),
    ("binary 5", Binary(bytes(range(16)), 5)),
    ("binary 128", Binary(b"own", 128)),
    ("empty binary", b""),
    ("ObjectId", OID),
    ("true", True),
    ("false", False),
    ("date", date(1736121600)),
    ("date before 1970", date(-1.5)),
    ("date in the year 1", date(-62135596800)),
    ("date before PostgreSQL's first", DatetimeMS(-(2**63) + 1)),
    ("date beyond the year 9999", date(400000000000)),
    ("date beyond PostgreSQL's last", DatetimeMS(2**63 - 1)),
    ("null", None),
    ("undefined", UNDEFINED),
    ("regular expression", Regex("^a.*z$", "im")),
    ("DBRef", DBRef("books", "shelf/0/0001")),
    ("DBRef with a database", DBRef("books", OID, "library")),
    ("DBPointer", POINTER),
    ("code", Code("return 1;")),
    ("code with scope", Code("return n;", {"n": 1})),
    ("symbol", SYMBOL),
    ("int32", -(2**31)),
    ("timestamp", Timestamp(1736121600, 7)),
    ("int64", Int64(2**63 - 1)),
    ("int64 beyond a double", Int64(2**53 + 1)),
    ("decimal", Decimal128("19.90")),
    ("big decimal", Decimal128("9.999999999999999999999999999999999E+6144")),
    ("small decimal", Decimal128("1E-6176")),
    ("decimal NaN", Decimal128("NaN")),
    ("decimal infinity", Decimal128("-Infinity")),
    ("decimal minus zero", Decimal128("-0")),
    ("smallest key", MinKey()),
    ("largest key", MaxKey()),
]

ODD_KEYS: list[tuple[str, Any]] = [
    ("an ObjectId", OID),
    ("the same as a string", str(OID)),
    ("a number", 1),
    ("the same as a string", "1"),
    ("true", True),
    ("a double", 1.5),
    ("a decimal", Decimal128("2.50")),
    ("an int64 beyond a double", Int64(2**53 + 1)),
    ("its neighbour as a double", float(2**53)),
    ("null", None),
    ("an empty string", ""),
    ("a string with NUL", "k\x00y"),
    ("a string of 3,000 bytes", "long" * 750),
    ("a document", {"a": 1, "b": 2}),
    ("the same in another order", {"b": 2, "a": 1}),
    ("a UUID", Binary(bytes(16), 4)),
    ("an old UUID", Binary(bytes(range(16)), 3)),
    ("plain bytes", bytes(range(1, 17))),
    ("a date", date(1736121600)),
    ("a timestamp", Timestamp(1736121600, 1)),
    ("the smallest key", MinKey()),
    ("the largest key", MaxKey()),
]

ODD_NAMES = [
    "with.dot",
    "$dollar",
    'with "quotes"',
    "it's",
    "emoji 🧭",
    "two words",
    "semi;colon--",
    "select",
    "xmin",
    "is_deleted",
    "_warp_version",
    "Ünïcödé",
    "n" * 80,
    "n" * 79 + "m",
    "ü" * 40,
    "%s",
    "back\\slash",
]
