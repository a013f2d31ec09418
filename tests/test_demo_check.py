"""The demo's comparison: equal rows pass, and nothing that differs does."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from pymongo import AsyncMongoClient

from cartridge_warp.cli.demo_check import check, count
from cartridge_warp.cli.demo_data import DataFile, find_data, load_data
from cartridge_warp.config import SchemaConfig, UnitSettings
from cartridge_warp.kernel import (
    ColumnPlan,
    KeyKind,
    TablePlan,
    column_name,
    copy_columns,
    decide_kind,
    encode_rows,
    value_kind,
)

DATA = Path(__file__).parent.parent / "examples" / "data"
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)


def plan_for(table: str, documents: list[bytes], key_kind: KeyKind, **options) -> TablePlan:
    """The plan that holds every field of the documents."""
    plan = TablePlan(table, table, key_kind, **options)
    fields = encode_rows(plan, documents, [1] * len(documents)).observed.fields
    columns: list[ColumnPlan] = []
    for name, kinds in fields.items():
        taken = {*plan.taken, *(column.column for column in columns)}
        columns.append(ColumnPlan(name, column_name(name, taken), decide_kind(Counter(kinds))))
    return TablePlan(table, table, key_kind, columns=tuple(columns), version=2, **options)


async def write(connection, target: str, plan: TablePlan, documents: list[bytes]) -> None:
    """A table with the rows of these documents, and its plan in the schema registry, as the worker leaves them."""
    made = encode_rows(plan, documents, [1] * len(documents))
    assert not made.rejected
    columns = [sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind.sql)) for name, kind in copy_columns(plan)]
    table = sql.Identifier(target, plan.relation)
    await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(target)))
    await connection.execute(sql.SQL("CREATE TABLE {} ({})").format(table, sql.SQL(", ").join(columns)))
    async with connection.cursor() as cursor:
        async with cursor.copy(sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(table)) as copy:
            await copy.write(HEADER)
            for row in zip(*made.fields, strict=True):
                await copy.write(len(row).to_bytes(2, "big") + b"".join(row))
            await copy.write(b"\xff\xff")
        if plan.soft_column:
            soft = sql.Identifier(plan.soft_column)
            query = sql.SQL("ALTER TABLE {} ADD {} boolean NOT NULL DEFAULT false").format(table, soft)
            await cursor.execute(query)
    await connection.execute(
        "CREATE SCHEMA IF NOT EXISTS cartridge_warp_metadata;"
        "CREATE TABLE IF NOT EXISTS cartridge_warp_metadata.schema_registry"
        ' (target text, "table" text, version integer, definition jsonb, status text)'
    )
    query = "INSERT INTO cartridge_warp_metadata.schema_registry VALUES (%s, %s, %s, %s, 'applied')"
    old = TablePlan(plan.table, "gone", plan.key_kind)
    for version, each in ((2, plan), (1, old)):
        await connection.execute(query, (target, plan.table, version, json.dumps(each.to_json())))


@pytest.fixture
async def both(mongo, postgres):
    """Both servers, with one unit that copies the test's own database."""
    from bson.raw_bson import RawBSONDocument

    async with (
        AsyncMongoClient(mongo.uri, document_class=RawBSONDocument) as raw,
        AsyncMongoClient(mongo.uri) as client,
    ):

        async def raw_documents(table: str) -> list[bytes]:
            return [bytes(each.raw) async for each in raw[mongo.name][table].find({})]

        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
            unit = UnitSettings.of(SchemaConfig(name=mongo.name, table_blacklist=("tmp_*",)))
            yield client, connection, unit, raw_documents


