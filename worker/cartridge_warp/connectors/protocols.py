"""The full level of a connector: what exactly-once needs.

A source that offers `unit()` (a `SourceUnit`: change batches and resumable chunks); a destination that offers
`target()` (a `Target`: rows, structure and position in one transaction).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from cartridge_warp.config import UnitSettings
from cartridge_warp.kernel.plan import TablePlan
from cartridge_warp.observe.events import Observer
from cartridge_warp.records import (
    SMALLEST_VERSION,
    Barrier,
    Batch,
    BatchMarker,
    Bounds,
    ChunkPage,
    Collection,
    Marker,
    Observed,
    Position,
    SourceIdentity,
    Stamp,
    TableBatch,
)

__all__ = [
    "BatchSource",
    "Chunk",
    "ChunkSource",
    "MetadataStore",
    "PlanChange",
    "SourceUnit",
    "TableState",
    "Target",
    "Transaction",
    "TransactionalDestination",
    "UnitSource",
    "Written",
]


class ChunkSource(Protocol):
    """Copies collections in resumable ranges of keys, while the change stream runs beside it."""

    async def now(self) -> Stamp:
        """The source's present moment as a position to stream from: every later change comes after it."""

    async def moment(self) -> Stamp:
        """The source's present moment for a read: `read_chunk` with it sees every change up to it."""

    async def collections(self) -> list[Collection]:
        """What exists now and passes the filters; those with a `reason` cannot be mirrored."""

    async def key_sample(self, table: str) -> list[Any]:
        """The first and the last key of a table in the source's own order of types; empty when it is empty."""

    async def plan_chunks(self, table: str, parts: int) -> list[Bounds]:
        """Ranges that cover every possible key: the first has no lower, the last no upper end."""

    async def read_chunk(self, table: str, bounds: Bounds, stamp: Stamp, rows: int, max_bytes: int) -> ChunkPage:
        """The first documents of a range, in key order, as of `stamp` or later. At least one document when
        the range is not empty, then up to `rows` documents or `max_bytes`, whichever is first."""


class BatchSource(Protocol):
    """Delivers changes in batches that carry their position. `observer`, when set, hears what an operator
    should read."""

    observer: Observer | None

    async def preflight(self) -> list[str]:
        """Check everything that would fail later. Raises `SourceRefused` or `Unavailable` with one sentence
        that says what to do; returns warnings."""

    async def identity(self) -> SourceIdentity:
        """Which source this is."""

    def batches(self, marker: Marker) -> AsyncGenerator[Batch, None]:
        """Endless batches after the marker's position, with versions in the source's own order (no offset).

        Ends a batch when a table reaches its threshold, at the byte bound, at a barrier, or as soon as
        nothing more is ready; never inside a source transaction that fits the bounds. While the source is
        quiet an empty batch about once a second says so, with the present position. Raises `PositionLost`,
        `Unavailable` or `SourceRefused`; nothing is retried inside."""

    async def complete(self, batch: Batch) -> None:
        """Turn each FETCH of a compacted batch into UPSERT with the present document, or DELETE when it is
        gone; drop changes whose collection has been replaced."""

    def passed(self, position: Position, stamp: Stamp) -> bool:
        """True when a stream at `position` has delivered every change up to `stamp`."""

    async def headroom_seconds(self, marker: Marker) -> float | None:
        """How far the oldest retained change lies before the marker's position; None when unknown."""


class SourceUnit(BatchSource, ChunkSource, Protocol):
    """One schema of a source."""

    async def close(self) -> None:
        """Release everything; safe to call twice."""


@runtime_checkable
class UnitSource(Protocol):
    """A source connector of the full level."""

    def unit(self, settings: UnitSettings) -> SourceUnit:
        """The unit of replication that `settings` describes. The connector is connected already."""


# -- the full level: destinations --------------------------------------------------------------------------


@dataclass(frozen=True)
class TableState:
    """What the metadata says of one collection. `plan` is its current structure, None before the first
    document; the last three say whether such entries exist now."""

    collection: str
    state: str
    generation: int = 1
    tombstone: int = SMALLEST_VERSION
    start_version: int | None = None
    sweep: bool = False
    rows_done: int = 0
    rows_estimated: int = 0
    reason: str = ""
    plan: TablePlan | None = None
    open_chunks: bool = False
    tombstones: bool = False
    dead_letters: bool = False


@dataclass(frozen=True)
class Chunk:
    """A claimed range of a table's snapshot."""

    id: int
    table: str
    generation: int
    bounds: Bounds
    claim: str


@dataclass(frozen=True)
class PlanChange:
    """A new version of a table's plan and what leads to it: add_table, add_column, soft_delete."""

    plan: TablePlan
    change: str
    columns: tuple[str, ...] = ()


