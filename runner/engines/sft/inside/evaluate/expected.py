"""What a row expects, in the form in which a generated answer is read; and what thinking was told.

Imports runner.data and this package; the tokenizer is passed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from runner.common.errors import RunnerError
from runner.data.masks import encode, prompt_ids
from runner.engines.sft.inside.evaluate.generate import Greedy
from runner.engines.sft.inside.evaluate.measure import Answer
from runner.engines.sft.inside.evaluate.tasks import Row


def expected_as_read(row: Row, greedy: Greedy) -> Row:
    """The row with the answer that a right model would be read to give.

    Think blocks in the answer's own text are taken off as they are off generated ones. An answer
    that calls tools is what the chat template writes for it.
    """
    answer = row.answer
    if answer is not None and "tool_calls" in answer:
        written = _as_written(row, greedy)
        if written is not None:
            return replace(row, expected=written)
    bare = greedy.bare(row.expected)
    if bare == row.expected:
        return row
    whole = answer or {"role": "assistant", "content": row.expected}
    return replace(row, expected=bare, answer=whole)


def thinking_notes(told: Sequence[Mapping[str, Answer]]) -> list[str]:
    """What became of think blocks, a line for each subject; nothing where there were none."""
    out = []
    for who in ("model", "base"):
        made = [g for each in told if who in each and (g := each[who].generated) is not None]
        thought = sum(each.thinking is not None for each in made)
        if not thought:
            continue
        whose = "" if who == "model" else " of the base"
        out.append(
            f"{thought:,} of {len(made):,} answers{whose} are judged without their think blocks, "
            "and what the chat template writes before an answer (evaluation.thinking)"
        )
        unclosed = sum(not each.closed for each in made)
        if unclosed:
            out.append(
                f"WARNING: {unclosed:,} answers{whose} were cut within their think block, which "
                "counts as unparseable; a larger evaluation.max_new_tokens lets them end"
            )
    return out


def _as_written(row: Row, greedy: Greedy) -> str | None:
    try:
        (prompt,) = prompt_ids(greedy.tokenizer, [row.prompt], [row.tools])
        whole = encode(greedy.tokenizer, row.messages, None, row.tools).input_ids
    except RunnerError:
        return None  # refused by name when the rows are tokenized
    if whole[: len(prompt)] != prompt:
        return None
    return greedy.read(whole[len(prompt) :]).text
