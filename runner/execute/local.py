"""A run as processes of this machine. Standard library only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from runner.folder import RunFolder


class LocalExecutor:
    """Starts launch.sh in a session of its own; its output goes to logs/train.log."""

    def __init__(self, folder: RunFolder, *, resume: bool) -> None:
        self._folder = folder
        self.argv = ["bash", str(folder.launch_script), *(["--resume"] if resume else [])]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, environment: Mapping[str, str]) -> None:
        """Start it; `environment` is added to the caller's own. Raises OSError."""
        with self._folder.train_log.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self._folder.path,
                env={**os.environ, **environment},
            )

    @property
    def pid(self) -> int:
        """Of the launch script, which execs into the launcher."""
        assert self._process is not None  # noqa: S101 - started first
        return self._process.pid

    def exit_code(self) -> int | None:
        """0-255, negative for a signal; None while it runs."""
        assert self._process is not None  # noqa: S101
        return self._process.poll()
