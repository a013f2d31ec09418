"""Configuration as the core sees it: the cascade applied, every default filled in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from cartridge_warp.config.endpoints import ChangeDetection, DestinationConfig, SourceConfig
from cartridge_warp.config.levels import (
    DEFAULTS,
    PLAIN,
    ErrorHandling,
    EvolutionConfig,
    SchemaConfig,
    TableConfig,
    TableLevel,
    UnitLevel,
)
from cartridge_warp.config.values import is_glob

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import BaseModel

__all__ = ["TableFilter", "TableSettings", "UnitSettings", "resolve"]

EvolutionStrategy = Literal["strict", "conservative", "permissive", "aggressive"]


@dataclass(frozen=True)
class TableFilter:
    """Names or patterns of one level. The whitelist, when set, decides alone."""

    whitelist: tuple[str, ...] = ()
    blacklist: tuple[str, ...] = ()

    def allows(self, table: str) -> bool:
        """True when this level lets the table through."""
        if self.whitelist:
            return any(fnmatchcase(table, pattern) for pattern in self.whitelist)
        return not any(fnmatchcase(table, pattern) for pattern in self.blacklist)


@dataclass(frozen=True)
class TableSettings:
    """Everything that holds for one table. Durations in seconds."""

    name: str
    stream_batch_size: int
    full_load_batch_size: int
    write_batch_size: int
    polling_interval: float
    max_parallel_streams: int
    max_batch_bytes: int
    deletion_strategy: Literal["hard", "soft"]
    soft_delete_column: str
    full_load_enabled: bool
    evolution_strategy: EvolutionStrategy
    max_rewrite_rows: int
    max_columns: int
    uuid_subtype3: bool
    change_detection: ChangeDetection


@dataclass(frozen=True)
class UnitSettings:
    """Everything that holds for one schema. Durations in seconds.

    `filters` holds the global and the schema's filter: each must allow. `defaults` is what holds for a table
    that nothing is said about; `overrides` are the groups of table settings, the schema's before the global.
    """

    name: str
    database: str
    target: str
    mode: Literal["stream", "batch", "snapshot"]
    schedule: str | None
    metadata_schema: str
    identity: str
    dry_run: bool
    max_batch_bytes: int
    max_transaction_bytes: int
    polling_interval: float
    error_handling: ErrorHandling
    defaults: TableSettings
    filters: tuple[TableFilter, ...] = ()
    overrides: tuple[tuple[TableConfig, ...], ...] = ()
    _tables: dict[str, TableSettings] = field(default_factory=dict, init=False, repr=False, compare=False, hash=False)

    @classmethod
    def of(cls, schema: SchemaConfig) -> UnitSettings:
        """The unit of a schema that stands alone: its database and its target bear its name unless it says
        otherwise, everything else is the default."""
        return resolve(schema, UnitLevel(), SourceConfig(), DestinationConfig())

    def wants(self, table: str) -> bool:
        """True when the global and the schema's filter both let the table through."""
        return all(each.allows(table) for each in self.filters)

    def table(self, name: str) -> TableSettings:
        """What holds for one table. Each setting comes from the first that has it: the schema's entry of that
        exact name, the schema's patterns in their order, the same of the global `tables`, the schema."""
        found = self._tables.get(name)
        if found is None:
            levels = [level for group in self.overrides for level in _matching(group, name)]
            found = self._tables[name] = _override(replace(self.defaults, name=name), levels)
        return found


def resolve(
    schema: SchemaConfig,
    top: UnitLevel,
    source: SourceConfig,
    destination: DestinationConfig,
    *,
    database: str | None = None,
    target: str | None = None,
    identity: str = "standalone",
    dry_run: bool = False,
) -> UnitSettings:
    """Apply the cascade for one schema. `database` and `target` are what the whole configuration has for
    schemas that name none."""
    defaults = _defaults(schema, top, source, destination)
    transaction = _first("max_transaction_bytes", (schema, top))
    return UnitSettings(
        name=schema.name,
        database=schema.database or database or schema.name,
        target=schema.target_schema or target or schema.name,
        mode=schema.mode,
        schedule=schema.schedule,
        metadata_schema=destination.metadata_schema,
        identity=identity,
        dry_run=dry_run,
        max_batch_bytes=defaults.max_batch_bytes,
        # Unless it is set, a raised batch bound raises this one as well.
        max_transaction_bytes=transaction or max(DEFAULTS["max_transaction_bytes"], defaults.max_batch_bytes),
        polling_interval=defaults.polling_interval,
        error_handling=ErrorHandling(**_merged("error_handling", (schema, top))),
        defaults=defaults,
        filters=tuple(TableFilter(level.table_whitelist, level.table_blacklist) for level in (top, schema)),
        overrides=(schema.tables, top.tables),
    )


def _defaults(
    schema: SchemaConfig, top: UnitLevel, source: SourceConfig, destination: DestinationConfig
) -> TableSettings:
    levels = (schema, top)
    values = {name: _first(name, levels) for name in PLAIN}
    if values["write_batch_size"] is None:
        values["write_batch_size"] = destination.batch_size
    values = {name: DEFAULTS[name] if value is None else value for name, value in values.items()}
    evolution = EvolutionConfig(**_merged("schema_evolution", levels))
    detection = _set(source.change_detection) | _merged("change_detection", levels)
    return TableSettings(
        name="",
        evolution_strategy=evolution.strategy,
        max_rewrite_rows=evolution.max_rewrite_rows,
        max_columns=evolution.max_columns,
        uuid_subtype3=source.uuid_subtype3,
        change_detection=ChangeDetection(**detection),
        **values,
    )


def _override(base: TableSettings, levels: Sequence[TableLevel]) -> TableSettings:
    changes: dict[str, Any] = {name: value for name in PLAIN if (value := _first(name, levels)) is not None}
    evolution = _merged("schema_evolution", levels)
    if "strategy" in evolution:
        evolution["evolution_strategy"] = evolution.pop("strategy")
    if detection := _merged("change_detection", levels):
        changes["change_detection"] = base.change_detection.model_copy(update=detection)
    return replace(base, **changes, **evolution)


def _matching(group: Sequence[TableConfig], name: str) -> Iterator[TableConfig]:
    yield from (table for table in group if table.name == name)
    yield from (
        table for table in group if table.name != name and is_glob(table.name) and fnmatchcase(name, table.name)
    )


def _first(name: str, levels: Sequence[TableLevel]) -> Any:
    """The first level's value that is set; levels go from special to general."""
    return next((value for level in levels if (value := getattr(level, name)) is not None), None)


def _merged(name: str, levels: Sequence[TableLevel]) -> dict[str, Any]:
    """A group of settings, field by field: what the special level leaves out comes from the general one."""
    merged: dict[str, Any] = {}
    for level in reversed(levels):
        group: BaseModel | None = getattr(level, name)
        if group is not None:
            merged |= _set(group)
    return merged


def _set(group: BaseModel) -> dict[str, Any]:
    return {name: getattr(group, name) for name in group.model_fields_set}
