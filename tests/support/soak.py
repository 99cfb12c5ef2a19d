"""The long repetitions, two lanes side by side, and a table of what each took: `./just soak`.

    python -m tests.support.soak [--out FOLDER] [PART ...]

What a part prints goes to FOLDER/PART.log (else a new folder in TMPDIR, which is named). Exit code
1 where a part failed; Ctrl-C ends all of them. May import the standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KILLS = ("-m", "tests.whole_runs.kills")
HOSTILE = (
    "tests/security",
    "tests/provenance",
    "tests/supervisor/test_policy_model.py",
    "tests/jobs/test_job_files.py",
)


@dataclass(frozen=True)
class Part:
    """One command of this Python."""

    name: str
    says: str
    arguments: tuple[str, ...]


def pytest_arguments(*more: str) -> tuple[str, ...]:
    """Of pytest, in one process: the other core is the other lane's."""
    return ("-m", "pytest", "-q", *more)


LANES: tuple[tuple[Part, ...], ...] = (
    (
        Part("kills", "100 kills of the real engine", (*KILLS, "100")),
        Part("kills-stub", "100 kills of the stub", (*KILLS, "100", "--stub")),
        Part("kills-ranks", "4 kills, two ranks", (*KILLS, "4", "--processes", "2")),
        Part(
            "kills-zero2",
            "4 kills, two ranks by ZeRO-2",
            (*KILLS, "4", "--processes", "2", "--deepspeed", "zero2"),
        ),
    ),
    (
        Part("hostile", "hostile files by the ten thousand", pytest_arguments(*HOSTILE)),
        Part(
            "marked",
            "all jobs, the demo's learning, published models, what else is marked soak",
            pytest_arguments("-m", "soak", "--ignore=tests/security", "--ignore=tests/provenance"),
        ),
    ),
)


@dataclass(frozen=True)
class Result:
    part: Part
    code: int
    seconds: float
    last: str
    """The last line that it printed."""


class Soak:
    """The lanes while they run."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = threading.Event()
        self.results: list[Result] = []

    def run(self, lanes: Sequence[Sequence[Part]]) -> None:
        """Return when all parts have ended; each lane is one part after the other."""
        threads = [threading.Thread(target=self._lane, args=(lane,)) for lane in lanes]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            self._ended.set()
            for process in [*self._running]:
                with contextlib.suppress(ProcessLookupError):  # as a terminal's: they clean up
                    os.killpg(process.pid, signal.SIGINT)
            for thread in threads:
                thread.join()
            raise

    def _lane(self, parts: Sequence[Part]) -> None:
        for part in parts:
            if not self._ended.is_set():
                self._part(part)

    def _part(self, part: Part) -> None:
        began, log = time.monotonic(), self._out / f"{part.name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, *part.arguments],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "RUNNER_SOAK": "1"},
                start_new_session=True,
            )
        self._running.add(process)
        print(f"{part.name}: {part.says}: {log}", flush=True)
        code = process.wait()
        self._running.discard(process)
        lines = log.read_text("utf-8", "replace").strip().splitlines() or [""]
        result = Result(part, code, time.monotonic() - began, lines[-1][:100])
        self.results.append(result)
        print(f"{part.name}: {'passed' if code == 0 else f'FAILED ({code})'}: {result.last}")


def table(results: Sequence[Result], seconds: float) -> list[str]:
    """In Markdown, in the order in which the parts ended."""
    rows = [
        f"| {one.part.name} | {one.part.says} | {one.seconds / 60:.1f} | "
        f"{'passed' if one.code == 0 else f'FAILED ({one.code})'} | {one.last} |"
        for one in results
    ]
    head = ["| part | what | minutes | outcome | last line |", "|---|---|---|---|---|"]
    return [*head, *rows, f"{seconds / 60:.1f} minutes in all"]


def main(arguments: list[str]) -> int:
    """0 where every part passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [part.name for lane in LANES for part in lane]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(names)}")
    parser.add_argument("--out", type=Path, help="folder of the logs")
    given = parser.parse_args(arguments)
    unknown = set(given.parts) - {*names}
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    out = given.out or Path(tempfile.mkdtemp(prefix="runner-soak-"))
    out.mkdir(parents=True, exist_ok=True)
    chosen = [[part for part in lane if part.name in (given.parts or names)] for lane in LANES]
    began, soak = time.monotonic(), Soak(out)
    try:
        soak.run(chosen)
    except KeyboardInterrupt:
        print("\n".join(table(soak.results, time.monotonic() - began)))
        return 130
    print("\n".join(table(soak.results, time.monotonic() - began)))
    return 0 if all(one.code == 0 for one in soak.results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
