"""Reads the layers of a configuration: command line over environment over file over defaults."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path as FilePath
from typing import Any

import yaml
from pydantic import ValidationError

from cartridge_warp.config.canonical import Canonical, canonical, merge
from cartridge_warp.config.problems import Path, config_error, translate
from cartridge_warp.config.settings import WarpConfig
from cartridge_warp.errors import ConfigError

__all__ = ["ENVIRONMENT_PREFIX", "environment_settings", "load_config", "parse_documents", "parse_mapping"]

ENVIRONMENT_PREFIX = "CARTRIDGE_WARP_"
_NO_SETTINGS = frozenset({"CONFIG", "TERMINATION_LOG"})
# Kubernetes gives a pod such variables for every Service of its namespace, also for one named cartridge-warp.
_SERVICE_LINK = re.compile(
    r"(?:\w*_)?SERVICE_HOST|(?:\w*_)?SERVICE_PORT(?:_\w+)?|(?:\w*_)?PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?"
)
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://", re.IGNORECASE)
_LARGEST_FILE = 8 * 1024 * 1024


def load_config(
    path: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> WarpConfig:
    """The configuration of all layers. Raises `ConfigError` with every problem, a line each.

    `path` is a YAML or JSON file; without one `CARTRIDGE_WARP_CONFIG` names it, if set. `environ` defaults to
    nothing, not to the process's own. `overrides` is the command line: nested mappings or dotted keys, in any
    spelling; None values are left out.
    """
    environ = environ or {}
    path = path or environ.get(f"{ENVIRONMENT_PREFIX}CONFIG") or None
    layers = [
        _file_layer(path) if path else Canonical(),
        _environment_layer(environ),
        canonical(WarpConfig, _nested(overrides or {}), lambda written: "command line"),
    ]
    merged = layers[0]
    for layer in layers[1:]:
        merged = merge(merged, layer)
    problems = list(merged.problems)
    try:
        config = WarpConfig.model_validate(merged.tree)
    except ValidationError as error:
        problems += translate(error, merged.origins)
    if problems:
        raise config_error(problems) from None
    return config


# -- the file ----------------------------------------------------------------------------------------------


def _file_layer(path: str) -> Canonical:
    name = os.path.basename(path)
    raw = parse_mapping(_read(path), name)
    return canonical(WarpConfig, raw, lambda written: name)


def _read(path: str) -> str:
    file = FilePath(path)
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise ConfigError(f"configuration: {path} is larger than 8 MiB; is it the right file?")
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"configuration: cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration: {path} is not UTF-8 text (byte {error.start})") from None


def parse_mapping(text: str, name: str) -> dict[Any, Any]:
    """One YAML or JSON document with a mapping at its top; an empty one is an empty mapping."""
    documents = [document for document in parse_documents(text, name) if document is not None]
    if len(documents) > 1:
        raise ConfigError(f"configuration: {name} holds {len(documents)} documents; allowed: one")
    document = documents[0] if documents else {}
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise ConfigError(f"configuration: {name} holds a {kind} at its top; allowed: a mapping of settings")
    return document


def parse_documents(text: str, name: str) -> list[Any]:
    """All documents of a YAML stream, or one JSON document. Raises `ConfigError` with line and column."""
    if text.lstrip().startswith("{"):
        try:
            return [json.loads(text, object_pairs_hook=_unique)]
        except json.JSONDecodeError as error:
            # What starts with a brace may still be YAML's flow style, but then says so itself.
            json_error = f"line {error.lineno}, column {error.colno}: {error.msg}"
        except ValueError as error:
            raise ConfigError(f"configuration: {name}: {error}") from None
        except RecursionError:
            raise ConfigError(f"configuration: {name} is malformed: it is nested too deeply") from None
    else:
        json_error = ""
    try:
        return list(yaml.load_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = json_error or f"{where}{error.problem or 'cannot be read'}"
        raise ConfigError(f"configuration: {name} is malformed: {what}") from None
    except RecursionError:
        raise ConfigError(f"configuration: {name} is malformed: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        what = json_error or getattr(error, "reason", "") or str(error)
        raise ConfigError(f"configuration: {name} is malformed: {what}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one mapping")
    return mapping


class _Loader(yaml.SafeLoader):
    """YAML as it is, but a key that stands twice in one mapping is an error, not a silent choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands twice in one mapping", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# -- environment and command line --------------------------------------------------------------------------


def environment_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that are settings: those of our prefix, without empty ones, without those that Kubernetes
    sets for a Service, and without the few that are no settings."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(ENVIRONMENT_PREFIX)
        and value != ""
        and name.removeprefix(ENVIRONMENT_PREFIX) not in _NO_SETTINGS
        and not _SERVICE_LINK.fullmatch(name.removeprefix(ENVIRONMENT_PREFIX))
        and not (name.endswith("_PORT") and _SERVICE_URL.match(value))
    }


def _environment_layer(environ: Mapping[str, str]) -> Canonical:
    tree: dict[str, Any] = {}
    names: dict[Path, str] = {}
    # Shorter names first: `SOURCE` (a JSON mapping) is then the ground for `SOURCE__DATABASE`.
    for name, value in sorted(environment_settings(environ).items(), key=lambda item: (len(item[0]), item[0])):
        keys = tuple(name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"))
        _set(tree, keys, value)
        names[keys] = name

    def place(written: Path) -> str:
        for length in range(len(written), 0, -1):
            if name := names.get(written[:length]):
                return name
        return ENVIRONMENT_PREFIX + "__".join(str(part).upper() for part in written)

    return canonical(WarpConfig, tree, place)


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in overrides.items():
        if value is not None:
            _set(tree, tuple(name.split(".")), value)
    return tree


def _set(tree: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    """Set a nested key; text that already stands on the way becomes the group that it means."""
    for key in keys[:-1]:
        inner = tree.get(key)
        if isinstance(inner, str):
            inner = _group(inner)
        tree[key] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        tree = inner
    here = tree.get(keys[-1])
    if isinstance(here, dict) and isinstance(value, Mapping):
        for key, each in value.items():
            _set(here, (key,), each)
    else:
        tree[keys[-1]] = value


def _group(text: str) -> Any:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError:
            return {}
    return {"connection_string": text}
