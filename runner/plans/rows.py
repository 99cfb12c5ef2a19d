"""Which rows a training reads, resolved: files with their hashes, or data sets of a hub.

Imports pydantic and the common ground of jobs.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from runner.jobs.model import JobModel


class PlannedData(JobModel):
    """Which rows one source gives."""

    kind: Literal["file", "hub", "modelscope"]
    path: str | None = None
    id: str | None = None
    revision: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None


class PlannedRows(JobModel):
    """Every source of rows of one training. The texts in DataSettings are resolved here."""

    train: PlannedData
    mixed: list[PlannedData] = Field([], description="In the order of data.mix.sources")
    eval: PlannedData | None = None
    test: PlannedData | None = None
    questions: PlannedData | None = None

    @property
    def each(self) -> list[PlannedData]:
        """All of them."""
        others = (self.eval, self.test, self.questions)
        return [self.train, *self.mixed, *(rows for rows in others if rows is not None)]
