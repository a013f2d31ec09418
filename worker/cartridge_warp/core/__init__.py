"""Replication: the runner of a configuration and the processor of one schema."""

from cartridge_warp.config import DestinationConfig, SchemaConfig, SourceConfig, TableConfig, WarpConfig
from cartridge_warp.core.processor import SchemaProcessor
from cartridge_warp.core.runner import WarpRunner

__all__ = [
    "DestinationConfig",
    "SchemaConfig",
    "SchemaProcessor",
    "SourceConfig",
    "TableConfig",
    "WarpConfig",
    "WarpRunner",
]
