"""What a connector's own tests give to the suite, and values that both sides are tried with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pytest

from cartridge_warp.connectors.base import DestinationConnector, SourceConnector

__all__ = [
    "LARGE",
    "UNICODE",
    "DestinationUnderTest",
    "SourceUnderTest",
    "conformant_destination",
    "conformant_source",
]

UNICODE = "Grüße · 日本語 · 👩‍🚀 · e\u0301 · \u202eabc · 'quoted' \"text\" \\ \n\t"
LARGE = "0123456789abcdef" * 65536  # 1 MiB


class SourceUnderTest(Protocol):
    """A source with an empty schema of its own, which the suite fills.

    `key` names the field that identifies a row; its values are integers. `patience` is how long, in seconds,
    a change may take to be seen.
    """

    schema: str
    key: str
    patience: float

    def new(self) -> SourceConnector:
        """One more connector on the same data, not connected: what a restarted worker would have."""

    async def put(self, table: str, row: Mapping[str, Any]) -> None:
        """Insert the row, or replace the one with its key. Values are strings, integers, floats, booleans."""

    async def remove(self, table: str, key: int) -> None:
        """Delete a row."""

    async def break_off(self) -> None:
        """Make the source unreachable for every connector; nothing else is asked of it afterwards."""


class DestinationUnderTest(Protocol):
    """A destination in which `schema` and `other_schema` do not exist yet."""

    schema: str
    other_schema: str

    def new(self) -> DestinationConnector:
        """One more connector on the same data, not connected: what a restarted worker would have."""

    async def rows(self, schema: str, table: str) -> Sequence[Mapping[str, Any]]:
        """The rows that a reader of the table sees; none when there is no such table. A column that is NULL
        may be left out, and so may columns of the destination's own that begin with `_warp_`."""

    async def break_off(self) -> None:
        """Make the destination unreachable for every connector; nothing else is asked of it afterwards."""


@pytest.fixture
def conformant_source() -> SourceUnderTest:
    """To be given by the connector's own tests."""
    raise pytest.UsageError("define a fixture 'conformant_source' that returns a SourceUnderTest")


@pytest.fixture
def conformant_destination() -> DestinationUnderTest:
    """To be given by the connector's own tests."""
    raise pytest.UsageError("define a fixture 'conformant_destination' that returns a DestinationUnderTest")
