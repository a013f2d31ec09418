"""The conformance suite: both example connectors pass it, and each kind of broken connector fails it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from cartridge_warp.config import DestinationConfig, SourceConfig, load_config
from cartridge_warp.conformance import DestinationConformance, SourceConformance
from cartridge_warp.connectors import ConnectorFactory
from cartridge_warp.records import OperationType

EXAMPLES = Path(__file__).parents[1] / "examples" / "connectors"
sys.path.insert(0, str(EXAMPLES))

from jsonl_destination import JsonlDestination  # noqa: E402
from jsonl_source import JsonlSource  # noqa: E402


class JsonlSourceRig:
    """A folder for the source, filled by appending."""

    schema = "shop"
    key = "id"
    patience = 5.0

    def __init__(self, folder: Path, connector: type[JsonlSource] = JsonlSource) -> None:
        self.folder = folder
        self.connector = connector
        (folder / self.schema).mkdir(parents=True)

    def new(self) -> Any:
        return self.connector(SourceConfig(type="jsonl", parameters={"folder": str(self.folder)}))

    async def put(self, table: str, row: dict[str, Any]) -> None:
        with (self.folder / self.schema / f"{table}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    async def remove(self, table: str, key: int) -> None:
        await self.put(table, {"id": key, "_deleted": True})

    async def break_off(self) -> None:
        self.folder.rename(self.folder.with_name("elsewhere"))


class JsonlDestinationRig:
    """A folder for the destination, read by folding each log."""

    schema = "shop"
    other_schema = "library"

    def __init__(self, folder: Path, connector: type[JsonlDestination] = JsonlDestination) -> None:
        self.folder = folder
        self.connector = connector

    def new(self) -> Any:
        return self.connector(DestinationConfig(type="jsonl", parameters={"folder": str(self.folder)}))

    async def rows(self, schema: str, table: str) -> list[dict[str, Any]]:
        path = self.folder / schema / f"{quote(table, safe=' ')}.jsonl"
        rows: dict[Any, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            row = json.loads(line)
            rows.pop(row["id"], None)
            if not row.get("_deleted"):
                rows[row["id"]] = row
        return list(rows.values())

    async def break_off(self) -> None:
        self.folder.rename(self.folder.with_name("elsewhere"))


class TestJsonlSource(SourceConformance):
    """The example source passes."""

    @pytest.fixture
    def conformant_source(self, tmp_path: Path) -> JsonlSourceRig:
        return JsonlSourceRig(tmp_path / "inbox")


class TestJsonlSourceWithoutPosition(SourceConformance):
    """The suite also judges a source that cannot name its position."""

    @pytest.fixture
    def conformant_source(self, tmp_path: Path) -> JsonlSourceRig:
        class Silent(JsonlSource):
            get_position = None

            async def get_changes(self, schema_name, marker=None, batch_size=1000):
                if marker is None and schema_name not in self.start:
                    self.start[schema_name] = await JsonlSource.get_position(self, schema_name)
                async for event in super().get_changes(schema_name, marker, batch_size):
                    yield event

        return JsonlSourceRig(tmp_path / "inbox", Silent)


class TestJsonlDestination(DestinationConformance):
    """The example destination passes."""

    @pytest.fixture
    def conformant_destination(self, tmp_path: Path) -> JsonlDestinationRig:
        return JsonlDestinationRig(tmp_path / "outbox")


# -- broken sources: what is changed, and the checks that must notice -------------------------------------


class LosesTheLast(JsonlSource):
    """Leaves out the last event of each call."""

    async def get_changes(self, schema_name, marker=None, batch_size=1000):
        held = None
        async for event in super().get_changes(schema_name, marker, batch_size):
            if held is not None:
                yield held
            held = event


class ForgetsTheMarker(JsonlSource):
    """Always goes on from the present."""

    async def get_changes(self, schema_name, marker=None, batch_size=1000):
        async for event in super().get_changes(schema_name, None, batch_size):
            yield event


class StepsOver(JsonlSource):
    """Resumes one event too late."""

    async def get_changes(self, schema_name, marker=None, batch_size=1000):
        skipped = marker is None
        async for event in super().get_changes(schema_name, marker, batch_size):
            if skipped:
                yield event
            skipped = True


class KeepsToItself(JsonlSource):
    """Says nothing of deletes."""

    async def get_changes(self, schema_name, marker=None, batch_size=1000):
        async for event in super().get_changes(schema_name, marker, batch_size):
            if event.record.operation is not OperationType.DELETE:
                yield event


class ShortSnapshot(JsonlSource):
    """Ends its snapshot at the first page."""

    async def get_full_snapshot(self, schema_name, table_name, batch_size=10000):
        count = 0
        async for record in super().get_full_snapshot(schema_name, table_name, batch_size):
            if (count := count + 1) > batch_size:
                return
            yield record


class AlwaysWell(JsonlSource):
    """Claims to answer, whatever happens."""

    async def test_connection(self):
        return True


BROKEN_SOURCES = [
    (LosesTheLast, "test_resumes_after_every_marker"),
    (LosesTheLast, "test_nothing_between_position_and_stream"),
    (ForgetsTheMarker, "test_resumes_after_every_marker"),
    (ForgetsTheMarker, "test_nothing_between_position_and_stream"),
    (StepsOver, "test_resumes_after_every_marker"),
    (KeepsToItself, "test_operations_in_order"),
    (ShortSnapshot, "test_snapshot_is_complete_and_current"),
    (AlwaysWell, "test_answers_for_itself"),
]


@pytest.mark.parametrize(("broken", "check"), BROKEN_SOURCES)
async def test_broken_source_fails(tmp_path: Path, broken: type[JsonlSource], check: str) -> None:
    """A source that breaks the contract in one point fails the check of that point."""
    rig = JsonlSourceRig(tmp_path / "inbox", broken)
    rig.patience = 0.2
    with pytest.raises(AssertionError):
        await getattr(SourceConformance(), check)(rig)


# -- broken destinations -----------------------------------------------------------------------------------


class ForgetsOnRestart(JsonlDestination):
    """Keeps its markers in memory only."""

    def __init__(self, config):
        super().__init__(config)
        self.markers = {}

    async def update_marker(self, schema_name, table_name, marker):
        self.markers[schema_name, table_name] = marker

    async def get_marker(self, schema_name, table_name):
        return self.markers.get((schema_name, table_name))


class OneMarkerForAll(JsonlDestination):
    """Does not tell tables apart."""

    async def update_marker(self, schema_name, table_name, marker):
        await super().update_marker(schema_name, "", marker)

    async def get_marker(self, schema_name, table_name):
        return await super().get_marker(schema_name, "")


class NotIdempotent(JsonlDestination):
    """Adds what comes again to what is there."""

    async def write_batch(self, schema_name, records):
        await super().write_batch(schema_name, [self.added(record) for record in records])

    count = 0

    def added(self, record):
        type(self).count += 1
        data = {**record.data, "size": self.count} if record.data else {}
        return type(record)(record.table_name, data, record.operation, primary_key_values=record.primary_key_values)


class DeletesFirst(JsonlDestination):
    """Sorts a batch by operation."""

    async def write_batch(self, schema_name, records):
        ordered = sorted(records, key=lambda record: record.operation is not OperationType.DELETE)
        await super().write_batch(schema_name, ordered)


class IgnoresDeletes(JsonlDestination):
    """Writes no deletes."""

    async def write_batch(self, schema_name, records):
        kept = [record for record in records if record.operation is not OperationType.DELETE]
        await super().write_batch(schema_name, kept)


class WritesLate(JsonlDestination):
    """Returns before its rows are durable."""

    def __init__(self, config):
        super().__init__(config)
        self.waiting = []

    async def write_batch(self, schema_name, records):
        self.waiting.append((schema_name, records))

    async def disconnect(self):
        for schema_name, records in self.waiting:
            await super().write_batch(schema_name, records)


BROKEN_DESTINATIONS = [
    (ForgetsOnRestart, "test_survives_a_restart"),
    (OneMarkerForAll, "test_markers_are_apart"),
    (NotIdempotent, "test_a_batch_that_comes_again"),
    (DeletesFirst, "test_order_within_a_batch"),
    (IgnoresDeletes, "test_a_batch_that_comes_again"),
    (WritesLate, "test_survives_a_restart"),
]


@pytest.mark.parametrize(("broken", "check"), BROKEN_DESTINATIONS)
async def test_broken_destination_fails(tmp_path: Path, broken: type[JsonlDestination], check: str) -> None:
    """A destination that breaks the contract in one point fails the check of that point."""
    with pytest.raises(AssertionError):
        await getattr(DestinationConformance(), check)(JsonlDestinationRig(tmp_path / "outbox", broken))


# -- as other projects use it ------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs pytest over a project that names the plugin in its conftest.py."""

    def run(module: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = strict\n")
        (tmp_path / "conftest.py").write_text('pytest_plugins = ["cartridge_warp.conformance"]\n')
        (tmp_path / "test_mine.py").write_text(module)
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(Path(__file__).parent)])},
        )  # fmt: skip

    return run


