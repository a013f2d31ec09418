"""Rows that cannot be written, and tables that somebody else has locked."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import bson
import bson.json_util
import psycopg
import pytest

from cartridge_warp.connectors.postgresql.destination import PostgreSQLDestinationConnector
from cartridge_warp.core import session
from cartridge_warp.observe.events import DeadLettered, Failed, Note, SchemaChanged, State
from warp_testing.audit import Audit
from warp_testing.process import until
from warp_testing.proxy import Proxy
from warp_testing.replica import Replica, config_for

LETTERS = "SELECT document_id, class, state, row, message FROM dead_letters ORDER BY id"


@pytest.fixture
def replica(mongo, postgres) -> Replica:
    return Replica(config_for(mongo.uri, postgres, mongo.name, full_load_batch_size=100))


def refuse(uri: str, schema: str, condition: str) -> None:
    """Every table of the schema that is created from now on raises an error for rows of this condition."""
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(f"""
            CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF {condition} THEN RAISE EXCEPTION 'not wanted here'; END IF;
                RETURN NEW;
            END $$;
            CREATE FUNCTION public.refuse_rows() RETURNS event_trigger LANGUAGE plpgsql AS $$
            DECLARE made record;
            BEGIN
                FOR made IN SELECT objid::regclass AS id FROM pg_event_trigger_ddl_commands()
                    WHERE object_type = 'table' AND schema_name = '{schema}'
                LOOP
                    EXECUTE format('CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON %s'
                        ' FOR EACH ROW EXECUTE FUNCTION public.refuse()', made.id);
                END LOOP;
            END $$;
            CREATE EVENT TRIGGER refuse_rows ON ddl_command_end WHEN TAG IN ('CREATE TABLE')
                EXECUTE FUNCTION public.refuse_rows();
        """)  # type: ignore[arg-type]


# -- poison ------------------------------------------------------------------------------------------------


async def test_a_refused_row_is_a_dead_letter_and_nothing_else_is_held_up(mongo, postgres, replica):
    """One document of many breaks a CHECK: it is kept, whole, in the transaction that passes it, and all others
    arrive; a later good version of it settles the dead letter."""
    audit = Audit(postgres, mongo.name)
    mongo.db.users.insert_one({"_id": 0, "age": 1})
    async with replica.running():
        await replica.settled()
        replica.query(f'ALTER TABLE "{mongo.name}".users ADD CONSTRAINT human CHECK (age < 200)')
        many = [{"_id": i, "age": i % 100} for i in range(1, 400)]
        many[250] = {"_id": 251, "age": 1000, "note": "kept whole"}
        mongo.db.users.insert_many(many)
        await until(lambda: replica.query("SELECT count(*) FROM users WHERE _id <> 251") == [(399,)])
        ((key, class_, state, row, message),) = replica.query(LETTERS)
        assert (key, class_, state) == ({"$numberInt": "251"}, "23514", "open")
        assert bson.json_util.loads(json.dumps(row)) == {"_id": 251, "age": 1000, "note": "kept whole"}
        assert "human" in message
        assert "1000" not in message
        # The row of dead_letters and the position that passes it were written by one transaction.
        together = "SELECT 1 FROM dead_letters d JOIN audit.commits c ON c.txid::text = d.xmin::text"
        assert replica.query(together) == [(1,)]
        await until(lambda: replica.heard(DeadLettered))  # told after the commit
        assert [(event.error_class, event.count) for event in replica.heard(DeadLettered)] == [("23514", 1)]
        mongo.db.users.update_one({"_id": 251}, {"$set": {"age": 100}})
        await replica.settled()
        assert replica.query("SELECT state FROM dead_letters") == [("superseded",)]
    assert replica.heard(Failed) == []
    audit.check()


async def test_a_deleted_poison_document_settles_its_dead_letter(mongo, replica):
    """A dead letter whose document is deleted in the source is superseded too."""
    mongo.db.users.insert_one({"_id": 0, "age": 1})
    async with replica.running():
        await replica.settled()
        replica.query(f'ALTER TABLE "{mongo.name}".users ADD CONSTRAINT human CHECK (age < 200)')
        mongo.db.users.insert_one({"_id": 1, "age": 1000})
        await until(lambda: replica.query(LETTERS))
        mongo.db.users.delete_one({"_id": 1})
        await until(lambda: replica.query("SELECT state FROM dead_letters") == [("superseded",)])
        await replica.settled()


async def test_poison_in_a_snapshot(mongo, postgres, replica):
    """Documents that are refused while they are copied become dead letters, one each; the rest of their page
    arrives, and the copy is complete."""
    refuse(postgres, mongo.name, "NEW._id IN (13, 14, 299)")
    mongo.db.users.insert_many([{"_id": i, "n": i} for i in range(300)])
    await replica.once()
    assert replica.query("SELECT count(*) FROM users") == [(297,)]
    found = [(key["$numberInt"], class_, state) for key, class_, state, _, _ in replica.query(LETTERS)]
    assert sorted(found) == [("13", "P0001", "open"), ("14", "P0001", "open"), ("299", "P0001", "open")]
    assert replica.query("SELECT state FROM tables") == [("complete",)]


async def test_without_a_dead_letter_queue_poison_stops_the_schema(mongo, postgres):
    """With the queue switched off a refused row is the worker's error, and the position does not pass it."""
    replica = Replica(config_for(mongo.uri, postgres, mongo.name, error_handling={"dead_letter_queue": False}))
    refuse(postgres, mongo.name, "NEW._id = 13")
    mongo.db.users.insert_one({"_id": 1})
    await replica.once()
    mongo.db.users.insert_one({"_id": 13})
    with pytest.raises(Exception, match="dead_letter_queue is false") as caught:
        await replica.once()
    assert type(caught.value).__name__ == "RowError"
    assert replica.query("SELECT count(*) FROM dead_letters") == [(0,)]
    replica.query("DROP TRIGGER refuse ON users")
    await replica.once()
    assert await replica.differences() == []


