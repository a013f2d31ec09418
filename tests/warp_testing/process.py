"""A real `cartridge-warp run` in a process of its own: started, killed, frozen, asked to stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAM = [sys.executable, "-m", "cartridge_warp.cli.main"]


async def until(what: Callable[[], Any], seconds: float = 40) -> Any:
    """Wait for a condition; returns what it gave. It is asked in a thread: a worker inside the test must go on
    meanwhile, because the question may wait for a lock that the worker holds."""
    deadline = time.monotonic() + seconds
    while not (found := await asyncio.to_thread(what)):
        assert time.monotonic() < deadline, "it did not come"
        await asyncio.sleep(0.05)
    return found


def worker_environment(source: str, destination: str, **settings: object) -> dict[str, str]:
    """The environment of a worker: both URIs, and `settings` with `__` between the levels of a name."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CARTRIDGE_WARP_")}
    given = {
        "source__connection_string": source,
        "destination__connection_string": destination,
        "monitoring__prometheus__port": 0,
        "monitoring__prometheus__host": "127.0.0.1",
        "logging__format": "json",
        **settings,
    }
    return inherited | {f"CARTRIDGE_WARP_{name.upper()}": str(value) for name, value in given.items()}


class WorkerProcess:
    """`cartridge-warp run` of one schema; use it as a context, which kills what still runs."""

    def __init__(
        self, source: str, destination: str, schema: str, *words: str, executable: list[str] | None = None,
        **settings: object,
    ) -> None:  # fmt: skip
        descriptor, path = tempfile.mkstemp(prefix="warp-worker-", suffix=".log")
        self.log = Path(path)
        with os.fdopen(descriptor, "wb") as file:
            self.process = subprocess.Popen(
                [*(executable or PROGRAM), "run", "--schema", schema, *words],
                env=worker_environment(source, destination, **settings),
                stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        self.log.unlink(missing_ok=True)

    # -- what it says ---------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """Everything that it has written so far."""
        return self.log.read_text(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        """Its log lines."""
        found = []
        for line in self.text.splitlines():
            if line.startswith("{") and line.endswith("}"):
                found.append(json.loads(line))
        return found

    def said(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        return [line for line in self.lines() if line.get("event") == event]

    def until(self, what: Callable[[], Any], seconds: float = 60) -> Any:
        """Wait for a condition while the process lives; returns what it gave."""
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.text}"
            assert time.monotonic() < deadline, self.text
            time.sleep(0.04)
        return found

    def until_said(self, event: str, seconds: float = 60) -> dict[str, Any]:
        """Wait for a log line."""
        return self.until(lambda: self.said(event), seconds)[0]

    def page(self, path: str) -> tuple[int, str]:
        """Status and text of a page of its health and metrics server; (0, "") when it does not answer."""
        lines = self.said("metrics and health")
        if not lines:
            return 0, ""
        try:
            with urllib.request.urlopen(f"http://{lines[0]['address']}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    # -- what is done to it ---------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL, also while it is frozen."""
        self.process.kill()
        self.process.wait()

    def stop_signal(self) -> None:
        """SIGTERM, as Kubernetes sends it."""
        self.process.send_signal(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP: it lives, holds its connections, and does nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def wait(self, seconds: float = 60) -> int:
        """Wait for its end; returns the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {seconds} s:\n{self.text}") from None

    def last_line(self) -> str:
        """The error line that it ended with."""
        return self.text.strip().splitlines()[-1]
