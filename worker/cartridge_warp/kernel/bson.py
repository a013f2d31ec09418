"""Documents to values: decoding, kinds of values, keys and their hashes, Extended JSON that loses nothing.

Values are what PyMongo's C decoder gives, except that dates are `DatetimeMS` (Python ends with the year
9999), UUIDs `Binary` and code `Script`. Functions look at the exact `type(v)`: True is an int to isinstance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from types import NoneType
from typing import Any, Final
from uuid import UUID

import bson
from bson import Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.binary import UUID_SUBTYPE, Binary
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef

from cartridge_warp.kernel.ejson import canonical, from_ejson, key_text, parse_canonical, relaxed_json
from cartridge_warp.kernel.odd import (
    EPOCH,
    MALFORMED,
    MICROSECOND,
    OPTIONS,
    OddDocument,
    PoisonDocument,
    Script,
    Twice,
    decode_odd,
    normalise,
    pairs_of,
    regex_flags,
    shown_text,
    text_bytes,
)  # fmt: skip
from cartridge_warp.kernel.plan import KeyKind
from cartridge_warp.records import Document, OperationType, Record

__all__ = [
    "PoisonDocument", "canonical", "decode", "from_ejson", "identity", "key_hash", "key_text", "micros",
    "native_key_kind", "parse_canonical", "relaxed_json", "to_record", "value_kind",
]  # fmt: skip

# timestamptz reaches from 4713 BC to the year 294276 (PostgreSQL: src/include/datatype/timestamp.h).
FIRST_MS: Final = -210_866_803_200_000
END_MS: Final = 9_224_318_016_000_000
_MAX_KEY_BYTES: Final = 2000  # a B-tree entry must fit a third of a page


def decode(document: Document) -> dict[str, Any]:
    """A document's fields. Raises `PoisonDocument` when it cannot be decoded.

    PyMongo silently keeps the last of repeated names, so only what encodes to the same bytes is trusted.
    """
    if not isinstance(document, bytes):
        found = normalise(document)
        return OddDocument(found.pairs) if isinstance(found, Twice) else found
    try:
        value = bson.decode(document, OPTIONS)
        faithful = bson.encode(value, False, OPTIONS) == document
    except MALFORMED:
        faithful = False
    return value if faithful else decode_odd(document)


_KINDS: Final[Mapping[type, str]] = {
    NoneType: "null", bool: "boolean", int: "int", Int64: "int", float: "double", Decimal128: "decimal",
    Decimal: "decimal", str: "string", ObjectId: "objectid", DatetimeMS: "date", datetime: "date",
    date: "date", bytes: "binary", bytearray: "binary", UUID: "uuid", dict: "document",
    OddDocument: "document", Twice: "document", list: "array", tuple: "array",
}  # fmt: skip


def value_kind(value: Any) -> str:
    """What a value is, in the words that `plan.decide_kind` counts."""
    if type(value) is Binary:
        return "uuid" if value.subtype == UUID_SUBTYPE and len(value) == 16 else "binary"
    return _KINDS.get(type(value), "special")


def micros(value: Any) -> int:
    """Microseconds since 1970 of a date."""
    return int(value) * 1000 if type(value) is DatetimeMS else (value - EPOCH) // MICROSECOND


# -- keys --------------------------------------------------------------------------------------------------


def native_key_kind(key: Any) -> KeyKind:
    """The key column that holds this key exactly, else `hash`. A double is never an integer key."""
    kind = type(key)
    if kind is ObjectId:
        return KeyKind.objectid
    if kind is int or kind is Int64:
        return KeyKind.int if -(2**63) <= key < 2**63 else KeyKind.hash
    if kind is str:
        fits = "\0" not in key and len(text_bytes(key)) <= _MAX_KEY_BYTES and shown_text(key) == key
        return KeyKind.string if fits else KeyKind.hash
    if kind is DatetimeMS:
        return KeyKind.date if FIRST_MS <= int(key) < END_MS else KeyKind.hash
    if kind is Binary:
        return KeyKind.uuid if value_kind(key) == "uuid" else KeyKind.hash
    plain = normalise(key)
    return KeyKind.hash if type(plain) is kind else native_key_kind(plain)


def identity(key: Any) -> Hashable:
    """Equal for those keys alone that MongoDB's unique index holds equal: 5, 5.0, Decimal128("5")."""
    kind = type(key)
    if kind is ObjectId or kind is str:
        return key  # type: ignore[no-any-return]
    tagged = _tagged(key)
    return int(tagged[1:]) if tagged.startswith(b"n") else tagged