class Spoiler(Proxy):
    """What no server stores, though a failing disk may: spoils marked documents on their way to the worker."""

    def _edit(self, *arguments: Any) -> bytes:
        message = super()._edit(*arguments)
        return message.replace(b"@@@@", b"a\xff\xfeb").replace(b"\x02odd\x00", b"\x7dodd\x00")


@pytest.mark.parametrize("late", [False, True])
async def test_undecodable_documents_hold_nothing_up(mongo, mongo_server, postgres, late):
    """Bytes that are no valid BSON, copied or streamed: text that is not UTF-8 is kept in its row, a document
    that cannot be read at all is kept whole in the dead letters, and all others arrive."""
    with Spoiler(mongo_server.port, hook=lambda *_: None) as proxy:
        replica = Replica(config_for(proxy.mongo_uri, postgres, mongo.name))
        mongo.db.users.insert_many([{"_id": i, "s": "good"} for i in range(20)])
        if late:
            await replica.once()
        mongo.db.users.insert_many([{"_id": 100, "s": "@@@@"}, {"_id": 101, "odd": "x"}, {"_id": 200, "s": "good"}])
        await replica.once()
    assert {key for (key,) in replica.query("SELECT _id FROM users")} == {*range(20), 100, 200}
    ((text, extra),) = replica.query("SELECT s, _warp_extra FROM users WHERE _id = 100")
    assert text.startswith("a")
    raw = base64.b64decode(extra["s"]["$warpBson"])
    assert b"a\xff\xfeb" in raw
    ((_, class_, state, row, _),) = replica.query(LETTERS)
    assert (class_, state) == ("poison", "open")
    assert b"\x7dodd" in base64.b64decode(row["$warpRaw"])


# -- locks -------------------------------------------------------------------------------------------------


