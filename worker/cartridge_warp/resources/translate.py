"""From custom resources to the worker's configuration: only what the user set, in canonical spelling.

Defaults stay out, so that a newer worker's defaults restart nothing before its time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from cartridge_warp.config import WarpConfig
from cartridge_warp.config.canonical import canonical
from cartridge_warp.config.problems import Problem, config_error, translate
from cartridge_warp.resources.base import SecretKeyRef
from cartridge_warp.resources.manifests import PipelineManifest, WarpSchemaManifest
from cartridge_warp.resources.pipeline import DestinationSpec, SourceSpec, TlsSpec

__all__ = ["TLS_DIRECTORY", "ResolveSecret", "to_config", "to_multi_config"]

TLS_DIRECTORY = "/etc/cartridge-warp/tls"
"""Where the pods find the mounted TLS files: `source/` and `destination/` below it, each with `ca.crt`, and
with the keys of the client's Secret in `client/`."""

ResolveSecret = Callable[[SecretKeyRef], str]
"""Reads one key of a Secret."""


def to_config(
    pipeline: PipelineManifest, schema: WarpSchemaManifest, resolve_secret: ResolveSecret | None = None
) -> dict[str, Any]:
    """The configuration of one schema's worker, as a mapping that `WarpConfig` takes and YAML can hold.

    Without `resolve_secret` the connection strings are left out: in a pod they come by environment. The
    schedule is left out too: Kubernetes starts the runs. Raises `ConfigError` when the two do not belong
    together.
    """
    _belongs(pipeline, schema)
    name = schema.metadata.name
    config = _shared(pipeline, resolve_secret)
    return {"mode": "single", "single_schema_name": name, **config, "schemas": [_schema(schema)]}


def to_multi_config(
    pipeline: PipelineManifest, schemas: Sequence[WarpSchemaManifest], resolve_secret: ResolveSecret
) -> WarpConfig:
    """One configuration for all schemas of a pipeline in one process, schedules included. Schemas with state
    Stopped are left out. Raises `ConfigError`."""
    listed = []
    for schema in schemas:
        _belongs(pipeline, schema)
        if schema.spec.state != "Stopped":
            entry = _schema(schema)
            if schema.spec.schedule is not None:
                entry["schedule"] = schema.spec.schedule.cron
            listed.append(entry)
    tree = {"mode": "multi", **_shared(pipeline, resolve_secret), "schemas": listed}
    layer = canonical(WarpConfig, tree, lambda written: f"WarpPipeline {pipeline.metadata.name}")
    try:
        return WarpConfig.model_validate(tree)
    except ValidationError as error:
        raise config_error(translate(error, layer.origins), "manifest") from None


def _belongs(pipeline: PipelineManifest, schema: WarpSchemaManifest) -> None:
    wanted, place = schema.spec.pipeline_ref.name, f"WarpSchema {schema.metadata.name}"
    if wanted != pipeline.metadata.name:
        text = f"found {wanted}; allowed: {pipeline.metadata.name}"
        raise config_error([Problem(("spec", "pipelineRef", "name"), text, place)], "manifest")
    if schema.target == pipeline.spec.destination.metadata_schema:
        text = f"{schema.target} is the metadata schema of the pipeline; choose another"
        raise config_error([Problem(("spec", "targetSchema"), text, place)], "manifest")


def _shared(pipeline: PipelineManifest, resolve_secret: ResolveSecret | None) -> dict[str, Any]:
    spec = pipeline.spec
    config: dict[str, Any] = {"identity": pipeline.metadata.uid} if pipeline.metadata.uid else {}
    config |= _set(spec.defaults)
    config["source"] = _source(spec.source)
    config["destination"] = _destination(spec.destination)
    if resolve_secret is not None:
        config["source"]["connection_string"] = resolve_secret(spec.source.uri_secret_ref)
        config["destination"]["connection_string"] = resolve_secret(spec.destination.uri_secret_ref)
    return config


def _source(source: SourceSpec) -> dict[str, Any]:
    result = {"type": source.type, **_set(source.mongodb)}
    if source.database is not None:
        result["database"] = source.database
    if source.parameters:
        result["parameters"] = dict(source.parameters)
    if source.tls is not None:
        client = {"tls_certificate_key_file": "tls-combined.pem"}
        result |= {"ssl_enabled": True, **_tls(source.tls, "source", client)}
    return result


def _destination(destination: DestinationSpec) -> dict[str, Any]:
    result = {"type": destination.type, **_set(destination.postgresql)}
    if "metadata_schema" in destination.model_fields_set:
        result["metadata_schema"] = destination.metadata_schema
    if destination.parameters:
        result["parameters"] = dict(destination.parameters)
    if destination.tls is not None:
        client = {"tls_certificate_file": "tls.crt", "tls_key_file": "tls.key"}
        result |= _tls(destination.tls, "destination", client)
    return result


def _tls(tls: TlsSpec, end: str, client: dict[str, str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if tls.ca_secret_ref is not None:
        result["tls_ca_file"] = f"{TLS_DIRECTORY}/{end}/ca.crt"
    if tls.client_secret_name is not None:
        result |= {key: f"{TLS_DIRECTORY}/{end}/client/{file}" for key, file in client.items()}
    if tls.insecure_skip_verify:
        result["tls_insecure"] = True
    return result


def _schema(schema: WarpSchemaManifest) -> dict[str, Any]:
    spec = schema.spec
    entry: dict[str, Any] = {"name": schema.metadata.name, "target_schema": schema.target}
    if spec.database is not None:
        entry["database"] = spec.database
    if "mode" in spec.model_fields_set:
        entry["mode"] = spec.mode
    if spec.tables is not None and spec.tables.include:
        entry["table_whitelist"] = list(spec.tables.include)
    if spec.tables is not None and spec.tables.exclude:
        entry["table_blacklist"] = list(spec.tables.exclude)
    if spec.table_overrides:
        entry["tables"] = [_set(table) for table in spec.table_overrides]
    return entry | _set(spec.defaults)


def _set(group: BaseModel | None) -> dict[str, Any]:
    """What the user set in a group that has the names of the worker's settings."""
    if group is None:
        return {}
    return group.model_dump(mode="json", by_alias=False, exclude_unset=True, exclude_none=True)
