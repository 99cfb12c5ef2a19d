"""Survey a plan before it starts: rows, parameters, steps, disk.

`python -m runner.engines.sft.inside.survey PLAN SAMPLES`.

Prepares and encodes the rows (both are cached for the run), counts parameters exactly without
loading weights, works out steps, checkpoints and the disk they take, and names settings that the
rows contradict. Prints one JSON document.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from runner.common import terminal
from runner.common.errors import Problem, RunnerError, SpecError, bug
from runner.common.tensors_only import load_tensors_only
from runner.engines.render import read_plan
from runner.engines.sft.inside.image_tokens import image_tokens
from runner.engines.sft.inside.imports import without_collection
from runner.engines.sft.inside.train.arguments import require_optimizer
from runner.engines.sft.inside.train.length import Length, length_of
from runner.engines.sft.inside.train.schedule import (
    has_best_candidate,
    warm_up_alone,
    warm_up_steps,
)
from runner.engines.sft.memory.ask import Batch
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.survey_record import RowsReport, Survey
from runner.engines.sft.unused_packages import leave_out_unused
from runner.jobs.training import TrainingSettings, beyond_the_end

MANY_PASSES = 10
RECORDS_BYTES = 64 * 1024
"""Random states, trainer_state.json and the seal of one checkpoint, about."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def contradictions(training: TrainingSettings, length: Length) -> tuple[list[Problem], list[str]]:
    """What the rows make impossible, and what they make unlikely to be meant."""
    problems: list[Problem] = []
    warnings: list[str] = []
    place = f"{length.phase}: " if length.phase else ""
    warmup, told = warm_up_steps(training, length.steps)
    if why := warm_up_alone(length.steps, warmup, told):
        field = "stages.0.warmup_steps" if training.stages else "warmup_ratio"
        value = training.stages[0].warmup_steps if training.stages else training.warmup_ratio
        problems.append(
            Problem(
                f"{place}{length.arithmetic(training)}",
                f"training.{field}",
                why,
                f"{value:g}",
                f"more steps, or no warm-up: --set training.{field}=0",
            )
        )
    elif warmup >= length.steps:
        warnings.append(
            f"{place}the learning rate never reaches its peak: the warm-up takes {warmup:,} "
            f"({told}) of {length.steps:,} steps"
        )
    if length.passes > MANY_PASSES and training.max_steps is not None:
        warnings.append(
            f"{place}{length.steps} steps x {length.global_batch} rows are {length.passes:.0f} "
            f"passes over the {length.rows} training rows"
        )
    if length.global_batch > length.rows:
        warnings.append(
            f"{place}one step takes {length.global_batch} rows, there are {length.rows}: every "
            "step is a whole pass, with fewer rows than the batch says"
        )
    every = training.eval_steps
    if training.load_best_model_at_end and every is not None and every > length.steps:
        problems.append(
            Problem(
                "the rows",
                "training.eval_steps",
                "never comes, so there is no best checkpoint to end with",
                str(every),
                f"at most {length.steps}, the steps of this training",
            )
        )
    elif training.load_best_model_at_end and not has_best_candidate(training, length.steps):
        problems.append(
            Problem(
                "the stages",
                "training.load_best_model_at_end",
                "no step is both evaluated and saved, so none can be the best",
                "true",
                "stages that save at multiples of eval_steps",
            )
        )
    elif training.max_steps is None:  # of a stated length the plan has said it
        warnings += [place + line for line in beyond_the_end(training, length.steps)]
    return problems, warnings


def checkpoint_bytes(plan: SftPlan, trainable: int, total: int, tokenizer_bytes: int) -> int:
    """About what one checkpoint takes on disk, in bytes.

    Adapters are saved in fp32 (a quantized base's in bf16 at the least; fp32 is taken), all weights
    in the plan's precision; AdamW keeps two fp32 numbers for each trained parameter, the 8-bit
    kind two bytes and a little for the scales.
    """
    state = 8 if plan.training.optim == "adamw_torch" else 2.1
    if plan.method == "full" and "adapter" in plan.trains:
        weights = total * (4 if plan.precision == "fp32" else 2)
    else:
        weights = trainable * 4
    return int(weights + trainable * state) + tokenizer_bytes + RECORDS_BYTES


