"""What all parts of a job have in common: frozen pydantic models, conflicts, sizes with units.

Imports pydantic and runner.common.units only.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from runner.common.units import SIZE_EXPECTED, parse_bytes

MAX_SEED = 2**32 - 1  # numpy's generator takes no more


class JobModel(BaseModel):
    """A part of a job: frozen, unknown keys refused, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ConflictError(ValueError):
    """Settings that exclude each other; `field`, seen from the model that raises it, is to change.

    A ValueError, so that pydantic collects it with the other problems.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def _size(value: object) -> object:
    if isinstance(value, str):
        return parse_bytes(value)
    raise ValueError(f"expected {SIZE_EXPECTED}")


ByteSize = Annotated[
    int,
    BeforeValidator(_size, json_schema_input_type=str),
    Field(json_schema_extra={"examples": ["12GiB", "900MiB"]}),
]
"""A size written with its unit ("12GiB"); bytes once validated."""
