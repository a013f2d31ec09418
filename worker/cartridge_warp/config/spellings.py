"""Other ways to write a setting, and the shape of the groups of settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel

from cartridge_warp.config.problems import Path

__all__ = ["Spelling", "Spellings", "field_keys", "same", "shape", "short_for"]


@dataclass(frozen=True)
class Spelling:
    """Another way to write settings: where the value goes, counted from the group that has this spelling.

    A `short` one stands for several settings, and gives way to each of them that is written out as well.
    """

    targets: tuple[Path, ...]
    short: bool = False
    convert: Callable[[Any], Any] | None = None


Spellings = Mapping[str, "Spelling | Mapping[str, Spelling]"]
"""Spellings of a group; a mapping inside is a group of keys that belong elsewhere."""


def same(target: str, convert: Callable[[Any], Any] | None = None) -> Spelling:
    """A second name of one setting (a dotted path)."""
    return Spelling((tuple(target.split(".")),), convert=convert)


def short_for(*targets: str) -> Spelling:
    """One key for several settings."""
    return Spelling(tuple(tuple(target.split(".")) for target in targets), short=True)


def field_keys(model: type[BaseModel]) -> dict[str, str]:
    """Every key that a group takes, with the canonical one of the same setting."""
    keys: dict[str, str] = {}
    for name, info in model.model_fields.items():
        keys[info.alias or name] = info.alias or name
        if model.model_config.get("populate_by_name"):
            keys[name] = info.alias or name
    return keys


def shape(model: type[BaseModel], key: str) -> tuple[Literal["group", "list", "leaf"], type[BaseModel]]:
    """What stands under a canonical key: one group of settings, a list of groups, or a plain value."""
    for name, info in model.model_fields.items():
        if (info.alias or name) == key:
            for inner, listed in _models(info.annotation):
                return ("list" if listed else "group"), inner
    return "leaf", model


def _models(annotation: Any, listed: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, listed
    origin = getattr(annotation, "__origin__", None)
    if origin is dict:
        return
    for argument in get_args(annotation):
        yield from _models(argument, listed or origin in (tuple, list))
