"""Versioned migrations of the metadata schema, each in `migrations/NNNN_name.sql`.

Migrations only add, so that an older worker can go on beside a newer one; each names the oldest version that
may still work with the result.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.sql import SQL, Identifier

from cartridge_warp import __version__
from cartridge_warp.connectors.postgresql.sql import lock_key
from cartridge_warp.errors import DestinationRefused, MetadataTooNew

__all__ = ["available", "migrate"]

_OLDEST = re.compile(r"^-- min_worker_version: (\S+)$", re.MULTILINE)


def available() -> list[tuple[int, str, str]]:
    """All migrations in order: number, file name, text."""
    folder = resources.files(__package__) / "migrations"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda f: f.name)
    return [(int(entry.name[:4]), entry.name, entry.read_text()) for entry in files]


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


async def migrate(c: AsyncConnection[Any], schema: str) -> None:
    """Bring the metadata schema up to date. Raises MetadataTooNew when it is ahead of this worker."""
    name = Identifier(schema)
    try:
        async with c.transaction():
            await c.execute("SELECT pg_advisory_xact_lock(%s)", (lock_key("migrations", schema),))
            applied = await _applied(c, schema)
            for version, title, text in available():
                if version in applied:
                    continue
                oldest = _OLDEST.search(text)
                await c.execute(SQL(text).format(m=name))
                await c.execute(
                    SQL("INSERT INTO {}.migrations (version, name, min_worker_version) VALUES (%s, %s, %s)").format(
                        Identifier(schema.replace("%", "%%"))  # with parameters a single % is a placeholder
                    ),
                    (version, title, oldest[1] if oldest else __version__),
                )
    except psycopg.errors.InsufficientPrivilege as error:
        raise DestinationRefused(
            f"the metadata schema {schema} cannot be created or changed: {error.diag.message_primary};"
            " grant CREATE on the database to the worker's role, or create the schema and grant all on it"
        ) from error


async def _applied(c: AsyncConnection[Any], schema: str) -> set[int]:
    name = Identifier(schema)
    found = await (await c.execute("SELECT to_regclass(%s)", (f"{name.as_string(c)}.migrations",))).fetchone()
    if found is None or found[0] is None:
        exists = await (await c.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,))).fetchone()
        if exists is None:
            await c.execute(SQL("CREATE SCHEMA {}").format(name))
        await c.execute(
            SQL(
                "CREATE TABLE {}.migrations (version integer PRIMARY KEY, name text NOT NULL,"
                " min_worker_version text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
            ).format(name)
        )
        return set()
    cursor = await c.execute(SQL("SELECT version, min_worker_version FROM {}.migrations").format(name))
    rows = await cursor.fetchall()
    for _, oldest in rows:
        if _number(oldest) > _number(__version__):
            raise MetadataTooNew(
                f"the metadata schema {schema} needs cartridge-warp {oldest} or newer and this is {__version__};"
                " upgrade this worker"
            )
    return {version for version, _ in rows}
