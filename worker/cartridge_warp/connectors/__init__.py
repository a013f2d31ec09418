"""Connectors: the public names that a connector of one's own needs. Importing this loads no driver."""

from cartridge_warp.connectors.base import (
    BaseDestinationConnector,
    BaseSourceConnector,
    DestinationConnector,
    SourceConnector,
)
from cartridge_warp.connectors.registry import (
    ConnectorFactory,
    register_destination_connector,
    register_source_connector,
)
from cartridge_warp.records import (
    ChangeEvent,
    ColumnDefinition,
    ColumnType,
    DatabaseSchema,
    OperationType,
    Record,
    SchemaChange,
    SchemaChangeType,
    TableSchema,
)

__all__ = [
    "BaseDestinationConnector",
    "BaseSourceConnector",
    "ChangeEvent",
    "ColumnDefinition",
    "ColumnType",
    "ConnectorFactory",
    "DatabaseSchema",
    "DestinationConnector",
    "OperationType",
    "Record",
    "SchemaChange",
    "SchemaChangeType",
    "SourceConnector",
    "TableSchema",
    "register_destination_connector",
    "register_source_connector",
]
