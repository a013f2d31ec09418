"""Logs: one configuration for structlog and the standard library, with every secret masked in every line."""

from __future__ import annotations

import logging
import re
import secrets
import sys
from collections.abc import Mapping
from datetime import date
from typing import TextIO

import structlog
from rich.console import Console
from rich.text import Text
from structlog.typing import EventDict, Processor, WrappedLogger

from cartridge_warp.config import LoggingConfig
from cartridge_warp.errors import mask

__all__ = ["configure", "mask_all"]

_SECRET_KEY = re.compile(r"password|passwd|\bpwd\b|secret|api_?key|credential", re.IGNORECASE)
_DEEPEST = 12

# At DEBUG these write whole commands, documents included; at INFO, every connection. Always one level less.
_CHATTY = ("pymongo", "psycopg", "psycopg.pool", "asyncio")


def configure(
    settings: LoggingConfig, *, stream: TextIO | None = None, console: Console | None = None, run: str = ""
) -> str:
    """Send all logging to standard error, as `settings` say; replaces what was configured before.

    `console` is given when a live display owns the terminal: lines then go above it. `stream` stands in for
    standard error. Returns the id of this run, which every line carries unless correlation ids are off.
    """
    run = run or secrets.token_hex(6)
    stream = stream or sys.stderr
    terminal = console is not None or stream.isatty()
    plain = (settings.format or ("console" if terminal else "json")) == "console"
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if plain else "iso", utc=not plain),
        _correlation(run if settings.correlation_id_enabled else "", shown=not plain),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = _LiveHandler(console) if console is not None else _Handler(stream)
    handler.setFormatter(_formatter(shared, plain, colors=terminal))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(
            max(root.level, logging.INFO if root.level < logging.INFO else logging.WARNING)
        )
    logging.captureWarnings(True)
    return run


def mask_all(value: object, _depth: int = 0) -> object:
    """A copy of `value` without secrets: in strings at any depth, behind telling keys, in exceptions."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, date):
        return value.isoformat()
    if _depth >= _DEEPEST:
        return "..."
    if isinstance(value, Mapping):
        return {
            mask(str(key)): "***" if _SECRET_KEY.search(str(key)) else mask_all(inner, _depth + 1)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [mask_all(inner, _depth + 1) for inner in value]
    try:
        return mask(str(value))
    except Exception as error:  # whatever a foreign object does to describe itself: logging must go on
        return f"<{type(value).__name__}, not printable: {type(error).__name__}>"


def _mask_event(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    masked = mask_all(event)
    return masked if isinstance(masked, dict) else event


def _correlation(run: str, *, shown: bool) -> Processor:
    """Adds the run's id; without correlation ids takes the others away as well."""

    def add(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        if not run:
            event.pop("batch", None)
        elif shown:
            event["run"] = run
        return event

    return add


def _formatter(shared: list[Processor], plain: bool, *, colors: bool) -> logging.Formatter:
    render: Processor
    if plain:
        render = structlog.dev.ConsoleRenderer(
            colors=colors, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
    else:
        render = structlog.processors.JSONRenderer(default=str)
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            # To text before masking: messages of drivers hold connection strings.
            structlog.processors.format_exc_info,
            _mask_event,
            render,
        ],
    )


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to a stream; what cannot be written is named without its content, which was not masked yet."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name is the standard library's)
        kind = sys.exc_info()[0]
        name = kind.__name__ if kind else "unknown"
        try:
            self.stream.write(f"a log line of {record.name} could not be written: {name}\n")
        except (OSError, ValueError):
            # Standard error itself is gone; there is no other place to say so.
            return


class _LiveHandler(_Handler):
    """Writes through the console that shows the live display, which then moves down a line."""

    def __init__(self, console: Console) -> None:
        super().__init__(sys.stderr)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._console.print(Text.from_ansi(self.format(record)), soft_wrap=True)
        except Exception:  # as in the base class: a log line must never end the worker
            self.handleError(record)
