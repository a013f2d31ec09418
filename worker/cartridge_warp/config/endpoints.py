"""The two ends of a pipeline: where rows come from and where they go to."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, FieldSerializationInfo, field_serializer

from cartridge_warp.config.base import Model
from cartridge_warp.config.spellings import Spellings, same
from cartridge_warp.config.values import Connections, Identifier, Parameters, Rows, Seconds, TimeZone, masked

__all__ = ["ChangeDetection", "DestinationConfig", "MongoDBOptions", "PostgreSQLOptions", "SourceConfig"]


def _strategy(value: object) -> object:
    return "log" if value == "change_stream" else value


class ChangeDetection(Model):
    """How changes are found."""

    column: str = Field(default="updated_at", max_length=255)
    """Field that holds the time of a row's last change; used by strategy `timestamp`."""

    strategy: Annotated[Literal["log", "timestamp", "trigger"], BeforeValidator(_strategy)] = "log"
    """`log` (also written `change_stream`) reads the source's own log of changes, `timestamp` compares
    `column`, `trigger` is for connectors of other packages."""

    timezone: TimeZone = "UTC"
    """Time zone of `column` where its values carry none."""


class MongoDBOptions(Model):
    """Options of a MongoDB source; the timeouts hold for any source."""

    replica_set: str | None = Field(default=None, min_length=1, max_length=255)
    """MongoDB: name of the replica set."""

    auth_source: str | None = Field(default=None, min_length=1, max_length=255)
    """MongoDB: database in which the user is defined."""

    ssl_enabled: bool | None = None
    """Use TLS. Unset: as the URI says."""

    read_preference: Literal["primary", "primaryPreferred", "secondary", "secondaryPreferred", "nearest"] | None = None
    """MongoDB: which members of the replica set answer reads. Unset: as the URI says, else primary."""

    connection_timeout: Seconds = 10.0
    """How long to wait for a connection and for a server that can be used."""

    read_timeout: Seconds = 60.0
    """How long to wait for an answer before the connection counts as lost."""

    id_unique: bool = False
    """MongoDB, sharded: declares `_id` unique also where the shard key does not start with it."""

    uuid_subtype3: bool = False
    """MongoDB: binary values of the legacy subtype 3 are UUIDs too (byte order of the standard)."""


class SourceConfig(MongoDBOptions):
    """Where rows come from."""

    type: str = Field(default="mongodb", min_length=1, max_length=63)
    """Name of the source connector: `mongodb`, or one that a plugin or another package registers."""

    connection_string: Annotated[str, Field(max_length=8192)] = ""
    """URI of the source. It often holds a password: best given by the environment. Masked in all output."""

    database: str | None = Field(default=None, min_length=1, max_length=255)
    """Database to copy, for schemas that name none. Else the path of the URI, else the schema's name."""

    tls_ca_file: str | None = None
    """PEM file of the authorities that may have signed the server's certificate. Setting it turns TLS on."""

    tls_certificate_key_file: str | None = None
    """PEM file with the client's certificate and its private key. Setting it turns TLS on."""

    tls_insecure: bool = False
    """Accept any certificate of the server. Only for trials: anyone can then stand in between."""

    change_detection: ChangeDetection = ChangeDetection()
    """How changes are found; a schema or table may say otherwise."""

    parameters: Parameters = Field(default_factory=dict)
    """Options of a connector from another package, as it documents them."""

    text_key: ClassVar[str | None] = "connection_string"
    spellings: ClassVar[Spellings] = {
        "change_detection_strategy": same("change_detection.strategy"),
        "timezone": same("change_detection.timezone"),
    }

    @field_serializer("connection_string", "parameters")
    def _masked(self, value: Any, info: FieldSerializationInfo) -> Any:
        return masked(info.field_name, value)


class PostgreSQLOptions(Model):
    """Options of a PostgreSQL destination."""

    pool_size: Connections = Field(default=5, ge=1)
    """Connections that are kept open."""

    max_overflow: Connections = 5
    """Further connections that may be opened when all are in use."""

    batch_size: Rows | None = None
    """Write batch size for schemas and tables when neither they nor the global `write_batch_size` say one."""

    transaction_timeout: Seconds = 300.0
    """How long one transaction may take before the destination ends it."""


class DestinationConfig(PostgreSQLOptions):
    """Where rows go to."""

    type: str = Field(default="postgresql", min_length=1, max_length=63)
    """Name of the destination connector: `postgresql`, or one that a plugin or another package registers."""

    connection_string: Annotated[str, Field(max_length=8192)] = ""
    """URI of the destination. Best given by the environment; masked in all output."""

    schema_name: Identifier | None = Field(default=None, alias="schema")
    """Schema to write to, in single mode or with only one schema; a schema's `target_schema` goes before."""

    metadata_schema: Identifier = "cartridge_warp_metadata"
    """Schema that holds positions, registry and dead letters."""

    tls_ca_file: str | None = None
    """PEM file of the authorities that may have signed the server's certificate. Setting it turns full
    verification on."""

    tls_certificate_file: str | None = None
    """PEM file with the client's certificate."""

    tls_key_file: str | None = None
    """PEM file with the client's private key."""

    tls_insecure: bool = False
    """Use TLS, but accept any certificate of the server. Only for trials."""

    parameters: Parameters = Field(default_factory=dict)
    """Options of a connector from another package, as it documents them."""

    text_key: ClassVar[str | None] = "connection_string"

    @field_serializer("connection_string", "parameters")
    def _masked(self, value: Any, info: FieldSerializationInfo) -> Any:
        return masked(info.field_name, value)
