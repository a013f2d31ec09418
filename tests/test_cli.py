"""The command line, as processes of their own against real servers."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psycopg
import pytest
import yaml
from rich.console import Console

from cartridge_warp.cli import main as cli_main
from cartridge_warp.cli.main import main
from cartridge_warp.cli.operate import Signals
from cartridge_warp.cli.process import without_passwords
from cartridge_warp.cli.screens import status_screen
from warp_testing.servers import free_port

PROGRAM = [sys.executable, "-m", "cartridge_warp.cli.main"]
NOWHERE = "mongodb://app:hunter2@127.0.0.1:1/shop?serverSelectionTimeoutMS=300"
DESTINATION = "postgresql://app:hunter2@127.0.0.1:1/dwh"


def environment(**extra):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CARTRIDGE_WARP_")}
    return inherited | extra


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in [name for name in os.environ if name.startswith("CARTRIDGE_WARP_")]:
        monkeypatch.delenv(name)


def call(*words, **extra):
    return subprocess.run(
        [*PROGRAM, *words], env=environment(**extra), capture_output=True, text=True, timeout=60, check=False
    )


class Worker:
    """A running worker; killed at the end of the block if it still runs."""

    def __init__(self, *words, log: Path, **extra):
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen([*PROGRAM, *words], env=environment(**extra), stderr=file)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def wait_for(self, what, seconds=30):
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        return found

    def end(self, which):
        self.process.send_signal(which)
        return self.process.wait(20)


@pytest.fixture
def servers(mongo, postgres):
    return ["--source", mongo.uri, "--destination", postgres, "--schema", mongo.name]


def get(port, page):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def rows(uri, schema, table):
    with psycopg.connect(uri) as connection:
        try:
            return connection.execute(f'SELECT count(*) FROM "{schema}"."{table}"').fetchone()[0]
        except psycopg.errors.UndefinedTable:
            return 0


# -- words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "environ", "expected"),
    [
        (["--mode", "single"], {}, ["run", "--mode", "single"]),
        (["run", "--once"], {}, ["run", "--once"]),
        (["status"], {}, ["status"]),
        (["demo", "--help"], {}, ["demo", "--help"]),
        (["--version"], {}, ["--version"]),
        ([], {"CARTRIDGE_WARP_MODE": "multi"}, ["run"]),
        ([], {"CARTRIDGE_WARP_CONFIG": "f"}, ["run"]),
        ([], {"CARTRIDGE_WARP_SERVICE_HOST": "10.0.0.1"}, []),
        ([], {"CARTRIDGE_WARP_TERMINATION_LOG": "f"}, []),
    ],
)
def test_run_is_put_in_front(words, environ, expected):
    """The bare form means run; no words mean run only when a setting is in the environment."""
    assert cli_main._complete(words, environ) == expected


def test_no_words_and_no_settings_is_help(capsys):
    """Nothing to go by: help, and exit code 2."""
    assert main([]) == 2
    assert "Usage: cartridge-warp" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["stauts"], ["run", "--mode", "many"], ["status", "--nope"], ["run", NOWHERE]])
def test_wrong_usage_is_exit_2_without_secrets(words, capsys):
    """Wrong words are one error line and exit code 2; a password among them is not repeated."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert "hunter2" not in error


def test_near_commands_are_suggested(capsys):
    """A mistyped command names the one that was meant."""
    main(["stauts"])
    assert "did you mean 'status'?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["demo", "--help"], ["--version"]])
def test_help_and_version(words, capsys):
    """Help and version go to standard output with exit code 0."""
    assert main(words) == 0
    assert capsys.readouterr().out


# -- passwords ---------------------------------------------------------------------------------------------


def test_only_arguments_with_passwords_move():
    """An argument moves to the environment exactly when it holds a password, in both ways of writing it."""
    words = ["run", "--source", NOWHERE, f"--destination={DESTINATION}", "--once"]
    assert without_passwords(words) == (
        ["run", "--once"],
        {
            "CARTRIDGE_WARP_SOURCE__CONNECTION_STRING": NOWHERE,
            "CARTRIDGE_WARP_DESTINATION__CONNECTION_STRING": DESTINATION,
        },
    )
    plain = ["--source", "mongodb://h/db", "--destination=postgresql://h/db", "--schema", "s", "--source"]
    assert without_passwords(plain) == (plain, {})


