"""Runs the schemas of one configuration: one in single mode, all of them in multi mode."""

from __future__ import annotations

import asyncio

from cartridge_warp.config import UnitSettings, WarpConfig
from cartridge_warp.connectors.registry import ConnectorFactory
from cartridge_warp.core.batch import Budget
from cartridge_warp.core.processor import SchemaProcessor
from cartridge_warp.errors import mask
from cartridge_warp.observe.events import Note, Observer

__all__ = ["WarpRunner"]

RESTART_AFTER = 30.0  # seconds until a schema that failed is tried again beside its running siblings


class WarpRunner:
    """Connects both ends and drives a `SchemaProcessor` for each schema.

    In multi mode one failing schema never stops the others: it is reported and tried again later. Signals are
    the caller's business: call `stop()`.
    """

    def __init__(
        self,
        config: WarpConfig,
        *,
        observer: Observer | None = None,
        once: bool = False,
        take_over: bool = False,
    ) -> None:
        self.config = config
        self.observer = observer or Observer()
        self.once = once
        self.take_over = take_over
        self.settings: tuple[UnitSettings, ...] = config.units()
        self.processors: list[SchemaProcessor] = []
        self._stop = asyncio.Event()

    @property
    def units(self) -> list[str]:
        """Names of the schemas."""
        return [unit.name for unit in self.settings]

    async def start(self) -> None:
        """Run until `stop()`, or until all is copied and caught up when `once`. Raises the error of the single
        schema; in multi mode the first one, after all have ended."""
        factory = ConnectorFactory(self.config.plugins)
        source = await factory.create_source_connector(self.config.source)
        destination = await factory.create_destination_connector(self.config.destination)
        budget = Budget()
        self.processors = [
            SchemaProcessor(
                unit, source, destination, None, self.observer,
                once=self.once, take_over=self.take_over, budget=budget,
            )
            for unit in self.settings
        ]  # fmt: skip
        try:
            results = await asyncio.gather(*(self._keep(p) for p in self.processors), return_exceptions=True)
        finally:
            await destination.disconnect()
            await source.disconnect()
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _keep(self, processor: SchemaProcessor) -> None:
        """Run a schema; beside others it is started again after a failure, because they keep the process."""
        while True:
            try:
                if self._stop.is_set():
                    return
                await processor.start()
                return
            except Exception as error:  # also a fault of ours in one schema: the others must not notice
                if self.once or len(self.settings) == 1 or self._stop.is_set():
                    raise
                self.observer.emit(
                    Note(
                        processor.settings.database, processor.settings.name, level="warning",
                        message=f"schema {processor.settings.name} failed and is tried again in"
                        f" {RESTART_AFTER:.0f} s: {mask(str(error)) or type(error).__name__}",
                    )
                )  # fmt: skip
            try:
                await asyncio.wait_for(self._stop.wait(), RESTART_AFTER)
            except TimeoutError:
                continue

    async def stop(self) -> None:
        """Ask every schema for an orderly end."""
        self._stop.set()
        for processor in self.processors:
            await processor.stop()
