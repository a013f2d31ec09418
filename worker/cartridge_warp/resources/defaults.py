"""The worker's settings as they stand in custom resources: the same classes, with camelCase keys."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from cartridge_warp.config.endpoints import ChangeDetection, MongoDBOptions, PostgreSQLOptions
from cartridge_warp.config.levels import ErrorHandling, EvolutionConfig, TableLevel
from cartridge_warp.config.spellings import Spellings
from cartridge_warp.config.values import Bytes
from cartridge_warp.resources.base import CAMEL

__all__ = [
    "Defaults",
    "MongoDBSpec",
    "PostgreSQLSpec",
    "TableDefaults",
    "TableName",
    "TableNames",
    "TableOverride",
]

TableName = Annotated[str, Field(min_length=1, max_length=255)]
TableNames = Annotated[tuple[TableName, ...], Field(max_length=500)]


class ChangeDetectionSpec(ChangeDetection):
    """How changes are found."""

    model_config = CAMEL


class EvolutionSpec(EvolutionConfig):
    """How far a table's structure follows its documents."""

    model_config = CAMEL


class ErrorHandlingSpec(ErrorHandling):
    """What is done about errors."""

    model_config = CAMEL


class MongoDBSpec(MongoDBOptions):
    """Options of a MongoDB source."""

    model_config = CAMEL


class PostgreSQLSpec(PostgreSQLOptions):
    """Options of a PostgreSQL destination."""

    model_config = CAMEL


class TableDefaults(TableLevel):
    """Every setting that a table can override."""

    model_config = CAMEL
    spellings: ClassVar[Spellings] = {}

    schema_evolution: EvolutionSpec | None = None
    """How far a table's structure follows its documents."""

    change_detection: ChangeDetectionSpec | None = None
    """How changes are found."""


class Defaults(TableDefaults):
    """Every setting that a schema or a table can override."""

    max_transaction_bytes: Bytes | None = None
    """A transaction of the source up to this size is written as one; a larger one is cut and logged."""

    error_handling: ErrorHandlingSpec | None = None
    """What is done about errors."""


class TableOverride(TableDefaults):
    """What differs for one table, or for all tables that match a pattern."""

    name: TableName
    """Name of the collection, or a pattern with `*`, `?`, `[...]`. Exact names go before patterns."""