def survey(plan: SftPlan, samples: int) -> Survey:
    """The document that `main` prints.

    Raises RunnerError as the run itself would, before it starts.
    """
    with without_collection():
        import datasets  # noqa: F401 - for the rows
        import peft  # noqa: F401 - for the counts; torch and transformers by it

    from runner.engines.sft.inside.evaluate.foresee import foresee_evaluation, foresee_merge
    from runner.engines.sft.inside.images import image_processor
    from runner.engines.sft.inside.memory.batches import of_rows
    from runner.engines.sft.inside.model.count import count_parameters
    from runner.engines.sft.inside.model.limits import (
        dtype_notes,
        require_plain_weights,
        require_within,
    )
    from runner.engines.sft.inside.model.tokenizer import load_tokenizer
    from runner.engines.sft.inside.rows import prepare_rows

    batches: list[Batch] = []
    record: Survey = {
        "notes": [],
        "warnings": [],
        "trainings": [],
        "memory": None,
        "disk_bytes": 0,
    }
    problems: list[Problem] = []
    written = 0
    for number, part in enumerate(plan.trainings, start=1):
        require_optimizer(part)
        require_plain_weights(part)
        tokenizer, notes = load_tokenizer(part)
        if part.vision is not None:
            image_processor(part)
        rows = prepare_rows(part, tokenizer, samples=samples, image_tokens=image_tokens(part))
        near = require_within(part, tokenizer, rows)
        notes += dtype_notes(part)
        count = count_parameters(part)
        length = length_of(part, len(rows.train), len(rows.eval))
        wrong, unlikely = contradictions(part.training, length)
        problems += wrong
        size = checkpoint_bytes(part, count.trainable, count.total, _tokenizer_bytes(part))
        written += size * length.kept
        batches.append(of_rows(part, rows))
        record["notes"] += [note for note in notes if note not in record["notes"]]
        record["warnings"] += [line for line in near if line not in record["warnings"]] + unlikely
        record["trainings"].append(
            {
                "phase": length.phase,
                "rows": length.rows,
                "eval_rows": length.eval_rows,
                "global_batch": length.global_batch,
                "steps_an_epoch": length.steps_an_epoch,
                "steps": length.steps,
                "passes": length.passes,
                "saves": length.saves,
                "kept": length.kept,
                "data": cast(RowsReport, rows.report()),
                "lines": rows.lines(),
                "parameters": {
                    "trainable": count.trainable,
                    "total": count.total,
                    "percent": round(count.percent, 4),
                },
                "checkpoint_bytes": size,
            }
        )
        if number == len(plan.trainings):  # what is evaluated and merged is the last one's
            said = foresee_evaluation(part, tokenizer, rows.prepared, _say)
            record["notes"] += [*said, *foresee_merge(part)]
    if problems:
        raise SpecError(problems)
    record["memory"] = _memory(plan, batches, record["notes"])
    record["disk_bytes"] = written + record["trainings"][-1]["checkpoint_bytes"]  # and the result
    return record


def _memory(plan: SftPlan, batches: list[Batch], notes: list[str]) -> dict[str, object] | None:
    """The plan's predicted memory (runner.vram.prediction), or None and a note."""
    from runner.common.packages import package_version
    from runner.engines.sft.inside.memory.predict import predict
    from runner.engines.sft.memory.ask import PACKAGES, predicted

    versions = {name: package_version(name) for name in PACKAGES}
    try:
        return predicted(plan, batches, versions, predict).model_dump(mode="json")
    except RunnerError as error:
        notes.append(f"the memory could not be predicted: {error.message}")
        return None


def _say(line: str) -> None:
    terminal.say(f"runner: {line}")


def _tokenizer_bytes(plan: SftPlan) -> int:
    folder = Path(plan.model.folder) if plan.model.folder else None
    files = [folder / name for name in TOKENIZER_FILES] if folder else []
    return sum(path.stat().st_size for path in files if path.is_file())


def main() -> int:
    """Exit code 0, or that of the first refusal, whose lines are in the JSON."""
    load_tensors_only()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    plan = read_plan(Path(sys.argv[1]))
    leave_out_unused(plan)
    if plan.model.folder is not None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    code = 0
    record: Mapping[str, object]
    try:
        record = survey(plan, int(sys.argv[2]))
    except RunnerError as error:
        record = {"error": error.lines(), "spec": isinstance(error, SpecError)}
        code = error.exit_code
    except Exception as error:
        record, code = {"error": bug(error).lines(), "spec": False}, 1
    terminal.put_json(record)
    return code


if __name__ == "__main__":
    sys.exit(main())
