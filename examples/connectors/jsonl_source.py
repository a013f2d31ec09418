"""A source that reads a folder of JSON Lines files: `<folder>/<schema>/<table>.jsonl`, one row a line.

Files are only ever appended to. A later line with the same key replaces the row, and a line with
`"_deleted": true` deletes it. The position is the offset in each file, so nothing is read twice or left out.
"""

import asyncio
import json
from itertools import islice
from pathlib import Path

from cartridge_warp.connectors import (
    BaseSourceConnector,
    ChangeEvent,
    ColumnDefinition,
    ColumnType,
    DatabaseSchema,
    OperationType,
    Record,
    TableSchema,
    register_source_connector,
)
from cartridge_warp.errors import PositionLost, SourceRefused, Unavailable

KINDS = {bool: ColumnType.BOOLEAN, int: ColumnType.BIGINT, float: ColumnType.DOUBLE, str: ColumnType.STRING}


@register_source_connector("jsonl")
class JsonlSource(BaseSourceConnector):
    """Parameters: `folder` (or the connection string), and `key`, the field that identifies a row (`id`)."""

    def __init__(self, config):
        super().__init__(config)
        folder = config.parameters.get("folder") or config.connection_string
        if not folder:
            raise SourceRefused("source 'jsonl' has no folder: set source.parameters.folder")
        self.folder = Path(folder.removeprefix("file://"))
        self.key = config.parameters.get("key", "id")
        self.start = {}  # per schema, where it stood when it was first asked for changes without a position

    async def connect(self):
        if not self.folder.is_dir():
            raise Unavailable(f"source 'jsonl': {self.folder} is not a folder; create it or correct `folder`")
        self.connected = True

    async def test_connection(self):
        return self.connected and self.folder.is_dir()

    async def get_schema(self, schema_name):
        """A table for each file, with the columns that its first hundred lines show."""
        return DatabaseSchema(schema_name, [self._table(path) for path in self._files(schema_name)])

    async def get_position(self, schema_name):
        """The end of the last complete line of each file. Changes after it are those of the future."""
        return {path.stem: _end(path) for path in self._files(schema_name)}

    async def get_changes(self, schema_name, marker=None, batch_size=1000):
        """Up to `batch_size` lines of each file; ends when they are read. The worker asks again."""
        if marker is None and schema_name not in self.start:
            self.start[schema_name] = await self.get_position(schema_name)
        offsets = dict(self.start[schema_name] if marker is None else marker)
        for path in self._files(schema_name):
            for count, (line, after) in enumerate(_lines(path, offsets.get(path.stem, 0))):
                if count == batch_size:
                    break
                offsets[path.stem] = after
                yield ChangeEvent(self._record(path, line, after), dict(offsets), schema_name)
            await asyncio.sleep(0)  # reading files does not wait; let others have their turn

    async def get_full_snapshot(self, schema_name, table_name, batch_size=10000):
        """The last line of each key, unless it deletes. Keeps one offset a key in memory, never the rows."""
        path, last = self.folder / schema_name / f"{table_name}.jsonl", {}
        for line, after in _lines(path, 0):
            last[self._identity(path, line, after)] = after
        newest = set(last.values())
        for count, (line, after) in enumerate(_lines(path, 0)):
            if count % batch_size == 0:
                await asyncio.sleep(0)
            if after in newest:
                record = self._record(path, line, after)
                if record.operation is not OperationType.DELETE:
                    yield record

    def _files(self, schema):
        if not self.folder.is_dir():  # else an unmounted folder would look like one without tables
            raise Unavailable(f"source 'jsonl': {self.folder} is gone; mount or create it")
        return sorted((self.folder / schema).glob("*.jsonl"))

    def _identity(self, path, line, after):
        return json.dumps(self._record(path, line, after).primary_key_values, sort_keys=True)

    def _record(self, path, line, after):
        try:
            row = json.loads(line)
            deleted = row.pop("_deleted", False)
            key = {self.key: row[self.key]}
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise SourceRefused(
                f"source 'jsonl': the line that ends at byte {after} of {path} is no JSON object with field "
                f"'{self.key}' ({type(error).__name__}); correct it"
            ) from error
        operation = OperationType.DELETE if deleted else OperationType.INSERT
        return Record(path.stem, {} if deleted else row, operation, primary_key_values=key)

    def _table(self, path):
        row = {self.key: ""}
        for line, after in islice(_lines(path, 0), 100):
            row |= self._record(path, line, after).data
        columns = [ColumnDefinition(name, KINDS.get(type(value), ColumnType.JSON)) for name, value in row.items()]
        return TableSchema(path.stem, columns, [self.key])


def _lines(path, offset):
    """Each complete line after `offset`, with the offset behind it. A last line without its end is being
    written at this moment: it is left for the next call."""
    if not path.exists():
        return
    if path.stat().st_size < offset:
        raise PositionLost(f"source 'jsonl': {path} is shorter than what was read of it; it was replaced")
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            if line.strip():
                yield line, offset


def _end(path):
    """The offset behind the last complete line, found from the end."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            if (at := file.read(end - start).rfind(b"\n")) >= 0:
                return start + at + 1
            end = start
    return 0
