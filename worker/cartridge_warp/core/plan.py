"""What a run would do, in words: `--dry-run` reads and plans, and writes nothing."""

from __future__ import annotations

from cartridge_warp.config import UnitSettings
from cartridge_warp.connectors.protocols import SourceUnit
from cartridge_warp.kernel.bson import native_key_kind
from cartridge_warp.kernel.plan import KeyKind

__all__ = ["plan_lines"]


async def plan_lines(unit: SourceUnit, settings: UnitSettings) -> list[str]:
    """A line for each collection."""
    lines = []
    for collection in await unit.collections():
        name = collection.name
        if collection.reason is not None:
            lines.append(f"would leave out {name}: {collection.reason}")
            continue
        kinds = {native_key_kind(key) for key in await unit.key_sample(name)}
        key = "_warp_key" if len(kinds) > 1 or KeyKind.hash in kinds else "_id"
        copy = f"about {collection.rows} documents, {collection.bytes} bytes"
        if not settings.table(name).full_load_enabled:
            copy = "no documents (full load is switched off)"
        lines.append(f"would copy {copy} of {name} into {settings.target}, key {key}, and follow its changes")
    return lines
