"""What users may say about the worker's pods."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cartridge_warp.resources.base import Labels, Name, Spec, StringMap, Text

__all__ = [
    "EnvVar",
    "LocalObjectReference",
    "PipelineWorker",
    "ResourceRequirements",
    "SchemaWorker",
    "Toleration",
]

_FORBIDDEN_ENV = re.compile(r"CARTRIDGE_WARP_|PYTHON|LD_")
Quantity = str | int | float
Quantities = Annotated[dict[Annotated[str, Field(max_length=63)], Quantity], Field(max_length=16)]


class LocalObjectReference(Spec):
    """An object of the same namespace, by name."""

    name: Name
    """Name of the object."""


class ResourceRequirements(Spec):
    """CPU and memory, as in a container."""

    limits: Quantities | None = None
    """The most that the worker may use."""

    requests: Quantities | None = None
    """What is reserved for the worker."""


class Toleration(Spec):
    """A taint that the pod tolerates, as in a pod."""

    key: Annotated[str, Field(max_length=316)] | None = None
    """Key of the taint; all when not set."""

    operator: Literal["Exists", "Equal"] | None = None
    """How the value is compared. Default Equal."""

    value: Annotated[str, Field(max_length=63)] | None = None
    """Value of the taint."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; all when not set."""

    toleration_seconds: Annotated[int, Field(ge=0, le=10**9)] | None = None
    """How long a NoExecute taint is tolerated, in seconds; for ever when not set."""


class EnvVar(Spec):
    """An environment variable, as in a container."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")]
    """Name; not one that starts with CARTRIDGE_WARP_, PYTHON or LD_."""

    value: Text | None = None
    """Value."""

    value_from: dict[str, Any] | None = None
    """Where the value comes from, as in a container."""

    @field_validator("name")
    @classmethod
    def _harmless(cls, name: str) -> str:
        # They would go round validation and the hash that tells a changed configuration.
        if _FORBIDDEN_ENV.match(name):
            raise ValueError("a name that does not start with CARTRIDGE_WARP_, PYTHON or LD_")
        return name


class SchemaWorker(Spec):
    """What a schema may say about its worker's pod: nothing that lets it run other code or read a Secret."""

    resources: ResourceRequirements | None = None
    """CPU and memory."""

    node_selector: Labels | None = None
    """Labels that a node must have."""

    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] | None = None
    """Taints that the pod tolerates."""

    affinity: dict[str, Any] | None = None
    """Affinity, as in a pod."""

    topology_spread_constraints: Annotated[tuple[dict[str, Any], ...], Field(max_length=16)] | None = None
    """Topology spread constraints, as in a pod."""

    priority_class_name: Name | None = None
    """Priority class of the pod."""

    labels: Labels | None = None
    """Further labels of the pod."""

    annotations: StringMap | None = None
    """Further annotations of the pod."""


class PipelineWorker(SchemaWorker):
    """What a pipeline may say about the pods of its workers."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the worker. Default: the one that belongs to the operator's version."""

    service_account_name: Name | None = None
    """Service account of the pod. Default: one of its own, without rights."""

    image_pull_secrets: Annotated[tuple[LocalObjectReference, ...], Field(max_length=16)] | None = None
    """Secrets for pulling the image."""

    env: Annotated[tuple[EnvVar, ...], Field(max_length=64)] | None = None
    """Further environment variables."""
