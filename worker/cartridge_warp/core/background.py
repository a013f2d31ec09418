"""What runs beside a session's stream: heartbeat and lag, and moving tables to the hashed key."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cartridge_warp.errors import LockTimeout
from cartridge_warp.observe.events import Lag, Pool, Queue, SchemaChanged

if TYPE_CHECKING:
    from cartridge_warp.core.session import Session

__all__ = ["beat", "calibrate", "rekey"]

HEARTBEAT = 5.0  # seconds; a worker counts as dead after 20
SLOW_BEAT = 10  # every so many beats the source is asked for its clock
OPLOG_BEAT = 60  # and for its oldest change, which not every server finds at once
UNHEARD = 10.0  # seconds of silence after which the lag is at least that silence
SILENT = 30.0  # seconds of silence after which no lag is claimed any more: listeners see that nothing moves


async def beat(session: Session) -> None:
    """Heartbeat and lag until cancelled. A heartbeat also notices a take-over while nothing is written."""
    beats = 0
    headroom: float | None = None  # told with every beat, or the metric would come and go
    while True:
        if beats % SLOW_BEAT == 0:
            await calibrate(session)
        if beats % OPLOG_BEAT == 0:
            headroom = await session.source.headroom_seconds(await session.target.marker() or session.marker)
        silence = _update_lag(session)
        state = "streaming" if session.snapshotter.idle.is_set() else "snapshotting"
        session.set_state(state)
        await session.target.heartbeat(state, lag_seconds=session.lag)
        if silence <= SILENT:
            age = time.monotonic() - session.stored_at if session.stored_at else None
            session.emit(
                Lag, lag_seconds=session.lag, oplog_headroom_seconds=headroom, token_age_seconds=age
            )  # fmt: skip
        session.emit(Queue, size=session.waiting)
        connections, used = session.target.connections()
        session.emit(Pool, open=connections, used=used)
        beats += 1
        await asyncio.sleep(HEARTBEAT if beats > 1 else 1.0)


def _update_lag(session: Session) -> float:
    """Set the session's lag; returns for how long the source has said nothing at all, in seconds. A quiet
    source says so every second, so silence means that nothing moves."""
    if session.source_time is not None:
        age = datetime.now(UTC) - session.source_time
        session.lag = max(0.0, age.total_seconds() + session.clock_ahead)
    silence = time.monotonic() - session.heard_at
    if silence > UNHEARD:
        session.lag = max(session.lag, silence)
    return silence


async def calibrate(session: Session) -> None:
    """Learn how far the source's clock is ahead of ours."""
    now = await session.source.moment()
    session.clock_ahead = (now.time - datetime.now(UTC)).total_seconds()


async def rekey(session: Session) -> None:
    """Move tables whose keys turned out to be of several types to the hashed key, until cancelled."""
    while True:
        for table in sorted(session.rekeying):
            try:
                replayed = await session.target.rekey(table)
            except LockTimeout as error:
                await session.backoff(error, table)
                continue
            session.rekeying.discard(table)
            if replayed:
                session.emit(SchemaChanged, table=table, change_type="key_type", detail=f"{replayed} replayed")
        await asyncio.sleep(0.2)
