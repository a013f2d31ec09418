"""Changes: how many a second, and how long one takes to be visible."""

from __future__ import annotations

import time
from typing import Any

import documents
from copying import PARTS
from stage import Destination, Stage, peak_mb, resident_mb, until
from writer import Writer

from warp_testing.process import WorkerProcess

__all__ = ["Streams"]

WARM_UP = 50  # changes before the clock runs, so that the table exists
POLL = 0.002


class Streams:
    """Measures on one collection of `rows` documents, whose copy exists in `destination`."""

    def __init__(self, stage: Stage, writer: Writer, destination: Destination, schema: str, rows: int) -> None:
        self._stage = stage
        self._writer = writer
        self._destination = destination
        self._schema = schema
        self._rows = rows
        self._next = rows
        self._turn = 0
        self.peak_mb = 0.0

    def _order(self, kind: str, count: int) -> dict[str, Any]:
        order = {"kind": kind, "count": count, "first": self._next, "existing": self._rows, "turn": self._turn}
        self._next += count
        self._turn += 1
        return order

    def _arrived(self, order: dict[str, Any]) -> bool:
        return self._destination.has_row(self._schema, documents.key(documents.LAST + order["turn"]))

    def backlog(self, kind: str, count: int) -> dict[str, Any]:
        """Changes that were made while no worker ran: from the start of a worker, and from the first commit."""
        order = self._order(kind, count)
        _, _, made = self._writer.do("change", self._schema, **order)
        before = self._destination.changes(self._schema)
        began = time.monotonic()
        with self._stage.worker(self._destination, self._schema) as worker:
            first = until(lambda: self._destination.changes(self._schema) > before, worker)
            cpu, there = self._stage.cpu(worker), self._destination.changes(self._schema) - before
            ended = until(lambda: self._arrived(order), worker)
            used = self._stage.cpu(worker)
            self._end(worker)
        left = made - there
        return {
            "changes": made,
            "rate": made / (ended - began),
            "rate_from_first_commit": left / (ended - first) if left > 0 and ended > first else None,
            "cpu_us": {part: 1e6 * (used[part] - cpu[part]) / max(1, left) for part in PARTS},
        }

    def live(self, worker: WorkerProcess, kind: str, count: int) -> dict[str, Any]:
        """Changes at full writer speed beside a running worker: from the writer's first until all are visible."""
        order = self._order(kind, count)
        cpu = self._stage.cpu(worker)
        self._writer.begin("change", self._schema, **order)
        visible = until(lambda: self._arrived(order), worker)
        used = self._stage.cpu(worker)
        began, ended, made = self._writer.ended()
        return {
            "changes": made,
            "rate": made / (visible - began),
            "writer_rate": made / (ended - began),
            "behind": visible - ended,
            "cpu_us": {part: 1e6 * (used[part] - cpu[part]) / made for part in PARTS},
        }

    def latency(self, worker: WorkerProcess, rate: float, seconds: float) -> dict[str, Any]:
        """From the source's acknowledgement of an insert until its row is visible. Commits keep the order of the
        changes, so the largest key that is visible says which are."""
        count = int(rate * seconds)
        first = self._next
        self._next += WARM_UP + count
        self._writer.do("tick", self._schema, first=first, rate=100, seconds=WARM_UP / 100)
        until(lambda: self._newest() >= first + WARM_UP - 1, worker)
        first += WARM_UP
        self._writer.begin("tick", self._schema, first=first, rate=rate, seconds=seconds)
        seen: list[float] = []
        deadline = time.monotonic() + 2 * seconds + 60
        while len(seen) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{count - len(seen)} of {count} changes are not visible")
            newest = self._newest()
            seen += [time.monotonic()] * max(0, newest - first + 1 - len(seen))
            time.sleep(POLL)
        acknowledged = self._writer.ended()
        waits = sorted(max(0.0, there - told) for there, told in zip(seen, acknowledged, strict=True))
        reached = (count - 1) / (acknowledged[-1] - acknowledged[0])
        return {
            "changes": count,
            "changes_per_second": reached,
            "p50_ms": 1000 * waits[count // 2],
            "p99_ms": 1000 * waits[count * 99 // 100],
            "max_ms": 1000 * waits[-1],
        }

    def _newest(self) -> int:
        return self._destination.one(f'SELECT max(_id) FROM "{self._schema}".ticks') or 0

    def idle(self, worker: WorkerProcess, seconds: float) -> float:
        """Resident memory of a worker that has nothing to do, in MB."""
        deadline = time.monotonic() + seconds
        until(lambda: time.monotonic() >= deadline, worker, every=0.1)
        return resident_mb(worker)

    def _end(self, worker: WorkerProcess) -> None:
        self.peak_mb = max(self.peak_mb, peak_mb(worker))
        worker.stop_signal()
        if worker.wait():
            raise RuntimeError(f"the worker ended with an error: {worker.text[-2000:]}")

    def end(self, worker: WorkerProcess) -> None:
        """Stop a worker in order, and remember its largest memory."""
        self._end(worker)
