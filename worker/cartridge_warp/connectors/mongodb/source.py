"""The connector: one client for all schemas of a source, and the simple methods for other packages' sinks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterable
from datetime import UTC, datetime
from typing import Any, Final

from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from cartridge_warp.config import SchemaConfig, SourceConfig, UnitSettings
from cartridge_warp.connectors.base import BaseSourceConnector
from cartridge_warp.connectors.mongodb.errors import guard
from cartridge_warp.connectors.mongodb.unit import MongoDBUnit
from cartridge_warp.errors import SourceRefused, Unavailable
from cartridge_warp.kernel.bson import decode, value_kind
from cartridge_warp.records import (
    Bounds,
    Change,
    ChangeEvent,
    ColumnDefinition,
    ColumnType,
    DatabaseSchema,
    Marker,
    OperationType,
    Record,
    TableSchema,
)

__all__ = ["MongoDBSourceConnector"]

_SAMPLE: Final = 100
_PAGE_BYTES: Final = 8 << 20
_TYPES: Final = {
    "int": ColumnType.BIGINT,
    "double": ColumnType.DOUBLE,
    "decimal": ColumnType.NUMERIC,
    "string": ColumnType.STRING,
    "objectid": ColumnType.STRING,
    "boolean": ColumnType.BOOLEAN,
    "date": ColumnType.TIMESTAMP,
    "uuid": ColumnType.UUID,
    "binary": ColumnType.BINARY,
}


class MongoDBSourceConnector(BaseSourceConnector):
    """Reads MongoDB. Full level: `unit`. The simple methods read the database that the configuration or the
    URI names, else the one that bears the schema's name."""

    def __init__(self, config: SourceConfig | str) -> None:
        super().__init__(config)
        self._config = SourceConfig(connection_string=config) if isinstance(config, str) else config
        self._client: AsyncMongoClient[dict[str, Any]] | None = None

    async def connect(self) -> None:
        """Open the client and reach a server. Raises `Unavailable` or `SourceRefused`."""
        if self._client is None:
            self._client = _open(self._config)
        with guard("connect to MongoDB"):
            await self._client.admin.command("ping")
        self.connected = True

    async def disconnect(self) -> None:
        """Close the client; safe to call twice."""
        client, self._client = self._client, None
        self.connected = False
        if client is not None:
            await client.close()

    async def test_connection(self) -> bool:
        """True when the source answers now."""
        if self._client is None:
            return False
        try:
            await self._client.admin.command("ping")
        except PyMongoError:
            return False
        return True

    def unit(self, settings: UnitSettings) -> MongoDBUnit:
        """The unit of replication that `settings` describes."""
        return MongoDBUnit(self._connected(), settings, self._config)

    async def get_schema(self, schema_name: str) -> DatabaseSchema:
        """The collections, with columns as the first documents of each show them."""
        unit = self._simple_unit(schema_name)
        tables = []
        for collection in await unit.collections():
            if collection.reason is not None:
                continue
            name = collection.name
            page = await unit.read_chunk(name, Bounds(), await unit.now(), _SAMPLE, _PAGE_BYTES)
            tables.append(TableSchema(name, _columns(map(decode, page.documents)), ["_id"]))
        return DatabaseSchema(schema_name, tables)

    async def get_changes(
        self, schema_name: str, marker: Any = None, batch_size: int = 1000
    ) -> AsyncGenerator[ChangeEvent, None]:
        """Changes after `marker`, a position of this source, until nothing is ready. Each of a batch carries
        the position behind the batch only when it is the last one; before that, the one in front of it. Drops
        and renames have no rows, so they give no change here: units of the full level handle them."""
        unit = self._simple_unit(schema_name)
        position = marker if marker is not None else (await unit.now()).position
        batches = unit.batches(Marker(position, 0))
        try:
            async for batch in batches:
                await unit.complete(batch)
                records = [_record(name, each) for name, table in batch.tables.items() for each in table.changes]
                for record in records[:-1]:
                    yield ChangeEvent(record, position, schema_name)
                position = batch.marker.position
                for record in records[-1:]:
                    yield ChangeEvent(record, position, schema_name)
                if not records and batch.barrier is None and not batch.created:
                    return
        finally:
            await batches.aclose()

    async def get_full_snapshot(
        self, schema_name: str, table_name: str, batch_size: int = 10000
    ) -> AsyncGenerator[Record, None]:
        """Every document of a collection, in the order of `_id`."""
        unit = self._simple_unit(schema_name)
        rest: Bounds | None = Bounds()
        while rest is not None:
            page = await unit.read_chunk(table_name, rest, await unit.now(), batch_size, _PAGE_BYTES)
            for raw in page.documents:
                document = decode(raw)
                yield Record(table_name, document, primary_key_values={"_id": document["_id"]})
            rest = page.rest

    def _connected(self) -> AsyncMongoClient[dict[str, Any]]:
        if self._client is None:
            raise Unavailable("the MongoDB source is not connected; call connect() first")
        return self._client

    def _simple_unit(self, schema_name: str) -> MongoDBUnit:
        default = self._connected().get_default_database(schema_name).name
        database = self._config.database or default
        return self.unit(UnitSettings.of(SchemaConfig(name=schema_name, database=database)))


