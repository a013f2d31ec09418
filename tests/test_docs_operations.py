"""What docs/operations.md tells people to type works: its SQL is run as it stands there."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pymongo
import pytest

from cartridge_warp.connectors.postgresql import PostgreSQLDestinationConnector
from cartridge_warp.errors import DestinationRefused
from warp_testing.replica import Replica, config_for
from warp_testing.servers import MongoServer

PAGE = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()
SQL = re.findall(r"^```sql\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


class Typist:
    """Types the page's SQL as the administrator, with names of the test's own in place of the page's."""

    def __init__(self, uri: str, schema: str) -> None:
        info = psycopg.conninfo.conninfo_to_dict(uri)
        self.uri, self.names = uri, {"warehouse": info["dbname"], "shop": schema}
        self.roles = {role: f"{role}_{schema}" for role in ("warp", "analysts", "monitor")}

    def type(self, start: str) -> None:
        """The one block that begins so."""
        (text,) = [block for block in SQL if block.startswith(start)]
        for name, own in (self.names | self.roles).items():
            text = re.sub(rf"\b{name}\b(?!_)", own, text)
        self.execute(text)

    def execute(self, text: str, role: str | None = None) -> list[Any]:
        """Any SQL, as the administrator or in one of the roles."""
        with psycopg.connect(self.as_role(role) if role else self.uri, autocommit=True) as connection:
            cursor = connection.execute(text)
            return cursor.fetchall() if cursor.description else []

    def as_role(self, role: str) -> str:
        return psycopg.conninfo.make_conninfo(self.uri, user=self.roles[role])


@pytest.fixture
def typist(mongo, postgres) -> Iterator[Typist]:
    found = Typist(postgres, mongo.name)
    yield found
    for role in found.roles.values():
        if found.execute(f"SELECT FROM pg_roles WHERE rolname = '{role}'"):
            found.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def uri_of(typist: Typist, role: str) -> str:
    """A connection string as a configuration has it."""
    parts = psycopg.conninfo.conninfo_to_dict(typist.as_role(role))
    return f"postgresql://{parts['user']}@{parts['host']}:{parts['port']}/{parts['dbname']}"


async def replicate(mongo, typist: Typist) -> None:
    """One run of a worker in the role `warp`; the administrator then finds both ends equal."""
    await Replica(config_for(mongo.uri, uri_of(typist, "warp"), mongo.name)).once()
    assert await Replica(config_for(mongo.uri, typist.uri, mongo.name)).differences() == []


async def test_a_role_that_may_create_schemas(mongo, typist):
    """CREATE on the database is all that a worker's role needs; without it the worker says so."""
    mongo.db.orders.insert_many([{"_id": i} for i in range(5)])
    typist.execute(f"CREATE ROLE {typist.roles['warp']} LOGIN")
    with pytest.raises(DestinationRefused, match="grant CREATE on the database"):
        await replicate(mongo, typist)
    typist.execute(f"DROP ROLE {typist.roles['warp']}")
    typist.type("CREATE ROLE warp LOGIN PASSWORD 'change-me';\nGRANT CREATE")
    await replicate(mongo, typist)
    mongo.db.orders.insert_one({"_id": "another type of key", "and": "a column"})
    await replicate(mongo, typist)
    await replicate(mongo, typist)  # a later start needs no more either
    assert typist.execute("SELECT count(*) FROM cartridge_warp_metadata.dead_letters WHERE state = 'open'") == [(0,)]


async def test_schemas_that_an_administrator_made(mongo, postgres, typist):
    """With its two schemas there the role needs nothing on the database; readers and a monitor see what they should,
    also of tables that come later."""
    mongo.db.orders.insert_many([{"_id": i} for i in range(5)])
    typist.type("CREATE ROLE warp LOGIN PASSWORD 'change-me';\nCREATE SCHEMA")
    await replicate(mongo, typist)
    for role in ("analysts", "monitor"):
        typist.execute(f"CREATE ROLE {typist.roles[role]} LOGIN")
    typist.type("GRANT USAGE ON SCHEMA shop TO analysts")
    typist.type("GRANT USAGE ON SCHEMA cartridge_warp_metadata TO monitor")
    mongo.db.later.insert_one({"_id": 1})
    await replicate(mongo, typist)
    for table, count in (("orders", 5), ("later", 1)):
        assert typist.execute(f"SELECT count(*) FROM {mongo.name}.{table}", "analysts") == [(count,)]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        typist.execute(f"DELETE FROM {mongo.name}.orders", "analysts")
    destination = PostgreSQLDestinationConnector(uri_of(typist, "monitor"))
    await destination.connect()
    (status,) = await destination.status(config_for(mongo.uri, postgres, mongo.name).units())
    await destination.disconnect()
    assert [table["name"] for table in status["tables"]] == ["later", "orders"]


