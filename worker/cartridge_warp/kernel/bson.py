"""Documents to values: decoding, kinds of values, keys and their hashes, Extended JSON that loses nothing.

Values are what PyMongo's C decoder gives, except that dates are `DatetimeMS` (Python ends with the year
9999), UUIDs `Binary` and code `Script`. Functions look at the exact `type(v)`: True is an int to isinstance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from types import NoneType
from typing import Any, Final
from uuid import UUID

import bson
from bson import Decimal128, Int64, ObjectId
from bson.binary import OLD_UUID_SUBTYPE, UUID_SUBTYPE, Binary
from bson.datetime_ms import DatetimeMS

from cartridge_warp.kernel.ejson import canonical, from_ejson, key_text, parse_canonical, relaxed_json
from cartridge_warp.kernel.keys import identity, key_hash, native_key_kind
from cartridge_warp.kernel.odd import (
    EPOCH,
    MALFORMED,
    OPTIONS,
    OddDocument,
    PoisonDocument,
    Twice,
    decode_odd,
    normalise,
)
from cartridge_warp.records import Document, OperationType, Record

__all__ = [
    "PoisonDocument", "canonical", "decode", "from_ejson", "identity", "key_hash", "key_text",
    "native_key_kind", "parse_canonical", "relaxed_json", "to_record", "value_kind",
]  # fmt: skip


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


_BINARY_KINDS: Final = {UUID_SUBTYPE: "uuid", OLD_UUID_SUBTYPE: "old_uuid"}


def value_kind(value: Any) -> str:
    """What a value is, in the words that `plan.decide_kind` counts."""
    if type(value) is Binary:
        return _BINARY_KINDS.get(value.subtype, "binary") if len(value) == 16 else "binary"
    return _KINDS.get(type(value), "special")


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
