"""Where a batch ends: at a table's threshold, at the byte bound, at a barrier, or when nothing more is ready;
never inside a source transaction that fits its bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final

from bson.timestamp import Timestamp

from cartridge_warp.config import UnitSettings
from cartridge_warp.connectors.mongodb.events import Item, Translator
from cartridge_warp.connectors.mongodb.position import (
    Token,
    dump_token,
    make_position,
    position_time,
    token_time,
    wall_clock,
)
from cartridge_warp.connectors.mongodb.reader import Reader
from cartridge_warp.connectors.mongodb.sizes import Sizes
from cartridge_warp.kernel.bson import identity
from cartridge_warp.records import Barrier, Batch, BatchMarker, Op, Position, TableBatch

__all__ = ["Cutter"]

_TOKEN_SECONDS: Final = 1.0  # how often a quiet stream says so; the core stores such a position more rarely
_PATIENCE_SECONDS: Final = 0.25
_LARGE_DOCUMENT: Final = 4096


class _Draft:
    """The batch that is being filled. `weight` is `bytes` with the documents that are to be fetched."""

    def __init__(self) -> None:
        self.tables: dict[str, TableBatch] = {}
        self.created: list[str] = []
        self.events = 0
        self.bytes = 0
        self.weight = 0
        self.last: Item | None = None
        self.transaction_weight = 0
        self.full = False
        self.fetched: set[tuple[str, object]] = set()

    @property
    def matters(self) -> bool:
        """True when there is something to commit besides a position."""
        return bool(self.tables or self.created)

    @property
    def transaction(self) -> tuple[bytes, int] | None:
        """The source transaction of the last event."""
        return None if self.last is None else self.last.transaction


class Cutter:
    """Takes events from a reader (and from the next one, when the stream had to be opened again) and makes
    batches of them. `fruitless` is True while the present reader has given no event."""

    def __init__(
        self,
        settings: UnitSettings,
        translate: Translator,
        sizes: Sizes,
        note: Callable[[str], None],
        position: Position,
    ) -> None:
        self.fruitless = True
        self._settings = settings
        self._translate = translate
        self._sizes = sizes
        self._note = note
        self._position = position
        self._pipeline: str = position["pipeline"]
        self._draft = _Draft()
        self._held: Item | None = None
        self._most: int | None = None
        self._clock = asyncio.get_running_loop().time
        self._token_due = self._clock() + _TOKEN_SECONDS

    @property
    def position(self) -> Position:
        """The position behind the last event taken, also when its batch is not finished."""
        last = self._draft.last
        return self._position if last is None else self._position_at(last.token, last.time)

    def restart_at_time(self) -> None:
        """Go on from the time of the position instead of its token."""
        self._position = {**self.position, "token": None}

    def attach(self, reader: Reader, pipeline: str, most: int | None = None) -> None:
        """Go on with a stream that was opened at `position`, for at most so many events."""
        self._reader = reader
        self._pipeline = pipeline
        self._most = most
        self.fruitless = True

    async def next(self) -> Batch | None:
        """The next batch; None when the stream has ended or should be opened again."""
        while True:
            item = self._held or self._take()
            self._held = None
            if item is None:
                if (batch := self._when_drained()) is not None:
                    return batch
                if self._reader.done or self._stretch_is_over():
                    return None
                await self._reader.wait(_PATIENCE_SECONDS)
                continue
            item.weight = item.size + await self._weight_of_fetch(item)
            if self._must_cut_before(item):
                self._held = item
                return self._finish(inside=item.transaction)
            if item.barrier is not None:
                return self._at_barrier(item, item.barrier)
            self._add(item)

    def _take(self) -> Item | None:
        if self._most == 0 or (taken := self._reader.pop()) is None:
            return None
        if self._most is not None:
            self._most -= 1
        self.fruitless = False
        return self._translate(*taken)

    def _stretch_is_over(self) -> bool:
        return self._most == 0 or (self._most is not None and self._reader.idle)

    async def _weight_of_fetch(self, item: Item) -> int:
        """Bytes of the document that this event will make us fetch, as an estimate."""
        table, change = item.table, item.change
        if table is None or change is None or change.op is not Op.FETCH:
            return 0
        size = await self._sizes.of(table)
        # A large document that changes often is fetched once; counting it each time would make tiny batches.
        if size >= _LARGE_DOCUMENT and (table, identity(change.key)) in self._draft.fetched:
            return 0
        return size

    def _must_cut_before(self, item: Item) -> bool:
        draft = self._draft
        if item.transaction is not None and item.transaction == draft.transaction:
            if draft.transaction_weight + item.weight <= self._settings.max_transaction_bytes:
                return False
            self._note(
                f"a source transaction is larger than {self._settings.max_transaction_bytes} bytes "
                "(`max_transaction_bytes`) and is written in parts"
            )
            return True
        if not draft.matters:
            return False
        too_large = draft.weight + item.weight > self._settings.max_batch_bytes
        return draft.full or too_large or item.barrier is not None

    def _add(self, item: Item) -> None:
        draft = self._draft
        same = item.transaction is not None and item.transaction == draft.transaction
        draft.transaction_weight = item.weight + (draft.transaction_weight if same else 0)
        draft.last = item
        draft.events += 1
        draft.bytes += item.size
        draft.weight += item.weight
        if item.created is not None:
            draft.created.append(item.created)
        if item.table is None or item.change is None:
            return
        table = draft.tables.get(item.table)
        if table is None:
            table = draft.tables[item.table] = TableBatch(item.table)
        table.changes.append(item.change)
        if item.weight - item.size >= _LARGE_DOCUMENT:
            draft.fetched.add((item.table, identity(item.change.key)))
        settings = self._settings.table(item.table)
        threshold = min(settings.stream_batch_size, settings.write_batch_size)
        # The threshold is what makes a batch worth a transaction. With as much again waiting, the destination
        # is behind, and larger batches let it catch up.
        if len(table.changes) >= threshold and len(self._reader) < threshold:
            draft.full = True

    def _when_drained(self) -> Batch | None:
        """Nothing is ready: end the batch, unless its last transaction may go on; or report a position."""
        draft, reader = self._draft, self._reader
        if draft.matters:
            # Only an empty answer of the server proves that a transaction has no further event.
            open_end = draft.transaction is not None and not reader.settled
            return None if open_end and (reader.error is not None or not reader.done) else self._finish()
        if self._clock() < self._token_due or not (reader.idle or draft.events):
            return None
        self._token_due = self._clock() + _TOKEN_SECONDS
        return self._finish()

    def _at_barrier(self, item: Item, barrier: Barrier) -> Batch:
        events = self._draft.events + 1
        self._draft = _Draft()
        self._position = self._position_at(item.token, item.time)
        marker = BatchMarker(self._position, wall_clock(item.at_ms, item.time), events)
        return Batch(marker, barrier=barrier, bytes=item.size)

    def _finish(self, inside: tuple[bytes, int] | None = None) -> Batch:
        """End the batch here, with the newest position that it may carry; `inside` is the transaction of the
        event that follows."""
        draft, self._draft = self._draft, _Draft()
        last = draft.last
        token = self._reader.token() if self._held is None else None
        if token is not None:
            self._position = self._position_at(token, None if last is None else last.time)
        elif last is not None:
            self._position = self._position_at(last.token, last.time)
            if inside is not None and inside == last.transaction:
                self._position["inside"] = True  # further events of this very time will follow
        marker = BatchMarker(self._position, self._source_time(last), draft.events)
        return Batch(marker, draft.tables, created=tuple(draft.created), bytes=draft.bytes)

    def _source_time(self, last: Item | None) -> datetime:
        if last is None:
            return wall_clock(None, position_time(self._position))
        return wall_clock(last.at_ms, last.time)

    def _position_at(self, token: Token, time: Timestamp | None) -> Position:
        """A token's time is its own, else that of the event before it; never less than was known before."""
        known = [position_time(self._position), time, token_time(token)]
        latest = max(each for each in known if each is not None)
        return make_position(dump_token(token), latest, self._pipeline, self._settings.database)
