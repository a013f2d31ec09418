"""The servers, the worker's process, and what is read off them."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import psycopg
from psycopg import sql
from pymongo import AsyncMongoClient

from cartridge_warp.cli.demo_check import TableCheck, check
from cartridge_warp.config import load_config
from warp_testing import servers
from warp_testing.process import WorkerProcess

__all__ = ["METADATA", "Destination", "Stage", "machine", "peak_mb", "resident_mb", "until"]

SOURCE_OPTIONS = ("--cache-size", "1G", "--log-level", "ERROR")
# As installed, but with room for the run's WAL: a forced checkpoint in one half of a comparison tells nothing.
DESTINATION_SETTINGS = {"fsync": "on", "shared_buffers": "256MB", "max_wal_size": "8GB"}
METADATA = "cartridge_warp_metadata"
_MB = 1_000_000


class Stage:
    """Both servers, for the whole run. Use it as a context: what it started ends with it."""

    def __init__(self, oplog_entries: int) -> None:
        if program := os.environ.get("WARP_BENCH_MONGODB_SERVER"):
            servers.SECANTUS = program
        self.source = servers.MongoServer("--oplog-max-entries", str(oplog_entries), *SOURCE_OPTIONS)
        self.destination = servers.PostgresServer(settings=DESTINATION_SETTINGS)

    def __enter__(self) -> Stage:
        try:
            self.source.start()
            self.destination.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.source.close()
        (self.source.storage.parent / f"{self.source.storage.name}.log").unlink(missing_ok=True)
        self.destination.close()

    @property
    def software(self) -> str:
        """What the source is."""
        with self.source.client() as client:
            return f"{Path(servers.SECANTUS).name}, MongoDB {client.server_info()['version']}"

    @contextmanager
    def database(self, name: str) -> Iterator[Destination]:
        """A fresh database of the destination, dropped at the end; the checkpoint gives each the same start."""
        with psycopg.connect(self.destination.uri(), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            connection.execute("CHECKPOINT")
            with psycopg.connect(self.destination.uri(name), autocommit=True) as own:
                yield Destination(own, self.destination.uri(name))
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    @contextmanager
    def worker(self, destination: Destination, schema: str, *words: str) -> Iterator[WorkerProcess]:
        """A real `cartridge-warp run` with default settings; killed at the end if it still runs."""
        with WorkerProcess(self.source.uri, destination.uri, schema, *words) as worker:
            yield worker

    def cpu(self, worker: WorkerProcess) -> dict[str, float]:
        """Seconds of CPU that each part has used."""
        assert self.source.process is not None
        assert self.destination.process is not None
        return {
            "worker": _cpu(worker.process.pid),
            "postgresql": _cpu(self.destination.process.pid),
            "source": _cpu(self.source.process.pid),
        }

    def compare(self, destination: Destination, schema: str) -> list[TableCheck]:
        """Each collection against its table, document by document."""
        settings = {
            "source": {"type": "mongodb", "connection_string": self.source.uri},
            "destination": {"type": "postgresql", "connection_string": destination.uri},
            "single_schema_name": schema,
        }
        units = load_config(environ={}, overrides=settings).units()

        async def compare() -> list[TableCheck]:
            client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(self.source.uri)
            async with client, await psycopg.AsyncConnection.connect(destination.uri) as connection:
                return await check(client, connection, units)

        return asyncio.run(compare())


class Destination:
    """Questions to one database of the destination."""

    def __init__(self, connection: psycopg.Connection[Any], uri: str) -> None:
        self.connection = connection
        self.uri = uri

    def one(self, query: str, *parameters: Any) -> Any:
        """The first value of a query; None without a row, and as long as the table is missing."""
        try:
            row = self.connection.execute(query, parameters).fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return None
        return row[0] if row else None

    def complete(self, schema: str) -> bool:
        """True when every table of a schema has been copied."""
        query = f"SELECT bool_and(state = 'complete') FROM {METADATA}.tables WHERE target = %s"
        return bool(self.one(query, schema))

    def has_row(self, schema: str, key: Any) -> bool:
        """True when the row of this key is visible."""
        return self.one(f'SELECT 1 FROM "{schema}".rows WHERE _id = %s', str(key)) is not None

    def changes(self, schema: str) -> int:
        """How many changes the stream has committed so far."""
        return self.one(f"SELECT rows FROM {METADATA}.sync_markers WHERE target = %s AND kind = 'stream'", schema) or 0


def until(what: Callable[[], Any], worker: WorkerProcess, *, seconds: float = 300, every: float = 0.005) -> float:
    """Wait for a condition; returns the moment. Fails when the worker ends or time is up."""
    deadline = time.monotonic() + seconds
    while not what():
        if worker.process.poll() is not None:
            raise RuntimeError(f"the worker ended with {worker.process.returncode}: {worker.text[-2000:]}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s; the worker said: {worker.text[-2000:]}")
        time.sleep(every)
    return time.monotonic()


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpus": os.cpu_count(),
        "cpu": names[0].partition(":")[2].strip() if names else platform.machine(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def peak_mb(worker: WorkerProcess) -> float:
    """The largest resident memory so far, in MB."""
    return _status(worker, "VmHWM")


def resident_mb(worker: WorkerProcess) -> float:
    """The resident memory now, in MB."""
    return _status(worker, "VmRSS")


def _status(worker: WorkerProcess, name: str) -> float:
    for line in Path(f"/proc/{worker.process.pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / _MB
    raise RuntimeError(f"the kernel tells no {name} of the worker")


def _cpu(pid: int) -> float:
    """Seconds of a process, of its children that live, and of those that have ended."""
    process = psutil.Process(pid)
    own = process.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in process.children():
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return float(total)
