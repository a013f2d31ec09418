"""Simple connectors as the core drives them: a source's change events as batches with positions (here), and a
destination's calls as "structure, rows, position last" (`record_target`). What goes through these is at least
once: nothing is lost, and a repetition leads to the same rows."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager, aclosing
from datetime import UTC, datetime
from typing import Any

from cartridge_warp.config import UnitSettings
from cartridge_warp.connectors.base import SourceConnector
from cartridge_warp.connectors.calls import Ahead, Pause, changes, each, snapshots, translated
from cartridge_warp.connectors.gather import Gathered, Keys, size_of
from cartridge_warp.connectors.record_target import Capabilities, RecordTarget
from cartridge_warp.errors import PositionLost, SourceRefused, Unavailable
from cartridge_warp.observe.events import Observer
from cartridge_warp.records import (
    Batch,
    ChangeEvent,
    Marker,
    OperationType,
    Position,
    Record,
    SourceIdentity,
    Stamp,
    TableBatch,
)

__all__ = ["Capabilities", "RecordSource", "RecordTarget", "changes", "snapshots"]

LINGER = 0.05
"""Seconds without a further event after which a batch is not held back any longer."""

FIRST_ANSWER = 1.0
"""Seconds that a source without `get_position` gets to begin its stream before its tables are copied."""


class RecordSource:
    """A simple `SourceConnector` as a `BatchSource`. The connector is connected already; `kind` is its type.

    Position: `{"marker": the source's own, "version": the last version given out}`. Versions are the order of
    arrival, on the scale of microseconds since 1970, and never fall behind the stored position's, whatever
    the clock does. A source without `get_position` cannot say where it stands before its first change; its
    position then holds for this object alone (`run`), and another one asks for the tables to be copied again.
    """

    def __init__(self, connector: SourceConnector, settings: UnitSettings, kind: str) -> None:
        self.observer: Observer | None = None
        self._connector = connector
        self._settings = settings
        self._name = f"source '{kind}'"
        self._identity = SourceIdentity(cluster=kind, database=settings.database)
        self._run = uuid.uuid4().hex
        self._version = 0
        self._keys = Keys(self._name)
        self._known: set[str] | None = None
        self._anchor: Ahead[ChangeEvent] | None = None

    async def preflight(self) -> list[str]:
        """Ask the source whether it answers. Raises `Unavailable`; returns warnings."""
        with self._calling("testing the connection"):
            if not await self._connector.test_connection():
                raise Unavailable(f"{self._name} does not answer; check its section of the configuration")
        if getattr(self._connector, "get_position", None) is not None:
            return []
        return [
            f"{self._name} has no get_position: when it is restarted before its first change, its tables are "
            "copied again"
        ]

    async def identity(self) -> SourceIdentity:
        """The connector's type and the database's name: a simple source has no identity of its own."""
        return self._identity

    async def now(self) -> Stamp:
        """A position that every later change comes after. Store it before any table is copied."""
        get_position = getattr(self._connector, "get_position", None)
        if get_position is None:
            # The stream itself has to stand before the first row is copied; it is kept for `batches`.
            await self.close()
            self._anchor = await self._open(None)
            await self._anchor.ready(FIRST_ANSWER)
            marker = None
        else:
            with self._calling("reading its position"):
                marker = await get_position(self._settings.database)
            if marker is None:
                raise SourceRefused(f"{self._name}: get_position returned None; it must name a position")
            marker = json.loads(self._dumped(marker))
        return Stamp(self._next_version(), self._position(marker), datetime.now(UTC))

    async def tables(self) -> list[str]:
        """Names of the tables that exist now and pass the filters, sorted."""
        with self._calling("reading its schema"):
            schema = await self._connector.get_schema(self._settings.database)
            names = {table.name for table in schema.tables}
        self._known = (self._known or set()) | names
        return sorted(name for name in names if self._settings.wants(name))

    async def batches(self, marker: Marker) -> AsyncGenerator[Batch, None]:
        """Endless batches after the marker; an empty one whenever the source has nothing more."""
        position = marker.position.get("marker")
        self._version = max(self._version, int(marker.position.get("version", 0)))
        if position is None and marker.position.get("run") != self._run:
            raise PositionLost(
                f"{self._name} had not named a position of '{self._settings.database}' when the last run "
                "ended; its tables are copied again"
            )
        while True:
            stream, self._anchor = self._anchor, None
            if stream is not None and position is not None:
                await stream.close()
                stream = None
            async with aclosing(self._read(stream or await self._open(position), position)) as batches:
                async for batch in batches:
                    position = batch.marker.position["marker"]
                    yield batch

    async def snapshot(
        self, table: str, batch_rows: int, max_bytes: int, version: int | None = None
    ) -> AsyncGenerator[TableBatch, None]:
        """Every row of a table, in pages of at most `batch_rows` rows and about `max_bytes`. All rows carry
        one version, taken before the first is read, so that no change that arrives meanwhile is undone."""
        stamp = self._next_version() if version is None else version
        doing = f"copying table '{table}'"
        with self._calling(doing):
            rows = await snapshots(self._connector, self._settings.database, table, batch_rows)
        page, bulk = TableBatch(table), 0
        async with aclosing(each(rows, lambda: self._calling(doing))) as records:
            async for record in records:
                if not isinstance(record, Record) or record.operation is OperationType.DELETE:
                    raise SourceRefused(f"{self._name}: get_full_snapshot of '{table}' must yield rows as Records")
                key_field, change = self._keys.change(table, record, stamp)
                size = size_of(record.data)
                if page.changes and (len(page.changes) >= batch_rows or bulk + size > max_bytes):
                    yield page
                    page, bulk = TableBatch(table), 0
                page.changes.append(change)
                page.key_field = key_field
                bulk += size
        if page.changes:
            yield page

    async def complete(self, batch: Batch) -> None:
        """Every event carries its row: there is nothing to fetch."""

    def passed(self, position: Position, stamp: Stamp) -> bool:
        """Positions carry the last version that was given out."""
        return int(position.get("version", 0)) >= stamp.version

    async def headroom_seconds(self, marker: Marker) -> float | None:
        """Unknown: how long a simple source keeps its changes is its own business."""
        return None

    async def close(self) -> None:
        """Close a stream that was begun and never read; safe to call twice."""
        anchor, self._anchor = self._anchor, None
        if anchor is not None:
            await anchor.close()

    async def _open(self, position: Any) -> Ahead[ChangeEvent]:
        with self._calling("opening its changes"):
            size = self._settings.defaults.stream_batch_size
            return Ahead(await changes(self._connector, self._settings.database, position, size))

    async def _read(self, stream: Ahead[ChangeEvent], position: Any) -> AsyncGenerator[Batch, None]:
        """The batches of one call of `get_changes`, which may end when nothing more is ready."""
        gathered, interval, found = Gathered(self._settings, position), self._settings.polling_interval, False
        try:
            while True:
                with self._calling("reading its changes"):
                    event = await stream.next(LINGER if gathered.events else interval)
                if event is Pause.END:
                    break
                if isinstance(event, Pause):
                    yield self._batch(gathered)
                    continue
                found = True
                for _ in self._fill(gathered, event):
                    yield self._batch(gathered)
        finally:
            await stream.close()
        if gathered.events or not found:
            yield self._batch(gathered)
        if not found:
            await asyncio.sleep(interval)

    def _fill(self, gathered: Gathered, event: ChangeEvent) -> Iterator[None]:
        """Add one event; yields whenever what has been gathered must be taken first."""
        if not isinstance(event, ChangeEvent):
            raise SourceRefused(f"{self._name}: get_changes yielded {type(event).__name__}, not ChangeEvent")
        record, marker = event.record, self._dumped(event.position_marker)
        table = record.table_name
        if not self._settings.wants(table):
            gathered.skip(marker)
        else:
            key_field, change = self._keys.change(table, record, self._next_version())
            size = size_of(record.data)
            if gathered.overflows(table, size):
                yield
            gathered.add(table, key_field, change, size, marker)
            if self._known is not None and table not in self._known:
                self._known.add(table)
                gathered.created.append(table)
        if gathered.full(table):
            yield

    def _batch(self, gathered: Gathered) -> Batch:
        return gathered.take(self._position)

    def _position(self, marker: Any) -> Position:
        position = {"marker": marker, "version": self._version}
        return position | {"run": self._run} if marker is None else position

    def _dumped(self, marker: Any) -> str:
        """The marker as it will be stored. Taken at once: a source may go on changing its own object."""
        try:
            text = json.dumps(marker, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SourceRefused(f"{self._name}: a position_marker is not JSON ({error})") from error
        if marker is None:
            raise SourceRefused(f"{self._name}: a change has position_marker None; it must name a position")
        return text

    def _next_version(self) -> int:
        self._version = max(self._version + 1, time.time_ns() // 1000)
        return self._version

    def _calling(self, doing: str) -> AbstractContextManager[None]:
        return translated(self._name, doing, SourceRefused)
