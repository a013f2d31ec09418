"""Fixtures that every test may use. Nothing has to be started by hand."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pymongo
import pytest

from warp_testing.servers import MongoServer, PostgresServer


@pytest.fixture(scope="session")
def mongo_server() -> Iterator[MongoServer]:
    """One MongoDB-protocol server for the whole run of this process. Do not stop it; use one of your own."""
    server = MongoServer().start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the whole run of this process. Do not stop it; use one of your own."""
    server = PostgresServer().start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def mongo_client(mongo_server: MongoServer) -> Iterator[pymongo.MongoClient]:
    with mongo_server.client() as client:
        yield client


@dataclass
class Mongo:
    """A database of its own on the shared server."""

    uri: str
    name: str
    client: pymongo.MongoClient

    @property
    def db(self) -> pymongo.database.Database:
        return self.client[self.name]


@pytest.fixture
def mongo(mongo_server: MongoServer, mongo_client: pymongo.MongoClient) -> Iterator[Mongo]:
    name = f"t{secrets.token_hex(5)}"
    yield Mongo(f"{mongo_server.uri}{name}", name, mongo_client)
    mongo_client.drop_database(name)


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> Iterator[str]:
    """The URI of an empty database of its own on the shared server."""
    name = f"t{secrets.token_hex(5)}"
    with psycopg.connect(postgres_server.uri(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        yield postgres_server.uri(name)
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """With WARP_REQUIRE_ALL=1 (CI) nothing is left out: a skip is a failure with the same reason."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("WARP_REQUIRE_ALL") == "1" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where everything is required: {report.longrepr}"
