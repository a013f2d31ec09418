"""Encoded column fields as bound parameters: binary arrays that the server unnests.

A binary array's element is a 4-byte length and the value's bytes, exactly a field of COPY BINARY, so fields
are encoded once for both (PostgreSQL: src/backend/utils/adt/arrayfuncs.c, array_recv).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection
from psycopg.abc import Buffer, PyFormat
from psycopg.adapt import Dumper
from psycopg.pq import Format

from cartridge_warp.kernel.plan import PgType, TablePlan, copy_columns

__all__ = ["BinaryArray", "copy_buffer", "parameters", "register"]

_HEADER = struct.Struct("!iiIii")
_EMPTY = struct.Struct("!iiI")
_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER = b"\xff\xff"


class BinaryArray:
    """One column's fields, ready to be sent."""

    __slots__ = ("data", "oid")

    def __init__(self, pg: PgType, fields: Sequence[bytes]) -> None:
        self.oid = pg.array_oid
        if fields:
            self.data = _HEADER.pack(1, 1, pg.oid, len(fields), 1) + b"".join(fields)
        else:
            self.data = _EMPTY.pack(0, 0, pg.oid)


class _Dumper(Dumper):
    format = Format.BINARY

    def get_key(self, obj: BinaryArray, format: PyFormat) -> Any:  # noqa: A002 (psycopg's name)
        return (self.cls, obj.oid)

    def upgrade(self, obj: BinaryArray, format: PyFormat) -> Dumper:  # noqa: A002
        dumper = _Dumper(BinaryArray)
        dumper.oid = obj.oid
        return dumper

    def dump(self, obj: BinaryArray) -> Buffer:
        return obj.data


def register(connection: AsyncConnection[Any]) -> None:
    """Let a connection send `BinaryArray`."""
    connection.adapters.register_dumper(BinaryArray, _Dumper)


def parameters(plan: TablePlan, fields: Sequence[Sequence[bytes]]) -> list[BinaryArray]:
    """One array for each of the plan's `copy_columns`."""
    return [BinaryArray(pg, column) for (_, pg), column in zip(copy_columns(plan), fields, strict=True)]


def copy_buffer(fields: Sequence[Sequence[bytes]]) -> bytes:
    """A whole COPY BINARY stream of rows given by columns."""
    count = struct.pack("!h", len(fields))
    rows = zip([count] * len(fields[0]), *fields, strict=True)
    return b"".join([_COPY_HEADER, *[field for row in rows for field in row], _COPY_TRAILER])
