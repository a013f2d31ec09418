"""Random histories, and short chosen ones, against the real destination: rows end equal to documents."""

from __future__ import annotations

import os

import pytest

from warp_testing.model import History
from warp_testing.scenarios import SCENARIOS, Bench

HISTORIES = int(os.environ.get("WARP_MODEL_HISTORIES", "200"))
FIRST = int(os.environ.get("WARP_MODEL_SEED", "1"))
PARTS = 20


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
async def test_rows_end_equal_to_documents(postgres, part):
    """After any history of writes, barriers, kills, freezes, take-overs, lost positions and lost answers, in any
    interleaving with stream and snapshot, every row equals its document and nothing else is there."""
    for seed in range(FIRST + part, FIRST + HISTORIES, PARTS):
        await History(seed, postgres).run()


@pytest.mark.parametrize("deletion", ["hard", "soft"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_scenario(postgres, name, deletion):
    """Each chosen interleaving ends with the right rows; its own docstring says what it is about."""
    bench = await Bench(postgres, deletion_strategy=deletion).open()
    try:
        await SCENARIOS[name](bench)
    finally:
        await bench.close()
