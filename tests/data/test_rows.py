"""Prepared rows as token ids on disk (runner.engines.sft.inside.rows; here for its tokenizers)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from runner.common.caches import file_sha256
from runner.common.errors import RefusedError, SpecError
from runner.data.encoded import IGNORED_LABEL
from runner.data.masks import encode
from runner.engines.sft.inside.rows import PreparedRows, prepare_rows
from runner.jobs.data import DataSettings
from runner.plans.rows import PlannedData, PlannedRows

Tokenizers = Callable[..., Any]  # a fixture that makes or loads one


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepared"


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def numbered(path: Path, lengths: list[int], word: str = "q") -> Path:
    rows = ({"instruction": f"{word} {n}", "output": "a" * size} for n, size in enumerate(lengths))
    return write(path, *rows)


def plan_of(
    train: Path,
    *,
    mixed: tuple[Path, ...] = (),
    max_length: int | None = None,
    variant: str = "train",
    vision: bool = False,
    **data: Any,
) -> Any:
    """As much of a plan as rows are made by."""

    def planned(path: Path) -> PlannedData:
        return PlannedData(kind="file", path=str(path), sha256=file_sha256(path))

    return SimpleNamespace(
        data=DataSettings.model_validate({"train": str(train), **data}),
        rows=PlannedRows(train=planned(train), mixed=[planned(path) for path in mixed]),
        training=SimpleNamespace(max_length=max_length),
        variant=variant,
        vision=object() if vision else None,
    )


def rows_of(tokenizer: Any, train: Path, **options: Any) -> PreparedRows:
    samples, tokens = options.pop("samples", 2), options.pop("image_tokens", 0)
    return prepare_rows(plan_of(train, **options), tokenizer, samples, tokens)


def test_rows_become_ids_and_labels_on_disk(tmp_path: Path, tiny_tokenizer: Tokenizers) -> None:
    tokenizer = tiny_tokenizer()
    rows = rows_of(tokenizer, numbered(tmp_path / "a.jsonl", [3] * 30), split={"eval": 0.1})
    assert (len(rows.train), len(rows.eval)) == (27, 3)
    assert rows.train.column_names == ["input_ids", "labels"]
    for side in ("train", "eval"):
        made = getattr(rows, side)
        for row, prepared in zip(made, rows.prepared.rows(side), strict=True):
            expected = encode(tokenizer, prepared.messages, None)
            assert row == {"input_ids": expected.input_ids, "labels": expected.labels}
    assert rows.train.cache_files  # mapped from disk, not held


def test_without_held_out_rows_eval_is_empty(tmp_path: Path, tiny_tokenizer: Tokenizers) -> None:
    rows = rows_of(tiny_tokenizer(), numbered(tmp_path / "a.jsonl", [3] * 5))
    assert (len(rows.train), len(rows.eval)) == (5, 0)
    assert rows.report()["eval_rows"] == 0
    assert rows.lines()[0] == (
        "data 5 rows (alpaca: every row has instruction and output) -> 5 train / 0 eval; "
        f"{rows.train_audit.supervised_share:.0%} of tokens supervised; "
        f"longest {rows.train_audit.longest}"
    )


def test_a_smoke_meets_the_longest_row_first(tmp_path: Path, tiny_tokenizer: Tokenizers) -> None:
    lengths = [5, 90, 20, 90, 1]
    path = numbered(tmp_path / "a.jsonl", lengths)
    usual = [len(row["input_ids"]) for row in rows_of(tiny_tokenizer(), path).train]
    smoke = [
        len(row["input_ids"]) for row in rows_of(tiny_tokenizer(), path, variant="smoke").train
    ]
    assert usual != smoke == sorted(usual, reverse=True)


def test_cut_and_lost_rows_are_counted(tmp_path: Path, tiny_tokenizer: Tokenizers) -> None:
    path = tmp_path / "a.jsonl"
    long = {"instruction": "q" * 300, "output": "a"}
    write(
        path, {"instruction": "q", "output": "a"}, long, {"instruction": "q", "output": "b" * 300}
    )
    rows = rows_of(tiny_tokenizer(), path, max_length=100)
    assert [len(row["input_ids"]) for row in rows.train] == [23, 100]
    assert (rows.train_audit.truncated, rows.train_audit.lost_lines) == (2, [2])
    report = rows.report()
    assert report["train_rows"] + report["train"]["lost"]["rows"] == 3
    assert "1 train rows lost every trained token by that cut" in "\n".join(rows.lines())
    assert [sample.line for sample in rows.train_audit.samples] == [1, 3]
    with pytest.raises(SpecError, match="truncation removes every answer"):
        rows_of(tiny_tokenizer(), path, max_length=5)


def test_rows_of_a_mix_are_named_with_their_file(
    tmp_path: Path, tiny_tokenizer: Tokenizers
) -> None:
    train, mixed = (
        numbered(tmp_path / "t.jsonl", [3] * 9),
        numbered(tmp_path / "m.jsonl", [99], "me"),
    )
    mix = {"ratio": 3, "sources": [{"rows": "m"}]}
    rows = rows_of(tiny_tokenizer(), train, mixed=(mixed,), mix=mix, samples=2)
    assert len(rows.train) == 12
    assert rows.train_audit.longest_line == "m.jsonl:1"
    assert [sample.line for sample in rows.train_audit.samples] == ["t.jsonl:1", "m.jsonl:1"]
    assert "mix 3:1 -> 9 t.jsonl + 3 m.jsonl (each 3 times)" in rows.lines()


def test_it_is_encoded_once_for_a_tokenizer(
    tmp_path: Path, tiny_tokenizer: Tokenizers, cache: Path
) -> None:
    path = numbered(tmp_path / "a.jsonl", [3] * 5)

    def folders() -> int:
        return sum(folder.is_dir() for folder in cache.iterdir())

    first = rows_of(tiny_tokenizer(), path)
    assert folders() == 2
    again = rows_of(tiny_tokenizer(), path)
    assert folders() == 2
    assert again.train[:] == first.train[:]
    assert again.train_audit == first.train_audit
    rows_of(tiny_tokenizer(merges=(("Ċ", "Ċ"),)), path)
    assert folders() == 3
    rows_of(tiny_tokenizer(), path, max_length=50)
    assert folders() == 4


def with_image_token(tokenizer: Any) -> Any:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def image_rows(folder: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        Image.new("L", (1, 1)).save(folder / name)
    turns = [("Who? <image>", "me"), ("And? <image>", "you")]
    messages = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    return write(
        folder / "a.jsonl",
        {"messages": messages, "images": ["a.jpg", "b.jpg"]},
        {"messages": messages[:2], "images": ["a.jpg"]},
        {"messages": [{"role": "user", "content": "no image"}, *messages[1:2]]},
    )


def test_images_get_room_in_the_text(tmp_path: Path, tiny_tokenizer: Tokenizers) -> None:
    tokenizer = with_image_token(tiny_tokenizer())
    image = tokenizer.convert_tokens_to_ids("<image>")
    rows = rows_of(tokenizer, image_rows(tmp_path), vision=True, image_tokens=16)
    assert rows.train["images"][:] == [
        [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")],
        [str(tmp_path / "a.jpg")],
        [],
    ]
    for row, count in zip(rows.train, (32, 16, 0), strict=True):
        assert row["input_ids"].count(image) == count
        labels = [label for label in row["labels"] if label != IGNORED_LABEL]
        assert image not in labels
    with pytest.raises(RefusedError, match="no token <image>"):
        rows_of(tiny_tokenizer(), image_rows(tmp_path), vision=True, image_tokens=16)


def test_a_row_that_would_lose_part_of_an_image_is_lost(
    tmp_path: Path, tiny_tokenizer: Tokenizers
) -> None:
    tokenizer = with_image_token(tiny_tokenizer())
    path = image_rows(tmp_path)
    whole = [len(row["input_ids"]) for row in
             rows_of(tokenizer, path, vision=True, image_tokens=16).train]  # fmt: skip
    # the first row's second image ends well before its last answer
    rows = rows_of(tokenizer, path, vision=True, image_tokens=16, max_length=whole[0] - 15)
    assert rows.train_audit.lost_lines == []
    cut = rows_of(tokenizer, path, vision=True, image_tokens=16, max_length=whole[0] - 25)
    assert cut.train_audit.lost_lines == [1]
    assert "or part of an image" in "\n".join(cut.lines())


def test_real_rows_with_real_templates(shared: Path, real_tokenizer: Any) -> None:
    data = shared / "data"
    mix = {"ratio": 3, "sources": [{"rows": "lora_identity.jsonl"}]}
    rows = rows_of(
        real_tokenizer,
        data / "medical_minimind_800.jsonl",
        mixed=(data / "lora_identity.jsonl",),
        mix=mix,
        max_rows=120,
        max_length=256,
    )
    report = rows.report()
    drawn = [source["drawn"] for source in report["prepared"]["sources"]]
    assert drawn == [273, 91]
    assert report["train_rows"] == sum(drawn) - report["train"]["lost"]["rows"]
    lengths = [len(row["input_ids"]) for row in rows.train]
    trained = sum(sum(label != IGNORED_LABEL for label in row["labels"]) for row in rows.train)
    assert (rows.train_audit.tokens, rows.train_audit.longest) == (sum(lengths), max(lengths))
    assert rows.train_audit.supervised_tokens == trained
    assert report["train"]["end_of_turn"]["trained"]
    assert json.loads(json.dumps(report)) == report