def test_used_by_another_project(project: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    """A project that follows docs/connectors.md gets the tests, also in pytest-asyncio's strict mode."""
    run = project(
        "import pytest\n"
        "from cartridge_warp.conformance import SourceConformance\n"
        "from test_connectors_conformance import JsonlSourceRig\n"
        "class TestMine(SourceConformance):\n"
        "    @pytest.fixture\n"
        "    def conformant_source(self, tmp_path): return JsonlSourceRig(tmp_path / 'inbox')\n"
    )
    assert run.returncode == 0, run.stdout
    assert "12 passed" in run.stdout, run.stdout


def test_missing_fixture_is_explained(project: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    """Without the fixture each test says which one to define."""
    run = project(
        "from cartridge_warp.conformance import DestinationConformance\nclass TestMine(DestinationConformance): ...\n"
    )
    assert run.returncode == 1
    assert "define a fixture 'conformant_destination'" in run.stdout


async def test_example_configuration() -> None:
    """The configuration beside the examples loads as it is, and its plugin and both its types resolve."""
    config = load_config(
        str(EXAMPLES / "config.yaml"),
        environ={"CARTRIDGE_WARP_DESTINATION__CONNECTION_STRING": "postgresql://localhost:5432/warehouse"},
        overrides={},
    )
    [unit] = config.units()
    assert (unit.name, unit.database, unit.target, unit.polling_interval) == ("shop", "shop", "shop", 2.0)
    source = await ConnectorFactory(config.plugins).create_source_connector(config.source)
    assert isinstance(source, JsonlSource)
    assert source.folder == Path("inbox")


def test_examples_are_one_short_file_each() -> None:
    """Each example connector is complete in one file of under 150 lines that imports no other part of it."""
    for name in ("jsonl_source.py", "jsonl_destination.py"):
        lines = (EXAMPLES / name).read_text().splitlines()
        assert len(lines) < 150, name
        assert not any("import jsonl_" in line for line in lines), name
