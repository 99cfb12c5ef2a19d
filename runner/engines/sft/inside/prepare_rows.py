"""Prepare a plan's rows without training:

`python -m runner.engines.sft.inside.prepare_rows PLAN [--out DIR]`.

Prints one JSON document on stdout, progress on stderr. Imports no torch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from runner.common import durable, terminal
from runner.common.errors import EXIT_INTERRUPTED, RunnerError, UsageError, bug
from runner.common.tensors_only import load_tensors_only
from runner.data.prepare import prepare
from runner.data.prepared import SPLITS, Prepared, Split
from runner.engines.render import read_plan
from runner.engines.sft.plan import SftPlan


def prepare_all(plan: SftPlan, out: Path | None) -> list[dict[str, Any]]:
    """A record for each training of the plan; with `out`, its splits are written there as well.

    Raises RunnerError as `prepare` does, and where a file of `out` is there already.
    """
    trainings = plan.trainings
    targets = [_targets(out, training.phase, len(trainings) > 1) for training in trainings]
    for path in (path for paths in targets for path in paths.values()):
        _refuse_existing(path)
    records = []
    for training, paths in zip(trainings, targets, strict=True):
        prepared = prepare(training, say=_say)
        written = {split: path for split, path in paths.items() if prepared.counts[split]}
        for split, path in written.items():
            write_jsonl(prepared, split, path)
        records.append(
            {
                "phase": training.phase,
                "folder": str(prepared.folder),
                "report": prepared.report,
                "files": [str(path) for path in written.values()],
            }
        )
    return records


def write_jsonl(prepared: Prepared, split: Split, path: Path) -> None:
    """A split's rows, messages and images, a JSON object on each line; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    staging = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            for row in prepared.rows(split):
                record: dict[str, Any] = {"messages": row.messages}
                if row.tools is not None:
                    record["tools"] = row.tools
                if row.images:
                    record["images"] = row.images
                if row.label is not None:
                    record["label"] = row.label
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            stream.flush()
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        _refuse_existing(path)  # one that came in between
        staging.rename(path)
    except OSError as error:
        raise RunnerError(f"{path} can't be written: {error.strerror or error}") from error
    finally:
        staging.unlink(missing_ok=True)
    durable.fsync_folder(path.parent)


def _targets(out: Path | None, phase: str, several: bool) -> dict[Split, Path]:
    if out is None:
        return {}
    folder = out / phase if several and phase else out
    return {split: folder / f"{split}.jsonl" for split in SPLITS}


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UsageError(f"{path} exists, and is not overwritten", "name another folder")


def _say(line: str) -> None:
    terminal.say(line)


def main() -> int:
    """Exit code 0, or that of the refusal, whose lines are in the JSON."""
    load_tensors_only()
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    record: dict[str, Any] = {}
    code = 0
    try:
        record["trainings"] = prepare_all(read_plan(options.plan), options.out)
    except RunnerError as error:
        record["error"] = error.lines()
        code = error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        record["error"] = bug(error).lines()
        code = 1
    terminal.put_json(record)
    return code


if __name__ == "__main__":
    terminal.guard_streams()
    sys.exit(main())
