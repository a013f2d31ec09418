"""A worker inside the test, between the real servers, and the comparison of both ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from pymongo import AsyncMongoClient

from cartridge_warp.cli.demo_check import check, plans
from cartridge_warp.config import load_config
from cartridge_warp.core import WarpConfig, WarpRunner
from cartridge_warp.observe.events import Event, Observer


def config_for(source: str, destination: str, schema: str, /, **overrides: Any) -> WarpConfig:
    """The configuration of one schema; `overrides` may be nested."""
    base: dict[str, Any] = {
        "source": {"type": "mongodb", "connection_string": source, "database": schema},
        "destination": {"type": "postgresql", "connection_string": destination},
        "single_schema_name": schema,
    }
    for name, value in overrides.items():
        base[name] = base[name] | value if isinstance(value, dict) and name in base else value
    return load_config(environ={}, overrides=base)


class Replica:
    """One schema's worker and both of its ends."""

    def __init__(self, config: WarpConfig) -> None:
        self.config = config
        self.unit = config.units()[0]
        self.events: list[Event] = []

    def observer(self) -> Observer:
        return Observer(self.events.append)

    def heard(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def once(self, **options: Any) -> None:
        """`run --once`."""
        await asyncio.wait_for(WarpRunner(self.config, observer=self.observer(), once=True, **options).start(), 60)

    @asynccontextmanager
    async def running(self, **options: Any) -> AsyncIterator[WarpRunner]:
        """A worker that follows the stream while the block runs, and is stopped in order after it."""
        runner = WarpRunner(self.config, observer=self.observer(), **options)
        task = asyncio.create_task(runner.start())
        try:
            yield runner
        finally:
            await runner.stop()
            await asyncio.wait_for(task, 30)

    async def differences(self) -> list[Any]:
        """What is not equal: tables with their first differences. Empty when all is."""
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(self.config.source.connection_string)
        async with client, await psycopg.AsyncConnection.connect(self.config.destination.connection_string) as c:
            return [found for found in await check(client, c, [self.unit]) if not found.equal]

    async def settled(self, seconds: float = 30) -> None:
        """Wait until both ends are equal; fail with the differences when they do not become so."""
        deadline = asyncio.get_running_loop().time() + seconds
        while found := await self.differences():
            assert asyncio.get_running_loop().time() < deadline, found
            await asyncio.sleep(0.1)

    async def plan(self, table: str) -> Any:
        async with await psycopg.AsyncConnection.connect(self.config.destination.connection_string) as c:
            return (await plans(c, self.unit)).get(table)

    def query(self, text: str, *parameters: Any) -> list[Any]:
        """Rows of a query on the destination, with its target schema and the metadata on the search path."""
        with psycopg.connect(self.config.destination.connection_string, autocommit=True) as connection:
            connection.execute(f'SET search_path = "{self.unit.target}", "{self.unit.metadata_schema}"')
            cursor = connection.execute(text, parameters)
            return cursor.fetchall() if cursor.description else []
