"""Runs real workers step by step: every await on a server stops at a gate that a schedule opens.

The steps in between are the shipped code on a real PostgreSQL. A schedule goes on only when everything that was let
go has come to its next gate, or waits for a lock that somebody at a gate holds.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
import pytest

from cartridge_warp.config import UnitSettings
from cartridge_warp.connectors.postgresql import PostgreSQLDestinationConnector, claims, rekey, sweep
from cartridge_warp.connectors.postgresql import target as target_module
from cartridge_warp.core import background
from cartridge_warp.core import processor as processor_module
from cartridge_warp.core.processor import SchemaProcessor
from cartridge_warp.errors import WarpError
from cartridge_warp.observe.events import Event, Failed, Note, Observer, SnapshotDone, SnapshotStarted
from warp_testing.sim_source import SimSource, SimUnit

__all__ = ["Schedule", "Worker", "stepwise"]

WORKER: ContextVar[Worker] = ContextVar("WORKER")
IDLE = {"quiet stream", "sleep", "pause"}
LOCK_WAIT = "40ms"


class Gate:
    """A place where some task waits to be let go."""

    def __init__(self, worker: Worker, label: str, weight: float) -> None:
        self.worker, self.label, self.weight = worker, label, weight
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Schedule:
    """All gates of all workers of one history."""

    def __init__(self, rng: random.Random, uri: str) -> None:
        self.rng = rng
        self.gates: list[Gate] = []
        self.workers: list[Worker] = []
        self.speeds: WeakKeyDictionary[asyncio.Task[Any], float] = WeakKeyDictionary()
        self.density = 0.5
        self.open = False
        self.waits: set[object] = set()  # statements under way
        self.blocked: set[object] = set()  # those that wait for a lock
        self.news = asyncio.Event()
        # It speaks in between, while workers hold locks and cannot move.
        self.server = psycopg.connect(uri, autocommit=True, options="-c lock_timeout=20ms")

    async def pass_gate(self, worker: Worker, label: str, *, always: bool = False) -> None:
        if worker.killed:
            raise asyncio.CancelledError
        if self.open and not worker.frozen:
            if label in IDLE:
                await asyncio.sleep(0.002)
            return
        if not (always or worker.frozen or self.rng.random() < self._chance(worker, label)):
            return
        gate = Gate(worker, label, self._speed() * (0.1 if label in IDLE else 1.0))
        self.gates.append(gate)
        try:
            await gate.future
        finally:
            self.gates.remove(gate)

    def _chance(self, worker: Worker, label: str) -> float:
        """How likely a task stops here: rarely before the worker has its epoch, and within a transaction less often
        than between two."""
        chance = self.density if label == "statement" else 0.3 + 0.7 * self.density
        return chance if worker.epoch else 0.1 * chance

    def eligible(self) -> list[Gate]:
        return [gate for gate in self.gates if not gate.worker.frozen and not gate.future.done()]

    def pick(self) -> Gate | None:
        """One of the gates that may be opened; those behind which nothing happens come up rarely."""
        gates = self.eligible()
        if not gates:
            return None
        return self.rng.choices(gates, [gate.weight for gate in gates])[0]

    def _speed(self) -> float:
        """How fast the present task goes on: equal speeds would seldom let one overtake another by far."""
        task = asyncio.current_task()
        assert task is not None
        if task not in self.speeds or self.rng.random() < 0.05:
            self.speeds[task] = self.rng.choice([0.02, 0.3, 1.0, 5.0])
        return self.speeds[task]

    def hold(self, label: str) -> None:
        """Let those that wait at such a gate stay there for long, and the others go on."""
        for gate in self.gates:
            if gate.label == label:
                gate.weight = 0.003
            elif gate.label not in IDLE:
                gate.weight = max(gate.weight, 1.0)

    def open_all(self) -> None:
        self.open = True
        for gate in self.eligible():
            gate.future.set_result(None)

    async def settle(self) -> None:
        """Wait until nothing moves any more."""
        ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
        while True:
            await asyncio.sleep(0)
            while ready:
                await asyncio.sleep(0)
            if self.waits <= self.blocked:
                return
            self.news.clear()
            try:
                await asyncio.wait_for(self.news.wait(), 0.004)
            except TimeoutError:
                if self.lock_waiters() >= len(self.waits):
                    self.blocked = set(self.waits)
                    return

    def lock_waiters(self) -> int:
        row = self.server.execute(
            "SELECT count(DISTINCT pid) FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE NOT granted AND datname = current_database()"
        ).fetchone()
        return int(row[0]) if row else 0

    def released(self) -> None:
        """A transaction has ended, so whoever waited for it may move."""
        self.blocked.clear()

    def end_sessions(self, worker: Worker) -> None:
        """Break every connection of a worker, and wait until the server has cleaned up."""
        name = (worker.destination.application,)
        self.server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", name)
        while self.server.execute("SELECT FROM pg_stat_activity WHERE application_name = %s", name).fetchone():
            time.sleep(0.001)
        self.released()

    def close(self) -> None:
        self.server.close()


class Wire:
    """A connection whose statements stop at gates, and whose commits may go wrong."""

    def __init__(self, worker: Worker, connection: Any) -> None:
        self._worker, self._c = worker, connection
        self._active = self._stale = self._durable = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._c, name)

    async def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        worker = self._worker
        if query == "COMMIT":
            return await self._commit()
        if query == "ROLLBACK":
            self._end()
            try:
                return await self._c.execute(query)
            finally:
                worker.schedule.released()
        begins = query is worker.begin_statement
        await worker.schedule.pass_gate(worker, "begin" if begins else "statement")
        if query == "SET LOCAL synchronous_commit = on":
            self._durable = True
        if begins:
            worker.inside += 1
            self._durable = False
            self._active, self._stale = True, worker.is_stale()
        return await self._c.execute(query, *arguments, **options)

    async def _commit(self) -> Any:
        worker = self._worker
        await worker.schedule.pass_gate(worker, "commit")
        fault = worker.fault
        if fault == "commit lost" and (self._durable or worker.inside > 1):
            fault = ""  # it cannot happen, or others would notice: later, then
        worker.fault = worker.fault if fault != worker.fault else ""
        worker.log(f"commit{' ' + fault if fault else ''}")
        done: Any = await self._c.execute("ROLLBACK" if fault == "commit lost" else "COMMIT")
        worker.schedule.released()
        if self._stale and done.statusmessage == "COMMIT":
            worker.violations.append("a worker that had been replaced committed a transaction")
        if fault == "commit unknown":
            raise psycopg.OperationalError("the connection broke before the answer to COMMIT")
        self._end()
        await worker.schedule.pass_gate(worker, "committed")
        return _Committed() if fault else done

    def _end(self) -> None:
        if self._active:
            self._active = False
            self._worker.inside -= 1


class _Committed:
    """The server's answer to a COMMIT whose effect its crash will take back."""

    statusmessage = "COMMIT"


