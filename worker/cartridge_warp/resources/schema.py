"""The spec of a WarpSchema: one unit of replication."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cartridge_warp.config.problems import ContradictionError
from cartridge_warp.config.schedule import Schedule
from cartridge_warp.config.values import TimeZone
from cartridge_warp.resources.base import Database, ObjectName, Spec, TargetSchema
from cartridge_warp.resources.defaults import Defaults, TableNames, TableOverride
from cartridge_warp.resources.pods import SchemaWorker

__all__ = ["WarpSchemaSpec"]


class PipelineRef(Spec):
    """The pipeline of a schema, in the same namespace."""

    name: ObjectName
    """Name of the WarpPipeline."""


class ScheduleSpec(Spec):
    """When a batch runs."""

    cron: Annotated[str, Field(min_length=1, max_length=255)]
    """Five cron fields."""

    time_zone: Annotated[TimeZone, Field(min_length=1, max_length=63)] = "UTC"
    """Time zone of the cron fields."""

    starting_deadline_seconds: Annotated[int, Field(ge=10, le=7 * 24 * 3600)] | None = None
    """How late a run may start, in seconds; else it is left out."""

    suspend: bool = False
    """Start no further run."""

    @model_validator(mode="after")
    def _readable(self) -> ScheduleSpec:
        try:
            Schedule.parse(self.cron)
        except ValueError as error:
            raise ContradictionError([(("cron",), f"found {self.cron!r}; allowed: {error}")]) from None
        return self


class TablesSpec(Spec):
    """Which tables are copied: a whitelist or a blacklist."""

    include: TableNames | None = None
    """Names or patterns of the tables to copy."""

    exclude: TableNames | None = None
    """Names or patterns of the tables not to copy."""

    @model_validator(mode="after")
    def _never_both(self) -> TablesSpec:
        if self.include is not None and self.exclude is not None:
            raise ContradictionError([((), "include and exclude exclude each other; keep one")])
        return self


class ResyncSpec(Spec):
    """Copy tables once more. Done once for each token."""

    token: Annotated[str, Field(min_length=1, max_length=63)]
    """Any new text starts it."""

    tables: TableNames | None = None
    """The tables to copy; all when not set."""


class LagSpec(Spec):
    """When `LagWithinTarget` turns."""

    target_seconds: Annotated[int, Field(ge=1, le=10**7)] = 60
    """Lag that is fine, in seconds."""

    critical_seconds: Annotated[int, Field(ge=1, le=10**7)] | None = None
    """Lag that is an alert, in seconds. Default: five times the target."""

    @model_validator(mode="after")
    def _ordered(self) -> LagSpec:
        if self.critical_seconds is not None and self.critical_seconds < self.target_seconds:
            raise ContradictionError([(("criticalSeconds",), "is below targetSeconds")])
        return self


class WarpSchemaSpec(Spec):
    """One unit of replication: one source database into one destination schema, one worker."""

    pipeline_ref: PipelineRef
    """The pipeline. Immutable."""

    database: Database | None = None
    """Source database. Default: the pipeline's. Immutable."""

    target_schema: TargetSchema | None = None
    """PostgreSQL schema. Default: the object's name with `-` as `_`. Immutable."""

    mode: Literal["stream", "batch", "snapshot"] = "stream"
    """`stream` follows the changes, `batch` fetches them now and then, `snapshot` copies once."""

    schedule: ScheduleSpec | None = None
    """When a batch runs; only with mode batch."""

    tables: TablesSpec | None = None
    """Which tables are copied; all when not set."""

    table_overrides: Annotated[tuple[TableOverride, ...], Field(max_length=500)] | None = None
    """What differs for single tables. Never a filter."""

    state: Literal["Running", "Paused", "Stopped"] = "Running"
    """`Paused` keeps the worker and its position, `Stopped` removes the worker."""

    resync: ResyncSpec | None = None
    """Copy tables once more."""

    deletion_policy: Literal["Retain", "Drop"] = "Retain"
    """What becomes of the tables when this object is deleted."""

    lag: LagSpec | None = None
    """When `LagWithinTarget` turns."""

    defaults: Defaults | None = None
    """Overrides the pipeline's defaults."""

    worker: SchemaWorker | None = None
    """The pod of the worker."""

    @model_validator(mode="after")
    def _consistent(self) -> WarpSchemaSpec:
        if self.schedule is not None and self.mode != "batch":
            raise ContradictionError([(("schedule",), f"only with mode batch, this one is {self.mode}")])
        if self.deletion_policy == "Drop" and self.target_schema == "public":
            raise ContradictionError([(("targetSchema",), "public is never dropped; choose another schema")])
        names = [table.name for table in self.table_overrides or ()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ContradictionError([(("tableOverrides",), f"{', '.join(twice)} is listed twice")])
        return self
