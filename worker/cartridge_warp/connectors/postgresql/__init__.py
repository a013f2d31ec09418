"""The PostgreSQL destination."""

from cartridge_warp.connectors.postgresql.destination import PostgreSQLDestinationConnector

__all__ = ["PostgreSQLDestinationConnector"]
