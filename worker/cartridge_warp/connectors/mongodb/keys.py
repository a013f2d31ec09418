"""Keys of documents: taken out of raw BSON without decoding the rest, and put into queries byte by byte."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any, Final

import bson
from bson.raw_bson import RawBSONDocument

from cartridge_warp.kernel.bson import canonical, decode, parse_canonical
from cartridge_warp.kernel.odd import MALFORMED, OPTIONS, WARP_BSON, warp_bson

__all__ = ["dump_key", "key_of", "key_type", "load_key", "raw_query"]

_INT32: Final = struct.Struct("<i")
_FIRST_VALUE: Final = 9  # length, type byte, "_id", NUL
_FIXED: Final = {
    0x01: 8,
    0x07: 12,
    0x08: 1,
    0x09: 8,
    0x0A: 0,
    0x10: 4,
    0x11: 8,
    0x12: 8,
    0x13: 16,
    0x7F: 0,
    0xFF: 0,
}
_BESIDE_LENGTH: Final = {0x02: 4, 0x03: 0, 0x04: 0, 0x05: 5}  # string, document, array, binary


def key_of(raw: bytes) -> Any:
    """The `_id` of a raw document, decoded as everywhere. Servers store `_id` as the first field."""
    size = _value_size(raw) if raw[5:_FIRST_VALUE] == b"_id\0" else None
    if size is None:
        return decode(raw).get("_id")
    end = _FIRST_VALUE + size
    return decode(_INT32.pack(end + 1) + raw[4:end] + b"\0")["_id"]


def key_type(raw: bytes) -> int:
    """The BSON type of a raw document's first field."""
    return raw[4]


def dump_key(key: Any) -> str:
    """Canonical Extended JSON of a key."""
    return canonical(key)


def load_key(text: str) -> Any:
    """The key that `dump_key` wrote."""
    return parse_canonical(text)


def raw_query(name: str, value: Any) -> RawBSONDocument:
    """A document of one field for a query. The driver cannot encode invalid UTF-8, which keys may hold."""
    try:
        return RawBSONDocument(bson.encode({name: value}, False, OPTIONS))
    except MALFORMED:
        return RawBSONDocument(base64.b64decode(json.loads(warp_bson([(name, value)]))[WARP_BSON]))


def _value_size(raw: bytes) -> int | None:
    """Bytes of the first field's value; None for types that no `_id` has."""
    kind = raw[4]
    if kind in _FIXED:
        return _FIXED[kind]
    if kind in _BESIDE_LENGTH:
        return _BESIDE_LENGTH[kind] + int(_INT32.unpack_from(raw, _FIRST_VALUE)[0])
    return None
