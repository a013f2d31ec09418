"""SQLSTATE to our errors: the one place that decides what a PostgreSQL error means.

Source of the codes: PostgreSQL 18, Appendix A. Messages carry SQLSTATE and the primary message, never DETAIL,
which may hold row values.
"""

from __future__ import annotations

import psycopg

from cartridge_warp.errors import (
    DestinationRefused,
    LockTimeout,
    RowError,
    StructureChanged,
    Unavailable,
    WarpError,
)

__all__ = ["is_row_error", "translate"]

_ROW_CLASSES = {"22", "23", "44", "54"}  # data, constraint, WITH CHECK OPTION, program limit
_ROW_CODES = {"P0001"}  # a trigger of the user's raised an exception
_STRUCTURE_CODES = {
    "42P01": "a table is missing",
    "42703": "a column is missing",
    "42804": "a column has another type",
    "42701": "a column exists already",
    "42P07": "a table exists already",
    "42P10": "the table has no unique index on its key",
    "3F000": "a schema is missing",
    "42809": "the object is not a table",
}
_REFUSED = {
    "28000": "check the user name and pg_hba.conf",
    "28P01": "check the password",
    "3D000": "create the database or correct the connection string",
    "42501": "grant the missing privilege (USAGE and CREATE on both schemas)",
    "2BP01": "drop what depends on it (a foreign key or a view of your own) and start again",
    "0A000": "this server does not support what is needed",
}
_REFUSED_TEXTS = {  # libpq reports errors of the connection phase as text only
    "password authentication failed": "check the password",
    "no password supplied": "put a password into the connection string",
    "no pg_hba.conf entry": "allow this host in pg_hba.conf",
    "does not exist": "create it or correct the connection string",
    "permission denied for database": "grant CONNECT on the database",
    "invalid connection option": "correct the connection string",
    'missing "=" after': "correct the connection string",
    "server does not support SSL": "use another sslmode or enable SSL in the server",
    "certificate verify failed": "check the CA certificate",
    "is not permitted to log in": "use a role that may log in",
}


def is_row_error(error: psycopg.Error) -> bool:
    """True when a single row's content is at fault, not the server and not the table's structure."""
    state = error.sqlstate or ""
    return state[:2] in _ROW_CLASSES or state in _ROW_CODES


def _text(error: psycopg.Error) -> str:
    primary = error.diag.message_primary if error.diag is not None else None
    text = primary or " ".join(str(error).split()) or type(error).__name__
    return f"{text} (SQLSTATE {error.sqlstate})" if error.sqlstate else text


def translate(error: psycopg.Error, where: str) -> WarpError:
    """Our error for PostgreSQL's, naming `where` it happened (a server, a table)."""
    state, text = error.sqlstate or "", _text(error)
    if is_row_error(error):
        return RowError(f"{where}: {text}", sqlstate=state)
    if state == "55P03":
        return LockTimeout(f"{where}: a lock was not granted in time; end the session that holds it ({text})")
    if state in _STRUCTURE_CODES:
        return StructureChanged(f"{where}: {_STRUCTURE_CODES[state]}: {text}")
    if state in _REFUSED:
        return DestinationRefused(f"{where}: {text}; {_REFUSED[state]}")
    if not state:
        for fragment, step in _REFUSED_TEXTS.items():
            if fragment in text:
                return DestinationRefused(f"{where}: {text}; {step}")
    if not state and not isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return WarpError(f"{where}: {text}; this is a fault of the worker: please report it")
    return Unavailable(f"{where}: {text}")
