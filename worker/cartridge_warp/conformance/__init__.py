"""The suite that each connector must pass, as a pytest plugin.

Name it in the top `conftest.py`: `pytest_plugins = ["cartridge_warp.conformance"]`. Then subclass
`SourceConformance` or `DestinationConformance` in a test module, and give it a fixture `conformant_source` or
`conformant_destination` that returns a `SourceUnderTest` or a `DestinationUnderTest`. docs/connectors.md
shows both. Nothing of the worker imports this package: it needs pytest and pytest-asyncio.
"""

from cartridge_warp.conformance.contract import (
    DestinationUnderTest,
    SourceUnderTest,
    conformant_destination,
    conformant_source,
)
from cartridge_warp.conformance.destination import DestinationConformance
from cartridge_warp.conformance.source import SourceConformance

__all__ = [
    "DestinationConformance",
    "DestinationUnderTest",
    "SourceConformance",
    "SourceUnderTest",
    "conformant_destination",
    "conformant_source",
]
