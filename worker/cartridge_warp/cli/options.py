"""Options that several commands share, and the configuration that follows from them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cartridge_warp.config import WarpConfig, load_config

__all__ = ["LEVELS", "load", "run_options", "select_options"]

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

_SETTINGS = {
    "mode": "mode",
    "source": "source.connection_string",
    "destination": "destination.connection_string",
    "schema": "single_schema_name",
    "dry_run": "dry_run",
    "metrics_port": "monitoring.prometheus.port",
    "log_level": "logging.level",
    "log_format": "logging.format",
}


def _early_level(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Errors of the configuration come before it could say that tracebacks are wanted."""
    if value == "DEBUG":
        logging.getLogger().setLevel(logging.DEBUG)
    return value


_SELECT: tuple[Decorator[Any], ...] = (
    click.option("--config", metavar="FILE", help="YAML or JSON file with the configuration."),
    click.option("--mode", type=click.Choice(("single", "multi")), help="One schema, or all of the file."),
    click.option("--source", metavar="URI", help="Where rows come from, such as mongodb://host:27017/shop."),
    click.option("--destination", metavar="URI", help="Where they go to, such as postgresql://host/dwh."),
    click.option("--schema", metavar="NAME", help="The schema to work on (means --mode single)."),
    click.option(
        "--log-level",
        type=click.Choice(LEVELS, case_sensitive=False),
        callback=_early_level,
        help="The least severe level that is logged; DEBUG also shows tracebacks.",
    ),
)
_RUN: tuple[Decorator[Any], ...] = (
    click.option("--dry-run", is_flag=True, default=None, help="Read and plan, but write nothing."),
    click.option(
        "--metrics-port",
        type=click.IntRange(0, 65535),
        metavar="PORT",
        help="Port of metrics and health; 0 takes a free one.",
    ),
    click.option("--log-format", type=click.Choice(("json", "console")), help="How log lines look."),
)


def select_options(function: Function) -> Function:
    """Which servers and which schema."""
    return _apply(_SELECT, function)


def run_options(function: Function) -> Function:
    """All options that change a setting."""
    return _apply(_SELECT + _RUN, function)


def load(config: str | None, **options: Any) -> WarpConfig:
    """The configuration: command line over environment over file. Raises `ConfigError`."""
    if options.get("schema") and not options.get("mode"):
        options["mode"] = "single"
    overrides = {_SETTINGS[name]: value for name, value in options.items() if value is not None}
    return load_config(config, environ=os.environ, overrides=overrides)


def _apply(options: tuple[Decorator[Any], ...], function: Function) -> Function:
    for option in reversed(options):
        function = option(function)
    return function
