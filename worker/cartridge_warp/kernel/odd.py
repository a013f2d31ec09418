"""What is rare: values that PyMongo or JSON cannot hold, and those of connectors without BSON.

Everything here keeps a value exactly, at the price of time. The hot path comes here only after a cheap check.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Any, Final
from uuid import UUID

import bson
from bson import Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.binary import Binary, UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion, TypeCodec, TypeRegistry
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.errors import BSONError

from cartridge_warp.errors import Policy, WarpError

__all__ = [
    "END_MS",
    "EPOCH",
    "FIRST_MS",
    "MALFORMED",
    "MICROSECOND",
    "OPTIONS",
    "WARP_BSON",
    "OddDocument",
    "PoisonDocument",
    "Script",
    "Twice",
    "decode_odd",
    "micros",
    "normalise",
    "pairs_of",
    "regex_flags",
    "shown_text",
    "text_bytes",
    "warp_bson",
]

WARP_BSON: Final = "$warpBson"
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
# timestamptz reaches from 4713 BC to the year 294276 (PostgreSQL: src/include/datatype/timestamp.h).
FIRST_MS: Final = -210_866_803_200_000
END_MS: Final = 9_224_318_016_000_000
MALFORMED: Final = (BSONError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError)
"""What decoding or encoding raises for a bad document; MemoryError is not the document's fault."""


class PoisonDocument(WarpError):
    """A document that cannot be decoded or encoded at all."""

    policy = Policy.DEAD_LETTER
    code = "poison"


class Script:
    """JavaScript code. PyMongo's `Code` is a str, which JSON encoders and `==` would take for text."""

    __slots__ = ("code",)

    def __init__(self, code: Code) -> None:
        self.code = code


class _ScriptCodec(TypeCodec):
    python_type = Script
    bson_type = Code

    def transform_python(self, value: Any) -> Any:
        return value.code

    def transform_bson(self, value: Any) -> Any:
        return Script(value)


class Twice(MutableMapping[str, Any]):
    """A document inside another that holds a name more than once. As a mapping the last one counts."""

    def __init__(self, pairs: Iterable[tuple[str, Any]] = (), *, settled: bool = False) -> None:
        self.pairs = list(pairs)
        self.settled = settled

    def __setitem__(self, name: str, value: Any) -> None:
        self.pairs.append((name, value))

    def __getitem__(self, name: str) -> Any:
        # While it is being filled PyMongo must not see `$ref`, or it makes a DBRef and loses the second one.
        if self.settled:
            for found, value in reversed(self.pairs):
                if found == name:
                    return value
        raise KeyError(name)

    def __delitem__(self, name: str) -> None:
        self.pairs = [pair for pair in self.pairs if pair[0] != name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self.pairs))

    def __len__(self) -> int:
        return len(dict(self.pairs))


class OddDocument(dict[str, Any]):
    """A whole document that holds a name more than once: as a dict the last one counts, `pairs` has all."""

    def __init__(self, pairs: Iterable[tuple[str, Any]]) -> None:
        self.pairs = list(pairs)
        super().__init__(self.pairs)


OPTIONS: Final[CodecOptions[dict[str, Any]]] = CodecOptions(
    uuid_representation=UuidRepresentation.UNSPECIFIED,
    datetime_conversion=DatetimeConversion.DATETIME_MS,
    type_registry=TypeRegistry([_ScriptCodec()]),
)
_ODD: Final[CodecOptions[Any]] = CodecOptions(
    document_class=Twice,
    uuid_representation=UuidRepresentation.UNSPECIFIED,
    datetime_conversion=DatetimeConversion.DATETIME_MS,
    type_registry=TypeRegistry([_ScriptCodec()]),
    unicode_decode_error_handler="surrogateescape",
)


def decode_odd(raw: bytes) -> dict[str, Any]:
    """Decode BSON with invalid UTF-8 (kept by surrogateescape) or repeated names. Raises `PoisonDocument`."""
    try:
        document = _settle(bson.decode(raw, _ODD))
    except MALFORMED as error:
        raise PoisonDocument(f"a document of {len(raw)} bytes is not valid BSON: {error}") from error
    return OddDocument(document.pairs) if isinstance(document, Twice) else document


def _settle(value: Any) -> Any:
    if isinstance(value, Twice):
        pairs = [(name, _settle(inner)) for name, inner in value.pairs]
        document = dict(pairs)
        return document if len(document) == len(pairs) else Twice(pairs, settled=True)
    if isinstance(value, Script) and value.code.scope is not None:
        return Script(Code(str(value.code), _settle(value.code.scope)))
    return [_settle(item) for item in value] if isinstance(value, list) else value


# -- values of connectors without BSON ---------------------------------------------------------------------

