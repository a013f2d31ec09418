"""The whole configuration of a worker."""

from __future__ import annotations

import os
import re
from typing import Any, ClassVar, Literal
from urllib.parse import unquote

from pydantic import Field, model_validator

from cartridge_warp.config import checks
from cartridge_warp.config.endpoints import DestinationConfig, SourceConfig
from cartridge_warp.config.levels import (
    DEFAULTS,
    PLAIN,
    UNIT_SPELLINGS,
    ErrorHandling,
    EvolutionConfig,
    SchemaConfig,
    TableConfig,
    UnitLevel,
    prefixed,
)
from cartridge_warp.config.observing import LoggingConfig, MonitoringConfig
from cartridge_warp.config.problems import ContradictionError
from cartridge_warp.config.spellings import Spelling, Spellings, same, short_for
from cartridge_warp.config.units import UnitSettings, resolve
from cartridge_warp.config.values import Names, masked
from cartridge_warp.errors import ConfigError

__all__ = ["WarpConfig"]


def _log_format(value: Any) -> Any:
    """`structured_logging: true` is a format by another name."""
    return {"true": "json", "false": "console"}.get(str(value).lower(), value)


_PERFORMANCE: dict[str, Spelling] = {
    **{name: same(name) for name in (*PLAIN, "max_transaction_bytes")},
    "batch_size": short_for("stream_batch_size", "write_batch_size"),
    "polling_interval_seconds": same("polling_interval"),
    "connection_timeout": same("source.connection_timeout"),
    "read_timeout": same("source.read_timeout"),
}
_MONITORING: dict[str, Spelling] = {
    "log_level": same("logging.level"),
    "structured_logging": same("logging.format", _log_format),
}


class WarpConfig(UnitLevel):
    """Everything that a worker is told. Its own settings of tables and schemas hold for all of them."""

    mode: Literal["single", "multi"] = "single"
    """`single` runs one schema, `multi` all of them in one process."""

    single_schema_name: str | None = Field(default=None, min_length=1, max_length=255)
    """Single mode: the schema to run. Not needed with only one; needs no entry in `schemas`."""

    identity: str = Field(default="standalone", min_length=1, max_length=255)
    """Who owns what this worker writes. A worker of another identity refuses to write to the same schema."""

    plugins: Names = ()
    """Python modules to import first: they register connectors."""

    dry_run: bool = False
    """Read and plan, but write nothing."""

    source: SourceConfig = SourceConfig()
    """Where rows come from."""

    destination: DestinationConfig = DestinationConfig()
    """Where rows go to."""

    schemas: tuple[SchemaConfig, ...] = ()
    """The units of replication."""

    monitoring: MonitoringConfig = MonitoringConfig()
    """Metrics and health."""

    logging: LoggingConfig = LoggingConfig()
    """Logs, on standard error."""

    spellings: ClassVar[Spellings] = {
        **UNIT_SPELLINGS,
        **prefixed("global_"),
        "schema": same("single_schema_name"),
        "metadata_schema": same("destination.metadata_schema"),
        "performance": _PERFORMANCE,
        "monitoring": _MONITORING,
    }

    @model_validator(mode="after")
    def _consistent(self) -> WarpConfig:
        if found := list(checks.contradictions(self)):
            raise ContradictionError(found)
        return self

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> WarpConfig:
        """Read a YAML or JSON file, with the environment above it. Raises `ConfigError`."""
        from cartridge_warp.config.load import load_config  # it builds on this class

        return load_config(os.fspath(path), environ=os.environ)

    def units(self) -> tuple[UnitSettings, ...]:
        """What is to be run: in single mode the chosen schema, else all. Raises `ConfigError` when none is
        chosen."""
        if problem := checks.unchosen(self):
            raise ConfigError(f"configuration: {problem}")
        return tuple(self._unit(schema) for schema in self._chosen())

    def warnings(self) -> list[str]:
        """Settings that have no effect, or one that may surprise; a sentence each."""
        problem = checks.unchosen(self)
        units = () if problem else self.units()
        return [*([problem] if problem else []), *checks.warnings(self, units)]

    def masked(self) -> dict[str, Any]:
        """What holds for all, and what each schema overrides, in canonical spelling and without secrets. It
        loads again as a configuration."""
        shown = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        shown["error_handling"] = ErrorHandling.model_validate(shown.get("error_handling", {})).model_dump()
        evolution = EvolutionConfig.model_validate(shown.get("schema_evolution", {}))
        shown["schema_evolution"] = evolution.model_dump()
        if self.destination.batch_size is not None:
            shown.setdefault("write_batch_size", self.destination.batch_size)
        shown = {**DEFAULTS, **shown}
        shown["tables"] = [_overrides(table) for table in self.tables]
        shown["schemas"] = [_overrides(schema) | {"mode": schema.mode} for schema in self.schemas]
        own = [name for name in WarpConfig.model_fields if name not in UnitLevel.model_fields]
        clean: dict[str, Any] = masked("", {name: shown.pop(name) for name in own if name in shown} | shown)
        return clean

    def _chosen(self) -> tuple[SchemaConfig, ...]:
        if self.mode == "multi":
            return self.schemas
        if self.single_schema_name is None:
            return self.schemas[:1]
        named = tuple(schema for schema in self.schemas if schema.name == self.single_schema_name)
        return named or (SchemaConfig(name=self.single_schema_name),)

    def _unit(self, schema: SchemaConfig) -> UnitSettings:
        alone = self.mode == "single" or len(self.schemas) == 1
        return resolve(
            schema,
            self,
            self.source,
            self.destination,
            database=self.source.database or _uri_database(self.source.connection_string),
            target=self.destination.schema_name if alone else None,
            identity=self.identity,
            dry_run=self.dry_run,
        )


def _overrides(level: SchemaConfig | TableConfig) -> dict[str, Any]:
    """Only what was set, the name first: a default that is written out would override the level above."""
    shown = level.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return {"name": level.name, **shown}


def _uri_database(uri: str) -> str | None:
    """The path of a URI. `admin` is where users log in, never data to copy."""
    match = re.match(r"[a-z][a-z0-9+.-]*://[^/?]*/([^?/]+)", uri, re.IGNORECASE)
    name = unquote(match.group(1)) if match else None
    return None if name == "admin" else name
