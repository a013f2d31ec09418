"""What every group of settings has in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from cartridge_warp.config.canonical import canonical
from cartridge_warp.config.problems import ContradictionError
from cartridge_warp.config.spellings import Spellings
from cartridge_warp.config.values import masked

__all__ = ["Model"]


class Model(BaseModel):
    """A frozen group of settings that knows every accepted spelling of its keys and refuses all others."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    spellings: ClassVar[Spellings] = {}
    """Other ways to write the settings of this group."""

    text_key: ClassVar[str | None] = None
    """The setting that plain text in place of the whole group stands for."""

    @model_validator(mode="before")
    @classmethod
    def _canonical(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        layer = canonical(cls, data)
        if layer.problems:
            raise ContradictionError([(problem.path, problem.text) for problem in layer.problems])
        return layer.tree

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """No secret in `repr` and `str`."""
        for name, value in super().__repr_args__():
            yield name, value if name is None else masked(name, value)
