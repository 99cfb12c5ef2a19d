"""Tools and reasoning in rows: every way to write them, through the model's own chat template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.common.errors import Problem, SpecError
from runner.data.convert import Converter
from runner.data.formats import Format, FormatOptions
from runner.data.keys import row_keys
from runner.data.masks import segments
from runner.data.messages import Message
from runner.data.read import read_rows
from runner.data.template import as_templates_take

Tokenizers = Callable[[str], Any]
NONE = FormatOptions()
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Bern"}}}
USER = {"role": "user", "content": "Is it warm in Bern?"}
EXPECTED: list[Message] = [
    {"role": "user", "content": "Is it warm in Bern?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"celsius": 21}'},
    {"role": "assistant", "content": "Yes, 21 degrees."},
]


def convert(row: Any, format_: Format = "messages", options: FormatOptions = NONE) -> Any:
    return Converter(format_, options, source="d.jsonl").convert(3, row)


def problem_of(row: Any, format_: Format = "messages") -> Problem:
    with pytest.raises(SpecError) as caught:
        convert(row, format_)
    (problem,) = caught.value.problems
    assert problem.where == "d.jsonl:3"
    return problem


def openai(call: Any, result: Any = '{"celsius": 21}') -> dict[str, Any]:
    return {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": call},
            {"role": "tool", "content": result},
            {"role": "assistant", "content": "Yes, 21 degrees."},
        ]
    }


def sharegpt(call_role: str, call: str, result_role: str) -> dict[str, Any]:
    turns = [
        ("human", "Is it warm in Bern?"),
        (call_role, call),
        (result_role, '{"celsius": 21}'),
        ("gpt", "Yes, 21 degrees."),
    ]
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


BARE = '{"name": "get_weather", "arguments": {"city": "Bern"}}'


@pytest.mark.parametrize(
    ("format_", "row"),
    [
        ("messages", openai([CALL])),
        ("messages", openai(json.dumps([CALL]))),
        ("messages", openai([{"name": "get_weather", "arguments": {"city": "Bern"}}])),
        ("messages", openai([{"type": "function", "function": {
            "name": "get_weather", "arguments": '{"city": "Bern"}'}}])),
        ("messages", openai([CALL], {"celsius": 21})),
        ("messages", {"messages": [USER, {"role": "assistant", "function_call": {
            "name": "get_weather", "arguments": '{"city": "Bern"}'}},
            {"role": "function", "content": '{"celsius": 21}'}, EXPECTED[-1]]}),
        ("messages", {"messages": [USER, {"role": "tool_call", "content": BARE},
            {"role": "tool_response", "content": '{"celsius": 21}'}, EXPECTED[-1]]}),
        ("conversations", sharegpt("function_call", BARE, "observation")),
        ("conversations", sharegpt("tool_call", f"[{BARE}]", "tool")),
    ],
)  # fmt: skip
def test_calls_and_results_are_one_form_however_they_are_written(
    format_: Format, row: dict[str, Any]
) -> None:
    assert convert(row, format_).messages == EXPECTED


@pytest.mark.parametrize(
    "tools",
    [
        [WEATHER],
        json.dumps([WEATHER]),
        [json.dumps(WEATHER)],
        [WEATHER["function"]],
        json.dumps(WEATHER["function"]),
        [{**WEATHER, "strict": None}],
    ],
)
@pytest.mark.parametrize("key", ["tools", "functions"])
@pytest.mark.parametrize(
    ("format_", "row"),
    [
        ("messages", {"messages": [USER, EXPECTED[-1]]}),
        ("conversations", {"conversations": [USER, EXPECTED[-1]]}),
        ("alpaca", {"instruction": "q", "output": "a"}),
        ("text_label", {"text": "q", "label": "a"}),
    ],
)
def test_tool_definitions_are_one_form_too(
    format_: Format, row: dict[str, Any], key: str, tools: Any
) -> None:
    if (format_, key) == ("text_label", "functions"):  # what these rows are about
        assert convert({**row, key: "sings, dances"}, format_).tools is None
        return
    assert convert({**row, key: tools}, format_).tools == [WEATHER]
    for none in (None, [], "", "[]"):
        assert convert({**row, key: none}, format_).tools is None


def test_calls_at_once_and_a_thought_before_them_are_one_turn() -> None:
    row = {
        "messages": [
            USER,
            {"role": "assistant", "content": "<think>\nLook it up.\n</think>"},
            {"role": "tool_call", "content": BARE},
            {"role": "tool_call", "content": BARE.replace("Bern", "Basel")},
            {"role": "tool_response", "content": "1"},
            {"role": "tool_response", "content": "2"},
            EXPECTED[-1],
        ]
    }
    messages = convert(row).messages
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert messages[1]["content"] == "<think>\nLook it up.\n</think>"
    cities = [call["function"]["arguments"]["city"] for call in messages[1]["tool_calls"]]
    assert cities == ["Bern", "Basel"]
    thought = sharegpt("function_call", f"<think>\nLook.\n</think>\n\n{BARE}", "observation")
    assert convert(thought, "conversations").messages[1] == {
        **EXPECTED[1],
        "content": "<think>\nLook.\n</think>",
    }


@pytest.mark.parametrize(
    ("row", "where", "words"),
    [
        (openai("{name"), "messages[1].tool_calls", "not JSON"),
        (openai([{"arguments": {}}]), "messages[1].tool_calls", "no function by name"),
        (openai([{"name": "f", "arguments": "[1]"}]), "messages[1].tool_calls", "not an object"),
        (openai([{"name": "f", "arguments": '{"a": 1, "a": 2}'}]),
         "messages[1].tool_calls: arguments of f", "comes twice"),
        ({"tools": "weather", "messages": [USER, EXPECTED[-1]]}, "tools", "not JSON"),
        ({"tools": [1], "messages": [USER, EXPECTED[-1]]}, "tools[0]", "not a tool definition"),
        ({"tools": [WEATHER], "functions": [WEATHER], "messages": [USER, EXPECTED[-1]]},
         "functions", "beside tools"),
        ({"messages": [USER, {"role": "tool", "content": "1"}, EXPECTED[-1]]}, "turns",
         "turn 2 is tool"),
        ({"messages": [{**USER, "tool_calls": [CALL]}, EXPECTED[-1]]}, "messages[0].tool_calls",
         "a user turn"),
        ({"messages": [USER, {"role": "tool_call", "content": "hm"}]}, "messages[1].content",
         "not JSON"),
        ({"messages": [USER, {**EXPECTED[-1], "reasoning_content": ["x"]}]},
         "messages[1].reasoning_content", "not a string"),
        ({"messages": [USER, {**EXPECTED[-1], "reasoning": "x", "thinking": "y"}]},
         "messages[1].thinking", "otherwise than reasoning"),
    ],
)  # fmt: skip
def test_what_cant_be_read_is_refused_by_line(row: Any, where: str, words: str) -> None:
    problem = problem_of(row)
    assert problem.field == f"data.train -> {where}" and words in problem.problem


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_one_name_and_templates_see_each(key: str) -> None:
    expected = {**EXPECTED[-1], "reasoning_content": "Look."}
    row = {"messages": [USER, {**EXPECTED[-1], key: "Look."}]}
    assert convert(row).messages[-1] == expected
    assert convert({"instruction": "q", "output": "Yes, 21 degrees.", key: "Look."},
                   "alpaca").messages[-1] == expected  # fmt: skip
    shown = as_templates_take(convert(row).messages[-1])
    assert shown["reasoning_content"] == shown["reasoning"] == shown["thinking"] == "Look."
    blank = {"messages": [USER, {**EXPECTED[-1], key: " "}]}
    assert convert(blank).messages[-1] == EXPECTED[-1]


def test_rows_that_differ_in_tools_or_reasoning_are_two() -> None:
    plain = row_keys(EXPECTED)
    assert row_keys(EXPECTED, (), [WEATHER])[0] != plain[0]
    told: list[Message] = [*EXPECTED[:-1], {**EXPECTED[-1], "reasoning_content": "Look."}]
    assert row_keys(told)[0] == plain[0] and row_keys(told)[1] != plain[1]
    other: list[Message] = [EXPECTED[0], {"role": "assistant", "content": ""}, *EXPECTED[2:]]
    assert row_keys(other)[0] != plain[0]
    unmarked: list[Message] = [EXPECTED[0], {**EXPECTED[1], "trained": False}, *EXPECTED[2:]]
    assert row_keys(unmarked)[0] == plain[0] and row_keys(unmarked)[1] != plain[1]


def test_placeholders_are_filled_everywhere() -> None:
    options = FormatOptions(placeholders={"town": "Bern"})
    call = {"name": "get_weather", "arguments": {"city": "{{town}}"}}
    row = openai([call])
    row["messages"][3]["reasoning"] = "{{town}}!"
    messages = convert(row, "messages", options).messages
    assert messages[1]["tool_calls"] == [CALL]
    assert messages[3]["reasoning_content"] == "Bern!"


def test_a_tables_own_nulls_are_no_arguments(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    add = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    rows = [openai([CALL]), openai([add])]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    read = [row for _, row in read_rows(tmp_path / "d.parquet", "data.train")]
    written = read[1]["messages"][1]["tool_calls"][0]["function"]
    assert written["arguments"] == {"a": 1, "city": None}
    converter = Converter("messages", NONE, source="d.parquet")
    calls = [converter.convert(1, row).messages[1]["tool_calls"][0]["function"] for row in read]
    assert calls == [CALL["function"], add["function"]]
    assert converter.notes.record()["rows_filled_with_nulls"] == 2
    # in JSON a null is what its author wrote
    row = openai([{"name": "add", "arguments": {"a": None}}])
    assert convert(row).messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": None}


def test_the_mask_trains_calls_and_answers_but_no_results(load_tokenizer: Tokenizers) -> None:
    """Real Qwen2.5, read by a person: tools in the system turn, results in a user turn."""
    tokenizer = load_tokenizer("qwen2_5")
    row, shown = segments(tokenizer, EXPECTED, None, [WEATHER])
    text = tokenizer.apply_chat_template(EXPECTED, tools=[WEATHER], tokenize=False)
    assert "".join(segment.text for segment in shown) == text
    call = '{"name": "get_weather", "arguments": {"city": "Bern"}}'
    assert [segment.text for segment in shown if segment.trained] == [
        f"<tool_call>\n{call}\n</tool_call><|im_end|>",
        "Yes, 21 degrees.<|im_end|>",
    ]
    assert row.turns == 2
    marked: list[Message] = [EXPECTED[0], {**EXPECTED[1], "trained": False}, *EXPECTED[2:]]
    _, shown = segments(tokenizer, marked, None, [WEATHER])
    assert [s.text for s in shown if s.trained] == ["Yes, 21 degrees.<|im_end|>"]
