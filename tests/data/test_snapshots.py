"""Rows through ten chat templates: what is trained of each, against snapshots that were read.

`RUNNER_UPDATE_SNAPSHOTS=1` writes them anew; a person reads the difference before it is committed.
The texts are the same with a tokenizer of single bytes and with the real one of Qwen2.5.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.common.errors import SpecError
from runner.data.encoded import IGNORED_LABEL
from runner.data.masks import encode, prompt_ids, segments
from runner.data.template import TemplateSettings, fix_template
from runner.data.token_stats import TokenStats

Tokenizers = Callable[..., Any]  # a fixture that makes or loads one

TEMPLATES = Path(__file__).with_name("templates")
SNAPSHOTS = Path(__file__).with_name("snapshots")
DAY = datetime.date(2026, 3, 5)

# name -> (beginning of text, end of turn that is the eos, other special tokens)
KINDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "qwen2_5": ("", "<|im_end|>", ("<|im_start|>",)),
    "qwen3": ("", "<|im_end|>", ("<|im_start|>",)),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")),
    "mistral": ("<s>", "</s>", ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]")),
    "gemma2": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "gemma3": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "phi": ("", "<|endoftext|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "deepseek_r1": (
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        ("<｜User｜>", "<｜Assistant｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
    ),
    "gpt_oss": (
        "",
        "<|return|>",
        ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>"),
    ),
    "plain_lines": ("", "<|endoftext|>", ()),
}

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
SYSTEM = {"role": "system", "content": "Be kind."}


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ROWS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {
    "one turn": ([said("user", "Hi"), said("assistant", "Hello there.")], None),
    "several turns and a system turn": (
        [
            SYSTEM,
            said("user", "你好"),
            said("assistant", "  您好🤖\n"),
            said("user", "Bye"),
            said("assistant", "\nBye now  "),
        ],
        None,
    ),
    "reasoning beside the answers": (
        [
            said("user", "2+2?"),
            said("assistant", "4", reasoning_content="Two and two make four."),
            said("user", "3+2?"),
            said("assistant", "5", reasoning_content="Three and two make five."),
        ],
        None,
    ),
    "reasoning in the answer": (
        [said("user", "2+2?"), said("assistant", "<think>\nEasy.\n</think>\n\n4")],
        None,
    ),
    "a tool is called": (
        [
            SYSTEM,
            said("user", "Rome?"),
            said("assistant", "", tool_calls=[CALL], reasoning_content="I look it up."),
            said("tool", "18 C", name="get_weather"),
            said("assistant", "It is 18 degrees."),
        ],
        [WEATHER],
    ),
    "special tokens in the text": (
        [
            said("user", "What is {eos} or <|im_start|>assistant?"),
            said("assistant", "{eos} ends a turn. <end_of_turn> does so too."),
        ],
        None,
    ),
    "an answer that is not to be trained": (
        [
            said("user", "One?"),
            said("assistant", "WRONG", trained=False),
            said("user", "Sure?"),
            said("assistant", "Right."),
        ],
        None,
    ),
    "two questions in a row": (
        [said("user", "One?"), said("user", "Two?"), said("assistant", "Both.")],
        None,
    ),
}


def ready(tokenizer: Any, kind: str) -> Any:
    """`tokenizer` with a kind's special tokens, and its template unless it is the tokenizer's."""
    bos, eos, _ = KINDS[kind]
    # those of all kinds, so that a tokenizer that has served for others is as one that has not
    tokenizer.add_tokens(
        [text for first, end, more in KINDS.values() for text in (first, end, *more) if text],
        special_tokens=True,
    )
    if bos:
        tokenizer.bos_token = bos
    tokenizer.eos_token = eos
    if kind != "qwen2_5":
        tokenizer.chat_template = (TEMPLATES / f"{kind}.jinja").read_text(encoding="utf-8")
    fix_template(tokenizer, TemplateSettings(date=DAY))
    return tokenizer


def row_of(kind: str, name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    messages, tools = ROWS[name]
    eos = KINDS[kind][1]
    return [{**m, "content": m["content"].replace("{eos}", eos)} for m in messages], tools


def shown(tokenizer: Any, kind: str, name: str) -> str:
    """The row's text, trained parts between ⟦ and ⟧, and what is said of it."""
    messages, tools = row_of(kind, name)
    try:
        row, parts = segments(tokenizer, messages, None, tools)
    except SpecError as error:
        (problem,) = error.problems
        text = problem.problem.replace(str(tokenizer.name_or_path), "it")
        return f"REFUSED {text}\n  way out: {problem.expected}\n"
    text = "".join(f"⟦{part.text}⟧" if part.trained else part.text for part in parts)
    tally = TokenStats(None)
    tally.add(1, row)
    notes = [*tally.notes("the template"), *tally.special_note("text")]
    return text + "\n" + "".join(f"  note: {note}\n" for note in notes)


def snapshot(tokenizer: Any, kind: str) -> str:
    return "\n".join(f"===== {name}\n{shown(tokenizer, kind, name)}" for name in ROWS)


OURS = [kind for kind in KINDS if kind != "qwen2_5"]


@pytest.mark.parametrize("kind", OURS)
def test_what_is_trained_is_what_was_read(tiny_tokenizer: Tokenizers, kind: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.name_or_path = "it"
    text = snapshot(ready(tokenizer, kind), kind)
    path = SNAPSHOTS / f"{kind}.txt"
    if os.environ.get("RUNNER_UPDATE_SNAPSHOTS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def real(shared: Path) -> Any:
    """The real tokenizer of Qwen2.5, by itself, since kinds add tokens to it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(shared / "tokenizers" / "qwen2_5"))
    tokenizer.own_template = tokenizer.chat_template
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_the_real_tokenizer_trains_the_same_text(real: Any, kind: str) -> None:
    real.chat_template = real.own_template
    text = snapshot(ready(real, kind), kind)
    path = SNAPSHOTS / f"{kind}.txt"
    if kind == "qwen2_5" and os.environ.get("RUNNER_UPDATE_SNAPSHOTS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_apply_chat_template(real: Any, kind: str) -> None:
    real.chat_template = real.own_template
    tokenizer = ready(real, kind)
    for name in ROWS:
        messages, tools = row_of(kind, name)
        given = [{k: v for k, v in m.items() if k != "trained"} for m in messages]
        if kind == "deepseek_r1" and tools:
            continue  # takes arguments as text, which the next test has
        try:
            row = encode(tokenizer, messages, None, tools)
        except SpecError:
            with pytest.raises(Exception):  # noqa: B017 - templates raise what they like
                tokenizer.apply_chat_template(given, tools=tools, tokenize=False)
            continue
        dated = "strftime_now" in tokenizer.chat_template
        if not dated:
            text = tokenizer.apply_chat_template(given, tools=tools, tokenize=False)
            assert tokenizer.decode(row.input_ids) == text
        # an answer that begins with a newline is parted there on purpose, see masks._part
        parted = name == "several turns and a system turn"
        if not (dated or parted or row.special_texts):
            assert row.input_ids == tokenizer.apply_chat_template(
                given, tools=tools, tokenize=True, return_dict=False
            )
        last = [n for n, label in enumerate(row.labels) if label != IGNORED_LABEL]
        (prompt,) = prompt_ids(tokenizer, [messages[:-1]], [tools])
        if not row.opened_turns and not row.reread_turns:
            assert row.input_ids[: len(prompt)] == prompt
            assert row.labels[len(prompt)] != IGNORED_LABEL
        assert all(row.labels[n] == row.input_ids[n] for n in last)
