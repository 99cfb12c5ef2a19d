"""An evaluation as one story: rows, task, model, answers, figures, records.

Imports this package; torch through it. Writes into the evaluation's folder and to stderr.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from runner.common import terminal
from runner.common.errors import RefusedError, SpecError
from runner.data.prepare import prepare
from runner.engines.sft.inside.evaluate import record as records
from runner.engines.sft.inside.evaluate.expected import expected_as_read, thinking_notes
from runner.engines.sft.inside.evaluate.generate import Greedy, longest_sequence
from runner.engines.sft.inside.evaluate.measure import Material, measure, tokenize
from runner.engines.sft.inside.evaluate.progress import Progress
from runner.engines.sft.inside.evaluate.request import SCHEMA_VERSION, EvaluationFolder, Request
from runner.engines.sft.inside.evaluate.rows import Question, RowSet, load_sets, trained_answers
from runner.engines.sft.inside.evaluate.sight import load_sight
from runner.engines.sft.inside.evaluate.state import State
from runner.engines.sft.inside.evaluate.tasks import (
    ExactMatch,
    Row,
    Task,
    classification_for,
    json_for,
    multiple_choice_for,
)
from runner.engines.sft.inside.model.limits import require_measurable
from runner.engines.sft.inside.model.tokenizer import load_tokenizer
from runner.engines.sft.inside.model.trained import result_file
from runner.engines.sft.inside.subjects import Subject, load_subjects, on_available_device
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.render import model_line
from runner.jobs.training import EvaluationSettings
from runner.runs.folder import RunFolder


@dataclass
class Asked:
    """What is measured, decided before any weights are loaded."""

    sets: list[RowSet]
    task: Task | None  # None: loss alone
    notes: list[str]  # for the user; more are added on the way

    @property
    def rows(self) -> list[Row]:
        """Those of all sets, in order."""
        return [row for each in self.sets for row in each.rows]

    @property
    def starts(self) -> list[int]:
        """Where each set begins in `rows`."""
        sizes = [len(each.rows) for each in self.sets]
        return [sum(sizes[:index]) for index in range(len(sizes))]

    def line(self, index: int, told: records.Told) -> dict[str, Any]:
        """The prediction of one row."""
        number = sum(start <= index for start in self.starts) - 1
        row = self.sets[number].rows[index - self.starts[number]]
        expected = self.task.expected(row) if self.task else row.expected
        return records.prediction(self.sets[number].name, row, expected, told)


def evaluate(request: Request, whole: SftPlan, folder: EvaluationFolder, state: State) -> None:
    """Measure what is asked for and leave predictions.jsonl, evaluation.json and the picture.

    Rows are read, and judged as far as they can be, before any weights are loaded. Raises
    SpecError and RefusedError as the parts do.
    """
    started = time.monotonic()
    plan = whole.trainings[-1]
    run = RunFolder(request.run) if request.run else None
    settings = request.settings
    question = Question(
        plan, request.files, run, settings.max_rows, settings.task == "multiple_choice", _say
    )
    tokenizer, more = load_tokenizer(plan)
    greedy = greedy_of(tokenizer, settings)
    asked = settle_task(question, settings, greedy)
    wanted, plan = plan, on_available_device(plan)
    if plan is not wanted:
        asked.notes.append("measured on CPU: the plan says cuda, and no GPU is to be had now")
    rows = asked.rows
    state.rows = len(rows)
    _say(f"measuring {len(rows):,} rows of {model_line(plan)}")
    sight = load_sight(plan, tokenizer)
    generates = asked.task is not None
    material = tokenize(tokenizer, rows, plan.training.max_length, sight, generates=generates)
    encoded = [row.input_ids for row in material.encoded.values()]
    require_measurable(plan, tokenizer, encoded, material.prompts)
    subjects = load_subjects(plan, run, with_base=request.base)
    room = longest_sequence(subjects[0].model)
    asked.notes += [*more, *material.notes, *_room_notes(material, room, settings.max_new_tokens)]
    for line in asked.notes:
        _say(line)
    told = _answers(asked, subjects, material, greedy, settings, state)
    for line in thinking_notes(told):
        asked.notes.append(line)
        _say(line)
    records.write_predictions(folder, [asked.line(index, each) for index, each in enumerate(told)])
    figures = records.figures(asked.sets, asked.starts, told, asked.task)
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "complete": True,
        "target": request.target,
        "run": run.name if run else None,
        "job": whole.job,
        "task": asked.task.name if asked.task else "loss",
        "rows": len(rows),
        "sets": figures,
        "macro": records.macro(asked.sets, asked.starts, told, asked.task),
        "settings": settings.model_dump(mode="json"),
        "conditions": records.conditions(
            plan, result_file(plan, run) if run else None, material, tokenizer
        ),
        "seconds": round(time.monotonic() - started, 3),
        "notes": asked.notes,
    }
    for line in records.draw_confusion(folder, result, figures, "trained" if run else "model"):
        asked.notes.append(line)
        _say(line)
    folder.write_json(folder.evaluation, result)


def _answers(
    asked: Asked,
    subjects: Sequence[Subject],
    material: Material,
    greedy: Greedy,
    settings: EvaluationSettings,
    state: State,
) -> list[records.Told]:
    """Every row's answers, in the rows' order; written down batch by batch as they come."""
    told: dict[int, records.Told] = {}
    limit = settings.max_new_tokens if asked.task else 0
    costs = [material.cost(index, limit) for index in range(len(material.rows))]
    progress = state.progress = Progress(len(costs), sum(costs))
    writer = state.folder.open_lines(state.folder.predictions)

    def take(batch: Sequence[tuple[int, records.Told]]) -> None:
        for index, answers in batch:
            writer.write(asked.line(index, answers))
            told[index] = answers
            state.done = len(told)
        progress.add(len(batch), sum(costs[index] for index, _ in batch))
        state.check_parent()

    try:
        measure(subjects, asked.task, material, greedy, settings.per_device_batch_size, take)
    finally:
        writer.close()
    progress.end()
    return [told[index] for index in range(len(costs))]


def greedy_of(tokenizer: Any, settings: EvaluationSettings) -> Greedy:
    """How a model is made to answer, and its answers read, by these settings."""
    strips = settings.thinking == "strip"
    return Greedy(tokenizer, settings.max_new_tokens, strips_thinking=strips)


def settle_task(question: Question, settings: EvaluationSettings, greedy: Greedy) -> Asked:
    """The rows and the task that judges them. Raises SpecError where that task can't."""
    wanted = settings.task
    sets, prepared = load_sets(question)
    sets = [
        replace(each, rows=[expected_as_read(row, greedy) for row in each.rows]) for each in sets
    ]
    rows = [row for each in sets for row in each.rows]
    notes = [note for each in sets for note in each.notes]
    if question.run is not None:
        notes += _trained_notes(sets)
    if wanted == "auto":
        wanted = "classification" if all(each.labelled for each in sets) else "loss"
    if wanted == "loss":
        return Asked(sets, None, notes)
    if wanted == "exact_match":
        return Asked(sets, ExactMatch(), notes)
    if wanted == "json":
        return Asked(sets, json_for(rows), notes)
    if wanted == "multiple_choice":
        return Asked(sets, multiple_choice_for(rows, settings.answer_pattern), notes)
    trained: Counter[str] | None = None
    if prepared is None:
        # the baseline is the training rows' majority, but files can be measured without these
        try:
            prepared = prepare(question.plan, say=question.say)
        except (SpecError, RefusedError) as error:
            notes.append(
                "the majority baseline is the evaluated rows' own: the training rows can't be "
                f"read here ({error.message})"
            )
    if prepared is not None:
        trained = Counter()
        for text, number in trained_answers(prepared).items():
            trained[greedy.bare(text)] += number
    labels = question.plan.data.labels
    bare = {key: greedy.bare(text) for key, text in labels.items()} if labels else None
    task = classification_for(rows, bare, trained)
    return Asked(sets, task, notes)


