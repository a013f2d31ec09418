"""The spec of a WarpPipeline: where data comes from and goes to, and the defaults of its schemas."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from cartridge_warp.config.problems import ContradictionError
from cartridge_warp.resources.base import Database, Labels, Name, SecretKeyRef, Spec, StringMap, TargetSchema
from cartridge_warp.resources.defaults import Defaults, MongoDBSpec, PostgreSQLSpec
from cartridge_warp.resources.pods import PipelineWorker

__all__ = ["DestinationSpec", "PipelineSpec", "SourceSpec", "TlsSpec"]

ConnectorType = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class TlsSpec(Spec):
    """Encryption towards a server. The Secrets are mounted as files."""

    ca_secret_ref: SecretKeyRef | None = None
    """PEM file of the authorities that may have signed the server's certificate."""

    client_secret_name: Name | None = None
    """Secret of type kubernetes.io/tls with the client's certificate and key. MongoDB reads both from one
    file: its Secret also holds `tls-combined.pem`, as cert-manager writes it on request (CombinedPEM)."""

    insecure_skip_verify: bool = False
    """Accept any certificate of the server. Only for trials."""


class SourceSpec(Spec):
    """Where rows come from."""

    type: ConnectorType = "mongodb"
    """Name of the source connector. Immutable."""

    uri_secret_ref: SecretKeyRef
    """Connection string; never inline, since everyone who may read the pipeline would read the password."""

    database: Database | None = None
    """Source database of schemas that name none. Immutable."""

    mongodb: MongoDBSpec | None = None
    """Options of type mongodb."""

    parameters: StringMap | None = None
    """Options of a connector from another package."""

    tls: TlsSpec | None = None
    """Encryption towards the source."""

    @model_validator(mode="after")
    def _only_matching_options(self) -> SourceSpec:
        if self.mongodb is not None and self.type != "mongodb":
            text = f"only with type mongodb, this one is {self.type}"
            raise ContradictionError([(("mongodb",), text)])
        if self.parameters and self.type == "mongodb":
            raise ContradictionError([(("parameters",), "only with connectors of other packages")])
        return self


class DestinationSpec(Spec):
    """Where rows go to."""

    type: ConnectorType = "postgresql"
    """Name of the destination connector. Immutable."""

    uri_secret_ref: SecretKeyRef
    """Connection string."""

    postgresql: PostgreSQLSpec | None = None
    """Options of type postgresql."""

    parameters: StringMap | None = None
    """Options of a connector from another package."""

    metadata_schema: TargetSchema = "cartridge_warp_metadata"
    """Schema that holds positions, registry and dead letters. Immutable."""

    status_uri_secret_ref: SecretKeyRef | None = None
    """Connection string of a role for the operator that may only read the metadata schema and write to its
    table `control`. Default: the worker's own."""

    tls: TlsSpec | None = None
    """Encryption towards the destination."""

    @model_validator(mode="after")
    def _only_matching_options(self) -> DestinationSpec:
        if self.postgresql is not None and self.type != "postgresql":
            text = f"only with type postgresql, this one is {self.type}"
            raise ContradictionError([(("postgresql",), text)])
        if self.parameters and self.type == "postgresql":
            raise ContradictionError([(("parameters",), "only with connectors of other packages")])
        return self


class UpdatePolicy(Spec):
    """How a change rolls over the schemas of a pipeline."""

    max_concurrent: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many workers are replaced at once."""

    paused: bool = False
    """Hold all changes back; `warp.cartridge.io/approve` lets one go."""


class ServiceMonitorSpec(Spec):
    """A ServiceMonitor for each worker."""

    enabled: bool = False
    """Create it, where its API exists."""

    interval: Annotated[str, Field(max_length=16, pattern=r"^([0-9]+(ms|s|m|h))+$")] = "30s"
    """Time between two scrapes."""

    labels: Labels | None = None
    """Labels by which Prometheus selects it."""


class MonitoringSpec(Spec):
    """How the workers are watched."""

    service_monitor: ServiceMonitorSpec | None = None
    """A ServiceMonitor for each worker."""


class PipelineSpec(Spec):
    """Where data comes from and goes to, and the defaults of its schemas."""

    source: SourceSpec
    """Where rows come from."""

    destination: DestinationSpec
    """Where rows go to."""

    defaults: Defaults | None = None
    """Every setting that a schema or a table can override."""

    worker: PipelineWorker | None = None
    """The pods of the workers."""

    update_policy: UpdatePolicy | None = None
    """How a change rolls over the schemas."""

    monitoring: MonitoringSpec | None = None
    """How the workers are watched."""

    suspend: bool = False
    """Stop all schemas of this pipeline."""
