"""The figures of cartridge-warp on this machine: `make bench`, `make bench ARGS="--rows 20000 --json out.json"`.

Everything runs here: a MongoDB-protocol server, PostgreSQL, a writer, and the worker as its users start it.
WARP_BENCH_MONGODB_SERVER names another server's program in the place of SecantusDB's.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import bson
import documents
from copying import Baseline, snapshot
from pymongo.errors import PyMongoError
from report import show
from samples import samples
from stage import Stage, machine, peak_mb, until
from streaming import Streams
from writer import Writer

SCHEMA = "bench"
LARGE_SCHEMA = "bench_large"


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description="Measure cartridge-warp on this machine.")
    parser.add_argument("--rows", type=int, default=200_000, help="documents of 200 bytes (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="copies and COPYs, in turn (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few documents: only shows that everything works")
    parser.add_argument(
        "--oplog-entries", type=int, default=5_000_000, metavar="N", help="what the source keeps (default: %(default)s)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="also copy each *.json of this folder, and compare")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    given = parser.parse_args()
    if given.quick:
        given.rows, given.repeat = min(given.rows, 2000), 1
    if given.rows < 100 or given.repeat < 1:
        parser.error("--rows must be at least 100, and --repeat at least 1")
    if given.oplog_entries < given.rows:
        parser.error("--oplog-entries must be at least --rows: a backlog would be lost before it is read")
    return given


def copies(stage: Stage, rows: int, repeat: int) -> dict[str, Any]:
    """COPY and worker in turn."""
    figures: list[dict[str, Any]] = []
    rates: list[float] = []
    baseline: Baseline | None = None
    for turn in range(repeat):
        figure, plan = snapshot(stage, SCHEMA, f"copy_{turn}", rows)
        figures.append(figure)
        baseline = baseline or Baseline(plan, rows)
        rates.append(baseline.rate(stage, SCHEMA, f"baseline_{turn}"))
    return {"runs": figures, "copy_rates": rates, **middle(figures, rates)}


def middle(figures: list[dict[str, Any]], rates: list[float]) -> dict[str, Any]:
    """The medians, and their ratios to the COPY's."""
    copy = statistics.median(rates)
    rate = statistics.median(figure["rate"] for figure in figures)
    # A collection of one page has no rate behind its first row.
    later = [figure["rate_from_first_row"] for figure in figures if figure["rate_from_first_row"]]
    steady = statistics.median(later) if later else None
    return {
        "copy_rate": copy,
        "rate": rate,
        "ratio": rate / copy,
        "rate_from_first_row": steady,
        "ratio_from_first_row": steady / copy if steady else None,
        "start_to_first_row": statistics.median(figure["start_to_first_row"] for figure in figures),
        "start_cpu": {
            part: statistics.median(figure["start_cpu"][part] for figure in figures) for part in figures[0]["start_cpu"]
        },
        "peak_mb": max(figure["peak_mb"] for figure in figures),
        "cpu_us": {
            part: statistics.median(figure["cpu_us"][part] for figure in figures) for part in figures[0]["cpu_us"]
        },
    }


def changes(stage: Stage, writer: Writer, rows: int, *, quick: bool) -> dict[str, Any]:
    """Backlogs, full speed, latency, and the comparison of both ends after all of it."""
    count, seconds = rows // 4, 0.3 if quick else 10.0
    kinds = documents.KINDS[-1:] if quick else documents.KINDS
    result: dict[str, Any] = {"backlog": {}, "live": {}, "latency": {}}
    with stage.database("stream") as destination:
        with stage.worker(destination, SCHEMA) as worker:
            until(lambda: destination.complete(SCHEMA), worker)
            worker.stop_signal()
            worker.wait()
        streams = Streams(stage, writer, destination, SCHEMA, rows)
        for kind in kinds:
            result["backlog"][kind] = streams.backlog(kind, count)
        with stage.worker(destination, SCHEMA) as worker:
            until(lambda: worker.said("metrics and health"), worker)
            result["idle_mb"] = streams.idle(worker, 0.3 if quick else 5.0)
            for rate in (100, 1000):
                result["latency"][str(rate)] = streams.latency(worker, rate, seconds)
            for kind in kinds:
                result["live"][kind] = streams.live(worker, kind, count)
            streams.end(worker)
        result["peak_mb"] = streams.peak_mb
        result["differing"] = sum(0 if table.equal else 1 for table in stage.compare(destination, SCHEMA))
    return result


def large(stage: Stage, writer: Writer, rows: int) -> dict[str, Any]:
    """Memory with documents of 1 MB: a copy, then as many inserts and updates again."""
    writer.do("load_large", LARGE_SCHEMA, rows=rows)
    with stage.database("large") as destination, stage.worker(destination, LARGE_SCHEMA) as worker:
        until(lambda: destination.complete(LARGE_SCHEMA), worker)
        copied = peak_mb(worker)
        writer.do("change_large", LARGE_SCHEMA, rows=rows, turn=0)
        until(lambda: destination.has_row(LARGE_SCHEMA, documents.key(documents.LAST)), worker, seconds=600)
        return {"documents": rows, "peak_mb_copy": copied, "peak_mb": peak_mb(worker)}


def measure(given: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything, in one run."""
    with Stage(given.oplog_entries) as stage, Writer(stage.source.uri) as writer:
        result: dict[str, Any] = {"rows": given.rows, "source": stage.software, "machine": machine()}
        result |= {"quick": given.quick, "oplog_entries": given.oplog_entries}
        result["document_bytes"] = len(bson.encode(documents.small(0)))
        say(f"loading {given.rows} documents")
        writer.do("load", SCHEMA, rows=given.rows)
        say("copying, in turn with PostgreSQL's COPY")
        result["copy"] = copies(stage, given.rows, given.repeat)
        say("streaming")
        result["stream"] = changes(stage, writer, given.rows, quick=given.quick)
        say("documents of 1 MB")
        result["large"] = large(stage, writer, 4 if given.quick else 300)
        if given.data is not None:
            say(f"the collections of {given.data}")
            result["data"] = samples(stage, given.data)
        return result


def main() -> int:
    """Measure, show, and fail when source and destination differ afterwards."""
    given = arguments()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by default nothing would end what was started

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    try:
        result = measure(given, say)
    except (RuntimeError, TimeoutError, OSError, PyMongoError) as error:
        print(f"error: the benchmark did not finish: {error}", file=sys.stderr)
        return 1
    result |= {"seconds": time.monotonic() - began, "load_after": os.getloadavg()[0]}
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result)
    return int(bool(result["stream"]["differing"] or any(not each["equal"] for each in result.get("data", []))))


if __name__ == "__main__":
    sys.exit(main())
