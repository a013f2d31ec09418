"""What the parts of the custom resources have in common: camelCase keys, and bounds on everything.

The CRDs are generated from these models, and an API server wants a bound for every list, map and text.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from cartridge_warp.config.base import Model

__all__ = [
    "CAMEL",
    "DNSLabel",
    "Database",
    "Labels",
    "Name",
    "ObjectName",
    "SecretKeyRef",
    "Spec",
    "StringMap",
    "TargetSchema",
    "Text",
]

CAMEL = ConfigDict(alias_generator=to_camel, populate_by_name=False)
"""Takes camelCase keys only."""

_DNS = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
_SYSTEM_SCHEMAS = ("information_schema",)


def _target(value: str) -> str:
    if len(value.encode()) > 63:
        raise ValueError("a PostgreSQL name of at most 63 bytes")
    if value.startswith("pg_") or value in _SYSTEM_SCHEMAS:
        raise ValueError("a schema that does not belong to PostgreSQL")
    return value


ObjectName = Annotated[str, Field(min_length=1, max_length=46, pattern=_DNS)]
"""Name of a pipeline or a schema: `warp-<name>` then fits a CronJob."""

Name = Annotated[str, Field(min_length=1, max_length=253)]
DNSLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=_DNS)]
Text = Annotated[str, Field(max_length=1024)]
Database = Annotated[str, Field(min_length=1, max_length=63)]
TargetSchema = Annotated[str, Field(min_length=1, max_length=63), AfterValidator(_target)]
LabelKey = Annotated[str, Field(max_length=317)]
Labels = Annotated[dict[LabelKey, Annotated[str, Field(max_length=63)]], Field(max_length=64)]
StringMap = Annotated[dict[Annotated[str, Field(max_length=253)], Text], Field(max_length=64)]


class Spec(Model):
    """A part of a custom resource."""

    model_config = CAMEL


class SecretKeyRef(Spec):
    """One key of a Secret in the same namespace."""

    name: Name
    """Name of the Secret."""

    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """Key in the Secret."""
