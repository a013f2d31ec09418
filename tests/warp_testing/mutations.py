"""Safeguards, each with a way to remove it for a while. What removing one breaks is what it is for."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from psycopg.sql import SQL, Composed

from cartridge_warp.connectors.postgresql.markers import Markers
from cartridge_warp.connectors.postgresql.rows import RowWriter
from cartridge_warp.connectors.postgresql.sql import Statements
from cartridge_warp.connectors.postgresql.target import PostgreSQLTarget
from cartridge_warp.connectors.postgresql.transaction import DataTransaction
from cartridge_warp.core.session import Session
from cartridge_warp.records import SMALLEST_VERSION
from warp_testing.sim_source import SimSource

__all__ = ["MUTATIONS", "Mutation"]

Mutation = Callable[[pytest.MonkeyPatch], None]
MUTATIONS: dict[str, Mutation] = {}


def mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__] = function
    return function


def edited(statement: Any, old: str, new: str) -> Any:
    """A statement with one fragment of its text replaced; it must be there."""
    count = 0

    def walk(part: Any) -> Any:
        nonlocal count
        if isinstance(part, Composed):
            return Composed([walk(inner) for inner in part])
        if isinstance(part, SQL) and old in part._obj:
            count += 1
            return SQL(part._obj.replace(old, new))
        return part

    found = walk(statement)
    assert count == 1, f"{old!r} is in {count} places of {statement!r}"
    return found


def edit_method(patch: pytest.MonkeyPatch, owner: type, name: str, old: str, new: str) -> None:
    """Edit the statement that a method composes."""
    plain = getattr(owner, name)

    def changed(self: Any, *arguments: Any, **options: Any) -> Any:
        return edited(plain(self, *arguments, **options), old, new)

    patch.setattr(owner, name, changed)


def edit_template(patch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Edit a statement on the metadata, wherever it is composed."""
    folder = Path(inspect.getfile(Statements)).parent
    assert sum(old in path.read_text() for path in folder.glob("*.py")) == 1, f"{old!r} is not in exactly one module"
    plain = Statements.m

    def changed(self: Statements, text: str, **parts: Any) -> Any:
        return plain(self, text.replace(old, new), **parts)

    patch.setattr(Statements, "m", changed)


def see_states(patch: pytest.MonkeyPatch, **values: Any) -> None:
    """Let transactions see the tables' states with other values than they have."""
    plain = Markers.states

    async def changed(self: Markers, *arguments: Any) -> Any:
        return {name: replace(state, **values) for name, state in (await plain(self, *arguments)).items()}

    patch.setattr(Markers, "states", changed)


@mutation
def no_version_guard_in_upserts(patch: pytest.MonkeyPatch) -> None:
    edit_method(patch, Statements, "_upsert", " WHERE t._warp_version <= excluded._warp_version", "")


@mutation
def no_version_guard_in_deletes(patch: pytest.MonkeyPatch) -> None:
    edit_method(patch, Statements, "_delete", " AND t._warp_version <= k.version", "")


