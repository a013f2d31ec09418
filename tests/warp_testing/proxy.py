"""A TCP proxy in front of a server: breaks connections, holds data back, edits MongoDB replies."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import bson
from bson.codec_options import CodecOptions, DatetimeConversion

OP_MSG = 2013
OP_REPLY = 1  # the answer to a driver's very first hello
OP_REPLY_START = 36
HEADER = struct.Struct("<iiii")
OPTIONS = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)

Hook = Callable[[str, dict[str, Any], dict[str, Any]], dict[str, Any] | None]
"""Called with a command's name, its document and the reply; returns the reply to send, None for unchanged."""


class Proxy:
    """Listens on loopback in a thread of its own and forwards to `port`.

    `cut()` breaks every connection, `pause()` holds all data back until `resume()`, `refuse()` also turns
    new connections away until `accept()`. With `hook` the traffic must be MongoDB's: each reply can be edited, and
    the server's address in `hello` is replaced by the proxy's, so that drivers do not go round it. `commands`
    collects the name and document of each command that came through, when `hook` is set.
    """

    def __init__(self, port: int, *, host: str = "127.0.0.1", hook: Hook | None = None) -> None:
        self.target = (host, port)
        self.hook = hook
        self.port = 0
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self._edits = hook is not None
        self._writers: set[asyncio.StreamWriter] = set()
        self._refusing = False
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="proxy")
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def mongo_uri(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/"

    def cut(self) -> None:
        """Break every connection that is open now."""
        self._do(self._cut())

    def pause(self) -> None:
        """Hold all data back, both ways."""
        self._do(self._set(flowing=False))

    def resume(self) -> None:
        """Let the data flow again."""
        self._do(self._set(flowing=True))

    def refuse(self) -> None:
        """Break every connection and turn new ones away."""
        self._refusing = True
        self.cut()

    def accept(self) -> None:
        """Take connections again."""
        self._refusing = False

    def close(self) -> None:
        """Stop for good."""
        self.refuse()
        self._server.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _set(self, *, flowing: bool) -> None:
        if flowing:
            self._flowing.set()
        else:
            self._flowing.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        pending: dict[int, tuple[str, dict[str, Any]]] = {}
        there, back = (self._requests, self._replies) if self._edits else (self._bytes, self._bytes)
        ways = [
            asyncio.create_task(there(reader, far_writer, pending)),
            asyncio.create_task(back(far_reader, writer, pending)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for each in (writer, far_writer):
            each.transport.abort()
            self._writers.discard(each)
        await asyncio.gather(*ways, return_exceptions=True)

    async def _bytes(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: Any) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pending: Any) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                message = await _read_message(reader)
                _, request, _, code = HEADER.unpack_from(message)
                if code == OP_MSG:
                    body = _body(message)
                    pending[request] = (next(iter(body)), body)
                    self.commands.append(pending[request])
                await self._flowing.wait()
                writer.write(message)
                await writer.drain()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pending: Any) -> None:
        last: tuple[str, dict[str, Any]] = ("", {})
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                message = await _read_message(reader)
                _, request, answers, code = HEADER.unpack_from(message)
                if code == OP_MSG:
                    last = pending.pop(answers, last)  # a streamed hello goes on answering the reply before
                    message = self._edit(message, request, answers, *last)
                elif code == OP_REPLY:
                    reply = _redirected(bson.decode(message[OP_REPLY_START:], OPTIONS), self.port)
                    message = message[:OP_REPLY_START] + bson.encode(reply, False, OPTIONS)
                    message = HEADER.pack(len(message), request, answers, OP_REPLY) + message[HEADER.size :]
                await self._flowing.wait()
                writer.write(message)
                await writer.drain()

    def _edit(self, message: bytes, request: int, answers: int, name: str, command: dict[str, Any]) -> bytes:
        reply = _body(message)
        edited = _redirected(reply, self.port) if name.lower() in ("hello", "ismaster") else None
        if self.hook is not None and (own := self.hook(name, command, edited or reply)) is not None:
            edited = own
        if edited is None:
            return message
        flags = struct.unpack_from("<I", message, HEADER.size)[0] & ~1  # no checksum any more
        content = struct.pack("<IB", flags, 0) + bson.encode(edited, False, OPTIONS)
        return HEADER.pack(HEADER.size + len(content), request, answers, OP_MSG) + content


def failure(code: int, message: str, *labels: str) -> dict[str, Any]:
    """The reply of a server that refuses a command."""
    return {
        "ok": 0.0,
        "errmsg": message,
        "code": code,
        "codeName": f"Code{code}",
        "errorLabels": list(labels),
    }


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    start = await reader.readexactly(4)
    return start + await reader.readexactly(struct.unpack("<i", start)[0] - 4)


def _body(message: bytes) -> dict[str, Any]:
    """The one section of kind 0. It comes first, or last behind document sequences (kind 1)."""
    position = HEADER.size + 4
    while message[position] == 1:
        position += 1 + struct.unpack_from("<i", message, position + 1)[0]
    size = struct.unpack_from("<i", message, position + 1)[0]
    return bson.decode(message[position + 1 : position + 1 + size], OPTIONS)


def _redirected(hello: dict[str, Any], port: int) -> dict[str, Any]:
    own = f"127.0.0.1:{port}"
    return hello | {name: [own] if name == "hosts" else own for name in ("hosts", "me", "primary") if name in hello}
