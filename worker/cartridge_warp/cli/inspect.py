"""Commands that look and prepare, but replicate nothing: validate, init, status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import click
import yaml
from rich.console import Console

from cartridge_warp.cli.options import load, run_options, select_options
from cartridge_warp.cli.screens import status_screen
from cartridge_warp.config import UnitSettings, WarpConfig
from cartridge_warp.connectors.base import DestinationConnector, SourceConnector
from cartridge_warp.connectors.protocols import TransactionalDestination, UnitSource
from cartridge_warp.connectors.record_unit import RecordUnit
from cartridge_warp.connectors.registry import ConnectorFactory
from cartridge_warp.errors import ConfigError, TargetBusy, WarpError
from cartridge_warp.observe.logs import configure, mask_all

__all__ = ["init", "status", "validate"]


@click.command()
@run_options
def validate(**options: Any) -> None:
    """Check the configuration and print what it means, without secrets. Connects to nothing."""
    config = load(**options)
    try:
        asyncio.run(_connectors(config))
    except WarpError as error:
        raise ConfigError(str(error)) from error
    shown = yaml.safe_dump(config.masked(), sort_keys=False, allow_unicode=True, width=100)
    click.echo(shown, nl=False)
    for warning in config.warnings():
        click.echo(f"warning: {warning}", err=True)
    # A comment, so that the whole output is still YAML that loads.
    click.echo("# configuration is valid")


@click.command()
@select_options
def init(**options: Any) -> None:
    """Check both servers, and create the metadata and the target schemas."""
    config = load(**options)
    configure(config.logging)
    asyncio.run(_init(config))


@click.command()
@select_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool, **options: Any) -> None:
    """Show how far each schema is, as the destination's metadata says."""
    config = load(**options)
    configure(config.logging)
    found = asyncio.run(_status(config))
    if as_json:
        click.echo(json.dumps(mask_all(found), indent=2, ensure_ascii=False))
    else:
        Console().print(status_screen(found))


async def _connectors(config: WarpConfig) -> tuple[SourceConnector, DestinationConnector]:
    factory = ConnectorFactory(config.plugins)
    source = await factory.create_source_connector(config.source)
    return source, await factory.create_destination_connector(config.destination)


@asynccontextmanager
async def _connected(connector: SourceConnector | DestinationConnector) -> AsyncIterator[None]:
    try:
        await connector.connect()
        yield
    finally:
        await connector.disconnect()


async def _status(config: WarpConfig) -> list[dict[str, Any]]:
    _, destination = await _connectors(config)
    read = getattr(destination, "status", None)
    if read is None:
        raise ConfigError(
            f"destination.type: {config.destination.type} keeps no status; see the logs and metrics of the worker"
        )
    async with _connected(destination):
        found: list[dict[str, Any]] = await read(config.units())
    return found


async def _init(config: WarpConfig) -> None:
    source, destination = await _connectors(config)
    async with _connected(source), _connected(destination):
        for unit in config.units():
            for line in await _prepare(unit, source, destination, config):
                click.echo(line)


async def _prepare(
    unit: UnitSettings, source: SourceConnector, destination: DestinationConnector, config: WarpConfig
) -> list[str]:
    """Make one schema ready; returns what to tell about it."""
    kind = config.source.type
    reader = source.unit(unit) if isinstance(source, UnitSource) else RecordUnit(source, unit, kind)
    try:
        told = [f"{unit.name}: warning: {warning}" for warning in await reader.preflight()]
        identity = await reader.identity()
    finally:
        await reader.close()
    if unit.dry_run:
        return [*told, f"{unit.name}: the source is ready; dry run: nothing was created"]
    if not isinstance(destination, TransactionalDestination):
        await destination.create_schema_if_not_exists(unit.target)
        return [*told, f"{unit.name}: the source and target schema {unit.target} are ready"]
    target = destination.target(unit)
    try:
        await target.open(identity)
        await target.heartbeat("stopped", "initialised")
    except TargetBusy as error:
        return [*told, f"{unit.name}: ready and in use: {error}"]
    finally:
        await target.close("stopped", "initialised")
    created = f"target schema {unit.target} and metadata schema {unit.metadata_schema}"
    return [*told, f"{unit.name}: the source, {created} are ready"]
