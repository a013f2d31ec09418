"""Settings that cascade: what is said for a table goes before its schema, and that before the whole."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from cartridge_warp.config.base import Model
from cartridge_warp.config.endpoints import ChangeDetection
from cartridge_warp.config.schedule import Schedule
from cartridge_warp.config.spellings import Spelling, Spellings, same, short_for
from cartridge_warp.config.values import Bytes, Columns, Count, Identifier, Names, Rows, Seconds, Streams, mib

__all__ = [
    "DEFAULTS",
    "PLAIN",
    "UNIT_SPELLINGS",
    "ErrorHandling",
    "EvolutionConfig",
    "SchemaConfig",
    "TableConfig",
    "TableLevel",
    "UnitLevel",
    "prefixed",
]

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "stream_batch_size": 1000,
        "full_load_batch_size": 10000,
        "write_batch_size": 500,
        "polling_interval": 5.0,
        "max_parallel_streams": 1,
        "max_batch_bytes": mib(8),
        "max_transaction_bytes": mib(32),
        "deletion_strategy": "hard",
        "soft_delete_column": "is_deleted",
        "full_load_enabled": True,
    }
)
"""What holds when no level says anything."""


PLAIN = (
    "stream_batch_size",
    "full_load_batch_size",
    "write_batch_size",
    "polling_interval",
    "max_parallel_streams",
    "max_batch_bytes",
    "deletion_strategy",
    "soft_delete_column",
    "full_load_enabled",
)
"""The settings of `TableLevel` that are one plain value each."""

TABLE_SPELLINGS: Spellings = {
    "batch_size": short_for("stream_batch_size", "write_batch_size"),
    "polling_interval_seconds": same("polling_interval"),
    "evolution_strategy": same("schema_evolution.strategy"),
}
UNIT_SPELLINGS: Spellings = {
    **TABLE_SPELLINGS,
    "include": same("table_whitelist"),
    "exclude": same("table_blacklist"),
}
FILTERS = ("table_whitelist", "table_blacklist")


def prefixed(prefix: str) -> dict[str, Spelling]:
    """The spellings of the settings of a level with a word before them, as in `default_batch_size`."""
    plain = {f"{prefix}{name}": same(name) for name in (*PLAIN, *FILTERS, "max_transaction_bytes")}
    return plain | {
        f"{prefix}batch_size": short_for("stream_batch_size", "write_batch_size"),
        f"{prefix}polling_interval_seconds": same("polling_interval"),
        f"{prefix}evolution_strategy": same("schema_evolution.strategy"),
    }


class ErrorHandling(Model):
    """What is done about errors. Outages are not among them: they are retried for ever."""

    max_retries: Count = Field(default=3, le=1000)
    """How often a row, lock or schema error is tried again."""

    backoff_factor: float = Field(default=2.0, ge=1, le=100, allow_inf_nan=False)
    """Factor by which the pause grows from one attempt to the next."""

    max_backoff_seconds: Seconds = 300.0
    """Longest pause between two attempts."""

    dead_letter_queue: bool = True
    """A row that cannot be written goes to the dead-letter table. When false it stops its schema instead."""

    ignore_type_conversion_errors: bool = True
    """A value that does not fit its column goes to `_warp_extra`. When false its row is a dead letter."""

    log_conversion_warnings: bool = True
    """Log each value that does not fit its column. Counted in the metrics in either case."""


class EvolutionConfig(Model):
    """How far a table's structure follows its documents."""

    strategy: Literal["strict", "conservative", "permissive", "aggressive"] = "conservative"
    """`strict` stops at a risky change, `conservative` records it as pending, `permissive` applies it to
    small tables, `aggressive` always."""

    max_rewrite_rows: Count = 1_000_000
    """`permissive`: tables with more rows than this are not rewritten."""

    max_columns: Columns = 300
    """Most typed columns of a table; further fields stay in `_warp_extra`."""


class TableLevel(Model):
    """Settings of all three levels."""

    stream_batch_size: Rows | None = None
    """Changes of one table that make up a batch; a batch ends earlier when nothing more is ready."""

    full_load_batch_size: Rows | None = None
    """Rows of one part of the first copy."""

    write_batch_size: Rows | None = None
    """Rows of one table that make a batch be written; under load batches grow up to `max_batch_bytes`."""

    polling_interval: Seconds | None = None
    """Pause between two reads of a source that has to be asked. No effect on change streams: pushed."""

    max_parallel_streams: Streams | None = None
    """Parts of one table that are copied at once; never more than the pool has connections."""

    max_batch_bytes: Bytes | None = None
    """Most bytes of a batch; a larger document travels alone."""

    deletion_strategy: Literal["hard", "soft"] | None = None
    """`hard` deletes the row, `soft` marks it as deleted."""

    soft_delete_column: Identifier | None = None
    """Column that marks a deleted row."""

    full_load_enabled: bool | None = None
    """Copy what exists already. When false a table starts with the changes from now on."""

    schema_evolution: EvolutionConfig | None = None
    """How far a table's structure follows its documents."""

    change_detection: ChangeDetection | None = None
    """How changes are found."""

    spellings: ClassVar[Spellings] = TABLE_SPELLINGS


class TableConfig(TableLevel):
    """What differs for one table, or for all tables that match a pattern."""

    name: str = Field(min_length=1, max_length=255)
    """Name of the collection, or a pattern with `*`, `?`, `[...]`. Exact names go before patterns."""


class UnitLevel(TableLevel):
    """Settings of a schema and of the whole, not of a table."""

    max_transaction_bytes: Bytes | None = None
    """A transaction of the source up to this size is written as one; a larger one is cut and logged."""

    error_handling: ErrorHandling | None = None
    """What is done about errors."""

    table_whitelist: Names = ()
    """Names or patterns of the tables to copy; when set it decides alone. Global AND schema must allow."""

    table_blacklist: Names = ()
    """Names or patterns of the tables not to copy."""

    tables: tuple[TableConfig, ...] = ()
    """What differs for single tables. Never a filter."""

    spellings: ClassVar[Spellings] = UNIT_SPELLINGS


def _schedule(value: str) -> str:
    Schedule.parse(value)
    return value


class SchemaConfig(UnitLevel):
    """A unit of replication: one source database into one destination schema."""

    name: str = Field(min_length=1, max_length=255)
    """Name of the unit, in `--schema`, logs and metrics."""

    database: str | None = Field(default=None, min_length=1, max_length=255)
    """Source database. Else `source.database`, else the path of the URI, else the name."""

    target_schema: Identifier | None = None
    """Destination schema. Else `destination.schema` where that applies, else the name."""

    mode: Literal["stream", "batch", "snapshot"] = "stream"
    """`stream` follows the changes, `batch` fetches them now and then, `snapshot` copies once."""

    schedule: Annotated[str, AfterValidator(_schedule), Field(max_length=255)] | None = None
    """When a batch runs, as five cron fields (UTC). Without it a batch runs every `polling_interval`."""

    text_key: ClassVar[str | None] = "name"
    spellings: ClassVar[Spellings] = {**UNIT_SPELLINGS, **prefixed("default_")}
