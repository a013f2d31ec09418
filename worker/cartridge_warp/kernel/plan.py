"""How a collection's documents become a table's columns: plain data, without a database or a driver.

A plan is made by the core, stored as JSON in the schema registry, read by the encoder and by the destination.
Names in it are final: they are never derived again from a field's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Final, NamedTuple

from cartridge_warp.kernel.names import column_name, relation_name

__all__ = [
    "EXTRA_COLUMN", "KEY_COLUMN", "KEY_TYPES", "PG_TYPES", "VERSION_COLUMN", "ColumnKind", "ColumnPlan",
    "KeyKind", "PgType", "TablePlan", "column_name", "copy_columns", "decide_kind", "key_definition",
    "relation_name",
]  # fmt: skip

KEY_COLUMN: Final = "_warp_key"
VERSION_COLUMN: Final = "_warp_version"
EXTRA_COLUMN: Final = "_warp_extra"


class ColumnKind(StrEnum):
    """What a column holds. `objectid` is text of 24 hexadecimal digits, `any_uuid` also shows 16 bytes of the legacy
    binary subtype 3, `json` can hold any value."""

    bigint = "bigint"
    double = "double"
    numeric = "numeric"
    string = "string"
    objectid = "objectid"
    boolean = "boolean"
    timestamp = "timestamp"
    uuid = "uuid"
    any_uuid = "any_uuid"
    bytes = "bytes"
    json = "json"


class KeyKind(StrEnum):
    """What the primary key holds: the one type of all keys, or `hash` (32 bytes in `_warp_key`) for any."""

    objectid = "objectid"
    int = "int"
    string = "string"
    uuid = "uuid"
    date = "date"
    hash = "hash"


class PgType(NamedTuple):
    """A PostgreSQL type: its SQL name, its OID, the OID of its array type (fixed for built-in types)."""

    sql: str
    oid: int
    array_oid: int


_BIGINT = PgType("bigint", 20, 1016)
_TEXT = PgType("text", 25, 1009)
_BYTEA = PgType("bytea", 17, 1001)
_TIMESTAMPTZ = PgType("timestamptz", 1184, 1185)
_UUID = PgType("uuid", 2950, 2951)
_JSONB = PgType("jsonb", 3802, 3807)

PG_TYPES: Final[Mapping[ColumnKind, PgType]] = {
    ColumnKind.bigint: _BIGINT,
    ColumnKind.double: PgType("double precision", 701, 1022),
    ColumnKind.numeric: PgType("numeric", 1700, 1231),
    ColumnKind.string: _TEXT,
    ColumnKind.objectid: _TEXT,
    ColumnKind.boolean: PgType("boolean", 16, 1000),
    ColumnKind.timestamp: _TIMESTAMPTZ,
    ColumnKind.uuid: _UUID,
    ColumnKind.any_uuid: _UUID,
    ColumnKind.bytes: _BYTEA,
    ColumnKind.json: _JSONB,
}

KEY_TYPES: Final[Mapping[KeyKind, PgType]] = {
    KeyKind.objectid: _TEXT,
    KeyKind.int: _BIGINT,
    KeyKind.string: _TEXT,
    KeyKind.uuid: _UUID,
    KeyKind.date: _TIMESTAMPTZ,
    KeyKind.hash: _BYTEA,
}


def key_definition(kind: KeyKind) -> str:
    """The key column's type for CREATE TABLE. "C" orders text byte by byte, as MongoDB does, and is fast."""
    sql = KEY_TYPES[kind].sql
    return f'{sql} COLLATE "C"' if sql == "text" else sql


@dataclass(frozen=True)
class ColumnPlan:
    """One data column: the document's field, the column's name, and what the column holds."""

    field: str
    column: str
    kind: ColumnKind


