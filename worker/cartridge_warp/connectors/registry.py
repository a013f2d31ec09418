"""Which connectors exist: those registered by decorator, and those that installed packages announce.

Entry points are only loaded when their type is asked for, so that a missing driver of one connector never
stops another, and importing this module loads no driver.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from cartridge_warp.connectors.base import DestinationConnector, SourceConnector
from cartridge_warp.errors import ConfigError, WarpError

if TYPE_CHECKING:
    from cartridge_warp.config import DestinationConfig, SourceConfig

__all__ = ["ConnectorFactory", "register_destination_connector", "register_source_connector"]

Class = TypeVar("Class", bound=type)
Connector = TypeVar("Connector")

SOURCE_METHODS = (
    "connect",
    "disconnect",
    "test_connection",
    "get_schema",
    "get_changes",
    "get_full_snapshot",
)
DESTINATION_METHODS = (
    "connect", "disconnect", "test_connection", "write_batch", "apply_schema_changes", "update_marker",
    "get_marker", "create_schema_if_not_exists", "create_table_if_not_exists",
)  # fmt: skip


class _Registry(Generic[Connector]):
    """The connectors of one side. `full` names the method that marks a connector of the full level."""

    def __init__(self, kind: str, group: str, methods: tuple[str, ...], full: str) -> None:
        self.kind = kind
        self.group = group
        self.methods = methods
        self.full = full
        self.registered: dict[str, type] = {}

    def register(self, name: str, connector: type) -> None:
        """Remember a class; a second class of another origin under one name is a mistake."""
        known = self.registered.get(name)
        if known is not None and _origin(known) != _origin(connector):
            raise ConfigError(
                f"{self.kind} connector '{name}' is registered twice, by {_origin(known)} and by "
                f"{_origin(connector)}; give one of them another name"
            )
        self.registered[name] = connector

    def names(self) -> list[str]:
        """All known types, sorted; nothing is loaded."""
        return sorted({*self.registered, *(point.name for point in entry_points(group=self.group))})

    def find(self, name: str) -> type:
        """The class of a type. A decorator wins over an entry point: a plugin may replace a built-in one."""
        if name in self.registered:
            return self.registered[name]
        points = {point.value: point for point in entry_points(group=self.group, name=name)}
        if not points:
            raise ConfigError(f"{self.kind}.type: '{name}' is not a known connector; {self._nearest(name)}")
        if len(points) > 1:
            raise ConfigError(
                f"{self.kind}.type: two installed packages offer '{name}' ({', '.join(sorted(points))}); "
                "uninstall one of them"
            )
        return self._load(name, next(iter(points.values())))

    def create(self, name: str, config: object) -> Connector:
        """Construct a connector; it is not connected."""
        found = self.find(name)
        try:
            connector = found(config)
        except WarpError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{self.kind} connector '{name}' ({_origin(found)}) cannot be created: "
                f"{type(error).__name__}: {error}; check the {self.kind} section of the configuration"
            ) from error
        missing = [method for method in self.methods if not callable(getattr(connector, method, None))]
        if missing and not callable(getattr(connector, self.full, None)):
            raise ConfigError(
                f"{self.kind} connector '{name}' ({_origin(found)}) lacks {', '.join(missing)}; "
                "add what the connector contract asks for"
            )
        return cast(Connector, connector)

    def _load(self, name: str, point: EntryPoint) -> type:
        try:
            loaded = point.load()
        except Exception as error:  # whatever a foreign module does while it is imported
            raise ConfigError(
                f"{self.kind} connector '{name}' ({point.value}) cannot be loaded: {type(error).__name__}: "
                f"{error}; reinstall the package that brings it"
            ) from error
        return cast(type, loaded)

    def _nearest(self, name: str) -> str:
        names = self.names()
        near = difflib.get_close_matches(name, names, n=1)
        listed = ", ".join(names) or "none"
        return f"did you mean '{near[0]}'? (known: {listed})" if near else f"known are: {listed}"


_sources: _Registry[SourceConnector] = _Registry("source", "cartridge_warp.sources", SOURCE_METHODS, "unit")
_destinations: _Registry[DestinationConnector] = _Registry(
    "destination", "cartridge_warp.destinations", DESTINATION_METHODS, "target"
)


def register_source_connector(name: str) -> Callable[[Class], Class]:
    """Class decorator: make the class available as `source.type: name`."""

    def decorate(connector: Class) -> Class:
        _sources.register(name, connector)
        return connector

    return decorate


def register_destination_connector(name: str) -> Callable[[Class], Class]:
    """Class decorator: make the class available as `destination.type: name`."""

    def decorate(connector: Class) -> Class:
        _destinations.register(name, connector)
        return connector

    return decorate


class ConnectorFactory:
    """Makes connectors from their configuration. `plugins` are modules to import first, by name; they
    register their connectors by decorator. Every failure is a `ConfigError` of one sentence."""

    def __init__(self, plugins: Iterable[str] = ()) -> None:
        for plugin in plugins:
            _import_plugin(plugin)

    async def create_source_connector(self, source_config: SourceConfig) -> SourceConnector:
        """The source that `source_config.type` names, constructed with its configuration, unconnected."""
        return _sources.create(source_config.type, source_config)

    async def create_destination_connector(self, dest_config: DestinationConfig) -> DestinationConnector:
        """The destination that `dest_config.type` names, constructed with its configuration, unconnected."""
        return _destinations.create(dest_config.type, dest_config)

    def list_available_connectors(self) -> dict[str, list[str]]:
        """The known types: `{"sources": [...], "destinations": [...]}`, each sorted."""
        return {"sources": _sources.names(), "destinations": _destinations.names()}


def _import_plugin(name: str) -> None:
    try:
        importlib.import_module(name)
    except WarpError:
        raise
    except Exception as error:  # whatever a foreign module does while it is imported
        raise ConfigError(
            f"plugins: module '{name}' cannot be imported: {type(error).__name__}: {error}; install it "
            "beside cartridge-warp, or put its folder on PYTHONPATH"
        ) from error


def _origin(connector: Any) -> str:
    return f"{getattr(connector, '__module__', '?')}.{getattr(connector, '__qualname__', connector)}"
