"""Ten rows with tools and reasoning through check, train, evaluate and chat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.engine_forks import call_here, preloaded, train_here
from tests.support.workplace import lines
from tests.whole_runs.agent_rows import ROWS, write_place

pytestmark = pytest.mark.e2e

TRAINED = {
    # line -> what is trained of the row, as the audit shows it
    2: ["<think>\nI had better add them.\n</think>\n\n"
        '<tool_call>\n{"name": "add", "arguments": {"a": 20, "b": 22}}\n</tool_call><|im_end|>',
        "<think>\n\n</think>\n\nIt is 42.<|im_end|>"],
    4: ["<think>\n\n</think>\n\nBasel, by two degrees.<|im_end|>"],
    5: ["<think>\nTwo and two make four.\n</think>\n\n4<|im_end|>"],
    6: ["<think>\nThree and two make five.\n</think>\n\n5<|im_end|>"],
    7: ["<think>\nFour and two make six.\n</think>\n\n6<|im_end|>"],
    8: ["<think>\nSeven is odd.\n</think>\n\nodd<|im_end|>"],
    10: ["<think>\nQuito is Ecuador's.\n</think>\n\nNo: Lima.<|im_end|>"],
}  # fmt: skip


def test_rows_of_an_agent_from_check_to_chat(tmp_path: Path, shared: Path) -> None:
    write_place(tmp_path, shared / "tokenizers" / "qwen2_5")
    with preloaded():
        from_check_to_chat(tmp_path)


def from_check_to_chat(place: Path) -> None:
    checked = call_here(place, "check", "job.yaml", "--samples", str(len(ROWS)), "--json")
    assert checked.code == 0, checked.err
    (training,) = checked.json["trainings"]
    samples = {each["line"]: each for each in training["data"]["train"]["samples"]}
    assert len(samples) == len(ROWS)
    for line, trained in TRAINED.items():
        assert [text for text, is_trained in samples[line]["segments"] if is_trained] == trained
    source = training["data"]["prepared"]["sources"][0]
    assert source["rows_with_tools"] == 5 and source["reasoning_turns"] == 5
    assert source["tool_call_turns"] == 4 and source["untrained_turns"] == 1
    assert source["marks"] == {"messages[].weight": {"trained": 0, "untrained": 1}}
    assert source["unused"] == {}

    train_here(place, "job.yaml")

    evaluated = call_here(place, "evaluate", "@last", "--json", "--no-base")
    assert evaluated.code == 0, evaluated.err
    (said,) = lines(Path(evaluated.json["folder"]) / "predictions.jsonl")
    call = json.dumps({"name": "weather", "arguments": {"city": "Chur"}})
    assert said["expected"] == f"<tool_call>\n{call}\n</tool_call>"
    assert said["answer_tokens"] > 0 and said["finished"] is False

    told = call_here(
        place, "chat", "@last", "-p", "What is 2+2?", "--max-new-tokens", "4", "--json"
    )
    assert told.code == 0, told.err
    assert told.json["answer"]
