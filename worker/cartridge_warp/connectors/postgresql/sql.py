"""Every SQL statement on the destination's tables. Identifiers are quoted by psycopg.sql, values are bound.

Rows travel as one binary array per column and are unnested by the server: one round trip, no temporary table
(which a transaction pooler would not keep), and the same field bytes serve COPY.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from cartridge_warp.kernel.plan import (
    KEY_COLUMN,
    KEY_TYPES,
    KeyKind,
    PgType,
    TablePlan,
    copy_columns,
    key_definition,
)

__all__ = ["Statements", "lock_key"]

DELETED_AT = "deleted_at"
SYNCED_AT = "_warp_synced_at"

_HASH = {  # must compute what kernel.bson.key_hash computes
    KeyKind.objectid: SQL("sha256(convert_to('o' || {c}, 'UTF8'))"),
    KeyKind.int: SQL("sha256(convert_to('n' || {c}::text, 'UTF8'))"),
    KeyKind.string: SQL("sha256(convert_to('s' || {c}, 'UTF8'))"),
    KeyKind.uuid: SQL("sha256(convert_to('b04' || replace({c}::text, '-', ''), 'UTF8'))"),
    KeyKind.date: SQL("sha256(convert_to('d' || (extract(epoch FROM {c}) * 1000)::bigint::text, 'UTF8'))"),
    KeyKind.hash: SQL("{c}"),
}
_DOCUMENT = {  # a key as canonical Extended JSON, as far as a column alone can tell
    KeyKind.objectid: SQL("jsonb_build_object('$oid', {c})"),
    KeyKind.int: SQL("jsonb_build_object('$numberLong', {c}::text)"),
    KeyKind.string: SQL("to_jsonb({c}::text)"),
    KeyKind.uuid: SQL(
        "jsonb_build_object('$binary', jsonb_build_object('base64', encode(uuid_send({c}), 'base64'), 'subType', '04'))"
    ),
    KeyKind.date: SQL(
        "jsonb_build_object('$date', jsonb_build_object('$numberLong', (extract(epoch FROM {c}) * 1000)::bigint::text))"
    ),
    KeyKind.hash: SQL("NULL::jsonb"),
}


def lock_key(*parts: str) -> int:
    """The advisory lock of a thing: a signed 64-bit number from its qualified name."""
    digest = hashlib.sha256("\0".join(("cartridge-warp", *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _name(*parts: str) -> Identifier:
    """A name in a statement with parameters, where psycopg would take a % for a placeholder."""
    return Identifier(*(part.replace("%", "%%") for part in parts))


def _text(value: str) -> Literal:
    """A constant in a statement with parameters, for the same reason."""
    return Literal(value.replace("%", "%%"))


def _list(parts: Sequence[Composable]) -> Composed:
    return SQL(", ").join(parts)


class Statements:
    """Statements for one metadata schema and one target schema; those used for every batch are composed once."""

    def __init__(self, metadata_schema: str, target: str) -> None:
        self.metadata_schema = metadata_schema
        self.target = target
        self.meta = _name(metadata_schema)
        self._composed: dict[tuple[object, ...], tuple[TablePlan, Composed]] = {}

    def m(self, text: str, **parts: Composable) -> Composed:
        """A statement on the metadata schema: `{m}` is its name, `{t}` the target as a literal. To be executed
        with parameters, if only with none: `()`."""
        return SQL(text).format(m=self.meta, t=_text(self.target), **parts)

    def _once(self, plan: TablePlan, *key: object, compose: Callable[[], Composed]) -> Composed:
        """Compose a statement once for each plan. Plans are compared as a whole: the version of one that was rolled
        back is given again."""
        found = self._composed.get((plan.table, *key))
        if found is None or found[0] != plan:
            found = self._composed[(plan.table, *key)] = (plan, compose())
        return found[1]

    def relation(self, plan: TablePlan) -> Composed:
        """The qualified name of a plan's table."""
        return SQL("{}.{}").format(Identifier(self.target), Identifier(plan.relation))

    def _bound(self, plan: TablePlan) -> Composed:
        return SQL("{}.{}").format(_name(self.target), _name(plan.relation))

    def key_hash(self, plan: TablePlan, alias: str) -> Composed:
        """The hash of a row's key."""
        return _HASH[plan.key_kind].format(c=_name(alias, plan.key_column))

    # -- structure ------------------------------------------------------------------------------------

    def create_table(self, plan: TablePlan) -> Composed:
        """The whole table of a plan."""
        columns: list[Composable] = [
            SQL("{} {} NOT NULL").format(Identifier(plan.key_column), SQL(key_definition(plan.key_kind)))
        ]
        for name, pg in copy_columns(plan)[1:]:
            null = " NOT NULL" if name == "_warp_version" else ""
            columns.append(SQL("{} {}").format(Identifier(name), SQL(pg.sql + null)))
        columns.append(SQL("{} timestamptz NOT NULL DEFAULT now()").format(Identifier(SYNCED_AT)))
        columns += self._soft_columns(plan)
        columns.append(SQL("PRIMARY KEY ({})").format(Identifier(plan.key_column)))
        return SQL("CREATE TABLE {} ({})").format(self.relation(plan), _list(columns))

    def _soft_columns(self, plan: TablePlan) -> list[Composable]:
        if plan.soft_column is None:
            return []
        return [
            SQL("{} boolean NOT NULL DEFAULT false").format(Identifier(plan.soft_column)),
            SQL("{} timestamptz").format(Identifier(DELETED_AT)),
        ]

    def add_columns(self, plan: TablePlan, names: Sequence[tuple[str, PgType]], *, soft: bool) -> Composed:
        """Add columns to a plan's table; one that exists already is left alone."""
        columns: list[Composable] = [SQL("{} {}").format(Identifier(name), SQL(pg.sql)) for name, pg in names]
        columns += self._soft_columns(plan) if soft else []
        added = [SQL("ADD COLUMN IF NOT EXISTS {}").format(column) for column in columns]
        return SQL("ALTER TABLE {} {}").format(self.relation(plan), _list(added))

    def adopt(self, plan: TablePlan) -> Composed:
        """Add the system columns to a table that was there before; its rows count as older than any change."""
        return SQL(
            "ALTER TABLE {} ADD COLUMN IF NOT EXISTS _warp_version bigint NOT NULL DEFAULT {},"
            " ADD COLUMN IF NOT EXISTS _warp_extra jsonb,"
            " ADD COLUMN IF NOT EXISTS _warp_synced_at timestamptz NOT NULL DEFAULT now();"
            # A statement of its own: within one, defaults are dropped before columns are added.
            " ALTER TABLE {} ALTER COLUMN _warp_version DROP DEFAULT"
        ).format(self.relation(plan), Literal(-(2**63)), self.relation(plan))

    # -- a key that changes from one type to a hash ---------------------------------------------------

    def fill_keys(self, plan: TablePlan, *, first: bool) -> Composed:
        """Give a page's rows their `_warp_key`. Parameters: the last key unless first, the page's end."""
        return SQL("UPDATE {rel} AS t SET _warp_key = {hash} WHERE {range} AND t._warp_key IS NULL").format(
            rel=self._bound(plan), hash=self.key_hash(plan, "t"), range=self._range(plan, first=first)
        )

    def key_index(self, plan: TablePlan) -> tuple[Composed, Composed]:
        """Drop and build the unique index of the new key; the name depends on the table alone."""
        name = Identifier(self.target, self._key_index_name(plan))
        return (
            SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(name),
            SQL("CREATE UNIQUE INDEX CONCURRENTLY {} ON {} ({})").format(
                Identifier(self._key_index_name(plan)), self.relation(plan), Identifier(KEY_COLUMN)
            ),
        )

    def _key_index_name(self, plan: TablePlan) -> str:
        return f"_warp_key_{lock_key(self.target, plan.relation) & 0xFFFFFFFFFFFF:012x}"

    def swap_key(self, plan: TablePlan, constraint: str) -> Composed:
        """Make the filled `_warp_key` the primary key and the old key an ordinary column."""
        return SQL(
            "ALTER TABLE {rel} DROP CONSTRAINT {old}, ALTER COLUMN {key} DROP NOT NULL,"
            " ADD PRIMARY KEY USING INDEX {index}"
        ).format(
            rel=self.relation(plan), old=Identifier(constraint), key=Identifier(plan.key_column),
            index=Identifier(self._key_index_name(plan)),
        )  # fmt: skip

    # -- rows -----------------------------------------------------------------------------------------

    def copy(self, plan: TablePlan) -> Composed:
        """COPY BINARY of the plan's `copy_columns`."""
        return self._once(plan, "copy", compose=lambda: self._copy(plan))

    def upsert(self, plan: TablePlan, *, check_tombstones: bool) -> Composed:
        """Parameters: an array for each of `copy_columns`. A newer row is never overwritten."""
        return self._once(plan, "upsert", check_tombstones, compose=lambda: self._upsert(plan, check_tombstones))

    def delete(self, plan: TablePlan, *, soft: bool) -> Composed:
        """Parameters: keys, versions, times (ms), hashes, documents, reason."""
        return self._once(plan, "delete", soft, compose=lambda: self._delete(plan, soft))

    def _copy(self, plan: TablePlan) -> Composed:
        columns = _list([Identifier(name) for name, _ in copy_columns(plan)])
        return SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(self.relation(plan), columns)

    def _upsert(self, plan: TablePlan, check_tombstones: bool) -> Composed:
        names = [name for name, _ in copy_columns(plan)]
        constant: dict[str, Composable] = {SYNCED_AT: SQL("now()")}
        if plan.soft_column:
            constant |= {plan.soft_column: SQL("false"), DELETED_AT: SQL("NULL")}
        skip: Composable = SQL("")
        if check_tombstones:
            skip = SQL(
                ' WHERE NOT EXISTS (SELECT FROM {m}.tombstones k WHERE k.target = {t} AND k."table" = {table}'
                " AND k.key = {hash} AND k.version > s._warp_version)"
            ).format(m=self.meta, t=_text(self.target), table=_text(plan.table), hash=self.key_hash(plan, "s"))
        updated = [*names[1:], *constant]
        return SQL(
            "INSERT INTO {rel} AS t ({into}) SELECT {values} FROM unnest({params}) AS s ({columns}){skip}"
            " ON CONFLICT ({key}) DO UPDATE SET {sets} WHERE t._warp_version <= excluded._warp_version"
        ).format(
            rel=self._bound(plan),
            into=_list([_name(name) for name in (*names, *constant)]),
            values=_list([*(_name("s", name) for name in names), *constant.values()]),
            params=_list([SQL("%s")] * len(names)),
            columns=_list([_name(name) for name in names]),
            skip=skip,
            key=_name(names[0]),
            sets=_list([SQL("{0} = excluded.{0}").format(_name(name)) for name in updated]),
        )

    def _gone(self, plan: TablePlan, source: Composable, where: Composable, *, at: str, soft: bool) -> Composed:
        """Delete or mark the rows of `t` that `source` k picks, and write each into the audit.
        `source` has k.version, k.hash and k.doc where those are known already. Last parameter: the reason."""
        returning = SQL("RETURNING coalesce(k.hash, {hash}), coalesce(k.doc::jsonb, {doc}), k.version").format(
            hash=self.key_hash(plan, "t"),
            doc=_DOCUMENT[plan.key_kind].format(c=_name("t", plan.key_column)),
        )
        parts: dict[str, Composable] = {}
        if soft and plan.soft_column:
            parts = {"soft": _name(plan.soft_column), "at": SQL(at)}
            change = SQL(
                "UPDATE {rel} AS t SET {soft} = true, deleted_at = {at}, _warp_version = k.version,"
                " _warp_synced_at = now() FROM {source} WHERE NOT t.{soft} AND {where} {returning}"
            )
        else:
            change = SQL("DELETE FROM {rel} AS t USING {source} WHERE {where} {returning}")
        changed = change.format(rel=self._bound(plan), source=source, where=where, returning=returning, **parts)
        return SQL(
            "WITH gone (hash, doc, version) AS ({changed}) INSERT INTO {m}.deletion_audit"
            ' (target, "table", key, document_id, version, reason)'
            " SELECT {t}, {table}, hash, doc, version, %s FROM gone ON CONFLICT DO NOTHING"
        ).format(changed=changed, m=self.meta, t=_text(self.target), table=_text(plan.table))

    def _delete(self, plan: TablePlan, soft: bool) -> Composed:
        source = SQL(
            "unnest(%s, %s::bigint[], %s::bigint[], %s::bytea[], %s::text[]) AS k (key, version, at, hash, doc)"
        )
        where = SQL("{key} = k.key AND t._warp_version <= k.version").format(key=_name("t", plan.key_column))
        return self._gone(plan, source, where, at="to_timestamp(k.at / 1000.0)", soft=soft)

    def void(self, plan: TablePlan, *, soft: bool) -> Composed:
        """Remove every row up to a version. Parameters: that version, reason."""
        return self._gone(plan, self._one_version(), SQL("t._warp_version <= k.version"), at="now()", soft=soft)

    def _one_version(self) -> SQL:
        return SQL("(SELECT %s::bigint AS version, NULL::bytea AS hash, NULL::text AS doc) AS k")

    def page(self, plan: TablePlan, *, first: bool) -> Composed:
        """The last key of the next page, as text. Parameters: the last key unless first, the page's size."""
        where = SQL("") if first else SQL("WHERE {key} > {cast}")
        return SQL(
            "SELECT key::text FROM (SELECT {key} AS key FROM {rel} {where} ORDER BY {key} LIMIT %s) page"
            " ORDER BY key DESC LIMIT 1"
        ).format(
            key=_name(plan.key_column), rel=self._bound(plan),
            where=where.format(key=_name(plan.key_column), cast=self._key_parameter(plan)),
        )  # fmt: skip

    def _key_parameter(self, plan: TablePlan) -> SQL:
        return SQL("%s::" + KEY_TYPES[plan.key_kind].sql)

    def _range(self, plan: TablePlan, *, first: bool) -> Composed:
        """A page of rows `t`: behind the last key unless it is the first one, up to the page's end."""
        key, cast = _name("t", plan.key_column), self._key_parameter(plan)
        end = SQL("{key} <= {cast}").format(key=key, cast=cast)
        return end if first else SQL("{key} > {cast} AND {end}").format(key=key, cast=cast, end=end)

    def sweep(self, plan: TablePlan, *, first: bool, soft: bool) -> Composed:
        """Sweep one page of rows older than `version`. Parameters: version, [last key unless first], end key,
        reason. A key with an open dead letter stays: its document exists in the source."""
        where = SQL(
            "{range} AND t._warp_version < k.version AND NOT EXISTS ("
            'SELECT FROM {m}.dead_letters d WHERE d.target = {t} AND d."table" = {table}'
            " AND d.state IN ('open', 'waiting') AND d.key = {hash})"
        ).format(
            range=self._range(plan, first=first), m=self.meta, t=_text(self.target), table=_text(plan.table),
            hash=self.key_hash(plan, "t"),
        )  # fmt: skip
        return self._gone(plan, self._one_version(), where, at="now()", soft=soft)
