"""Brings every accepted spelling into the canonical one, and remembers how and where each value was written.

It works on plain mappings, before anything is validated, so that the layers (file, environment, command line)
can be merged key by key whatever spelling each of them uses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from cartridge_warp.config.problems import Origin, Origins, Path, Problem, found, nearest, path_text
from cartridge_warp.config.spellings import Spelling, Spellings, field_keys, shape

__all__ = ["Canonical", "Place", "canonical", "merge"]

Place = Callable[[Path], str]
"""Names the file or variable that a value written at this path came from."""


_BY_NAME = ("schemas", "tables")
"""Lists that may be written as a mapping from name to group."""


@dataclass
class Canonical:
    """One layer in canonical spelling."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: Origins = field(default_factory=Origins)
    problems: list[Problem] = field(default_factory=list)


def canonical(model: type[BaseModel], raw: Mapping[Any, Any], place: Place = lambda path: "") -> Canonical:
    """`raw` in canonical spelling, with unknown keys and contradicting spellings as problems."""
    walk = _Walk(place)
    walk.result.tree = walk.group(model, raw, (), ())
    return walk.result


def merge(low: Canonical, high: Canonical) -> Canonical:
    """`high` over `low`: mappings key by key, anything else (lists too) as a whole."""
    origins = dict(low.origins.known)
    tree = _merged(low.tree, high.tree, (), origins)
    return Canonical(tree, Origins(origins | high.origins.known), low.problems + high.problems)


def _merged(low: Any, high: Any, path: Path, origins: dict[Path, Origin]) -> Any:
    if isinstance(low, dict) and isinstance(high, dict):
        both = dict(low)
        for key, value in high.items():
            both[key] = _merged(low[key], value, (*path, key), origins) if key in low else value
        return both
    for known in [each for each in origins if each[: len(path)] == path]:
        del origins[known]
    return high


