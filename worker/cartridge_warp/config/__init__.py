"""Every setting, how it is read, and what follows from it for one schema and one table."""

from cartridge_warp.config.endpoints import ChangeDetection, DestinationConfig, SourceConfig
from cartridge_warp.config.levels import ErrorHandling, EvolutionConfig, SchemaConfig, TableConfig
from cartridge_warp.config.load import environment_settings, load_config
from cartridge_warp.config.observing import LoggingConfig, MonitoringConfig, PrometheusConfig
from cartridge_warp.config.schedule import Schedule
from cartridge_warp.config.settings import WarpConfig
from cartridge_warp.config.units import TableFilter, TableSettings, UnitSettings

__all__ = [
    "ChangeDetection",
    "DestinationConfig",
    "ErrorHandling",
    "EvolutionConfig",
    "LoggingConfig",
    "MonitoringConfig",
    "PrometheusConfig",
    "Schedule",
    "SchemaConfig",
    "SourceConfig",
    "TableConfig",
    "TableFilter",
    "TableSettings",
    "UnitSettings",
    "WarpConfig",
    "environment_settings",
    "load_config",
]
