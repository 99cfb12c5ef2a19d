"""A tokenizer without its files, or that loses what rows say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.common.caches import file_sha256
from runner.common.errors import SpecError
from runner.data.decoded import lost_characters
from runner.data.masks import encode, encode_rows
from runner.data.token_stats import TokenStats
from runner.data.tokenizer_files import require_tokenizer_files
from runner.engines.sft.inside.model.tokenizer import load_tokenizer as load_for_plan
from runner.engines.sft.inside.rows import prepare_rows
from runner.jobs.data import DataSettings
from runner.plans.rows import PlannedData, PlannedRows

Tokenizers = Callable[..., Any]  # a fixture that makes or loads one

TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize("kind", ["qwen2", "gemma", "gemma2", "gpt2", "opt", "mistral"])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    model = SimpleNamespace(folder=str(tmp_path), id=str(tmp_path), revision=None)
    plan: Any = SimpleNamespace(model=model, trust_remote_code=False, vision=None)
    with pytest.raises(SpecError) as caught:
        load_for_plan(plan)
    assert caught.value.exit_code == 2
    (problem,) = caught.value.problems
    assert problem.where == str(tmp_path)
    assert "tokenizer.json and tokenizer_config.json" in problem.problem


@pytest.mark.parametrize(
    ("files", "lacking"),
    [
        (["tokenizer_config.json"], "tokenizer.json"),
        (["vocab.json"], "merges.txt"),
        (["merges.txt"], "vocab.json"),
        (
            ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"],
            "tokenizer.json",
        ),
        (["tokenizer.json"], None),
        (["tokenizer.model"], None),
        (["vocab.json", "merges.txt"], None),
        (["vocab.txt"], None),
        (["qwen.tiktoken", "tokenization_qwen.py"], None),
    ],
)
def test_the_lacking_file_is_named(tmp_path: Path, files: list[str], lacking: str | None) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    if lacking is None:
        require_tokenizer_files(tmp_path)
        return
    with pytest.raises(SpecError, match=lacking):
        require_tokenizer_files(tmp_path)


def words_of(known: str) -> Any:
    """A tokenizer of whole words; all others are <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "user", "assistant", ":", *known.split()]
    backend = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def chat(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def tally_of(tokenizer: Any, *rows: list[dict[str, Any]]) -> TokenStats:
    tally = TokenStats(None)
    lines = [(f"a.jsonl:{number}", row) for number, row in enumerate(rows, start=1)]
    for (line, _), row in zip(lines, encode_rows(tokenizer, lines, None), strict=True):
        tally.add(line, row)
    return tally


def test_rows_that_do_not_come_back_are_counted_and_refused() -> None:
    tokenizer = words_of("the cat sat on mat")
    tally_of(tokenizer, chat("the cat", "sat on the mat")).require_text("T")
    tally = tally_of(tokenizer, chat("the cat", "sat"), chat("le chat noir", "est là"))
    assert tally.undecoded_lines == ["a.jsonl:2"]
    with pytest.raises(SpecError) as caught:
        tally.require_text("T")
    (problem,) = caught.value.problems
    assert problem.where == "the tokenizer T"
    assert "at most 5%" in str(problem.expected)
    assert problem.value == "rows a.jsonl:2"


def test_a_few_lost_characters_are_said() -> None:
    rows = [chat("the cat", "sat on the mat")] * 60 + [chat("the cat", "sat 🤖")]
    tally = tally_of(words_of("the cat sat on mat"), *rows)
    tally.require_text("T")
    assert tally.lost_characters == 1
    assert "are lost: rows a.jsonl:61" in "".join(tally.notes("T"))


def test_a_tokenizer_that_makes_nothing_is_refused_before_any_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": chat("hello you", "hi there")}) + "\n")
    source = PlannedData(kind="file", path=str(path), sha256=file_sha256(path))
    plan: Any = SimpleNamespace(
        data=DataSettings(train=str(path)),
        rows=PlannedRows(train=source),
        training=SimpleNamespace(max_length=None, seed=1),
        variant="train",
        vision=None,
        template_date=None,
    )
    for _ in range(2):
        with pytest.raises(SpecError, match="of the rows' text"):
            prepare_rows(plan, words_of("other words"))


@pytest.mark.parametrize(
    "text",
    [
        "ＷＩＤＥ ｔｅｘｔ and ① ﬁne",
        "Ünïcode Straße ÉCOLE",
        "e\u0301 against \u00e9, \u200bzero\u00a0width\u2028lines\r\n",
        "  many   spaces\tand\n\nlines ",
        "العربية हिन्दी 한국어 ไทย",
    ],
)
def test_normalisation_is_no_loss(tiny_tokenizer: Tokenizers, text: str) -> None:
    from tokenizers import normalizers

    tokenizer = tiny_tokenizer()
    assert encode(tokenizer, chat(text, "a"), None).lost_characters == 0
    for normalizer in (
        normalizers.NFKC(),
        normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
        normalizers.BertNormalizer(lowercase=True),
    ):
        backend = tokenizer.backend_tokenizer
        backend.normalizer = normalizer
        made = [backend.encode(text, add_special_tokens=False).ids]
        assert lost_characters(tokenizer, [text], made)[0][1] == 0


def test_real_tokenizers_lose_nothing(real_tokenizer: Any) -> None:
    row = chat("Was kostet 1 µg? 你好🤖 👩‍👩‍👧 e\u0301", "<b>x</b>\n\tdef f(): return '\\n'  # ½ ﬁ")
    assert encode(real_tokenizer, row, None).lost_characters == 0
