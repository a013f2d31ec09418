"""Connecting to MongoDB, what preflight says, identity, and the simple methods."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from bson import ObjectId, Timestamp

from cartridge_warp.config import SourceConfig
from cartridge_warp.connectors.base import SourceConnector
from cartridge_warp.connectors.mongodb import MongoDBSourceConnector
from cartridge_warp.connectors.protocols import UnitSource
from cartridge_warp.connectors.registry import ConnectorFactory
from cartridge_warp.errors import SourceRefused, Unavailable
from cartridge_warp.records import Marker, OperationType
from conftest import Mongo
from warp_testing.mongodb import open_unit
from warp_testing.proxy import Proxy, failure
from warp_testing.servers import MongoServer, free_port


def editing(**changes: Any) -> Any:
    """A hook that changes what `hello` says; None removes."""

    def hook(name: str, command: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any] | None:
        if name.lower() not in ("hello", "ismaster") or "maxAwaitTimeMS" in command:
            return None
        return {key: value for key, value in (reply | changes).items() if value is not None}

    return hook


async def test_standalone(mongo_server: MongoServer, mongo: Mongo) -> None:
    """A standalone mongod is refused with what to do about it."""
    hook = editing(setName=None, hosts=None, primary=None, me=None)
    with Proxy(mongo_server.port, hook=hook) as proxy:
        async with open_unit(proxy.mongo_uri + "?directConnection=true", mongo.name) as unit:
            with pytest.raises(SourceRefused, match=r"standalone mongod.*--replSet.*rs\.initiate"):
                await unit.preflight()


async def test_replica_set_without_initiation(mongo_server: MongoServer, mongo: Mongo) -> None:
    """A member that was started but never initiated is told apart from a standalone."""
    hook = editing(setName=None, hosts=None, primary=None, me=None, isreplicaset=True)
    with Proxy(mongo_server.port, hook=hook) as proxy:
        async with open_unit(proxy.mongo_uri + "?directConnection=true", mongo.name) as unit:
            with pytest.raises(SourceRefused, match="never initiated"):
                await unit.preflight()


async def test_unreachable_and_back() -> None:
    """Nothing listens: Unavailable, one sentence, no password in it."""
    uri = f"mongodb://user:topsecret@127.0.0.1:{free_port()}/"
    connector = MongoDBSourceConnector(SourceConfig(connection_string=uri, connection_timeout=0.5))
    with pytest.raises(Unavailable) as caught:
        await connector.connect()
    assert "topsecret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not await connector.test_connection()
    await connector.disconnect()
    await connector.disconnect()


@pytest.mark.parametrize("uri", ["", "mongodb://", "http://x", "mongodb://u:topsecret@h:99999999/"])
async def test_bad_connection_string(uri: str) -> None:
    """A connection string that cannot be right is refused at once, without its password."""
    with pytest.raises(SourceRefused) as caught:
        await MongoDBSourceConnector(uri).connect()
    assert "topsecret" not in str(caught.value)


@pytest.fixture(scope="module")
def secured() -> Iterator[tuple[MongoServer, str]]:
    """A server with a user that may read only the database `mine`."""
    plain = MongoServer().start()
    with plain.client() as client:
        client.admin.command("createUser", "root", pwd="pw", roles=["root"])
        client.admin.command("createUser", "reader", pwd="pw", roles=[{"role": "read", "db": "mine"}])
    assert plain.process is not None
    plain.process.terminate()  # users are durable after an orderly end only
    plain.process.wait()
    server = MongoServer("--auth", storage=plain.storage).start()
    yield server, f"mongodb://reader:pw@127.0.0.1:{server.port}/"
    server.close()
    plain.close()


async def test_wrong_password(secured: tuple[MongoServer, str]) -> None:
    """A wrong password is refused, not retried for ever."""
    connector = MongoDBSourceConnector(secured[1].replace(":pw@", ":wrong@"))
    with pytest.raises(SourceRefused, match="password"):
        await connector.connect()
    await connector.disconnect()


async def test_reader_is_enough(secured: tuple[MongoServer, str]) -> None:
    """The role `read` on the one database is enough; for another the missing privilege is named."""
    async with open_unit(secured[1], "mine") as unit:
        await unit.preflight()
        start = await unit.now()
        await unit.identity()
        await unit.headroom_seconds(Marker(start.position, 0))
        await unit.collections()
    async with open_unit(secured[1], "theirs") as unit:
        with pytest.raises(SourceRefused, match="`read`"):
            await unit.preflight()


async def test_privileges(mongo_server: MongoServer, mongo: Mongo) -> None:
    """A user that may read but not open a change stream is refused before anything is copied."""

    def hook(name: str, command: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any] | None:
        return failure(13, "not authorized on db to execute command { aggregate }") if name == "aggregate" else None

    with Proxy(mongo_server.port, hook=hook) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name) as unit:
            with pytest.raises(SourceRefused, match="changeStream"):
                await unit.preflight()


async def test_sharded(mongo_server: MongoServer, mongo: Mongo) -> None:
    """On a cluster a wanted collection is refused when its shard key does not begin with `_id`, unless declared."""
    shards: dict[str, dict[str, Any]] = {"a": {"_id": 1}, "b": {"_id": "hashed"}, "c": {"zone": 1, "_id": 1}}
    listed = [{"_id": f"{mongo.name}.{name}", "key": key} for name, key in shards.items()]

    def hook(name: str, command: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any] | None:
        if name == "find" and command["find"] == "collections":
            assert command["$db"] == "config"
            return reply | {"cursor": {"id": 0, "ns": "config.collections", "firstBatch": listed}}
        if name == "find" and command["find"] == "version":
            document = {"_id": 1, "clusterId": ObjectId("00" * 12)}
            return reply | {"cursor": {"id": 0, "ns": "config.version", "firstBatch": [document]}}
        return editing(msg="isdbgrid", setName=None, hosts=None, primary=None, me=None)(name, command, reply)

    with Proxy(mongo_server.port, hook=hook) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name) as unit:
            with pytest.raises(SourceRefused, match=r"\.c' is sharded by zone.*id_unique"):
                await unit.preflight()
            assert (await unit.identity()).cluster == f"cluster:{'00' * 12}"
        async with open_unit(proxy.mongo_uri, mongo.name, table_blacklist=["c"]) as unit:
            await unit.preflight()
        async with open_unit(proxy.mongo_uri, mongo.name, {"id_unique": True}) as unit:
            await unit.preflight()


async def test_shard_behind_its_router(mongo_server: MongoServer, mongo: Mongo) -> None:
    """A shard is never read past its mongos."""

    def hook(name: str, command: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any] | None:
        if name == "find" and command["find"] == "system.version":
            return reply | {"cursor": {"id": 0, "ns": "admin.system.version", "firstBatch": [{"_id": "shardIdentity"}]}}
        return None

    with Proxy(mongo_server.port, hook=hook) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name) as unit:
            with pytest.raises(SourceRefused, match="mongos"):
                await unit.preflight()


async def test_warnings(mongo: Mongo) -> None:
    """A database without collections and a short oplog are warnings, not refusals."""
    async with open_unit(mongo.uri, mongo.name) as unit:
        warnings = await unit.preflight()
        assert any("no collection yet" in each for each in warnings)
        assert any("oplog" in each for each in warnings)
        mongo.db.a.insert_one({})
        assert not any("no collection yet" in each for each in await unit.preflight())


async def test_identity_and_headroom(mongo_server: MongoServer, mongo: Mongo) -> None:
    """Identity is the replica set with its id where that is readable; headroom counts back to the oldest entry."""
    async with open_unit(mongo.uri, mongo.name) as unit:
        assert (await unit.identity()).cluster == "replicaSet:secantus"
        assert (await unit.identity()).database == mongo.name
        now = await unit.now()
        headroom = await unit.headroom_seconds(Marker(now.position, 0))
        assert headroom is not None
        assert headroom >= 0

    def hook(name: str, command: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any] | None:
        if name == "find" and command["find"] == "system.replset":
            document = {"_id": "rs", "settings": {"replicaSetId": ObjectId("11" * 12)}}
            return reply | {"cursor": {"id": 0, "ns": "local.system.replset", "firstBatch": [document]}}
        if name == "find" and command["find"] == "oplog.rs":
            return failure(13, "not authorized on local")
        return None

    with Proxy(mongo_server.port, hook=hook) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name) as unit:
            assert (await unit.identity()).cluster == f"replicaSet:secantus:{'11' * 12}"
            assert await unit.headroom_seconds(Marker(now.position, 0)) is None


async def test_now_sees_acknowledged_writes(mongo: Mongo) -> None:
    """A stamp is not before any write that was acknowledged before it was asked for, and reads see it."""
    async with open_unit(mongo.uri, mongo.name) as unit:
        for number in range(10):
            with mongo.client.start_session() as session:
                mongo.db.a.insert_one({"_id": number}, session=session)
                stamp = await unit.now()
                assert session.operation_time is not None
                assert Timestamp(*stamp.position["time"]) >= session.operation_time


async def test_registered(mongo: Mongo) -> None:
    """The connector is found by its type and keeps both levels of the contract."""
    connector = MongoDBSourceConnector(mongo.uri)
    assert isinstance(connector, SourceConnector)
    assert isinstance(connector, UnitSource)
    assert "mongodb" in ConnectorFactory().list_available_connectors()["sources"]


async def test_simple_methods(mongo: Mongo) -> None:
    """Schema, snapshot and changes of the simple level tell of the same documents."""
    mongo.db.people.insert_many([{"_id": n, "name": f"n{n}", "age": n if n else 0.5, "tags": []} for n in range(3)])
    connector = MongoDBSourceConnector(SourceConfig(connection_string=mongo.uri))
    await connector.connect()
    assert await connector.test_connection()
    schema = await connector.get_schema("any")
    assert [table.name for table in schema.tables] == ["people"]
    kinds = {column.name: column.type.value for column in schema.tables[0].columns}
    assert kinds == {"_id": "bigint", "name": "string", "age": "numeric", "tags": "json"}
    found = [record async for record in connector.get_full_snapshot("any", "people", batch_size=2)]
    assert [record.data["name"] for record in found] == ["n0", "n1", "n2"]
    now = (await connector.unit(_settings(mongo.name)).now()).position
    mongo.db.people.update_one({"_id": 1}, {"$set": {"name": "new"}})
    mongo.db.people.delete_one({"_id": 2})
    other = mongo.client[f"{mongo.name}{secrets.token_hex(2)}"]
    other.a.insert_one({})
    events = [event async for event in connector.get_changes("any", now)]
    mongo.client.drop_database(other.name)
    assert [event.record.operation for event in events] == [OperationType.UPDATE, OperationType.DELETE]
    assert events[0].record.data["name"] == "new"
    assert events[1].record.primary_key_values == {"_id": 2}
    again = [event async for event in connector.get_changes("any", events[-1].position_marker)]
    assert again == []
    await connector.disconnect()


def _settings(database: str) -> Any:
    from cartridge_warp.config import SchemaConfig, UnitSettings

    return UnitSettings.of(SchemaConfig(name=database))
