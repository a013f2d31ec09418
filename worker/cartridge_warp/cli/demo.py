"""`cartridge-warp demo`: real servers, real documents, the real worker, and a `kill -9` in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psycopg
from pymongo.errors import PyMongoError
from rich.console import Console

from cartridge_warp.cli.demo_data import Loaded, find_data
from cartridge_warp.cli.demo_manifest import Manifest
from cartridge_warp.cli.demo_screen import Screen
from cartridge_warp.cli.demo_servers import MongoServer, PostgresServer, Worker, require_servers
from cartridge_warp.cli.demo_stage import Stage
from cartridge_warp.errors import ConfigError, Unavailable

__all__ = ["demo"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    manifest: Path
    data: Path
    once: bool
    as_json: bool
    keep: Path | None


@click.command()
@click.option("--manifest", type=_FILE, required=True, help="WarpPipeline and its WarpSchemas, in one YAML file.")
@click.option("--data", type=_FOLDER, required=True, help="Folder of <database>.<collection>.jsonl files.")
@click.option("--once", is_flag=True, help="One round: copy, changes, kill -9, restart, changes, comparison.")
@click.option("--json", "as_json", is_flag=True, help="With --once: only a JSON summary on standard output.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="New folder for data and logs.")
def demo(manifest: Path, data: Path, once: bool, as_json: bool, keep: Path | None) -> int:
    """Watch sample collections arrive in PostgreSQL and stay equal while they change.

    Starts a MongoDB-protocol server and a PostgreSQL of its own, loads the sample documents, runs the
    pipeline of the manifest, and kills and restarts the worker in between. Goes on until Ctrl-C; then nothing
    is left.
    """
    if as_json and not once:
        raise click.UsageError("--json needs --once")
    options = Options(manifest, data, once, as_json, keep)
    screen = Screen(Console(stderr=as_json), live=not as_json)
    return asyncio.run(_until_stopped(_perform(options, screen), screen, once=once))


async def _until_stopped(work: Coroutine[Any, Any, int], screen: Screen, *, once: bool) -> int:
    """Run `work` to its end; the first signal cancels it, and no further one disturbs the cleaning up."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    received: list[signal.Signals] = []

    def stop(which: signal.Signals) -> None:
        if not received:
            received.append(which)
            task.cancel()

    for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(which, stop, which)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        screen.line("\nstopped; servers and worker are gone")
        # Ctrl-C is how the endless demo is meant to end
        return 0 if received[0] is signal.SIGINT and not once else 128 + received[0]


async def _perform(options: Options, screen: Screen) -> int:
    require_servers()
    manifest = Manifest.read(options.manifest)
    files = find_data(options.data)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(_folder(options.keep))
        mongo, postgres = MongoServer(folder), PostgresServer(folder)
        stack.push_async_callback(postgres.stop)
        stack.push_async_callback(mongo.stop if options.keep else mongo.kill)
        screen.title("cartridge-warp demo")
        await _start(mongo, postgres)
        worker = Worker(folder, manifest.write_config(folder), manifest.environment(mongo.uri, postgres.uri))
        stack.push_async_callback(worker.kill)
        try:
            play = Stage.open(screen, mongo.uri, postgres.uri, manifest.units, worker)
            stage = await stack.enter_async_context(play)
            loaded = await stage.load(files)
            _introduce(screen, manifest, mongo, postgres, loaded)
            if not options.once:
                return await stage.forever()
            summary = await stage.once()
        except (psycopg.Error, PyMongoError) as error:
            raise Unavailable(f"a server of the demo failed: {error}") from error
    if options.as_json:
        click.echo(json.dumps(summary.to_json(), ensure_ascii=False))
    return 0 if summary.equal else 1


async def _start(*servers: MongoServer | PostgresServer) -> None:
    """Start both at once; when one fails the other is waited for, so that it can be stopped."""
    results = await asyncio.gather(*(server.start() for server in servers), return_exceptions=True)
    for failed in results:
        if failed is not None:
            raise failed


def _introduce(
    screen: Screen, manifest: Manifest, mongo: MongoServer, postgres: PostgresServer, loaded: Loaded
) -> None:
    schemas = ", ".join(unit.target for unit in manifest.units)
    screen.pairs(
        {
            "pipeline": f"{manifest.path} (schemas {schemas})",
            "documents": f"{loaded.documents:,} loaded",
            "PostgreSQL": f"{postgres.psql} '{postgres.uri}'",
            "MongoDB": f"mongosh '{mongo.uri}'",
        }
    )
    if loaded.left_out:
        left_out = f"{len(loaded.left_out)} documents left out: SecantusDB holds dates of the years 1 to 9999"
        screen.line(f"  {left_out}", style="dim")


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """A temporary folder that goes at the end, or a new one of the user's that stays."""
    if keep is None:
        folder = Path(tempfile.mkdtemp(prefix="cartridge-warp-demo-"))
    else:
        if keep.exists() and any(keep.iterdir()):
            raise ConfigError(f"{keep} is not empty: name a new folder with --keep")
        keep.mkdir(parents=True, exist_ok=True)
        folder = keep.resolve()
    try:
        if os.geteuid() == 0:
            _open_to_others(folder)
        yield folder
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _open_to_others(folder: Path) -> None:
    """PostgreSQL does not run as root, and the account that runs it instead must be able to pass."""
    folder.chmod(0o711)
    for parent in folder.parents:
        if not parent.stat().st_mode & 0o001:
            raise ConfigError(
                f"PostgreSQL does not run as root, and {parent} lets no other account pass: name another folder"
                " with --keep"
            )
