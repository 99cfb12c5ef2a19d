from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.data.audit import Audit, sample, sample_places
from runner.data.audit import audit as audit_of
from runner.data.convert import Converter, convert_rows
from runner.data.encoded import Encoded
from runner.data.formats import FormatOptions
from runner.data.masks import encode_rows
from runner.data.messages import Message
from runner.data.read import read_rows
from runner.data.token_stats import TokenStats

Tokenizers = Callable[..., Any]  # a fixture that makes one


def chat(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


class Set:
    """Rows encoded and counted, as the engine does it on disk."""

    def __init__(self, tokenizer: Any, rows: Any, max_length: int | None) -> None:
        rows = list(rows)
        self.tally = TokenStats(max_length)
        encoded = encode_rows(tokenizer, rows, max_length)
        self.kept: list[tuple[int, list[Message], Encoded]] = [
            (line, messages, row)
            for (line, messages), row in zip(rows, encoded, strict=True)
            if self.tally.add(line, row)
        ]

    @property
    def rows(self) -> list[Encoded]:
        return [row for _, _, row in self.kept]


def encode_all(tokenizer: Any, rows: Any, max_length: int | None) -> Set:
    return Set(tokenizer, rows, max_length)


def audit(tokenizer: Any, encoded: Set, samples: int = 3) -> Audit:
    places = sample_places(encoded.tally.rows, encoded.tally.longest_at, samples)
    shown = [
        sample(tokenizer, line, messages, encoded.tally.max_length, row.input_ids)
        for line, messages, row in (encoded.kept[place] for place in places)
    ]
    assert TokenStats.from_record(json.loads(json.dumps(encoded.tally.record()))) == encoded.tally
    return audit_of(tokenizer, encoded.tally, shown)


def test_the_figures_of_a_small_set(tiny_tokenizer: Tokenizers) -> None:
    tokenizer = tiny_tokenizer()
    rows = [(n, chat("q" * n, "好" * n)) for n in (1, 2, 3, 40)] + [(99, chat("q" * 200, "a"))]
    encoded = encode_all(tokenizer, rows, 80)
    found = audit(tokenizer, encoded, samples=2)
    assert (found.rows, found.truncated, found.lost, found.lost_lines) == (4, 2, 1, [99])
    assert found.tokens == sum(len(row.input_ids) for row in encoded.rows)
    assert found.supervised_tokens == sum(row.supervised for row in encoded.rows)
    assert found.supervised_share == found.supervised_tokens / found.tokens
    assert (found.longest, found.longest_line) == (80, 40)
    assert sum(bucket.rows for bucket in found.lengths) == 4
    for row in encoded.rows:
        assert any(b.low <= len(row.input_ids) <= b.high for b in found.lengths)
    assert found.end_of_turn_text == "<|im_end|>"
    assert found.end_of_turn_trained
    assert found.end_of_turn_rows == 3
    assert [sample.line for sample in found.samples] == [1, 40]


def test_segments_are_text_a_person_can_read(tiny_tokenizer: Tokenizers) -> None:
    tokenizer = tiny_tokenizer()
    encoded = encode_all(tokenizer, [(1, chat("你好🤖", "很好。👩‍👩‍👧"))], None)
    sample = audit(tokenizer, encoded).samples[0]
    assert [(s.text, s.trained) for s in sample.segments] == [
        ("<|im_start|>user\n你好🤖<|im_end|>\n<|im_start|>assistant\n", False),
        ("很好。👩‍👩‍👧<|im_end|>", True),
        ("\n", False),
    ]


@pytest.mark.parametrize("max_length", range(36, 46))
def test_a_cut_inside_a_character_shows_whole_characters(
    tiny_tokenizer: Tokenizers, max_length: int
) -> None:
    tokenizer = tiny_tokenizer()
    encoded = encode_all(tokenizer, [(1, chat("a", "好🤖好"))], max_length)
    text = "".join(s.text for s in audit(tokenizer, encoded).samples[0].segments)
    whole = tokenizer.apply_chat_template(chat("a", "好🤖好"), tokenize=False)
    assert whole.startswith(text)
    assert "\ufffd" not in text


def test_an_end_of_turn_that_is_always_cut_off_is_told(tiny_tokenizer: Tokenizers) -> None:
    tokenizer = tiny_tokenizer()
    found = audit(tokenizer, encode_all(tokenizer, [(1, chat("a", "b" * 500))], 100))
    assert not found.end_of_turn_trained
    assert found.end_of_turn_text == "<|im_end|>"


def test_lost_rows_are_named_up_to_ten(tiny_tokenizer: Tokenizers) -> None:
    tokenizer = tiny_tokenizer()
    rows = [(n, chat("q" * 200, "a")) for n in range(1, 31)] + [(31, chat("q", "a"))]
    found = audit(tokenizer, encode_all(tokenizer, rows, 100))
    assert found.lost == 30
    assert found.lost_lines == list(range(1, 11))


def test_another_tokenizer_is_noticed(tiny_tokenizer: Tokenizers) -> None:
    encoded = encode_all(tiny_tokenizer(), [(1, chat("a", "b\n\n"))], None)
    with pytest.raises(RuntimeError, match="row 1"):
        audit(tiny_tokenizer(merges=(("Ċ", "Ċ"),)), encoded)


@pytest.mark.parametrize("samples", [0, 1, 3, 50])
def test_samples_are_as_many_as_asked_and_hold_the_longest(
    tiny_tokenizer: Tokenizers, samples: int
) -> None:
    tokenizer = tiny_tokenizer()
    rows = [(n, chat("q", "a" * (1 + n % 17))) for n in range(1, 21)]
    found = audit(tokenizer, encode_all(tokenizer, rows, None), samples)
    assert len(found.samples) == min(samples, 20)
    assert not samples or found.longest_line in [s.line for s in found.samples]


def test_the_record_of_real_rows(shared: Path, real_tokenizer: Any) -> None:
    rows = list(read_rows(shared / "data" / "chnsenticorp_dev.jsonl"))
    options = FormatOptions(prompt="好评还是差评？\n{text}", labels={"0": "差评", "1": "好评"})
    converted = convert_rows(rows, Converter("text_label", options))
    conversations = [(line, made.messages) for line, _, made in converted if made is not None]
    encoded = encode_all(real_tokenizer, conversations, 256)
    record = audit(real_tokenizer, encoded).to_record()
    assert json.loads(json.dumps(record)) == record
    assert record["schema_version"] == 1
    assert record["rows"] + record["lost"]["rows"] == 805
    assert 0 < record["supervised_share"] < 0.5
    assert record["end_of_turn"]["trained"]
    for shown in record["samples"]:
        trained = "".join(text for text, is_trained in shown["segments"] if is_trained)
        assert trained.strip().removesuffix(real_tokenizer.eos_token) in ("差评", "好评")
