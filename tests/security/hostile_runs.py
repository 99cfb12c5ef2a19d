"""A run folder as somebody hostile would hand it on: whole, with a real plan, then spoilt."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

from runner.runs import checkpoints
from runner.runs.folder import RunFolder
from tests.report.laid_runs import lay_run
from tests.support.benches import small_manifest

EVIL = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\r\x7f\x85\u202eevil\u2066\u2028 [red]bold[/red]"
"""OSC 52 (the clipboard), CSI in both lengths, CR, DEL, C1, bidi, rich's markup."""
UNFIT = "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

RECORDS: dict[str, Any] = {
    "termination.json": {
        "schema_version": 1,
        "reason": "failed",
        "exit_code": 1,
        "message": "why",
        "steps": 3,
        "max_steps": 5,
        "first_loss": 1.0,
        "last_loss": 0.5,
        "seconds": 1.0,
        "started_unix_seconds": 1.7e9,
        "ended_unix_seconds": 1.7e9,
        "checkpoint": "checkpoint-2",
        "result": "adapter",
        "adapter_sha256": "0" * 64,
        "adapter_bytes": 5,
        "peak_bytes": 1 << 30,
        "peak_source": "source",
        "peaks": {"torch_max_allocated": 5, "torch_max_reserved": 6},
        "peak_step": {"torch_max_reserved": 2},
        "substitutions": ["taken"],
        "warnings": ["warned"],
        "advice": ["would"],
        "attempts": [
            {
                "attempt": 1,
                "reason": "over_budget",
                "steps": 1,
                "peak_bytes": 5,
                "checkpoint": "checkpoint-1",
                "then": "less",
            }
        ],
    },
    "supervisor.json": {
        "schema_version": 1,
        "pid": 999_999_999,
        "start_ticks": 5,
        "boot_id": None,
        "started_unix_seconds": 1.7e9,
    },
    "engine/rank-0.json": {
        "schema_version": 1,
        "pid": 999_999_999,
        "start_ticks": 5,
        "pid_namespace": "pid:[1]",
        "phase": "training",
        "planned_steps": 5,
        "handles": ["SIGUSR1"],
    },
    "engine/result.json": {
        "completed": True,
        "steps": 3,
        "max_steps": 5,
        "tokens": 5,
        "best": {"eval_loss": 1.0, "step": 2},
        "stopped_early": "words",
        "times": {"seconds_per_step_median": 1.0, "seconds_per_step_p95": 1.0},
    },
    "engine/failure.json": {"kind": "failed", "message": "words", "step": 1},
    "queue.json": {"schema_version": 1, "place": 1, "text": "words", "since_unix_seconds": 1.0},
    "container.json": {"schema_version": 1, "name": "n", "argv": ["/nonexistent", "run"]},
    "sources.json": {
        "schema_version": 1,
        "command": ["runner", "train", "job"],
        "folder": "/nowhere",
    },
    "data.json": {
        "rows_read": 1,
        "format": "words",
        "train_rows": 1,
        "eval_rows": 1,
        "train": {
            "supervised_share": 0.5,
            "longest": {"tokens": 5},
            "end_of_turn": {"text": "x", "trained": True},
        },
    },
    "checkpoints/best.json": {
        "schema_version": 1,
        "evaluations": [{"step": 2, "eval_loss": 1.0, "phase": ""}],
    },
    "manifest.json": small_manifest().model_dump(mode="json"),
    "metrics.jsonl": {
        "step": 1,
        "loss": 1.0,
        "eval_loss": 1.0,
        "phase": "",
        "learning_rate": 1e-4,
        "tokens_per_second": 100.0,
        "time_unix_seconds": 1.7e9,
    },
    "memory.jsonl": {
        "schema_version": 1,
        "time_unix_seconds": 1.7e9,
        "own_bytes": 1 << 30,
        "attribution": "nvml_pid",
        "devices": [{"index": 0, "used_bytes": 5}],
    },
    "events.jsonl": {
        "schema_version": 1,
        "time_unix_seconds": 1.7e9,
        "kind": "warning",
        "text": "words",
        "pid": 999_999_999,
        "start_ticks": 5,
        "argv": ["bash"],
    },
}
"""Every record that commands read, with values as runner writes them."""
TEXTS = ("logs/train.log", "logs/supervisor.log", "container.id", "plan.yaml", ".lock")
NAMES = (*RECORDS, *TEXTS, "checkpoints/checkpoint-2/seal.json")


def text_of(name: str, record: Any) -> str:
    return json.dumps(record) + "\n" if name.endswith((".json", ".jsonl")) else str(record)


def lay_hostile(root: Path) -> RunFolder:
    """A run with every record, of which none is hostile yet."""
    folder = lay_run(root, device="cpu", budget="4GiB")
    for name, record in RECORDS.items():
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_text(text_of(name, record))
    saved = folder.checkpoints / "checkpoint-2"
    saved.mkdir()
    (saved / "weights").write_text("w")
    checkpoints.seal(saved)
    folder.train_log.write_text("a line\n")
    folder.supervisor_log.write_text("a line\n")
    folder.container_id.write_text("0" * 64)
    folder.lock.touch()
    return folder


def renamed(folder: RunFolder, job: str, ending: str) -> RunFolder:
    """The same under a name of the author's choice."""
    place = folder.path.parents[1] / job / f"{folder.path.name}{ending}"
    place.parent.mkdir(exist_ok=True)
    shutil.move(folder.path, place)
    return RunFolder(place)


def evil_in(value: Any) -> Any:
    """The record with EVIL behind each text."""
    if isinstance(value, str):
        return value + EVIL
    if isinstance(value, dict):
        return {key: evil_in(each) for key, each in value.items()}
    return [evil_in(each) for each in value] if isinstance(value, list) else value


def unfit(text: str) -> list[str]:
    """The characters in it that a terminal would obey."""
    return [
        one
        for one in text
        if one in UNFIT or (unicodedata.category(one) in ("Cc", "Cs") and one not in "\n\t")
    ]
