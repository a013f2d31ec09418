"""One schema of a MongoDB source: its changes, its documents, its ranges."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from pymongo.asynchronous.mongo_client import AsyncMongoClient

from cartridge_warp.config import SourceConfig, UnitSettings
from cartridge_warp.connectors.mongodb.changes import Feed
from cartridge_warp.connectors.mongodb.errors import guard
from cartridge_warp.connectors.mongodb.fetch import Documents
from cartridge_warp.connectors.mongodb.keys import key_of
from cartridge_warp.connectors.mongodb.position import make_position, position_time, version_of
from cartridge_warp.connectors.mongodb.preflight import (
    Server,
    check_oplog,
    check_sharding,
    check_topology,
    is_missing,
    oldest_change,
)
from cartridge_warp.connectors.mongodb.reads import present
from cartridge_warp.connectors.mongodb.sizes import Sizes
from cartridge_warp.connectors.mongodb.snapshot import Ranges, list_collections
from cartridge_warp.errors import PositionLost
from cartridge_warp.observe.events import Note, Observer
from cartridge_warp.records import (
    Batch,
    Bounds,
    ChunkPage,
    Collection,
    Marker,
    Position,
    SourceIdentity,
    Stamp,
)

__all__ = ["MongoDBUnit"]


class MongoDBUnit:
    """A `SourceUnit` over one database. The client belongs to the connector. `observer`, when set, hears what
    an operator should read."""

    def __init__(self, client: AsyncMongoClient[dict[str, Any]], settings: UnitSettings, config: SourceConfig) -> None:
        self.observer: Observer | None = None
        self._client = client
        self._settings = settings
        self._config = config
        self._where = f"database '{settings.database}'"
        timeout_ms = int(config.read_timeout * 1000)
        database = client[settings.database]
        self._database = database
        self._sizes = Sizes(database)
        self._feed = Feed(database, settings, self._sizes, self._note)
        self._documents = Documents(database, self._sizes, timeout_ms)
        self._ranges = Ranges(database, self._sizes, timeout_ms)

    async def preflight(self) -> list[str]:
        """Check topology, password, privileges, sharding, database and oplog; see `BatchSource.preflight`."""
        server = await check_topology(self._client)
        warnings = []
        with guard(f"read {self._where}"):
            if await is_missing(self._database):
                warnings.append(f"{self._where} has no collection yet; it is copied as soon as there is one")
            now = await present(self._client)
        if server.is_mongos and not self._config.id_unique:
            await check_sharding(self._client, self._settings)
        with guard(f"open a change stream on {self._where}"):
            await self._feed.check()
            if (short := await check_oplog(self._client, now.cluster)) is not None:
                warnings.append(short)
        return warnings

    async def identity(self) -> SourceIdentity:
        """The cluster's id and the database."""
        with guard("ask which cluster this is"):
            server = await Server.ask(self._client)
            return SourceIdentity(await server.cluster_id(self._client), self._settings.database)

    async def now(self) -> Stamp:
        """The source's present moment, from its primary."""
        with guard("ask for the source's time"):
            clock = await present(self._client)
        position = make_position(None, clock.operation, self._feed.fingerprint(), self._settings.database)
        return Stamp(version_of(clock.operation), position, clock.wall)

    async def moment(self) -> Stamp:
        """The same: any moment can be streamed from."""
        return await self.now()

    async def batches(self, marker: Marker) -> AsyncGenerator[Batch, None]:
        """Batches behind the marker; see `BatchSource.batches`."""
        with guard("ask for the source's time"):
            clock = await present(self._client)
        await self._check_kept(marker.position)
        feed = self._feed.batches(marker.position, clock.cluster)
        try:
            async for batch in feed:
                yield batch
        finally:
            await feed.aclose()

    async def _check_kept(self, position: Position) -> None:
        """Not every server refuses to begin at a time that its oplog no longer reaches; some skip the gap."""
        with guard("read the oplog's oldest entry"):
            oldest = await oldest_change(self._client)
        if oldest is not None and position_time(position) < oldest:
            raise PositionLost(
                f"{self._where}: the source no longer holds the changes after the position: its oplog begins"
                f" {oldest.time - position_time(position).time} s later"
            )

    async def complete(self, batch: Batch) -> None:
        """Read the documents that the batch's updates speak of; see `BatchSource.complete`."""
        with guard(f"read changed documents of {self._where}"):
            await self._documents.complete(batch)

    def passed(self, position: Position, stamp: Stamp) -> bool:
        """True when a stream at `position` has delivered every change up to `stamp`. A position without a
        token is where a stream begins, so changes of its very time are still to come."""
        time, present = position_time(position), position_time(stamp.position)
        return time > present or (
            time == present and position["token"] is not None and not position.get("inside", False)
        )

    async def headroom_seconds(self, marker: Marker) -> float | None:
        """Seconds of changes that the source still keeps in front of the position; None when not readable."""
        with guard("read the oplog's oldest entry"):
            oldest = await oldest_change(self._client)
        return None if oldest is None else float(position_time(marker.position).time - oldest.time)

    async def collections(self) -> list[Collection]:
        """Collections that exist now and pass the filters."""
        with guard(f"list the collections of {self._where}"):
            server = await Server.ask(self._client)
            return await list_collections(self._database, self._settings, capped_allowed=server.capped_deletes)

    async def key_sample(self, table: str) -> list[Any]:
        """The first and the last key of a table."""
        with guard(f"read the first and last key of {self._where}, collection '{table}'"):
            return [key_of(end) for end in await self._ranges.ends(table)]

    async def plan_chunks(self, table: str, parts: int) -> list[Bounds]:
        """At most `parts` ranges that cover every possible key."""
        with guard(f"plan the copy of {self._where}, collection '{table}'"):
            return await self._ranges.plan(table, parts)

    async def read_chunk(self, table: str, bounds: Bounds, stamp: Stamp, rows: int, max_bytes: int) -> ChunkPage:
        """The first documents of a range, at `stamp` or later; see `ChunkSource.read_chunk`."""
        with guard(f"copy {self._where}, collection '{table}'"):
            return await self._ranges.read(table, bounds, stamp, rows, max_bytes)

    async def close(self) -> None:
        """End the queries of snapshots; a stream ends with its iterator, the client with the connector."""
        await self._ranges.close()

    def _note(self, message: str) -> None:
        if self.observer is not None:
            self.observer.emit(Note(self._settings.database, self._settings.name, level="warning", message=message))
