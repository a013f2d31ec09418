"""Keys: which column holds one, which keys are one and the same, and their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from datetime import datetime
from decimal import Decimal
from types import NoneType
from typing import Any, Final

from bson import Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.binary import UUID_SUBTYPE, Binary
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef

from cartridge_warp.kernel.odd import (
    END_MS,
    FIRST_MS,
    OddDocument,
    Script,
    Twice,
    micros,
    normalise,
    pairs_of,
    regex_flags,
    shown_text,
    text_bytes,
)
from cartridge_warp.kernel.plan import KeyKind

__all__ = ["identity", "key_hash", "native_key_kind"]

_MAX_KEY_BYTES: Final = 2000  # a B-tree entry must fit a third of a page


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
        return KeyKind.uuid if key.subtype == UUID_SUBTYPE and len(key) == 16 else KeyKind.hash
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
