"""Collections of a folder: one *.json for each, one document in Extended JSON a line. Only whether they arrive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bson import json_util
from stage import Stage, until

__all__ = ["samples"]

SCHEMA = "bench_data"


def samples(stage: Stage, folder: Path) -> list[dict[str, Any]]:
    """Load every collection, copy them, and compare each with its table."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise RuntimeError(f"{folder} has no *.json")
    with stage.source.client() as client:
        for path in paths:
            lines = path.read_text(encoding="utf-8").splitlines()
            client[SCHEMA][path.stem].insert_many([json_util.loads(line) for line in lines if line.strip()])
    with stage.database("data") as destination:
        with stage.worker(destination, SCHEMA) as worker:
            until(lambda: destination.complete(SCHEMA), worker)
        return [
            {"collection": found.table, "documents": found.documents, "rows": found.rows, "equal": found.equal}
            for found in stage.compare(destination, SCHEMA)
        ]
