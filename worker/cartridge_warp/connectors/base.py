"""The simple level of a connector: a handful of async methods, enough for any pair, at least once.

The full level, which exactly-once needs, is in `protocols`; the core takes it where both sides have it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from cartridge_warp.records import ChangeEvent, DatabaseSchema, Record, SchemaChange, TableSchema

if TYPE_CHECKING:
    from cartridge_warp.config import DestinationConfig, SourceConfig

__all__ = ["BaseDestinationConnector", "BaseSourceConnector", "DestinationConnector", "SourceConnector"]


@runtime_checkable
class SourceConnector(Protocol):
    """Reads rows and changes. Created with its `SourceConfig`."""

    async def connect(self) -> None:
        """Open what is needed. Raises `Unavailable` or `SourceRefused`."""

    async def disconnect(self) -> None:
        """Release everything; safe to call twice."""

    async def test_connection(self) -> bool:
        """True when the source answers now."""

    async def get_schema(self, schema_name: str) -> DatabaseSchema:
        """The tables of a schema with the columns known so far."""

    def get_changes(
        self, schema_name: str, marker: Any = None, batch_size: int = 1000
    ) -> AsyncIterator[ChangeEvent] | Awaitable[AsyncIterator[ChangeEvent]]:
        """Changes after `marker` (None: from now on), oldest first. May end when nothing is ready; the core
        calls again after the polling interval. May be an async generator or a coroutine returning one."""

    def get_full_snapshot(
        self, schema_name: str, table_name: str, batch_size: int = 10000
    ) -> AsyncIterator[Record] | Awaitable[AsyncIterator[Record]]:
        """Every row of a table, in any order."""


@runtime_checkable
class DestinationConnector(Protocol):
    """Writes rows. Created with its `DestinationConfig`."""

    async def connect(self) -> None:
        """Open what is needed. Raises `Unavailable` or `DestinationRefused`."""

    async def disconnect(self) -> None:
        """Release everything; safe to call twice."""

    async def test_connection(self) -> bool:
        """True when the destination answers now."""

    async def create_schema_if_not_exists(self, schema_name: str) -> None:
        """Make sure that the schema exists."""

    async def create_table_if_not_exists(self, schema_name: str, table_schema: TableSchema) -> None:
        """Make sure that the table exists with at least these columns."""

    async def apply_schema_changes(self, schema_name: str, changes: list[SchemaChange]) -> None:
        """Apply structure changes; repeating one must be harmless."""

    async def write_batch(self, schema_name: str, records: list[Record]) -> None:
        """Write records in order; durable on return; repeating a batch must lead to the same rows."""

    async def update_marker(self, schema_name: str, table_name: str, marker: Any) -> None:
        """Store the position of a table ('' for the whole schema)."""

    async def get_marker(self, schema_name: str, table_name: str) -> Any | None:
        """The stored position, or None."""


class BaseSourceConnector:
    """Common parts of a source: keeps its configuration and whether it is connected."""

    def __init__(self, config: SourceConfig | str) -> None:
        self.config = config
        self.connected = False

    async def connect(self) -> None:
        """Open what is needed."""
        self.connected = True

    async def disconnect(self) -> None:
        """Release everything."""
        self.connected = False

    async def test_connection(self) -> bool:
        """True when the source answers now."""
        return self.connected


class BaseDestinationConnector:
    """Common parts of a destination: keeps its configuration and whether it is connected."""

    def __init__(self, config: DestinationConfig | str) -> None:
        self.config = config
        self.connected = False

    async def connect(self) -> None:
        """Open what is needed."""
        self.connected = True

    async def disconnect(self) -> None:
        """Release everything."""
        self.connected = False

    async def test_connection(self) -> bool:
        """True when the destination answers now."""
        return self.connected

    async def create_schema_if_not_exists(self, schema_name: str) -> None:
        """Nothing to do for a destination without schemas."""

    async def create_table_if_not_exists(self, schema_name: str, table_schema: TableSchema) -> None:
        """Nothing to do for a destination without tables of a fixed shape."""

    async def apply_schema_changes(self, schema_name: str, changes: list[SchemaChange]) -> None:
        """Nothing to do for a destination without tables of a fixed shape."""
