"""The custom resources as models, and their translation to the worker's configuration."""

from cartridge_warp.resources.base import SecretKeyRef
from cartridge_warp.resources.defaults import Defaults, TableOverride
from cartridge_warp.resources.manifests import (
    API_VERSION,
    Manifest,
    ObjectMeta,
    OtherManifest,
    PipelineManifest,
    WarpSchemaManifest,
    load_manifests,
    parse_manifest,
)
from cartridge_warp.resources.pipeline import PipelineSpec
from cartridge_warp.resources.schema import WarpSchemaSpec
from cartridge_warp.resources.translate import TLS_DIRECTORY, to_config, to_multi_config

__all__ = [
    "API_VERSION",
    "TLS_DIRECTORY",
    "Defaults",
    "Manifest",
    "ObjectMeta",
    "OtherManifest",
    "PipelineManifest",
    "PipelineSpec",
    "SecretKeyRef",
    "TableOverride",
    "WarpSchemaManifest",
    "WarpSchemaSpec",
    "load_manifests",
    "parse_manifest",
    "to_config",
    "to_multi_config",
]