@dataclass(frozen=True)
class TablePlan:
    """One table. `columns` are the data columns; the key field is among them only when `key_kind` is hash.

    `key_field` None means that the key is a mapping of several fields, which the caller hands over.
    `fills_key`: the key is native, but `_warp_key` is written too, because a change of the key is under way.
    `soft_column` is the boolean of soft deletion, None for hard. `version` is the schema registry's.
    """

    table: str
    relation: str
    key_kind: KeyKind
    key_field: str | None = "_id"
    columns: tuple[ColumnPlan, ...] = ()
    fills_key: bool = False
    soft_column: str | None = None
    version: int = 0

    @property
    def native(self) -> bool:
        """True when the key field's own column is the primary key."""
        return self.key_kind is not KeyKind.hash

    @cached_property
    def key_column(self) -> str:
        """The name of the primary key's column."""
        return column_name(self.key_field or "_id", ()) if self.native else KEY_COLUMN

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Field -> position in `columns`."""
        return {column.field: position for position, column in enumerate(self.columns)}

    @cached_property
    def known(self) -> frozenset[str]:
        """All fields that have a column, the native key field among them."""
        fields = {column.field for column in self.columns}
        return frozenset(fields | {self.key_field} if self.native and self.key_field else fields)

    @cached_property
    def taken(self) -> frozenset[str]:
        """All column names in use, for `column_name`."""
        names = {column.column for column in self.columns} | {self.key_column}
        return frozenset(names | {self.soft_column} if self.soft_column else names)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns back into an equal plan."""
        return {
            "table": self.table,
            "relation": self.relation,
            "key_kind": self.key_kind.value,
            "key_field": self.key_field,
            "columns": [[column.field, column.column, column.kind.value] for column in self.columns],
            "fills_key": self.fills_key,
            "soft_column": self.soft_column,
            "version": self.version,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TablePlan:
        """The inverse of `to_json`."""
        columns = tuple(ColumnPlan(field, name, ColumnKind(kind)) for field, name, kind in data["columns"])
        return cls(**{**data, "key_kind": KeyKind(data["key_kind"]), "columns": columns})


def copy_columns(plan: TablePlan) -> list[tuple[str, PgType]]:
    """The destination columns, in the order in which the encoder produces their fields.

    Key (and `_warp_key` while the key changes), data columns, `_warp_version`, `_warp_extra`.
    """
    head = [(plan.key_column, KEY_TYPES[plan.key_kind])]
    if plan.fills_key and plan.native:
        head.append((KEY_COLUMN, _BYTEA))
    data = [(column.column, PG_TYPES[column.kind]) for column in plan.columns]
    return [*head, *data, (VERSION_COLUMN, _BIGINT), (EXTRA_COLUMN, _JSONB)]


# The order is the tie-break: of equally frequent kinds the first wins.
_COLUMN_OF: Final[Mapping[str, ColumnKind]] = {
    "string": ColumnKind.string,
    "numeric": ColumnKind.numeric,
    "decimal": ColumnKind.numeric,
    "double": ColumnKind.double,
    "int": ColumnKind.bigint,
    "date": ColumnKind.timestamp,
    "objectid": ColumnKind.objectid,
    "uuid": ColumnKind.uuid,
    "any_uuid": ColumnKind.any_uuid,
    "binary": ColumnKind.bytes,
    "boolean": ColumnKind.boolean,
}
_ORDER: Final = list(_COLUMN_OF)
_NUMBERS: Final = {"int", "double", "decimal"}


def decide_kind(counts: Mapping[str, int], *, old_uuids: bool = False) -> ColumnKind:
    """The column for a field of which so many values of each kind (`bson.value_kind`) were seen.

    Numbers of several types share one numeric column, which is exact for all of them. Structured values need
    json, which can hold everything beside them. Other mixes take the most frequent kind; the rest goes to
    `_warp_extra`. With `old_uuids` 16 bytes of binary subtype 3 are UUIDs too. Nulls do not count; a field of
    nothing but nulls gets json.
    """
    seen = {kind: count for kind, count in counts.items() if kind != "null" and count > 0}
    if old_uuids and seen.keys() & {"uuid", "old_uuid"}:
        seen["any_uuid"] = seen.pop("uuid", 0) + seen.pop("old_uuid", 0)
    elif "old_uuid" in seen:
        seen["binary"] = seen.pop("old_uuid") + seen.get("binary", 0)
    if not seen or not seen.keys() <= _COLUMN_OF.keys():
        return ColumnKind.json
    if len(_NUMBERS & seen.keys()) > 1:
        seen["numeric"] = sum(seen.pop(kind, 0) for kind in _NUMBERS)
    return _COLUMN_OF[min(seen, key=lambda kind: (-seen[kind], _ORDER.index(kind)))]
