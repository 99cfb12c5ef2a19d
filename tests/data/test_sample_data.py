"""The sample data: whole, consistent, without repetition, and written for this project."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).resolve().parents[2] / "jobs" / "data"
DRAW = Path(__file__).parents[1] / "testbed" / "draw_llava_sample.py"
LLAVA = DATA / "llava_sample"
CONVERSATIONS = {
    "minimind_medical_sample.jsonl": "conversations",
    "minimind_identity_sample.jsonl": "conversations",
    "emission_unified_sample.jsonl": "messages",
    "emission_column_mapping_sample.jsonl": "messages",
}
FILES = [
    "chnsenticorp_sample.jsonl",
    "commonsense_sample.jsonl",
    "demo_identity.jsonl",
    *CONVERSATIONS,
    "llava_sample/pretrain.jsonl",
    "llava_sample/finetune.json",
]
VEHICLE_TYPES = {
    "Motorcycle",
    "Passenger Car",
    "Passenger Truck",
    "Light Commercial Truck",
    "Intercity Bus",
    "Transit Bus",
    "School Bus",
    "Refuse Truck",
    "Single Unit Short-haul Truck",
    "Single Unit Long-haul Truck",
    "Motor Home",
    "Combination Short-haul Truck",
    "Combination Long-haul Truck",
}
POLLUTANTS = {"CO2", "CO", "NOx", "PM2.5", "PM10", "SO2", "NH3", "VOC", "THC", "CH4", "N2O"}
COLUMN_FIELDS = [
    *("time", "link_id", "link_length", "traffic_flow"),
    *("speed", "acceleration", "grade", "vehicle_type"),
]
Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return list(json.loads(text))
    return [json.loads(line) for line in text.splitlines()]


def turns(row: Row) -> list[tuple[str, str]]:
    """(role, content) of each turn, whatever the layout calls them."""
    listed = row.get("messages") or row.get("conversations") or []
    return [
        (turn.get("role") or turn["from"], turn.get("content") or turn["value"]) for turn in listed
    ]


def prompt(row: Row) -> str:
    """What tells a row from the others: its question, or its text."""
    if "instruction" in row:
        return f"{row['instruction']}\n{row['input']}"
    asked = [content for role, content in turns(row) if role in ("user", "human")]
    return f"{row.get('image', '')}{asked[0]}" if asked else str(row["text"])


def written(row: Row) -> Iterator[str]:
    """The texts that a row could have been copied with: reviews, captions, answers."""
    if turns(row):
        yield from (content for role, content in turns(row) if role in ("assistant", "gpt"))
    elif "instruction" in row:
        yield row["instruction"]
    else:
        yield row["text"].removeprefix("<__dj__image>\n").removesuffix(" <|__dj__eoc|>")


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


@pytest.mark.parametrize("name", FILES)
def test_there_are_rows_enough_to_smoke_with(name: str) -> None:
    assert sum(bool(prompt(row).strip()) for row in read(DATA / name)) >= 60


@pytest.mark.parametrize("name", [name for name in FILES if name != "chnsenticorp_sample.jsonl"])
def test_no_prompt_comes_twice(name: str) -> None:
    assert [text for text, n in Counter(map(prompt, read(DATA / name))).items() if n > 1] == []


def test_the_reviews_have_just_the_faults_that_cleaning_should_find() -> None:
    rows = [(row["text"], row["label"]) for row in read(DATA / "chnsenticorp_sample.jsonl")]
    assert {label for _, label in rows} == {0, 1}
    repeated = len(rows) - len(set(rows))
    empty = sum(not text for text, _ in rows)
    both = {text for text, _ in rows if {(text, 0), (text, 1)} <= set(rows)}
    clean = [(text, label) for text, label in set(rows) if text and text not in both]
    assert (repeated, empty, len(both), len(clean)) == (2, 1, 1, 72)
    assert Counter(label for _, label in clean) == {0: 36, 1: 36}
    assert all(15 <= len(text) <= 120 for text, _ in clean)


@pytest.mark.parametrize(("name", "key"), CONVERSATIONS.items())
def test_conversations_go_from_the_user_to_the_assistant(name: str, key: str) -> None:
    for row in read(DATA / name):
        assert list(row) == [key]
        roles = [role for role, _ in turns(row)]
        assert roles[: len(roles) % 2] == (["system"] if key == "messages" else [])
        assert roles[len(roles) % 2 :] == ["user", "assistant"] * (len(roles) // 2)
        assert all(content.strip() == content != "" for _, content in turns(row))


@pytest.mark.parametrize("name", [name for name in CONVERSATIONS if name.startswith("emission")])
def test_an_emission_task_has_one_system_prompt(name: str) -> None:
    assert len({turns(row)[0][1] for row in read(DATA / name)}) == 1


def test_unified_answers_name_only_standard_vehicles_and_pollutants() -> None:
    seen: set[str] = set()
    for row in read(DATA / "emission_unified_sample.jsonl"):
        answer = json.loads(turns(row)[-1][1])
        assert list(answer) == ["vehicle_types", "pollutants"]
        assert set(answer["vehicle_types"]) <= VEHICLE_TYPES
        assert set(answer["pollutants"]) <= POLLUTANTS
        assert all(len(names) == len(set(names)) for names in answer.values())
        assert all(name in turns(row)[0][1] for names in answer.values() for name in names)
        seen |= {*answer["vehicle_types"], *answer["pollutants"]}
    assert seen == VEHICLE_TYPES | POLLUTANTS


def test_column_mappings_are_json_with_constant_keys_and_the_users_own_columns() -> None:
    for row in read(DATA / "emission_column_mapping_sample.jsonl"):
        _, (_, question), (_, answer) = turns(row)
        mapping = json.loads(answer)
        assert list(mapping) == COLUMN_FIELDS
        columns = [column for column in mapping.values() if column is not None]
        assert all(column in question for column in columns)
        assert len(columns) == len(set(columns))


def test_captions_and_questions_are_about_the_same_pictures() -> None:
    captions, questions = read(LLAVA / "pretrain.jsonl"), read(LLAVA / "finetune.json")
    assert all(list(row) == ["id", "text", "images"] for row in captions)
    assert all(list(row) == ["id", "image", "conversations"] for row in questions)
    pictures = [(row["id"], *row["images"]) for row in captions]
    assert pictures == [(row["id"], row["image"]) for row in questions]
    assert len(set(pictures)) == len(pictures)
    assert {path.name for path in (LLAVA / "images").iterdir()} == {
        Path(image).name for _, image in pictures
    }
    for row in captions:
        assert row["text"].startswith("<__dj__image>\n")
        assert row["text"].endswith(" <|__dj__eoc|>")
    for row in questions:
        roles = [role for role, _ in turns(row)]
        assert roles == ["human", "gpt"] * (len(roles) // 2)
        assert [text.count("<image>") for _, text in turns(row)] == [1] + [0] * (len(roles) - 1)
        assert turns(row)[0][1].startswith("<image>\n")
    assert any(len(turns(row)) == 4 for row in questions)


def test_pictures_are_small_and_open() -> None:
    paths = sorted((LLAVA / "images").iterdir())
    sizes = [path.stat().st_size for path in paths]
    assert max(sizes) < 8_000
    assert sum(sizes) < 350_000
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for path in paths:
        with image.open(path) as picture:
            picture.load()
            assert picture.mode == "RGB"
            assert all(96 <= side <= 224 for side in picture.size)


def test_drawing_again_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    spec = importlib.util.spec_from_file_location("draw", DRAW)
    assert spec is not None
    assert spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "draw", draw)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec.loader.exec_module(draw)
    monkeypatch.setattr(draw, "HERE", tmp_path)
    draw.main()
    for name in ("pretrain.jsonl", "finetune.json"):
        assert (tmp_path / name).read_bytes() == (LLAVA / name).read_bytes()
    assert {path.name for path in (tmp_path / "images").iterdir()} == {
        path.name for path in (LLAVA / "images").iterdir()
    }


def test_no_row_is_taken_from_the_shared_data(shared: Path) -> None:
    theirs: set[str] = set()
    for path in sorted((shared / "data").rglob("*.json*")):
        for text in strings(read(path)):
            theirs.add(text.removeprefix("<__dj__image>\n").removesuffix(" <|__dj__eoc|>").strip())
    assert len(theirs) > 1000
    for name in FILES:
        texts = [text.strip() for row in read(DATA / name) for text in written(row)]
        assert [text for text in texts if len(text) > 12 and text in theirs] == [], name
