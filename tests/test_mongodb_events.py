"""What a mongod does and the test server does not: each shown by editing the stream on its way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from bson import Timestamp
from bson.binary import Binary

from cartridge_warp.errors import PositionLost, Unavailable, WarpError
from cartridge_warp.kernel.bson import decode
from cartridge_warp.observe.events import Note
from cartridge_warp.records import Op
from conftest import Mongo
from warp_testing.mongodb import changes_of, follow, notes_of, open_unit, rows
from warp_testing.proxy import Hook, Proxy, failure
from warp_testing.servers import MongoServer

Event = dict[str, Any]


def on_events(change: Callable[[Event], list[Event]]) -> Hook:
    """A hook that replaces each event of the stream by some others."""

    def hook(name: str, command: Event, reply: Event) -> Event | None:
        if name not in ("aggregate", "getMore") or "cursor" not in reply:
            return None
        cursor = reply["cursor"]
        batch = "firstBatch" if "firstBatch" in cursor else "nextBatch"
        if not cursor[batch] or "operationType" not in cursor[batch][0]:
            return None
        events = [new for old in cursor[batch] for new in change(old)]
        return reply | {"cursor": cursor | {batch: events}}

    return hook


def opens_stream(name: str, command: Event) -> bool:
    return name == "aggregate" and "$changeStream" in (command["pipeline"] or [{}])[0]


async def test_unknown_operation(mongo_server: MongoServer, mongo: Mongo) -> None:
    """An event of a type that is not known is noted once and left out; the stream goes on."""

    def change(event: Event) -> list[Event]:
        return [event | {"operationType": "sparkle"}] if event.get("documentKey", {}).get("_id") in (1, 2) else [event]

    with Proxy(mongo_server.port, hook=on_events(change)) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name) as unit:
            heard = notes_of(unit)
            start = await unit.now()
            mongo.db.a.insert_many([{"_id": n} for n in range(4)])
            batches = await follow(unit, start.position, rows(2))
    assert [change.key for change in changes_of(batches, "a")] == [0, 3]
    assert sum("sparkle" in note.message for note in heard if isinstance(note, Note)) == 1


async def test_no_uuids(mongo_server: MongoServer, mongo: Mongo) -> None:
    """Without UUIDs in the events each barrier asks for a copy of the table, and fetches go by name."""
    mongo.db.a.insert_one({"_id": 1})

    def change(event: Event) -> list[Event]:
        return [{name: value for name, value in event.items() if name != "collectionUUID"}]

    with Proxy(mongo_server.port, hook=on_events(change)) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name) as unit:
            start = await unit.now()
            mongo.db.a.update_one({"_id": 1}, {"$set": {"x": 1}})
            batches = await follow(unit, start.position, rows(1))
            await unit.complete(batches[-1])
            mongo.db.a.drop()
            barrier = (await follow(unit, batches[-1].marker.position, lambda _: True))[-1].barrier
    assert decode(changes_of(batches, "a")[0].image or b"") == {"_id": 1, "x": 1}
    assert barrier is not None
    assert barrier.resnapshot == ("a",)


async def test_overwritten_rename_target_without_drop_event(mongo_server: MongoServer, mongo: Mongo) -> None:
    """A mongod gives no drop for a target that a rename (or $out) overwrites: the rename alone voids it."""
    mongo.db.old.insert_one({"_id": 1})
    mongo.db.new.insert_one({"_id": 2})
    with Proxy(mongo_server.port, hook=on_events(lambda e: [] if e["operationType"] == "drop" else [e])) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name) as unit:
            start = await unit.now()
            mongo.db.old.rename("new", dropTarget=True)
            found = await follow(unit, start.position, lambda b: b[-1].barrier is not None)
    barrier = found[-1].barrier
    assert barrier is not None
    assert (barrier.tables, barrier.resnapshot) == (("old", "new"), ("new",))


async def test_resharding(mongo_server: MongoServer, mongo: Mongo) -> None:
    """Resharding gives the collection another UUID: its rows stay, and it is copied again."""

    def change(event: Event) -> list[Event]:
        return [event | {"operationType": "reshardCollection"}] if event["operationType"] == "drop" else [event]

    mongo.db.a.insert_one({})
    with Proxy(mongo_server.port, hook=on_events(change)) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name) as unit:
            start = await unit.now()
            mongo.db.a.drop()
            found = await follow(unit, start.position, lambda b: b[-1].barrier is not None)
    assert found[-1].barrier is not None
    assert (found[-1].barrier.tables, found[-1].barrier.resnapshot) == ((), ("a",))


async def test_sharded_delete_is_read_again(mongo_server: MongoServer, mongo: Mongo) -> None:
    """A delete whose document key has more than `_id` may be half of a move: the document decides."""
    mongo.db.a.insert_many([{"_id": 1}, {"_id": 2}])

    def change(event: Event) -> list[Event]:
        return [event | {"documentKey": event["documentKey"] | {"zone": "x"}}] if "documentKey" in event else [event]

    with Proxy(mongo_server.port, hook=on_events(change)) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name) as unit:
            start = await unit.now()
            mongo.db.a.delete_many({})
            batches = await follow(unit, start.position, rows(2))
            mongo.db.a.insert_one({"_id": 1, "moved": True})
            for batch in batches:
                await unit.complete(batch)
    moved, gone = changes_of(batches, "a")
    assert (moved.op, decode(moved.image or b"")) == (Op.UPSERT, {"_id": 1, "moved": True})
    assert gone.op is Op.DELETE


async def test_fragments_are_merged(mongo_server: MongoServer, mongo: Mongo) -> None:
    """An event in fragments is one change, and no position is taken between them, also when they come late."""
    held: list[Event] = []

    def hook(name: str, command: Event, reply: Event) -> Event | None:
        """Split insert 2; hold its last two fragments back until the next answers."""
        cursor = reply.get("cursor", {})
        batch = next((each for each in ("firstBatch", "nextBatch") if each in cursor), None)
        if name not in ("aggregate", "getMore") or batch is None:
            return None
        if held:
            return reply | {"cursor": cursor | {batch: [held.pop(0)], "postBatchResumeToken": {"_data": "ff"}}}
        events: list[Event] = []
        for event in cursor[batch]:
            if event.get("documentKey", {}).get("_id") != 2 or "operationType" not in event:
                events.append(event)
                continue
            names = [name for name in event if name not in ("_id", "splitEvent")]
            parts = [names[:3], names[3:5], names[5:]]
            fragments = [
                {name: event[name] for name in part}
                | {"_id": event["_id"] if number == 3 else {"_data": f"{number:02x}"}}
                | {"splitEvent": {"fragment": number, "of": 3}}
                for number, part in enumerate(parts, 1)
            ]
            held.extend(fragments[1:])
            return reply | {"cursor": cursor | {batch: [*events, fragments[0]]}}
        return None

    with Proxy(mongo_server.port, hook=hook) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name) as unit:
            start = await unit.now()
            mongo.db.a.insert_one({"_id": 1})
            mongo.db.a.insert_one({"_id": 2, "x": "large"})
            batches = await follow(unit, start.position, rows(2))
    assert [change.key for change in changes_of(batches, "a")] == [1, 2]
    assert decode(changes_of(batches, "a")[1].image or b"") == {"_id": 2, "x": "large"}
    for batch in batches[:-1]:
        assert all(part not in batch.marker.position["token"] for part in ('"01"', '"02"', '"ff"'))


async def test_event_too_large(mongo_server: MongoServer, mongo: Mongo) -> None:
    """When an event cannot be delivered its stretch is read without documents, and then with them again."""
    state = {"fail": True}

    def hook(name: str, command: Event, reply: Event) -> Event | None:
        pipeline = command.get("pipeline") or [{}]
        if opens_stream(name, command) and state["fail"] and "fullDocument" not in str(pipeline):
            events = reply["cursor"]["firstBatch"]
            if any(event.get("documentKey", {}).get("_id") == 2 for event in events):
                return failure(10334, "BSONObj size: 17000000 is invalid. Size must be between 0 and 16793600(16MB)")
        return None

    with Proxy(mongo_server.port, hook=hook) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name) as unit:
            heard = notes_of(unit)
            start = await unit.now()
            mongo.db.a.insert_many([{"_id": 1}, {"_id": 2}])
            batches = await follow(unit, start.position, rows(2))
            state["fail"] = False
            for batch in batches:
                await unit.complete(batch)
            mongo.db.a.insert_one({"_id": 3})
            rest = await follow(unit, batches[-1].marker.position, rows(1))
    assert [decode(change.image or b"")["_id"] for change in changes_of(batches, "a")] == [1, 2]
    assert changes_of(rest, "a")[0].op is Op.UPSERT
    assert any("larger than" in note.message for note in heard if isinstance(note, Note))


async def test_old_server(mongo_server: MongoServer, mongo: Mongo) -> None:
    """A server without expanded events or without splitting is used without them."""

    def hook(name: str, command: Event, reply: Event) -> Event | None:
        if not opens_stream(name, command):
            return None
        if "showExpandedEvents" in command["pipeline"][0]["$changeStream"]:
            return failure(40415, "BSON field '$changeStream.showExpandedEvents' is an unknown field.")
        if "$changeStreamSplitLargeEvent" in command["pipeline"][-1]:
            return failure(40324, "Unrecognized pipeline stage name: '$changeStreamSplitLargeEvent'")
        return None

    with Proxy(mongo_server.port, hook=hook) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name) as unit:
            await unit.preflight()
            start = await unit.now()
            mongo.db.a.insert_one({"_id": 1})
            batches = await follow(unit, start.position, rows(1))
    assert changes_of(batches, "a")[0].key == 1


LOST = [
    (286, "Resume of change stream was not possible, as the resume point may no longer be in the oplog.", ()),
    (280, "cannot resume stream; the resume token was not found.", ("NonResumableChangeStreamError",)),
    (280, "cannot resume stream; the resume token was not found.", ()),
    (40647, "Some other error", ("NonResumableChangeStreamError",)),
]


@pytest.mark.parametrize(("code", "text", "labels"), LOST)
@pytest.mark.parametrize("command", ["aggregate", "getMore"])
async def test_lost_position(
    mongo_server: MongoServer, mongo: Mongo, code: int, text: str, labels: tuple[str, ...], command: str
) -> None:
    """Whatever tells that the position is gone, at the opening or later, is PositionLost; nothing jumps to now."""

    def hook(name: str, request: Event, reply: Event) -> Event | None:
        return (
            failure(code, text, *labels)
            if name == command and (name == "getMore" or opens_stream(name, request))
            else None
        )

    mongo.db.a.insert_one({})
    async with open_unit(mongo.uri, mongo.name) as unit:
        start = await unit.now()
        mongo.db.a.insert_one({})
        batch = (await follow(unit, start.position, rows(1)))[-1]
    with Proxy(mongo_server.port, hook=hook) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name) as unit:
            with pytest.raises(PositionLost) as caught:
                await follow(unit, batch.marker.position, rows(1))
    assert "\n" not in str(caught.value)


async def test_token_of_the_future(mongo: Mongo) -> None:
    """A position ahead of the source's time means another source, even when the server would accept it."""
    async with open_unit(mongo.uri, mongo.name) as unit:
        start = await unit.now()
        seconds, increment = start.position["time"]
        with pytest.raises(PositionLost, match="ahead"):
            await follow(unit, start.position | {"time": [seconds + 1000, increment]}, rows(1))
        with pytest.raises(PositionLost, match="of database"):
            await follow(unit, start.position | {"database": "other"}, rows(1))
        with pytest.raises(PositionLost):
            await follow(unit, start.position | {"token": '{"_data": "8200"}'}, rows(1))


