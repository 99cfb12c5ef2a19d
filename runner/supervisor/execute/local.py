"""Execute a run as processes of this machine. Imports the standard library and runner.machine."""

from __future__ import annotations

import os
import subprocess

from runner.common.process_times import start_ticks
from runner.machine.process_tree import ProcessTree
from runner.runs import tmpdir as temporary
from runner.runs.folder import RunFolder
from runner.runs.protocol import SUPERVISOR_VARIABLE


class LocalExecutor:
    """Starts launch.sh in a session of its own; its output goes to logs/train.log."""

    container_id: str | None = None

    def __init__(self, folder: RunFolder, *, resume: bool) -> None:
        self._folder = folder
        self.argv = ["bash", str(folder.launch_script), *(["--resume"] if resume else [])]
        self._process: subprocess.Popen[bytes] | None = None
        self.tree = ProcessTree()
        self.notes: list[str] = []

    def start(self) -> None:
        """Start it. Raises OSError."""
        own = {SUPERVISOR_VARIABLE: f"{os.getpid()}:{start_ticks(os.getpid())}"}
        try:
            own["TMPDIR"] = str(temporary.make(self._folder.path))
        except OSError as error:
            self.notes.append(f"temporary files go to everybody's TMPDIR: {error}")
        with self._folder.open_log(self._folder.train_log) as log:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self._folder.path,
                env={**os.environ, **own},
            )

    @property
    def pid(self) -> int:
        """Of the launch script, which execs into the launcher."""
        assert self._process is not None  # noqa: S101 - started first
        return self._process.pid

    def ended(self) -> bool:
        """Whether the launch script has ended."""
        return self.exit_code is not None

    @property
    def exit_code(self) -> int | None:
        """0-255, negative for a signal; None while it runs."""
        assert self._process is not None  # noqa: S101
        return self._process.poll()

    @property
    def start_failure(self) -> tuple[str, str] | None:
        """None: what can't be started here raised OSError."""
        return None

    def clear(self) -> list[str]:
        """Remove the temporary files; processes are cleared by the supervisor's hand."""
        try:
            temporary.clear(self._folder.path)
        except OSError as error:
            return [f"temporary files are left: {error}"]
        return []
