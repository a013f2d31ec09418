"""The kinds of values that settings take, read leniently from text and numbers and checked once, at the edge.

A validator's `ValueError` says what is allowed; the path and what was found are added by `problems`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field

from cartridge_warp.errors import mask

__all__ = [
    "MAX_SECONDS",
    "Bytes",
    "Columns",
    "Connections",
    "Count",
    "Identifier",
    "Names",
    "Parameters",
    "Port",
    "Rows",
    "Seconds",
    "Streams",
    "TimeZone",
    "Unit",
    "is_glob",
    "is_secret",
    "masked",
    "mib",
]

MAX_SECONDS = 7 * 24 * 3600.0
DURATION = "seconds as a number, or a duration such as 500ms, 5s, 2m, 1m30s or 1h"
SIZE = "bytes as a whole number, or a size such as 512KiB, 8MiB or 1Gi"

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SECRET = re.compile(r"password|passwd|secret(?!_?ref|_?name|s)|token|credential|private|api_?key", re.IGNORECASE)
_FACTORS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Unit:
    """What a number counts, for the reference page."""

    name: str


def _seconds(value: object) -> float:
    if isinstance(value, bool):
        raise ValueError(DURATION)
    if isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value.strip())):
        seconds = float(value)
    elif isinstance(value, str) and re.fullmatch(f"(?:{_DURATION.pattern})+", value.strip()):
        seconds = sum(float(number) * _FACTORS[unit] for number, unit in _DURATION.findall(value))
    else:
        raise ValueError(DURATION)
    if not math.isfinite(seconds):
        raise ValueError(DURATION)
    return seconds


def _bytes(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        number, prefix, binary = match.groups()
        power = " kmgt".index(prefix.lower() or " ")
        return int(float(number) * (1024 if binary else 1000) ** power) if power else int(float(number))
    raise ValueError(SIZE)


def _whole(value: object) -> object:
    # YAML reads `yes` and `on` as true, which Python counts as 1.
    if isinstance(value, bool):
        raise ValueError("a whole number")
    return value


def _split(value: object) -> object:
    """A comma list (the environment's way) or a JSON list becomes a sequence."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("a list of names, as JSON or separated by commas") from None
    return [part.strip() for part in value.split(",") if part.strip()]


def _mapping(value: object) -> object:
    """The environment gives a mapping as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("a mapping of text to text") from None


def _zone(value: str) -> str:
    if value == "UTC":  # known without a time zone database
        return value
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ValueError("the name of a time zone, such as UTC or Europe/Paris") from None
    return value


def _identifier(value: str) -> str:
    if not value or len(value.encode()) > 63 or "\0" in value:
        raise ValueError("a PostgreSQL name of 1 to 63 bytes")
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=MAX_SECONDS), Unit("seconds")]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1, le=2**40), Unit("bytes")]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=10**12), Unit("count")]
Rows = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=1_000_000), Unit("rows")]
Columns = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=1500), Unit("columns")]
Streams = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=64), Unit("parallel reads")]
Connections = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=1000), Unit("connections")]
Port = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=65535), Unit("port")]
Names = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=255)], ...], BeforeValidator(_split)]
Parameters = Annotated[dict[str, str], BeforeValidator(_mapping)]
TimeZone = Annotated[str, AfterValidator(_zone)]
Identifier = Annotated[str, AfterValidator(_identifier)]


def mib(count: int) -> int:
    """`count` mebibytes in bytes."""
    return count * 1024 * 1024


def is_glob(name: str) -> bool:
    """True when `name` is a pattern (`*`, `?`, `[...]`) and not an exact name."""
    return any(character in name for character in "*?[")


def is_secret(key: str) -> bool:
    """True when a setting of this name holds a secret as a whole."""
    return _SECRET.search(key) is not None


def masked(key: str, value: Any) -> Any:
    """`value` of the setting `key`, without any secret, at any depth."""
    if isinstance(value, dict):
        return {name: masked(str(name), inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(key, inner) for inner in value]
    if isinstance(value, str):
        return "***" if is_secret(key) and value else mask(value)
    return value
