"""What the core reports. The listeners (prometheus, health, logs, terminal) are wired by the command line."""

from cartridge_warp.observe.events import (
    ChunkCommitted,
    Committed,
    DeadLettered,
    Event,
    Failed,
    Lag,
    Listener,
    Misfit,
    Note,
    Observer,
    Pool,
    Queue,
    SchemaChanged,
    SnapshotDone,
    SnapshotStarted,
    State,
)

__all__ = [
    "ChunkCommitted",
    "Committed",
    "DeadLettered",
    "Event",
    "Failed",
    "Lag",
    "Listener",
    "Misfit",
    "Note",
    "Observer",
    "Pool",
    "Queue",
    "SchemaChanged",
    "SnapshotDone",
    "SnapshotStarted",
    "State",
]
