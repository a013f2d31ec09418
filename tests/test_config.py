"""Configuration: what the documented examples mean, and how settings cascade."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cartridge_warp.config import (
    DestinationConfig,
    SchemaConfig,
    SourceConfig,
    TableConfig,
    UnitSettings,
    WarpConfig,
    load_config,
)
from cartridge_warp.errors import ConfigError

FIXTURES = Path(__file__).parent / "fixtures" / "config"
MINUTES = 60.0


def load(name: str, environ: dict[str, str] | None = None, **overrides: object) -> WarpConfig:
    return load_config(str(FIXTURES / name), environ=environ or {}, overrides=overrides)


def minimal(**settings: object) -> WarpConfig:
    ends = {"source": "mongodb://localhost/app", "destination": "postgresql://localhost/dw"}
    return load_config(None, overrides=ends | settings)


# -- the documented examples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(FIXTURES.iterdir()), ids=lambda path: path.name)
def test_every_example_loads(path):
    """Every example of the users' documents loads, and what is shown of it loads again and means the same."""
    config = WarpConfig.from_file(path)
    shown = config.masked()
    assert "s3cr3t" not in str(shown)
    for end in ("source", "destination"):
        shown[end]["connection_string"] = getattr(config, end).connection_string
    again = load_config(None, overrides=shown)
    for name in [schema.name for schema in config.schemas]:
        chosen = {"mode": "single", "single_schema_name": name}
        assert config.model_copy(update=chosen).units() == again.model_copy(update=chosen).units()


def test_filters_and_parallelism():
    """Global and schema filter must both allow; parallelism is table over schema over global."""
    (unit,) = load("filters-and-parallelism.yaml").units()
    assert (unit.name, unit.database, unit.target, unit.mode) == (
        "catalogue",
        "library",
        "catalogue",
        "stream",
    )
    wanted = [name for name in ("members", "loans", "books", "tmp_import", "other") if unit.wants(name)]
    assert wanted == ["members", "loans", "books"]
    streams = {name: unit.table(name).max_parallel_streams for name in ("loans", "members", "books")}
    assert streams == {"loans": 5, "members": 1, "books": 3}
    loans = unit.table("loans")
    assert (loans.stream_batch_size, loans.write_batch_size, loans.full_load_batch_size) == (
        1000,
        1000,
        10000,
    )


def test_the_command_line_chooses_the_schema():
    """A file of two schemas and no mode is run with `--mode single --schema NAME --source URI`."""
    config = load("stream-and-batch.yaml", mode="single", schema="loans", source="mongodb://localhost/library")
    (unit,) = config.units()
    assert (unit.name, unit.target, unit.database, unit.mode) == ("loans", "loans", "library", "batch")
    assert unit.schedule == "*/15 * * * *"
    assert unit.table("any").stream_batch_size == unit.table("any").write_batch_size == 5000
    assert unit.error_handling.dead_letter_queue is True


def test_multi_mode_runs_all():
    """In multi mode each schema is a unit of its own name; JSON is read by its content."""
    units = load("multi.json").units()
    assert [(unit.name, unit.database, unit.target) for unit in units] == [
        (name, name, name) for name in ("shop", "library", "museum")
    ]


def test_the_full_example():
    """Each setting of the connection flow means what it says there."""
    config = load("full-single.yaml")
    (unit,) = config.units()
    assert (unit.database, unit.target) == ("library_db", "library_copy")
    source, destination = config.source, config.destination
    assert (source.replica_set, source.auth_source, source.ssl_enabled) == ("rs0", "admin", True)
    assert (source.read_preference, source.connection_timeout, source.read_timeout) == (
        "secondaryPreferred", 30, 60,
    )  # fmt: skip
    assert (destination.pool_size, destination.max_overflow, destination.transaction_timeout) == (10, 20, 300)
    assert not unit.wants("tmp_tables")
    books, shelves = unit.table("books"), unit.table("shelves")
    assert (books.stream_batch_size, books.polling_interval, books.full_load_enabled) == (2000, 15, False)
    assert (shelves.stream_batch_size, shelves.write_batch_size) == (1000, 500)
    assert shelves.max_parallel_streams == 3
    assert shelves.change_detection.strategy == "log"
    assert (config.monitoring.prometheus.port, config.monitoring.prometheus.path) == (9464, "/prometheus")
    assert (config.logging.level, config.logging.format) == ("INFO", "json")


