"""Configuration: layers and their precedence, and what is said about a wrong one."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from cartridge_warp.config import Schedule, WarpConfig, environment_settings, load_config
from cartridge_warp.config.reference import page
from cartridge_warp.errors import ConfigError

ENDS = "source: mongodb://localhost/app\ndestination: postgresql://localhost/dw\n"


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "warp.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def error_of(file, text: str, environ: dict[str, str] | None = None, **overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file(text), environ=environ or {}, overrides=overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


# -- layers --------------------------------------------------------------------------------------------------


def test_precedence(file):
    """Command line over environment over file over default, whatever spelling each of them uses."""
    path = file(ENDS + "global_max_parallel_streams: 2\nperformance: {stream_batch_size: 2, write_batch_size: 2}\n")
    environ = {
        "CARTRIDGE_WARP_MAX_PARALLEL_STREAMS": "3",
        "CARTRIDGE_WARP_PERFORMANCE__STREAM_BATCH_SIZE": "3",
    }
    config = load_config(path, environ=environ, overrides={"global_stream_batch_size": 4, "mode": None})
    assert (config.stream_batch_size, config.max_parallel_streams, config.write_batch_size) == (4, 3, 2)
    assert config.mode == "single"


def test_environment(file):
    """Nested names, comma lists, JSON and truth values come from the environment; empty means not set."""
    environ = {
        "CARTRIDGE_WARP_SOURCE__CONNECTION_STRING": "mongodb+srv://user:pass@localhost/prod",
        "CARTRIDGE_WARP_DESTINATION__CONNECTION_STRING": "postgresql://user:pass@localhost:5432/warehouse",
        "CARTRIDGE_WARP_GLOBAL_MAX_PARALLEL_STREAMS": "4",
        "CARTRIDGE_WARP_GLOBAL_TABLE_WHITELIST": "users, orders,products",
        "CARTRIDGE_WARP_GLOBAL_TABLE_BLACKLIST": '["tmp_tables", "logs"]',
        "CARTRIDGE_WARP_MONITORING__LOG_LEVEL": "debug",
        "CARTRIDGE_WARP_DRY_RUN": "true",
        "CARTRIDGE_WARP_SCHEMAS": json.dumps([{"name": "shop", "tables": {"orders": {"batch_size": 9}}}]),
        "CARTRIDGE_WARP_SOURCE__DATABASE": "",
        "HOME": "/nowhere",
    }
    config = load_config(None, environ=environ)
    (unit,) = config.units()
    assert (unit.database, unit.dry_run, config.logging.level) == ("prod", True, "DEBUG")
    assert config.table_whitelist == ("users", "orders", "products")
    assert config.table_blacklist == ("tmp_tables", "logs")
    assert unit.table("orders").write_batch_size == 9
    assert config.max_parallel_streams == 4


def test_environment_alone_names_file_and_schemas(file):
    """The file may be named by the environment, schemas by a comma list, an end by its URI alone."""
    environ = {
        "CARTRIDGE_WARP_CONFIG": file("mode: multi\n"),
        "CARTRIDGE_WARP_SCHEMAS": "a,b",
        "CARTRIDGE_WARP_SOURCE": "mongodb://localhost",
        "CARTRIDGE_WARP_SOURCE__READ_TIMEOUT": "5s",
        "CARTRIDGE_WARP_DESTINATION": '{"connection_string": "postgresql://localhost/d", "pool_size": 3}',
    }
    config = load_config(None, environ=environ)
    assert [unit.name for unit in config.units()] == ["a", "b"]
    assert (config.source.read_timeout, config.destination.pool_size) == (5, 3)


def test_groups_as_json(file):
    """A list of schemas may be a mapping by name, and a connector's parameters may be JSON in a variable."""
    text = "source: {type: files}\ndestination: {type: files}\nschemas: {a: {batch_size: 3}, b: }\nmode: multi\n"
    environ = {"CARTRIDGE_WARP_SOURCE__PARAMETERS": '{"path": "/a"}'}
    config = load_config(file(text), environ=environ)
    assert [unit.table("t").write_batch_size for unit in config.units()] == [3, 500]
    assert config.source.parameters == {"path": "/a"}


