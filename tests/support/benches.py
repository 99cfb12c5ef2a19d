"""Runs of a script of a second, that logs losses as a training does: the real CLI, all of it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.provenance.manifest import Manifest
from tests.support.command import run_cli
from tests.support.workplace import Finished, Workplace

SCRIPT = """
step=0
while read -r value; do
  step=$((step + 1))
  echo "{\\"schema_version\\": 1, \\"step\\": $step, \\"loss\\": $value," \\
    "\\"time_unix_seconds\\": $(date +%s)}" >> ../metrics.jsonl
  sleep "$PAUSE"
done < "$1"
{ cat "$1"; echo "$RATE"; } > result.txt
"""
JOB = """
engine: script
script: train.sh
inputs: [rows.txt]
arguments: ["{inputs.0}"]
environment: {RATE: "0.1", PAUSE: "0"}
"""


IN_PROCESS = ("verify", "diff", "bundle", "unbundle")


@dataclass(frozen=True)
class Bench:
    """A folder with the job, and the runs made there."""

    place: Workplace

    def train(self, *sets: str) -> Path:
        """The run folder of a run that completed."""
        words = [word for text in sets for word in ("--set", text)]
        done = self.place.call("train", "job.yaml", "--fresh", *words, "--json")
        assert done.code == 0, done.err
        return Path(done.json["folder"])

    def call(self, *arguments: str) -> Finished:
        """In this process, where nothing is started."""
        if arguments[0] not in IN_PROCESS:
            return self.place.call(*arguments)
        with contextlib.chdir(self.place.folder):
            answer = run_cli(*arguments)
        assert "Traceback" not in answer.err, answer.err
        return Finished(answer.code, answer.out, answer.err)


def make_bench(folder: Path) -> Bench:
    (folder / "train.sh").write_text(SCRIPT)
    (folder / "job.yaml").write_text(JOB)
    (folder / "rows.txt").write_text("3.0\n2.5\n2.25\n")
    return Bench(Workplace(folder))


def manifest_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "manifest.json").read_text())


def small_manifest(**changes: Any) -> Manifest:
    """A manifest as a run of two steps would leave it."""
    record: dict[str, Any] = {
        "run": "job/one",
        "complete": True,
        "created_unix_seconds": 1.0,
        "job": {"name": "job"},
        "plan_hash": "a" * 64,
        "plan": {"engine": "sft", "training": {"learning_rate": 0.1, "seed": 7}},
        "rendered": {"launch.sh": "1" * 64},
        "code": {"version": "0.1.0", "source_sha256": "2" * 64},
        "python": {"path": "/python", "version": "3.11.7", "packages": {"peft": "1", "zlib": "2"}},
        "files": [
            {"what": "data.train", "path": "/rows", "kind": "file", "sha256": "3" * 64},
            {"what": "model/w", "path": "/w", "kind": "file", "sha256": "4" * 64},
        ],
        "switches": {"deterministic_algorithms": False},
        "host": {
            "name": "here",
            "system": "Linux",
            "kernel": "6",
            "machine": "x86_64",
            "cpu": "a CPU",
            "cores": 2,
            "memory_bytes": 1,
        },
        "results": {
            "reason": "completed",
            "exit_code": 0,
            "message": "done",
            "steps": 2,
            "losses": {"count": 2, "last_step": 2, "sha256": "5" * 64},
            "adapter_sha256": "6" * 64,
            "started_unix_seconds": 1.0,
            "ended_unix_seconds": 2.0,
            "seconds": 1.0,
        },
    }
    return Manifest.model_validate({**record, **changes})