async def test_granted_schemas_are_enough(mongo, typist):
    """USAGE and CREATE on both schemas do in place of owning them."""
    (grant,) = re.findall(r"`(GRANT USAGE, CREATE ON SCHEMA [^`]+ TO )warp`", PAGE)
    role = typist.roles["warp"]
    typist.execute(f"CREATE ROLE {role} LOGIN; CREATE SCHEMA cartridge_warp_metadata; CREATE SCHEMA {mongo.name}")
    typist.execute(grant.replace("shop", mongo.name) + role)
    mongo.db.orders.insert_one({"_id": 1})
    await replicate(mongo, typist)


async def test_the_role_read_is_all_that_mongodb_asks_for(postgres):
    """A user with `read` on the one database, created as the page says, copies and follows it."""
    assert 'roles: [ { role: "read", db: "shop" } ]' in PAGE
    server = MongoServer().start()
    try:
        with server.client() as client:
            client.shop.orders.insert_one({"_id": 1})
            client.admin.command("createUser", "root", pwd="pw", roles=["root"])
            client.admin.command("createUser", "warp", pwd="pw", roles=[{"role": "read", "db": "shop"}])
        assert server.process is not None
        server.process.terminate()  # users are durable after an orderly end only
        server.process.wait()
        server.options = ("--auth",)
        server.start()
        replica = Replica(config_for(f"mongodb://warp:pw@127.0.0.1:{server.port}/", postgres, "shop"))
        root = pymongo.MongoClient(f"mongodb://root:pw@127.0.0.1:{server.port}/")
        with root as client:
            async with replica.running():
                await replica.settled()
                client.shop.orders.update_one({"_id": 1}, {"$set": {"n": 1}})
                client.shop.orders.insert_one({"_id": 2})
                await replica.settled()
    finally:
        server.close()


async def test_a_table_is_copied_again(mongo, postgres, typist):
    """Rows that were changed, deleted and added by hand are right again after the page's statement and a start."""
    replica = Replica(config_for(mongo.uri, postgres, mongo.name))
    mongo.db.orders.insert_many([{"_id": i, "n": i} for i in range(20)])
    await replica.once()
    replica.query("UPDATE orders SET n = -1 WHERE _id = 5")
    replica.query("DELETE FROM orders WHERE _id = 6")
    replica.query("INSERT INTO orders (_id, n, _warp_version) SELECT 99, 9, _warp_version FROM orders WHERE _id = 1")
    assert await replica.differences() != []
    typist.type("UPDATE cartridge_warp_metadata.tables SET state = 'stale', reason = 'copied again")
    await replica.once()
    assert await replica.differences() == []


async def test_a_table_is_made_anew(mongo, postgres, typist):
    """A table that was dropped stops the schema with its name; after the page's statements it is made anew, with the
    types that its documents have now."""
    replica = Replica(config_for(mongo.uri, postgres, mongo.name))
    mongo.db.orders.insert_one({"_id": 1, "n": 1})
    await replica.once()
    mongo.db.orders.update_one({"_id": 1}, {"$set": {"n": "text"}})
    await replica.once()
    assert replica.query("SELECT n FROM orders") == [(None,)]
    typist.type("DROP TABLE IF EXISTS shop.orders")
    await replica.once()
    assert replica.query("SELECT n FROM orders") == [("text",)]
    assert await replica.differences() == []


async def test_a_target_is_forgotten(mongo, postgres, typist):
    """After the page's statements nothing is left of a target, and another source may fill it."""
    replica = Replica(config_for(mongo.uri, postgres, mongo.name))
    mongo.db.orders.insert_many([{"_id": 1}, {"_id": 2}])
    await replica.once()
    other = Replica(config_for(mongo.uri, postgres, mongo.name, identity=secrets.token_hex(4)))
    typist.type("DROP SCHEMA shop CASCADE")
    assert replica.query("SELECT count(*) FROM owners") == [(0,)]
    await other.once()
    assert await other.differences() == []


async def test_open_dead_letters_are_found(mongo, postgres, typist):
    """The page's query shows the open dead letters of a target."""
    replica = Replica(config_for(mongo.uri, postgres, mongo.name))
    mongo.db.orders.insert_one({"_id": 1, "n": 1})
    await replica.once()
    replica.query("ALTER TABLE orders ADD CHECK (n < 100)")
    mongo.db.orders.update_one({"_id": 1}, {"$set": {"n": 100}})
    await replica.once()
    (query,) = [block for block in SQL if block.startswith('SELECT "table", document_id')]
    ((table, key, class_, message, _),) = typist.execute(query.replace("shop", mongo.name))
    assert (table, key, class_) == ("orders", {"$numberInt": "1"}, "23514")
    assert "violates check constraint" in message