def test_variables_of_a_kubernetes_service_are_no_settings():
    """A Service named cartridge-warp gives each pod variables of our prefix, which mean nothing here."""
    noise = {
        "CARTRIDGE_WARP_SERVICE_HOST": "10.0.0.1",
        "CARTRIDGE_WARP_SERVICE_PORT": "8080",
        "CARTRIDGE_WARP_SERVICE_PORT_HTTP_METRICS": "8080",
        "CARTRIDGE_WARP_PORT": "tcp://10.0.0.1:8080",
        "CARTRIDGE_WARP_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "CARTRIDGE_WARP_PORT_8080_TCP_ADDR": "10.0.0.1",
        "CARTRIDGE_WARP_METRICS_SERVICE_HOST": "10.0.0.2",
        "CARTRIDGE_WARP_METRICS_PORT": "tcp://10.0.0.2:80",
        "CARTRIDGE_WARP_TERMINATION_LOG": "/dev/termination-log",
    }
    assert environment_settings(noise) == {}
    setting = {"CARTRIDGE_WARP_MONITORING__PROMETHEUS__PORT": "9000"}
    assert environment_settings(noise | setting) == setting


def test_a_file_takes_the_process_environment(file, monkeypatch):
    """`from_file` puts the environment of the process above the file."""
    monkeypatch.setenv("CARTRIDGE_WARP_DRY_RUN", "1")
    assert WarpConfig.from_file(file(ENDS)).dry_run is True


# -- what is wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sources: {}", "sources: unknown key; did you mean source? (warp.yaml)"),
        ("performance: {stream_batchsize: 5}", "performance.stream_batchsize: unknown key; did you"),
        ("schemas: [{name: a, tables: {orders: {batchsize: 5}}}]", "schemas[0].tables.orders.batchsize: unk"),
        ("schemas: [{name: a}, {name: b, tables: {orders: {batch_size: many}}}]",
         "schemas[1].tables.orders.batch_size: found 'many'; allowed: a whole number (warp.yaml)"),
        ("schemas: [{name: a, tables: [{name: o, batch_size: 0}]}]",
         "schemas[0].tables[0].batch_size: found 0; allowed: at least 1"),
        ("schemas: [{name: a, tables: {'a.b': {batch_size: true}}}]", "tables['a.b'].batch_size: found T"),
        ("schemas: [{tables: {}}]", "schemas[0].name: is missing"),
        ("schemas: [{name: a, tables: [orders]}]", "schemas[0].tables[0]: found 'orders'; allowed: a map"),
        ("schemas: 5", "schemas: found 5; allowed: a list"),
        ("schemas: [{name: 5}]", "schemas[0].name: found 5; allowed: text"),
        ("schemas: [{name: a, mode: streem}]", "schemas[0].mode: found 'streem'; allowed: stream, batch"),
        ("mode: both", "mode: found 'both'; allowed: single or multi"),
        ("polling_interval: soon", "polling_interval: found 'soon'; allowed: seconds as a number, or"),
        ("polling_interval: -1", "polling_interval: found -1; allowed: more than 0"),
        ("polling_interval: .inf", "polling_interval: found inf; allowed: seconds"),
        ("max_batch_bytes: 8XB", "max_batch_bytes: found '8XB'; allowed: bytes"),
        ("dry_run: perhaps", "dry_run: found 'perhaps'; allowed: true or false"),
        ("monitoring: {metrics_port: 70000}", "monitoring.metrics_port: found 70000; allowed: at most 65535"),
        ("monitoring: 5", "monitoring: found 5; allowed: a mapping"),
        ("performance: 5", "performance: found 5; allowed: a mapping"),
        ("logging: {level: loud}", "logging.level: found 'LOUD'"),
        ("5: x", "5: found the key 5; allowed: text"),
        ("global_max_parallel_streams: 2\nmax_parallel_streams: 3", "in two spellings, and differ"),
        ("schemas: [{name: a, tables: {x: {name: y}}}]", "schemas[0].tables.x.name: found 'y'; allowed: x"),
        ("schemas: [{name: a, schedule: '* * *', mode: batch}]", "schedule: found '* * *'; allowed: five"),
        ("change_detection: {timezone: Mars/Base}", "found 'Mars/Base'; allowed: the name of a time zone"),
        ("table_whitelist: '[a'", "table_whitelist: found '[a'; allowed: a list of names"),
    ],
)  # fmt: skip
def test_a_wrong_setting(file, text, expected):
    """The message has the path as it was written, what was found, what is allowed and the nearest key."""
    assert expected in error_of(file, ENDS + text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("schemas: [{name: a, include: [x, y], exclude: [x]}]", "schemas[0].include: x is in table_b"),
        ("include: [x]\nexclude: [x]", "include: x is in table_blacklist as well"),
        ("schemas: [a, a]", "schemas[1].name: a is the name of schemas[0]"),
        ("schemas: [{name: a}, {name: b, target_schema: a}]", "schemas[1].target_schema: a is the target of"),
        ("schemas: [{name: a, schedule: '@daily'}]", "schemas[0].schedule: only a schema of mode batch"),
        ("schemas: [{name: a, tables: [{name: t}, {name: t}]}]", "schemas[0].tables[1].name: t is listed"),
        ("schemas: [{name: a, target_schema: cartridge_warp_metadata}]", "is the metadata schema"),
        ("schemas: [{name: pg_shop}]", "schemas[0].name: pg_shop belongs to PostgreSQL"),
        ("schemas: [{name: local, database: local}]", "MongoDB's own data"),
        ("schemas: [{name: a, mode: batch, change_detection: {strategy: timestamp, column: ''}}]",
         "schemas[0].change_detection.column: is empty; mode batch with strategy timestamp needs the column"),
        ("schemas: [{name: a, tables: {t: {change_detection: {strategy: trigger}}}}]",
         "schemas[0].tables.t.change_detection.strategy: found trigger"),
        ("schemas: [{name: a, soft_delete_column: _warp_version}]", "_warp_version is a column of the"),
        ("monitoring: {prometheus: {path: /healthz}}", "/healthz is taken by the health checks"),
        ("max_batch_bytes: 8MiB\nmax_transaction_bytes: 1MiB", "at least max_batch_bytes"),
    ],
)  # fmt: skip
def test_a_contradiction(file, text, expected):
    """Settings that are right each, but not together, are one error with the path of one of them."""
    assert expected in error_of(file, ENDS + text)