def test_the_hierarchy():
    """Table over schema over global, deletes marked softly, logging settings found under monitoring."""
    config = load("hierarchy.yaml")
    (unit,) = config.units()
    assert unit.database == "library"
    members, loans, books = (unit.table(name) for name in ("members", "loans", "books"))
    assert (members.stream_batch_size, members.write_batch_size, members.polling_interval) == (400, 250, 2)
    assert (loans.stream_batch_size, loans.write_batch_size, loans.polling_interval) == (2000, 1000, 10)
    assert (books.stream_batch_size, books.write_batch_size, books.polling_interval) == (1000, 1000, 5)
    assert {table.deletion_strategy for table in (members, loans, books)} == {"soft"}
    assert books.soft_delete_column == "gone"
    assert (config.logging.level, config.logging.format) == ("INFO", "json")
    assert unit.error_handling.max_backoff_seconds == 300


def test_batches_by_a_column():
    """Column, strategy and time zone of change detection reach each table."""
    (unit,) = load("timestamp-batch.yaml").units()
    detection = unit.table("loans").change_detection
    assert (detection.column, detection.strategy, detection.timezone) == ("last_modified", "timestamp", "UTC")


def test_built_in_python():
    """A configuration built in Python, with lists and objects, is the same as one from a file."""
    config = WarpConfig(
        mode="single",
        single_schema_name="library",
        source=SourceConfig(type="mongodb", connection_string="mongodb://localhost:27017"),
        destination=DestinationConfig(type="postgresql", connection_string="postgresql://localhost/dw"),
        schemas=[SchemaConfig(name="library", tables=[TableConfig(name="members", stream_batch_size=500)])],
        metadata_schema="meta",
    )
    (unit,) = config.units()
    assert unit.table("members").stream_batch_size == 500
    assert unit.metadata_schema == "meta"


# -- defaults, cascade, filters ------------------------------------------------------------------------------


def test_defaults():
    """Without any setting the documented defaults hold."""
    unit = UnitSettings.of(SchemaConfig(name="app"))
    table = unit.table("any")
    assert (unit.database, unit.target, unit.identity, unit.dry_run) == ("app", "app", "standalone", False)
    assert (table.stream_batch_size, table.full_load_batch_size, table.write_batch_size) == (1000, 10000, 500)
    assert (table.polling_interval, table.max_parallel_streams) == (5.0, 1)
    assert (table.deletion_strategy, table.soft_delete_column) == ("hard", "is_deleted")
    assert (table.evolution_strategy, table.max_columns) == ("conservative", 300)
    assert (unit.max_batch_bytes, unit.max_transaction_bytes) == (8 * 2**20, 32 * 2**20)
    assert table.change_detection.strategy == "log"
    assert unit.table("any") is table


@pytest.mark.parametrize(
    ("uri", "source", "schema", "expected"),
    [
        ("mongodb://h/uri", {"database": "src"}, {"database": "own"}, "own"),
        ("mongodb://h/uri", {"database": "src"}, {}, "src"),
        ("mongodb+srv://u:p%2F@h/uri?tls=true", {}, {}, "uri"),
        ("mongodb://h,i:1/?replicaSet=a", {}, {}, "name"),
        ("mongodb://h/admin", {}, {}, "name"),
        ("mongodb://h", {}, {}, "name"),
    ],
)
def test_where_the_database_comes_from(uri, source, schema, expected):
    """Database: the schema's, else the source's, else the URI's path (never `admin`), else the name."""
    config = minimal(source={"connection_string": uri, **source}, schemas=[{"name": "name", **schema}])
    assert config.units()[0].database == expected


