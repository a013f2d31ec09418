"""`cartridge-warp demo`: what it reads, what it shows, and the whole of it with the real worker."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from rich.console import Console

from cartridge_warp.cli import demo_servers, demo_stage
from cartridge_warp.cli.demo import demo
from cartridge_warp.cli.demo_check import Difference, TableCheck
from cartridge_warp.cli.demo_data import find_data
from cartridge_warp.cli.demo_manifest import Manifest
from cartridge_warp.cli.demo_screen import Screen
from cartridge_warp.cli.demo_servers import Worker
from cartridge_warp.cli.demo_stage import Stage, Summary
from cartridge_warp.config import SchemaConfig, UnitSettings, WarpConfig, load_config
from cartridge_warp.errors import ConfigError, WarpError

ROOT = Path(__file__).parent.parent
MANIFEST = ROOT / "manifests" / "examples" / "warppipeline.yaml"
DATA = ROOT / "examples" / "data"
SCHEMA = "apiVersion: warp.cartridge.io/v1alpha1\nkind: WarpSchema\nmetadata: {name: shop}\n"


# -- the manifest ------------------------------------------------------------------------------------------


def test_the_workers_file_means_what_the_manifest_says(tmp_path):
    """The worker reads the same units from its file and environment as the manifest holds."""
    manifest = Manifest.read(MANIFEST)
    path = manifest.write_config(tmp_path)
    config = load_config(str(path), environ=manifest.environment("mongodb://a/", "postgresql://b/c"))
    assert config.units() == manifest.units
    assert [unit.target for unit in manifest.units] == ["shop", "library"]
    assert config.source.connection_string == "mongodb://a/"


def test_no_secret_and_no_server_of_the_cluster_reaches_the_workers_file(tmp_path):
    """URIs, TLS files and the replica set of the manifest are left out: they speak of other servers."""
    text = MANIFEST.read_text(encoding="utf-8")
    text = text.replace("connectionTimeout: 10s", "replicaSet: rs0\n      authSource: admin\n      readTimeout: 9s")
    tls = "    tls: {insecureSkipVerify: true}\n"
    text = text.replace("  destination:\n", f"  destination:\n{tls}")
    path = tmp_path / "pipeline.yaml"
    path.write_text(text, encoding="utf-8")
    manifest = Manifest.read(path)
    written = manifest.write_config(tmp_path).read_text(encoding="utf-8")
    assert not re.search("rs0|auth_source|connection_string|tls_|ssl_enabled|://", written)
    assert "read_timeout: 9.0" in written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.split("---")[1], "holds 0 WarpPipelines and 0 WarpSchemas"),
        (
            lambda text: text + "---" + text.split("---")[2].replace("warehouse", "other"),
            "holds 2 WarpPipelines",
        ),
        (lambda text: text.replace("mode: stream", "mode: snapshot"), "schema shop has the mode snapshot"),
        (lambda text: text.replace("mode: stream", "mod: stream"), "mod"),
        (lambda text: ": [", "malformed"),
    ],
)
def test_a_manifest_that_the_demo_cannot_run_is_refused(tmp_path, change, message):
    """One sentence says what the demo needs."""
    path = tmp_path / "pipeline.yaml"
    path.write_text(change(MANIFEST.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        Manifest.read(path)


@pytest.mark.parametrize("name", ["single-schema-config.yaml", "multi-schema-config.yaml"])
def test_the_example_configurations_load(name):
    """The two files of examples/ load without a warning and give units."""
    config = WarpConfig.from_file(ROOT / "examples" / name)
    assert config.warnings() == []
    assert config.units()


# -- the screen --------------------------------------------------------------------------------------------

TABLES = [
    TableCheck("shop", "orders", 12345, 12345),
    TableCheck("shop", "a" * 90, 2, 1, 2, (Difference('"k"', "x, y", "1, 2", "3, 4"), Difference("7", "no row"))),
]


def drawn(draw, **options) -> str:
    out = io.StringIO()
    draw(Screen(Console(file=out, width=80, **options)))
    return out.getvalue()


def test_tables_fit_80_columns():
    """Tables stay aligned in 80 columns, long names are cut, and the first differences are shown."""
    text = drawn(lambda screen: screen.tables(TABLES))
    assert max(map(len, text.splitlines()[:3])) <= 80
    assert re.search(r"shop\.orders +12,345 +12,345 +yes", text)
    assert re.search(r"shop\.a+… +2 +1 +no \(2\)", text)
    assert '"k": x, y' in text
    assert "document  1, 2" in text


def test_without_a_terminal_there_are_plain_lines():
    """No colours, no cursor movements and no redrawing where the output is a file."""

    def draw(screen: Screen) -> None:
        screen.pairs({"psql": "psql 'postgresql://" + "x" * 100 + "'", "mongosh": "m"})
        with screen.running() as running:
            running.show(TABLES, "copying")
            running._last -= 10
            running.show(TABLES, "copying")
            running.show(TABLES, "copying")

    text = drawn(draw)
    assert "\x1b" not in text
    assert text.count("copying") == 1
    assert re.search(r"12,347 documents  12,346 rows  copying", text)
    assert "x" * 100 in text  # what is to be copied is on one line


def test_on_a_terminal_the_board_leaves_nothing_behind():
    """The live board shows each table and is erased at its end."""

    def draw(screen: Screen) -> None:
        with screen.running() as running:
            running.show(TABLES, "lag 3 ms")
        screen.line("after")

    text = drawn(draw, force_terminal=True)
    assert "lag 3 ms" in text
    assert "\x1b[2K" in text  # lines are erased
    assert text.rstrip().endswith("after")


def test_the_summary_says_what_differs():
    """The JSON summary holds the verdict, every table and the first differences; no table is no success."""
    summary = Summary(TABLES, ["library.x 1"], changes=5, kills=1, seconds=1.234, lags=[0.1, 0.02, 0.3])
    made = json.loads(json.dumps(summary.to_json()))
    assert made["equal"] is False
    assert made["tables"][0] == {
        "schema": "shop", "table": "orders", "documents": 12345, "rows": 12345, "equal": True,
    }  # fmt: skip
    assert made["differences"][0]["key"] == '"k"'
    assert (made["kills"], made["changes"], made["lag_ms"], made["seconds"]) == (1, 5, 100, 1.2)
    assert Summary([], [], 0, 0, 0.0, []).equal is False


# -- the command -------------------------------------------------------------------------------------------


def test_json_needs_once():
    """An endless demo has no summary to print."""
    result = CliRunner().invoke(demo, ["--manifest", str(MANIFEST), "--data", str(DATA), "--json"])
    assert result.exit_code == 2
    assert "--json needs --once" in result.output


def test_a_missing_extra_is_one_sentence(monkeypatch):
    """Without the servers of the demo nothing is started."""
    monkeypatch.setattr(demo_servers, "find_spec", lambda name: None)
    result = CliRunner().invoke(demo, ["--manifest", str(MANIFEST), "--data", str(DATA)])
    assert isinstance(result.exception, ConfigError)
    assert "cartridge-warp[demo]" in str(result.exception)


def test_a_used_folder_is_not_overwritten(tmp_path):
    """--keep takes a new folder only, and says so before anything starts."""
    (tmp_path / "mine").write_text("precious")
    result = CliRunner().invoke(demo, ["--manifest", str(MANIFEST), "--data", str(DATA), "--keep", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    assert "is not empty" in str(result.exception)
    assert (tmp_path / "mine").read_text() == "precious"


# -- all of it, with the real worker -----------------------------------------------------------------------


@pytest.fixture
def place(monkeypatch):
    """A folder for the demo's temporary files, which must be empty again at the end."""
    path = Path(tempfile.mkdtemp(prefix="warp-demo-"))
    path.chmod(0o711)
    monkeypatch.setenv("TMPDIR", str(path))
    yield path
    left = list(path.iterdir())
    shutil.rmtree(path, ignore_errors=True)
    assert left == []


