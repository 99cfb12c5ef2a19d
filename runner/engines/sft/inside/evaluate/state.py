"""How far an evaluation is, for an end before the end. Standard library only."""

from __future__ import annotations

import os

from runner.engines.sft.inside.evaluate.progress import Progress
from runner.engines.sft.inside.evaluate.request import SCHEMA_VERSION, EvaluationFolder


class State:
    """Counts of rows, and who waits for them."""

    def __init__(self, folder: EvaluationFolder, parent: int) -> None:
        self.folder = folder
        self.rows = 0
        self.done = 0
        self.progress: Progress | None = None
        self._parent = parent

    def check_parent(self) -> None:
        """Stop (KeyboardInterrupt) where the command that started this is gone."""
        if os.getppid() != self._parent:
            raise KeyboardInterrupt

    def leave_line(self) -> None:
        """End the line of progress on a terminal."""
        if self.progress:
            self.progress.end()

    def give_up(self) -> str:
        """Record that this evaluation has no figures; a sentence that says what there is."""
        text = f"evaluation incomplete: {self.done} of {self.rows} rows were measured"
        if not self.done:
            return text
        record = {
            "schema_version": SCHEMA_VERSION,
            "complete": False,
            "rows": self.rows,
            "rows_done": self.done,
        }
        self.folder.write_json(self.folder.evaluation, record)
        return f"{text}; their answers are in {self.folder.predictions}"
