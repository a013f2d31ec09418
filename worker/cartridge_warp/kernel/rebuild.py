"""The inverse of the encoder: a row back to its document, and when two documents count as equal."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from bson import Decimal128, Int64, ObjectId
from bson.binary import Binary, UuidRepresentation
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef

from cartridge_warp.kernel.ejson import from_ejson
from cartridge_warp.kernel.odd import (
    EPOCH,
    MICROSECOND,
    WARP_BSON,
    OddDocument,
    Script,
    Twice,
    decode_odd,
    normalise,
    pairs_of,
)
from cartridge_warp.kernel.plan import EXTRA_COLUMN, ColumnKind, KeyKind, TablePlan

__all__ = ["equal", "rebuild"]


# -- rows --------------------------------------------------------------------------------------------------


def rebuild(plan: TablePlan, row: Mapping[str, Any], *, json_text: bool = False) -> dict[str, Any]:
    """The document of a row, given by column names as psycopg returns it.

    A timestamptz may be a datetime, PostgreSQL's ISO text of any year, or milliseconds since 1970 as int;
    a uuid a UUID or text. jsonb columns are parsed JSON, or JSON text when `json_text`. Numbers of a numeric
    column come as Decimal, which `equal` holds equal to every type of the same value.
    """
    extra = row[EXTRA_COLUMN]
    originals: dict[str, Any] = json.loads(extra) if isinstance(extra, str | bytes) else extra or {}
    reserved = originals.get(WARP_BSON)
    pairs = [] if reserved is None else list(pairs_of(decode_odd(base64.b64decode(reserved))))
    # What is kept aside is complete; its column shows only a part, perhaps one that cannot be read back.
    aside = originals.keys() | {name for name, _ in pairs}
    document: dict[str, Any] = {}
    if plan.native and plan.key_field is not None:
        document[plan.key_field] = _VALUES[plan.key_kind.value](row[plan.key_column])
    for column in plan.columns:
        value = row[column.column]
        if value is not None and column.field not in aside:
            if json_text and column.kind is ColumnKind.json:
                value = json.loads(value)
            document[column.field] = _VALUES[column.kind.value](value)
    document |= {name: from_ejson(item) for name, item in originals.items() if name != WARP_BSON}
    names = {name for name, _ in pairs}
    pairs = [*((name, value) for name, value in document.items() if name not in names), *pairs]
    whole = dict(pairs)
    return whole if len(whole) == len(pairs) else OddDocument(pairs)


_STAMP: Final = re.compile(
    r"(?P<year>\d{4,})-(?P<rest>\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?[+-]\d\d(?::\d\d){0,2})(?P<bc> BC)?"
)
_DAYS_400: Final = 146_097  # days in 400 years: the calendar repeats


def _timestamp(value: Any) -> Any:
    if isinstance(value, int):
        return DatetimeMS(value)
    if isinstance(value, datetime):
        return normalise(value)
    found = _STAMP.fullmatch(value)
    if found is None:
        raise ValueError(f"{value!r} is not a timestamptz in ISO style")
    year = 1 - int(found["year"]) if found["bc"] else int(found["year"])
    cycles = (year - 2000) // 400
    near = datetime.fromisoformat(f"{year - 400 * cycles:04}-{found['rest']}").astimezone(UTC)
    milliseconds, rest = divmod((near - EPOCH) // MICROSECOND, 1000)
    if rest and cycles == 0:
        return near
    return DatetimeMS(milliseconds + cycles * _DAYS_400 * 86_400_000)


def _uuid(value: Any) -> Binary:
    return Binary.from_uuid(value if isinstance(value, UUID) else UUID(value), UuidRepresentation.STANDARD)


def _same_value(value: Any) -> Any:
    return value


_VALUES: Final[Mapping[str, Callable[[Any], Any]]] = {
    ColumnKind.bigint.value: _same_value,
    ColumnKind.double.value: _same_value,
    ColumnKind.numeric.value: _same_value,
    ColumnKind.string.value: _same_value,
    ColumnKind.boolean.value: _same_value,
    ColumnKind.objectid.value: ObjectId,
    ColumnKind.timestamp.value: _timestamp,
    ColumnKind.uuid.value: _uuid,
    ColumnKind.any_uuid.value: _uuid,
    ColumnKind.bytes.value: bytes,
    ColumnKind.json.value: from_ejson,
    KeyKind.int.value: _same_value,
    KeyKind.date.value: _timestamp,
}


# -- equality ----------------------------------------------------------------------------------------------


def equal(a: Any, b: Any) -> bool:
    """True when two documents (or values) are the same but for what a row cannot tell apart.

    That is: int32 and int64; the order of names in a document; at the top level null, undefined and absent;
    Decimal128's exponent and the sign of its zero; and, for a Decimal as a numeric column gives it, the type
    of the number.
    """
    return _same(_without_nulls(normalise(a)), _without_nulls(normalise(b)))


def _without_nulls(value: Any) -> Any:
    if type(value) is not dict:
        return value
    return {name: inner for name, inner in value.items() if inner is not None}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Twice | OddDocument) or isinstance(b, Twice | OddDocument):
        return isinstance(a, Mapping) and isinstance(b, Mapping) and _same_pairs(a, b)
    if isinstance(a, dict | DBRef) and isinstance(b, dict | DBRef):
        left, right = dict(pairs_of(a)), dict(pairs_of(b))
        return left.keys() == right.keys() and all(_same(value, right[name]) for name, value in left.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Decimal) or isinstance(b, Decimal):
        return _same_number(a, b) if isinstance(a, Decimal) else _same_number(b, a)
    if type(a) in (int, Int64) and type(b) in (int, Int64):
        return bool(a == b)
    return type(a) is type(b) and _same_scalar(a, b)


def _same_pairs(a: Any, b: Any) -> bool:
    left, right = list(pairs_of(a)), list(pairs_of(b))
    left.sort(key=lambda pair: pair[0])  # stable: the order of those with one name remains
    right.sort(key=lambda pair: pair[0])
    return len(left) == len(right) and all(
        one[0] == two[0] and _same(one[1], two[1]) for one, two in zip(left, right, strict=True)
    )


def _same_number(number: Decimal, other: Any) -> bool:
    if isinstance(other, Decimal128):
        other = other.to_decimal()
    if type(other) is float:
        if math.isnan(other) or number.is_nan():
            return math.isnan(other) and number.is_nan()
        return float(number) == other and repr(other) != "-0.0"
    if type(other) not in (int, Int64, Decimal):
        return False
    if number.is_nan() or (isinstance(other, Decimal) and other.is_nan()):
        return isinstance(other, Decimal) and str(number) == str(other)
    return bool(number == other)


def _same_scalar(a: Any, b: Any) -> bool:
    if isinstance(a, float):
        return repr(a) == repr(b)
    if isinstance(a, Decimal128):
        return bool(a.bid == b.bid or (a.to_decimal().is_nan() is False and a.to_decimal() == b.to_decimal()))
    if isinstance(a, Script):
        return str(a.code) == str(b.code) and _same(a.code.scope, b.code.scope)
    return bool(a == b)
