"""The demo's play: first copy, changes, `kill -9`, restart, and the comparison of every document."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import psycopg
from psycopg import sql
from pymongo import AsyncMongoClient

from cartridge_warp.cli.demo_check import Connection, TableCheck, check, count, plans
from cartridge_warp.cli.demo_data import Client, DataFile, Loaded, load_data
from cartridge_warp.cli.demo_screen import Screen
from cartridge_warp.cli.demo_servers import Worker
from cartridge_warp.cli.demo_traffic import NEW_FIELD, PULSE_FIELD, Traffic
from cartridge_warp.config import UnitSettings
from cartridge_warp.errors import ConfigError, WarpError

__all__ = ["Stage", "Summary"]

_SETTLE_SECONDS = 60.0
_LAG_SECONDS = 15.0
_PULSES = 10  # measurements of lag in one round
_TICK = 0.4  # seconds between two bursts of the endless demo
_BURST = 15  # changes in each
_BEFORE_KILL, _WHILE_DOWN = 8.0, 2.0  # seconds


@dataclass(frozen=True)
class Summary:
    """What one round showed. `lags` are the seconds from an acknowledged change to its visible row."""

    tables: Sequence[TableCheck]
    left_out: Sequence[str]
    changes: int
    kills: int
    seconds: float
    lags: Sequence[float]

    @property
    def equal(self) -> bool:
        """True when every document of every table equals its row."""
        return bool(self.tables) and all(table.equal for table in self.tables)

    @property
    def lag_ms(self) -> int | None:
        """The median lag in milliseconds."""
        return round(statistics.median(self.lags) * 1000) if self.lags else None

    def to_json(self) -> dict[str, Any]:
        """The summary that `--json` prints."""
        return {
            "equal": self.equal,
            "tables": [
                {
                    "schema": t.schema,
                    "table": t.table,
                    "documents": t.documents,
                    "rows": t.rows,
                    "equal": t.equal,
                }
                for t in self.tables
            ],
            "differences": [
                {"schema": t.schema, "table": t.table, **asdict(each)} for t in self.tables for each in t.differences
            ],
            "left_out": list(self.left_out),
            "kills": self.kills,
            "changes": self.changes,
            "lag_ms": self.lag_ms,
            "seconds": round(self.seconds, 1),
        }


class Stage:
    """Both servers, the worker, and what was seen of them so far."""

    def __init__(
        self,
        screen: Screen,
        client: Client,
        connection: Connection,
        units: Sequence[UnitSettings],
        worker: Worker,
    ) -> None:
        self.screen, self.client, self.connection = screen, client, connection
        self.units, self.worker = units, worker
        self.started = time.monotonic()
        self.traffic = Traffic(client, [])
        self.left_out: Sequence[str] = ()
        self.kills = 0
        self.lags: list[float] = []

    @classmethod
    @asynccontextmanager
    async def open(
        cls, screen: Screen, source: str, destination: str, units: Sequence[UnitSettings], worker: Worker
    ) -> AsyncIterator[Stage]:
        """Connect to both servers for as long as the play goes on."""
        client: Client = AsyncMongoClient(source, serverSelectionTimeoutMS=20_000)
        async with client, await psycopg.AsyncConnection.connect(destination, autocommit=True) as connection:
            yield cls(screen, client, connection, units, worker)

    async def load(self, files: list[DataFile]) -> Loaded:
        """Fill the source."""
        loaded = await load_data(self.client, files)
        self.left_out = loaded.left_out
        known = {(unit.database, file.collection) for unit in self.units for file in files
                 if file.database == unit.database and unit.wants(file.collection)}  # fmt: skip
        if not known or not loaded.documents:
            databases = ", ".join(unit.database for unit in self.units)
            raise ConfigError(f"the sample data holds nothing of what the manifest copies: databases {databases}")
        self.traffic = Traffic(self.client, sorted(known, reverse=True))
        return loaded

    # -- acts ----------------------------------------------------------------------------------------------

    async def copy(self) -> Summary:
        """The first copy, by a worker that has never run before."""
        self.screen.title("first copy")
        began = time.monotonic()
        await self.worker.start()
        tables = await self._settle("copying")
        self.screen.tables(tables)
        self._say_equal(tables, f"{time.monotonic() - began:.1f} s after the worker's start")
        await self.traffic.learn()
        return self._summary(tables)

    async def once(self) -> Summary:
        """One round, as fast as it goes; no further than the first copy when that is not equal."""
        copied = await self.copy()
        if not copied.equal:
            return copied
        self.screen.title(f"changes, and a field {NEW_FIELD} that no document had")
        for _ in range(_PULSES):
            await self._measure(10)
        await self.traffic.change(80)
        await self._kill()  # with changes read, half written and not yet read
        await self.traffic.change(120)
        await self._restart()
        await self.traffic.change(150)
        return await self._finish()

    async def forever(self) -> NoReturn:
        """Changes without end; once in between the worker is killed. Ends by cancellation."""
        if not (await self.copy()).equal:
            raise WarpError("the first copy is not equal to the source; the differences stand above")
        self.screen.title(f"changes, and a field {NEW_FIELD} that no document had; Ctrl-C ends")
        await self._live(_BEFORE_KILL)
        await self._kill()
        await self._live(_WHILE_DOWN)
        await self._restart()
        await self._finish()
        self.screen.title("changes go on; Ctrl-C ends")
        while True:
            await self._live(60.0)

    # -- steps ---------------------------------------------------------------------------------------------

    async def _kill(self) -> None:
        await self.worker.kill()
        self.kills += 1
        self.screen.line(f"  kill -9 of the worker after {self.traffic.total:,} changes; the source goes on changing")

    async def _restart(self) -> None:
        await self.worker.start()
        self.screen.line(f"  worker started again after {self.traffic.total:,} changes")

    async def _finish(self) -> Summary:
        began = time.monotonic()
        tables = await self._settle("catching up")
        self.screen.title("afterwards")
        self.screen.tables(tables)
        self._say_equal(tables, f"{time.monotonic() - began:.1f} s after the last change")
        summary = self._summary(tables)
        counts = ", ".join(f"{number:,} {kind}" for kind, number in sorted(self.traffic.counts.items()))
        self.screen.line(f"  {counts}; half of the changes were visible within {summary.lag_ms} ms")
        return summary

    def _summary(self, tables: Sequence[TableCheck]) -> Summary:
        seconds = time.monotonic() - self.started
        return Summary(tables, self.left_out, self.traffic.total, self.kills, seconds, self.lags)

    def _say_equal(self, tables: Sequence[TableCheck], when: str) -> None:
        wrong = sum(1 for table in tables if not table.equal)
        if wrong:
            self.screen.line(f"\n  {wrong} of {len(tables)} tables differ, {when}", style="bold red")
        else:
            rows = sum(table.rows for table in tables)
            self.screen.line(f"\n  {rows:,} documents, each equal to its row, {when}", style="green")

    async def _settle(self, doing: str) -> list[TableCheck]:
        """Wait until all is equal: numbers first, then content. After the deadline: as it is."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        with self.screen.running() as running:
            while True:
                self._require_worker()
                tables = await count(self.client, self.connection, self.units)
                running.show(tables, doing)
                late = time.monotonic() > deadline
                if late or (tables and all(table.documents == table.rows for table in tables)):
                    tables = await check(self.client, self.connection, self.units)
                    if late or all(table.equal for table in tables):
                        return tables
                await asyncio.sleep(0.1)

    async def _live(self, seconds: float) -> None:
        began = time.monotonic()
        already = self.traffic.total
        with self.screen.running() as running:
            while time.monotonic() - began < seconds:
                tick = time.monotonic()
                if self.worker.running:
                    lag = f"lag {await self._measure(_BURST) * 1000:.0f} ms"
                else:
                    await self.traffic.change(_BURST)
                    lag = "worker down"
                rate = (self.traffic.total - already) / max(time.monotonic() - began, 0.001)
                status = f"{self.traffic.total:,} changes  {rate:.0f}/s  {lag}"
                running.show(await count(self.client, self.connection, self.units), status)
                await asyncio.sleep(max(0.0, tick + _TICK - time.monotonic()))

    def _require_worker(self) -> None:
        if not self.worker.running:
            raise WarpError(f"the worker ended by itself: {self.worker.last_words()}")

    async def _measure(self, changes: int) -> float:
        """Make changes, then one more, and see how long it takes to appear in the destination, in seconds."""
        await self.traffic.change(changes)
        number = await self.traffic.pulse()
        began = time.monotonic()
        while not await self._arrived(number):
            self._require_worker()
            if time.monotonic() - began > _LAG_SECONDS:
                break
            await asyncio.sleep(0.005)
        self.lags.append(time.monotonic() - began)
        return self.lags[-1]

    async def _arrived(self, number: int) -> bool:
        database, collection = self.traffic.pulse_table
        unit = next(unit for unit in self.units if unit.database == database and unit.wants(collection))
        plan = (await plans(self.connection, unit)).get(collection)
        if plan is None or PULSE_FIELD not in plan.index:
            return False
        column = plan.columns[plan.index[PULSE_FIELD]].column
        query = sql.SQL("SELECT 1 FROM {} WHERE {} = {}").format(
            sql.Identifier(unit.target, plan.relation), sql.Identifier(column), sql.Literal(number)
        )
        return await (await self.connection.execute(query)).fetchone() is not None