def test_where_the_target_comes_from():
    """Target: the schema's, else the destination's for a lone schema, else the name."""
    alone = minimal(destination={"connection_string": "postgresql://h/d", "schema": "dest"}, schemas=["a"])
    assert alone.units()[0].target == "dest"
    pair = alone.model_copy(update={"mode": "multi", "schemas": (SchemaConfig(name="a"), SchemaConfig(name="b"))})
    assert [unit.target for unit in pair.units()] == ["a", "b"]
    assert any("destination.schema" in warning for warning in pair.warnings())
    own = minimal(schemas=[{"name": "a", "target_schema": "own"}])
    assert own.units()[0].target == "own"


def test_exact_names_go_before_patterns():
    """A table takes each setting from its exact entry, then from patterns in their order, then from above."""
    unit = UnitSettings.of(
        SchemaConfig(
            name="app",
            write_batch_size=7,
            tables=[
                {"name": "ord*", "stream_batch_size": 1, "max_parallel_streams": 2},
                {"name": "*", "stream_batch_size": 3, "evolution_strategy": "strict"},
                {"name": "orders", "stream_batch_size": 5, "schema_evolution": {"max_columns": 9}},
            ],
        )
    )
    orders, order2, other = (unit.table(name) for name in ("orders", "order2", "x"))
    assert (orders.stream_batch_size, orders.max_parallel_streams, orders.write_batch_size) == (5, 2, 7)
    assert (orders.evolution_strategy, orders.max_columns) == ("strict", 9)
    assert (order2.stream_batch_size, other.stream_batch_size) == (1, 3)


def test_a_whitelist_decides_alone():
    """With a whitelist the blacklist of the same level is not asked; patterns match, case counts."""
    unit = UnitSettings.of(SchemaConfig(name="a", include=["o*"], exclude=["orders", "x?"]))
    assert unit.wants("orders")
    assert not unit.wants("Orders")
    unit = UnitSettings.of(SchemaConfig(name="a", tables={"exclude": ["x?"], "include": {"batch_size": 5}}))
    assert unit.wants("orders")
    assert not unit.wants("x1")
    assert unit.table("include").stream_batch_size == 5


def test_groups_are_merged_setting_by_setting():
    """A schema that changes one setting of a group keeps the global rest of it."""
    config = minimal(
        error_handling={"max_retries": 9, "dead_letter_queue": False},
        schemas=[{"name": "a", "error_handling": {"max_retries": 1}}],
    )
    handling = config.units()[0].error_handling
    assert (handling.max_retries, handling.dead_letter_queue, handling.backoff_factor) == (1, False, 2.0)


def test_the_destination_has_the_last_word_on_batches():
    """`destination.batch_size` holds only where no level says a write batch size."""
    end = {"connection_string": "postgresql://h/d", "batch_size": 77}
    assert minimal(destination=end, schemas=["a"]).units()[0].table("t").write_batch_size == 77
    config = minimal(destination=end, schemas=["a"], write_batch_size=5)
    assert config.units()[0].table("t").write_batch_size == 5


def test_a_raised_batch_bound_raises_the_transaction_bound():
    """Unless it is set, the bound of a source transaction is never below that of a batch."""
    unit = minimal(schemas=["a"], max_batch_bytes="64MiB").units()[0]
    assert unit.max_transaction_bytes == unit.max_batch_bytes == 64 * 2**20


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(5, 5), ("5", 5), ("0.5", 0.5), ("5s", 5), ("500ms", 0.5), ("2m", 120), ("1m30s", 90), ("1h", 3600)],
)
def test_durations(written, seconds):
    """Durations are numbers of seconds or text with units."""
    assert TableConfig(name="a", polling_interval=written).polling_interval == seconds


@pytest.mark.parametrize(
    ("written", "size"),
    [(4096, 4096), ("4096", 4096), ("512KiB", 2**19), ("8Mi", 2**23), ("8 MiB", 2**23), ("2MB", 2_000_000)],
)
def test_sizes(written, size):
    """Sizes are bytes or text with binary or decimal units."""
    assert TableConfig(name="a", max_batch_bytes=written).max_batch_bytes == size