def _trained_notes(sets: Sequence[RowSet]) -> list[str]:
    """ "0 of 805 test rows were trained on", for each set; loud where some were."""
    out = []
    for each in sets:
        if not each.trained_on:
            out.append(
                f"WARNING: whether {each.name} rows were trained on is unknown: the run kept no "
                "hashes of its rows"
            )
        for seen in each.trained_on:
            where = f" in {seen['training']}" if seen["training"] else ""
            line = (
                f"{seen['seen_prompts']} of {seen['rows']} {each.name} rows were trained on{where}"
            )
            if seen["seen_prompts"]:
                same = seen["seen_rows"]
                line = f"WARNING: {line} ({same} with the same answer): the figures flatter the run"
            out.append(line)
    return out


def _room_notes(material: Material, positions: int | None, new_tokens: int) -> list[str]:
    if positions is None or not material.prompts:
        return []
    none = sum(len(ids) >= positions for ids in material.prompts)
    short = sum(positions - new_tokens < len(ids) < positions for ids in material.prompts)
    notes = []
    if none:
        notes.append(
            f"WARNING: {none} prompts fill the model's {positions} positions: they get no answer, "
            "which counts as wrong"
        )
    if short:
        notes.append(
            f"{short} prompts leave less than max_new_tokens of the model's {positions} positions"
        )
    return notes


def _say(line: str) -> None:
    terminal.say(f"runner: {line}")