@pytest.mark.parametrize("command", ["aggregate", "getMore"])
async def test_changed_filters_restart_at_the_time(mongo_server: MongoServer, mongo: Mongo, command: str) -> None:
    """With other filters than the stored ones, 280 leads to the token's time, and nothing after it is lost."""
    mongo.db.a.insert_one({"_id": 0})
    async with open_unit(mongo.uri, mongo.name) as unit:
        start = await unit.now()
        mongo.db.a.insert_one({"_id": 1})
        batch = (await follow(unit, start.position, rows(1)))[-1]
    with_token: set[int] = set()

    def hook(name: str, request: Event, reply: Event) -> Event | None:
        if opens_stream(name, request) and "startAfter" in request["pipeline"][0]["$changeStream"]:
            with_token.add(reply["cursor"]["id"])
            return failure(280, "the resume token was not found") if command == "aggregate" else None
        if name == "getMore" and request["getMore"] in with_token and command == "getMore":
            return failure(280, "the resume token was not found")
        return None

    with Proxy(mongo_server.port, hook=hook) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name, table_blacklist=["zzz"]) as unit:
            mongo.db.a.insert_one({"_id": 2})
            rest = await follow(unit, batch.marker.position, lambda b: any(c.key == 2 for c in changes_of(b, "a")))
    assert rest[-1].marker.position["pipeline"] != batch.marker.position["pipeline"]