def key_hash(key: Any) -> bytes:
    """The 32 bytes of `_warp_key`: sha256 of a tagged text in which equal keys are equal (see `identity`).

    PostgreSQL computes the same from a native column `c`, as sha256(convert_to(..., 'UTF8')) of
    'o' || c (ObjectId), 'n' || c (integer), 's' || c (string), 'b04' || replace(c::text, '-', '') (uuid),
    'd' || (extract(epoch FROM c) * 1000)::bigint (date).
    """
    return hashlib.sha256(_tagged(key)).digest()


def _tagged(key: Any) -> bytes:
    tag = _TAGGED.get(type(key))
    if tag is None:
        key = normalise(key)
        tag = _TAGGED[type(key)]
    return tag(key)


def _tag_number(number: Decimal) -> bytes:
    sign, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int):
        return b"mNaN" if number.is_nan() else f"m{number}".encode()
    text = "".join(map(str, digits)).lstrip("0")
    if not text:
        return b"n0"
    short = text.rstrip("0")
    exponent += len(text) - len(short)
    if exponent >= 0 and len(short) + exponent <= 19:
        integer = (-1 if sign else 1) * int(short) * 10**exponent
        if -(2**63) <= integer < 2**63:
            return b"n%d" % integer
    return f"m{'-' if sign else ''}{short}E{exponent}".encode()


def _tag_items(tag: bytes, items: list[bytes]) -> bytes:
    return tag + b"".join([b"%d:%b" % (len(item), item) for item in items])


def _tag_document(document: Any) -> bytes:
    pairs = [(text_bytes(name), _tagged(value)) for name, value in pairs_of(document)]
    return _tag_items(b"{", [item for pair in pairs for item in pair])


def _tag_datetime(moment: Any) -> bytes:
    return b"d%d" % int(moment) if type(moment) is DatetimeMS else b"u%d" % micros(moment)


def _tag_script(script: Script) -> bytes:
    scope = script.code.scope
    parts = [text_bytes(script.code), *([] if scope is None else [_tagged(scope)])]
    return _tag_items(b"c", parts)


_TAGGED: Final[dict[type, Callable[[Any], bytes]]] = {
    ObjectId: lambda key: b"o" + key.binary.hex().encode(),
    int: lambda key: b"n%d" % key if -(2**63) <= key < 2**63 else _tag_number(Decimal(key)),
    Int64: lambda key: b"n%d" % key,
    float: lambda key: _tag_number(Decimal(key)),
    Decimal128: lambda key: _tag_number(key.to_decimal()),
    Decimal: _tag_number,
    str: lambda key: b"s" + text_bytes(key),
    bytes: lambda key: b"b00" + key.hex().encode(),
    Binary: lambda key: b"b%02x" % key.subtype + key.hex().encode(),
    DatetimeMS: lambda key: b"d%d" % int(key),
    datetime: lambda key: _tag_datetime(normalise(key)),
    NoneType: lambda _: b"z",
    bool: lambda key: b"t" if key else b"f",
    dict: _tag_document,
    OddDocument: _tag_document,
    Twice: _tag_document,
    DBRef: _tag_document,
    list: lambda key: _tag_items(b"[", [_tagged(item) for item in key]),
    Timestamp: lambda key: b"T%d,%d" % (key.time, key.inc),
    Regex: lambda key: _tag_items(b"r", [text_bytes(key.pattern), regex_flags(key).encode()]),
    Script: _tag_script,
    MinKey: lambda _: b"<",
    MaxKey: lambda _: b">",
}


# -- the edge ----------------------------------------------------------------------------------------------


def to_record(
    table: str,
    document: Document | None,
    operation: OperationType,
    key: Any,
    key_field: str | None = "_id",
    at_ms: int | None = None,
) -> Record:
    """A change as a simple connector sees it, in Python's own types. `document` None: a delete.

    What Python has no type for becomes an Extended JSON object, an ObjectId its 24 digits.
    """
    data = {} if document is None else {name: _python(value) for name, value in decode(document).items()}
    plain = _python(key)
    keys = plain if key_field is None else {key_field: plain}
    at = None if at_ms is None else EPOCH + timedelta(milliseconds=at_ms)
    return Record(table, data, operation, at, keys)


def _python(value: Any) -> Any:
    kind = type(value)
    if kind in (NoneType, bool, int, float, str, bytes, Decimal):
        return value
    if isinstance(value, Mapping):
        return {name: _python(inner) for name, inner in value.items()}
    if kind is list:
        return [_python(item) for item in value]
    if kind is Int64:
        return int(value)
    if kind is ObjectId:
        return str(value)
    if kind is Decimal128:
        return value.to_decimal()
    if kind is Binary:
        return UUID(bytes=bytes(value)) if value_kind(value) == "uuid" else bytes(value)
    if kind is DatetimeMS and -62_135_596_800_000 <= int(value) < 253_402_300_800_000:  # years 1 to 9999
        return EPOCH + timedelta(milliseconds=int(value))
    return value if kind is datetime else json.loads(canonical(value))
