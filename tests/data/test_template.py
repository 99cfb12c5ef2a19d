"""What a template reads besides the row, what it refuses, and what it leaves out."""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.common.caches import file_sha256
from runner.common.errors import RefusedError, SpecError
from runner.data.audit import audit
from runner.data.masks import encode, encode_rows, prompt_ids, segments
from runner.data.template import (
    TemplateSettings,
    fix_template,
    require_steady,
    settings_for,
    template_notes,
    template_reads,
    template_record,
)
from runner.data.token_stats import TokenStats
from runner.engines.sft.inside.rows import PreparedRows, prepare_rows
from runner.jobs.data import DataSettings
from runner.plans.rows import PlannedData, PlannedRows

Tokenizers = Callable[..., Any]  # a fixture that makes or loads one

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
DATED = "{{ '<|im_start|>system\\nToday is ' + strftime_now('%d %b %Y %H:%M') + '<|im_end|>\\n' }}"
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
)
MOODS = "{{ '<|im_start|>system\\n' + (['calm', 'gay', 'sad', 'shy', 'sly'] | random) + '\\n' }}"
DAY = datetime.date(2026, 3, 5)


def chat(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for index, content in enumerate(contents):
        messages.append({"role": ("user", "assistant")[index % 2], "content": content})
    return messages


def told_day(monkeypatch: pytest.MonkeyPatch, day: datetime.date) -> None:
    """The clock that templates are given says `day`."""
    from transformers.utils import chat_template_utils

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime.combine(day, datetime.time(13, 7))

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


def plan_of(path: Path, *, date: str | None = None, **data: Any) -> Any:
    """As much of a plan as rows are made by."""
    source = PlannedData(kind="file", path=str(path), sha256=file_sha256(path))
    return SimpleNamespace(
        data=DataSettings.model_validate({"train": str(path), **data}),
        rows=PlannedRows(train=source),
        training=SimpleNamespace(max_length=None, seed=7),
        variant="train",
        vision=None,
        template_date=date,
    )


def write(path: Path, *rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def rows_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PreparedRows]:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))

    def make(tokenizer: Any, *rows: list[dict[str, Any]], **options: Any) -> PreparedRows:
        plan = plan_of(write(tmp_path / "rows.jsonl", *rows), **options)
        fix_template(tokenizer, settings_for(plan))
        return prepare_rows(plan, tokenizer)

    return make


