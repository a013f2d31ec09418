"""From what a batch's documents showed to new versions of the plans. Pure: no connection, no clock.

Only additions are applied here: a new table, a new column, the columns of soft deletion. A value of another
type than its column's stays in `_warp_extra`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from cartridge_warp.config import TableSettings, UnitSettings
from cartridge_warp.connectors.protocols import PlanChange, TableState
from cartridge_warp.kernel.plan import (
    ColumnPlan,
    KeyKind,
    TablePlan,
    column_name,
    decide_kind,
    relation_name,
)
from cartridge_warp.records import Observed

__all__ = ["evolve"]


def evolve(
    states: Mapping[str, TableState],
    observed: Mapping[str, Observed],
    settings: UnitSettings,
    *,
    relations: Collection[str] = (),
    key_fields: Mapping[str, str | None] | None = None,
) -> list[PlanChange]:
    """The changes that these tables need, one for each table at most.

    `relations` are the destination's table names that are taken; `key_fields` names the key field of tables
    that have no plan yet (default `_id`).
    """
    taken = set(relations)
    changes = []
    for name, seen in sorted(observed.items()):
        state = states.get(name)
        change = _evolve(
            state.plan if state else None,
            name,
            seen,
            settings.table(name),
            taken,
            (key_fields or {}).get(name, "_id"),
        )
        if change is not None:
            taken.add(change.plan.relation)
            changes.append(change)
    return changes


def _evolve(
    plan: TablePlan | None,
    table: str,
    seen: Observed,
    settings: TableSettings,
    taken: set[str],
    key_field: str | None,
) -> PlanChange | None:
    if plan is None:
        if not seen.keys:
            return None  # nothing but deletes: the first document decides on the key
        fresh = TablePlan(table, relation_name(table, taken), _key_kind(seen.keys, key_field), key_field)
        columns = _columns(fresh, seen, settings)
        return PlanChange(
            replace(fresh, columns=columns, soft_column=_soft(settings), version=1),
            "add_table",
            tuple(column.column for column in columns),
        )
    columns = _columns(plan, seen, settings)
    soft = plan.soft_column or _soft(settings)
    if not columns and soft == plan.soft_column:
        return None
    grown = replace(plan, columns=(*plan.columns, *columns), soft_column=soft, version=plan.version + 1)
    return PlanChange(grown, "add_column" if columns else "soft_delete", tuple(column.column for column in columns))


def _key_kind(kinds: Collection[str], key_field: str | None) -> KeyKind:
    """The key's own type while there is only one; a hash for everything else."""
    if key_field is None or len(kinds) != 1:
        return KeyKind.hash
    return KeyKind(next(iter(kinds)))


def _soft(settings: TableSettings) -> str | None:
    return settings.soft_delete_column if settings.deletion_strategy == "soft" else None


def _columns(plan: TablePlan, seen: Observed, settings: TableSettings) -> tuple[ColumnPlan, ...]:
    """Columns for the fields that have none, in the order in which they were seen, up to the limit. A field
    that was null wherever it was seen waits for its first value."""
    taken = set(plan.taken) | {settings.soft_delete_column}
    columns: list[ColumnPlan] = []
    for field, kinds in seen.fields.items():
        if len(plan.columns) + len(columns) >= settings.max_columns:
            break
        if field in plan.known or not any(count for kind, count in kinds.items() if kind != "null"):
            continue
        column = ColumnPlan(field, column_name(field, taken), decide_kind(kinds, old_uuids=settings.uuid_subtype3))
        taken.add(column.column)
        columns.append(column)
    return tuple(columns)
