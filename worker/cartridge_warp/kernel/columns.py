"""One column: values to the fields of COPY BINARY, a tight loop where all values have the column's own type.

A field is its length (4 bytes, big-endian, -1 for NULL) and the value's bytes; so is an element of a binary
array. Formats: the *_recv functions of PostgreSQL (src/backend/utils/adt).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from types import NoneType
from typing import Any, Final

from bson import Decimal128, Int64, ObjectId
from bson.binary import OLD_UUID_SUBTYPE, UUID_SUBTYPE, Binary
from bson.datetime_ms import DatetimeMS

from cartridge_warp.kernel.ejson import relaxed_json
from cartridge_warp.kernel.odd import END_MS, FIRST_MS, micros, shown_text
from cartridge_warp.kernel.plan import ColumnKind

__all__ = ["NULL", "bigints", "encode_column", "sized"]

NULL: Final = b"\xff\xff\xff\xff"
_TRUE: Final = b"\x00\x00\x00\x01\x01"
_FALSE: Final = b"\x00\x00\x00\x01\x00"
_EPOCH_MS: Final = 946_684_800_000  # PostgreSQL counts from 2000-01-01
_LENGTH: Final = struct.Struct(">i").pack
_BIGINT: Final = struct.Struct(">iq").pack
_DOUBLE: Final = struct.Struct(">id").pack
_INT64: Final = 2**63

Field = tuple[bytes, bool]
"""An encoded field, and whether the value can be rebuilt from it alone."""


def encode_column(kind: ColumnKind, values: Sequence[Any]) -> tuple[list[bytes], list[int]]:
    """The fields of a column, and the positions of the values that cannot be rebuilt from their field."""
    types = set(map(type, values))
    has_null = NoneType in types
    types.discard(NoneType)
    own_types, encode = _FAST.get(kind, _NO_FAST)
    if types <= own_types:
        present = [value for value in values if value is not None] if has_null else values
        fields = encode(present)
        if fields is not None:
            if has_null:
                rest = iter(fields)
                fields = [NULL if value is None else next(rest) for value in values]
            return fields, []
    return _one_by_one(_CONVERT[kind], values)


def _one_by_one(convert: Callable[[Any], Field], values: Sequence[Any]) -> tuple[list[bytes], list[int]]:
    fields, lossy = [], []
    for position, value in enumerate(values):
        if value is None:
            fields.append(NULL)
            continue
        field, exact = convert(value)
        fields.append(field)
        if not exact:
            lossy.append(position)
    return fields, lossy


# -- whole columns of the right type; None when a value needs a closer look ---------------------------------


def sized(values: Sequence[bytes]) -> list[bytes]:
    """Fields of bytes as they are."""
    return [_LENGTH(len(value)) + value for value in values]


def bigints(values: Sequence[int]) -> list[bytes]:
    """Fields of 64-bit integers."""
    return [_BIGINT(8, value) for value in values]


def _texts(values: Sequence[str]) -> list[bytes] | None:
    try:
        encoded = [value.encode() for value in values]
    except UnicodeEncodeError:
        return None
    return None if b"\0" in b"".join(encoded) else sized(encoded)


def _objectids(values: Sequence[ObjectId]) -> list[bytes]:
    digits = b"".join([value.binary for value in values]).hex().encode()
    return [b"\x00\x00\x00\x18" + digits[start : start + 24] for start in range(0, len(digits), 24)]


def _timestamps(values: Sequence[DatetimeMS]) -> list[bytes] | None:
    moments = [int(value) for value in values]
    if moments and not (min(moments) >= FIRST_MS and max(moments) < END_MS):
        return None
    return [_BIGINT(8, (moment - _EPOCH_MS) * 1000) for moment in moments]


def _uuids(values: Sequence[Binary]) -> list[bytes] | None:
    if any(value.subtype != UUID_SUBTYPE or len(value) != 16 for value in values):
        return None
    return sized(values)


_FAST: Final[dict[ColumnKind, tuple[set[type], Callable[[Sequence[Any]], list[bytes] | None]]]] = {
    ColumnKind.bigint: ({int, Int64}, bigints),
    ColumnKind.double: ({float}, lambda values: [_DOUBLE(8, value) for value in values]),
    ColumnKind.string: ({str}, _texts),
    ColumnKind.objectid: ({ObjectId}, _objectids),
    ColumnKind.boolean: ({bool}, lambda values: [_TRUE if value else _FALSE for value in values]),
    ColumnKind.timestamp: ({DatetimeMS}, _timestamps),
    ColumnKind.uuid: ({Binary}, _uuids),
    ColumnKind.any_uuid: ({Binary}, _uuids),
    ColumnKind.bytes: ({bytes}, sized),
}
_NO_FAST: Final[tuple[set[type], Callable[[Sequence[Any]], list[bytes] | None]]] = (set(), sized)


# -- single values: exact, converted (the original is kept elsewhere), or NULL ------------------------------

_MISFIT: Final[Field] = (NULL, False)
_NUMERAL: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?", re.ASCII)
_MAX_NUMERAL: Final = 1000
_NUMBERS: Final = {int, Int64, float, Decimal128, Decimal}


def _sized(value: bytes) -> bytes:
    return _LENGTH(len(value)) + value


def _number(value: Any) -> Decimal | None:
    """The finite number that a value is, or that a text writes plainly."""
    kind = type(value)
    if kind is int or kind is Int64 or kind is float:
        number = Decimal(value)
    elif kind is Decimal128:
        number = value.to_decimal()
    elif kind is Decimal:
        number = value
    elif kind is str and len(value) <= _MAX_NUMERAL and _NUMERAL.fullmatch(value):
        number = Decimal(value)
    else:
        return None
    return number if number.is_finite() else None


def _to_bigint(value: Any) -> Field:
    if type(value) is int or type(value) is Int64:
        return _BIGINT(8, value), True
    number = _number(value)
    if number is None or not -_INT64 <= number < _INT64 or number != int(number):
        return _MISFIT
    return _BIGINT(8, int(number)), False


def _to_double(value: Any) -> Field:
    if type(value) is float:
        return _DOUBLE(8, value), True
    number = _number(value)
    if number is None:
        return _MISFIT
    double = float(number)  # infinite when too large, which then differs
    exact = double == number or (type(value) is str and repr(double) == value)
    return (_DOUBLE(8, double), False) if exact else _MISFIT


def _to_numeric(value: Any) -> Field:
    kind = type(value)
    if kind is float and math.isfinite(value):
        # Whole doubles by their exact value; others by the shortest text that reads back as the same double.
        number = Decimal(value) if value.is_integer() else Decimal(repr(value))
        return numeric(number) or NULL, repr(value) != "-0.0"
    if kind is str:
        found = _number(value)
        return _MISFIT if found is None else (numeric(found) or NULL, False)
    if kind not in _NUMBERS:
        return _MISFIT
    number = value.to_decimal() if kind is Decimal128 else Decimal(value)
    field = numeric(number)
    strange = number.is_nan() and str(number) != "NaN"  # signalling, negative or with a payload
    return _MISFIT if field is None else (field, not strange)


def numeric(number: Decimal) -> bytes | None:
    """PostgreSQL's binary numeric, in groups of four digits; None beyond its limits."""
    if not number.is_finite():
        sign = 0xC000 if number.is_nan() else 0xF000 if number < 0 else 0xD000
        return struct.pack(">ihhHh", 8, 0, 0, sign, 0x20 if sign != 0xC000 else 0)
    exponent = number.as_tuple().exponent
    if number.adjusted() >= 131_072 or (isinstance(exponent, int) and exponent < -16_383):
        return None
    # copy_abs, because abs() rounds to the context's precision.
    whole, _, fraction = f"{number.copy_abs():f}".partition(".")
    scale = len(fraction)
    whole = whole.zfill(-(-len(whole) // 4) * 4)
    digits = whole + fraction + "0" * (-scale % 4)
    groups = [int(digits[start : start + 4]) for start in range(0, len(digits), 4)]
    weight = len(whole) // 4 - 1
    first = next((position for position, group in enumerate(groups) if group), len(groups))
    groups, weight = groups[first:], weight - first
    while groups and groups[-1] == 0:
        groups.pop()
    sign = 0x4000 if number < 0 else 0
    count = len(groups)
    return struct.pack(f">ihhHh{count}h", 8 + 2 * count, count, weight if count else 0, sign, scale, *groups)


def _to_string(value: Any) -> Field:
    if type(value) is str:
        shown = shown_text(value)
        return _sized(shown.encode()), shown == value
    return (_sized(str(value).encode()), False) if type(value) is ObjectId else _MISFIT


def _to_objectid(value: Any) -> Field:
    if type(value) is ObjectId:
        return _sized(str(value).encode()), True
    like = type(value) is str and ObjectId.is_valid(value) and value == value.lower()
    return (_sized(value.encode()), False) if like else _MISFIT


def _to_boolean(value: Any) -> Field:
    return (_TRUE if value else _FALSE, True) if type(value) is bool else _MISFIT


def _to_timestamp(value: Any) -> Field:
    if type(value) is DatetimeMS or type(value) is datetime:
        moment = micros(value)
        if FIRST_MS * 1000 <= moment < END_MS * 1000:
            return _BIGINT(8, moment - _EPOCH_MS * 1000), True
    return _MISFIT


def _to_uuid(value: Any) -> Field:
    exact = type(value) is Binary and value.subtype == UUID_SUBTYPE and len(value) == 16
    return (_sized(value), True) if exact else _MISFIT


def _to_any_uuid(value: Any) -> Field:
    """Legacy UUIDs show as UUIDs, and are kept as they were."""
    old = type(value) is Binary and value.subtype == OLD_UUID_SUBTYPE and len(value) == 16
    return (_sized(value), False) if old else _to_uuid(value)


def _to_bytes(value: Any) -> Field:
    return (_sized(value), type(value) is bytes) if isinstance(value, bytes) else _MISFIT


def _to_json(value: Any) -> Field:
    text, lossy = relaxed_json(value)
    return (NULL if text is None else _sized(b"\x01" + text.encode()), not lossy)


_CONVERT: Final[dict[ColumnKind, Callable[[Any], Field]]] = {
    ColumnKind.bigint: _to_bigint,
    ColumnKind.double: _to_double,
    ColumnKind.numeric: _to_numeric,
    ColumnKind.string: _to_string,
    ColumnKind.objectid: _to_objectid,
    ColumnKind.boolean: _to_boolean,
    ColumnKind.timestamp: _to_timestamp,
    ColumnKind.uuid: _to_uuid,
    ColumnKind.any_uuid: _to_any_uuid,
    ColumnKind.bytes: _to_bytes,
    ColumnKind.json: _to_json,
}
