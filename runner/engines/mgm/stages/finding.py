"""One thing that preflight found to be not as it has to be. Standard library only; Python 3.10."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """A field of the job, what it has and what is expected."""

    field: str
    value: object
    expected: str

    def __str__(self) -> str:
        return f"{self.field}: {self.value} where {self.expected} is expected"
