"""Health and the small HTTP server."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from cartridge_warp.errors import ConfigError
from cartridge_warp.observe.events import Committed, Failed, Lag, State
from cartridge_warp.observe.health import STALLED_SECONDS, Health
from cartridge_warp.observe.prometheus import Metrics
from cartridge_warp.observe.server import pages, serve


def state(name, unit="sales", **values):
    return State("shop", unit, state=name, **values)


def failed(attempt, table="*", retry_in=1.0):
    return Failed("shop", "sales", table, "unavailable", "mongodb://u:pw@h is away", attempt, retry_in)


def test_ready_once_every_unit_is_connected():
    """Not ready until each unit that was announced has reported more than `starting`."""
    health = Health(["sales", "stock"])
    assert health.unready() == ["sales is not connected yet", "stock is not connected yet"]
    assert health.unstarted() == ["sales is starting", "stock is starting"]
    health(state("streaming"))
    health(state("snapshotting", "stock"))
    assert health.unready() == []
    assert health.unstarted() == []


def test_not_ready_from_the_third_attempt_without_secrets():
    """Two failures are borne, the third makes the worker unready, a commit makes it ready again."""
    health = Health(["sales"])
    health(state("streaming"))
    for attempt in (1, 2):
        health(failed(attempt))
        assert health.unready() == []
    health(failed(3))
    (reason,) = health.unready()
    assert "attempt 3" in reason
    assert "pw" not in reason
    health(Committed("shop", "sales"))
    assert health.unready() == []


@pytest.mark.parametrize(("name", "ready"), [("failed", False), ("stopped", False), ("paused", True),
                                             ("standby", True), ("done", True)])  # fmt: skip
def test_states_and_readiness(name, ready):
    """A failed or stopped unit is not ready; one that waits on purpose is."""
    health = Health()
    health(state(name, detail="why\nnot"))
    assert (health.unready() == []) is ready
    assert all("\n" not in line for line in health.unready())


def test_a_stopped_table_does_not_make_the_worker_unready():
    """A table that failed for good holds back nothing else; one that is tried in vain counts."""
    health = Health()
    health(state("streaming"))
    health(failed(1, "orders", retry_in=None))
    assert health.unready() == []
    health(failed(3, "orders"))
    assert health.unready()[0].startswith("sales.orders fails")


def test_not_ready_when_nothing_advances():
    """A unit that should advance and is silent is not ready; news of any progress ends that."""
    now = [0.0]
    health = Health(["sales"], clock=lambda: now[0])
    health(state("streaming"))
    now[0] += STALLED_SECONDS + 1
    assert health.unready() == ["sales has not advanced for 121 s"]
    health(Lag("shop", "sales"))
    assert health.unready() == []


def test_started_while_a_server_is_away():
    """An outage at the start is not for the startup probe: a restart would not bring the server back."""
    health = Health(["sales"])
    health(failed(1))
    assert health.unstarted() == []


@asynccontextmanager
async def served(health=None):
    health = health or Health(["sales"])
    async with serve("127.0.0.1", 0, pages(health, Metrics(), "/metrics")) as port:

        async def ask(request: bytes) -> tuple[int, dict[str, str], bytes]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            answer = await asyncio.wait_for(reader.read(), 10)
            writer.close()
            head, _, body = answer.partition(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:])
            return int(lines[0].split()[1]), headers, body

        async def get(path: str, extra: str = "") -> tuple[int, dict[str, str], bytes]:
            return await ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n{extra}\r\n".encode())

        yield ask, get, port


async def test_pages():
    """The four pages answer with what they promise, reasons as text lines."""
    health = Health(["sales"])
    async with served(health) as (_, get, _port):
        assert (await get("/healthz"))[::2] == (200, b"ok\n")
        assert (await get("/startupz"))[::2] == (503, b"sales is starting\n")
        assert (await get("/readyz"))[::2] == (503, b"sales is not connected yet\n")
        health(state("streaming"))
        assert (await get("/startupz"))[::2] == (200, b"started\n")
        assert (await get("/readyz?verbose"))[::2] == (200, b"ready\nsales streaming\n")
        status, headers, body = await get("/metrics", "Accept: text/plain\r\n")
        assert status == 200
        assert headers["content-type"].startswith("text/plain")
        assert int(headers["content-length"]) == len(body)
        assert b"process_resident_memory_bytes" in body


async def test_strictness():
    """What is not a GET of a known page is refused with the fitting status."""
    async with served() as (ask, get, _port):
        assert (await get("/nothing"))[0] == 404
        status, headers, _ = await ask(b"POST /readyz HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")
        assert (status, headers["allow"]) == (405, "get, head")
        status, headers, body = await ask(b"HEAD /healthz HTTP/1.1\r\n\r\n")
        assert (status, headers["content-length"], body) == (200, "3", b"")
        assert (await ask(b"rubbish\r\n\r\n"))[0] == 400
        assert (await ask(b"GET http://x/ HTTP/1.1\r\n\r\n"))[0] == 400
        assert (await ask(b"GET /healthz HTTP/1.1\r\nno colon\r\n\r\n"))[0] == 400
        assert (await get("/healthz", "X: " + "x" * 20000 + "\r\n"))[0] == 431


async def ended(reader):
    """True once the other side has gone without an answer."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


async def test_slow_clients_are_let_go(monkeypatch):
    """A client that never finishes its request neither stays nor keeps others from an answer."""
    monkeypatch.setattr("cartridge_warp.observe.server._TIMEOUT", 0.3)
    async with served() as (_, get, port):
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        slow[0][1].write(b"GET /hea")
        assert (await get("/healthz"))[0] == 200
        for reader, writer in slow:
            assert await asyncio.wait_for(ended(reader), 5)
            writer.close()


async def test_stops_with_open_connections():
    """An idle connection does not hold up the end of the worker."""
    async with asyncio.timeout(3):
        async with served() as (_, _get, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.sleep(0.05)
        writer.close()


async def test_port_in_use_is_one_sentence():
    """A port in use is one sentence with the address and the way out."""
    async with served() as (_, _get, port):
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{port} is in use .*--metrics-port"):
            async with serve("127.0.0.1", port, {}):
                raise AssertionError("must not listen")


async def test_pages_that_are_switched_off():
    """Metrics without health and health without metrics; nothing else is served."""
    assert set(pages(None, Metrics(), "/m")) == {"/m"}
    assert set(pages(Health(), None)) == {"/healthz", "/readyz", "/startupz"}