def test_a_missing_connection_says_how_to_give_it(file):
    """Without a connection string the message names the file, the variable and the option."""
    message = error_of(file, "destination: postgresql://localhost/d\n")
    assert "source.connection_string: is missing" in message
    assert "CARTRIDGE_WARP_SOURCE__CONNECTION_STRING" in message
    assert "--source" in message


def test_a_connection_of_another_kind_is_not_shown(file):
    """A URI that does not fit its connector is refused without repeating it."""
    message = error_of(file, "source: mysql://root:pa55@h/d\ndestination: postgresql://localhost/d\n")
    assert "allowed for type mongodb: mongodb:// or mongodb+srv://" in message
    assert "pa55" not in message


def test_where_it_came_from(file):
    """Each line names the file, the variable or the command line with the wrong value; all are listed."""
    environ = {"CARTRIDGE_WARP_SOURCE__READ_TIMEOUT": "soon", "CARTRIDGE_WARP_SORCE__DATABASE": "x"}
    message = error_of(file, ENDS + "dry_run: perhaps\n", environ, **{"monitoring.metrics_port": -1})
    lines = message.splitlines()
    assert lines[0] == "configuration: 4 errors"
    assert any("dry_run" in line and line.endswith("(warp.yaml)") for line in lines)
    assert any("(CARTRIDGE_WARP_SOURCE__READ_TIMEOUT)" in line for line in lines)
    assert any("sorce: unknown key; did you mean source? (CARTRIDGE_WARP_SORCE" in line for line in lines)
    assert any("metrics_port" in line and line.endswith("(command line)") for line in lines)


