"""Every error that cartridge-warp raises on purpose, what is to be done about it, and the masking of secrets.

Foreign exceptions (driver, server, operating system) are translated into these at the boundary of each
connector, in one place, so that the core decides by class alone.
"""

from __future__ import annotations

import re
from enum import Enum

__all__ = [
    "ChunkVoid",
    "ConfigError",
    "DestinationRefused",
    "Fenced",
    "LockTimeout",
    "MarkerMoved",
    "MetadataTooNew",
    "Policy",
    "PositionLost",
    "RowError",
    "SourceChanged",
    "SourceRefused",
    "StructureChanged",
    "TargetBusy",
    "TargetOwned",
    "Unavailable",
    "WarpError",
    "mask",
]


class Policy(Enum):
    """What the core does about an error."""

    RETRY = "retry"  # an outage: reconnect for ever, with full jitter
    BOUNDED = "bounded"  # locks and schema: retry up to `error_handling.max_retries`, then say so and go on
    DEAD_LETTER = "dead_letter"  # one row is at fault: isolate it
    RESNAPSHOT = "resnapshot"  # the position is gone: record it and copy again, online
    STOP = "stop"  # retrying cannot help: say what to do, and end


class WarpError(Exception):
    """Base of all. `str()` is one sentence: what, where and the next step; it never holds a secret."""

    policy = Policy.STOP
    exit_code = 1
    code = "error"

    def __init__(self, message: str) -> None:
        super().__init__(mask(message))


class ConfigError(WarpError):
    """The configuration is wrong."""

    exit_code = 2
    code = "config"


class Unavailable(WarpError):
    """A server cannot be reached or has gone away; it may come back."""

    policy = Policy.RETRY
    exit_code = 3
    code = "unavailable"


class SourceRefused(WarpError):
    """The source is reachable but cannot be used: password, privilege, topology, missing database."""

    exit_code = 4
    code = "source_refused"


class DestinationRefused(WarpError):
    """The destination is reachable but cannot be used: password, privilege, read-only, missing database."""

    exit_code = 5
    code = "destination_refused"


class MetadataTooNew(DestinationRefused):
    """The metadata schema was migrated by a newer version that this one must not touch."""

    code = "metadata_too_new"


class TargetOwned(WarpError):
    """Another identity owns the target schema, or another worker writes to it now."""

    exit_code = 6
    code = "target_owned"


class TargetBusy(TargetOwned):
    """Another worker of the same identity is alive and writes to the target; this one stands by."""

    policy = Policy.RETRY
    code = "standby"


class SourceChanged(WarpError):
    """The source is another server or database than the one that the target was filled from."""

    exit_code = 7
    code = "source_changed"


class Fenced(WarpError):
    """Another worker has taken over; nothing may be written any more."""

    exit_code = 8
    code = "fenced"


class MarkerMoved(WarpError):
    """The stored position is not the one that this worker last read or wrote: what it holds in memory is void."""

    policy = Policy.RETRY
    code = "marker_moved"


class ChunkVoid(WarpError):
    """A snapshot chunk lost its claim, or its table moved to another generation: nothing of it was written."""

    policy = Policy.RETRY
    code = "chunk_void"


class PositionLost(WarpError):
    """The source no longer holds the changes after the stored position."""

    policy = Policy.RESNAPSHOT
    code = "position_lost"


class RowError(WarpError):
    """The destination refuses the content of a row (SQLSTATE classes 22 and 23, size limits)."""

    policy = Policy.DEAD_LETTER
    code = "row"

    def __init__(self, message: str, *, sqlstate: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class LockTimeout(WarpError):
    """A lock in the destination was not granted in time."""

    policy = Policy.BOUNDED
    code = "lock_timeout"


class StructureChanged(WarpError):
    """The destination's tables are not what the schema registry says; the catalog must be read again."""

    policy = Policy.BOUNDED
    code = "structure_changed"


_URI_PASSWORD = re.compile(r"(?P<head>\b[a-z][a-z0-9+.-]*://[^\s:/@]*:)(?P<secret>[^\s]*)(?=@)", re.IGNORECASE)
_KEY_PASSWORD = re.compile(
    r"(?P<head>\b(?:password|passwd|pwd|secret|token|sslpassword|tlsCertificateKeyFilePassword)\s*[=:]\s*)"
    r"(?P<secret>'[^']*'|\"[^\"]*\"|[^\s&,;]+)",
    re.IGNORECASE,
)


def mask(text: str) -> str:
    """Replace every password in `text` (inside URIs, and behind `password=` and the like) by `***`."""
    text = _URI_PASSWORD.sub(r"\g<head>***", text)
    return _KEY_PASSWORD.sub(r"\g<head>***", text)
