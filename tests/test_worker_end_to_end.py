"""The whole way: real documents, a real worker, real rows."""

from __future__ import annotations

import pytest

from warp_testing.replica import Replica, config_for


@pytest.fixture
def replica(mongo, postgres) -> Replica:
    return Replica(config_for(mongo.uri, postgres, mongo.name))


async def test_one_document_becomes_one_row(mongo, replica):
    """A document that exists before the start is a row after a single run."""
    mongo.db.users.insert_one({"_id": 1, "name": "Ada", "age": 36})
    await replica.once()
    assert replica.query("SELECT _id, name, age FROM users") == [(1, "Ada", 36)]
    assert await replica.differences() == []


async def test_changes_follow(mongo, replica):
    """Inserts, updates, deletes, a new field and a new collection arrive while the worker runs."""
    mongo.db.users.insert_many([{"_id": i, "name": f"n{i}"} for i in range(100)])
    async with replica.running():
        await replica.settled()
        mongo.db.users.insert_one({"_id": 1000, "name": "late", "extra": {"a": [1, 2.5]}})
        mongo.db.users.update_one({"_id": 5}, {"$set": {"name": "changed"}, "$unset": {"x": 1}})
        mongo.db.users.delete_one({"_id": 6})
        mongo.db.orders.insert_one({"total": 12.5})
        await replica.settled()
    mongo.db.users.update_one({"_id": 5}, {"$unset": {"name": 1}})
    async with replica.running():
        await replica.settled()
    assert replica.query("SELECT name FROM users WHERE _id = 5") == [(None,)]
