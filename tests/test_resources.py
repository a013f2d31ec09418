"""Custom resources: models, manifests, and their translation to the worker's configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from cartridge_warp.config import load_config
from cartridge_warp.config.spellings import shape
from cartridge_warp.errors import ConfigError
from cartridge_warp.resources import (
    OtherManifest,
    PipelineManifest,
    SecretKeyRef,
    WarpSchemaManifest,
    load_manifests,
    to_config,
    to_multi_config,
)

EXAMPLE = Path(__file__).parent.parent / "manifests" / "examples" / "warppipeline.yaml"
URIS = {"mongodb": "mongodb://localhost/?replicaSet=rs0", "postgresql": "postgresql://u:pa55@localhost/dw"}


def resolve(ref: SecretKeyRef) -> str:
    return URIS[ref.key]


def pipeline(**spec: Any) -> PipelineManifest:
    base = {
        "source": {"uriSecretRef": {"name": "s", "key": "mongodb"}},
        "destination": {"uriSecretRef": {"name": "s", "key": "postgresql"}},
    }
    document = {"apiVersion": "warp.cartridge.io/v1alpha1", "kind": "WarpPipeline", "metadata": {"name": "p"}}
    (parsed,) = load_manifests(yaml.safe_dump(document | {"spec": base | spec}))
    assert isinstance(parsed, PipelineManifest)
    return parsed


def schema(name: str = "my-shop", **spec: Any) -> WarpSchemaManifest:
    document = {"apiVersion": "warp.cartridge.io/v1alpha1", "kind": "WarpSchema", "metadata": {"name": name}}
    (parsed,) = load_manifests(yaml.safe_dump(document | {"spec": {"pipelineRef": {"name": "p"}} | spec}))
    assert isinstance(parsed, WarpSchemaManifest)
    return parsed


def error_of(build: Any, **spec: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build(**spec)
    return str(caught.value)


def test_the_example_is_a_pipeline_of_two_schemas():
    """The example that users apply holds a Secret, a pipeline and the schemas shop and library."""
    secret, parent, *schemas = load_manifests(EXAMPLE.read_text())
    assert isinstance(secret, OtherManifest)
    assert (secret.kind, secret.name) == ("Secret", "warp-connections")
    assert "change-me" not in repr(secret)
    assert isinstance(parent, PipelineManifest)
    assert parent.spec.source.uri_secret_ref.key in secret.document["stringData"]
    config = to_multi_config(parent, schemas, resolve)
    shop, library = config.units()
    assert (shop.database, shop.target, library.database, library.target) == (
        "shop",
        "shop",
        "library",
        "library",
    )
    assert (shop.table("orders").deletion_strategy, shop.table("customers").deletion_strategy) == (
        "soft",
        "hard",
    )
    assert not shop.wants("tmp_import")
    assert library.table("books").max_parallel_streams == 2
    assert config.warnings() == []


def test_only_what_the_user_set():
    """The worker's configuration holds no default, so that a newer default changes nothing by itself."""
    assert to_config(pipeline(), schema()) == {
        "mode": "single",
        "single_schema_name": "my-shop",
        "source": {"type": "mongodb"},
        "destination": {"type": "postgresql"},
        "schemas": [{"name": "my-shop", "target_schema": "my_shop"}],
    }


