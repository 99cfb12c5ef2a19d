"""What a job needs from elsewhere, and whether it is here. Records only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runner.plans.sources import DataSource, ModelSource


@dataclass(frozen=True)
class Wanted:
    """One thing that the fetching process can bring."""

    what: Literal["model", "rows"]
    source: Literal["hub", "modelscope", "builtin"]
    id: str
    revision: str | None
    """As the job asks for it."""
    name: str | None = None
    """rows only: the data set's configuration."""
    split: str | None = None
    """rows only."""
    folder: str | None = None
    """builtin only: where it goes."""
    trust_remote_code: bool = False

    @property
    def text(self) -> str:
        """As a job would write it."""
        revision = f"@{self.revision}" if self.revision else ""
        plain = self.source == "hub" and self.what == "model"
        return f"{'' if plain else self.source + ':'}{self.id}{revision}"

    @property
    def label(self) -> str:
        """What it is to a person: "the weights of X", "the rows of Y (test)"."""
        if self.what == "model":
            return f"the weights of {self.text}"
        return f"the rows of {self.text} ({self.split})"


@dataclass(frozen=True)
class Need:
    """One source of a job, the fields that name it, and what is here of it."""

    fields: tuple[str, ...]
    source: ModelSource | DataSource
    wanted: Wanted | None
    """How to fetch it; None for a folder or file of the user's own."""
