"""Marks of rows and turns: honoured where plain, else refused by name; unused keys counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.common.errors import Problem, SpecError
from runner.data.convert import Converter
from runner.data.formats import Format, FormatOptions, has_answer
from runner.data.marks import kind_of, plain
from runner.data.read import read_rows
from runner.data.row_formats import label_text
from tests.support.command import Answer

NONE = FormatOptions()
QA = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def convert(row: Any, format_: Format = "messages", options: FormatOptions = NONE) -> Any:
    converter = Converter(format_, options, source="d.jsonl")
    return converter.convert(3, row), converter.notes.record()


def marked(key: str, value: object) -> dict[str, Any]:
    """A row of two answers, the first of which has a mark."""
    return {"messages": [QA[0], {**QA[1], key: value}, *QA]}


def trained(row: Any, format_: Format = "messages") -> list[bool]:
    messages = convert(row, format_)[0].messages
    return [m.get("trained", True) for m in messages if m["role"] == "assistant"]


def problem_of(row: Any, format_: Format = "messages") -> Problem:
    with pytest.raises(SpecError) as caught:
        convert(row, format_)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize("value", [0, 0.0, False, "0", "false", "False", " no "])
@pytest.mark.parametrize(
    "key",
    ["weight", "train", "training", "trainable", "train_on_turn", "loss", "loss_weight",
     "loss_scale", "loss_mask", "lossWeight", "Loss-Mask", "supervised"],
)  # fmt: skip
def test_a_mark_of_no_leaves_the_answer_untrained(key: str, value: object) -> None:
    assert trained(marked(key, value)) == [False, True]
    notes = convert(marked(key, value))[1]
    assert notes["marks"] == {f"messages[].{key}": {"trained": 0, "untrained": 1}}
    assert not notes["unused"]


@pytest.mark.parametrize("key", ["masked", "no_loss", "skip_loss", "do_not_train"])
def test_masked_says_the_contrary(key: str) -> None:
    assert trained(marked(key, True)) == [False, True]
    assert trained(marked(key, False)) == [True, True]


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "true", None, "", float("nan")])
def test_a_mark_of_yes_or_nothing_changes_nothing(value: object) -> None:
    plain_row = convert({"messages": [*QA, *QA]})[0].messages
    assert convert(marked("weight", value))[0].messages == plain_row


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("weight", 0.5, "weighs the loss"),
        ("loss_scale", 2, "weighs the loss"),
        ("weight", -1, "weighs the loss"),
        ("train", "maybe", "not plainly yes or no"),
        ("loss", [0, 1], "not plainly yes or no"),
        ("mask", 1, "can mean what is trained or what is not"),
        ("mask", True, "can mean what is trained or what is not"),
        ("train_detail", [{"begin_offset": 0, "end_offset": 2, "train": False}], "stretches"),
        ("train_on_input", True, "not the assistant's"),
    ],
)
def test_a_mark_that_cant_be_honoured_is_refused_by_name(
    key: str, value: object, words: str
) -> None:
    problem = problem_of(marked(key, value))
    assert problem.where == "d.jsonl:3"
    assert problem.field == f"data.train -> messages[1].{key}"
    assert words in problem.problem and problem.value and problem.expected
    assert "data.ignore_keys" in problem.expected


def test_only_the_assistants_turns_can_be_trained() -> None:
    row = {"messages": [{**QA[0], "weight": 1}, QA[1]]}
    assert problem_of(row).field == "data.train -> messages[0].weight"
    row = {"messages": [{**QA[0], "weight": 0}, QA[1]]}
    assert trained(row) == [True]


def test_marks_that_contradict_each_other_are_refused() -> None:
    both = {"messages": [QA[0], {**QA[1], "weight": 0, "train": True}]}
    assert "otherwise than weight" in problem_of(both).problem
    row = {"train": False, "messages": [QA[0], {**QA[1], "weight": 1}]}
    assert "otherwise than a turn" in problem_of(row).problem


@pytest.mark.parametrize(
    ("format_", "row"),
    [
        ("messages", {"messages": QA}),
        ("conversations", {"conversations": QA}),
        ("alpaca", {"instruction": "q", "output": "a"}),
        ("text_label", {"text": "q", "label": "a"}),
    ],
)
def test_a_row_can_be_marked_in_every_format(format_: Format, row: dict[str, Any]) -> None:
    conversation, notes = convert({**row, "weight": 0}, format_)
    assert not has_answer(conversation)
    assert notes["marks"] == {"weight": {"trained": 0, "untrained": 1}}
    assert has_answer(convert({**row, "weight": "1"}, format_)[0])
    assert problem_of({**row, "weight": 0.25}, format_).field == "data.train -> weight"
    assert "not the assistant's" in problem_of({**row, "train_on_inputs": True}, format_).problem
    assert has_answer(convert({**row, "train_on_inputs": False}, format_)[0])
    ignoring = FormatOptions(ignored=frozenset({"weight"}))
    conversation, notes = convert({**row, "weight": 0.25}, format_, ignoring)
    assert has_answer(conversation) and notes["unused"] == {"weight": 1}


def test_mask_history_trains_the_last_answer_alone() -> None:
    assert trained({"mask_history": True, "messages": [*QA, *QA]}) == [False, True]
    assert trained({"mask_history": False, "messages": [*QA, *QA]}) == [True, True]
    row = {"history": [["q", "a"]], "instruction": "q", "output": "b", "mask_history": True}
    assert trained(row, "alpaca") == [False, True]


def test_nemos_mask_names_the_role_that_is_left_out() -> None:
    assert trained({"mask": "User", "messages": QA}) == [True]
    assert "can mean" in problem_of({"mask": "Assistant", "messages": QA}).problem


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()))
def test_only_0_and_1_are_plain(value: object) -> None:
    told = plain(value)
    assert told is None or str(value).strip().lower() in (
        {"1", "1.0", "true", "yes"} if told else {"0", "0.0", "-0.0", "false", "no"}
    )


@pytest.mark.parametrize("key", ["id", "lr", "label", "text", "weights_of_things", "lossless"])
def test_other_keys_are_no_marks(key: str) -> None:
    assert kind_of(key) is None


def test_every_key_that_nothing_reads_is_counted_once() -> None:
    converter = Converter("messages", NONE)
    turn = {**QA[1], "likes": 3, "name": "Ada", "nothing": None}
    for _ in range(2):
        converter.convert(1, {"id": 7, "source": None, "messages": [QA[0], turn]})
    unused = converter.notes.record()["unused"]
    assert unused == {"id": 2, "messages[].likes": 2, "messages[].name": 2}


def test_a_row_of_ever_new_keys_takes_no_more_memory() -> None:
    converter = Converter("messages", NONE)
    for number in range(2000):
        converter.convert(1, {f"key{number}": 1, "messages": QA})
    unused = converter.notes.record()["unused"]
    assert len(unused) == 501 and sum(unused.values()) == 2000


def write_job(folder: Path, rows: list[dict[str, Any]], **data: Any) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = {"model": "someone/tiny", "data": {"train": "rows.jsonl", **data}}
    path = folder / "job.yaml"
    path.write_text(json.dumps(job))  # JSON is YAML
    return path


def test_the_data_report_says_it(cli: Callable[..., Answer], tmp_path: Path) -> None:
    rows = [
        {"messages": [QA[0], {**QA[1], "weight": 0}, *QA], "id": 1},
        {"messages": [{"role": "user", "content": "x"}, {**QA[1], "weight": 0}], "id": 2},
        {"messages": [{"role": "user", "content": "y"}, QA[1]], "id": 3, "origin": "web"},
    ]
    job = write_job(tmp_path, rows)
    told = cli("data", str(job))
    assert told.code == 0, told.err
    assert "mark messages[].weight: 2 not trained, 0 trained" in told.out
    assert "1 answers are not trained, as their rows' marks say" in told.out
    assert "1 rows whose marks leave no answer to train are left out: lines 2" in told.out
    assert told.out.count("unused: id (3), origin (1)") == 1
    record = json.loads(cli("data", str(job), "--json").out)
    (source,) = record["trainings"][0]["report"]["sources"]
    assert source["unused"] == {"id": 3, "origin": 1}
    assert source["untrained"] == {"rows": 1, "first_lines": [2]}
    steps = ("empty", "untrained", "duplicates", "conflicts", "leaked")
    assert source["read"] == 3 == source["train"] + sum(source[step]["rows"] for step in steps)


def test_a_key_can_be_left_unread(cli: Callable[..., Answer], tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "b", "weight": 71.5}]
    refused = cli("data", str(write_job(tmp_path, rows)))
    assert refused.code == 2
    assert "rows.jsonl:1  data.train -> weight" in refused.err and "71.5" in refused.err
    told = cli("data", str(write_job(tmp_path, rows, ignore_keys=["weight"])))
    assert told.code == 0 and "unused: weight (1)" in told.out


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_an_empty_answer_for_a_label_is_refused(answer: str) -> None:
    with pytest.raises(SpecError) as caught:
        Converter("text_label", FormatOptions(labels={"0": answer, "1": "bad"}))
    (problem,) = caught.value.problems
    assert problem.field == "data.labels.0" and "is an empty answer" in problem.problem


def test_data_refuses_an_empty_answer(cli: Callable[..., Answer], tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    refused = cli("data", str(write_job(tmp_path, rows, labels={"0": "", "1": "bad"})))
    assert refused.code == 2 and "data.labels.0" in refused.err


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("keys", [("true", "false"), ("True", "False")])
def test_a_label_can_be_true_in_every_format(
    tmp_path: Path, suffix: str, keys: tuple[str, str]
) -> None:
    rows = [{"text": "a", "label": True}, {"text": "b", "label": False}]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix in ("csv", "tsv"):
        mark = "," if suffix == "csv" else "\t"
        lines = [("text", "label"), ("a", "True"), ("b", "FALSE")]
        path.write_text("".join(f"{mark.join(line)}\n" for line in lines))
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    labels = dict(zip(keys, ("positive", "negative"), strict=True))
    converter = Converter("text_label", FormatOptions(labels=labels), source=path.name)
    answers = [
        converter.convert(number, row).messages[-1]["content"]
        for number, row in read_rows(path, "data.train")
    ]
    assert answers == ["positive", "negative"]
    assert [label_text(row["label"]) for _, row in read_rows(path, "data.train")] == [
        "true",
        "false",
    ]


@pytest.mark.parametrize("written", ["{true: good, false: bad}", "{True: good, FALSE: bad}"])
def test_a_job_writes_true_as_yaml_does(
    cli: Callable[..., Answer], tmp_path: Path, written: str
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": true}\n')
    job = tmp_path / "job.yaml"
    job.write_text(f"model: someone/tiny\ndata: {{train: rows.jsonl, labels: {written}}}\n")
    told = cli("data", str(job), "--json")
    assert told.code == 0, told.err
    report = json.loads(told.out)["trainings"][0]["report"]
    assert report["labels"] == {"true": {"train": 1, "eval": 0, "test": 0}}


def test_a_whole_number_is_the_same_label_with_a_point() -> None:
    options = FormatOptions(labels={"0": "bad", "1": "good"})
    for label in (1, 1.0, "1", "1.0"):
        messages = convert({"text": "x", "label": label}, "text_label", options)[0].messages
        assert messages[-1]["content"] == "good"
    with pytest.raises(SpecError):
        convert({"text": "x", "label": True}, "text_label", options)