def test_every_setting_arrives_in_canonical_spelling():
    """What is set anywhere in the resources is what the worker then does, by way of YAML."""
    parent = pipeline(
        source={
            "type": "mongodb",
            "uriSecretRef": {"name": "s", "key": "mongodb"},
            "database": "app",
            "mongodb": {"readPreference": "secondary", "authSource": "admin", "uuidSubtype3": True},
            "tls": {"caSecretRef": {"name": "ca", "key": "x"}, "clientSecretName": "cert"},
        },
        destination={
            "type": "postgresql",
            "uriSecretRef": {"name": "s", "key": "postgresql"},
            "metadataSchema": "meta",
            "postgresql": {"poolSize": 3, "transactionTimeout": "2m"},
            "tls": {"caSecretRef": {"name": "ca", "key": "x"}, "insecureSkipVerify": True},
        },
        defaults={
            "streamBatchSize": 10,
            "writeBatchSize": 20,
            "pollingInterval": "1m30s",
            "maxTransactionBytes": "64MiB",
            "errorHandling": {"maxRetries": 7},
            "changeDetection": {"column": "changed"},
        },
    )
    child = schema(
        mode="batch",
        schedule={"cron": "*/5 * * * *", "timeZone": "UTC"},
        tables={"include": ["a*", "b"]},
        tableOverrides=[{"name": "a*", "writeBatchSize": 3, "schemaEvolution": {"strategy": "strict"}}],
        defaults={"writeBatchSize": 30, "errorHandling": {"backoffFactor": 3}},
    )
    tree = yaml.safe_load(yaml.safe_dump(to_config(parent, child)))
    assert "connection_string" not in tree["source"]
    assert "schedule" not in tree["schemas"][0]
    environ = {
        "CARTRIDGE_WARP_SOURCE__CONNECTION_STRING": URIS["mongodb"],
        "CARTRIDGE_WARP_DESTINATION__CONNECTION_STRING": URIS["postgresql"],
    }
    config = load_config(None, environ=environ, overrides=tree)
    (unit,) = config.units()
    assert (unit.database, unit.target, unit.mode, unit.metadata_schema) == (
        "app",
        "my_shop",
        "batch",
        "meta",
    )
    assert unit.polling_interval == 90
    assert unit.max_transaction_bytes == 64 * 2**20
    assert (unit.error_handling.max_retries, unit.error_handling.backoff_factor) == (7, 3)
    first, other = unit.table("a1"), unit.table("b")
    assert (first.stream_batch_size, first.write_batch_size, other.write_batch_size) == (10, 3, 30)
    assert first.evolution_strategy == "strict"
    assert first.change_detection.column == "changed"
    assert unit.wants("a1")
    assert not unit.wants("c")
    assert (config.source.read_preference, config.source.uuid_subtype3) == ("secondary", True)
    assert config.source.tls_ca_file == "/etc/cartridge-warp/tls/source/ca.crt"
    assert config.source.tls_certificate_key_file.endswith("/client/tls-combined.pem")
    assert (config.destination.pool_size, config.destination.transaction_timeout) == (3, 120)
    assert config.destination.tls_insecure is True


def test_one_configuration_for_all_schemas():
    """All schemas of a pipeline in one process, with schedules and secrets, without the stopped ones."""
    children = [
        schema("one", mode="batch", schedule={"cron": "@daily"}),
        schema("two", tables={"exclude": ["x"]}),
        schema("three", state="Stopped"),
    ]
    config = to_multi_config(pipeline(), children, resolve)
    assert [(unit.name, unit.schedule) for unit in config.units()] == [("one", "@daily"), ("two", None)]
    assert config.destination.connection_string == URIS["postgresql"]
    assert "pa55" not in repr(config)
    clash = [schema("one"), schema("two", targetSchema="one")]
    with pytest.raises(ConfigError, match=r"schemas\[1\].target_schema: one is the target of schema one"):
        to_multi_config(pipeline(), clash, resolve)


def test_the_identity_is_the_pipelines_uid():
    """A pipeline from an API server owns its targets by its uid; with secrets resolved the URIs are there."""
    parent = pipeline().model_copy(deep=True)
    parent = parent.model_copy(update={"metadata": parent.metadata.model_copy(update={"uid": "u-1"})})
    config = to_config(parent, schema(), resolve)
    assert config["identity"] == "u-1"
    assert config["source"]["connection_string"] == URIS["mongodb"]


