"""The first copy, against PostgreSQL's own COPY BINARY of the same rows into the same table."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import bson
import documents
import psycopg
from psycopg import sql
from stage import METADATA, Destination, Stage, peak_mb, until

from cartridge_warp.cli.demo_check import plans
from cartridge_warp.config import SchemaConfig, UnitSettings
from cartridge_warp.connectors.postgresql.arrays import copy_buffer
from cartridge_warp.connectors.postgresql.sql import Statements
from cartridge_warp.kernel import TablePlan, encode_rows
from warp_testing.process import WorkerProcess

__all__ = ["Baseline", "snapshot"]

PARTS = ("worker", "postgresql", "source")


def snapshot(stage: Stage, schema: str, name: str, rows: int) -> tuple[dict[str, Any], TablePlan]:
    """Copy a collection with a worker process; the figures, and the table that the worker made."""
    with stage.database(name) as destination:
        began = time.monotonic()
        with stage.worker(destination, schema) as worker:
            before = stage.cpu(worker)
            first = until(lambda: _copied(destination, schema), worker)
            cpu, there = stage.cpu(worker), _copied(destination, schema)
            ended = until(lambda: destination.complete(schema), worker)
            used = stage.cpu(worker)
            found = destination.one(f'SELECT count(*) FROM "{schema}".rows')
            figures = {
                "rows": found,
                "rate": rows / (ended - began),
                "rate_from_first_row": (rows - there) / (ended - first) if rows > there else None,
                "start_to_first_row": first - began,
                "start_cpu": {part: cpu[part] - before[part] for part in PARTS},
                "peak_mb": peak_mb(worker),
                "cpu_us": {part: 1e6 * (used[part] - cpu[part]) / max(1, rows - there) for part in PARTS},
            }
            _end(worker)
        if found != rows:
            raise RuntimeError(f"{found} rows arrived of {rows}")
        return figures, asyncio.run(_plan(destination, schema))


def _copied(destination: Destination, schema: str) -> int:
    query = f"SELECT sum(rows_done)::bigint FROM {METADATA}.tables WHERE target = %s"
    return destination.one(query, schema) or 0


def _end(worker: WorkerProcess) -> None:
    worker.stop_signal()
    if worker.wait():
        raise RuntimeError(f"the worker ended with an error: {worker.text[-2000:]}")


async def _plan(destination: Destination, schema: str) -> TablePlan:
    async with await psycopg.AsyncConnection.connect(destination.uri) as connection:
        return (await plans(connection, UnitSettings.of(SchemaConfig(name=schema))))["rows"]


class Baseline:
    """The same rows, encoded once by the kernel, as one COPY into a fresh table with its primary key."""

    def __init__(self, plan: TablePlan, rows: int) -> None:
        encoded = encode_rows(plan, [bson.encode(documents.small(n)) for n in range(rows)], [1] * rows)
        self.rows = len(encoded.index)
        self._plan = plan
        self._buffer = copy_buffer(encoded.fields)

    def rate(self, stage: Stage, schema: str, name: str) -> float:
        """Rows a second, from the begin of the transaction to its commit."""
        statements = Statements(METADATA, schema)
        with stage.database(name) as destination:
            connection = destination.connection
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
            connection.execute(statements.create_table(self._plan))
            began = time.monotonic()
            copy = statements.copy(self._plan)
            with connection.transaction(), connection.cursor() as cursor, cursor.copy(copy) as stream:
                stream.write(self._buffer)
            seconds = time.monotonic() - began
            if destination.one(f'SELECT count(*) FROM "{schema}".rows') != self.rows:
                raise RuntimeError("not every row of the COPY arrived")
            return self.rows / seconds
