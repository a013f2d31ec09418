"""The manifest that the demo runs: the file for a cluster, with the demo's own servers in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from cartridge_warp.config import UnitSettings, WarpConfig
from cartridge_warp.errors import ConfigError
from cartridge_warp.resources import PipelineManifest, WarpSchemaManifest, load_manifests, to_multi_config

__all__ = ["Manifest"]

# These describe the servers of the cluster that the manifest was written for.
_OF_THE_SERVER = ("connection_string", "replica_set", "auth_source", "read_preference", "ssl_enabled")


# Each `uriSecretRef` stands for a server that runs later: the worker gets its URI by environment.
_SOURCE, _DESTINATION = "mongodb://127.0.0.1", "postgresql://127.0.0.1"


@dataclass(frozen=True)
class Manifest:
    """One WarpPipeline with its WarpSchemas, as one worker's configuration."""

    path: Path
    config: WarpConfig
    units: Sequence[UnitSettings]

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest. Raises ConfigError when the demo cannot run it."""
        try:
            found = load_manifests(path.read_text(encoding="utf-8"), path.name)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None
        pipelines = [each for each in found if isinstance(each, PipelineManifest)]
        schemas = [each for each in found if isinstance(each, WarpSchemaManifest)]
        if len(pipelines) != 1 or not schemas:
            raise ConfigError(
                f"{path} holds {len(pipelines)} WarpPipelines and {len(schemas)} WarpSchemas: the demo runs"
                " one pipeline with at least one schema"
            )
        source = pipelines[0].spec.source.uri_secret_ref
        config = to_multi_config(
            pipelines[0], schemas, lambda reference: _SOURCE if reference == source else _DESTINATION
        )
        units = config.units()
        for unit in units:
            if unit.mode != "stream":
                raise ConfigError(f"schema {unit.name} has the mode {unit.mode}: the demo runs streams alone")
        return cls(path, config, units)

    def write_config(self, folder: Path) -> Path:
        """The worker's configuration as a file: what the manifest sets, without the URIs."""
        settings = self.config.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
        for end in ("source", "destination"):
            kept = {name: value for name, value in settings.get(end, {}).items() if not _of_the_server(name)}
            settings[end] = kept
        settings["monitoring"] = {"prometheus": {"host": "127.0.0.1", "port": 0}}
        path = folder / "worker.yaml"
        path.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return path

    def environment(self, source: str, destination: str) -> dict[str, str]:
        """What the worker gets beside the file: secrets never stand in files or arguments."""
        return {
            "CARTRIDGE_WARP_SOURCE__CONNECTION_STRING": source,
            "CARTRIDGE_WARP_DESTINATION__CONNECTION_STRING": destination,
            "CARTRIDGE_WARP_TERMINATION_LOG": os.devnull,
        }


def _of_the_server(name: str) -> bool:
    return name in _OF_THE_SERVER or name.startswith("tls_")
