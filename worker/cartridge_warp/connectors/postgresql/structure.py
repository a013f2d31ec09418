"""DDL on the destination's tables, from changes of their plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from psycopg import AsyncConnection

from cartridge_warp.connectors.protocols import PlanChange
from cartridge_warp.errors import DestinationRefused
from cartridge_warp.kernel.plan import KEY_TYPES, PgType, TablePlan, copy_columns
from cartridge_warp.records import SMALLEST_VERSION

if TYPE_CHECKING:
    from cartridge_warp.connectors.postgresql.target import PostgreSQLTarget

__all__ = ["apply_change", "columns_of", "primary_key"]

Connection = AsyncConnection[Any]


async def columns_of(c: Connection, schema: str, relation: str) -> dict[str, str]:
    """A table's columns and their types as the plan names them; empty when there is no such table."""
    cursor = await c.execute(
        "SELECT a.attname, replace(format_type(a.atttypid, NULL), 'timestamp with time zone', 'timestamptz')"
        " FROM pg_attribute a"
        " JOIN pg_class r ON r.oid = a.attrelid JOIN pg_namespace n ON n.oid = r.relnamespace"
        " WHERE n.nspname = %s AND r.relname = %s AND a.attnum > 0 AND NOT a.attisdropped",
        (schema, relation),
    )
    return dict(await cursor.fetchall())


async def primary_key(c: Connection, schema: str, relation: str) -> tuple[str, list[str]] | None:
    """The name and the columns of a table's primary key."""
    cursor = await c.execute(
        "SELECT k.conname, array_agg(a.attname::text) FROM pg_constraint k"
        " JOIN pg_class r ON r.oid = k.conrelid JOIN pg_namespace n ON n.oid = r.relnamespace"
        " JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum = ANY (k.conkey)"
        " WHERE n.nspname = %s AND r.relname = %s AND k.contype = 'p' GROUP BY k.conname",
        (schema, relation),
    )
    row = await cursor.fetchone()
    return (row[0], row[1]) if row else None


async def apply_change(target: PostgreSQLTarget, c: Connection, change: PlanChange, before: TablePlan | None) -> None:
    """Bring a table from its plan `before` to `change.plan`."""
    plan = change.plan
    existing = await columns_of(c, target.name, plan.relation)
    if before is None:
        if not existing:
            await c.execute(target.statements.create_table(plan))
            return
        await _adopt(target, c, plan, existing)
        before = TablePlan(plan.table, plan.relation, plan.key_kind, plan.key_field)
    present = {name for name, _ in copy_columns(before)}
    added = [(name, pg) for name, pg in copy_columns(plan) if name not in present]
    soft = plan.soft_column is not None and before.soft_column is None
    _compare(target, plan, added, existing)
    if added or soft:
        await c.execute(target.statements.add_columns(plan, added, soft=soft))


async def _adopt(target: PostgreSQLTarget, c: Connection, plan: TablePlan, existing: dict[str, str]) -> None:
    """Take over a table that was there before: its key must fit, and so must columns of the same name."""
    where = f"table {target.name}.{plan.relation}"
    key = await primary_key(c, target.name, plan.relation)
    wanted = KEY_TYPES[plan.key_kind].sql
    if key is None or key[1] != [plan.key_column] or existing[plan.key_column] != wanted:
        raise DestinationRefused(
            f"{where} exists already and its primary key is not {plan.key_column} {wanted}, which collection"
            f" {plan.table} needs; rename or drop the table, or choose another target schema"
        )
    _compare(target, plan, copy_columns(plan)[1:], existing)
    await c.execute(target.statements.adopt(plan))
    # What was in it before is swept at the end of the copy, also when the stream was first to meet the collection
    # and no start has been noted: every row of ours is newer than the smallest version.
    await c.execute(
        target.statements.m(
            "UPDATE {m}.tables SET sweep = true, start_version = coalesce(start_version, %s)"
            " WHERE target = {t} AND collection = %s"
        ),
        (SMALLEST_VERSION + 1, plan.table),
    )


def _compare(
    target: PostgreSQLTarget, plan: TablePlan, wanted: Sequence[tuple[str, PgType]], existing: Mapping[str, str]
) -> None:
    """Columns that are there already, of an adopted table or made by somebody else, must have the type needed."""
    for name, pg in wanted:
        found = existing.get(name)
        if found is not None and found != pg.sql:
            raise DestinationRefused(
                f"table {target.name}.{plan.relation} exists already and its column {name} is {found} where collection"
                f" {plan.table} needs {pg.sql}; rename or drop the column or the table"
            )
