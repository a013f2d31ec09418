"""What must hold before the first document is copied, and which source this is."""

from __future__ import annotations

from typing import Any, Final

from bson.timestamp import Timestamp
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.errors import OperationFailure

from cartridge_warp.config import UnitSettings
from cartridge_warp.connectors.mongodb.errors import guard, is_refusal
from cartridge_warp.errors import SourceRefused

__all__ = ["Server", "check_oplog", "check_sharding", "check_topology", "is_missing", "oldest_change"]

Client = AsyncMongoClient[dict[str, Any]]
_NOT_HERE: Final = frozenset({20, 26, 73, 76, 352})  # no such namespace, not on this kind of server
_SHORT_WINDOW: Final = 3600
_WIRE_5_0: Final = 13


class Server:
    """What the server says about itself."""

    def __init__(self, hello: dict[str, Any]) -> None:
        self.is_mongos = hello.get("msg") == "isdbgrid"
        self.set_name: str | None = hello.get("setName")
        self.uninitiated = bool(hello.get("isreplicaset"))
        self.capped_deletes = int(hello.get("maxWireVersion", 0)) >= _WIRE_5_0

    @classmethod
    async def ask(cls, client: Client) -> Server:
        """Ask the server that the driver has chosen."""
        return cls(await client.admin.command("hello"))

    async def cluster_id(self, client: Client) -> str:
        """A name of the cluster that outlives restarts: the id that it was given when it was made, where this
        user may read that, else the replica set's name."""
        if self.is_mongos:
            found = await _read_one(client.config["version"], {})
            return f"cluster:{found['clusterId']}" if found and "clusterId" in found else "cluster"
        found = await _read_one(client.local["system.replset"], {})
        made = (found or {}).get("settings", {}).get("replicaSetId")
        return f"replicaSet:{self.set_name}" if made is None else f"replicaSet:{self.set_name}:{made}"


async def check_topology(client: Client) -> Server:
    """Refuse what has no change streams, and a shard that is reached past its router."""
    with guard("connect to MongoDB"):
        await client.admin.command("ping")  # the first command that needs the password to be right
        server = await Server.ask(client)
        if server.is_mongos:
            return server
        where = _address(await client.address)
        if server.uninitiated:
            raise SourceRefused(f"{where} is a replica set member that was never initiated; run rs.initiate() on it")
        if server.set_name is None:
            raise SourceRefused(
                f"{where} is a standalone mongod: change streams need a replica set; start it with --replSet "
                "and run rs.initiate()"
            )
        if await _read_one(client.admin["system.version"], {"_id": "shardIdentity"}) is not None:
            raise SourceRefused(f"{where} is a shard of a cluster; connect to the cluster's mongos instead")
    return server


async def check_sharding(client: Client, settings: UnitSettings) -> None:
    """Refuse a wanted collection in which two shards may hold the same `_id`."""
    query = {"_id": {"$gte": f"{settings.database}.", "$lt": f"{settings.database}/"}}  # '/' follows '.'
    with guard("read `config.collections`"):
        async for each in client.config["collections"].find(query):
            name = each["_id"].partition(".")[2]
            key = list(each.get("key", {}))
            if each.get("dropped") or not settings.wants(name) or key[:1] == ["_id"] or not key:
                continue
            raise SourceRefused(
                f"collection '{settings.database}.{name}' is sharded by {', '.join(key)}, so that `_id` may "
                "not be unique; exclude it, or set source.id_unique when the application keeps `_id` unique"
            )


async def is_missing(database: AsyncDatabase[Any]) -> bool:
    """True when the database has no collection that this user may see."""
    names = await database.list_collection_names()
    return not names


async def oldest_change(client: Client) -> Timestamp | None:
    """The time of the oldest entry of the oplog; None where this user or a mongos does not show it."""
    # A capped collection without a sort is read in the order of insertion; a sort makes some servers read all of it.
    oldest = await _read_one(client.local["oplog.rs"], {}, projection={"ts": 1})
    return None if oldest is None else oldest["ts"]


async def check_oplog(client: Client, now: Timestamp) -> str | None:
    """A warning when the source forgets its changes within an hour."""
    oldest = await oldest_change(client)
    if oldest is None or now.time - oldest.time >= _SHORT_WINDOW:
        return None
    return (
        f"the oplog reaches back {(now.time - oldest.time) // 60} minutes only: after a longer stop "
        "everything must be copied again; unless the server is new, enlarge the oplog"
    )


async def _read_one(collection: Any, query: dict[str, Any], **options: Any) -> dict[str, Any] | None:
    """A document of a system collection; None when there is none or this user may not read it."""
    try:
        found: dict[str, Any] | None = await collection.find_one(query, **options)
    except OperationFailure as exc:
        if is_refusal(exc) or exc.code is None or exc.code in _NOT_HERE:
            return None
        raise
    return found


def _address(address: tuple[str, int] | None) -> str:
    return "the server" if address is None else f"{address[0]}:{address[1]}"
