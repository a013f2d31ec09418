"""The worker's image as a plain pod, with nothing but a URI on each side."""

from __future__ import annotations

import time
from typing import Any

import bson
import psycopg
import pytest
from psycopg.rows import dict_row
from pymongo.database import Database

from warp_e2e import GRACE_SECONDS, Destination, Namespace, wait_until
from warp_testing.servers import MongoServer

DATABASE = "shop"
MEMBERS = [
    {
        "_id": bson.ObjectId(),
        "name": f"member {number}",
        "points": number * 2**33,
        "score": number / 7,
        "tags": ["a", {"level": number}],
    }
    for number in range(2000)
]


@pytest.fixture
def shop(source: MongoServer) -> Any:
    """The source's database, filled."""
    with source.client() as client:
        client.drop_database(DATABASE)
        client[DATABASE].members.insert_many(MEMBERS)
        yield client[DATABASE]


def environment(source: MongoServer, destination: Destination) -> dict[str, str]:
    return {
        "CARTRIDGE_WARP_SOURCE__CONNECTION_STRING": source.uri,
        "CARTRIDGE_WARP_DESTINATION__CONNECTION_STRING": destination.for_pods,
    }


def rows(destination: Destination) -> list[dict[str, Any]]:
    """The destination's table in order of `_id`; empty while it is not there yet."""
    with psycopg.connect(destination.for_tests, row_factory=dict_row) as connection:
        try:
            return connection.execute(
                'SELECT _id, name, points, score, tags FROM shop.members ORDER BY _id COLLATE "C"'
            ).fetchall()
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
            return []


def expected(shop: Database[Any]) -> list[dict[str, Any]]:
    return [each | {"_id": str(each["_id"])} for each in shop.members.find().sort("_id")]


def test_once_copies_a_collection_and_ends(
    namespace: Namespace, image: str, source: MongoServer, shop: Database[Any], destination: Destination
) -> None:
    """`run --once` in a restricted pod copies every document, exits 0 and never logs the password."""
    pod = namespace.start_worker(
        "once", image, ["run", "--once", "--schema", DATABASE], environment(source, destination)
    )
    assert pod.wait_for_end(120) == 0, pod.story()
    assert rows(destination) == expected(shop)
    assert destination.password not in pod.log()


def test_a_running_pod_follows_changes_and_ends_in_its_grace_period(
    namespace: Namespace, image: str, source: MongoServer, shop: Database[Any], destination: Destination
) -> None:
    """A pod becomes Ready by /readyz, brings changes over, and a deletion ends it cleanly and in time."""
    pod = namespace.start_worker("follow", image, ["run", "--schema", DATABASE], environment(source, destination))
    pod.wait_until_ready(120)
    wait_until("the first copy", 60, lambda: len(rows(destination)) == len(MEMBERS), pod.story)

    shop.members.insert_one({"_id": bson.ObjectId(), "name": "new", "points": 1, "score": 0.5, "tags": []})
    shop.members.update_one({"_id": MEMBERS[0]["_id"]}, {"$set": {"name": "renamed"}})
    shop.members.delete_one({"_id": MEMBERS[1]["_id"]})
    wait_until("the arrival of the changes", 30, lambda: rows(destination) == expected(shop), pod.story)

    started = time.monotonic()
    pod.delete()
    assert pod.wait_for_end(GRACE_SECONDS + 10) == 0, pod.story()
    assert time.monotonic() - started < GRACE_SECONDS
    assert destination.password not in pod.log()