_AS_IT_IS: Final = {
    NoneType, bool, float, str, Int64, bytes, Decimal, ObjectId, DatetimeMS, Binary, Decimal128, Regex,
    Timestamp, Script, MinKey, MaxKey, Twice, OddDocument,
}  # fmt: skip


def normalise(value: Any) -> Any:
    """A Python value as the kernel knows it. Raises `PoisonDocument` for a type that has no equivalent.

    A datetime without a zone is UTC. One with a part below the millisecond, which BSON cannot hold, stays a
    datetime. Integers beyond 64 bits become Decimal.
    """
    kind = type(value)
    if kind in _AS_IT_IS:
        return bytes(value) if kind is Binary and value.subtype == 0 else value
    if kind is int:
        return value if -(2**63) <= value < 2**63 else Decimal(value)
    if isinstance(value, Mapping):
        return {_name(name): normalise(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [normalise(item) for item in value]
    if isinstance(value, date):
        return _normalise_date(value)
    if isinstance(value, DBRef):
        return normalise(value.as_doc())
    return _normalise_scalar(value)


def _name(name: Any) -> str:
    if isinstance(name, str) and "\0" not in name:
        return str(name)
    raise PoisonDocument(f"the field name {name!r} is not a text without NUL; the connector must deliver one")


def _normalise_date(value: date) -> Any:
    moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    milliseconds, rest = divmod((moment - EPOCH) // MICROSECOND, 1000)
    return moment if rest else DatetimeMS(milliseconds)


def micros(value: Any) -> int:
    """Microseconds since 1970 of a date."""
    return int(value) * 1000 if type(value) is DatetimeMS else (value - EPOCH) // MICROSECOND


def _normalise_scalar(value: Any) -> Any:
    if isinstance(value, Enum):
        return normalise(value.value)
    if isinstance(value, UUID):
        return Binary.from_uuid(value, UuidRepresentation.STANDARD)
    if isinstance(value, Code):
        return Script(value)
    if isinstance(value, re.Pattern):
        return Regex.from_native(value)
    for plain in (str, int, float):  # subclasses, such as numpy's float64
        if isinstance(value, plain):
            return normalise(plain(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise PoisonDocument(f"a value of the Python type {type(value).__name__} has no place in a row")


# -- BSON of what PyMongo does not encode ------------------------------------------------------------------


def warp_bson(pairs: Iterable[tuple[str, Any]]) -> str:
    """The text `{"$warpBson": "<base64 of a BSON document of these elements>"}`."""
    return json.dumps({WARP_BSON: base64.b64encode(_document(pairs)).decode()})


def pairs_of(value: Any) -> Iterable[tuple[str, Any]]:
    """All elements of a document, also of one with repeated names."""
    if isinstance(value, Twice | OddDocument):
        return value.pairs
    return (value.as_doc() if isinstance(value, DBRef) else value).items()


def regex_flags(regex: Regex[Any]) -> str:
    """A regular expression's flags as BSON and Extended JSON write them, in alphabetical order."""
    return "".join([letter for letter, flag in _FLAGS if regex.flags & flag])


_FLAGS: Final = (("i", re.I), ("l", re.L), ("m", re.M), ("s", re.S), ("u", re.U), ("x", re.X))


def text_bytes(text: str) -> bytes:
    """A text's own bytes: what surrogateescape has put into it becomes the invalid bytes again."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate from JSON, not from bytes
        return text.encode("utf-8", "surrogatepass")


def shown_text(text: str) -> str:
    """A text that PostgreSQL takes: NUL as U+2400, invalid UTF-8 as U+FFFD."""
    return text_bytes(text).decode("utf-8", "replace").replace("\0", "\u2400")


def _document(pairs: Iterable[tuple[str, Any]]) -> bytes:
    body = b"".join([_element(text_bytes(name) + b"\0", value) for name, value in pairs])
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def _element(name: bytes, value: Any) -> bytes:
    if isinstance(value, str):
        return b"\x02" + name + _sized_text(value)
    if isinstance(value, Mapping | DBRef):
        return b"\x03" + name + _document(pairs_of(value))
    if isinstance(value, list):
        return b"\x04" + name + _document((str(index), item) for index, item in enumerate(value))
    if isinstance(value, Regex):
        return b"\x0b" + name + text_bytes(value.pattern) + b"\0" + regex_flags(value).encode() + b"\0"
    if isinstance(value, Script):
        if value.code.scope is None:
            return b"\x0d" + name + _sized_text(value.code)
        body = _sized_text(value.code) + _document(pairs_of(value.code.scope))
        return b"\x0f" + name + struct.pack("<i", len(body) + 4) + body
    encoded = bson.encode({"": Decimal128(value) if isinstance(value, Decimal) else value}, False, OPTIONS)
    return encoded[4:5] + name + encoded[6:-1]


def _sized_text(text: str) -> bytes:
    data = text_bytes(text) + b"\0"
    return struct.pack("<i", len(data)) + data
