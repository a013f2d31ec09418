"""What the worker shows of itself: metrics, health and logs."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from cartridge_warp.config.base import Model
from cartridge_warp.config.spellings import Spellings, same
from cartridge_warp.config.values import Count, Port

__all__ = ["LoggingConfig", "MonitoringConfig", "PrometheusConfig"]


def _level(value: object) -> object:
    if not isinstance(value, str):
        return value
    return {"WARN": "WARNING", "FATAL": "CRITICAL"}.get(value.upper(), value.upper())


def _format(value: object) -> object:
    return "json" if value == "structured" else value


class PrometheusConfig(Model):
    """The server for metrics and health."""

    enabled: bool = True
    """Serve metrics."""

    host: str = Field(default="0.0.0.0", min_length=1, max_length=255)  # noqa: S104
    """Address to listen on. Health is served at the same one."""

    port: Port = 8080
    """Port to listen on; 0 takes a free one."""

    path: str = Field(default="/metrics", pattern=r"^/[A-Za-z0-9/_.-]*$", max_length=255)
    """Path of the metrics."""

    max_tables: Count = Field(default=200, le=100_000)
    """Tables with metrics of their own; all others are summed up as `_other`."""


class MonitoringConfig(Model):
    """Metrics and health."""

    prometheus: PrometheusConfig = PrometheusConfig()
    """The server for metrics and health."""

    health_check_enabled: bool = True
    """Serve `/healthz`, `/readyz` and `/startupz`."""

    spellings: ClassVar[Spellings] = {
        "metrics_enabled": same("prometheus.enabled"),
        "metrics_port": same("prometheus.port"),
        "prometheus_endpoint": same("prometheus.path"),
    }


class LoggingConfig(Model):
    """Logs, on standard error."""

    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_level)] = "INFO"
    """The least severe level that is logged."""

    format: Annotated[Literal["json", "console"] | None, BeforeValidator(_format)] = None
    """`json` (also written `structured`) or `console`. Unset: console on a terminal, else json."""

    correlation_id_enabled: bool = True
    """Give each line the ids of its run, schema, table and batch."""

    sensitive_data_masking: bool = True
    """Secrets are masked in any case; `false` is accepted for older files, and warned about."""
