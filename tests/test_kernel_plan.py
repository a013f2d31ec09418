"""Plans: kinds of columns, names, and their form as JSON."""

from __future__ import annotations

import json
import random

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from cartridge_warp.kernel import (
    ColumnKind,
    KeyKind,
    TablePlan,
    column_name,
    copy_columns,
    decide_kind,
    relation_name,
)
from warp_testing.kernel_rows import plan_of

ODD_NAMES = [
    "", "a" * 63, "a" * 64, "a" * 62 + "é", "é" * 40, "😀" * 16, "_warp_version", "_WARP_x", "_warp_", "___warp_",
    "is_deleted", "Deleted_At", "ctid", "XMIN", "oid", "a.b", "a b", 'q"uote', "per%cent", "Name", "name", "NAME",
    "ﬁeld", "a\nb", "select", "$field", "ẞ", "ß",
]  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "kind"),
    [
        ({"int": 3}, ColumnKind.bigint),
        ({"double": 1}, ColumnKind.double),
        ({"decimal": 1}, ColumnKind.numeric),
        ({"int": 1, "double": 1}, ColumnKind.numeric),
        ({"int": 9, "double": 1, "decimal": 1}, ColumnKind.numeric),
        ({"string": 2, "int": 1, "double": 1}, ColumnKind.string),
        ({"string": 2, "int": 2, "double": 1}, ColumnKind.numeric),
        ({"string": 100, "document": 1}, ColumnKind.json),
        ({"string": 100, "special": 1}, ColumnKind.json),
        ({"array": 1}, ColumnKind.json),
        ({"date": 1, "null": 50}, ColumnKind.timestamp),
        ({"objectid": 2, "uuid": 1}, ColumnKind.objectid),
        ({"boolean": 1}, ColumnKind.boolean),
        ({"binary": 1}, ColumnKind.bytes),
        ({"uuid": 1}, ColumnKind.uuid),
        ({"null": 3}, ColumnKind.json),
        ({}, ColumnKind.json),
    ],
)
def test_decide_kind(counts: dict[str, int], kind: ColumnKind) -> None:
    """The column's kind follows from the kinds of values seen."""
    assert decide_kind(counts) is kind


def test_decide_kind_ignores_the_order_of_observation() -> None:
    """A tie is decided the same way, whichever kind was seen first."""
    assert decide_kind({"boolean": 1, "string": 1}) is decide_kind({"string": 1, "boolean": 1})


def test_plan_survives_json() -> None:
    """A plan stored as JSON comes back equal, with its lookups."""
    plan = plan_of({"a": ColumnKind.json, "B": ColumnKind.bigint}, KeyKind.date, fills_key=True, version=7)
    again = TablePlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert again.index == {"a": 0, "B": 1}
    assert again.known == {"a", "B", "_id"}


def test_copy_columns_order() -> None:
    """Key, filled key, data, version, extra: in this order."""
    native = plan_of({"a": ColumnKind.json}, KeyKind.objectid, fills_key=True)
    names = [name for name, _ in copy_columns(native)]
    assert names == ["_id", "_warp_key", "a", "_warp_version", "_warp_extra"]
    hashed = plan_of({"_id": ColumnKind.json})
    assert hashed.known == {"_id"}
    assert copy_columns(hashed)[0][1].sql == "bytea"


def _acceptable(name: str) -> None:
    assert 1 <= len(name.encode()) <= 63
    assert "\0" not in name
    assert not name.casefold().startswith("_warp_")


def test_postgres_takes_every_name(postgres: str) -> None:
    """A table with a column for each odd name can be made, and each column is found by its name."""
    taken: set[str] = set()
    for field in [*ODD_NAMES, "nul\0here", "lone\ud800"]:
        name = column_name(field, taken)
        _acceptable(name)
        assert name.casefold() not in {other.casefold() for other in taken}
        taken.add(name)
    with psycopg.connect(postgres) as connection:
        columns = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(name)) for name in sorted(taken))
        connection.execute(
            sql.SQL("CREATE TABLE names (_id text, is_deleted boolean, deleted_at text, {})").format(columns)
        )
        rows = connection.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'names'::regclass").fetchall()
    assert taken <= {row[0] for row in rows}


def test_plain_names_stay() -> None:
    """A name that PostgreSQL takes is left alone, whatever its characters."""
    for name in ("name", "Größe", "a.b", "select", "a" * 63, "x y"):
        assert column_name(name, ()) == name


def test_collisions_do_not_depend_on_order() -> None:
    """The name given to the second of two colliding fields depends on that field alone."""
    assert column_name("Name", {"name"}) == column_name("Name", {"NAME", "other"})
    assert column_name("Name", {"x"}) == "Name"


@given(st.lists(st.text(max_size=70), max_size=30))
def test_any_names_are_distinct_and_acceptable(fields: list[str]) -> None:
    """Any list of fields gives acceptable names that differ from each other, ignoring case."""
    random.Random(0).shuffle(fields)
    taken: list[str] = []
    for field in fields:
        taken.append(column_name(field, taken))
        _acceptable(taken[-1])
    assert len({name.casefold() for name in taken}) == len(fields)


def test_relation_names() -> None:
    """Collections have names by the same rules."""
    assert relation_name("orders", ()) == "orders"
    assert relation_name("", ()).startswith("table_")
    assert relation_name("Orders", {"orders"}) != "Orders"
