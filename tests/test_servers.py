"""The servers that all other tests stand on."""

import psycopg

from warp_testing.servers import PostgresServer


def test_mongo_is_a_replica_set_primary_and_keeps_documents(mongo):
    """The source answers as a replica-set primary and returns what was inserted."""
    mongo.db.things.insert_one({"_id": 1, "a": "b"})
    assert mongo.client.admin.command("hello")["setName"]
    assert mongo.db.things.find_one() == {"_id": 1, "a": "b"}


def test_postgres_survives_a_crash():
    """A crash of PostgreSQL keeps what was committed synchronously."""
    server = PostgresServer(settings={"fsync": "on"}).start()
    try:
        with psycopg.connect(server.uri(), autocommit=True) as connection:
            connection.execute("CREATE TABLE t AS SELECT 1 AS a")
        server.crash()
        server.start()
        with psycopg.connect(server.uri()) as connection:
            assert connection.execute("SELECT a FROM t").fetchall() == [(1,)]
    finally:
        server.close()