async def test_other_server_errors_are_outages(mongo_server: MongoServer, mongo: Mongo) -> None:
    """A primary that steps down is an outage, neither a lost position nor the end."""
    opened: list[str] = []

    def hook(name: str, command: Event, reply: Event) -> Event | None:
        opened.extend([name] if opens_stream(name, command) else [])
        again = opens_stream(name, command) and len(opened) > 1
        return failure(10107, "not primary") if name == "getMore" or again else None

    with Proxy(mongo_server.port, hook=hook) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name, {"connection_timeout": 1}) as unit:
            start = await unit.now()
            with pytest.raises(Unavailable) as caught:
                await follow(unit, start.position, rows(1))
            assert isinstance(caught.value, WarpError)


async def test_cluster_time_only(mongo_server: MongoServer, mongo: Mongo) -> None:
    """Before 6.0 there is no wallTime: the cluster time stands for it."""
    drop = on_events(lambda event: [{name: value for name, value in event.items() if name != "wallTime"}])
    with Proxy(mongo_server.port, hook=drop) as proxy:
        async with open_unit(proxy.mongo_uri, mongo.name) as unit:
            start = await unit.now()
            mongo.db.a.insert_one({"_id": Binary(b"x")})
            batches = await follow(unit, start.position, rows(1))
    source_time = batches[-1].marker.source_time
    assert source_time is not None
    assert abs(source_time.timestamp() - time.time()) < 5
    assert Timestamp(*batches[-1].marker.position["time"]) > Timestamp(*start.position["time"])