class SimDestination(PostgreSQLDestinationConnector):
    """The real connector, with gates on its connections."""

    worker: Worker

    @asynccontextmanager
    async def connection(self, where: str) -> AsyncIterator[Any]:
        async with super().connection(where) as connection:
            yield Wire(self.worker, connection)


class _Processor(SchemaProcessor):
    async def _pause(self, seconds: float) -> None:
        worker = WORKER.get()
        worker.log(f"pause after {self._session and self._session.commits} commits: {self.state}")
        await worker.schedule.pass_gate(worker, "pause", always=True)


class _Source:
    """The connector of a `SimUnit`."""

    def __init__(self, source: SimSource, worker: Worker) -> None:
        self.source, self.worker = source, worker

    async def connect(self) -> None:
        """The source is here."""

    async def disconnect(self) -> None:
        """And stays."""

    def unit(self, settings: UnitSettings) -> SimUnit:
        schedule = self.worker.schedule

        async def gate(label: str) -> None:
            await schedule.pass_gate(self.worker, label, always=label in IDLE)

        return SimUnit(self.source, settings.wants, gate)


class Worker:
    """A real worker process, as far as one can be without a process: all its memory, all its connections."""

    def __init__(
        self, number: int, schedule: Schedule, source: SimSource, settings: UnitSettings, uri: str,
        log: Callable[[str], None], violations: list[str], *, once: bool = False,
    ) -> None:  # fmt: skip
        self.number, self.schedule, self.violations = number, schedule, violations
        self._log = log
        self.frozen = self.killed = False
        self.fault = ""
        self.inside = 0  # transactions between BEGIN and their end
        self.destination = SimDestination(uri)
        self.destination.worker = self
        self.processor: SchemaProcessor = _Processor(
            settings, _Source(source, self), self.destination, metrics_collector=Observer(self._hear), once=once
        )
        self.begin_statement: Any = None
        schedule.workers.append(self)
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        WORKER.set(self)
        try:
            await self.processor.start()
            self.log("ended")
        except WarpError as error:
            self.log(f"ended with {type(error).__name__}: {error}")
            if error.code not in ("fenced",):
                self.violations.append(f"worker {self.number} gave up: {type(error).__name__}: {error}")
        except Exception as error:
            self.log(f"died of {error!r}")
            self.violations.append(f"worker {self.number} died of {error!r}")

    def _hear(self, event: Event) -> None:
        if isinstance(event, Failed):
            self.log(f"{event.error_type}: {event.message}")
        elif isinstance(event, Note | SnapshotStarted | SnapshotDone):
            self.log(f"{type(event).__name__} {event.table} {getattr(event, 'message', '')}")

    def log(self, text: str) -> None:
        self._log(f"  w{self.number} {text}")

    @property
    def alive(self) -> bool:
        return self.task is not None and not self.task.done()

    @property
    def epoch(self) -> int:
        """The epoch that this worker has taken, 0 before."""
        target = self.processor._target
        return target.epoch if target is not None and self.processor._opened else 0

    def is_stale(self) -> bool:
        """True when another worker has taken this one's place."""
        return 0 < self.epoch < max(worker.epoch for worker in self.schedule.workers)

    async def kill(self) -> None:
        """What SIGKILL does: the connections break, nothing of the memory is left."""
        if self.killed:
            return
        self.killed, self.frozen = True, False
        if self.destination.connected:
            self.schedule.end_sessions(self)
        while self.alive:
            assert self.task is not None
            self.task.cancel()
            await asyncio.wait({self.task}, timeout=1)
        await self.destination.disconnect()


