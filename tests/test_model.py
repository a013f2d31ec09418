"""Random histories against the real destination: whatever happens in between, the rows end equal to the documents."""

from __future__ import annotations

import os

import pytest

from warp_testing.model import History

HISTORIES = int(os.environ.get("WARP_MODEL_HISTORIES", "240"))
FIRST = int(os.environ.get("WARP_MODEL_SEED", "1"))
PARTS = 12


@pytest.mark.parametrize("part", range(PARTS))
async def test_rows_end_equal_to_documents(postgres, part):
    """After any history of writes, barriers, kills, freezes, take-overs, lost positions and lost answers, in any
    interleaving with stream and snapshot, every row equals its document and nothing else is there."""
    for seed in range(FIRST + part, FIRST + HISTORIES, PARTS):
        await History(seed, postgres).run()
