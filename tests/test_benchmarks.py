"""The benchmark itself, with a few documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent.parent / "benchmarks" / "run.py"


@pytest.mark.slow
def test_a_quick_run_measures_everything_and_leaves_nothing(tmp_path):
    """Every figure is there, source and destination are equal afterwards, and the servers' folders are gone."""
    data, figures, temporary = tmp_path / "data", tmp_path / "figures.json", tmp_path / "tmp"
    data.mkdir()
    temporary.mkdir()
    (data / "things.json").write_text('{"_id": {"$oid": "665f1f77bcf86cd799439011"}, "n": 1}\n{"_id": 2, "n": "x"}\n')
    done = subprocess.run(
        [sys.executable, RUN, "--quick", "--rows", "400", "--data", data, "--json", figures],
        env=os.environ | {"TMPDIR": str(temporary)}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert found["copy"]["ratio"] > 0
    assert found["copy"]["runs"][0]["rows"] == 400
    assert found["stream"]["backlog"]["mix"]["changes"] == found["stream"]["live"]["mix"]["changes"] == 100
    assert found["stream"]["latency"].keys() == {"100", "1000"}
    assert found["stream"]["differing"] == 0
    assert found["large"]["peak_mb"] >= found["large"]["peak_mb_copy"] > 0
    assert found["data"] == [{"collection": "things", "documents": 2, "rows": 2, "equal": True}]
    assert "full speed, mix" in done.stdout
    assert [path for path in temporary.iterdir() if path.name.startswith("warp-")] == []
