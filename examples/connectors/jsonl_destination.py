"""A destination that writes JSON Lines files: `<folder>/<schema>/<table>.jsonl`, one change a line.

Each file is an append-only log: the last line of a key is its row, and a line with `"_deleted": true` says
that the key is gone. So a batch that arrives twice changes nothing. Positions are in `markers.json`, which is
replaced as a whole and only after the rows are on disk.
"""

import base64
import json
import os
from datetime import date
from pathlib import Path
from urllib.parse import quote

from cartridge_warp.connectors import (
    BaseDestinationConnector,
    OperationType,
    SchemaChangeType,
    register_destination_connector,
)
from cartridge_warp.errors import DestinationRefused, RowError, Unavailable


@register_destination_connector("jsonl")
class JsonlDestination(BaseDestinationConnector):
    """Parameters: `folder` (or the connection string). It is created when its parent exists."""

    def __init__(self, config):
        super().__init__(config)
        folder = config.parameters.get("folder") or config.connection_string
        if not folder:
            raise DestinationRefused("destination 'jsonl' has no folder: set destination.parameters.folder")
        self.folder = Path(folder.removeprefix("file://"))
        self.mended = set()  # files whose last line is known to be complete

    async def connect(self):
        if not self.folder.parent.is_dir():
            raise Unavailable(f"destination 'jsonl': {self.folder.parent} is not a folder; create it")
        self.folder.mkdir(exist_ok=True)
        self.connected = True

    async def disconnect(self):
        self.mended.clear()
        self.connected = False

    async def test_connection(self):
        return self.connected and os.access(self.folder, os.W_OK)

    async def create_schema_if_not_exists(self, schema_name):
        self._folder(schema_name)

    async def create_table_if_not_exists(self, schema_name, table_schema):
        """An empty file, so that a table without rows can be seen, too."""
        self._path(schema_name, table_schema.name).touch()

    async def apply_schema_changes(self, schema_name, changes):
        """Lines have no fixed shape: only the end of a table has to be carried out."""
        for change in changes:
            if change.change_type is SchemaChangeType.DROP_TABLE:
                path = self._path(schema_name, change.table_name)
                path.unlink(missing_ok=True)
                _sync(path.parent)

    async def write_batch(self, schema_name, records):
        """Append the lines and return when they are on disk."""
        lines = {}
        for record in records:
            lines.setdefault(record.table_name, []).append(_line(record))
        for table, parts in lines.items():
            path = self._path(schema_name, table)
            self._mend(path)
            self.mended.discard(path)  # until the write has succeeded: a full disk cuts lines, too
            with path.open("ab") as file:
                file.write(b"".join(parts))
                file.flush()
                os.fsync(file.fileno())
            self.mended.add(path)
            _sync(path.parent)

    async def update_marker(self, schema_name, table_name, marker):
        markers = self._markers(schema_name) | {table_name: marker}
        folder = self._folder(schema_name)
        with (folder / "markers.tmp").open("w", encoding="utf-8") as file:
            json.dump(markers, file)
            file.flush()
            os.fsync(file.fileno())
        (folder / "markers.tmp").replace(folder / "markers.json")
        _sync(folder)

    async def get_marker(self, schema_name, table_name):
        return self._markers(schema_name).get(table_name)

    def _markers(self, schema):
        path = self._folder(schema) / "markers.json"
        try:
            return json.loads(path.read_bytes()) if path.exists() else {}
        except ValueError as error:
            raise DestinationRefused(f"destination 'jsonl': {path} is damaged; restore or remove it") from error

    def _folder(self, schema):
        if not self.folder.is_dir():  # else an unmounted folder would look like one that was never written
            raise Unavailable(f"destination 'jsonl': {self.folder} is gone; mount or create it")
        folder = self.folder / quote(schema, safe=" ")
        folder.mkdir(exist_ok=True)
        return folder

    def _path(self, schema, table):
        return self._folder(schema) / f"{quote(table, safe=' ')}.jsonl"

    def _mend(self, path):
        """Cut off what a killed process left of a last line: the batch that it belonged to comes again."""
        if path in self.mended or not path.exists():
            return
        with path.open("rb+") as file:
            end, found = file.seek(0, os.SEEK_END), -1
            while end > 0 and found < 0:
                start = max(0, end - 65536)
                file.seek(start)
                found = file.read(end - start).rfind(b"\n")
                end = start + found + 1
            file.truncate(end)


def _line(record):
    if "_deleted" in record.data:
        raise RowError(f"table '{record.table_name}': destination 'jsonl' needs the field name '_deleted' itself")
    key = dict(record.primary_key_values)
    row = key | ({"_deleted": True} if record.operation is OperationType.DELETE else dict(record.data))
    return json.dumps(row, default=_text).encode() + b"\n"


def _text(value):
    """What JSON has no type for: bytes as base64, dates in ISO 8601, everything else as its own text."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, date) else str(value)


def _sync(folder):
    """Make new and replaced names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
