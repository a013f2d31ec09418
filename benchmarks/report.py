"""The figures as a table."""

from __future__ import annotations

from typing import Any

__all__ = ["show"]

Row = tuple[str, str, str]


def show(result: dict[str, Any]) -> None:
    """Print all figures, with the aim beside those that have one."""
    on = result["machine"]
    print(
        f"{result['rows']:,} documents of {result['document_bytes']} bytes; source {result['source']}, "
        f"an oplog of {result['oplog_entries']:,} entries at most; "
        f"{on['cpus']} CPUs ({on['cpu']}), Python {on['python']}, load before the run {on['load']:.1f}"
    )
    rows = [*_copy(result["copy"]), *_stream(result["stream"]), *_memory(result)]
    for each in result.get("data", []):
        rows.append(
            (f"{each['collection']}: {each['documents']} documents", "", "equal" if each["equal"] else "DIFFER")
        )
    if result["quick"]:  # so few documents measure nothing
        rows = [(name, value, aim.replace("MISSED", "      ").replace("met   ", "      ")) for name, value, aim in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, value, aim in rows:
        print(f"{name:<{widths[0]}}  {value:>{widths[1]}}  {aim}".rstrip())
    print(f"{result['seconds']:.0f} s in all, load afterwards {result['load_after']:.1f}")


def _aim(text: str, met: bool) -> str:
    return f"{'met   ' if met else 'MISSED'} {text}"


def _cpu(used: dict[str, float]) -> str:
    return ", ".join(f"{part} {value:.1f}" for part, value in used.items())


def _copy(copy: dict[str, Any]) -> list[Row]:
    whole = _aim(f"{copy['ratio']:.1%} of COPY (aim 20 %)", copy["ratio"] >= 0.2)
    rows = [
        ("COPY BINARY, primary key in place", f"{copy['copy_rate']:,.0f} rows/s", ""),
        ("copy, from process start", f"{copy['rate']:,.0f} rows/s", whole),
    ]
    if (steady := copy["rate_from_first_row"]) is not None:
        ratio = copy["ratio_from_first_row"]
        rows.append(("copy, from first row", f"{steady:,.0f} rows/s", f"       {ratio:.1%} of COPY"))
    rows.append(("copy, CPU µs a row", _cpu(copy["cpu_us"]), ""))
    rows.append(("start to first row", f"{copy['start_to_first_row']:.2f} s", ""))
    rows.append(("start to first row, CPU s", _cpu(copy["start_cpu"]), ""))
    return rows


def _stream(stream: dict[str, Any]) -> list[Row]:
    rows: list[Row] = []
    for kind, found in stream["backlog"].items():
        rows.append((f"backlog, {kind}, from process start", f"{found['rate']:,.0f} changes/s", ""))
        if (steady := found["rate_from_first_commit"]) is not None:
            aim = _aim("(aim 10,000)", steady >= 10_000)
            rows.append((f"backlog, {kind}, from first commit", f"{steady:,.0f} changes/s", aim))
            rows.append((f"backlog, {kind}, CPU µs a change", _cpu(found["cpu_us"]), ""))
    for kind, found in stream["live"].items():
        wrote = f"writer {found['writer_rate']:,.0f}/s, {found['behind']:.2f} s behind at the end"
        rows.append((f"full speed, {kind}", f"{found['rate']:,.0f} changes/s", f"       {wrote}"))
        rows.append((f"full speed, {kind}, CPU µs a change", _cpu(found["cpu_us"]), ""))
    for rate, found in stream["latency"].items():
        tail = f"p99 {found['p99_ms']:.0f}, max {found['max_ms']:.0f} ms at {found['changes_per_second']:,.0f}/s"
        aim = _aim(f"(aim 150 ms); {tail}", found["p50_ms"] < 150)
        rows.append((f"visible after, at {rate} changes/s: p50", f"{found['p50_ms']:.0f} ms", aim))
    equal = "yes" if not stream["differing"] else f"NO, {stream['differing']} collections differ"
    rows.append(("source and destination equal at the end", equal, ""))
    return rows


def _memory(result: dict[str, Any]) -> list[Row]:
    peaks = [
        ("copy, 200-byte documents", result["copy"]["peak_mb"]),
        ("stream, 200-byte documents", result["stream"]["peak_mb"]),
        ("copy, 1 MB documents", result["large"]["peak_mb_copy"]),
        ("copy and stream, 1 MB documents", result["large"]["peak_mb"]),
    ]
    rows: list[Row] = [("idle memory", f"{result['stream']['idle_mb']:.0f} MB", "")]
    for name, peak in peaks:
        rows.append((f"peak memory: {name}", f"{peak:.0f} MB", _aim("(aim 200 MB)", peak < 200)))
    return rows
