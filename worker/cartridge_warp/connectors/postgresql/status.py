"""What the metadata says of one schema, as plain data for people and programs. Reads only."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.sql import Identifier

from cartridge_warp.config import UnitSettings
from cartridge_warp.connectors.postgresql.sql import Statements

__all__ = ["read_status"]

_WORKER = """
SELECT w.state, w.detail, w.host, w.version, f.epoch, w.lag_seconds,
    round(extract(epoch FROM now() - w.heartbeat)::numeric, 1)::double precision AS heartbeat_age_seconds
FROM {m}.fence f LEFT JOIN {m}.workers w ON w.target = f.target AND w.instance = f.instance
WHERE f.target = {t}
"""
_POSITION = """
SELECT seq, rows, source_time, updated_at,
    round(extract(epoch FROM now() - updated_at)::numeric, 1)::double precision AS age_seconds
FROM {m}.sync_markers WHERE target = {t} AND "table" = '' AND kind = 'stream'
"""
_TABLES = """
SELECT t.collection AS name, t.relation, t.state, t.key_type, t.generation, t.rows_done, t.rows_estimated,
    t.reason, t.completed_at,
    (SELECT count(*) FROM {m}.dead_letters d WHERE d.target = {t} AND d."table" = t.collection
        AND d.state IN ('open', 'waiting')) AS dead_letters
FROM {m}.tables t WHERE t.target = {t} ORDER BY t.collection
"""
_ERROR = 'SELECT class AS code, message, "table", at FROM {m}.error_log WHERE target = {t} ORDER BY id DESC LIMIT 1'


async def read_status(c: AsyncConnection[Any], unit: UnitSettings) -> dict[str, Any]:
    """Keys: schema, database, target, state, worker, position, lag_seconds, tables, dead_letters, last_error.

    `state` is the worker's word while it is alive, `lost` when its heartbeat is older than 20 s, and
    `not initialised` before the first start.
    """
    statements = Statements(unit.metadata_schema, unit.target)
    found: dict[str, Any] = {"schema": unit.name, "database": unit.database, "target": unit.target}
    name = f"{Identifier(unit.metadata_schema).as_string(c)}.fence"
    exists = await (await c.execute("SELECT to_regclass(%s)", (name,))).fetchone()
    if exists is None or exists[0] is None:
        return found | {"state": "not initialised", "tables": []}
    async with c.cursor(row_factory=dict_row) as cursor:

        async def rows(text: str) -> list[dict[str, Any]]:
            await cursor.execute(statements.m(text), ())
            return await cursor.fetchall()

        worker = next(iter(await rows(_WORKER)), None)
        tables = await rows(_TABLES)
        found |= {
            "state": _state(worker),
            "worker": worker,
            "position": next(iter(await rows(_POSITION)), None),
            "lag_seconds": worker["lag_seconds"] if worker else None,
            "tables": tables,
            "dead_letters": sum(table["dead_letters"] for table in tables),
            "last_error": next(iter(await rows(_ERROR)), None),
        }
    return found


def _state(worker: dict[str, Any] | None) -> str:
    if worker is None or worker["state"] is None:
        return "not initialised" if worker is None else "lost"
    ended = worker["state"] in ("stopped", "done", "failed")
    return "lost" if not ended and worker["heartbeat_age_seconds"] > 20 else str(worker["state"])