@dataclass
class Written:
    """What a transaction did: rows by table and operation, writes that the version guard refused, dead letters
    by table and class, misfits by table and field, and the documents whose kind of key needs another key."""

    operations: dict[str, dict[str, int]] = field(default_factory=dict)
    refused: int = 0
    dead: dict[tuple[str, str], int] = field(default_factory=dict)
    misfits: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    rekey: set[str] = field(default_factory=set)
    registered: set[str] = field(default_factory=set)
    blocked: set[str] = field(default_factory=set)
    changes: list[PlanChange] = field(default_factory=list)


class Transaction(Protocol):
    """One destination transaction. The fence is checked and the tables are locked before it is handed out."""

    written: Written

    @property
    def states(self) -> Mapping[str, TableState]:
        """The locked tables, as they are under the lock."""

    async def relations(self) -> set[str]:
        """Names of the destination tables that belong to some collection already."""

    async def observe(self, batch: Batch) -> dict[str, Observed]:
        """What the documents show that the current plans lack; encodes again where a plan has moved."""

    async def evolve(self, changes: Sequence[PlanChange]) -> None:
        """Apply structure changes. A blocked one is left out and named in `written.blocked`."""

    async def register(self, table: str, *, snapshot: bool, uuid: str | None = None, reason: str = "") -> None:
        """Note a collection that is not known yet; with `snapshot` its whole range waits to be copied."""

    async def write(self, batch: Batch, *, careful: bool = False) -> None:
        """Write the prepared rows. With `careful` a row that is refused goes to the dead letters, else the
        error is raised as RowError and nothing of the transaction stands."""

    async def void(self, barrier: Barrier, version: int) -> None:
        """Apply a barrier: remove rows up to `version`, cancel chunks, raise generations."""

    async def save_marker(self, marker: BatchMarker, version: int) -> None:
        """Compare-and-set of the position. Raises MarkerMoved."""

    async def write_chunk(self, chunk: Chunk, batch: TableBatch, stamp: int, rest: Bounds | None, size: int) -> str:
        """Write a chunk's page and close it; with `rest` the remainder is open under a new claim, which is
        returned ('' without). Raises ChunkVoid when the claim or the generation has gone."""


class MetadataStore(Protocol):
    """What the worker keeps beside the rows; every write is fenced."""

    async def marker(self) -> Marker | None:
        """The stream's position."""

    async def create_marker(self, stamp: Stamp) -> Marker:
        """Store the first position."""

    async def restart_marker(self, stamp: Stamp, reason: str) -> Marker:
        """The position is lost: go on from `stamp`, every table stale, versions above all old ones."""

    async def tables(self) -> dict[str, TableState]:
        """Every collection that is known."""

    async def set_state(self, table: str, state: str, reason: str) -> None:
        """Set a table's state."""

    async def begin_snapshot(
        self, table: str, bounds: Sequence[Bounds], stamp: Stamp, collection: Collection | None, reason: str
    ) -> None:
        """A new generation with these chunks."""

    async def claim_chunk(self, table: str) -> Chunk | None:
        """Claim the next open chunk of a table."""

    async def sweep(self, table: str) -> int:
        """Remove what a finished snapshot did not see; returns how many rows."""

    async def complete_table(self, table: str, generation: int) -> bool:
        """Mark a table as complete when no chunk of it is left."""

    async def log_error(self, table: str, code: str, message: str) -> None:
        """Keep an error for people."""


class Target(MetadataStore, Protocol):
    """One unit's destination schema."""

    async def open(self, identity: SourceIdentity, *, take_over: bool = False) -> None:
        """Migrate the metadata, claim the target, take a new epoch. Raises TargetBusy, TargetOwned,
        SourceChanged, DestinationRefused, Unavailable."""

    async def resume(self) -> None:
        """After an error: forget everything cached, make sure that the epoch is still ours (else Fenced)."""

    async def heartbeat(self, state: str, detail: str = "", lag_seconds: float | None = None) -> None:
        """A sign of life. Raises Fenced when another worker has taken over."""

    async def prepare(self, batch: Batch) -> dict[str, Observed]:
        """Encode ahead, against the plans known now; returns what those plans lack."""

    def plan(self, table: str) -> TablePlan | None:
        """A table's structure as far as this worker has seen it; the truth is `Transaction.states`."""

    def transaction(self, tables: Sequence[str], *, shared: bool = False) -> AbstractAsyncContextManager[Transaction]:
        """One data transaction on these tables: fence, then locks in order. `shared` is for chunks."""

    def connections(self) -> tuple[int, int]:
        """How many connections the destination has open, and how many of them are in use."""

    async def rekey(self, table: str) -> int:
        """Move a table to `_warp_key`, where documents wait for that, and write them; returns how many."""

    async def close(self, state: str, detail: str = "") -> None:
        """Release the target; safe to call twice."""


@runtime_checkable
class TransactionalDestination(Protocol):
    """A destination connector of the full level."""

    def target(self, settings: UnitSettings) -> Target:
        """The destination schema of a unit. The connector is connected already."""