def test_password_leaves_the_list_of_processes(tmp_path):
    """A password given as argument is gone from the process title, and the hint does not repeat it."""
    words = ["--source", NOWHERE, f"--destination={DESTINATION}", "--schema", "shop", "--metrics-port", "0"]
    with Worker(*words, log=tmp_path / "log", CARTRIDGE_WARP_SOURCE__CONNECTION_TIMEOUT="1") as worker:
        title = Path(f"/proc/{worker.process.pid}/cmdline")
        worker.wait_for(lambda: b"--schema" in title.read_bytes() and b"hunter2" not in title.read_bytes())
        worker.wait_for(lambda: "will be tried again" in worker.log.read_text())
        assert worker.end(signal.SIGTERM) == 0
    text = worker.log.read_text()
    assert "CARTRIDGE_WARP_SOURCE__CONNECTION_STRING" in text
    assert "hunter2" not in text


# -- validate ----------------------------------------------------------------------------------------------


def test_validate_prints_what_holds(tmp_path):
    """validate prints YAML that loads again, masked, says that it is valid, and warns on standard error."""
    file = tmp_path / "config.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "source": {"connection_string": NOWHERE},
                "destination": {"connection_string": DESTINATION},
                "schemas": [{"name": "a"}, {"name": "b"}],
            }
        )
    )
    done = call("validate", "--config", str(file), CARTRIDGE_WARP_LOGGING__LEVEL="warning")
    assert done.returncode == 0, done.stderr
    assert "configuration is valid" in done.stdout
    shown = yaml.safe_load(done.stdout)
    assert shown["logging"]["level"] == "WARNING"
    assert shown["source"]["connection_string"].startswith("mongodb://app:***@")
    assert "warning: mode is single and 2 schemas are listed" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("schemes: []", "schemas"),
        ("source: {type: mogodb, connection_string: 'x://h'}", "mongodb"),
        ("plugins: [there_is_no_such_module]", "there_is_no_such_module"),
        ("a: [", "line 1"),
    ],
)
def test_validate_refuses_with_exit_2(tmp_path, content, told):
    """A wrong configuration is exit code 2 with the place and the nearest name, without a traceback."""
    file = tmp_path / "config.yaml"
    file.write_text(content)
    done = call(
        "validate", "--config", str(file), "--schema", "a",
        CARTRIDGE_WARP_SOURCE__CONNECTION_STRING="mongodb://h/a" if "source" not in content else "",
        CARTRIDGE_WARP_DESTINATION__CONNECTION_STRING="postgresql://h/a",
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


# -- errors ------------------------------------------------------------------------------------------------


def test_the_last_error_is_left_for_kubernetes(tmp_path):
    """The masked error line is also written to the termination log, when that file exists."""
    log = tmp_path / "termination"
    for exists in (False, True):
        if exists:
            log.write_text("old")
        done = call("run", "--config", str(tmp_path / "none.yaml"), CARTRIDGE_WARP_TERMINATION_LOG=str(log))
        assert done.returncode == 2
        assert log.exists() is exists
    assert f"error: {log.read_text()}" == done.stderr.strip()
    assert "none.yaml" in log.read_text()


def test_traceback_only_at_debug(tmp_path):
    """An error is one line; with --log-level DEBUG its traceback comes too."""
    words = ["validate", "--config", str(tmp_path / "none.yaml")]
    assert len(call(*words).stderr.splitlines()) == 1
    assert "Traceback" in call(*words, "--log-level", "debug").stderr


def test_unexpected_faults_are_one_masked_line(monkeypatch, capsys):
    """A fault of our own is one masked line as well, and exit code 1."""

    def broken(*_, **__):
        raise RuntimeError(f"odd {NOWHERE}")

    monkeypatch.setattr("cartridge_warp.cli.inspect.load", broken)
    assert main(["validate"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: unexpected RuntimeError: odd mongodb://app:***@")


def test_grouped_errors_are_told_by_the_first_of_ours(monkeypatch, capsys):
    """Of errors that came together the line and the exit code are those of ours."""
    from cartridge_warp.errors import SourceRefused

    def broken(*_, **__):
        raise ExceptionGroup("several", [ValueError("x"), ExceptionGroup("y", [SourceRefused("no replica set")])])

    monkeypatch.setattr("cartridge_warp.cli.inspect.load", broken)
    assert main(["validate"]) == 4
    assert capsys.readouterr().err == "error: no replica set\n"


def test_port_in_use(servers):
    """A metrics port that is taken is one sentence and exit code 2, before anything is written."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = call("run", *servers, "--metrics-port", port, CARTRIDGE_WARP_MONITORING__PROMETHEUS__HOST="127.0.0.1")
    assert done.returncode == 2
    assert f"127.0.0.1:{port} is in use" in done.stderr.splitlines()[-1]


# -- the whole way -----------------------------------------------------------------------------------------


def test_once_copies_and_ends(mongo, postgres, servers):
    """run --once copies what is there, says so in JSON lines, and ends with exit code 0."""
    mongo.db.things.insert_many([{"_id": i, "name": f"n{i}"} for i in range(50)])
    done = call("--mode", "single", *servers, "--once", "--metrics-port", "0")
    assert done.returncode == 0, done.stderr
    assert rows(postgres, mongo.name, "things") == 50
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {"snapshot done", "done"} <= {line["event"] for line in lines}
    assert len({line["run"] for line in lines}) == 1


@pytest.mark.parametrize(("which", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_in_order(mongo, postgres, servers, tmp_path, which, code):
    """The pages answer while it runs; Ctrl-C ends with 130 and SIGTERM with 0, and nothing is lost."""
    mongo.db.things.insert_one({"_id": 0})
    port = free_port()
    with Worker(*servers, "--metrics-port", str(port), log=tmp_path / "log") as worker:
        worker.wait_for(lambda: get(port, "/readyz")[0] == 200)
        assert get(port, "/healthz") == (200, "ok\n")
        assert get(port, "/startupz")[0] == 200
        mongo.db.things.insert_one({"_id": 1})
        worker.wait_for(lambda: rows(postgres, mongo.name, "things") == 2)
        labels = f'database="{mongo.name}",schema="{mongo.name}",table="*"'
        worker.wait_for(lambda: f"cartridge_warp_sync_status{{{labels}}} 1.0" in get(port, "/metrics")[1])
        assert worker.end(which) == code
    assert "stopping" in worker.log.read_text()


async def test_a_second_signal_does_not_wait():
    """When the orderly end takes too long, a second signal cancels what is left."""
    asked = asyncio.Event()

    async def stop():
        asked.set()
        await asyncio.sleep(60)

    async def work():
        signals = Signals(stop)
        signals.install()
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asked.wait()
            assert signals.exit_code == 130
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)
        finally:
            signals.remove()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.create_task(work()), 5)


def test_init_and_status(mongo, postgres, servers):
    """init makes both schemas and claims the target so that a run goes on; status tells it all, also as JSON."""
    mongo.db.things.insert_one({"_id": 1})
    assert json.loads(call("status", *servers, "--json").stdout)[0]["state"] == "not initialised"
    done = call("init", *servers)
    assert done.returncode == 0, done.stderr
    assert f"target schema {mongo.name} and metadata schema cartridge_warp_metadata are ready" in done.stdout
    with psycopg.connect(postgres) as connection:
        found = connection.execute("SELECT nspname FROM pg_namespace").fetchall()
        assert {(mongo.name,), ("cartridge_warp_metadata",)} <= set(found)
    assert json.loads(call("status", *servers, "--json").stdout)[0]["state"] == "stopped"
    assert call("run", *servers, "--once", "--metrics-port", "0").returncode == 0
    (unit,) = json.loads(call("status", *servers, "--json").stdout)
    assert (unit["schema"], unit["state"]) == (mongo.name, "done")
    assert unit["tables"][0]["name"] == "things"
    done = call("status", *servers)
    assert done.returncode == 0, done.stderr
    assert "things" in done.stdout
    assert "complete" in done.stdout


def test_unreachable_destination_is_one_line(mongo):
    """status of a destination that is away: one masked line and the exit code of an outage."""
    done = call("status", "--source", mongo.uri, "--destination", DESTINATION, "--schema", "shop")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_status_screen_takes_any_shape():
    """Whatever a destination tells is shown: values, groups, lists; names cannot move the cursor."""
    console = Console(width=80, record=True)
    console.print(
        status_screen(
            [
                {
                    "schema": "a\x1b[2J", "state": "streaming", "lag_seconds": 0.25, "nothing": None,
                    "worker": {"host": "h[bold]", "alive": True}, "tables": [{"name": "t", "rows": 1234567}, {"x": 1}],
                },
                {"schema": "b"},
            ]
        )
    )  # fmt: skip
    text = console.export_text()
    for part in ("lag seconds", "0.25", "worker host", "h[bold]", "yes", "1,234,567", "b"):
        assert part in text
    assert "\x1b" not in text
    assert "nothing" not in text