class _Walk:
    def __init__(self, place: Place) -> None:
        self.place = place
        self.result = Canonical()
        self.seen: dict[Path, _Seen] = {}

    def problem(self, written: Path, text: str) -> None:
        self.result.problems.append(Problem(written, text, self.place(written)))

    def group(self, model: type[BaseModel], raw: Mapping[Any, Any], written: Path, at: Path) -> dict[str, Any]:
        """The canonical form of one group of settings that is written at one path and belongs at another."""
        tree: dict[str, Any] = {}
        self.result.origins.known.setdefault(at, Origin(written, self.place(written)))
        self.fill(tree, model, raw, written, at)
        return tree

    def fill(
        self, tree: dict[str, Any], model: type[BaseModel], raw: Mapping[Any, Any], written: Path, at: Path
    ) -> None:
        spellings: Spellings = getattr(model, "spellings", {})
        fields = field_keys(model)
        for key, value in raw.items():
            here = (*written, str(key))
            spelling = spellings.get(key)
            if not isinstance(key, str):
                self.problem(here, f"found the key {key!r}; allowed: text (put it in quotes)")
            elif isinstance(spelling, Spelling):
                self.spelled(tree, model, spelling, value, here, at)
            elif isinstance(spelling, Mapping) and isinstance(value, Mapping):
                rest = self.elsewhere(tree, model, spelling, value, here, at)
                if key in fields:
                    self.put(tree, model, (fields[key],), rest, here, at)
                else:
                    for unknown in rest:
                        self.unknown((*here, str(unknown)), spelling)
            elif key in fields:
                self.put(tree, model, (fields[key],), value, here, at)
            elif isinstance(spelling, Mapping):
                self.problem(here, f"{found(here, value)}; allowed: a mapping of settings")
            elif model.model_config.get("extra") != "ignore":
                self.unknown(here, [*fields, *spellings])

    def unknown(self, written: Path, known: Iterable[str]) -> None:
        self.problem(written, f"unknown key{nearest(str(written[-1]), known)}")

    def elsewhere(
        self,
        tree: dict[str, Any],
        model: type[BaseModel],
        spellings: Mapping[str, Spelling],
        value: Mapping[Any, Any],
        written: Path,
        at: Path,
    ) -> dict[Any, Any]:
        """Hand out the keys that belong elsewhere; returns the others."""
        rest = {}
        for key, inner in value.items():
            if spelling := spellings.get(key):
                self.spelled(tree, model, spelling, inner, (*written, key), at)
            else:
                rest[key] = inner
        return rest

    def spelled(
        self,
        tree: dict[str, Any],
        model: type[BaseModel],
        spelling: Spelling,
        value: Any,
        written: Path,
        at: Path,
    ) -> None:
        if spelling.convert is not None:
            value = spelling.convert(value)
        for target in spelling.targets:
            self.put(tree, model, target, value, written, at, spelling.short)

    def put(
        self,
        tree: dict[str, Any],
        model: type[BaseModel],
        target: Path,
        value: Any,
        written: Path,
        at: Path,
        short: bool = False,
    ) -> None:
        """Set one canonical path below `at`. A blank value, as YAML reads `key:`, means not set."""
        if value is None:
            return
        key = str(target[0])
        kind, inner = shape(model, key)
        path = (*at, key)
        if kind == "group" and len(target) > 1:
            self.put(_open(tree, key), inner, target[1:], value, written, path, short)
        elif kind == "list":
            self.put_list(tree, model, inner, key, _parsed(value), written, at)
        elif kind == "group" and isinstance(value := _as_group(inner, value), Mapping):
            self.result.origins.known.setdefault(path, Origin(written, self.place(written)))
            self.fill(_open(tree, key), inner, value, written, path)
        else:
            self.put_leaf(tree, key, value, written, path, short)

    def put_leaf(self, tree: dict[str, Any], key: str, value: Any, written: Path, path: Path, short: bool) -> None:
        earlier = self.seen.get(path)
        if earlier is not None:
            if short and not earlier.short:
                return
            if short == earlier.short and earlier.value != value:
                first, second = path_text(earlier.written), path_text(written)
                self.problem(written, f"{first} and {second} are one setting in two spellings, and differ; keep one")
                return
        self.seen[path] = _Seen(value, written, short)
        self.result.origins.known[path] = Origin(written, self.place(written))
        tree[key] = value

    def put_list(
        self,
        tree: dict[str, Any],
        model: type[BaseModel],
        inner: type[BaseModel],
        key: str,
        value: Any,
        written: Path,
        at: Path,
    ) -> None:
        """A list of groups: as a list, or as a mapping from name to group."""
        path = (*at, key)
        self.result.origins.known[path] = Origin(written, self.place(written))
        if isinstance(value, Mapping) and key in _BY_NAME:
            value = dict(value)
            if key == "tables":
                self.filters(tree, model, value, written, at)
            pairs: Iterable[tuple[Path, Any]] = [
                ((*written, str(name)), self.named(name, group, (*written, str(name)))) for name, group in value.items()
            ]
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            pairs = [((*written, index), _as_group(inner, item)) for index, item in enumerate(value)]
        elif isinstance(value, str) and getattr(inner, "text_key", None):
            names = [part.strip() for part in value.split(",") if part.strip()]
            pairs = [(written, _as_group(inner, name)) for name in names]
        else:
            tree[key] = value
            return
        items = list(tree.get(key, ()))
        for here, item in pairs:
            each = (*path, len(items))
            items.append(self.group(inner, item, here, each) if isinstance(item, Mapping) else item)
            self.result.origins.known[each] = Origin(here, self.place(here))
        tree[key] = items

    def filters(
        self, tree: dict[str, Any], model: type[BaseModel], tables: dict[Any, Any], written: Path, at: Path
    ) -> None:
        """`tables: {include: [...]}` is a filter; a collection called `include` has settings instead."""
        for key, target in (("include", "table_whitelist"), ("exclude", "table_blacklist")):
            if isinstance(tables.get(key), list | tuple | str):
                self.put(tree, model, (target,), tables.pop(key), (*written, key), at)

    def named(self, name: Any, group: Any, written: Path) -> Any:
        """One entry of a mapping from name to group, as an item of a list."""
        if group is None:
            return {"name": name}
        if not isinstance(group, Mapping):
            return group
        if group.get("name", name) != name:
            self.problem((*written, "name"), f"{found((), group['name'])}; allowed: {name}, as its key says")
        return {**group, "name": name}


@dataclass(frozen=True)
class _Seen:
    value: Any
    written: Path
    short: bool


def _open(tree: dict[str, Any], key: str) -> dict[str, Any]:
    """The group under `key`, made when missing; one that was built in Python is taken apart first."""
    group = tree.get(key)
    if isinstance(group, BaseModel):
        group = {name: getattr(group, name) for name in group.model_fields_set}
    if not isinstance(group, dict):
        group = {}
    tree[key] = group
    return group


def _as_group(model: type[BaseModel], value: Any) -> Any:
    """A group that was written as text: JSON, or the one setting that such a group may stand for."""
    parsed = _parsed(value)
    text_key = getattr(model, "text_key", None)
    return {text_key: parsed} if isinstance(parsed, str) and text_key else parsed


def _parsed(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