async def test_a_reader_that_blocks_ddl_does_not_block_replication(mongo, postgres, replica, monkeypatch):
    """A long reader keeps new columns out: values go to `_warp_extra` with one note, and rows arrive; after it
    ends the next document brings the column."""
    monkeypatch.setattr(session, "DDL_RETRY", 1.0)
    mongo.db.users.insert_one({"_id": 0, "n": 0})
    async with replica.running():
        await replica.settled()
        with psycopg.connect(postgres) as reader:
            reader.execute(f'SELECT * FROM "{mongo.name}".users')
            mongo.db.users.insert_one({"_id": 1, "n": 1, "fresh": "kept"})
            mongo.db.users.update_one({"_id": 0}, {"$set": {"n": 5}})
            await replica.settled()
            assert replica.query("SELECT n, _warp_extra FROM users WHERE _id = 1") == [(1, {"fresh": "kept"})]
            (note, *_) = [event for event in replica.heard(Note) if "keeps new columns out" in event.message]
            assert (note.table, note.level) == ("users", "warning")
            reader.rollback()
        await asyncio.sleep(session.DDL_RETRY)
        mongo.db.users.insert_one({"_id": 2, "fresh": "typed"})
        await until(lambda: "add_column" in [event.change_type for event in replica.heard(SchemaChanged)])
        await replica.settled()
        assert replica.query("SELECT fresh FROM users WHERE _id = 2") == [("typed",)]
    assert replica.heard(Failed) == []


async def test_an_exclusive_lock_is_waited_for(mongo, postgres, replica, monkeypatch):
    """A table that is locked for longer than the lock timeout: the worker says so, tries again, goes on when
    the lock is gone, and loses nothing; other tables' rows of the batch wait with it."""
    plain = PostgreSQLDestinationConnector.begin_statement

    def impatient(self):
        text = plain(self).as_string(None)
        assert "lock_timeout = '10s'" in text
        return psycopg.sql.SQL(text.replace("lock_timeout = '10s'", "lock_timeout = '300ms'").replace("{", "{{"))

    monkeypatch.setattr(PostgreSQLDestinationConnector, "begin_statement", impatient)
    mongo.db.users.insert_many([{"_id": i, "n": 0} for i in range(50)])
    async with replica.running():
        await replica.settled()
        with psycopg.connect(postgres) as blocker:
            await asyncio.to_thread(blocker.execute, f'LOCK TABLE "{mongo.name}".users IN ACCESS EXCLUSIVE MODE')
            mongo.db.users.update_many({}, {"$set": {"n": 1}})
            mongo.db.users.delete_one({"_id": 0})
            mongo.db.other.insert_one({"_id": 1})
            await until(lambda: [event for event in replica.heard(Failed) if event.attempt == 2])
            blocker.rollback()
        await replica.settled()
    failed = replica.heard(Failed)
    assert {event.error_type for event in failed} == {"lock_timeout"}
    assert "end the session that holds it" in failed[0].message
    assert "retrying" not in {event.state for event in replica.heard(State)}
    assert replica.query("SELECT count(*) FROM dead_letters") == [(0,)]


async def test_a_lock_during_the_snapshot(mongo, postgres, replica, monkeypatch):
    """A lock on the table while it is copied is waited for as well, and no page is lost."""
    mongo.db.users.insert_many([{"_id": i, "n": i} for i in range(1500)])
    async with replica.running():
        await until(lambda: tables_of(postgres, mongo.name) == ["users"])
        with psycopg.connect(postgres) as blocker:
            await asyncio.to_thread(blocker.execute, f'LOCK TABLE "{mongo.name}".users IN ACCESS EXCLUSIVE MODE')
            mongo.db.users.insert_many([{"_id": i, "n": i} for i in range(2000, 2100)])
            waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
            await until(lambda: replica.query(waits))
            blocker.rollback()
        await replica.settled()
    assert replica.query("SELECT count(*) FROM dead_letters") == [(0,)]


def tables_of(uri: str, schema: str) -> list[str]:
    with psycopg.connect(uri) as connection:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = %s"
        return [name for (name,) in connection.execute(query, (schema,))]
