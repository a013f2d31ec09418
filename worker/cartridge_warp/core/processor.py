"""One schema's life: connect, replicate, and after an error begin again at the stored position or give up."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any, TypeVar

from cartridge_warp.config import SchemaConfig, UnitSettings
from cartridge_warp.connectors.adapter import RecordSource
from cartridge_warp.connectors.base import DestinationConnector, SourceConnector
from cartridge_warp.connectors.protocols import SourceUnit, Target, TransactionalDestination, UnitSource
from cartridge_warp.connectors.record_target import RecordTarget
from cartridge_warp.connectors.record_unit import RecordUnit
from cartridge_warp.connectors.unit_records import UnitRecords
from cartridge_warp.core.batch import Budget
from cartridge_warp.core.plan import plan_lines
from cartridge_warp.core.sequential import SequentialSession
from cartridge_warp.core.session import Session
from cartridge_warp.core.tasks import end
from cartridge_warp.errors import ConfigError, Policy, PositionLost, TargetBusy, WarpError
from cartridge_warp.observe.events import Event, Failed, Note, Observer, State

__all__ = ["SchemaProcessor"]

Adapter = TypeVar("Adapter", bound=RecordSource)

LONGEST_WAIT = 10.0  # seconds between tries while a server is away
STANDBY_WAIT = 2.0
HEARTBEAT = 5.0
ONCE_TRIES = 5  # a single run does not wait for ever


class SchemaProcessor:
    """Replicates one schema between two connected connectors.

    `schema_config` may be a bare `SchemaConfig`. `metrics_collector` hears every event. `metadata_manager` is
    for a simple destination that should not hold positions itself: it has that destination's `get_marker` and
    `update_marker`.
    """

    def __init__(
        self, schema_config: SchemaConfig | UnitSettings, source: SourceConnector,
        destination: DestinationConnector, metadata_manager: DestinationConnector | None = None,
        metrics_collector: Observer | None = None, *, once: bool = False, take_over: bool = False,
        budget: Budget | None = None,
    ) -> None:  # fmt: skip
        if isinstance(schema_config, SchemaConfig):
            schema_config = UnitSettings.of(schema_config)
        self.settings: UnitSettings = schema_config
        self.source = source
        self.destination = destination
        self.metadata = metadata_manager
        self.observer = metrics_collector or Observer()
        self.once = once or self.settings.mode == "snapshot"
        self.take_over = take_over
        self.budget = budget or Budget()
        self.state = "stopped"
        self.error = ""
        self._stop = asyncio.Event()
        self._target: Target | None = None
        self._opened = False
        self._lost = ""  # why everything must be copied again
        self._named: set[str] = set()  # collections that cannot be mirrored and were reported
        self._records: RecordSource | None = None
        self._session: Session | SequentialSession | None = None

    def emit(self, kind: type[Event], **values: Any) -> None:
        """Report an event of this schema."""
        self.observer.emit(kind(database=self.settings.database, schema=self.settings.name, **values))

    def get_status(self) -> dict[str, Any]:
        """What is going on, as plain data."""
        session = self._session
        return {
            "schema": self.settings.name,
            "database": self.settings.database,
            "target": self.settings.target,
            "state": self.state,
            "error": self.error,
            "commits": session.commits if session else 0,
            "lag_seconds": session.lag if isinstance(session, Session) else None,
        }

    async def stop(self) -> None:
        """Ask for an orderly end: what has been read is committed, nothing more is read."""
        self._stop.set()

    async def start(self, full_resync: bool = False) -> None:
        """Run until stopped, or done when `once`. `full_resync` copies every table again, online. Raises
        WarpError when going on is pointless."""
        if self.settings.mode == "batch":
            raise ConfigError(
                f"schema {self.settings.name}: mode batch is not available in this version; use stream or snapshot"
            )
        if full_resync:
            self._lost = "full resync"
        self._stop.clear()
        final, detail = "failed", ""
        try:
            await self._run()
            final = "stopped" if self._stop.is_set() else "done"
        except WarpError as error:
            detail = self.error = str(error)
            self.emit(Failed, error_type=error.code, message=detail)
            raise
        except asyncio.CancelledError:
            final = "stopped"
            raise
        finally:
            self._set_state(final, detail)
            target, self._target, self._opened = self._target, None, False
            if target is not None:
                await target.close(final, detail)
            if self._records is not None:
                await self._records.close()

    async def _run(self) -> None:
        self._set_state("starting")
        alive = asyncio.create_task(self._stay_alive())
        try:
            await self._attempts()
        finally:
            await end(alive)

    async def _stay_alive(self) -> None:
        """Heartbeats between sessions: a worker that waits for a server is not dead, nobody shall take over."""
        while True:
            await asyncio.sleep(HEARTBEAT)
            if self._target is not None and self._opened and self.state == "retrying":
                with suppress(WarpError):  # what is wrong shows when the next session begins
                    await self._target.heartbeat(self.state, self.error)

    async def _attempts(self) -> None:
        attempt = 0
        while not self._stop.is_set():
            try:
                await self._stoppable_attempt()
                return
            except* WarpError as group:
                error = _worst(group)
            attempt = 1 if self._session is not None and self._session.commits else attempt + 1
            await self._after(error, attempt)

    async def _stoppable_attempt(self) -> None:
        """A session ends by itself after `stop`; what only waits for a server is cancelled."""
        self._session = None
        attempt, stop = asyncio.create_task(self._attempt()), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({attempt, stop}, return_when=asyncio.FIRST_COMPLETED)
            if stop.done() and self._session is None:
                await end(attempt)
            if not attempt.cancelled():
                await attempt
        finally:
            await end(stop, attempt)

    async def _after(self, error: WarpError, attempt: int) -> None:
        """Wait as the error asks, or raise it."""
        if isinstance(error, TargetBusy) and not self.once:
            self._set_state("standby", str(error))
            await self._pause(STANDBY_WAIT)
            return
        if isinstance(error, PositionLost):
            self._lost = str(error)
            if self.once and attempt >= ONCE_TRIES:
                raise error
            # At once; but a source that loses each position before anything is written is not asked in a loop.
            delay = random.uniform(1, LONGEST_WAIT) if attempt > 1 else 0.0  # noqa: S311 (jitter, not a secret)
            self.emit(Failed, error_type=error.code, message=str(error), attempt=attempt, retry_in=delay)
            await self._pause(delay)
            return
        if error.policy in (Policy.STOP, Policy.DEAD_LETTER) or (self.once and attempt >= ONCE_TRIES):
            raise error
        delay = random.uniform(0, min(LONGEST_WAIT, 0.5 * 2**attempt))  # noqa: S311 (jitter, not a secret)
        self.error = str(error)
        self._set_state("retrying", self.error)
        if attempt == 1 and self._target is not None and self._opened:
            with suppress(WarpError):  # it may be the destination itself that is away
                await self._target.log_error("", error.code, self.error)
        self.emit(Failed, error_type=error.code, message=str(error), attempt=attempt, retry_in=delay)
        await self._pause(delay)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return

    def _set_state(self, state: str, detail: str = "") -> None:
        if state != self.state:
            self.state = state
            self.emit(State, state=state, detail=detail)

    # -- one attempt ----------------------------------------------------------------------------------

    async def _attempt(self) -> None:
        await self.source.connect()
        await self.destination.connect()
        if not isinstance(self.destination, TransactionalDestination):
            await self._sequential()
            return
        if not isinstance(self.source, UnitSource):
            await self._transactional(self._record_source(RecordUnit))
            return
        unit = self.source.unit(self.settings)
        try:
            await self._transactional(unit)
        finally:
            await unit.close()

    def _kind(self, connector: object) -> str:
        return getattr(getattr(connector, "config", None), "type", None) or type(connector).__name__

    async def _transactional(self, unit: SourceUnit) -> None:
        unit.observer = self.observer
        for warning in await unit.preflight():
            self.emit(Note, level="warning", message=warning)
        if self.settings.dry_run:
            for line in await plan_lines(unit, self.settings):
                self.emit(Note, message=line)
            return
        if self._target is None:
            assert isinstance(self.destination, TransactionalDestination)
            self._target = self.destination.target(self.settings)
        target = self._target
        if self._opened:
            await target.resume()
        else:
            await target.open(await unit.identity(), take_over=self.take_over)
            self._opened = True
        marker = await target.marker()
        if marker is None:
            if await target.tables():
                self._lost = self._lost or "the stored position is missing"
            marker = await target.create_marker(await unit.now())
        if self._lost:
            marker = await target.restart_marker(await unit.now(), self._lost)
            self._lost = ""
        session = Session(self.settings, unit, target, self.observer, self.budget, stop=self._stop, once=self.once)
        session.marker = marker
        session.snapshotter.named = self._named
        self._session = session
        self.state = "running"
        await session.run()

    async def _sequential(self) -> None:
        source: RecordSource | UnitRecords
        if isinstance(self.source, UnitSource):
            source = UnitRecords(self.source.unit(self.settings), self.observer)
        else:
            source = self._record_source(RecordSource)
        destination: Any = self.destination
        if self.metadata is not None:
            destination = _PositionsElsewhere(destination, self.metadata)
        target = RecordTarget(destination, self.settings, self._kind(self.destination))
        for warning in await source.preflight():
            self.emit(Note, level="warning", message=warning)
        if self.settings.dry_run:
            for table in await source.tables():
                self.emit(Note, message=f"would copy {table} into {self.settings.target}, and follow its changes")
            return
        session = SequentialSession(
            self.settings, source, target, self.observer, self.budget, stop=self._stop, once=self.once,
            again=bool(self._lost),
        )  # fmt: skip
        self._session = session
        try:
            await session.run()
        finally:
            if not session.again:
                self._lost = ""

    def _record_source(self, kind: type[Adapter]) -> Adapter:
        """One adapter for the processor's life: it may hold a position that the source cannot name."""
        if not isinstance(self._records, kind):
            self._records = kind(self.source, self.settings, self._kind(self.source))
        return self._records


class _PositionsElsewhere:
    """A simple destination whose positions another one holds."""

    def __init__(self, rows: DestinationConnector, positions: DestinationConnector) -> None:
        self._rows = rows
        self.get_marker = positions.get_marker
        self.update_marker = positions.update_marker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)


def _worst(group: BaseExceptionGroup[WarpError]) -> WarpError:
    """Of several errors at once, the one that leaves the least to be tried."""
    order = [Policy.STOP, Policy.RESNAPSHOT, Policy.DEAD_LETTER, Policy.BOUNDED, Policy.RETRY]
    flat: list[WarpError] = []

    def collect(error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                collect(inner)
        elif isinstance(error, WarpError):
            flat.append(error)

    collect(group)
    return min(flat, key=lambda error: order.index(error.policy))
