"""Who may write to a target: the owner's claim, the epoch, and the quiet second worker.

The fence row alone keeps two workers apart. The advisory lock only makes a second one wait quietly; where a
transaction pooler stands between, session locks mean nothing and the heartbeat alone is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import AsyncConnection
from psycopg.sql import SQL, Identifier

from cartridge_warp.connectors.postgresql.sql import lock_key
from cartridge_warp.errors import DestinationRefused, SourceChanged, TargetBusy, TargetOwned
from cartridge_warp.records import SourceIdentity

if TYPE_CHECKING:
    from cartridge_warp.connectors.postgresql.target import PostgreSQLTarget

__all__ = ["leave", "stand_by_or_go", "take", "try_lock"]

DEAD_AFTER = 20  # seconds without a heartbeat
TAKE_LOCK_TIMEOUT = "3s"  # how long a take-over waits for the last holder's transactions before it ends them
ENDED = ("stopped", "done", "failed")
Connection = AsyncConnection[Any]

_HOLDER = """
SELECT f.instance, w.host, coalesce(w.state, 'unknown'),
    extract(epoch FROM now() - coalesce(w.heartbeat, f.taken_at))::double precision
FROM {m}.fence f LEFT JOIN {m}.workers w ON w.target = f.target AND w.instance = f.instance
WHERE f.target = {t}
"""


async def try_lock(target: PostgreSQLTarget, c: Connection) -> bool:
    """Hold the target's advisory lock on this connection, if nobody else does; True when it is held."""
    if target.destination.pooled:
        return False
    key = lock_key("worker", target.settings.metadata_schema, target.name)
    held = await c.execute(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        " AND classid = (%(k)s::bigint >> 32 & 4294967295)::oid AND objid = (%(k)s::bigint & 4294967295)::oid)"
        " OR pg_try_advisory_lock(%(k)s)",
        {"k": key},
    )
    row = await held.fetchone()
    return bool(row and row[0])


async def stand_by_or_go(target: PostgreSQLTarget, c: Connection) -> None:
    """Return when this worker may take the epoch; raise TargetBusy while another one is alive."""
    if await try_lock(target, c):
        return
    holder = await (await c.execute(target.statements.m(_HOLDER), ())).fetchone()
    if holder is None or (target.destination.pooled and holder[2] in ENDED) or holder[3] > DEAD_AFTER:
        return
    raise TargetBusy(
        f"{target.where}: worker {holder[0]} on {holder[1] or 'an unknown host'} writes to it"
        f" (last sign of life {holder[3]:.0f} s ago); this one stands by and takes over when that one ends"
    )


async def take(target: PostgreSQLTarget, c: Connection, source: SourceIdentity, *, take_over: bool) -> int:
    """Claim the target and raise its epoch, in one synchronous transaction; returns the epoch."""
    for attempt in range(5):
        try:
            async with c.transaction():
                await c.execute("SET LOCAL synchronous_commit = on")
                await c.execute(SQL("SET LOCAL lock_timeout = {}").format(TAKE_LOCK_TIMEOUT))
                created = await _create_schema(target, c)
                await _own(target, c, source, created=created, take_over=take_over)
                return await _raise_epoch(target, c)
        except psycopg.errors.LockNotAvailable:
            # The last holder is stuck in a transaction (frozen, or its network is gone): end its sessions.
            if attempt == 4:
                raise
            await c.execute(
                target.statements.m(
                    "SELECT pg_terminate_backend(a.pid) FROM {m}.fence f JOIN pg_stat_activity a"
                    " ON a.application_name = 'cartridge-warp ' || f.instance WHERE f.target = {t}"
                ),
                (),
            )
    raise AssertionError("unreachable")


async def _create_schema(target: PostgreSQLTarget, c: Connection) -> bool:
    found = await c.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (target.name,))
    if await found.fetchone() is not None:
        return False
    try:
        async with c.transaction():
            await c.execute(SQL("CREATE SCHEMA {}").format(Identifier(target.name)))
    except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateSchema):
        return False  # another worker that starts at this moment was first
    except psycopg.errors.InsufficientPrivilege as error:
        raise DestinationRefused(
            f"{target.where}: {error.diag.message_primary}; grant CREATE on the database to the worker's role,"
            " or create the schema and make that role its owner"
        ) from error
    return True


async def _own(
    target: PostgreSQLTarget, c: Connection, source: SourceIdentity, *, created: bool, take_over: bool
) -> None:
    m, mine = target.statements.m, target.settings.identity
    await c.execute(
        m(
            "INSERT INTO {m}.owners (target, identity, source_cluster, source_database, schema_created)"
            " VALUES ({t}, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
        ),
        (mine, source.cluster, source.database, created),
    )
    cursor = await c.execute(
        m("SELECT identity, source_cluster, source_database FROM {m}.owners WHERE target = {t} FOR UPDATE"), ()
    )
    row = await cursor.fetchone()
    assert row is not None
    identity, cluster, database = row
    if identity != mine:
        if not take_over:
            raise TargetOwned(
                f"{target.where} belongs to {identity!r} and this worker is {mine!r}; choose another target"
                " schema, or run once with --take-over to claim it"
            )
        await c.execute(m("UPDATE {m}.owners SET identity = %s, claimed_at = now() WHERE target = {t}"), (mine,))
    if database != source.database or not _same_cluster(cluster, source.cluster):
        raise SourceChanged(
            f"{target.where} was filled from database {database} of {cluster}, and the source is now database"
            f" {source.database} of {source.cluster}; connect to the old source, or choose another target schema"
        )


def _same_cluster(known: str, present: str) -> bool:
    """True also when only one of them could be read in full: with fewer privileges an identity has no id at its end."""
    return known == present or known.startswith(f"{present}:") or present.startswith(f"{known}:")


async def _raise_epoch(target: PostgreSQLTarget, c: Connection) -> int:
    m = target.statements.m
    cursor = await c.execute(
        m(
            "INSERT INTO {m}.fence AS f (target, epoch, instance) VALUES ({t}, 1, %s) ON CONFLICT (target)"
            " DO UPDATE SET epoch = f.epoch + 1, instance = excluded.instance, taken_at = now() RETURNING epoch"
        ),
        (target.instance,),
    )
    row = await cursor.fetchone()
    assert row is not None
    await target.markers.release_chunks(c)
    await c.execute(
        m("UPDATE {m}.sync_runs SET state = 'killed', ended_at = now() WHERE target = {t} AND state = 'running'"), ()
    )
    await c.execute(
        m("INSERT INTO {m}.sync_runs (target, instance, mode) VALUES ({t}, %s, %s)"),
        (target.instance, target.settings.mode),
    )
    for history, time, keep in (("workers", "heartbeat", 7), ("sync_runs", "started_at", 90), ("error_log", "at", 90)):
        old = "DELETE FROM {m}.{history} WHERE target = {t} AND {time} < now() - make_interval(days => %s)"
        await c.execute(m(old, history=Identifier(history), time=Identifier(time)), (keep,))
    return int(row[0])


async def leave(target: PostgreSQLTarget, c: Connection, state: str, detail: str) -> None:
    """Note how this worker ended; its connection closes next, which frees the advisory lock."""
    m = target.statements.m
    await c.execute(
        m("UPDATE {m}.workers SET state = %s, detail = %s, heartbeat = now() WHERE target = {t} AND instance = %s"),
        (state, detail, target.instance),
    )
    await c.execute(
        m(
            "UPDATE {m}.sync_runs SET state = %s, detail = %s, ended_at = now()"
            " WHERE target = {t} AND instance = %s AND state = 'running'"
        ),
        (state, detail, target.instance),
    )
