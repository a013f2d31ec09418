"""The demo's sample documents: from a folder of Extended JSON Lines into the source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bson import json_util
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from cartridge_warp.errors import ConfigError, WarpError

__all__ = ["CODEC", "Client", "DataFile", "Loaded", "document", "find_data", "load_data"]

Client = AsyncMongoClient[dict[str, Any]]

CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True,
    uuid_representation=UuidRepresentation.UNSPECIFIED,
    datetime_conversion=DatetimeConversion.DATETIME_MS,  # a BSON date reaches far beyond Python's year 9999
)
_EXTENDED_JSON = json_util.JSONOptions(
    tz_aware=True,
    uuid_representation=UuidRepresentation.UNSPECIFIED,
    datetime_conversion=DatetimeConversion.DATETIME_MS,
)
_PAGE = 500
_BAD_VALUE = 2


@dataclass(frozen=True)
class DataFile:
    """One file of sample documents and the collection that it fills."""

    database: str
    collection: str
    path: Path


@dataclass(frozen=True)
class Loaded:
    """How many documents the source took, and which it cannot hold."""

    documents: int
    left_out: tuple[str, ...]


def find_data(folder: Path) -> list[DataFile]:
    """The files `<database>.<collection>.jsonl` of a folder, by name; ConfigError when there is none."""
    files = []
    for path in sorted(folder.glob("*.jsonl")):
        database, _, collection = path.stem.partition(".")
        if not database or not collection:
            raise ConfigError(f"{path} names no collection: call it <database>.<collection>.jsonl")
        files.append(DataFile(database, collection, path))
    if not files:
        raise ConfigError(f"{folder} holds no sample data: put files <database>.<collection>.jsonl there")
    return files


async def load_data(client: Client, files: list[DataFile]) -> Loaded:
    """Insert every document of every file."""
    loaded = 0
    left_out: list[str] = []
    for file in files:
        target = client[file.database].get_collection(file.collection, codec_options=CODEC)
        documents = _documents(file.path)
        while page := list(islice(documents, _PAGE)):
            refused = await _insert(target, page, file)
            left_out += [f"{file.database}.{file.collection} {key}" for key in refused]
            loaded += len(page) - len(refused)
    return Loaded(loaded, tuple(left_out))


async def _insert(target: Any, page: list[dict[str, Any]], file: DataFile) -> list[str]:
    """Insert a page; the keys of documents that the server cannot hold.

    The server of the demo refuses a whole message for one value that it cannot decode (SecantusDB: a date
    beyond the year 9999, code 2), so the documents of such a page are sent one by one.
    """
    try:
        await target.insert_many(page)
        return []
    except OperationFailure as error:
        if error.code != _BAD_VALUE:
            details = (error.details or {}).get("writeErrors") or [{"errmsg": str(error)}]
            raise WarpError(f"the source refused {file.path}: {details[0]['errmsg']}") from error
        if len(page) == 1:
            return [json_util.dumps(page[0].get("_id"))]
    except PyMongoError as error:
        raise WarpError(f"the source took nothing of {file.path}: {error}") from error
    return [key for single in page for key in await _insert(target, [single], file)]


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield document(line)
            except (ValueError, TypeError, BSONError) as error:
                raise ConfigError(f"{path} line {number} is not an Extended JSON document: {error}") from error


def document(line: str) -> dict[str, Any]:
    """One document in canonical Extended JSON as the values that the driver writes.

    The driver no longer writes symbol, undefined and DBPointer: they become string, null and DBRef.
    """
    fields = json_util.loads(line, json_options=_EXTENDED_JSON)
    if not isinstance(fields, dict):
        raise ValueError("an object is expected")
    return fields
