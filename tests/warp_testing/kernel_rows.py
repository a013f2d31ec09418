"""Encoded rows through a real PostgreSQL and back, with nothing of the shipped connector in between."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from cartridge_warp.kernel import (
    ColumnKind,
    ColumnPlan,
    EncodedRows,
    KeyKind,
    TablePlan,
    column_name,
    copy_columns,
    encode_rows,
    key_definition,
    rebuild,
)

COPY, UNNEST = "copy", "unnest"


def plan_of(columns: dict[str, ColumnKind], key: KeyKind = KeyKind.hash, **parts: Any) -> TablePlan:
    """A plan with these fields."""
    taken = {"_id"}
    plans = []
    for field, kind in columns.items():
        plans.append(ColumnPlan(field, column_name(field, taken), kind))
        taken.add(plans[-1].column)
    return TablePlan("t", "t", key, columns=tuple(plans), **parts)


def write(connection: psycopg.Connection, plan: TablePlan, rows: EncodedRows, how: str = COPY) -> None:
    """Make the table anew and write the rows, by COPY BINARY or as binary arrays."""
    columns = copy_columns(plan)
    definitions = [
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(pg.sql if position else key_definition(plan.key_kind)))
        for position, (name, pg) in enumerate(columns)
    ]
    connection.execute("DROP TABLE IF EXISTS t")
    connection.execute(sql.SQL("CREATE TABLE t ({})").format(sql.SQL(", ").join(definitions)))
    if how == COPY:
        with connection.cursor() as cursor, cursor.copy("COPY t FROM STDIN (FORMAT BINARY)") as copy:
            copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
            for row in zip(*rows.fields, strict=True):
                copy.write(struct.pack("!h", len(row)) + b"".join(row))
            copy.write(b"\xff\xff")
        return
    arguments = ", ".join(f"${position + 1}" for position in range(len(columns)))
    result = connection.pgconn.exec_params(
        f"INSERT INTO t SELECT * FROM unnest({arguments})".encode(),
        [
            struct.pack("!iiIii", 1, 1, pg.oid, len(fields), 1) + b"".join(fields)
            for (_, pg), fields in zip(columns, rows.fields, strict=True)
        ],
        param_types=[pg.array_oid for _, pg in columns],
        param_formats=[1] * len(columns),
    )
    assert result.status == psycopg.pq.ExecStatus.COMMAND_OK, result.error_message


def read(connection: psycopg.Connection, plan: TablePlan, *, times: str = "ms") -> list[dict[str, Any]]:
    """All rows in order of `_warp_version`; times as milliseconds or as text."""
    form = {"ms": "(extract(epoch FROM {0}) * 1000)::bigint AS {0}", "text": "{0}::text AS {0}"}[times]
    columns = [
        sql.SQL(form if pg.sql == "timestamptz" else "{0}").format(sql.Identifier(name))
        for name, pg in copy_columns(plan)
    ]
    query = sql.SQL("SELECT {} FROM t ORDER BY _warp_version").format(sql.SQL(", ").join(columns))
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query).fetchall()


def through(
    connection: psycopg.Connection, plan: TablePlan, documents: Sequence[Any], how: str = COPY, **options: Any
) -> list[dict[str, Any]]:
    """Documents encoded, written, read and rebuilt. None of them may be rejected."""
    rows = encode_rows(plan, documents, range(len(documents)))
    assert rows.rejected == []
    write(connection, plan, rows, how)
    return [rebuild(plan, row) for row in read(connection, plan, **options)]
