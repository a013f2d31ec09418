"""PyMongo's errors into ours, in one place. Codes are those of mongod's error_codes.yml."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bson.errors import BSONError
from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    InvalidOperation,
    InvalidURI,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WTimeoutError,
)

from cartridge_warp.errors import PositionLost, SourceRefused, Unavailable, WarpError

__all__ = ["CHANGE_STREAM_FATAL", "TOO_LARGE", "guard", "is_refusal", "translate"]

CHANGE_STREAM_FATAL: Final = 280
HISTORY_LOST: Final = 286
INVALID_RESUME_TOKEN: Final = 260
TOO_LARGE: Final = 10334
UNAUTHORIZED: Final = 13
AUTHENTICATION_FAILED: Final = frozenset({18, 8000})  # 8000: Atlas's own
LOST: Final = frozenset({CHANGE_STREAM_FATAL, HISTORY_LOST, INVALID_RESUME_TOKEN})
_CERTIFICATE: Final = (
    "CERTIFICATE_VERIFY_FAILED",
    "WRONG_VERSION_NUMBER",
    "IP address mismatch",
    "Hostname mismatch",
)
_LONGEST_REASON: Final = 300


@contextmanager
def guard(doing: str) -> Iterator[None]:
    """Translate what the driver raises inside. `doing` completes "cannot ..."."""
    try:
        yield
    except (PyMongoError, BSONError) as exc:
        raise translate(exc, doing) from exc


def translate(exc: Exception, doing: str) -> WarpError:
    """Our error for the driver's `exc`, raised while `doing`."""
    reason = _reason(exc)
    if isinstance(exc, OperationFailure):
        return _from_server(exc, doing, reason)
    if any(sign in reason for sign in _CERTIFICATE):
        return SourceRefused(f"cannot {doing}: TLS failed ({reason}); check `ssl_enabled`, `tls_ca_file` and the name")
    if isinstance(exc, (InvalidURI, ConfigurationError)) and "DNS" not in reason:
        return SourceRefused(f"cannot {doing}: the connection settings do not hold ({reason}); correct them")
    if isinstance(exc, ServerSelectionTimeoutError):
        return Unavailable(f"cannot {doing}: no usable server answers ({reason}); check address, network and TLS")
    if isinstance(exc, (ConnectionFailure, InvalidOperation)):
        return Unavailable(f"cannot {doing}: the connection was lost ({reason})")
    if isinstance(exc, BSONError):
        return WarpError(f"cannot {doing}: the server sent BSON that cannot be read ({reason})")
    return Unavailable(f"cannot {doing}: {reason}")


def is_refusal(exc: Exception) -> bool:
    """True when the server answered, but this user may not do it."""
    return isinstance(exc, OperationFailure) and exc.code in {UNAUTHORIZED, *AUTHENTICATION_FAILED}


def _from_server(exc: OperationFailure, doing: str, reason: str) -> WarpError:
    if exc.code in AUTHENTICATION_FAILED:
        return SourceRefused(f"cannot {doing}: user or password is wrong ({reason}); check them and `auth_source`")
    if exc.code == UNAUTHORIZED:
        return SourceRefused(
            f"cannot {doing}: a privilege is missing ({reason}); grant the role `read` on the database, "
            "which holds find, listCollections and changeStream"
        )
    # A mongod labels every fatal change stream error; other servers give the bare code.
    if exc.code in LOST or exc.has_error_label("NonResumableChangeStreamError") or _is_bad_token(exc):
        return PositionLost(f"cannot {doing}: the source no longer holds the changes after the position ({reason})")
    if isinstance(exc, WTimeoutError):
        return Unavailable(f"cannot {doing}: the replica set has no majority now ({reason})")
    # Whatever else a server answers may pass (no primary, shutting down, cursor killed, time limit): it is
    # tried again, and the reason is visible all the while.
    return Unavailable(f"cannot {doing}: the server answers {exc.code}: {reason}")


def _is_bad_token(exc: OperationFailure) -> bool:
    return "resume token" in str(exc) and not exc.has_error_label("ResumableChangeStreamError")


def _reason(exc: Exception) -> str:
    """One short clause: the driver appends whole server replies and topology descriptions."""
    text = " ".join(str(exc).split())
    for tail in (", full error:", ", Timeout:", " (configured timeouts:"):
        text = text.partition(tail)[0]
    return text.rstrip(".;, ")[:_LONGEST_REASON] or type(exc).__name__
