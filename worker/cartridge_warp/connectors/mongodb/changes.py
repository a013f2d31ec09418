"""The change stream of one database, cut into batches that carry their position."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo.asynchronous.change_stream import AsyncDatabaseChangeStream
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure, ProtocolError

from cartridge_warp.config import UnitSettings
from cartridge_warp.connectors.mongodb.cutter import Cutter
from cartridge_warp.connectors.mongodb.errors import CHANGE_STREAM_FATAL, TOO_LARGE, guard
from cartridge_warp.connectors.mongodb.events import RAW, Translator
from cartridge_warp.connectors.mongodb.pipeline import Features, stages
from cartridge_warp.connectors.mongodb.position import load_token, pipeline_hash, position_time
from cartridge_warp.connectors.mongodb.reader import Reader
from cartridge_warp.connectors.mongodb.sizes import Sizes
from cartridge_warp.errors import PositionLost
from cartridge_warp.records import Batch, Position

__all__ = ["Feed"]

MAX_AWAIT_MS: Final = 400
_EVENTS_PER_ANSWER: Final = 5000  # some servers give 101 at a time unless they are asked
_SLIM_EVENTS: Final = 100
_CLOSED_EARLY_PAUSE: Final = 1.0
_ANSWER_TOO_LARGE: Final = "larger than server max message size"  # the driver's words: it has no code for this


class Feed:
    """Opens and follows the change stream of one unit."""

    def __init__(
        self, database: AsyncDatabase[Any], settings: UnitSettings, sizes: Sizes, note: Callable[[str], None]
    ) -> None:
        self._database = database.with_options(codec_options=RAW)
        self._settings = settings
        self._sizes = sizes
        self._note = note
        self._doing = f"follow the changes of database '{settings.database}'"
        self.features = Features()

    def fingerprint(self) -> str:
        """The hash of the stages that are asked for now."""
        return pipeline_hash(stages(self._settings, self.features))

    async def check(self) -> None:
        """Open the stream once and read nothing, to learn what the server refuses."""
        stream = await self._open(None, slim=0)
        await stream.close()

    async def batches(self, position: Position, present: Timestamp) -> AsyncGenerator[Batch, None]:
        """Batches behind `position`. `present` is the source's cluster time now."""
        self._check_database(position)
        _check_time(position, present)
        translator = Translator(self._settings, self._note)
        cutter = Cutter(self._settings, translator, self._sizes, self._note, position)
        slim = 0  # so many events are to be read without documents
        while True:
            with guard(self._doing):
                try:
                    stream = await self._open(cutter.position, slim=slim)
                except (OperationFailure, ProtocolError) as exc:
                    if slim or not (slim := self._without_documents(exc)):
                        raise
                    continue
            reader = Reader(stream, self._settings.max_batch_bytes)
            cutter.attach(reader, self.fingerprint(), most=slim or None)
            try:
                while (batch := await self._next(cutter)) is not None:
                    yield batch
            finally:
                await reader.close()
            slim = await self._after(reader, cutter, slim)

    async def _next(self, cutter: Cutter) -> Batch | None:
        with guard(self._doing):
            return await cutter.next()

    async def _after(self, reader: Reader, cutter: Cutter, slim: int) -> int:
        """What to do when a stream has ended: how many events the next one must give without documents."""
        error = reader.error
        if error is None:
            if cutter.fruitless and reader.done:
                await asyncio.sleep(_CLOSED_EARLY_PAUSE)  # a server that closes streams at once: do not spin
            return 0
        if (events := self._without_documents(error)) and not (slim and cutter.fruitless):
            return events
        if isinstance(error, OperationFailure) and (
            self.features.give_up(error) or self._restart_by_time(error, cutter)
        ):
            return 0
        with guard(self._doing):
            raise error

    def _without_documents(self, error: Exception) -> int:
        """How many events must be read without documents after this error; 0 when it is about something else."""
        if isinstance(error, OperationFailure) and error.code == TOO_LARGE:
            self._note("an event is larger than a message may be: its stretch is read without documents")
            return _SLIM_EVENTS
        if isinstance(error, ProtocolError) and _ANSWER_TOO_LARGE in str(error):
            # A mongod ends an answer at 16 MB; a server that does not would fail in the same way for ever.
            self._note("the server's answer is larger than a message may be: its events are read without documents")
            return _EVENTS_PER_ANSWER
        return 0

    def _restart_by_time(self, error: OperationFailure, cutter: Cutter) -> bool:
        """The filters have changed, and the token's event does not pass them any more: its time will do.
        Events at that very time come again, which is harmless: same version, same content."""
        position = cutter.position
        changed = position["token"] is not None and position["pipeline"] != self.fingerprint()
        if error.code != CHANGE_STREAM_FATAL or not changed:
            return False
        self._note("the filters have changed: the change stream restarts at the time of the stored position")
        cutter.restart_at_time()
        return True

    async def _open(self, position: Position | None, *, slim: int) -> AsyncDatabaseChangeStream[RawBSONDocument]:
        while True:
            try:
                return await self._watch(position, slim=slim)
            except OperationFailure as exc:
                if self.features.give_up(exc):
                    continue
                stale = position is not None and position["pipeline"] != self.fingerprint()
                if exc.code != CHANGE_STREAM_FATAL or not stale or position is None or not position["token"]:
                    raise
                position = {**position, "token": None}

    async def _watch(self, position: Position | None, *, slim: int) -> AsyncDatabaseChangeStream[RawBSONDocument]:
        start: dict[str, Any] = {}
        if position is not None:
            token = position["token"]
            if token is None:
                start["start_at_operation_time"] = position_time(position)
            else:
                # Never resumeAfter: it is refused behind an invalidate.
                start["start_after"] = load_token(token)
        return await self._database.watch(
            stages(self._settings, self.features, slim=slim > 0),
            max_await_time_ms=MAX_AWAIT_MS,
            batch_size=_EVENTS_PER_ANSWER,
            show_expanded_events=True if self.features.expanded_events else None,
            **start,
        )

    def _check_database(self, position: Position) -> None:
        if position["database"] != self._settings.database:
            raise PositionLost(
                f"the stored position is of database '{position['database']}', "
                f"but '{self._settings.database}' is to be copied"
            )


def _check_time(position: Position, present: Timestamp) -> None:
    """A server that was restored, or replaced, may accept a token from its future and then skip what it does
    until then."""
    time = position_time(position)
    if time > present:
        raise PositionLost(
            f"the stored position is {max(1, time.time - present.time)} s ahead of the source's time: "
            "the source was restored or replaced"
        )