def text_of(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    return "".join(part.text for part in segments(tokenizer, messages, None)[1])


# the day


def test_a_run_has_one_day(
    tiny_tokenizer: Tokenizers,
    rows_of: Callable[..., PreparedRows],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = tiny_tokenizer(DATED + CHATML)
    row = chat("Hi", "Hello")
    told_day(monkeypatch, DAY)
    first = rows_of(tokenizer, row, date="2026-03-05")
    assert "Today is 05 Mar 2026 00:00" in text_of(tokenizer, row)
    told_day(monkeypatch, DAY + datetime.timedelta(days=1))
    # the next day's process: a resume, evaluate, chat, or a reproduction
    again = rows_of(tiny_tokenizer(DATED + CHATML), row, date="2026-03-05")
    assert again.train[:] == first.train[:]
    assert again.train.cache_files == first.train.cache_files
    (prompt,) = prompt_ids(tokenizer, [row[:-1]])
    assert first.train[0]["input_ids"][: len(prompt)] == prompt
    assert "2026-03-05 for all of a run" in "\n".join(first.lines())
    assert first.report()["train"]["template"]["date"] == "2026-03-05"


def test_the_next_days_check_is_another_text(
    tiny_tokenizer: Tokenizers, rows_of: Callable[..., PreparedRows]
) -> None:
    tokenizer, row = tiny_tokenizer(DATED + CHATML), chat("Hi", "Hello")
    today = rows_of(tokenizer, row, date="2026-03-05")
    tomorrow = rows_of(tokenizer, row, date="2026-03-06")
    assert today.train[0] != tomorrow.train[0]
    assert "06 Mar" in text_of(tokenizer, row)


def test_a_template_without_a_date_shares_its_cache(
    tiny_tokenizer: Tokenizers, rows_of: Callable[..., PreparedRows]
) -> None:
    tokenizer, row = tiny_tokenizer(), chat("Hi", "Hello")
    first = rows_of(tokenizer, row, date="2026-03-05")
    again = rows_of(tokenizer, row, date="2026-03-06")
    assert first.train.cache_files == again.train.cache_files
    assert template_notes(tokenizer) == []
    assert template_record(tokenizer)["date"] is None


def test_the_clock_is_put_back(tiny_tokenizer: Tokenizers) -> None:
    from transformers.utils import chat_template_utils

    tokenizer = tiny_tokenizer(DATED + CHATML)
    fix_template(tokenizer, TemplateSettings(date=DAY))
    encode(tokenizer, chat("Hi", "Hello"), None)
    assert chat_template_utils.datetime is datetime.datetime


# randomness, and what nothing sets


def test_what_is_drawn_is_drawn_by_the_plans_seed(tiny_tokenizer: Tokenizers) -> None:
    rows = [chat(f"q{number}", "a", "b", "c") for number in range(20)]
    texts = []
    for seed, before in ((1, 5), (1, 6), (2, 5)):
        tokenizer = tiny_tokenizer(MOODS + CHATML)
        fix_template(tokenizer, TemplateSettings(seed=seed))
        random.seed(before)
        expected = random.Random(before).random()  # noqa: S311 - no secret
        texts.append([text_of(tokenizer, row) for row in rows])
        assert random.random() == expected  # noqa: S311 - nobody else's draws are touched
        (prompt,) = prompt_ids(tokenizer, [rows[0][:-1]])
        assert encode(tokenizer, rows[0], None).input_ids[: len(prompt)] == prompt
        assert encode(tokenizer, rows[0], None).turns == 2
    assert texts[0] == texts[1] != texts[2]
    assert len({text.split("\n")[1] for text in texts[0]}) > 1  # rows differ
    assert "by seed 2" in template_notes(tokenizer)[0]


def test_what_a_template_asks_for_and_nobody_sets(tiny_tokenizer: Tokenizers) -> None:
    template = "{% if now is defined %}{{ now() }}{% endif %}{{ enable_thinking }}" + CHATML
    reads = template_reads(tiny_tokenizer(template))
    assert reads.unset == ("enable_thinking", "now")
    assert not reads.date
    assert not reads.randomness
    assert template_reads(tiny_tokenizer("{{ lipsum() }}")).randomness
    assert template_reads(tiny_tokenizer("{{ strftime_now('%Y') }}")).date
    tokenizer = tiny_tokenizer("{{ now() }}" + CHATML)
    with pytest.raises(SpecError, match="'now' is undefined"):
        encode(tokenizer, chat("a", "b"), None)


def test_a_template_that_is_never_twice_the_same_is_refused(
    tiny_tokenizer: Tokenizers, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer()
    made = iter(range(10))
    monkeypatch.setattr(
        type(tokenizer), "apply_chat_template", lambda *args, **more: f"text {next(made)}"
    )
    with pytest.raises(RefusedError, match="otherwise each time"):
        require_steady(tokenizer, chat("a", "b"))  # type: ignore[arg-type]


# refusals


def test_a_refused_system_turn_is_named_with_its_row(
    tiny_tokenizer: Tokenizers, rows_of: Callable[..., PreparedRows], tmp_path: Path
) -> None:
    rows = [chat("a", "b"), chat("c", "d", system="s"), chat("e", "f", system="t")]
    with pytest.raises(SpecError) as caught:
        rows_of(tiny_tokenizer(NO_SYSTEM + CHATML), *rows)
    assert caught.value.exit_code == 2
    first, second = caught.value.problems
    assert first.where == f"{tmp_path}/rows.jsonl:2"
    assert second.where == f"{tmp_path}/rows.jsonl:3"
    assert "System role not supported" in first.problem
    assert "data.system" in str(first.expected)
    assert first.value == "roles: system user assistant"


def test_strict_alternation_names_the_turn(tiny_tokenizer: Tokenizers) -> None:
    template = (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CHATML
    )
    row = [*chat("a"), *chat("b"), {"role": "assistant", "content": "c"}]
    with pytest.raises(SpecError) as caught:
        list(encode_rows(tiny_tokenizer(template), [("x.jsonl:4", row)], None))
    (problem,) = caught.value.problems
    assert problem.where == "x.jsonl:4"
    assert "roles must alternate" in problem.problem
    assert "turn 2 is user after user" in str(problem.expected)


def test_a_template_that_takes_no_open_question_is_refused(tiny_tokenizer: Tokenizers) -> None:
    template = "{% if messages | length == 1 %}{{ raise_exception('say more') }}{% endif %}"
    with pytest.raises(SpecError, match="say more"):
        encode(tiny_tokenizer(template + CHATML), chat("a", "b"), None)


# what a template leaves out, and thinks nothing


def counted(tokenizer: Any, *rows: Any) -> TokenStats:
    tally = TokenStats(None)
    numbered = [(number, *row) for number, row in enumerate(rows, start=1)]
    for number, row in enumerate(encode_rows(tokenizer, numbered, None), start=1):
        tally.add(number, row)
    assert TokenStats.from_record(json.loads(json.dumps(tally.record()))) == tally
    return tally


def test_what_the_template_does_not_write_is_said(tiny_tokenizer: Tokenizers) -> None:
    silent = CHATML.replace(
        "{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}"
    )
    tool = {"type": "function", "function": {"name": "find_it", "parameters": {}}}
    call = {"type": "function", "function": {"name": "find_it", "arguments": {}}}
    row = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "it is there"},
        {"role": "assistant", "content": "a", "reasoning_content": "so it goes"},
    ]
    tally = counted(tiny_tokenizer(silent), (row, [tool]))
    assert tally.left_out == dict.fromkeys(
        ("tool definitions", "tool calls", "tool results", "reasoning"), 1
    )
    assert "WARNING: T leaves reasoning of the rows out of the text (1)" in "\n".join(
        tally.notes("T")
    )
    # of the call, of which nothing is written, the end is not trained either
    texts = [p.text for p in segments(tiny_tokenizer(silent), row, None, [tool])[1] if p.trained]
    assert texts == ["a<|im_end|>"]


THINKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>' }}"
    "{% endif %}{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize("prompted", ["", "<think>\\n"])
def test_an_empty_think_block_that_is_trained_is_warned_of(
    tiny_tokenizer: Tokenizers, prompted: str
) -> None:
    template = THINKS.replace(
        "assistant\\n' }}{% endif %}", "assistant\\n" + prompted + "' }}{% endif %}"
    )
    thoughtful = chat("q", "a")
    thoughtful[-1]["reasoning_content"] = "hm"
    tally = counted(tiny_tokenizer(template), (chat("q", "a"),), (thoughtful,))
    assert tally.empty_think == 1
    assert "an empty think block is trained in 1 rows" in "\n".join(tally.notes("T"))
    assert not counted(tiny_tokenizer(), (chat("say <think></think>", "a"),)).empty_think
    said = counted(tiny_tokenizer(), (chat("q", "<think>\n\n</think>\n\na"),))
    assert said.empty_think == 1


def test_the_audit_holds_it_all(tiny_tokenizer: Tokenizers) -> None:
    tokenizer = tiny_tokenizer(DATED + CHATML)
    fix_template(tokenizer, TemplateSettings(date=DAY))
    tally = counted(tokenizer, (chat("q <|im_end|>", "a"),))
    record = audit(tokenizer, tally, []).to_record()
    assert record["template"]["date"] == "2026-03-05"
    assert record["special_tokens_in_text"] == {"tokens": 1, "rows": 1, "names": ["<|im_end|>"]}
    assert json.loads(json.dumps(record)) == record
