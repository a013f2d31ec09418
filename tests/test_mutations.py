"""Every safeguard is needed: with any one of them removed, a chosen interleaving (and the random model) goes wrong."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from warp_testing.model import Broken, History
from warp_testing.mutations import MUTATIONS
from warp_testing.scenarios import SCENARIOS, Bench

pytestmark = [pytest.mark.slow, pytest.mark.mutation]

CAUGHT_BY = {
    "no_version_guard_in_upserts": "chunk_after_newer_update",
    "no_version_guard_in_deletes": "late_delete",
    "no_tombstones_left": "chunk_after_delete",
    "no_tombstones_obeyed": "chunk_after_delete",
    "no_generation_check": "chunk_of_a_dropped_collection",
    "no_table_tombstone_check": "chunk_older_than_a_drop",
    "no_void_at_equal_time": "chunk_at_the_very_time_of_a_rename",
    "no_table_lock": "delete_beside_a_chunk",
    "no_claim_check": "reader_that_was_replaced",
    "no_fence": "worker_that_was_replaced",
    "no_compare_and_set_of_the_marker": "commit_that_a_crash_took_back",
    "no_encoding_again": "batch_encoded_for_an_older_plan",
    "chunk_older_than_its_stamp": "chunk_read_at_its_stamp",
    "sweep_begins_too_late": "delete_in_a_gap",
    "sweep_begins_too_early": "delete_in_a_gap",
    "no_look_for_chunks_before_a_sweep": "sweep_waits_for_every_chunk",
    "no_chunk_without_reader_is_opened": "chunk_that_lost_its_reader",
    "no_version_offset": "source_of_an_earlier_time",
    "no_rows_removed_by_a_barrier": "drop",
    "no_copy_of_an_unknown_name": "rename_to_an_unknown_name",
    "no_copy_after_resharding": "reshard",
    "no_dead_letter_superseded": "delete_of_a_waiting_document",
    "no_old_dead_letter_settled_by_a_sweep": "waiting_document_deleted_in_a_gap",
}
HISTORIES = 40  # as many as the model may need to meet what the removed safeguard is for
ENDLESS = 3.0  # seconds; a scenario of healthy code takes far less than one


def test_every_mutation_has_its_scenario():
    """No safeguard is listed without the interleaving that needs it."""
    assert CAUGHT_BY.keys() == MUTATIONS.keys()
    assert set(CAUGHT_BY.values()) <= SCENARIOS.keys()


@pytest.mark.parametrize("name", MUTATIONS)
async def test_a_removed_safeguard_is_noticed(postgres, monkeypatch, name):
    """Without the safeguard its scenario fails, by wrong rows or because it never comes to its end."""
    MUTATIONS[name](monkeypatch)
    bench = await Bench(postgres).open()
    try:
        with pytest.raises((AssertionError, TimeoutError)):
            await asyncio.wait_for(SCENARIOS[CAUGHT_BY[name]](bench), ENDLESS)
    finally:
        monkeypatch.undo()
        await bench.close()


@pytest.mark.parametrize("name", ["no_table_lock", "chunk_older_than_its_stamp", "sweep_begins_too_late"])
async def test_the_model_notices(postgres, monkeypatch, name):
    """Random histories meet what a removed safeguard is for, without being told where to look."""
    MUTATIONS[name](monkeypatch)
    for seed in range(1, HISTORIES + 1):
        with suppress(Broken):
            await History(seed, postgres).run()
            continue
        return
    pytest.fail(f"{HISTORIES} histories did not notice")
