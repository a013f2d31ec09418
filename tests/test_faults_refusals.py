"""What cannot work, through the real command line: one clear line, the right exit code, and no secret."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from warp_testing.process import PROGRAM, WorkerProcess, worker_environment
from warp_testing.replica import Replica, config_for
from warp_testing.servers import MongoServer, PostgresServer, free_port

SECRET = "hunter2-and-more"
QUICK = {"source__connection_timeout": 1}


@pytest.fixture(scope="module")
def guarded_mongo() -> Iterator[MongoServer]:
    """A MongoDB-protocol server with passwords: `reader` may read `shop`, `nobody` nothing of it."""
    server = MongoServer().start()
    with server.client() as client:
        client.shop.items.insert_one({"_id": 1})
        roles = [{"role": "read", "db": "shop"}, {"role": "read", "db": "local"}]
        client.admin.command("createUser", "reader", pwd=SECRET, roles=roles)
        client.admin.command("createUser", "nobody", pwd=SECRET, roles=[{"role": "read", "db": "elsewhere"}])
    assert server.process is not None
    server.process.terminate()  # in order: the users must not be lost
    server.process.wait()
    server.options = ("--auth",)
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def guarded_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL in which the role `app` needs its password."""
    server = PostgresServer().start()
    with psycopg.connect(server.uri(), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE app LOGIN PASSWORD '{SECRET}'")
        connection.execute(f"CREATE ROLE owner LOGIN PASSWORD '{SECRET}'")
        connection.execute("CREATE DATABASE dwh OWNER owner")
        connection.execute("CREATE DATABASE frozen")
        connection.execute("ALTER DATABASE frozen SET default_transaction_read_only = on")
        rules = server.data / "pg_hba.conf"
        rules.write_text(
            "host all app,owner 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\nlocal all all trust\n"
        )
        connection.execute("SELECT pg_reload_conf()")
    yield server
    server.close()


def guarded(server: MongoServer, user: str, password: str = SECRET) -> str:
    return f"mongodb://{user}:{password}@127.0.0.1:{server.port}/shop?authSource=admin"


def run(source: str, destination: str, *words: str, schema: str = "shop", **settings: object):
    """A run to its end."""
    return subprocess.run(
        [*PROGRAM, "run", "--schema", schema, *words],
        env=worker_environment(source, destination, **(QUICK | settings)),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """It ended with this code and one error line that names these parts."""
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    for part in parts:
        assert part in errors[0]
    assert SECRET not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


# -- the source --------------------------------------------------------------------------------------------


def test_wrong_password_of_the_source(guarded_mongo, postgres):
    """A wrong password of the source: exit 4 at once, though `run` retries outages for ever."""
    done = run(guarded(guarded_mongo, "reader", f"not-{SECRET}"), postgres)
    refused(done, 4, "user or password is wrong", "check them and `auth_source`")


def test_right_password_of_the_source(guarded_mongo, postgres):
    """A user with the role `read` on the database, and nothing more, is enough."""
    done = run(guarded(guarded_mongo, "reader"), postgres, "--once")
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stderr


def test_missing_privilege_on_the_source(guarded_mongo, postgres):
    """A user that may not read the database: exit 4, with the role to grant."""
    done = run(guarded(guarded_mongo, "nobody"), postgres)
    refused(done, 4, "a privilege is missing", "grant the role `read` on the database")


def test_a_standalone_mongod(postgres):
    """A server without change streams: exit 4, with what to start it with."""
    server = MongoServer("--standalone").start()
    try:
        done = run(server.uri, postgres)
    finally:
        server.close()
    refused(done, 4, f"127.0.0.1:{server.port} is a standalone mongod", "--replSet", "rs.initiate()")


def test_unreachable_servers_and_once(mongo, postgres):
    """`--once` gives an unreachable server up after some tries, with exit 3, on either side."""
    port = free_port()
    with ThreadPoolExecutor(2) as both:
        source = both.submit(run, f"mongodb://app:{SECRET}@127.0.0.1:{port}/shop", postgres, "--once")
        destination = both.submit(
            run, mongo.uri, f"postgresql://app:{SECRET}@127.0.0.1:{port}/dwh", "--once", schema=mongo.name
        )
        refused(source.result(), 3, "cannot connect to MongoDB", "check address, network and TLS", f"127.0.0.1:{port}")
        refused(destination.result(), 3, f"destination 127.0.0.1:{port}/dwh", "Connection refused")


def test_unreachable_servers_are_retried_for_ever(mongo):
    """Without `--once` a worker waits for servers that are not there yet, longer than `--once` would, and works
    as soon as they are."""
    postgres = PostgresServer().start()
    postgres.stop()
    source = MongoServer()
    try:
        with WorkerProcess(source.uri, postgres.uri(), "shop", **QUICK, logging__level="DEBUG") as worker:

            def attempts() -> list[int]:
                return [line["attempt"] for line in worker.lines() if line.get("error_type") == "unavailable"]

            worker.until(lambda: max(attempts(), default=0) > 2)
            assert worker.page("/healthz")[0] == 200
            assert worker.page("/readyz")[0] == 503
            source.start()
            with source.client() as client:
                client.shop.items.insert_one({"_id": 1})
            before = max(attempts())
            worker.until(lambda: max(attempts()) > before)
            postgres.start()
            worker.until(lambda: worker.page("/readyz")[0] == 200)
            replica = Replica(config_for(source.uri, postgres.uri(), "shop"))
            worker.until(lambda: replica.query("SELECT 1 FROM pg_tables WHERE tablename = 'items'"))
            worker.until(lambda: replica.query("SELECT _id FROM items") == [(1,)])
            worker.stop_signal()
            assert worker.wait(20) == 0
    finally:
        source.close()
        postgres.close()


# -- the destination ---------------------------------------------------------------------------------------


def test_wrong_password_of_the_destination(mongo, guarded_postgres):
    """A wrong password of the destination: exit 5 at once."""
    uri = guarded_postgres.uri("dwh", "app", f"not-{SECRET}")
    refused(run(mongo.uri, uri, schema=mongo.name), 5, "password authentication failed", "check the password", "/dwh")


def test_no_password_for_the_destination(mongo, guarded_postgres):
    """A password that was forgotten: exit 5, and where it belongs."""
    uri = guarded_postgres.uri("dwh", "app")
    refused(run(mongo.uri, uri, schema=mongo.name), 5, "no password supplied", "into the connection string")


def test_missing_privilege_on_the_destination(mongo, guarded_postgres):
    """A role that may create nothing: exit 5, with what to grant."""
    uri = guarded_postgres.uri("dwh", "app", SECRET)
    refused(run(mongo.uri, uri, schema=mongo.name), 5, "permission denied", "grant CREATE on the database")


def test_missing_privilege_on_the_target_schema(mongo, guarded_postgres):
    """A schema of somebody else's, in which the role may create nothing: exit 5, and it says so."""
    with psycopg.connect(guarded_postgres.uri("dwh"), autocommit=True) as connection:
        connection.execute(f'CREATE SCHEMA "{mongo.name}"')
    mongo.db.items.insert_one({"_id": 1})
    uri = guarded_postgres.uri("dwh", "owner", SECRET)
    done = run(mongo.uri, uri, schema=mongo.name)
    refused(done, 5, f"permission denied for schema {mongo.name}", "grant the missing privilege")


def test_an_ordinary_role_is_enough(mongo, guarded_postgres):
    """The owner of a database, no superuser, can do everything that the worker needs."""
    mongo.db.items.insert_one({"_id": 1})
    uri = guarded_postgres.uri("dwh", "owner", SECRET)
    done = run(mongo.uri, uri, "--once", schema=mongo.name)
    assert done.returncode == 0, done.stderr


def test_a_missing_database(mongo, guarded_postgres):
    """A database that does not exist: exit 5, and its name."""
    done = run(mongo.uri, guarded_postgres.uri("nowhere"), schema=mongo.name)
    refused(done, 5, 'database "nowhere" does not exist', "create it or correct the connection string")


def test_a_read_only_destination(mongo, guarded_postgres):
    """A destination that takes no writes: exit 5, and where the primary may be."""
    done = run(mongo.uri, guarded_postgres.uri("frozen"), schema=mongo.name)
    refused(done, 5, "/frozen is read-only", "connect to the primary")


def test_metadata_of_a_newer_version(mongo, postgres):
    """A metadata schema that a newer version has changed: exit 5, nothing is touched, upgrade."""
    assert run(mongo.uri, postgres, "--once", schema=mongo.name).returncode == 0
    replica = Replica(config_for(mongo.uri, postgres, mongo.name))
    replica.query("INSERT INTO migrations (version, name, min_worker_version) VALUES (999, 'later', '99.1.0')")
    before = replica.query("SELECT epoch FROM fence")
    done = run(mongo.uri, postgres, schema=mongo.name)
    refused(done, 5, "cartridge_warp_metadata needs cartridge-warp 99.1.0 or newer", "upgrade this worker")
    assert replica.query("SELECT epoch FROM fence") == before


# -- whose target, which source ----------------------------------------------------------------------------


def test_a_target_of_another_identity(mongo, postgres):
    """A schema that belongs to another pipeline: exit 6, whose it is, and `--take-over` claims it."""
    assert run(mongo.uri, postgres, "--once", schema=mongo.name, identity="first").returncode == 0
    done = run(mongo.uri, postgres, schema=mongo.name, identity="second")
    refused(done, 6, "belongs to 'first' and this worker is 'second'", "--take-over")
    done = run(mongo.uri, postgres, "--once", "--take-over", schema=mongo.name, identity="second")
    assert done.returncode == 0, done.stderr
    refused(run(mongo.uri, postgres, schema=mongo.name, identity="first"), 6, "belongs to 'second'")


def test_another_source(mongo, postgres):
    """A schema that was filled from another database: exit 7, both are named, and nothing is written."""
    mongo.db.items.insert_one({"_id": 1})
    assert run(mongo.uri, postgres, "--once", schema=mongo.name).returncode == 0
    other = f"{mongo.name}b"
    mongo.client[other].items.insert_one({"_id": 2})
    try:
        done = run(mongo.uri, postgres, schema=mongo.name, source__database=other)
    finally:
        mongo.client.drop_database(other)
    refused(done, 7, f"was filled from database {mongo.name} of", f"is now database {other}", "choose another")
    assert Replica(config_for(mongo.uri, postgres, mongo.name)).query("SELECT _id FROM items") == [(1,)]


def test_once_does_not_wait_behind_another_worker(mongo, postgres):
    """`--once` on a schema that a living worker writes to: exit 6 after some tries, and whom it met."""
    with WorkerProcess(mongo.uri, postgres, mongo.name) as worker:
        worker.until_said("streaming")
        refused(run(mongo.uri, postgres, "--once", schema=mongo.name), 6, "writes to it", "stands by")
