"""What a model thinks before it answers, told apart from the answer. Asks chat templates.

Imports the standard library and runner.data. A think block is what stands between marks that
the chat template writes around reasoning, or between marks in common use (<think> ... </think>) at
the start of an answer. Marks further on are part of the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runner.data.messages import Message
from runner.data.template import TemplateError, render

_PAIRS = (
    ("<think>", "</think>"),  # Qwen3, DeepSeek-R1, QwQ, GLM, MiniMind
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
_THOUGHT, _SAID = "runnerthought", "runnersaid"  # words that no template holds


@dataclass(frozen=True)
class ThinkMarks:
    """How think blocks begin and end, without white space around."""

    pairs: tuple[tuple[str, str], ...] = _PAIRS
    lead: str = ""  # what the template writes before an answer that nothing was thought for
    begun: str = ""  # the mark that the generation prompt itself ends with


@dataclass(frozen=True)
class Parted:
    """A generated text in its parts."""

    thinking: str | None  # None: no think block, and nothing that the template writes was taken off
    answer: str
    closed: bool = True  # False: cut within its think block, so that there is no answer


def think_marks(tokenizer: Any) -> ThinkMarks:
    """The marks that the tokenizer's chat template writes around reasoning, and the common ones."""
    user: Message = {"role": "user", "content": "Hi"}
    plain: Message = {"role": "assistant", "content": _SAID}
    thought: Message = {**plain, "reasoning_content": _THOUGHT}
    prompt = _render(tokenizer, [user], generation_prompt=True)
    if prompt is None:
        return ThinkMarks()
    begun = next((mark for mark, _ in _PAIRS if prompt.rstrip().endswith(mark)), "")
    head = prompt.rstrip().removesuffix(begun) if begun else prompt
    lead = ""
    shown = _render(tokenizer, [user, plain], generation_prompt=False)
    if shown and not begun and shown.startswith(head) and _SAID in shown:
        lead = shown[len(head) : shown.index(_SAID)].strip()
        for opening, closing in _PAIRS:  # an empty block is a block
            if lead.startswith(opening) and lead.endswith(closing):
                lead = ""
    pairs = list(_PAIRS)
    told = _render(tokenizer, [user, thought], generation_prompt=False)
    if told and told.startswith(head) and 0 <= told.find(_THOUGHT) < told.find(_SAID):
        at = told.index(_THOUGHT)
        opening = told[len(head) : at].strip() or begun
        closing = told[at + len(_THOUGHT) : told.index(_SAID)].strip()
        if opening and closing and (opening, closing) not in pairs:
            pairs.insert(0, (opening, closing))
    return ThinkMarks(tuple(pairs), lead, begun)


def part_thinking(text: str, marks: ThinkMarks, *, finished: bool = True) -> Parted:
    """Take think blocks, and what the template itself writes, off the start of `text`.

    `finished`: the model ended its turn by itself. A block that the generation prompt began, and
    that the model neither closed nor was cut in, is its answer: it answered without thinking.
    """
    thoughts: list[str] = []
    rest, taken = text, False
    if marks.begun and not rest.lstrip().startswith(marks.begun):
        closings = [closing for opening, closing in marks.pairs if opening == marks.begun]
        found = _first(rest, closings)
        if found is None:
            return Parted(None, text) if finished else Parted(text.strip(), "", closed=False)
        thoughts.append(rest[: found[0]].strip())
        rest, taken = rest[found[1] :], True
    elif (found := _stray(rest, marks)) is not None:
        thoughts.append(rest[: found[0]].strip())
        rest, taken = rest[found[1] :], True
    while True:
        bare = rest.lstrip()
        if marks.lead and bare.startswith(marks.lead):
            rest, taken = bare[len(marks.lead) :], True
            continue
        pair = next((pair for pair in marks.pairs if bare.startswith(pair[0])), None)
        if pair is None:
            break
        closings = [closing for opening, closing in marks.pairs if opening == pair[0]]
        found = _first(bare, closings, len(pair[0]))
        if found is None:
            thoughts.append(bare[len(pair[0]) :].strip())
            return Parted("\n".join(thoughts), "", closed=False)
        thoughts.append(bare[len(pair[0]) : found[0]].strip())
        rest, taken = bare[found[1] :], True
    if not taken:
        return Parted(None, text)
    return Parted("\n".join(thoughts), rest.lstrip())


def thinking_line(thinking: str, *, closed: bool) -> str:
    """What is said of a think block that is not shown."""
    cut = "" if closed else ", in which it was cut: there is no answer (--max-new-tokens)"
    return f"({len(thinking):,} characters of thinking are not shown{cut})"


def without_specials(text: str, specials: Sequence[str]) -> str:
    """The text without special tokens, as `decode` leaves them out."""
    if not specials:
        return text
    return re.sub("|".join(map(re.escape, sorted(specials, key=len, reverse=True))), "", text)


def special_texts(tokenizer: Any) -> list[str]:
    """The tokenizer's special tokens as text."""
    added = [str(t.content) for t in tokenizer.added_tokens_decoder.values() if t.special]
    return list(dict.fromkeys([*map(str, tokenizer.all_special_tokens), *added]))


def _first(text: str, marks: Sequence[str], start: int = 0) -> tuple[int, int] | None:
    """Where the first of `marks` begins and ends; of two at one place the longer one."""
    found = [(at, -len(mark)) for mark in marks if (at := text.find(mark, start)) >= 0]
    if not found:
        return None
    at, length = min(found)
    return at, at - length


def _stray(text: str, marks: ThinkMarks) -> tuple[int, int] | None:
    """The end of a block whose beginning the model left out, since it was trained behind it."""
    found = _first(text, [_PAIRS[0][1]])
    if found is None or any(0 <= text.find(opening) < found[0] for opening, _ in marks.pairs):
        return None
    return found


def _render(tokenizer: Any, messages: Sequence[Message], *, generation_prompt: bool) -> str | None:
    try:
        return render(tokenizer, messages, generation_prompt=generation_prompt).text
    except TemplateError:  # this one has other turns in mind
        return None
