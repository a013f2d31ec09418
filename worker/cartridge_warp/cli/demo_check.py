"""Is every document equal to its row? Read from both servers, by nothing but the schema registry's plans.

Statements here have no parameters, because psycopg would take a % in a name for a placeholder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from psycopg import sql
from psycopg.rows import TupleRow, dict_row

from cartridge_warp.cli.demo_data import Client
from cartridge_warp.config import UnitSettings
from cartridge_warp.kernel import TablePlan, copy_columns, decode, equal, key_hash, key_text, rebuild

__all__ = ["Difference", "TableCheck", "check", "count", "plans"]

Connection = psycopg.AsyncConnection[TupleRow]

_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
_MOST = 5  # differences shown of one table


@dataclass(frozen=True)
class Difference:
    """One document that is not as its row says: `what` names the fields, the others hold their values."""

    key: str
    what: str
    source: str = ""
    destination: str = ""


@dataclass(frozen=True)
class TableCheck:
    """One collection and its table: how many documents differ, and the first of them."""

    schema: str
    table: str
    documents: int
    rows: int
    differing: int = 0
    differences: tuple[Difference, ...] = ()

    @property
    def equal(self) -> bool:
        """True when every document equals its row and there is no row without a document."""
        return self.documents == self.rows and not self.differing


async def plans(connection: Connection, unit: UnitSettings) -> dict[str, TablePlan]:
    """The plan of each table of a unit, by collection; empty as long as the worker has created nothing."""
    query = sql.SQL(
        'SELECT DISTINCT ON ("table") "table", definition FROM {}.schema_registry'
        " WHERE target = {} AND status = 'applied' ORDER BY \"table\", version DESC"
    ).format(sql.Identifier(unit.metadata_schema), sql.Literal(unit.target))
    try:
        rows = await (await connection.execute(query)).fetchall()
    except psycopg.errors.UndefinedTable:
        return {}
    return {table: TablePlan.from_json(definition) for table, definition in rows}


async def check(client: Client, connection: Connection, units: Iterable[UnitSettings]) -> list[TableCheck]:
    """Compare every document of every wanted collection with its row, and look for rows too many."""
    results = []
    for unit in units:
        known = await plans(connection, unit)
        for table in await _collections(client, unit, known):
            documents = await _documents(client, unit, table)
            plan = known.get(table)
            rows = await _rows(connection, unit, plan) if plan else {}
            results.append(_compare(unit.target, table, documents, rows))
    return results


async def count(client: Client, connection: Connection, units: Iterable[UnitSettings]) -> list[TableCheck]:
    """The same with numbers alone, which is quick enough to be asked every second."""
    results = []
    for unit in units:
        known = await plans(connection, unit)
        for table in await _collections(client, unit, known):
            documents = await client[unit.database][table].estimated_document_count()
            plan = known.get(table)
            rows = await _count_rows(connection, unit, plan) if plan else 0
            results.append(TableCheck(unit.target, table, documents, rows))
    return results


async def _collections(client: Client, unit: UnitSettings, known: Iterable[str]) -> list[str]:
    names = await client[unit.database].list_collection_names(filter={"type": "collection"})
    wanted = {name for name in names if unit.wants(name) and not name.startswith("system.")}
    return sorted(wanted | set(known))


async def _documents(client: Client, unit: UnitSettings, table: str) -> dict[bytes, dict[str, Any]]:
    database = client[unit.database].with_options(codec_options=_RAW)
    found = [decode(bytes(document.raw)) async for document in database[table].find({})]
    return {key_hash(document.get("_id")): document for document in found}


async def _rows(connection: Connection, unit: UnitSettings, plan: TablePlan) -> dict[bytes, dict[str, Any]]:
    """Each row turned back into its document, by the hash of its key.

    Times are asked for as milliseconds, because Python's own end at the year 9999.
    """
    columns = [
        sql.SQL("(extract(epoch FROM {0}) * 1000)::bigint AS {0}").format(sql.Identifier(name))
        if kind.sql == "timestamptz"
        else sql.Identifier(name)
        for name, kind in copy_columns(plan)
    ]
    query = sql.SQL("SELECT {} FROM {}{}").format(
        sql.SQL(", ").join(columns), sql.Identifier(unit.target, plan.relation), _alive(plan)
    )
    async with connection.cursor(row_factory=dict_row) as cursor:
        rows = await (await cursor.execute(query)).fetchall()
    documents = {}
    for row in rows:
        document = rebuild(plan, row)
        key = key_hash(document.get("_id")) if plan.native else bytes(row[plan.key_column])
        documents[key] = document
    return documents


async def _count_rows(connection: Connection, unit: UnitSettings, plan: TablePlan) -> int:
    query = sql.SQL("SELECT count(*) FROM {}{}").format(sql.Identifier(unit.target, plan.relation), _alive(plan))
    row = await (await connection.execute(query)).fetchone()
    return int(row[0]) if row else 0


def _alive(plan: TablePlan) -> sql.Composable:
    """Soft deletion keeps the rows of deleted documents, marked."""
    if plan.soft_column is None:
        return sql.SQL("")
    return sql.SQL(" WHERE NOT {}").format(sql.Identifier(plan.soft_column))


def _compare(
    schema: str, table: str, documents: Mapping[bytes, dict[str, Any]], rows: Mapping[bytes, dict[str, Any]]
) -> TableCheck:
    wrong = [
        key
        for key in documents.keys() | rows.keys()
        if key not in documents or key not in rows or not equal(documents[key], rows[key])
    ]
    shown = tuple(_difference(documents.get(key), rows.get(key)) for key in sorted(wrong)[:_MOST])
    return TableCheck(schema, table, len(documents), len(rows), len(wrong), shown)


def _difference(document: dict[str, Any] | None, row: dict[str, Any] | None) -> Difference:
    if document is None or row is None:
        key = key_text((document or row or {}).get("_id"))
        return Difference(key, "no document for this row" if document is None else "no row for this document")
    fields = [
        name for name in sorted(document.keys() | row.keys()) if not equal(_only(document, name), _only(row, name))
    ]
    return Difference(
        key_text(document.get("_id")), ", ".join(fields), _shorten(document, fields), _shorten(row, fields)
    )


def _only(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: document[name]} if name in document else {}


def _shorten(document: dict[str, Any], fields: Sequence[str]) -> str:
    text = ", ".join(repr(document.get(name)) for name in fields)
    return text if len(text) <= 200 else f"{text[:199]}…"
