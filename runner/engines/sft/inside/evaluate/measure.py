"""From rows and models to answers, losses and judgements: the evaluation itself.

Imports this package; torch through `generate`, `loss` and `subjects`. Every batch is answered by
the model and by its base before the next begins, and its rows are handed on, so that what was
measured is not lost when an evaluation is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.common.errors import RefusedError
from runner.data.encoded import Encoded
from runner.data.masks import encode_rows, prompt_ids
from runner.data.messages import Message
from runner.data.template import settings_of, template_name, template_notes
from runner.engines.sft.inside.evaluate.generate import Generated, Greedy, batches
from runner.engines.sft.inside.evaluate.loss import answer_losses
from runner.engines.sft.inside.evaluate.sight import ImageInputs
from runner.engines.sft.inside.evaluate.tasks import Judgement, Row, Task
from runner.engines.sft.inside.subjects import Subject

UNCLOSED = "cut within its think block"
"""Why an answer is unparseable, in predictions.jsonl."""


@dataclass(frozen=True)
class Answer:
    """What one model said to one row, and how likely it found the expected answer."""

    generated: Generated | None  # None: the task generates nothing
    judgement: Judgement | None
    nats: float = 0.0  # cross-entropy of the expected answer, summed over its tokens
    tokens: int = 0  # of these; 0: the cut to max_length left none

    def record(self) -> dict[str, Any]:
        """Its part of a line in predictions.jsonl."""
        out: dict[str, Any] = {}
        if self.generated is not None and self.judgement is not None:
            out = {
                "generated": self.generated.text,
                "finished": self.generated.finished,
                **self.judgement.record(),
            }
            if self.generated.thinking is not None:
                out["thinking"] = self.generated.thinking
            if not self.generated.closed:
                out["unparseable"] = UNCLOSED
        # JSON has no NaN
        loss = self.nats / self.tokens if self.tokens and self.nats == self.nats else None
        return {**out, "answer_loss": loss, "answer_tokens": self.tokens}


@dataclass(frozen=True)
class Material:
    """Rows with their tokens, ready to be asked."""

    rows: list[Row]
    prompts: list[list[int]]  # token ids; empty where nothing is generated
    sight: ImageInputs | None  # for a model that reads images
    encoded: Mapping[int, Encoded]  # by the row's place in `rows`; without those that lost all
    truncated: int  # rows cut to max_length, for the loss alone
    notes: list[str]

    def seen(self, indices: Sequence[int]) -> dict[str, Any]:
        """What a model that reads images is given beside the tokens of these rows."""
        if self.sight is None:
            return {}
        return self.sight.inputs([self.rows[index].images for index in indices])

    def cost(self, index: int, new_tokens: int) -> float:
        """Tokens that a row's answer takes at most, for the time that is left."""
        prompt = len(self.prompts[index]) + new_tokens if self.prompts else 0
        return prompt + (len(self.encoded[index].input_ids) if index in self.encoded else 1)


def tokenize(
    tokenizer: Any, rows: list[Row], max_length: int, sight: ImageInputs | None, *, generates: bool
) -> Material:
    """Prompts as training renders what stands before an answer, and rows as it masks them."""

    def room(row: Row, messages: list[Message]) -> list[Message]:
        return messages if sight is None else sight.room(messages, row.images)

    places = ((f"{row.source}:{row.line}", room(row, row.messages), row.tools) for row in rows)
    encoded = list(encode_rows(tokenizer, places, max_length))
    kept = {
        index: row
        for index, row in enumerate(encoded)
        if row.supervised and (sight is None or sight.whole(row.input_ids, rows[index].images))
    }
    cut = sum(row.truncated for row in encoded)
    notes = []
    if skipped := sum(row.skipped_turns for row in encoded):
        notes.append(
            f"{skipped} earlier assistant turns have no loss: {template_name(tokenizer)} writes "
            "them differently once others follow"
        )
    if special := sum(len(row.special_texts) for row in encoded):
        notes.append(
            f"{special} special tokens in the rows' text are "
            + (
                "left special tokens (data.special_tokens: allow)"
                if settings_of(tokenizer).special_tokens == "allow"
                else "encoded as text"
            )
        )
    notes += template_notes(tokenizer)
    prompts: list[list[int]] = []
    if generates:
        asked = [room(row, row.prompt) for row in rows]
        prompts = prompt_ids(tokenizer, asked, [row.tools for row in rows])
    lost = len(rows) - len(kept)
    if cut:
        notes.append(
            f"{cut} rows were cut to {max_length} tokens (training.max_length) for the loss"
        )
    if lost:
        notes.append(
            f"WARNING: {lost} rows have no loss: the cut takes their whole answer, or an image"
        )
    return Material(rows, prompts, sight, kept, cut, notes)


def measure(
    subjects: Sequence[Subject],
    task: Task | None,
    material: Material,
    greedy: Greedy,
    batch_size: int,
    take: Callable[[Sequence[tuple[int, dict[str, Answer]]]], None],
) -> None:
    """Ask every row of every subject; `take` is given each batch's (row, answers by subject).

    Raises RefusedError where a batch does not fit into the GPU's memory.
    """
    lengths = [int(material.cost(index, 0)) for index in range(len(material.rows))]
    for batch in batches(lengths, batch_size):
        told: dict[int, dict[str, Answer]] = {index: {} for index in batch}
        for subject in subjects:
            with subject.active():
                answers = _ask(subject.model, task, material, greedy, batch, batch_size)
            for index, answer in zip(batch, answers, strict=True):
                told[index][subject.name] = answer
        take(list(told.items()))


def _ask(
    model: Any,
    task: Task | None,
    material: Material,
    greedy: Greedy,
    batch: Sequence[int],
    batch_size: int,
) -> list[Answer]:
    import torch

    try:
        generated: list[Generated | None] = [None] * len(batch)
        if task is not None:
            prompts = [material.prompts[index] for index in batch]
            generated = list(
                greedy.answer(
                    model, prompts, lambda chosen: material.seen([batch[at] for at in chosen])
                )
            )
        measurable = [index for index in batch if index in material.encoded]
        pad = greedy.tokenizer.pad_token_id
        losses: dict[int, tuple[float, int]] = {}
        if measurable:
            rows = [material.encoded[index] for index in measurable]
            losses = dict(
                zip(
                    measurable,
                    answer_losses(model, rows, pad, material.seen(measurable)),
                    strict=True,
                )
            )
    except torch.OutOfMemoryError:
        raise RefusedError(
            f"{batch_size} rows at once don't fit into the GPU's memory",
            f"--set evaluation.per_device_batch_size={max(1, batch_size // 2)}",
        ) from None
    out = []
    for index, text in zip(batch, generated, strict=True):
        judgement = None
        if task is not None and text is not None:
            judgement = task.judge(material.rows[index], text.text)
        out.append(Answer(text, judgement, *losses.get(index, (0.0, 0))))
    return out
