"""Names that PostgreSQL takes, for fields and collections that may have any name."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Final

__all__ = ["MAX_NAME_BYTES", "column_name", "relation_name"]

MAX_NAME_BYTES: Final = 63
_RESERVED: Final = frozenset({"is_deleted", "deleted_at", "ctid", "xmin", "xmax", "cmin", "cmax", "tableoid", "oid"})


def column_name(field: str, taken: Collection[str], slug: str = "field") -> str:
    """A column name for `field` that PostgreSQL takes and that differs from all of `taken`, ignoring case.

    The field's own name when that is possible, else a readable part of it and a hash of the original, so that
    the result does not depend on which fields came first. Limits are bytes: 63 (NAMEDATALEN - 1).
    """
    used = {name.casefold() for name in taken}
    if _usable(field, used):
        return field
    readable = field.replace("\0", "").encode("utf-8", "replace").decode()
    if readable.casefold().startswith("_warp_"):
        readable = readable.lstrip("_")
    attempt = 0
    while True:
        salt = f"\0{attempt}" if attempt else ""
        tail = hashlib.sha256(f"{field}{salt}".encode("utf-8", "surrogatepass")).hexdigest()[:8]
        head = readable.encode()[: MAX_NAME_BYTES - len(tail) - 1].decode("utf-8", "ignore") or slug
        name = f"{head}_{tail}"
        if _usable(name, used):
            return name
        attempt += 1


def relation_name(table: str, taken: Collection[str]) -> str:
    """A table name for a collection, by the same rules as `column_name`."""
    return column_name(table, taken, slug="table")


def _usable(name: str, used: Collection[str]) -> bool:
    folded = name.casefold()
    if not name or "\0" in name or folded in used or folded in _RESERVED or folded.startswith("_warp_"):
        return False
    try:
        return len(name.encode()) <= MAX_NAME_BYTES
    except UnicodeEncodeError:  # a lone surrogate: not a character that UTF-8 or PostgreSQL knows
        return False
