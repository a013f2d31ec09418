"""What the command line does to its own process: hides passwords from `ps`, and says how it ended."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from cartridge_warp.errors import WarpError, mask

__all__ = ["asked_for_debug", "fail", "hide_passwords", "without_passwords"]

_MOVED = {
    "--source": "CARTRIDGE_WARP_SOURCE__CONNECTION_STRING",
    "--destination": "CARTRIDGE_WARP_DESTINATION__CONNECTION_STRING",
}
_TERMINATION_LOG = "/dev/termination-log"
_LONGEST_TERMINATION = 4096  # what Kubernetes keeps of it


def hide_passwords(words: Sequence[str], environ: MutableMapping[str, str]) -> None:
    """When an argument holds a password, start this program anew, in the same process, with that argument in
    the environment instead: the list of processes is everybody's to read. Returns when nothing is to hide."""
    kept, moved = without_passwords(words)
    # The interpreter's own arguments come first; what it does not know the words of cannot be started anew.
    before = sys.orig_argv[: len(sys.orig_argv) - len(words)]
    if not moved or list(words) != sys.orig_argv[len(before) :] or not sys.executable:
        return
    names = ", ".join(moved)
    print(
        f"hint: a password was among the arguments, where every user of this machine can read it; it has been "
        f"moved to the environment. Set {names} yourself instead.",
        file=sys.stderr,
        flush=True,
    )
    environ.update(moved)
    os.execve(sys.executable, [sys.executable, *before[1:], *kept], dict(environ))  # noqa: S606 (ourselves)


def without_passwords(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without those that hold a password, and the variables that stand for them."""
    kept: list[str] = []
    moved: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option not in _MOVED:
            kept.append(word)
            continue
        given = [word]
        if not equals:
            value = next(rest, "")
            given.append(value)
        if value and mask(value) != value:
            moved[_MOVED[option]] = value
        else:
            kept += given[: 1 if equals or not value else 2]
    return kept, moved


def asked_for_debug() -> bool:
    """True when the log level is DEBUG: then errors come with their traceback."""
    return logging.getLogger().level == logging.DEBUG


def fail(error: BaseException) -> int:
    """Say what went wrong, in one line without secrets, where people and Kubernetes look; returns the exit
    code."""
    error = _cause(error)
    if isinstance(error, WarpError):
        message, code = str(error), error.exit_code
    else:
        message, code = f"unexpected {type(error).__name__}: {error}", 1
        if not asked_for_debug():
            message += "; this is a fault in cartridge-warp, --log-level DEBUG shows where"
    message = mask(message).strip()
    if asked_for_debug():
        print(mask("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    print(f"error: {message}", file=sys.stderr, flush=True)
    _write_termination_log(message)
    return code


def _cause(error: BaseException) -> BaseException:
    """Of errors that came together, the first one of ours; else the first."""
    while isinstance(error, BaseExceptionGroup):
        ours = error.subgroup(WarpError)
        error = (ours or error).exceptions[0]
    return error


def _write_termination_log(message: str) -> None:
    path = Path(os.environ.get("CARTRIDGE_WARP_TERMINATION_LOG") or _TERMINATION_LOG)
    if not path.is_file() or not os.access(path, os.W_OK):
        return
    text = message.encode()[:_LONGEST_TERMINATION].decode(errors="ignore")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"warning: {path} cannot be written: {error.strerror}", file=sys.stderr)
