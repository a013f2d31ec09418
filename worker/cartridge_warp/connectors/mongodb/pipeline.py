"""What is asked of the server: the stages of a unit's change stream, and what an older server has to lack."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from bson.regex import Regex
from pymongo.errors import OperationFailure

from cartridge_warp.config import TableFilter, UnitSettings

__all__ = ["Features", "stages"]

_WHOLE_DATABASE: Final = ("dropDatabase", "invalidate")
_GLOB: Final = re.compile(r"[*?\[]")


@dataclass
class Features:
    """What the server can do. Each is tried first and given up when the server refuses it by name."""

    expanded_events: bool = True  # 6.0: `create` events, and `collectionUUID` in every event
    split_large: bool = True  # 7.0 and 6.0.9: events above 16 MiB in fragments

    def give_up(self, exc: OperationFailure) -> bool:
        """True when `exc` refuses a feature that was on: it is off now, the stream can be opened again."""
        message = str(exc)
        if self.expanded_events and "showExpandedEvents" in message:
            self.expanded_events = False
            return True
        if self.split_large and "changeStreamSplitLargeEvent" in message:
            self.split_large = False
            return True
        return False


def stages(settings: UnitSettings, features: Features, *, slim: bool = False) -> list[dict[str, Any]]:
    """The stages behind `$changeStream`. With `slim` no event carries its document.

    `$changeStreamSplitLargeEvent` must be last, and what is projected away need not be split.
    """
    pipeline: list[dict[str, Any]] = []
    conditions = [*_conditions(settings.filters, "ns.coll")]
    if conditions:
        target = [{"to.coll": {"$exists": True}}, *_conditions(settings.filters, "to.coll")]
        whole = {"operationType": {"$in": list(_WHOLE_DATABASE)}}
        pipeline.append({"$match": {"$or": [{"$and": conditions}, {"$and": target}, whole]}})
    away = {"updateDescription": 0, "fullDocument": 0} if slim else {"updateDescription": 0}
    pipeline.append({"$project": away})
    if features.split_large:
        pipeline.append({"$changeStreamSplitLargeEvent": {}})
    return pipeline


def _conditions(filters: tuple[TableFilter, ...], field: str) -> list[dict[str, Any]]:
    """What every wanted name fulfils. May let more through; `UnitSettings.wants` decides again."""
    conditions: list[dict[str, Any]] = []
    for each in filters:
        if each.whitelist:
            conditions.append({field: {"$in": [_pattern(name) for name in each.whitelist]}})
        # A set of characters cannot be turned into a pattern that is sure to match no more than it does.
        elif names := [_pattern(name) for name in each.blacklist if "[" not in name]:
            conditions.append({field: {"$nin": names}})
    return conditions


def _pattern(name: str) -> str | Regex[str]:
    if not _GLOB.search(name):
        return name
    text = re.sub(r"\[!?\]?[^\]]*\]", "?", name)  # a set of characters: any one character
    text = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in text)
    return Regex(f"^{text}$", "s")
