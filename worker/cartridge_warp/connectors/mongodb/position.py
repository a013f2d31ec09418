"""Where a change stream stands, as JSON, and the order of a source's changes as one integer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import bson
from bson import json_util
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp

from cartridge_warp.records import Position

__all__ = [
    "Token",
    "dump_token",
    "load_token",
    "make_position",
    "pipeline_hash",
    "position_time",
    "token_time",
    "version_of",
    "wall_clock",
]

Token = Mapping[str, Any]
_KEYSTRING_TIMESTAMP: Final = 0x82  # the type byte with which mongod's resume tokens begin


def version_of(time: Timestamp) -> int:
    """A cluster time as a signed 64-bit integer of the same order."""
    return (time.time << 32 | time.inc) - (1 << 63)


def make_position(token: str | None, time: Timestamp, pipeline: str, database: str) -> Position:
    """The position behind `token`, or from `time` on (inclusive) when there is no token."""
    return {"token": token, "time": [time.time, time.inc], "pipeline": pipeline, "database": database}


def position_time(position: Position) -> Timestamp:
    """The cluster time of a position."""
    seconds, increment = position["time"]
    return Timestamp(seconds, increment)


def dump_token(token: Token) -> str:
    """Canonical Extended JSON of a resume token. A string, because jsonb would reorder its fields."""
    plain = bson.decode(token.raw) if isinstance(token, RawBSONDocument) else token
    return json_util.dumps(plain, json_options=json_util.CANONICAL_JSON_OPTIONS)


def load_token(text: str) -> dict[str, Any]:
    """The resume token that `dump_token` wrote."""
    token: dict[str, Any] = json_util.loads(text, json_options=json_util.CANONICAL_JSON_OPTIONS)
    return token


def token_time(token: Token) -> Timestamp | None:
    """The cluster time inside a resume token; None when its form is not known.

    mongod: a KeyString in hexadecimal that begins with a timestamp, type byte and eight bytes, big end first
    (src/mongo/db/pipeline/resume_token.h). SecantusDB: a BSON document in hexadecimal with the time in `t`.
    """
    data = token.get("_data")
    if not isinstance(data, str):
        return None
    try:
        raw = bytes.fromhex(data)
        if raw[:1] == bytes([_KEYSTRING_TIMESTAMP]) and len(raw) >= 9:
            return Timestamp(int.from_bytes(raw[1:5], "big"), int.from_bytes(raw[5:9], "big"))
        time = bson.decode(raw).get("t")
    except (ValueError, bson.errors.BSONError):
        return None
    return time if isinstance(time, Timestamp) else None


def pipeline_hash(pipeline: Sequence[Mapping[str, Any]]) -> str:
    """A short name for what a stream filters: only the same pipeline is sure to find a token again."""
    text = json_util.dumps(pipeline, json_options=json_util.CANONICAL_JSON_OPTIONS)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def wall_clock(at_ms: int | None, time: Timestamp) -> datetime:
    """The source's wall clock of an event; servers before 6.0 only give the cluster time, whole seconds."""
    return datetime.fromtimestamp(time.time if at_ms is None else at_ms / 1000, UTC)
