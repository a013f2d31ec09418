"""Reads at a moment of the source: majority, and not before a given cluster time."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

from bson.timestamp import Timestamp
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.mongo_client import AsyncMongoClient

from cartridge_warp.errors import SourceRefused

__all__ = ["Clock", "present", "session_at", "split_documents"]

_LENGTH: Final = struct.Struct("<i")


class Clock:
    """What a server says about its time: `operation` is what a read after it will see, `cluster` the newest
    time known in its cluster, `wall` its wall clock."""

    def __init__(self, reply: dict[str, Any]) -> None:
        cluster = reply.get("$clusterTime", {}).get("clusterTime")
        operation = reply.get("operationTime", cluster)
        if operation is None:
            raise SourceRefused(
                "the MongoDB server tells no operation time: change streams need a replica set or a cluster"
            )
        self.operation: Timestamp = operation
        self.cluster: Timestamp = max(operation, cluster or operation)
        self.wall: datetime = reply["localTime"].replace(tzinfo=UTC)


async def present(client: AsyncMongoClient[dict[str, Any]]) -> Clock:
    """The source's time now, from the primary: a change that was acknowledged before is not after it."""
    return Clock(await client.admin.command("hello"))


@asynccontextmanager
async def session_at(client: AsyncMongoClient[dict[str, Any]], time: Timestamp) -> AsyncIterator[AsyncClientSession]:
    """A session of its own for ONE query, which will carry `afterClusterTime` equal to `time`: the session's
    time moves on with each answer, so a second query would carry another."""
    async with client.start_session(causal_consistency=True) as session:
        session.advance_operation_time(time)
        yield session


def split_documents(raw: bytes) -> Iterator[bytes]:
    """The documents of a raw batch, which follow each other without separators."""
    start = 0
    while start < len(raw):
        end = start + _LENGTH.unpack_from(raw, start)[0]
        yield raw[start:end]
        start = end
