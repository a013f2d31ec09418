"""Databases for a whole module of tests, and small helpers around a replica."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import bson
import psycopg
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.database import Database

from warp_testing.replica import Replica, config_for
from warp_testing.servers import MongoServer, PostgresServer


class World:
    """One source database, one destination database and a replica between them."""

    def __init__(self, db: Database[dict[str, Any]], replica: Replica, source: str, destination: str) -> None:
        self.db = db
        self.replica = replica
        self.source = source
        self.destination = destination

    def columns(self, table: str) -> dict[str, str]:
        """A table's columns and their types."""
        return columns(self.replica, table)


@contextmanager
def world(mongo: MongoServer, postgres: PostgresServer, **overrides: Any) -> Iterator[World]:
    """Fresh databases on both servers, dropped in the end."""
    name = f"t{secrets.token_hex(5)}"
    source, destination = f"{mongo.uri}{name}", postgres.uri(name)
    with mongo.client() as client, psycopg.connect(postgres.uri(), autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        try:
            yield World(client[name], Replica(config_for(source, destination, name, **overrides)), source, destination)
        finally:
            client.drop_database(name)
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def columns(replica: Replica, table: str) -> dict[str, str]:
    """A table's columns and their types, in their order."""
    return dict(
        replica.query(
            "SELECT a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a"
            " WHERE a.attrelid = (quote_ident(%s) || '.' || quote_ident(%s))::regclass"
            " AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
            replica.unit.target,
            table,
        )
    )


def state(replica: Replica, table: str) -> str | None:
    """A table's state in the metadata, which a worker that has just been started may not have made yet."""
    if replica.query("SELECT to_regclass(%s)", f"{replica.unit.metadata_schema}.tables") == [(None,)]:
        return None
    found = replica.query("SELECT state FROM tables WHERE collection = %s", table)
    return found[0][0] if found else None


async def until(condition: Callable[[], Any], what: str = "", seconds: float = 30) -> Any:
    """Wait until a condition holds and return its value. It is asked in a thread: a query that waits for a lock of
    the worker in this very loop would keep it from ending its transaction."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not (value := await asyncio.to_thread(condition)):
        assert asyncio.get_running_loop().time() < deadline, what or "the condition did not come true"
        await asyncio.sleep(0.05)
    return value


def insert_raw(db: Database[dict[str, Any]], collection: str, *documents: bytes) -> None:
    """Insert documents that the driver's own types cannot express."""
    for document in documents:
        db[collection].insert_one(RawBSONDocument(document))  # type: ignore[arg-type]


def raw(*elements: tuple[int, bytes, bytes]) -> bytes:
    """A BSON document of elements: type byte, name, bytes of the value."""
    body = b"".join(bytes([kind]) + name + b"\0" + value for kind, name, value in elements)
    return (len(body) + 5).to_bytes(4, "little") + body + b"\0"


def element(name: str, value: Any) -> tuple[int, bytes, bytes]:
    """An element that the driver can encode."""
    encoded = bson.encode({name: value})
    return encoded[4], name.encode(), encoded[4 + 1 + len(name.encode()) + 1 : -1]


__all__ = ["MongoClient", "World", "columns", "element", "insert_raw", "raw", "state", "until", "world"]
