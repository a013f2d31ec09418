"""The PostgreSQL destination: connections, preflight, and the simple connector methods."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Composed, Literal
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from cartridge_warp.config import DestinationConfig, UnitSettings
from cartridge_warp.connectors.base import BaseDestinationConnector
from cartridge_warp.connectors.postgresql.arrays import register
from cartridge_warp.connectors.postgresql.errors import translate
from cartridge_warp.connectors.postgresql.simple import SimpleMethods
from cartridge_warp.connectors.postgresql.status import read_status
from cartridge_warp.connectors.postgresql.target import PostgreSQLTarget
from cartridge_warp.connectors.registry import register_destination_connector
from cartridge_warp.errors import DestinationRefused, Unavailable, WarpError

__all__ = ["PostgreSQLDestinationConnector"]

DEAD_PEER = 20  # seconds until a vanished peer is given up, on both sides


@register_destination_connector("postgresql")
class PostgreSQLDestinationConnector(SimpleMethods, BaseDestinationConnector):
    """Implements `TransactionalDestination`; rows, structure and position commit together, exactly once."""

    def __init__(self, config: DestinationConfig | str) -> None:
        if isinstance(config, str):
            config = DestinationConfig(type="postgresql", connection_string=config)
        super().__init__(config)
        self.settings: DestinationConfig = config
        self.pooled = False
        self.instance = uuid.uuid4()
        self.application = f"cartridge-warp {self.instance}"  # by which a successor finds a frozen process
        self._pool: AsyncConnectionPool[AsyncConnection[Any]] | None = None
        self._connecting = asyncio.Lock()
        self._targets: list[PostgreSQLTarget] = []
        self._conninfo = self._connection_string()
        parts = conninfo_to_dict(self._conninfo)
        self.where = f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"

    def _connection_string(self) -> str:
        extra: dict[str, Any] = {
            "connect_timeout": 10,
            "keepalives": 1,
            "keepalives_idle": 5,
            "keepalives_interval": 5,
            "keepalives_count": 2,
            "tcp_user_timeout": DEAD_PEER * 1000,
        }
        for name, value in (
            ("sslrootcert", self.settings.tls_ca_file),
            ("sslcert", self.settings.tls_certificate_file),
            ("sslkey", self.settings.tls_key_file),
        ):
            if value:
                extra[name] = value
        if self.settings.tls_ca_file and not self.settings.tls_insecure:
            extra["sslmode"] = "verify-full"
        try:
            given = conninfo_to_dict(self.settings.connection_string or "")
            return make_conninfo(**{**extra, **{k: v for k, v in given.items() if v is not None}})
        except psycopg.ProgrammingError as error:
            raise DestinationRefused(
                "destination.connection_string is not a PostgreSQL connection string; write it as"
                " postgresql://user:password@host:5432/database"
            ) from error

    # -- connections ----------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Connect once to see that it works, then open the pool. Safe to call twice, and by several schemas:
        then, as after an error, an absent server is told at once, and broken connections leave the pool."""
        async with self._connecting:
            if self._pool is None:
                await self._connect()
                return
            probe = await self.dedicated()
            await probe.close()
            await self._pool.check()

    async def _connect(self) -> None:
        probe = await self.dedicated()
        try:
            await self._preflight(probe)
        except psycopg.Error as error:
            raise translate(error, f"destination {self.where}") from error
        finally:
            await probe.close()
        size = self.settings.pool_size
        pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
            self._conninfo,
            connection_class=AsyncConnection[Any],
            min_size=0,
            max_size=size + self.settings.max_overflow,
            max_idle=60,
            timeout=15,
            reconnect_timeout=5,
            configure=self._configure,
            open=False,
            kwargs=self._options(),
        )
        await pool.open()
        self._pool = pool
        self.connected = True

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"autocommit": True, "application_name": self.application}
        return options | ({"prepare_threshold": None} if self.pooled else {})

    async def _configure(self, connection: AsyncConnection[Any]) -> None:
        register(connection)

    async def _preflight(self, c: AsyncConnection[Any]) -> None:
        cursor = await c.execute(
            "SELECT current_setting('server_version_num')::int, current_setting('transaction_read_only') = 'on'"
            " OR pg_is_in_recovery(), pg_backend_pid()"
        )
        row = await cursor.fetchone()
        assert row is not None
        if row[0] < 140000:
            raise DestinationRefused(
                f"destination {self.where} is PostgreSQL {row[0] // 10000}; version 14 or newer is needed"
            )
        if row[1]:
            raise DestinationRefused(
                f"destination {self.where} is read-only (a standby, or default_transaction_read_only is on);"
                " connect to the primary, for example with target_session_attrs=read-write"
            )
        # A pooler answers with a process number of its own making; session state does not survive in it.
        self.pooled = row[2] != c.info.backend_pid

    async def dedicated(self) -> AsyncConnection[Any]:
        """A connection outside the pool."""
        try:
            connection = await AsyncConnection.connect(self._conninfo, **self._options())
        except psycopg.Error as error:
            raise translate(error, f"destination {self.where}") from error
        await self._configure(connection)
        return connection

    @asynccontextmanager
    async def connection(self, where: str) -> AsyncIterator[AsyncConnection[Any]]:
        """A pooled connection; psycopg's errors leave as ours. A connection that broke is thrown away."""
        if self._pool is None:
            raise Unavailable(f"{where}: not connected; call connect() first")
        try:
            async with self._pool.connection() as connection:
                yield connection
        except PoolTimeout as error:
            raise await self._why(where) from error
        except psycopg.Error as error:
            raise translate(error, where) from error

    async def _why(self, where: str) -> WarpError:
        """The reason behind a pool that gives no connection: one try outside of it tells."""
        try:
            probe = await self.dedicated()
        except WarpError as error:
            return Unavailable(str(error))
        await probe.close()
        return Unavailable(
            f"{where}: all {self.settings.pool_size + self.settings.max_overflow} connections are in use;"
            " raise destination.pool_size"
        )

    def begin_statement(self) -> Composed:
        """BEGIN with everything that a transaction needs, in one round trip; SET LOCAL also holds behind a
        transaction pooler. READ COMMITTED is explicit: under REPEATABLE READ the snapshot would be older than
        the table's lock. Commits need not wait for the disk: the marker is a compare-and-set."""
        timeout = self.settings.transaction_timeout
        return SQL(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = off; SET LOCAL lock_timeout = '10s';"
            " SET LOCAL idle_in_transaction_session_timeout = {dead}; SET LOCAL statement_timeout = {timeout};"
            " SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'"
        ).format(dead=Literal(f"{DEAD_PEER}s"), timeout=Literal(f"{int(timeout * 1000)}ms"))

    async def disconnect(self) -> None:
        """Close every connection; safe to call twice."""
        for target in self._targets:
            await target.close("stopped")
        self._targets.clear()
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()
        self.connected = False

    async def test_connection(self) -> bool:
        """True when the server answers now."""
        try:
            connection = await self.dedicated()
        except WarpError:
            return False
        await connection.close()
        return True

    def pool_use(self) -> tuple[int, int]:
        """Connections that are open, and those in use."""
        stats = self._pool.get_stats() if self._pool is not None else {}
        size = int(stats.get("pool_size", 0))
        return size, size - int(stats.get("pool_available", 0))

    # -- targets --------------------------------------------------------------------------------------

    def target(self, settings: UnitSettings) -> PostgreSQLTarget:
        """The destination schema of a unit."""
        target = PostgreSQLTarget(self, settings)
        self._targets.append(target)
        return target

    async def status(self, units: Sequence[UnitSettings]) -> list[dict[str, Any]]:
        """What the metadata says of each unit, for `cartridge-warp status`; reads only."""
        async with self.connection(f"destination {self.where}") as c:
            return [await read_status(c, unit) for unit in units]
