"""Make a training's output folder ready: resume from its newest whole checkpoint, or start clean.

    python attempt.py --run RUN --output FOLDER [--resume] [--resumable N] -- COMMAND...

Upstream resumes by itself from whatever `checkpoint-*` it finds in the output folder, so nothing
else may lie there: what is not resumed from is moved to RUN/earlier/N/, never deleted. Only a
finetuning with DeepSpeed can resume (--resumable N, its processes): upstream's pretraining
checkpoints hold no optimizer and crash its resume, and without DeepSpeed a checkpoint lacks the
projector, which would silently be the pretrained one again. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zipfile
from pathlib import Path

if __package__:
    from .whole import split_command, write_whole
else:  # in a run folder the scripts lie beside each other
    from whole import split_command, write_whole  # type: ignore[import-not-found, no-redef]

ATTEMPT = "attempt.json"  # in the output folder: what this attempt was started for
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoint_step(name: str) -> int | None:
    """40 for "checkpoint-40", None for any other name."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


def checkpoint_flaw(folder: Path, processes: int) -> str | None:
    """Why a finetuning checkpoint can't be resumed from, or None.

    torch writes zip archives whose directory comes last, so a file cut short is no archive.
    """
    step = checkpoint_step(folder.name)
    try:
        state = json.loads((folder / "trainer_state.json").read_text("utf-8"))
        latest = (folder / "latest").read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        return f"{error}"
    if state.get("global_step") != step:
        return f"its trainer_state.json is of step {state.get('global_step')}"
    states = folder / latest
    models = sorted(states.glob("*model_states.pt"))
    optimizers = sorted(states.glob("*optim_states.pt"))
    if not models or len(optimizers) != processes:
        return f"{len(models)} model and {len(optimizers)} optimizer states for {processes} ranks"
    adapters = [each for name in ("adapter_model.bin",) if (each := folder / name).exists()]
    for file in (*models, *optimizers, *adapters):
        if not zipfile.is_zipfile(file):
            return f"{file.name} is cut short"
    return None


def newest_whole(output: Path, processes: int) -> tuple[Path | None, list[str]]:
    """The newest checkpoint to resume from, and what is wrong with the newer ones."""
    found = sorted(
        (step, path)
        for path in output.iterdir()
        if path.is_dir() and (step := checkpoint_step(path.name)) is not None
    )
    flaws: list[str] = []
    for _, path in reversed(found):
        flaw = checkpoint_flaw(path, processes)
        if flaw is None:
            return path, flaws
        flaws.append(f"{path.name}: {flaw}")
    return None, flaws


def set_aside(run: Path, paths: list[Path]) -> Path:
    """Move `paths` to a new folder under RUN/earlier/."""
    earlier = run / "earlier"
    number = 1 + max(
        (int(each.name) for each in earlier.glob("*") if each.name.isdigit()), default=0
    )
    place = earlier / str(number)
    place.mkdir(parents=True)
    for path in paths:
        path.rename(place / path.name)
    return place


def prepare(run: Path, output: Path, purpose: list[str], resume: bool, processes: int) -> str:
    """Leave `output` so that upstream does what is meant; returns what that is, in words.

    `processes` 0: this training can't resume from a checkpoint.
    """
    purpose = [word.replace(str(run), "$RUN_FOLDER") for word in purpose]
    told = "from the start"
    if output.exists() and any(output.iterdir()):
        if resume and processes and _purpose(output) == purpose:
            checkpoint, flaws = newest_whole(output, processes)
            if checkpoint is not None:
                others = [
                    each for each in output.iterdir() if each.name not in (checkpoint.name, ATTEMPT)
                ]
                if others:
                    set_aside(run, others)
                return "; ".join([f"resumes from {checkpoint.name}", *flaws])
            told += "; no whole checkpoint" + "".join(f"; {flaw}" for flaw in flaws)
        elif resume and not processes:
            told += "; this training can't resume from a checkpoint"
        elif resume:
            told += "; its command changed since"
        told += f"; what was there is in {set_aside(run, [output])}"
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / ATTEMPT, json.dumps({"schema_version": 1, "purpose": purpose}) + "\n")
    return told


def _purpose(output: Path) -> object:
    try:
        return json.loads((output / ATTEMPT).read_text("utf-8"))["purpose"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--resumable", type=int, default=0)
    options, purpose = split_command(sys.argv[1:])
    given = parser.parse_args(options)
    try:
        told = prepare(given.run, given.output, purpose, given.resume, given.resumable)
    except OSError as error:
        print(f"attempt: {error}", file=sys.stderr)
        return 1
    print(f"attempt: {given.output.name}: {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
