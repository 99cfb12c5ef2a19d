"""The part of a plan that preparing rows needs: which rows, and how to read them.

Imports the jobs' settings and the planned rows; no engine.
"""

from __future__ import annotations

from typing import Protocol

from runner.jobs.data import DataSettings
from runner.jobs.training import TrainingSettings
from runner.plans.rows import PlannedRows


class RowsPlan(Protocol):
    """A plan of one training, as far as its rows are concerned."""

    @property
    def job(self) -> str:
        """Name of the job."""

    @property
    def data(self) -> DataSettings:
        """How rows are read, cleaned, split and mixed."""

    @property
    def rows(self) -> PlannedRows:
        """Which rows there are."""

    @property
    def training(self) -> TrainingSettings:
        """How long a row may be, among others."""

    @property
    def vision(self) -> object | None:
        """Something where rows name images that the model sees."""

    @property
    def template_date(self) -> str | None:
        """The day (ISO) that a chat template which writes the date is told."""
