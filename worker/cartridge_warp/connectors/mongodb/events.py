"""An event of the change stream into what the core moves: a change, a barrier, a new collection, nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bson import CodecOptions
from bson.codec_options import DatetimeConversion
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp

from cartridge_warp.config import UnitSettings
from cartridge_warp.connectors.mongodb.position import Token, version_of
from cartridge_warp.kernel.bson import decode
from cartridge_warp.records import Barrier, Change, Op, OperationType

__all__ = ["RAW", "Fragments", "Item", "Translator"]

RAW: Final[CodecOptions[RawBSONDocument]] = CodecOptions(
    document_class=RawBSONDocument,
    unicode_decode_error_handler="replace",  # of the envelope; documents and keys stay raw
    datetime_conversion=DatetimeConversion.DATETIME_MS,
)

_NO_EFFECT: Final = frozenset(
    {
        "createIndexes",
        "dropIndexes",
        "endOfTransaction",
        "modify",
        "refineCollectionShardKey",
        "shardCollection",
        "startIndexBuild",
    }
)  # fmt: skip
_WITH_IMAGE: Final = {"insert": OperationType.INSERT, "replace": OperationType.UPDATE}
_MOST_NAMES: Final = 10_000


@dataclass(slots=True)
class Item:
    """An event as the batching sees it. `weight` is `size` with what must be fetched. `transaction` is
    equal for all events of one source transaction, `table` is None for what is not mirrored."""

    token: Token
    time: Timestamp
    at_ms: int | None
    size: int
    weight: int = 0
    transaction: tuple[bytes, int] | None = None
    table: str | None = None
    change: Change | None = None
    barrier: Barrier | None = None
    created: str | None = None


class Translator:
    """Translates the events of one unit. `note` hears once of each kind of event that is not known."""

    def __init__(self, settings: UnitSettings, note: Callable[[str], None]) -> None:
        self._settings = settings
        self._note = note
        self._names: dict[bytes, str | None] = {}
        self.unknown: dict[str, int] = {}

    def __call__(self, event: Mapping[str, Any], size: int) -> Item:
        """What `event` means. Events of tables that are not wanted give an item without effect."""
        kind = event["operationType"]
        wall = event.get("wallTime")
        item = Item(event["_id"], event["clusterTime"], None if wall is None else int(wall), size)
        if (number := event.get("txnNumber")) is not None:
            item.transaction = (bytes(event["lsid"].raw), number)
        if kind in _WITH_IMAGE or kind in ("update", "delete"):
            item.table = self._table(event["ns"])
            if item.table is not None:
                item.change = _change(kind, event, item)
        else:
            self._structure(kind, event, item)
        return item

    def _table(self, namespace: RawBSONDocument) -> str | None:
        """The wanted table that a namespace names, else None."""
        raw = bytes(namespace.raw)
        try:
            return self._names[raw]
        except KeyError:
            if len(self._names) >= _MOST_NAMES:
                self._names.clear()
        name = namespace.get("coll")
        wanted = (
            name is not None
            and namespace["db"] == self._settings.database
            and not name.startswith("system.")
            and self._settings.wants(name)
        )
        self._names[raw] = name if wanted else None
        return self._names[raw]

    def _structure(self, kind: str, event: Mapping[str, Any], item: Item) -> None:
        if kind in ("dropDatabase", "invalidate"):
            item.barrier = Barrier(version_of(item.time), kind)
        elif kind == "rename":
            item.barrier = self._rename(event, version_of(item.time))
        elif kind in ("drop", "reshardCollection", "create"):
            if (name := self._table(event["ns"])) is None:
                return
            if kind == "create":
                item.created = name if _is_plain(event) else None
            else:
                item.barrier = _barrier(kind, name, event, version_of(item.time))
        elif kind not in _NO_EFFECT:
            self.unknown[kind] = self.unknown.get(kind, 0) + 1
            if self.unknown[kind] == 1:
                self._note(f"the change stream has events of the unknown type '{kind}', which are left out")

    def _rename(self, event: Mapping[str, Any], version: int) -> Barrier | None:
        """Away is a drop of the old name; what now bears a wanted name has come without its rows."""
        old, new = self._table(event["ns"]), self._table(event["to"])
        tables = tuple(name for name in (old, new) if name is not None)
        arrived = () if new is None else (new,)
        if old is not None and "collectionUUID" not in event:
            arrived = (*arrived, old)
        return Barrier(version, "rename", tables, arrived) if tables else None


def _change(kind: str, event: Mapping[str, Any], item: Item) -> Change:
    document_key = decode(bytes(event["documentKey"].raw))
    origin = event.get("collectionUUID")
    change = Change(
        Op.FETCH,
        document_key["_id"],
        version_of(item.time),
        None,
        item.at_ms,
        None if origin is None else bytes(origin),
        OperationType.UPDATE,
    )
    if kind == "delete":
        change.operation = OperationType.DELETE
        # With a shard key in it a delete may be half of a move, whose insert has passed already: read again.
        change.op = Op.DELETE if len(document_key) == 1 else Op.FETCH
    elif kind in _WITH_IMAGE:
        change.operation = _WITH_IMAGE[kind]
        image = event.get("fullDocument")  # projected away in a stretch with events that are too large
        if image is not None:
            # Large ones are a view of the whole answer, which would stay in memory with it.
            change.image, change.op = bytes(image.raw), Op.UPSERT
    return change


def _barrier(kind: str, name: str, event: Mapping[str, Any], version: int) -> Barrier:
    if kind == "reshardCollection":
        # The rows stay true, but fetches for events before it were dropped, since the UUID is another now.
        return Barrier(version, kind, (), (name,))
    # Without UUIDs a fetch may have read the next collection of that name: copy what is there now.
    return Barrier(version, kind, (name,), () if "collectionUUID" in event else (name,))


def _is_plain(event: Mapping[str, Any]) -> bool:
    """True for a collection that can be mirrored: no view, no time-series."""
    how = event.get("operationDescription") or {}
    return event.get("nsType", "collection") == "collection" and "viewOn" not in how and "timeseries" not in how


class Fragments:
    """Puts the fragments of a split event together (`$changeStreamSplitLargeEvent`)."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}
        self._size = 0

    @property
    def pending(self) -> bool:
        """True between the first and the last fragment: no position may be taken here."""
        return bool(self._fields)

    def add(self, event: RawBSONDocument) -> tuple[Mapping[str, Any], int] | None:
        """The whole event and its size in bytes, once it is complete; its `_id` is the last fragment's."""
        split = event.get("splitEvent")
        if split is None or split["of"] == 1:
            return event, len(event.raw)
        self._fields.update(event)
        self._size += len(event.raw)
        if split["fragment"] < split["of"]:
            return None
        whole, size = self._fields, self._size
        self._fields, self._size = {}, 0
        return whole, size