def start_demo(*options: str) -> subprocess.Popen[str]:
    program = "import sys; from cartridge_warp.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "demo", "--manifest", MANIFEST, "--data", DATA, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(stream, text: str) -> None:
    """Read until `text` appears in a line."""
    for line in stream:
        if text in line:
            return
    raise AssertionError(f"{text!r} never appeared")


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children(recursive=True)
    assert len(found) >= 3  # both servers and the worker
    return found


def assert_gone(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + 10
    while (left := [each for each in processes if alive(each)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_one_round_ends_equal(place):
    """Copy, changes, kill -9, restart, changes: every document equals its row; only JSON on standard output."""
    process = start_demo("--once", "--json")
    out, err = process.communicate(timeout=120)
    summary = json.loads(out)
    assert process.returncode == 0, err
    assert summary["equal"] is True
    assert summary["differences"] == []
    assert summary["kills"] == 1
    assert summary["changes"] > 400
    assert {(each["schema"], each["table"]) for each in summary["tables"]} == {
        tuple(path.stem.split(".")) for path in DATA.glob("*.jsonl")
    }
    assert all(each["equal"] and each["rows"] > 80 for each in summary["tables"])
    assert "kill -9" in err
    assert "\x1b" not in out + err


@pytest.mark.parametrize(("which", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_endless_demo_ends_cleanly(place, which, code):
    """Ctrl-C and SIGTERM end the demo, its servers and its worker, and remove its files."""
    process = start_demo()
    wait_for(process.stdout, "reviewed_at")
    children = family(process)
    process.send_signal(which)
    process.send_signal(which)  # impatience changes nothing
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "stopped" in out
    assert_gone(children)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a child's life to its parent's")
def test_a_killed_demo_leaves_no_process():
    """kill -9 of the demo itself takes servers and worker with it."""
    process = start_demo()
    wait_for(process.stdout, "reviewed_at")
    children = family(process)
    folder = Path(psutil.Process(children[0].pid).cwd())
    process.kill()
    process.communicate(timeout=30)
    try:
        assert_gone(children)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_kept_files_hold_no_secret(place):
    """--keep leaves data, logs and the worker's configuration; the password stands in none of the latter."""
    kept = place / "kept"
    process = start_demo("--once", "--keep", str(kept))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    secret = re.search(r"postgresql://warp:([^@]+)@", out).group(1)
    text = (kept / "worker.log").read_text() + (kept / "worker.yaml").read_text()
    assert '"event": "streaming"' in text
    assert secret not in text
    assert (kept / "postgresql" / "PG_VERSION").exists()
    shutil.rmtree(kept)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts PostgreSQL as another account")
def test_a_folder_that_postgresql_cannot_reach_is_refused(tmp_path):
    """As root below a closed folder: one sentence before anything starts."""
    tmp_path.chmod(0o700)
    result = CliRunner().invoke(
        demo, ["--manifest", str(MANIFEST), "--data", str(DATA), "--keep", str(tmp_path / "kept")]
    )
    assert isinstance(result.exception, ConfigError)
    assert "lets no other account pass" in str(result.exception)


# -- what can go wrong -------------------------------------------------------------------------------------


@pytest.fixture
async def stage(mongo, postgres, tmp_path):
    """A stage on the shared servers, with a worker that is told what to do by its program."""
    mongo.db.things.insert_many([{"_id": n} for n in range(3)])
    worker = Worker(tmp_path, tmp_path / "worker.yaml", {})
    worker.program = "import time; time.sleep(60)"
    unit = UnitSettings.of(SchemaConfig(name=mongo.name))
    out = io.StringIO()
    async with Stage.open(Screen(Console(file=out, width=80)), mongo.uri, postgres, [unit], worker) as stage:
        yield stage, worker, out
    await worker.kill()


async def test_a_worker_that_ends_by_itself_is_reported(stage):
    """The demo does not wait for a worker that has ended: it says what the worker said last, masked."""
    stage, worker, _ = stage
    worker.program = "import sys; sys.exit('no way to postgresql://warp:hunter2@host/db')"
    with pytest.raises(WarpError, match=r"the worker ended by itself: no way to postgresql://warp:\*\*\*@host"):
        await stage.copy()


async def test_what_never_settles_is_reported_as_it_is(stage, monkeypatch):
    """After the deadline the demo shows the differences instead of waiting for ever."""
    stage, worker, out = stage
    monkeypatch.setattr(demo_stage, "_SETTLE_SECONDS", 0.3)
    with pytest.raises(WarpError, match="first copy is not equal"):
        await stage.forever()
    await worker.kill()
    summary = (await stage.once()).to_json()
    assert (summary["equal"], summary["changes"]) == (False, 0)
    assert [each["key"] for each in summary["differences"]].count('{"$numberInt": "1"}') == 1
    assert "no row for this document" in out.getvalue()
    assert "1 of 1 tables differ" in out.getvalue()


async def test_data_that_the_manifest_does_not_copy_is_refused(stage, tmp_path):
    """Sample data of other databases says which ones are expected."""
    stage, _, _ = stage
    (tmp_path / "elsewhere.things.jsonl").write_text('{"_id": 1}')
    with pytest.raises(ConfigError, match="nothing of what the manifest copies: databases t"):
        await stage.load(find_data(tmp_path))
    await stage.client.drop_database("elsewhere")
