"""What is wrong with a configuration, told so that it can be put right at once: where, what was found, what
is allowed, the nearest known key, and which file or variable it came from."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from cartridge_warp.config.values import is_secret
from cartridge_warp.errors import ConfigError, mask

__all__ = [
    "ContradictionError",
    "Origin",
    "Origins",
    "Path",
    "Problem",
    "config_error",
    "found",
    "nearest",
    "path_text",
    "translate",
]

Path = tuple[str | int, ...]
"""Where a value stands: keys, and numbers of list items."""

_LONGEST = 60


@dataclass(frozen=True)
class Origin:
    """Where a value was written: its path in the user's own spelling, and the file or variable."""

    written: Path
    place: str = ""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, as one line."""

    path: Path
    text: str
    place: str = ""

    def __str__(self) -> str:
        where = path_text(self.path)
        return f"{where}{': ' if where else ''}{self.text}{f' ({self.place})' if self.place else ''}"


class ContradictionError(ValueError):
    """Settings that are right each, but not together. Paths are in canonical spelling."""

    def __init__(self, found: Sequence[tuple[Path, str]]) -> None:
        super().__init__("; ".join(str(Problem(path, text)) for path, text in found))
        self.found = tuple(found)


@dataclass
class Origins:
    """The origin of every value, by its canonical path."""

    known: dict[Path, Origin] = field(default_factory=dict)

    def find(self, path: Path) -> Origin:
        """The origin of a value or of the nearest thing around it, with the rest of the path added."""
        for length in range(len(path), 0, -1):
            if origin := self.known.get(path[:length]):
                return Origin(origin.written + path[length:], origin.place)
        return Origin(path)


def path_text(path: Path) -> str:
    """`schemas[1].tables.orders.batch_size`; a key that is no plain word stands in brackets."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _is_plain(part) or not text:
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text


def _is_plain(part: str) -> bool:
    # `mask` takes what follows `token:` for a secret; in brackets the key keeps the sentence whole.
    return part.replace("-", "_").isidentifier() and mask(f"{part}: x").endswith("x")


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` when one of the known words is close, else a list of them when it is short."""
    words = sorted(set(known))
    lowered = {each.lower(): each for each in reversed(words)}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {lowered[close[0]]}?"
    return f"; known: {', '.join(words)}" if 0 < len(words) <= 12 else ""


def found(path: Path, value: Any) -> str:
    """What was found, short and without secrets."""
    if any(isinstance(part, str) and is_secret(part) for part in path):
        return "found a value that is not shown"
    if isinstance(value, Mapping):
        return "found a mapping"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "found a list"
    # Masked before it is cut: half a URI would not be recognised as one.
    text = repr(mask(value)) if isinstance(value, str) else mask(repr(value))
    return f"found {text if len(text) <= _LONGEST else text[: _LONGEST - 3] + '...'}"


def translate(error: ValidationError, origins: Origins) -> list[Problem]:
    """pydantic's findings in our words, each once."""
    problems: dict[str, Problem] = {}
    findings: Sequence[tuple[Path, str]]
    # Values stay out of the text of the exception itself, but are there for us to mask.
    for each in error.errors(include_url=False):
        cause = each.get("ctx", {}).get("error")
        path = tuple(each["loc"])
        findings = [((), _text(path, each, cause))]
        if isinstance(cause, ContradictionError):
            findings = cause.found
        for inner, text in findings:
            origin = origins.find(path + inner)
            problem = Problem(origin.written, text, origin.place)
            problems.setdefault(str(problem), problem)
    return list(problems.values())


def config_error(problems: Iterable[Problem], what: str = "configuration") -> ConfigError:
    """One error for all problems: a line each."""
    lines = list(dict.fromkeys(str(problem) for problem in problems))
    if len(lines) == 1:
        return ConfigError(f"{what}: {lines[0]}")
    return ConfigError("\n".join([f"{what}: {len(lines)} errors", *(f"  {line}" for line in lines)]))


_ALLOWED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "bool_parsing": lambda ctx: "true or false",
    "bool_type": lambda ctx: "true or false",
    "dict_type": lambda ctx: "a mapping of settings",
    "mapping_type": lambda ctx: "a mapping of settings",
    "finite_number": lambda ctx: "a finite number",
    "float_parsing": lambda ctx: "a number",
    "float_type": lambda ctx: "a number",
    "greater_than": lambda ctx: f"more than {ctx['gt']:g}",
    "greater_than_equal": lambda ctx: f"at least {ctx['ge']}",
    "int_from_float": lambda ctx: "a whole number",
    "int_parsing": lambda ctx: "a whole number",
    "int_type": lambda ctx: "a whole number",
    "less_than_equal": lambda ctx: f"at most {ctx['le']:g}" if ctx["le"] < 10**6 else f"at most {ctx['le']}",
    "literal_error": lambda ctx: ctx["expected"].replace("'", ""),
    "model_type": lambda ctx: "a mapping of settings",
    "model_attributes_type": lambda ctx: "a mapping of settings",
    "string_pattern_mismatch": lambda ctx: f"text that matches {ctx['pattern']}",
    "string_too_long": lambda ctx: f"at most {ctx['max_length']} characters",
    "string_too_short": lambda ctx: f"at least {ctx['min_length']} character(s)",
    "string_type": lambda ctx: "text (put it in quotes)",
    "too_long": lambda ctx: f"at most {ctx['max_length']} items",
    "too_short": lambda ctx: f"at least {ctx['min_length']} item(s)",
    "tuple_type": lambda ctx: "a list",
    "list_type": lambda ctx: "a list",
}


def _text(path: Path, each: Mapping[str, Any], cause: Exception | None) -> str:
    kind = each["type"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return "unknown key"
    if allowed := _ALLOWED.get(kind):
        expected = allowed(each.get("ctx", {}))
    else:
        expected = str(cause) if cause is not None else each["msg"]
    return f"{found(path, each['input'])}; allowed: {expected}"
