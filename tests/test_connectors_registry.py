"""The registry of connectors: decorators, entry points, plugins, and what it says when one is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cartridge_warp.config import DestinationConfig, SourceConfig
from cartridge_warp.connectors import (
    BaseDestinationConnector,
    BaseSourceConnector,
    ConnectorFactory,
    DatabaseSchema,
    SourceConnector,
    register_destination_connector,
    register_source_connector,
)
from cartridge_warp.connectors import registry as registry_module
from cartridge_warp.errors import ConfigError, Unavailable


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    for registry in (registry_module._sources, registry_module._destinations):
        monkeypatch.setattr(registry, "registered", dict(registry.registered))


class Complete(BaseSourceConnector):
    async def get_schema(self, schema_name: str) -> DatabaseSchema:
        return DatabaseSchema(schema_name)

    async def get_changes(self, schema_name, marker=None, batch_size=1000):
        return
        yield

    async def get_full_snapshot(self, schema_name, table_name, batch_size=10000):
        return
        yield


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a package that has nothing but entry points and modules."""

    def install(name: str, entry_points: str, **modules: str) -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        for module, text in modules.items():
            (tmp_path / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


async def test_decorator_makes_a_type_known() -> None:
    """A class registered by decorator is listed, and constructed with its configuration, not connected."""
    assert register_source_connector("complete")(Complete) is Complete
    config = SourceConfig(type="complete", connection_string="here")
    source = await ConnectorFactory().create_source_connector(config)
    assert isinstance(source, Complete)
    assert isinstance(source, SourceConnector)
    assert source.config is config
    assert not source.connected
    assert "complete" in ConnectorFactory().list_available_connectors()["sources"]


def test_built_in_connectors_are_listed() -> None:
    """The connectors that the distribution brings are known without being loaded."""
    listed = ConnectorFactory().list_available_connectors()
    assert "mongodb" in listed["sources"]
    assert "postgresql" in listed["destinations"]


def test_no_driver_is_loaded() -> None:
    """Importing the public names and listing the connectors loads neither driver nor pytest."""
    code = (
        "import sys; from cartridge_warp.connectors import *; ConnectorFactory().list_available_connectors();"
        "print([name for name in ('pymongo', 'psycopg', 'pytest') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


async def test_unknown_type_names_the_nearest() -> None:
    """A type that nobody registered: one sentence with the nearest known one, or all of them."""
    with pytest.raises(ConfigError, match=r"source\.type: 'mongdb' .* did you mean 'mongodb'\?"):
        await ConnectorFactory().create_source_connector(SourceConfig(type="mongdb"))
    with pytest.raises(ConfigError, match=r"destination\.type: 'zzz' .* known are: .*postgresql"):
        await ConnectorFactory().create_destination_connector(DestinationConfig(type="zzz"))


async def test_entry_point_is_loaded_when_asked_for(package) -> None:
    """A connector of an installed package is listed without being imported, and imported when it is used."""
    package(
        "warp_lazy",
        "[cartridge_warp.destinations]\nlazy = warp_lazy_module:Lazy\n",
        warp_lazy_module="from cartridge_warp.connectors import BaseDestinationConnector\n"
        "class Lazy(BaseDestinationConnector):\n"
        "    async def write_batch(self, schema_name, records): ...\n"
        "    async def update_marker(self, schema_name, table_name, marker): ...\n"
        "    async def get_marker(self, schema_name, table_name): ...\n",
    )
    assert "lazy" in ConnectorFactory().list_available_connectors()["destinations"]
    assert "warp_lazy_module" not in sys.modules
    made = await ConnectorFactory().create_destination_connector(DestinationConfig(type="lazy"))
    assert type(made).__name__ == "Lazy"


async def test_broken_entry_point(package) -> None:
    """A package whose connector cannot be imported gives one sentence, and does not disturb the others."""
    package("warp_broken", "[cartridge_warp.sources]\nbroken = warp_broken_module:Gone\n")
    register_source_connector("complete")(Complete)
    factory = ConnectorFactory()
    assert "broken" in factory.list_available_connectors()["sources"]
    with pytest.raises(ConfigError, match=r"'broken' \(warp_broken_module:Gone\) cannot be loaded: ModuleNot"):
        await factory.create_source_connector(SourceConfig(type="broken"))
    await factory.create_source_connector(SourceConfig(type="complete"))


async def test_two_packages_with_one_name(package) -> None:
    """Two packages that offer the same type are refused by name instead of one being taken at random."""
    package("warp_one", "[cartridge_warp.sources]\nshared = warp_one:A\n")
    package("warp_two", "[cartridge_warp.sources]\nshared = warp_two:B\n")
    with pytest.raises(ConfigError, match=r"two installed packages offer 'shared' .warp_one:A, warp_two:B."):
        await ConnectorFactory().create_source_connector(SourceConfig(type="shared"))


async def test_plugin_is_imported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module named under `plugins` is imported before types are looked up."""
    text = (
        "from cartridge_warp.connectors import register_source_connector\n"
        "from cartridge_warp.connectors import BaseSourceConnector\n"
        "@register_source_connector('plugged')\n"
        "class Plugged(BaseSourceConnector):\n"
        "    get_schema = get_changes = get_full_snapshot = BaseSourceConnector.connect\n"
    )
    (tmp_path / "warp_plugged_module.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    factory = ConnectorFactory(["warp_plugged_module"])
    made = await factory.create_source_connector(SourceConfig(type="plugged"))
    assert type(made).__name__ == "Plugged"


@pytest.mark.parametrize(("text", "kind"), [("1 / 0", "ZeroDivisionError"), ("def (", "SyntaxError")])
def test_broken_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, kind: str) -> None:
    """A plugin that fails while it is imported gives one sentence with its name and what to do."""
    name = f"warp_broken_plugin_{kind.lower()}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=rf"plugins: module '{name}' cannot be imported: {kind}"):
        ConnectorFactory([name])
    with pytest.raises(ConfigError, match="module 'warp_missing_plugin' cannot be imported"):
        ConnectorFactory(["warp_missing_plugin"])


def test_one_name_for_two_classes() -> None:
    """A second class under a name is refused; registering the same class again is harmless."""
    register_source_connector("complete")(Complete)
    register_source_connector("complete")(Complete)

    class Other(Complete):
        pass

    with pytest.raises(ConfigError, match="'complete' is registered twice"):
        register_source_connector("complete")(Other)


async def test_incomplete_connector() -> None:
    """A class that lacks methods of the contract is refused by their names before anything runs."""

    @register_destination_connector("partial")
    class Partial(BaseDestinationConnector):
        async def write_batch(self, schema_name, records): ...

    with pytest.raises(ConfigError, match=r"'partial' .* lacks update_marker, get_marker"):
        await ConnectorFactory().create_destination_connector(DestinationConfig(type="partial"))


async def test_constructor_fails() -> None:
    """A constructor's exception becomes one sentence without secrets; errors of ours pass as they are."""

    @register_source_connector("failing")
    class Failing(Complete):
        def __init__(self, config):
            if config.database == "gone":
                raise Unavailable("it is away")
            raise KeyError(config.connection_string)

    secret = SourceConfig(type="failing", connection_string="db://me:hunter2@host/x")
    with pytest.raises(ConfigError, match=r"'failing' .* cannot be created: KeyError") as caught:
        await ConnectorFactory().create_source_connector(secret)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(Unavailable):
        await ConnectorFactory().create_source_connector(SourceConfig(type="failing", database="gone"))