@mutation
def no_tombstones_left(patch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        """Leaves no tombstone."""

    patch.setattr(RowWriter, "_leave_tombstones", nothing)


@mutation
def no_tombstones_obeyed(patch: pytest.MonkeyPatch) -> None:
    see_states(patch, tombstones=False)


@mutation
def no_generation_check(patch: pytest.MonkeyPatch) -> None:
    plain = DataTransaction.write_chunk

    async def changed(self: DataTransaction, chunk: Any, *arguments: Any) -> str:
        state = self._states[chunk.table]
        self._states[chunk.table] = replace(state, tombstone=SMALLEST_VERSION)
        return await plain(self, replace(chunk, generation=state.generation), *arguments)

    patch.setattr(DataTransaction, "write_chunk", changed)
    edit_template(
        patch, "AND claim = %s AND generation = %s AND state = 'claimed' RETURNING",
        "AND claim = %s AND %s::bigint IS NOT NULL RETURNING",
    )  # fmt: skip


@mutation
def no_table_tombstone_check(patch: pytest.MonkeyPatch) -> None:
    see_states(patch, tombstone=SMALLEST_VERSION)


@mutation
def no_table_lock(patch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()
    patch.setattr(PostgreSQLTarget, "table_lock", lambda self, table: next(numbers))


@mutation
def no_claim_check(patch: pytest.MonkeyPatch) -> None:
    edit_template(
        patch, "AND claim = %s AND generation = %s AND state = 'claimed' RETURNING",
        "AND %s::uuid IS NOT NULL AND generation = %s RETURNING",
    )  # fmt: skip


@mutation
def no_fence(patch: pytest.MonkeyPatch) -> None:
    edit_template(
        patch, "AND epoch = %s AND instance = %s FOR SHARE", "AND (%s::bigint, %s::uuid) IS NOT NULL FOR SHARE"
    )


@mutation
def no_compare_and_set_of_the_marker(patch: pytest.MonkeyPatch) -> None:
    edit_template(patch, "kind = 'stream' AND seq = %s", "kind = 'stream' AND %s::bigint IS NOT NULL")


@mutation
def no_encoding_again(patch: pytest.MonkeyPatch) -> None:
    plain = DataTransaction._current

    async def changed(self: DataTransaction, table: Any) -> Any:
        prepared = table.prepared
        if prepared is not None and prepared.version > 0 and not prepared.observed.fields:
            return prepared  # it brings nothing new
        return await plain(self, table)

    patch.setattr(DataTransaction, "_current", changed)


@mutation
def chunk_older_than_its_stamp(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimSource, "honest", False, raising=False)


@mutation
def sweep_begins_too_late(patch: pytest.MonkeyPatch) -> None:
    """Removes what the copy has just seen."""
    _shift_start(patch, 50)


@mutation
def sweep_begins_too_early(patch: pytest.MonkeyPatch) -> None:
    """Leaves what was deleted in a gap."""
    _shift_start(patch, -1000)


def _shift_start(patch: pytest.MonkeyPatch, by: int) -> None:
    plain = Markers.begin_snapshot

    async def changed(self: Markers, c: Any, table: str, bounds: Any, start: int, *arguments: Any) -> None:
        await plain(self, c, table, bounds, start + by, *arguments)

    patch.setattr(Markers, "begin_snapshot", changed)


@mutation
def no_rows_removed_by_a_barrier(patch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> int:
        return 0

    patch.setattr(RowWriter, "void", nothing)


@mutation
def no_version_offset(patch: pytest.MonkeyPatch) -> None:
    edit_template(patch, "version_offset = greatest(version_offset::numeric,", "version_offset = least(0,")


@mutation
def no_dead_letter_superseded(patch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        """Settles no dead letter."""

    patch.setattr(RowWriter, "_supersede", nothing)


@mutation
def no_old_dead_letter_settled_by_a_sweep(patch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        """Settles no dead letter."""

    patch.setattr(Markers, "supersede", nothing)


@mutation
def no_look_for_chunks_before_a_sweep(patch: pytest.MonkeyPatch) -> None:
    see_states(patch, open_chunks=False)
    edit_template(
        patch, "AND NOT EXISTS (SELECT FROM {m}.snapshot_chunks c", "OR NOT EXISTS (SELECT FROM {m}.snapshot_chunks c"
    )


@mutation
def no_chunk_without_reader_is_opened(patch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        """Opens no chunk."""

    patch.setattr(Markers, "release_chunks", nothing)


@mutation
def no_void_at_equal_time(patch: pytest.MonkeyPatch) -> None:
    """A chunk at the very time of a barrier counts as older than it."""
    plain = Markers.states

    async def changed(self: Markers, *arguments: Any) -> Any:
        found = await plain(self, *arguments)
        return {name: replace(state, tombstone=state.tombstone + 1) for name, state in found.items()}

    patch.setattr(Markers, "states", changed)


@mutation
def no_copy_of_an_unknown_name(patch: pytest.MonkeyPatch) -> None:
    plain = Session._tables

    async def changed(self: Session, batch: Any) -> Any:
        known = await self.target.tables()
        return [name for name in await plain(self, batch) if batch.barrier is None or name in known]

    async def nothing(*_: Any, **__: Any) -> None:
        """Registers no table."""

    patch.setattr(Session, "_tables", changed)
    patch.setattr(DataTransaction, "register", nothing)


@mutation
def no_copy_after_resharding(patch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        """Leaves the table as it is."""

    patch.setattr(DataTransaction, "_copy_again", nothing)