def _open(config: SourceConfig) -> AsyncMongoClient[dict[str, Any]]:
    """A client, not connected yet."""
    with guard("use the connection string of the source"):
        try:
            return AsyncMongoClient(config.connection_string, **_options(config))
        except (OSError, TypeError, ValueError) as exc:  # a port, a file or an option that cannot be
            raise SourceRefused(f"cannot use the connection string or a TLS file of the source: {exc}") from exc


def _options(config: SourceConfig) -> dict[str, Any]:
    """The driver's options; what is not set stays as the URI says."""
    if not config.connection_string:
        raise SourceRefused("the source has no connection string; set source.connection_string to a MongoDB URI")
    options = {
        "replicaSet": config.replica_set,
        "authSource": config.auth_source,
        "tls": config.ssl_enabled,
        "readPreference": config.read_preference,
        "tlsCAFile": config.tls_ca_file,
        "tlsCertificateKeyFile": config.tls_certificate_key_file,
        "tlsInsecure": True if config.tls_insecure else None,
    }
    chosen = {name: value for name, value in options.items() if value is not None}
    timeout = int(config.connection_timeout * 1000)
    return chosen | {
        "appname": "cartridge-warp",
        "connectTimeoutMS": timeout,
        "serverSelectionTimeoutMS": timeout,
        "socketTimeoutMS": int(config.read_timeout * 1000),
        "tz_aware": True,
        "uuidRepresentation": "unspecified",
    }


def _record(table: str, change: Change) -> Record:
    at = None if change.at_ms is None else datetime.fromtimestamp(change.at_ms / 1000, UTC)
    gone = change.operation is OperationType.DELETE
    data = {} if gone or change.image is None else decode(change.image)
    return Record(table, data, change.operation, at, {"_id": change.key})


def _columns(documents: Iterable[dict[str, Any]]) -> list[ColumnDefinition]:
    """A column for each field: the type that all its values have, else JSON."""
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for document in documents:
        for name, value in document.items():
            kinds[name][value_kind(value)] += 1
    return [ColumnDefinition(name, _column_type(seen), nullable=name != "_id") for name, seen in kinds.items()]


def _column_type(seen: Counter[str]) -> ColumnType:
    kinds = seen.keys() - {"null"}
    if kinds <= {"int", "double", "decimal"} and len(kinds) > 1:
        return ColumnType.NUMERIC
    return _TYPES.get(kinds.pop(), ColumnType.JSON) if len(kinds) == 1 else ColumnType.JSON