def test_errors_hold_no_secret(file):
    """A wrong value is masked before it is cut; a value under a secret's name is not shown at all."""
    long = "x" * 80
    text = ENDS + f"logging: {{level: 'postgresql://u:pa55{long}@h/d'}}\nparameters: {{}}\n"
    assert "pa55" not in error_of(file, text)
    ends = "source: {type: files, parameters: {password: [pa55]}}\ndestination: postgresql://localhost/d\n"
    message = error_of(file, ends)
    assert "pa55" not in message
    assert "a value that is not shown" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mode: single\n  source: x\n", "malformed: line 2, column 9"),
        ("source: {a: [1, 2}\n", "malformed: line 1, column"),
        ('{"mode": "single",\n "source" "x"}', "malformed: line 2, column 11"),
        ("mode: single\nmode: multi\n", "line 2, column 1: the key 'mode' stands twice"),
        ('{"mode": "single", "mode": "multi"}', "'mode' stands twice"),
        ("- a\n- b\n", "holds a list at its top"),
        ("mode: single\n---\nmode: multi\n", "holds 2 documents"),
        ("mode: !!python/object:os.system {}\n", "malformed: line 1, column 7"),
        ("a: \x00\n", "malformed"),
        ('{"a":' * 100_000, "malformed"),
        ("[" * 100_000, "malformed"),
    ],
)
def test_a_malformed_file(file, text, expected):
    """A file that cannot be read says line and column; a key that stands twice is never a silent choice."""
    assert expected in error_of(file, text)


def test_a_file_that_is_not_there(file, tmp_path):
    """A missing file, a folder and a file that is no text are each one sentence."""
    with pytest.raises(ConfigError, match="No such file"):
        load_config(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(str(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(str(tmp_path / "binary"))


def test_an_unknown_key_in_python():
    """Classes built in Python refuse unknown keys as well, with the nearest one."""
    with pytest.raises(ValueError, match="did you mean tables"):
        WarpConfig(schemas=[{"name": "a", "tabels": {}}])


# -- schedules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "after", "expected"),
    [
        ("*/15 * * * *", "2024-05-01T10:07:30", "2024-05-01T10:15:00"),
        ("*/15 * * * *", "2024-05-01T10:15:00", "2024-05-01T10:30:00"),
        ("0 3 * * mon-fri", "2024-05-03T03:00:00", "2024-05-06T03:00:00"),
        ("30 2 1,15 * *", "2024-05-15T02:30:00", "2024-06-01T02:30:00"),
        ("0 0 13 * 5", "2024-05-01T00:00:00", "2024-05-03T00:00:00"),
        ("0 0 29 2 *", "2096-03-01T00:00:00", "2104-02-29T00:00:00"),
        ("0 12 * * 7", "2024-05-01T00:00:00", "2024-05-05T12:00:00"),
        ("5/20 22-23 * * *", "2024-12-31T23:45:00", "2025-01-01T22:05:00"),
        ("@hourly", "2024-05-01T10:00:00", "2024-05-01T11:00:00"),
    ],
)
def test_schedules(cron, after, expected):
    """A cron expression names the moments that every cron names, also across months and leap years."""
    moment = datetime.fromisoformat(after).replace(tzinfo=UTC)
    assert Schedule.parse(cron).after(moment) == datetime.fromisoformat(expected).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "cron",
    [
        "",
        "* * * *",
        "60 * * * *",
        "* 24 * * *",
        "a * * * *",
        "*/0 * * * *",
        "0 0 30 2 *",
        "5-1 * * * *",
        "*-5 * * * *",
    ],
)
def test_impossible_schedules(cron):
    """A cron expression that cannot be read, or never comes true, is refused."""
    with pytest.raises(ValueError, match=r"."):
        Schedule.parse(cron)


# -- the reference page --------------------------------------------------------------------------------------


def test_the_reference_page_is_current(request):
    """docs/configuration.md is what the models say; `make docs` writes it."""
    written = (request.config.rootpath / "docs" / "configuration.md").read_text()
    assert written == page(), "run: python -m cartridge_warp.config.reference > docs/configuration.md"


def test_every_setting_is_described():
    """Every setting has its meaning on the page."""
    rows = [line for line in page().splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert all(row.split("|")[-2].strip() for row in rows)
