"""Extended JSON that loses nothing (canonical), and the one that people read in jsonb columns (relaxed)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from types import NoneType
from typing import Any, Final

from bson import Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp, json_util
from bson.binary import Binary, UuidRepresentation
from bson.codec_options import DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef

from cartridge_warp.kernel.odd import (
    EPOCH,
    WARP_BSON,
    OddDocument,
    Script,
    Twice,
    decode_odd,
    normalise,
    pairs_of,
    regex_flags,
    shown_text,
    text_bytes,
    warp_bson,
)

__all__ = ["canonical", "from_ejson", "key_text", "parse_canonical", "quote", "relaxed_json"]

_MAX_JSON: Final = 64 << 20  # characters; jsonb itself ends at 255 MB in one container
_END_ISO: Final = 253_402_300_800_000  # relaxed Extended JSON writes years 1970 to 9999 as text
quote: Final = json.encoder.encode_basestring


class _UnfaithfulError(ValueError):
    """A value that canonical Extended JSON does not bring back out of jsonb."""


def canonical(value: Any) -> str:
    """Canonical Extended JSON v2 of a value, or `{"$warpBson": ...}` where that would not read back equal."""
    try:
        text = _ejson(value)
        text.encode()  # an invalid character cannot be in jsonb
        if len(text) <= _MAX_JSON:
            return text
    except (_UnfaithfulError, UnicodeEncodeError):
        value = normalise(value)
    return warp_bson([("v", value)])


def key_text(key: Any) -> str:
    """A key for people and metadata: canonical Extended JSON that keeps the order of names even in jsonb.

    In a key the order counts, but jsonb sorts names by length and bytes; other orders take the base64 form.
    """
    if isinstance(key, dict | list | DBRef) and not _in_jsonb_order(key):
        return warp_bson([("v", normalise(key))])
    return canonical(key)


def _in_jsonb_order(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_in_jsonb_order, value))
    if not isinstance(value, dict | DBRef):
        return True
    pairs = pairs_of(value)
    order = [(len(name), name) for name in (text_bytes(name) for name, _ in pairs)]
    return order == sorted(order) and all(_in_jsonb_order(inner) for _, inner in pairs)


def parse_canonical(text: str) -> Any:
    """The inverse of `canonical`. For JSON that is parsed already use `from_ejson`."""
    return from_ejson(json.loads(text))


def _ejson(value: Any) -> str:
    write = _EJSON.get(type(value))
    if write is None:
        value = normalise(value)
        write = _EJSON[type(value)]
    return write(value)


def _refuse(_: Any) -> str:
    raise _UnfaithfulError


def _ejson_string(text: str) -> str:
    if "\0" in text:
        raise _UnfaithfulError
    return quote(text)


def _ejson_document(document: Mapping[str, Any]) -> str:
    if any(name.startswith("$") for name in document):
        raise _UnfaithfulError
    return "{" + ", ".join([f"{quote(name)}: {_ejson(value)}" for name, value in document.items()]) + "}"


def _ejson_reference(reference: DBRef) -> str:
    document = reference.as_doc()
    if len(document) > 2 + ("$db" in document):
        raise _UnfaithfulError
    return "{" + ", ".join([f"{quote(name)}: {_ejson(value)}" for name, value in document.items()]) + "}"


def _ejson_decimal(value: Decimal128) -> str:
    text = str(value)
    if text == "NaN" and value.bid != _NAN.bid:  # signalling, negative, or with a payload
        raise _UnfaithfulError
    return f'{{"$numberDecimal": "{text}"}}'


def _ejson_script(script: Script) -> str:
    scope = script.code.scope
    end = "" if scope is None else f', "$scope": {_ejson(scope)}'
    return f'{{"$code": {_ejson_string(str(script.code))}{end}}}'


def _binary(data: bytes, subtype: int) -> str:
    return f'{{"$binary": {{"base64": "{base64.b64encode(data).decode()}", "subType": "{subtype:02x}"}}}}'


def _long(value: int) -> str:
    return f'{{"$numberLong": "{int(value)}"}}'


def _double(value: float) -> str:
    text = repr(value)
    return f'{{"$numberDouble": "{_DOUBLE_NAMES.get(text, text)}"}}'


_NAN: Final = Decimal128("NaN")
_DOUBLE_NAMES: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_EJSON: Final[dict[type, Callable[[Any], str]]] = {
    NoneType: lambda _: "null",
    bool: lambda value: "true" if value else "false",
    int: lambda value: f'{{"$numberInt": "{value}"}}' if -(2**31) <= value < 2**31 else _long(value),
    Int64: _long,
    float: _double,
    Decimal128: _ejson_decimal,
    Decimal: lambda value: f'{{"$numberDecimal": "{value}"}}',
    str: _ejson_string,
    ObjectId: lambda value: f'{{"$oid": "{value}"}}',
    DatetimeMS: lambda value: f'{{"$date": {_long(int(value))}}}',
    datetime: lambda value: f'{{"$date": "{value.isoformat()}"}}',
    bytes: lambda value: _binary(value, 0),
    Binary: lambda value: _binary(value, value.subtype),
    Regex: lambda value: (
        f'{{"$regularExpression": {{"pattern": {_ejson_string(value.pattern)}, "options": "{regex_flags(value)}"}}}}'
    ),
    Timestamp: lambda value: f'{{"$timestamp": {{"t": {value.time}, "i": {value.inc}}}}}',
    Script: _ejson_script,
    MinKey: lambda _: '{"$minKey": 1}',
    MaxKey: lambda _: '{"$maxKey": 1}',
    DBRef: _ejson_reference,
    dict: _ejson_document,
    OddDocument: _refuse,
    Twice: _refuse,
    list: lambda value: "[" + ", ".join([_ejson(item) for item in value]) + "]",
}


# -- the way back ------------------------------------------------------------------------------------------

_JSON_OPTIONS: Final = json_util.JSONOptions(
    uuid_representation=UuidRepresentation.UNSPECIFIED,
    datetime_conversion=DatetimeConversion.DATETIME_MS,
    json_mode=json_util.JSONMode.CANONICAL,
)


def from_ejson(parsed: Any) -> Any:
    """The value of parsed Extended JSON, canonical or relaxed, also of `$warpBson`."""
    if isinstance(parsed, list):
        return [from_ejson(item) for item in parsed]
    if not isinstance(parsed, dict):
        return parsed
    if len(parsed) == 1:
        ((name, inner),) = parsed.items()
        if name == WARP_BSON and isinstance(inner, str):
            return next(iter(decode_odd(base64.b64decode(inner)).values()))
        if name == "$date" and isinstance(inner, str):
            return normalise(datetime.fromisoformat(inner))
        if name == "$numberDecimal":
            return _decimal(inner)
    value = json_util.object_hook({name: from_ejson(inner) for name, inner in parsed.items()}, _JSON_OPTIONS)
    return Script(value) if isinstance(value, Code) else value


def _decimal(text: str) -> Decimal128 | Decimal:
    try:
        return Decimal128(text)
    except ArithmeticError:  # more digits than Decimal128 has, from a connector without BSON
        return Decimal(text)


# -- what people read --------------------------------------------------------------------------------------

_SIGNS: Final = ("\\u0000", "e+", "-0.0")  # of a NUL, of doubles that jsonb's numeric would change


def relaxed_json(value: Any) -> tuple[str | None, bool]:
    """Text for a jsonb column: relaxed Extended JSON with ISO dates; True when it does not hold all of it.

    Doubles stay doubles when they are read back: jsonb keeps 5.0, but would make an integer of 1e+22.
    The text is None when there is none that jsonb takes.
    """
    made = 0

    def hook(item: Any) -> Any:
        nonlocal made
        shown, names = _relaxed(item)
        made += names
        return shown

    try:
        text = _dumps(value, hook)
        text.encode()
        # As many "$ as the hook made: no name and no text of the user's begins like Extended JSON.
        if text.count('"$') == made and len(text) <= _MAX_JSON and not any(sign in text for sign in _SIGNS):
            return text, False
    except ValueError:  # NaN, an infinity, or a character that is not one: look at each value
        made = 0
    return _relaxed_slowly(value)


def _dumps(value: Any, hook: Callable[[Any], Any]) -> str:
    return json.dumps(
        value, default=hook, ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
    )


def _relaxed(item: Any) -> tuple[Any, int]:
    """What stands for a value that JSON has no type for, and how many names with $ that makes."""
    kind = type(item)
    if kind is ObjectId:
        return {"$oid": str(item)}, 1
    if kind is DatetimeMS and 0 <= int(item) < _END_ISO:
        moment = EPOCH + timedelta(milliseconds=int(item))
        return {"$date": moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"}, 1
    text = _ejson(item)
    return json.loads(text), text.count('"$')


def _relaxed_slowly(value: Any) -> tuple[str | None, bool]:
    notes: list[str] = []
    try:
        text = _dumps(_display(value, notes), lambda item: _relaxed(item)[0])
        text.encode()
    except ValueError:
        return None, True
    return (text, bool(notes)) if len(text) <= _MAX_JSON else (None, True)


def _display(value: Any, notes: list[str]) -> Any:
    """The value with all that jsonb refuses or changes replaced; `notes` says what could not be kept."""
    if isinstance(value, dict | Twice):
        if isinstance(value, Twice | OddDocument):
            notes.append("a name occurs twice")
        if any(name.startswith("$") for name in value):
            notes.append("a name begins with $")
        return {_display(name, notes): _display(inner, notes) for name, inner in pairs_of(value)}
    if type(value) is list:
        return [_display(item, notes) for item in value]
    if type(value) is str:
        shown = shown_text(value)
        if shown != value:
            notes.append("a character that jsonb refuses")
        return shown
    if type(value) is float:
        text = repr(value)
        if "e+" in text or text in ("-0.0", "nan", "inf", "-inf"):
            return json.loads(_double(value))
    return value
