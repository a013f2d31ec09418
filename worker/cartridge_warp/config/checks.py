"""Settings that are right each, but not together (errors), and those without effect (warnings)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cartridge_warp.config.levels import SchemaConfig, TableConfig, UnitLevel
from cartridge_warp.config.problems import Path, nearest
from cartridge_warp.config.values import is_glob

if TYPE_CHECKING:
    from cartridge_warp.config.settings import WarpConfig
    from cartridge_warp.config.units import UnitSettings

__all__ = ["contradictions", "unchosen", "warnings"]

Found = Iterator[tuple[Path, str]]

_SCHEMES = {
    "mongodb": (re.compile(r"mongodb(\+srv)?://", re.IGNORECASE), "mongodb:// or mongodb+srv://"),
    "postgresql": (re.compile(r"postgres(ql)?://|\w+\s*=", re.IGNORECASE), "postgresql://"),
}
# A password with a bare / or @: the drivers take parts of it for a host or a database and print them.
_UNESCAPED = re.compile(r"[\w+]+://(?:[^/?#]*@[^/?#]*@|[^/?#@]+/[^?#]*@)")
_MONGODB_INTERNAL = ("admin", "config", "local")
_HEALTH = ("/healthz", "/readyz", "/startupz")
_MONGODB_ONLY = ("replica_set", "auth_source", "read_preference", "id_unique", "uuid_subtype3")


# -- errors ------------------------------------------------------------------------------------------------


def contradictions(config: WarpConfig) -> Found:
    """Everything that makes the configuration impossible to run, with canonical paths."""
    yield from _connections(config)
    yield from _level(config, ())
    if config.monitoring.prometheus.path in _HEALTH:
        path = config.monitoring.prometheus.path
        yield ("monitoring", "prometheus", "path"), f"{path} is taken by the health checks; choose another"
    names: dict[str, int] = {}
    targets: dict[str, int] = {}
    for index, schema in enumerate(config.schemas):
        at: Path = ("schemas", index)
        if schema.name in names:
            yield (*at, "name"), f"{schema.name} is the name of schemas[{names[schema.name]}] as well"
        target = schema.target_schema or schema.name
        if target in targets and schema.name not in names:
            other = config.schemas[targets[target]].name
            yield (
                (*at, "target_schema"),
                f"{target} is the target of schema {other} as well; give each its own",
            )
        names.setdefault(schema.name, index)
        targets.setdefault(target, index)
        yield from _level(schema, at)
        yield from _schema(config, schema, at)


def unchosen(config: WarpConfig) -> str | None:
    """Why it is not clear what to run; None when it is. The command line may still choose, so that a file
    alone is not wrong."""
    if config.mode == "multi":
        return None if config.schemas else "schemas: mode is multi, but no schema is listed"
    chosen = config.single_schema_name
    known = [schema.name for schema in config.schemas]
    if chosen is not None:
        if known and chosen not in known:
            return f"single_schema_name: {chosen} is not among the schemas{nearest(chosen, known)}"
        return None
    if not known:
        return "schemas: no schema is named; use --schema, single_schema_name or a list of schemas"
    if len(known) > 1:
        names = ", ".join(known[:12])
        choice = "choose one with --schema, or set mode: multi"
        return f"mode is single and {len(known)} schemas are listed ({names}); {choice}"
    return None


def _connections(config: WarpConfig) -> Found:
    ends = (("source", config.source, "SOURCE"), ("destination", config.destination, "DESTINATION"))
    for name, end, variable in ends:
        known = _SCHEMES.get(end.type)
        if known is None:
            continue
        path: Path = (name, "connection_string")
        scheme, allowed = known
        if not end.connection_string:
            ways = f"in the file, by CARTRIDGE_WARP_{variable}__CONNECTION_STRING or by --{name}"
            yield path, f"is missing; set it {ways}"
        elif not scheme.match(end.connection_string):
            yield path, f"found another kind of URI; allowed for type {end.type}: {allowed}..."
        elif _UNESCAPED.match(end.connection_string):
            yield path, "has a bare / or @ in front of the host; write them as %2F and %40 in user and password"


def _level(level: UnitLevel, at: Path) -> Found:
    both = set(level.table_whitelist) & set(level.table_blacklist)
    for name in sorted(name for name in both if not is_glob(name)):
        yield (*at, "table_whitelist"), f"{name} is in table_blacklist as well; keep it in one of them"
    seen: set[str] = set()
    for index, table in enumerate(level.tables):
        if table.name in seen:
            yield (*at, "tables", index, "name"), f"{table.name} is listed twice"
        seen.add(table.name)
        yield from _soft_delete(table.soft_delete_column, (*at, "tables", index))
    yield from _soft_delete(level.soft_delete_column, at)
    limit, batch = level.max_transaction_bytes, level.max_batch_bytes
    if limit is not None and batch is not None and limit < batch:
        yield (*at, "max_transaction_bytes"), f"found {limit}; allowed: at least max_batch_bytes ({batch})"


def _soft_delete(column: str | None, at: Path) -> Found:
    if column is not None and (column.startswith("_warp_") or column in ("_id", "deleted_at")):
        yield (*at, "soft_delete_column"), f"{column} is a column of the system; choose another name"


def _schema(config: WarpConfig, schema: SchemaConfig, at: Path) -> Found:
    if schema.schedule is not None and schema.mode != "batch":
        yield (
            (*at, "schedule"),
            f"only a schema of mode batch has a schedule, this one is of mode {schema.mode}",
        )
    target = schema.target_schema or schema.name
    field = "target_schema" if schema.target_schema else "name"
    if target == config.destination.metadata_schema:
        yield (*at, field), f"{target} is the metadata schema; choose another target_schema"
    elif target.startswith("pg_") or target == "information_schema":
        yield (*at, field), f"{target} belongs to PostgreSQL; choose another target_schema"
    elif len(target.encode()) > 63:
        yield (*at, field), "is longer than the 63 bytes of a PostgreSQL name; set target_schema"
    if config.source.type == "mongodb":
        database = schema.database or config.source.database
        if database in _MONGODB_INTERNAL:
            yield (*at, "database"), f"{database} holds MongoDB's own data and cannot be copied"
        yield from _detection(config, schema, at)


def _detection(config: WarpConfig, schema: SchemaConfig, at: Path) -> Found:
    """A strategy that the source cannot follow, checked where it takes effect: per table."""
    from cartridge_warp.config.units import resolve  # units builds on the levels, and settings on both

    unit = resolve(schema, config, config.source, config.destination)
    entries: list[tuple[Path, str]] = [((*at, "change_detection"), "")]
    entries += [((*at, "tables", index, "change_detection"), t.name) for index, t in enumerate(schema.tables)]
    told: set[str] = set()
    for path, table in entries:
        detection = unit.table(table).change_detection
        if detection.strategy == "trigger" and "trigger" not in told:
            told.add("trigger")
            yield (*path, "strategy"), "found trigger; allowed for type mongodb: log, timestamp"
        if schema.mode == "batch" and detection.strategy == "timestamp" and not detection.column:
            yield (
                (*path, "column"),
                "is empty; mode batch with strategy timestamp needs the column to compare",
            )


# -- warnings ----------------------------------------------------------------------------------------------


def warnings(config: WarpConfig, units: Sequence[UnitSettings]) -> Iterator[str]:
    """Settings without effect, and those that may surprise."""
    yield from _source_warnings(config)
    yield from _global_warnings(config)
    if config.source.type == "mongodb":
        yield from _stream_warnings(config)
    for unit in units:
        yield from _unit_warnings(config, unit)


def _source_warnings(config: WarpConfig) -> Iterator[str]:
    for name, end in (("source", config.source), ("destination", config.destination)):
        if end.tls_insecure:
            yield f"{name}.tls_insecure: any certificate is accepted; use it for trials only"
        if end.parameters and end.type in _SCHEMES:
            yield f"{name}.parameters: no effect with type {end.type}"
    if config.source.type != "mongodb":
        for name in sorted(config.source.model_fields_set.intersection(_MONGODB_ONLY)):
            yield f"source.{name}: no effect with type {config.source.type}"


def _global_warnings(config: WarpConfig) -> Iterator[str]:
    if config.mode == "multi":
        if config.single_schema_name is not None:
            yield "single_schema_name: no effect in mode multi"
        if config.destination.schema_name is not None and len(config.schemas) > 1:
            yield "destination.schema: no effect with several schemas in mode multi; use target_schema"
    if not config.logging.sensitive_data_masking:
        yield "logging.sensitive_data_masking: secrets are masked in any case; false has no effect"
    levels: list[tuple[str, UnitLevel]] = [("", config)]
    levels += [(f"schemas[{index}].", schema) for index, schema in enumerate(config.schemas)]
    for prefix, level in levels:
        if level.table_whitelist and level.table_blacklist:
            yield f"{prefix}table_blacklist: no effect beside a whitelist, which decides alone"


def _stream_warnings(config: WarpConfig) -> Iterator[str]:
    """`polling_interval` acts on sources that are asked again and again, which a change stream is not."""
    streams = [index for index, schema in enumerate(config.schemas) if schema.mode == "stream"]
    why = "no effect on a change stream, which is pushed"
    if config.polling_interval is not None and len(streams) == len(config.schemas):
        yield f"polling_interval: {why}"
    for index in streams:
        schema = config.schemas[index]
        entries: list[tuple[str, UnitLevel | TableConfig]] = [(f"schemas[{index}].", schema)]
        entries += [(f"schemas[{index}].tables.{table.name}.", table) for table in schema.tables]
        for prefix, level in entries:
            if level.polling_interval is not None:
                yield f"{prefix}polling_interval: {why}"


def _unit_warnings(config: WarpConfig, unit: UnitSettings) -> Iterator[str]:
    detection = unit.defaults.change_detection
    if unit.mode != "batch" and detection.strategy == "timestamp" and config.source.type == "mongodb":
        yield f"schema {unit.name}: strategy timestamp has no effect in mode {unit.mode}, which uses the log"
    if unit.mode == "snapshot" and not unit.defaults.full_load_enabled:
        yield f"schema {unit.name}: mode snapshot with full_load_enabled: false copies nothing"
    connections = config.destination.pool_size + config.destination.max_overflow
    if unit.defaults.max_parallel_streams > connections:
        yield f"schema {unit.name}: max_parallel_streams is cut to the {connections} connections of the pool"
    exact = [set(each.whitelist) for each in unit.filters if each.whitelist]
    listed = set[str]().union(*exact)
    if listed and not any(is_glob(name) for name in listed) and not any(unit.wants(name) for name in listed):
        yield f"schema {unit.name}: the filters let no table through"
    for table in unit.overrides[0]:
        if not is_glob(table.name) and not unit.wants(table.name):
            yield f"schema {unit.name}: table {table.name} is filtered out; its settings have no effect"
