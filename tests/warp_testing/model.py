"""Random histories of a source and its workers, and what must hold at the end of each.

A history is a sequence of actions drawn from a seed: writes and barriers at the source, single steps of the workers
between two waits, kills, freezes and take-overs, lost positions, commits whose answer is lost. At the end the source
is quiet, a last worker runs until it is done, and every row must be equal to its document.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from cartridge_warp.config import SchemaConfig, UnitSettings
from cartridge_warp.kernel import TablePlan, copy_columns, equal, key_hash, rebuild
from cartridge_warp.records import Op
from warp_testing.sim_schedule import Schedule, Worker, stepwise
from warp_testing.sim_source import BASE, SimSource

__all__ = ["Broken", "History", "Shape"]

WANTED, OUTSIDE = ("a", "b", "fresh"), "x"
DRAIN_SECONDS = 10.0


class Broken(AssertionError):
    """A history at whose end something does not hold."""


@dataclass(frozen=True)
class Shape:
    """What kind of history: `steps` actions, of which `tempo` let a worker go on."""

    steps: int = 150
    tempo: float = 0.75
    soft: bool = False
    uuids: bool = True
    keys: int = 8
    mixed: bool = False  # keys of a second type appear
    readers: int = 2
    density: float = 0.1
    ends: float = 1.0  # how often workers end or positions are lost, as a factor


def shape_of(rng: random.Random) -> Shape:
    return Shape(
        steps=rng.choice([60, 120, 180]),
        tempo=rng.choice([0.6, 0.75, 0.85]),
        soft=rng.random() < 0.35,
        uuids=rng.random() < 0.8,
        keys=rng.choice([3, 6, 10]),
        mixed=rng.random() < 0.4,
        readers=rng.choice([1, 2, 3]),
        density=rng.choice([0.03, 0.1, 0.3]),
        ends=rng.choice([0.0, 0.5, 1.5]),
    )


def _awaited(task: asyncio.Task[Any]) -> str:
    """Where a task waits, innermost last."""
    names, inner = [], task.get_coro()
    while inner is not None:
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "ag_frame", None)
        if frame is not None:
            names.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
        inner = getattr(inner, "cr_await", None) or getattr(inner, "ag_await", None)
    return " > ".join(names)


@dataclass
class History:
    """One random history. `run` raises `Broken`, with the seed and every step in its text."""

    seed: int
    uri: str
    shape: Shape | None = None
    trace: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.shape = self.shape or shape_of(self.rng)
        self.source = SimSource(self.rng, uuids=self.shape.uuids)
        self.target = f"h{self.seed}"
        self.schedule = Schedule(self.rng, self.uri)
        self.schedule.density = self.shape.density
        self.settings = UnitSettings.of(
            SchemaConfig(
                name=self.target,
                database="sim",
                table_blacklist=[OUTSIDE],
                deletion_strategy="soft" if self.shape.soft else "hard",
                max_parallel_streams=self.shape.readers,
                full_load_batch_size=self.rng.choice([1, 3, 6]),
            )
        )
        self.worker: Worker | None = None
        self.sleepers: list[Worker] = []
        self.counter = 0
        self.burst = 0  # steps for which the source is quiet

    def log(self, text: str) -> None:
        self.trace.append(text)

    # -- the run --------------------------------------------------------------------------------------

    async def run(self) -> None:
        with stepwise(self.schedule):
            try:
                await self._run()
            finally:
                self.schedule.open_all()
                for worker in self.schedule.workers:
                    await worker.kill()
                self.schedule.close()
        if self.violations:
            raise Broken(f"seed {self.seed}, {self.shape}: {self.violations}\n" + "\n".join(self.trace))

    async def _run(self) -> None:
        for _ in range(self.rng.randint(0, 30)):
            self._write()
        self.start()
        for _ in range(self.shape.steps):
            await self._step()
            await self.schedule.settle()
            if self.violations:
                return
        await self.drain()

    async def _step(self) -> None:
        self.burst -= 1
        if self.burst > 0 or self.rng.random() < self.shape.tempo:
            gate = self.schedule.pick()
            if gate is not None:
                self.log(f"  w{gate.worker.number} > {gate.label}")
                gate.future.set_result(None)
                return
            await asyncio.sleep(0.01)  # all wait for a frozen one's locks, until the server ends its session
        ends = self.shape.ends
        action, weights = zip(
            (self._write, 45.0),
            (self._transaction, 6.0),
            (self.source.noop, 3.0),
            (self._race, 25.0),
            (self._barrier, 4.0),
            (self._kill, 2.0 * ends),
            (self._freeze, 2.0 * ends),
            (self._wake, 2.0 * ends),
            (self._trim, 1.0 * ends),
            (self._restore, 0.5 * ends),
            (self._fault, 6.0 * ends),
            (self._cut, 1.0 * ends),
            strict=True,
        )
        chosen = self.rng.choices(action, weights)[0]
        done = chosen()
        if done is not None:
            await done

    # -- what happens at the source -------------------------------------------------------------------

    def _document(self, key: Any) -> dict[str, Any]:
        self.counter += 1
        document: dict[str, Any] = {"_id": key, "v": self.counter}
        if self.rng.random() < 0.4:
            document[f"f{self.rng.randrange(4)}"] = self.rng.choice([self.counter, f"text {self.counter}"])
        return document

    def _key(self) -> Any:
        number = self.rng.randrange(self.shape.keys)
        return f"k{number}" if self.shape.mixed and self.rng.random() < 0.25 else number

    def _write(self) -> None:
        name = self.rng.choice(["a", "a", "a", "b", OUTSIDE])
        self._change(name, sorted(self.source.documents(name), key=str))

    def _race(self) -> None:
        """Change what a chunk has just read, and let its reader be slow."""
        name, keys = self.source.latest_page
        there = self.source.documents(name)
        self._change(name, [key for key in keys if key in there], race=True)
        self.schedule.hold("chunk was read")
        self.burst = self.rng.choice([0, 10, 25])

    def _change(self, name: str, keys: list[Any], *, race: bool = False) -> None:
        how = self.rng.choices(["put", "update", "delete"], [1, 3, 6] if race else [4, 3, 4])[0]
        if race and not keys:
            return
        if how == "put" or not keys:
            key, image, op = self._key(), None, Op.UPSERT
            image = self._document(key)
        else:
            key = self.rng.choice(keys)
            image = None if how == "delete" else self._document(key)
            op = Op.FETCH
        self.source.write(name, key, image, how=op)
        self.log(f"{self.source.time}: {name} {key!r} {op.name if image else 'DELETE'} {image or ''}")

    def _transaction(self) -> None:
        count = self.rng.randint(2, 4)
        self.source.transaction(lambda: [self._write() for _ in range(count)])

    def _barrier(self) -> None:
        names = self.source.existing()
        if not names:
            return
        name = self.rng.choice(names)
        how = self.rng.choices(["drop", "rename", "reshard", "drop database"], [4, 4, 1, 1])[0]
        if how == "drop":
            self.source.drop(name)
        elif how == "rename":
            new = self.rng.choice([other for other in (*WANTED, OUTSIDE) if other != name])
            self.source.rename(name, new)
            how = f"rename to {new}"
        elif how == "reshard":
            self.source.reshard(name)
        else:
            self.source.drop_database()
        self.log(f"{self.source.time}: {how} {name}")

    def _trim(self) -> None:
        self.source.trim()
        self.log(f"{self.source.time}: the oplog begins at {self.source.lost}")

    def _restore(self) -> None:
        self.source.restore()
        self.log(f"{self.source.time}: the source is restored, era {self.source.era}")

    # -- what happens to workers ----------------------------------------------------------------------

    def start(self, *, once: bool = False) -> Worker:
        number = len(self.schedule.workers) + 1
        self.log(f"worker {number} starts{' once' if once else ''}")
        self.worker = Worker(
            number, self.schedule, self.source, self.settings, self.uri, self.log, self.violations, once=once
        )
        self.worker.start()
        return self.worker

    async def _kill(self) -> None:
        assert self.worker is not None
        self.log(f"worker {self.worker.number} is killed")
        await self.worker.kill()
        self.start()

    def _freeze(self) -> None:
        """The worker stops in the middle of something; another takes over as soon as it counts as dead."""
        assert self.worker is not None
        if len(self.sleepers) >= 2:
            return
        self.log(f"worker {self.worker.number} is frozen")
        self.worker.frozen = True
        self.sleepers.append(self.worker)
        self._age(self.worker)
        self.start()

    def _age(self, worker: Worker) -> None:
        """Make the last sign of life an old one."""
        query = (
            "INSERT INTO {m}.workers (target, instance, epoch, state, heartbeat)"
            " VALUES ({t}, %s, 0, 'streaming', now() - interval '1 hour')"
            " ON CONFLICT (target, instance) DO UPDATE SET heartbeat = excluded.heartbeat"
        )
        statement = sql.SQL(query).format(m=sql.Identifier(self.settings.metadata_schema), t=sql.Literal(self.target))
        try:
            self.schedule.server.execute(statement, (worker.destination.instance,))
        except psycopg.errors.UndefinedTable:
            self.log("(there is no metadata yet)")

    def _wake(self) -> None:
        if self.sleepers:
            worker = self.sleepers.pop(self.rng.randrange(len(self.sleepers)))
            self.log(f"worker {worker.number} wakes")
            worker.frozen = False

    def _fault(self) -> None:
        assert self.worker is not None
        self.worker.fault = self.rng.choice(["commit lost", "commit unknown"])
        self.log(f"worker {self.worker.number}: next is {self.worker.fault}")

    def _cut(self) -> None:
        assert self.worker is not None
        self.log(f"worker {self.worker.number} loses its connections")
        self.schedule.end_sessions(self.worker)

    # -- the end --------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Everybody goes on, the source is quiet; a last worker ends when all is copied and caught up."""
        self.log("drain")
        while self.sleepers:
            self._wake()
        self.schedule.open_all()
        assert self.worker is not None
        if self.rng.random() < 0.5:
            await self._follow(self.worker)
            return
        if self.rng.random() < 0.5:
            await self.worker.kill()
        await self._stopped()
        last = self.start(once=True)
        assert last.task is not None
        done, _ = await asyncio.wait({last.task}, timeout=DRAIN_SECONDS)
        if not done:
            self.violations.append(f"the last worker does not come to an end; {self._progress(last)}")
        if not self.violations:
            self.check()

    async def _follow(self, worker: Worker) -> None:
        """The living worker must come to equality by itself, without a restart."""
        deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS
        while worker.alive and not self.violations:
            await asyncio.sleep(0.02)
            try:
                self.check()
            except psycopg.errors.LockNotAvailable:
                self.violations.append("a column is being added")
            if not self.violations:
                break
            if asyncio.get_running_loop().time() < deadline:
                self.violations.clear()
            else:
                self.violations.append(f"the worker does not get there; {self._progress(worker)}")
                self.log("\n".join(_awaited(task) for task in asyncio.all_tasks()))
        await self._stopped()

    async def _stopped(self) -> None:
        tasks = {worker.task for worker in self.schedule.workers if worker.task is not None and worker.alive}
        for worker in self.schedule.workers:
            await worker.processor.stop()
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=DRAIN_SECONDS)
            if pending:
                self.violations.append("a worker does not stop")

    def _progress(self, worker: Worker) -> str:
        rows = self.schedule.server.execute(
            sql.SQL(
                'SELECT "table", state, lower, upper, generation FROM {}.snapshot_chunks WHERE target = {}'
                " AND state IN ('open', 'claimed')"
            ).format(sql.Identifier(self.settings.metadata_schema), sql.Literal(self.target))
        ).fetchall()
        return f"{worker.processor.state} {worker.processor.error} chunks {rows}"

    def check(self) -> None:
        plans = self._plans()
        for name in WANTED:
            expected = {key_hash(key): document for key, document in self.source.documents(name).items()}
            rows = self._rows(plans[name]) if name in plans else {}
            for key in expected.keys() | rows.keys():
                self._compare(name, plans.get(name), expected.get(key), rows.get(key))
        if self._query("SELECT FROM {m}.dead_letters WHERE target = {t} AND state IN ('open', 'waiting')"):
            self.violations.append("a dead letter is left")
        if self._query("SELECT FROM {m}.snapshot_chunks WHERE target = {t} AND state IN ('open', 'claimed')"):
            self.violations.append("a chunk is left")
        if self._query("SELECT FROM {m}.tombstones WHERE target = {t}"):
            self.violations.append("a tombstone is left")

    def _compare(self, name: str, plan: TablePlan | None, document: Any, row: dict[str, Any] | None) -> None:
        if document is None or row is None:
            if row is None or not self._is_gone(plan, row):
                what = "has no row" if row is None else "has no document"
                self.violations.append(f"{name}: {document or row} {what}")
            return
        assert plan is not None
        if self._is_gone(plan, row) or not equal(document, rebuild(plan, row)):
            self.violations.append(f"{name}: {document} is not {row}")
        offset = self._query("SELECT version_offset FROM {m}.sync_markers WHERE target = {t}")[0][0]
        if row["_warp_version"] > BASE + self.source.time + offset:
            self.violations.append(f"{name}: {row} is newer than the source")
        later = (
            'SELECT version FROM {m}.deletion_audit WHERE target = {t} AND "table" = %s AND key = %s AND version > %s'
        )
        if self._query(later, name, key_hash(document["_id"]), row["_warp_version"]):
            self.violations.append(f"{name}: {document} was deleted at a later version than its row has")

    def _is_gone(self, plan: TablePlan | None, row: dict[str, Any]) -> bool:
        return plan is not None and plan.soft_column is not None and bool(row[plan.soft_column])

    def _query(self, query: str, *parameters: Any) -> list[Any]:
        statement = sql.SQL(query).format(m=sql.Identifier(self.settings.metadata_schema), t=sql.Literal(self.target))
        return self.schedule.server.execute(statement, parameters).fetchall()

    def _plans(self) -> dict[str, TablePlan]:
        found = self._query(
            'SELECT DISTINCT ON ("table") "table", definition FROM {m}.schema_registry WHERE target = {t}'
            ' ORDER BY "table", version DESC'
        )
        return {name: TablePlan.from_json(definition) for name, definition in found}

    def _rows(self, plan: TablePlan) -> dict[bytes, dict[str, Any]]:
        columns = [name for name, _ in copy_columns(plan)] + ([plan.soft_column] if plan.soft_column else [])
        query = sql.SQL("SELECT {} FROM {}").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(self.target, plan.relation)
        )
        with self.schedule.server.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(query).fetchall()
        return {key_hash(row[plan.key_column]) if plan.native else bytes(row[plan.key_column]): row for row in rows}
