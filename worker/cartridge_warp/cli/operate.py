"""`cartridge-warp run`: the worker with its listeners, its pages and its signals."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from rich.console import Console

from cartridge_warp import __version__
from cartridge_warp.config import WarpConfig
from cartridge_warp.observe.events import Listener, Observer
from cartridge_warp.observe.health import Health
from cartridge_warp.observe.logs import configure
from cartridge_warp.observe.narrator import Narrator
from cartridge_warp.observe.progress import Progress
from cartridge_warp.observe.prometheus import Metrics
from cartridge_warp.observe.server import pages, serve
from cartridge_warp.observe.terminal import display, is_terminal, report

__all__ = ["Signals", "operate"]


class Signals:
    """SIGINT and SIGTERM ask for an orderly end; a second one cancels what has not ended by then."""

    def __init__(self, stop: Callable[[], Awaitable[None]]) -> None:
        self.received: signal.Signals | None = None
        self._stop = stop
        self._main = asyncio.current_task()
        self._stopping: asyncio.Future[None] | None = None

    def install(self) -> None:
        """Listen from now on."""
        loop = asyncio.get_running_loop()
        for which in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(which, self._hear, which)

    def remove(self) -> None:
        """Back to the defaults."""
        loop = asyncio.get_running_loop()
        for which in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(which)

    async def stopped(self) -> None:
        """Wait for the orderly end that was asked for, if any; raises what went wrong in it."""
        if self._stopping is not None:
            await self._stopping

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C; a SIGTERM that was obeyed is no failure."""
        return 130 if self.received is signal.SIGINT else 0

    def _hear(self, which: signal.Signals) -> None:
        log = structlog.stdlib.get_logger("cartridge_warp")
        if self.received is None:
            self.received = which
            log.info("stopping: what has been read is committed first", signal=which.name)
            self._stopping = asyncio.ensure_future(self._stop())
        elif self._main is not None:
            log.warning("stopping at once; the next start goes on from the last commit", signal=which.name)
            self._main.cancel()


async def operate(config: WarpConfig, *, once: bool = False, take_over: bool = False) -> int:
    """Run until done or told to stop; returns the exit code. Raises WarpError."""
    from cartridge_warp.core import WarpRunner  # the drivers load slowly: not for --help

    console = Console(stderr=True)
    live = is_terminal(console) and config.logging.format != "json"
    configure(config.logging, console=console if live else None)
    units = config.units()
    silent = {unit.name for unit in units if not unit.error_handling.log_conversion_warnings}
    progress, health = Progress(), Health(unit.name for unit in units)
    listeners: list[Listener] = [Narrator(silent), health, progress]
    metrics = Metrics(config.monitoring.prometheus) if config.monitoring.prometheus.enabled else None
    if metrics is not None:
        listeners.append(metrics)
    runner = WarpRunner(config, observer=Observer(*listeners), once=once, take_over=take_over)
    signals = Signals(runner.stop)
    async with AsyncExitStack() as stack:
        signals.install()
        stack.callback(signals.remove)
        port = await stack.enter_async_context(_pages(config, health, metrics))
        _introduce(config, runner.units, port)
        await stack.enter_async_context(_shown(progress, console if live else None))
        try:
            await runner.start()
        except asyncio.CancelledError:
            if signals.received is None:
                raise
            return 128 + signals.received
        await signals.stopped()
    return signals.exit_code


@asynccontextmanager
async def _pages(config: WarpConfig, health: Health, metrics: Metrics | None) -> AsyncIterator[int | None]:
    settings = config.monitoring.prometheus
    found = pages(health if config.monitoring.health_check_enabled else None, metrics, settings.path)
    if not found:
        yield None
        return
    async with serve(settings.host, settings.port, found) as port:
        yield port


@asynccontextmanager
async def _shown(progress: Progress, console: Console | None) -> AsyncIterator[None]:
    """Show the progress while the block runs. A display that fails never disturbs the worker."""
    stop = asyncio.Event()
    task = asyncio.create_task(report(progress, stop) if console is None else display(progress, console, stop))
    try:
        yield
    finally:
        stop.set()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(ended, Exception):
            structlog.stdlib.get_logger("cartridge_warp").warning("the progress display failed", exc_info=ended)


def _introduce(config: WarpConfig, units: list[str], port: int | None) -> None:
    log = structlog.stdlib.get_logger("cartridge_warp")
    log.info("cartridge-warp", version=__version__, mode=config.mode, schemas=units, dry_run=config.dry_run)
    if port is not None:
        log.info("metrics and health", address=f"{config.monitoring.prometheus.host}:{port}")
    for warning in config.warnings():
        log.warning(warning)