async def test_every_odd_value_compares_equal(both):
    """All sample documents, every type and name, equal the rows that the encoder makes of them."""
    client, connection, unit, raw_documents = both
    files = [DataFile(unit.database, each.collection, each.path) for each in find_data(DATA)]
    await load_data(client, files)
    assert {value_kind(1), value_kind("1")} == {"int", "string"}
    for file in files:
        documents = await raw_documents(file.collection)
        plan = plan_for(file.collection, documents, KeyKind.hash)
        await write(connection, unit.target, plan, documents)
    results = await check(client, connection, [unit])
    assert [result for result in results if not result.equal] == []
    assert {result.table for result in results} == {file.collection for file in files}
    assert sum(result.documents for result in results) > 2000


async def test_numbers_are_counted_without_reading_content(both):
    """Counting needs no rows, sees missing tables and leaves unwanted collections out."""
    client, connection, unit, raw_documents = both
    database = client[unit.database]
    await database["things"].insert_many([{"_id": n} for n in range(3)])
    await database["other"].insert_one({"_id": 1})
    await database["tmp_x"].insert_one({"_id": 1})
    assert [(each.table, each.documents, each.rows) for each in await count(client, connection, [unit])] == [
        ("other", 1, 0),
        ("things", 3, 0),
    ]
    documents = await raw_documents("things")
    await write(connection, unit.target, plan_for("things", documents, KeyKind.int), documents)
    results = await count(client, connection, [unit])
    assert [(each.table, each.rows, each.equal) for each in results] == [("other", 0, False), ("things", 3, True)]


@pytest.mark.parametrize(
    ("change", "what", "differing"),
    [
        ("UPDATE {} SET a = 'changed' WHERE _id = 1", "a", 1),
        ("UPDATE {} SET b = b + 1", "b", 3),
        ("UPDATE {} SET a = NULL, b = NULL WHERE _id = 2", "a, b", 1),
        ("UPDATE {} SET _warp_extra = '{{\"c\": 1}}' WHERE _id = 2", "c", 1),
        ("DELETE FROM {} WHERE _id = 0", "no row for this document", 1),
        ("UPDATE {} SET is_deleted = true WHERE _id = 0", "no row for this document", 1),
        ("INSERT INTO {} (_id, _warp_version) VALUES (9, 1)", "no document for this row", 1),
    ],
)
async def test_whatever_differs_is_found(both, change, what, differing):
    """A changed, emptied, missing, marked or additional row is reported with its key and fields."""
    client, connection, unit, raw_documents = both
    await client[unit.database]["things"].insert_many([{"_id": n, "a": f"x{n}", "b": n} for n in range(3)])
    documents = await raw_documents("things")
    plan = plan_for("things", documents, KeyKind.int, soft_column="is_deleted")
    await write(connection, unit.target, plan, documents)
    assert [each.equal for each in await check(client, connection, [unit])] == [True]
    await connection.execute(sql.SQL(change).format(sql.Identifier(unit.target, "things")))
    (result,) = await check(client, connection, [unit])
    assert not result.equal
    assert result.differing == differing
    assert result.differences[0].what == what


async def test_rows_of_a_dropped_collection_are_differences(both):
    """A table whose collection is gone must be empty."""
    client, connection, unit, raw_documents = both
    await client[unit.database]["things"].insert_one({"_id": 1})
    documents = await raw_documents("things")
    await write(connection, unit.target, plan_for("things", documents, KeyKind.int), documents)
    await client[unit.database].drop_collection("things")
    (result,) = await check(client, connection, [unit])
    assert (result.documents, result.rows, result.equal) == (0, 1, False)


async def test_long_values_are_cut(both):
    """A difference in a large value does not fill the screen."""
    client, connection, unit, raw_documents = both
    await client[unit.database]["things"].insert_one({"_id": 1, "a": "x" * 5000})
    documents = await raw_documents("things")
    await write(connection, unit.target, plan_for("things", documents, KeyKind.int), documents)
    await connection.execute(sql.SQL("UPDATE {} SET a = ''").format(sql.Identifier(unit.target, "things")))
    (result,) = await check(client, connection, [unit])
    assert len(result.differences[0].source) == 200
