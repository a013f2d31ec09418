"""Custom resources as they stand in a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from cartridge_warp.config.canonical import canonical
from cartridge_warp.config.load import parse_documents
from cartridge_warp.config.problems import Problem, config_error, translate
from cartridge_warp.errors import ConfigError
from cartridge_warp.resources.base import ObjectName, Spec
from cartridge_warp.resources.pipeline import PipelineSpec
from cartridge_warp.resources.schema import WarpSchemaSpec

__all__ = [
    "API_VERSION",
    "Manifest",
    "ObjectMeta",
    "OtherManifest",
    "PipelineManifest",
    "WarpSchemaManifest",
    "load_manifests",
    "parse_manifest",
]

GROUP = "warp.cartridge.io"
API_VERSION = f"{GROUP}/v1alpha1"


class ObjectMeta(Spec):
    """The part of an object's metadata that matters here; the rest is left alone."""

    model_config = ConfigDict(extra="ignore")

    name: ObjectName
    """Name, at most 46 characters."""

    namespace: Annotated[str, Field(max_length=63)] | None = None
    """Namespace."""

    uid: Annotated[str, Field(max_length=128)] | None = None
    """The API server's id of this very object."""

    generation: int | None = None
    """Counts the changes of the spec."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Labels."""

    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations."""


class _Object(Spec):
    # The status belongs to the operator; it is no part of what a user says.
    model_config = ConfigDict(extra="ignore")

    api_version: Literal["warp.cartridge.io/v1alpha1"]
    """Group and version."""

    metadata: ObjectMeta
    """Name and namespace."""


class PipelineManifest(_Object):
    """A WarpPipeline."""

    kind: Literal["WarpPipeline"]
    """Kind."""

    spec: PipelineSpec
    """Where data comes from and goes to, and the defaults of its schemas."""


class WarpSchemaManifest(_Object):
    """A WarpSchema."""

    kind: Literal["WarpSchema"]
    """Kind."""

    spec: WarpSchemaSpec
    """One unit of replication."""

    @property
    def target(self) -> str:
        """The destination schema."""
        return self.spec.target_schema or self.metadata.name.replace("-", "_")


@dataclass(frozen=True)
class OtherManifest:
    """An object of another kind (a Secret, say), unchecked. Its document may hold secrets: never show it."""

    api_version: str
    kind: str
    name: str
    document: dict[str, Any] = field(repr=False)


Manifest = PipelineManifest | WarpSchemaManifest | OtherManifest
_M = TypeVar("_M", PipelineManifest, WarpSchemaManifest)


def load_manifests(text: str, name: str = "manifest") -> list[Manifest]:
    """Every object of a YAML stream or a JSON document, in order, with a `List` taken apart; empty documents
    are left out. Objects of other kinds come as `OtherManifest`.

    Raises `ConfigError` with every problem: the path, what is allowed, and the document (counted from 1).
    """
    manifests: list[Manifest] = []
    problems: list[Problem] = []
    for place, document in _objects(text, name):
        parsed = parse_manifest(document, place)
        if isinstance(parsed, list):
            problems += parsed
        else:
            manifests.append(parsed)
    if problems:
        raise config_error(problems, "manifest")
    return manifests


def parse_manifest(document: Any, place: str) -> Manifest | list[Problem]:
    """One object, or what is wrong with it. `place` says where it stands."""
    if not isinstance(document, Mapping):
        return [Problem((), "is no Kubernetes object; allowed: a mapping with apiVersion and kind", place)]
    version, kind = document.get("apiVersion"), document.get("kind")
    for key, value in (("apiVersion", version), ("kind", kind)):
        if not isinstance(value, str) or not value:
            return [Problem((key,), "is missing", place)]
    metadata = document.get("metadata")
    object_name = metadata.get("name") if isinstance(metadata, Mapping) else None
    place = f"{place}, {kind} {object_name or 'without a name'}"
    if str(version).partition("/")[0] != GROUP:
        return OtherManifest(str(version), str(kind), str(object_name or ""), dict(document))
    if version != API_VERSION:
        return [Problem(("apiVersion",), f"found {version}; allowed: {API_VERSION}", place)]
    if kind == "WarpPipeline":
        return _checked(PipelineManifest, document, place)
    if kind == "WarpSchema":
        return _checked(WarpSchemaManifest, document, place)
    return [Problem(("kind",), f"found {kind}; allowed: WarpPipeline, WarpSchema", place)]


def _checked(model: type[_M], document: Mapping[Any, Any], place: str) -> _M | list[Problem]:
    layer = canonical(model, document, lambda written: place)
    problems = list(layer.problems)
    try:
        parsed = model.model_validate(layer.tree)
    except ValidationError as error:
        return problems + translate(error, layer.origins)
    return problems or parsed


def _objects(text: str, name: str) -> Iterator[tuple[str, Any]]:
    try:
        documents = parse_documents(text, name)
    except ConfigError as error:
        raise ConfigError(str(error).replace("configuration: ", "manifest: ", 1)) from None
    for number, document in enumerate(documents, 1):
        if document is None:
            continue
        place = f"{name}, document {number}"
        items = document.get("items") if isinstance(document, Mapping) else None
        if isinstance(items, list) and str(document.get("kind", "")).endswith("List"):
            yield from ((f"{place}, item {index}", item) for index, item in enumerate(items, 1))
        else:
            yield place, document