def test_a_schema_of_another_pipeline_is_refused():
    """A schema is translated with its own pipeline only, and never onto the metadata schema."""
    with pytest.raises(ConfigError, match=r"spec.pipelineRef.name: found q; allowed: p"):
        to_config(pipeline(), schema(pipelineRef={"name": "q"}))
    with pytest.raises(ConfigError, match=r"spec.targetSchema: cartridge_warp_metadata is the metadata"):
        to_config(pipeline(), schema(targetSchema="cartridge_warp_metadata"))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"mode": "streem"}, "spec.mode: found 'streem'; allowed: stream, batch or snapshot"),
        ({"schedule": {"cron": "* * * * *"}}, "spec.schedule: only with mode batch"),
        (
            {"mode": "batch", "schedule": {"cron": "nope"}},
            "spec.schedule.cron: found 'nope'; allowed: five cron",
        ),
        ({"tables": {"include": ["a"], "exclude": ["b"]}}, "spec.tables: include and exclude"),
        ({"tableOverrides": [{"name": "a"}, {"name": "a"}]}, "spec.tableOverrides: a is listed twice"),
        (
            {"tableOverrides": [{"name": "a", "batchSize": 1}]},
            "spec.tableOverrides[0].batchSize: unknown key",
        ),
        ({"tableOverrides": {"a": {}}}, "spec.tableOverrides: found a mapping; allowed: a list"),
        (
            {"defaults": {"stream_batch_size": 1}},
            "stream_batch_size: unknown key; did you mean streamBatchSize",
        ),
        ({"targetSchema": "pg_x"}, "spec.targetSchema: found 'pg_x'; allowed: a schema that does not belong"),
        ({"targetSchema": "public", "deletionPolicy": "Drop"}, "public is never dropped"),
        ({"lag": {"targetSeconds": 60, "criticalSeconds": 5}}, "spec.lag.criticalSeconds: is below"),
        ({"worker": {"image": "x"}}, "spec.worker.image: unknown key"),
        ({"resync": {"token": ""}}, "spec.resync['token']: found"),
        ({"state": "Halted"}, "allowed: Running, Paused or Stopped"),
    ],
)
def test_a_wrong_schema(spec, expected):
    """A wrong WarpSchema says path, what was found and what is allowed, in the resource's own spelling."""
    message = error_of(schema, **spec)
    assert expected in message
    assert "document 1, WarpSchema my-shop" in message


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"source": {"uriSecretRef": {"name": "s"}}}, "spec.source.uriSecretRef.key: is missing"),
        (
            {"source": {"type": "files", "uriSecretRef": {"name": "s", "key": "k"}, "mongodb": {}}},
            "only with type",
        ),
        (
            {"source": {"uriSecretRef": {"name": "s", "key": "k"}, "parameters": {"a": "b"}}},
            "of other packages",
        ),
        ({"worker": {"env": [{"name": "LD_PRELOAD", "value": "x"}]}}, "env[0].name: found 'LD_PRELOAD'"),
        ({"worker": {"env": [{"name": "CARTRIDGE_WARP_MODE"}]}}, "a name that does not start with"),
        (
            {"updatePolicy": {"maxConcurrent": 0}},
            "spec.updatePolicy.maxConcurrent: found 0; allowed: at least 1",
        ),
        (
            {"destination": {"uriSecretRef": {"name": "s", "key": "k"}, "metadataSchema": "pg_x"}},
            "metadataSchema",
        ),
    ],
)
def test_a_wrong_pipeline(spec, expected):
    """A wrong WarpPipeline says path, what was found and what is allowed."""
    assert expected in error_of(pipeline, **spec)


def test_wrong_documents_are_counted():
    """All problems of all documents come in one message with the number of the document; lists are opened."""
    good = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}
    bad = {"apiVersion": "warp.cartridge.io/v9", "kind": "WarpSchema", "metadata": {"name": "x"}}
    odd = {"apiVersion": "warp.cartridge.io/v1alpha1", "kind": "WarpThing", "metadata": {"name": "x"}}
    text = yaml.safe_dump_all([None, good, bad, {"kind": "List", "apiVersion": "v1", "items": [good, odd]}, 5])
    with pytest.raises(ConfigError) as caught:
        load_manifests(text, "pipe.yaml")
    message = str(caught.value)
    assert message.startswith("manifest: 3 errors")
    assert (
        "apiVersion: found warp.cartridge.io/v9; allowed: warp.cartridge.io/v1alpha1 (pipe.yaml, document 3" in message
    )
    assert "kind: found WarpThing; allowed: WarpPipeline, WarpSchema (pipe.yaml, document 4, item 2" in message
    assert "is no Kubernetes object" in message
    with pytest.raises(ConfigError, match=r"manifest: pipe.yaml is malformed: line 1"):
        load_manifests("a: [", "pipe.yaml")
    assert load_manifests("") == []


def test_an_object_as_an_api_server_returns_it():
    """Managed fields, status and other metadata are left alone."""
    document = {
        "apiVersion": "warp.cartridge.io/v1alpha1",
        "kind": "WarpSchema",
        "metadata": {"name": "x", "uid": "u", "managedFields": [{}], "resourceVersion": "5", "generation": 3},
        "spec": {"pipelineRef": {"name": "p"}},
        "status": {"phase": "Streaming"},
    }
    (parsed,) = load_manifests(yaml.safe_dump(document))
    assert isinstance(parsed, WarpSchemaManifest)
    assert (parsed.metadata.uid, parsed.metadata.generation, parsed.target) == ("u", 3, "x")


def test_every_field_is_described():
    """Each field of both kinds has a description, which becomes that of the CRD."""

    def fields(model: type[BaseModel], path: str) -> Iterator[tuple[str, str | None]]:
        for name, info in model.model_fields.items():
            here = f"{path}.{info.alias or name}"
            yield here, info.description
            kind, inner = shape(model, info.alias or name)
            if kind != "leaf":
                yield from fields(inner, here)

    described = [*fields(PipelineManifest, "pipeline"), *fields(WarpSchemaManifest, "schema")]
    assert len(described) > 120
    assert [path for path, text in described if not text] == []
