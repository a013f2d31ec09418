"""The data that flows: the public record types of a connector, and the batches that the core moves.

A *key* is the value of a document's key field (`_id` for MongoDB) as the driver decodes it; a *version* orders
all changes of one source: a signed 64-bit integer, larger is newer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, StrEnum
from typing import Any

__all__ = [
    "KEY_IN_IMAGE",
    "SMALLEST_VERSION",
    "Barrier",
    "Batch",
    "BatchMarker",
    "Bounds",
    "Change",
    "ChangeEvent",
    "ChunkPage",
    "Collection",
    "ColumnDefinition",
    "ColumnType",
    "DatabaseSchema",
    "Document",
    "Marker",
    "Observed",
    "Op",
    "OperationType",
    "Position",
    "Record",
    "SchemaChange",
    "SchemaChangeType",
    "SourceIdentity",
    "Stamp",
    "TableBatch",
    "TableSchema",
]

SMALLEST_VERSION = -(2**63)

KEY_IN_IMAGE: Any = object()
"""Stands for a change's key where only the image holds it; a snapshot need not look it up for each row."""

Document = bytes | Mapping[str, Any]
"""A document: raw BSON as it came, or a mapping of Python values from a connector that has no BSON."""

Position = dict[str, Any]
"""Where a source's stream stands, as JSON. Only the source that made it reads it."""


# -- the public types of a connector ---------------------------------------------------------------------


class OperationType(StrEnum):
    """What happened to a row."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"


class ColumnType(StrEnum):
    """The column types that a source can announce and a destination must know."""

    BIGINT = "bigint"
    DOUBLE = "double"
    NUMERIC = "numeric"
    STRING = "string"
    BOOLEAN = "boolean"
    TIMESTAMP = "timestamp"
    UUID = "uuid"
    BINARY = "binary"
    JSON = "json"


class SchemaChangeType(StrEnum):
    """How a table's structure changed."""

    ADD_TABLE = "add_table"
    ADD_COLUMN = "add_column"
    MODIFY_COLUMN = "modify_column"
    DROP_COLUMN = "drop_column"
    DROP_TABLE = "drop_table"


@dataclass(frozen=True)
class ColumnDefinition:
    """One column of a table."""

    name: str
    type: ColumnType
    nullable: bool = True


@dataclass(frozen=True)
class TableSchema:
    """A table: its columns in order, and the names of those that make up its primary key."""

    name: str
    columns: Sequence[ColumnDefinition] = ()
    primary_keys: Sequence[str] = ()


@dataclass(frozen=True)
class DatabaseSchema:
    """All tables of one schema."""

    name: str
    tables: Sequence[TableSchema] = ()


@dataclass(frozen=True)
class Record:
    """One row with the operation that led to it. `data` is the whole row; empty for a delete."""

    table_name: str
    data: Mapping[str, Any]
    operation: OperationType = OperationType.INSERT
    timestamp: datetime | None = None
    primary_key_values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ChangeEvent:
    """A record with the position to go on from once the record is durable (any JSON value)."""

    record: Record
    position_marker: Any
    schema_name: str


@dataclass(frozen=True)
class SchemaChange:
    """A change of a table's structure. `table` holds the full structure for ADD_TABLE, `column` the column."""

    schema_name: str
    table_name: str
    change_type: SchemaChangeType
    column: ColumnDefinition | None = None
    table: TableSchema | None = None


# -- what the core moves -----------------------------------------------------------------------------------


class Op(Enum):
    """What a change asks of the destination."""

    UPSERT = "upsert"  # `image` is the whole document
    FETCH = "fetch"  # changed, but the event carries no image: read it from the source before writing
    DELETE = "delete"


@dataclass(slots=True)
class Change:
    """One change of one document.

    `version` is the source's own order; the core adds the marker's `version_offset`.
    `image` is the document for UPSERT; for DELETE the last image seen before it in the same batch, or None.
    `at_ms` is the source's wall clock, milliseconds since 1970 (UTC).
    `origin` is opaque to the core: the source's proof of which collection the event speaks of (a UUID), used
    by `complete` to notice that the name means another collection by now.
    """

    op: Op
    key: Any
    version: int
    image: Document | None = None
    at_ms: int | None = None
    origin: bytes | None = None
    operation: OperationType = OperationType.INSERT


@dataclass(slots=True)
class TableBatch:
    """The changes of one table, oldest first; after compaction at most one for each key.

    `key_field` names the field that holds the key; None means that the key is a mapping of several fields.
    `prepared` is whatever the destination's `prepare` attached.
    """

    table: str
    changes: list[Change] = field(default_factory=list)
    key_field: str | None = "_id"
    prepared: Any = None


@dataclass(frozen=True)
class Barrier:
    """Everything in these tables up to `version` is void: a drop, a rename, a dropDatabase, an invalidate.

    `tables` None means every table of the schema. `resnapshot` names tables that now hold other data and must
    be copied online. `kind` is the source's word for it, for logs and status.
    """

    version: int
    kind: str
    tables: tuple[str, ...] | None = None
    resnapshot: tuple[str, ...] = ()


@dataclass(frozen=True)
class BatchMarker:
    """The position behind a batch, the source's wall clock of its last event, and how many events it spans."""

    position: Position
    source_time: datetime | None = None
    events: int = 0


@dataclass(slots=True)
class Batch:
    """What is committed as one destination transaction: the changes of several tables, or one barrier, or
    nothing but a newer position. `created` names collections that came into being in this batch."""

    marker: BatchMarker
    tables: dict[str, TableBatch] = field(default_factory=dict)
    barrier: Barrier | None = None
    created: tuple[str, ...] = ()
    bytes: int = 0

    @property
    def rows(self) -> int:
        """How many changes the batch holds."""
        return sum(len(table.changes) for table in self.tables.values())


@dataclass(frozen=True)
class Marker:
    """A stored position. `seq` is its compare-and-set counter; `version_offset` is added to every version."""

    position: Position
    seq: int
    version_offset: int = 0
    source_time: datetime | None = None


@dataclass(frozen=True)
class Stamp:
    """A moment of the source: its version (without offset), its position to stream from, its wall clock."""

    version: int
    position: Position
    time: datetime


@dataclass(frozen=True)
class SourceIdentity:
    """Which source this is: `cluster` (replica set or cluster id) and the database's name."""

    cluster: str
    database: str


@dataclass(frozen=True)
class Collection:
    """One collection of the source. `reason` says why it cannot be mirrored (a view, ...), else None."""

    name: str
    uuid: str | None = None
    reason: str | None = None
    rows: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Bounds:
    """A range of keys, each end canonical Extended JSON of the key or None for open; upper is exclusive.
    `after` means that the lower end itself is not part of the range."""

    lower: str | None = None
    upper: str | None = None
    after: bool = False


@dataclass(frozen=True)
class ChunkPage:
    """Documents of a range in key order, bounded by rows and bytes, and the range that is left (or None).

    `version` is for a source that cannot read as of a stamp: the version that the documents are as of.
    `keys` go with documents that do not hold their key in `key_field`.
    """

    documents: Sequence[Document]
    rest: Bounds | None
    bytes: int = 0
    version: int | None = None
    keys: Sequence[Any] | None = None
    key_field: str | None = "_id"


@dataclass(slots=True)
class Observed:
    """What a batch's documents showed of one table that its plan does not hold yet.

    `fields` maps each unplanned field to how often each kind of value was seen; `keys` holds the kinds of the
    keys; `misfits` counts per planned field the values that its column could not take.
    """

    fields: dict[str, dict[str, int]] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    misfits: dict[str, int] = field(default_factory=dict)
