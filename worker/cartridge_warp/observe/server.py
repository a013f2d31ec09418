"""A small strict HTTP/1.1 server for a handful of GET pages, on the event loop that it reports on."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

from cartridge_warp.errors import ConfigError
from cartridge_warp.observe.health import Health
from cartridge_warp.observe.prometheus import Metrics

__all__ = ["Page", "Response", "pages", "serve"]

_TEXT = "text/plain; charset=utf-8"
_LARGEST_HEAD = 8192
_TIMEOUT = 5.0
_MOST_CONNECTIONS = 64


@dataclass(frozen=True)
class Response:
    """What is sent back; the connection is closed after it."""

    status: int = 200
    body: bytes = b""
    content_type: str = _TEXT
    headers: Mapping[str, str] = field(default_factory=dict)


Page = Callable[[Mapping[str, str]], Response]
"""Makes a response of the request's headers (lower-case names)."""


def pages(
    health: Health | None = None, metrics: Metrics | None = None, metrics_path: str = "/metrics"
) -> dict[str, Page]:
    """The pages of a worker; those of None are left out."""
    found: dict[str, Page] = {}
    if health is not None:
        # That this answers at all shows that the event loop is not stuck.
        found["/healthz"] = lambda headers: Response(body=b"ok\n")
        found["/readyz"] = lambda headers: _verdict(health.unready(), ["ready", *health.states()])
        found["/startupz"] = lambda headers: _verdict(health.unstarted(), ["started"])
    if metrics is not None:
        found[metrics_path] = lambda headers: Response(200, *metrics.render(headers.get("accept", "")))
    return found


def _verdict(reasons: list[str], well: list[str]) -> Response:
    status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
    return Response(status, "".join(f"{line}\n" for line in reasons or well).encode())


@asynccontextmanager
async def serve(host: str, port: int, found: Mapping[str, Page]) -> AsyncIterator[int]:
    """Serve while the block runs; yields the port, which is a free one when `port` is 0. Raises `ConfigError`
    when the address cannot be used."""
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(connections) >= _MOST_CONNECTIONS:
            writer.transport.abort()
            return
        connections.add(task)
        try:
            await _converse(reader, writer, found)
        finally:
            connections.discard(task)

    try:
        server = await asyncio.start_server(connected, host, port, limit=_LARGEST_HEAD)
    except (OSError, OverflowError) as error:
        raise ConfigError(_unusable(host, port, error)) from error
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()


def _unusable(host: str, port: int, error: Exception) -> str:
    why = "cannot be listened on"
    if isinstance(error, OSError):
        if error.errno == errno.EADDRINUSE:
            why = "is in use by another process"
        elif error.errno in (errno.EACCES, errno.EPERM):
            why = "needs privileges that this process does not have"
    return (
        f"metrics and health: {host}:{port} {why}; choose another with --metrics-port or "
        "monitoring.prometheus.port (0 takes a free one)"
    )


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, found: Mapping[str, Page]) -> None:
    """One request, one response. Whoever is slow or gone is let go."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            head_only, response = await _answer(reader, found)
            writer.write(_encode(response, head_only))
            await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
                # Closing on unread input would reset the connection and may destroy the response on its way.
                await reader.read(_LARGEST_HEAD)
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        writer.transport.abort()
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader, found: Mapping[str, Page]) -> tuple[bool, Response]:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return False, _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    lines = head.decode("latin-1").split("\r\n")[:-2]
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1.") or not words[1].startswith("/"):
        return False, _plain(HTTPStatus.BAD_REQUEST)
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            return False, _plain(HTTPStatus.BAD_REQUEST)
        headers[name.lower()] = value.strip()
    page = found.get(words[1].partition("?")[0])
    if page is None:
        return words[0] == "HEAD", _plain(HTTPStatus.NOT_FOUND)
    if words[0] not in ("GET", "HEAD"):
        return False, _plain(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET, HEAD"})
    return words[0] == "HEAD", page(headers)


def _plain(status: HTTPStatus, headers: Mapping[str, str] | None = None) -> Response:
    return Response(status, f"{status.phrase.lower()}\n".encode(), headers=headers or {})


def _encode(response: Response, head_only: bool) -> bytes:
    headers = {
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.body)),
        "Cache-Control": "no-store",
        "Connection": "close",
        **response.headers,
    }
    lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return head if head_only else head + response.body