@given(st.lists(st.tuples(st.integers(0, 99), st.sampled_from(["ms", "s", "m", "h"])), min_size=1, max_size=4))
def test_every_duration_of_the_crd_is_read(parts):
    """Whatever matches the pattern of the custom resources is a duration here, or out of bounds."""
    text = "".join(f"{number}{unit}" for number, unit in parts)
    total = sum(number * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit] for number, unit in parts)
    if 0 < total <= 7 * 24 * 3600:
        assert TableConfig(name="a", polling_interval=text).polling_interval == pytest.approx(total)
    else:
        with pytest.raises(ValueError, match="polling_interval"):
            TableConfig(name="a", polling_interval=text)


# -- secrets -------------------------------------------------------------------------------------------------


def test_secrets_never_show():
    """No way of printing a configuration shows a password; the connectors still get it."""
    uri = "mongodb://user:pa55@localhost/app?tlsCertificateKeyFilePassword=pa55"
    config = minimal(
        source={"type": "files", "connection_string": uri, "parameters": {"api_token": "pa55", "path": "/x"}},
        destination="postgresql://user:pa55@localhost/dw",
        schemas=["a"],
    )
    shown = [
        repr(config),
        str(config),
        repr(config.source),
        str(config.model_dump()),
        config.model_dump_json(),
    ]
    shown += [yaml.safe_dump(config.masked()), repr(config.units()), " ".join(config.warnings())]
    assert not any("pa55" in text for text in shown)
    assert config.source.connection_string == uri
    assert config.source.parameters == {"api_token": "pa55", "path": "/x"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schemas": ["a"], "polling_interval": 3}, "polling_interval: no effect on a change stream"),
        (
            {"schemas": [{"name": "a", "tables": {"t": {"polling_interval": 3}}}]},
            "schemas[0].tables.t.polling",
        ),
        ({"schemas": ["a"], "logging.sensitive_data_masking": False}, "secrets are masked in any case"),
        ({"schemas": [{"name": "a", "include": ["x"], "tables": {"t": {}}}]}, "table t is filtered out"),
        ({"schemas": [{"name": "a", "include": ["x"]}], "include": ["y"]}, "let no table through"),
        ({"schemas": ["a"], "max_parallel_streams": 60}, "cut to the 10 connections"),
        ({"schemas": ["a"], "source.change_detection.strategy": "timestamp"}, "timestamp has no effect"),
        ({"schemas": ["a"], "destination.tls_insecure": True}, "any certificate is accepted"),
        ({"schemas": ["a", "b"]}, "choose one with --schema"),
        ({"schemas": ["a"], "include": ["x"], "exclude": ["y"]}, "decides alone"),
        ({"schemas": [{"name": "a", "mode": "snapshot"}], "full_load_enabled": False}, "copies nothing"),
        ({"schemas": ["a"], "mode": "multi", "schema": "a"}, "no effect in mode multi"),
    ],
)
def test_warnings(settings, expected):
    """A setting without effect is named, and so is one that may surprise."""
    ends = {
        "source.connection_string": "mongodb://h/app",
        "destination.connection_string": "postgresql://h/d",
    }
    config = load_config(None, overrides=ends | settings)
    assert any(expected in warning for warning in config.warnings()), config.warnings()


def test_a_quiet_configuration_has_no_warnings():
    """Nothing is warned about where everything has its effect."""
    assert minimal(schemas=["a"], polling_interval=None).warnings() == []


def test_units_say_what_is_not_chosen():
    """Running asks for one schema in single mode and for at least one in multi mode."""
    for settings, expected in (
        ({"schemas": ["a", "b"]}, "choose one"),
        ({}, "no schema is named"),
        ({"mode": "multi"}, "no schema is listed"),
        ({"schemas": ["orders"], "schema": "order"}, "did you mean orders"),
    ):
        with pytest.raises(ConfigError, match=expected):
            minimal(**settings).units()
    assert minimal(schema="lone").units()[0].name == "lone"