# -- what is replaced for a while --------------------------------------------------------------------------


class _Asyncio:
    """asyncio, whose sleeps in the session are gates too."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, delay: float) -> None:
        worker = WORKER.get()
        await worker.schedule.pass_gate(worker, "sleep", always=True)


async def _inline(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@contextmanager
def stepwise(schedule: Schedule) -> Iterator[None]:
    """Count the statements under way, run threads inline, make sleeps gates, and pages small."""
    wait = psycopg.AsyncConnection.wait

    async def counted(self: Any, generator: Any, interval: float = 0.1) -> Any:
        token = object()
        schedule.waits.add(token)
        try:
            return await wait(self, generator, interval)
        finally:
            schedule.waits.discard(token)
            schedule.blocked.discard(token)
            schedule.news.set()

    begin = target_module.PostgreSQLTarget.__init__

    def remember(self: Any, destination: Any, settings: Any) -> None:
        begin(self, destination, settings)
        destination.worker.begin_statement = self.begin_statement

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.AsyncConnection, "wait", counted)
        patch.setattr(asyncio, "to_thread", _inline)
        patch.setattr(background, "asyncio", _Asyncio())
        patch.setattr(target_module.PostgreSQLTarget, "__init__", remember)
        patch.setattr(sweep, "SWEEP_PAGE", 2)
        patch.setattr(rekey, "FILL_PAGE", 2)
        patch.setattr(rekey, "REPLAY_PAGE", 3)
        patch.setattr(claims, "TAKE_LOCK_TIMEOUT", LOCK_WAIT)
        patch.setattr(processor_module, "STANDBY_WAIT", 0.0)
        yield
