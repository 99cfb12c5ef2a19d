from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.common.errors import Problem, SpecError
from runner.data.convert import Converter, convert_rows
from runner.data.detect import detect
from runner.data.formats import FORMATS, Conversation, Format, FormatOptions
from runner.data.llava import read_questions
from runner.data.messages import Message
from runner.data.read import read_rows
from runner.data.row_formats import GENERAL_QUESTIONS

NONE = FormatOptions()
VISION = FormatOptions(vision=True)
SENTIMENT = FormatOptions(
    prompt="Positive or negative?\n{text}", labels={"0": "negative", "1": "positive"}
)


def to_conversation(
    row: Any, format_: Format, options: FormatOptions, number: int = 7
) -> Conversation:
    return Converter(format_, options, source="d.jsonl").convert(number, row)


def to_messages(row: Any, format_: Format, options: FormatOptions) -> list[Message]:
    return to_conversation(row, format_, options).messages


def convert(
    rows: Any, format_: Format, options: FormatOptions
) -> tuple[dict[int, Conversation], list[int]]:
    """Conversations by row number, and the numbers of the rows with an empty answer."""
    found = list(convert_rows(rows, Converter(format_, options, source="d.json")))
    kept = {number: conversation for number, _, conversation in found if conversation is not None}
    return kept, [number for number, _, conversation in found if conversation is None]


def turns(*pairs: str) -> list[dict[str, str]]:
    """turns("user: hi", "assistant: hello") as messages."""
    return [dict(zip(("role", "content"), p.split(": ", 1), strict=True)) for p in pairs]


def problem_of(row: Any, format_: Format, options: FormatOptions = NONE) -> Problem:
    with pytest.raises(SpecError) as caught:
        to_messages(row, format_, options)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


QA = turns("user: q", "assistant: a")


@pytest.mark.parametrize(
    ("format_", "row", "expected"),
    [
        ("messages", {"messages": turns("user: q", "assistant: a")}, QA),
        ("messages", {"messages": turns("system: s", *["user: q", "assistant: a"])},
         turns("system: s", "user: q", "assistant: a")),
        ("conversations", {"conversations": turns("user: q", "assistant: a")}, QA),
        ("conversations", {"conversations": [{"from": "human", "value": "q"},
                                             {"from": "gpt", "value": "a"}]}, QA),
        ("conversations", {"system": "s", "conversations": turns("user: q", "assistant: a")},
         turns("system: s", "user: q", "assistant: a")),
        ("alpaca", {"instruction": "q", "output": "a"}, QA),
        ("alpaca", {"instruction": "q", "input": "", "output": "a", "answer": "x", "task": "y"},
         QA),
        ("alpaca", {"instruction": "q", "input": None, "output": "a"}, QA),
        ("alpaca", {"instruction": "q", "input": "more", "output": "a"},
         turns("user: q\n\nmore", "assistant: a")),
        ("alpaca", {"instruction": "", "input": "more", "output": "a"},
         turns("user: more", "assistant: a")),
        ("alpaca", {"system": "s", "history": [["q1", "a1"]], "instruction": "q", "output": "a"},
         turns("system: s", "user: q1", "assistant: a1", "user: q", "assistant: a")),
        ("text_label", {"text": "{text} q", "label": "a"},
         turns("user: {text} q", "assistant: a")),
    ],
)  # fmt: skip
def test_rows_become_messages(format_: Format, row: dict[str, Any], expected: Any) -> None:
    assert to_messages(row, format_, NONE) == expected


def test_labels_and_prompt() -> None:
    row = {"text": "很好 {x}", "label": 1}
    assert to_messages(row, "text_label", SENTIMENT) == turns(
        "user: Positive or negative?\n很好 {x}", "assistant: positive"
    )
    assert to_messages({"text": "x", "label": "0"}, "text_label", SENTIMENT)[1] == {
        "role": "assistant",
        "content": "negative",
    }


def test_the_option_system_gives_way_to_the_rows_own() -> None:
    options = FormatOptions(system="ours")
    own = {"messages": turns("system: own", "user: q", "assistant: a")}
    assert to_messages(own, "messages", options)[0]["content"] == "own"
    assert to_messages({"instruction": "q", "output": "a"}, "alpaca", options)[0] == {
        "role": "system",
        "content": "ours",
    }


def test_the_row_itself_is_not_changed() -> None:
    row = {"messages": turns("user: {{name}}", "assistant: a")}
    to_messages(row, "messages", FormatOptions(system="s", placeholders={"name": "x"}))
    assert row == {"messages": turns("user: {{name}}", "assistant: a")}


@pytest.mark.parametrize(
    ("format_", "row", "where", "words"),
    [
        ("messages", {"message": []}, "messages", "missing"),
        ("messages", {"messages": []}, "messages", "list of turns"),
        ("messages", {"messages": "hi"}, "messages", "list of turns"),
        ("messages", {"messages": ["hi"]}, "messages[0]", "not an object"),
        ("messages", {"messages": [{"from": "human", "value": "x"}]}, "[0].role", "missing"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, "[0].content", "string"),
        ("messages", {"messages": [{"role": "user", "content": ["a"]}]}, "[0].content", "string"),
        ("messages", {"messages": [{"role": "usr", "content": "a"}]}, "[0].role", "known role"),
        ("messages", {"messages": [{"role": "tool", "content": "a"}, *QA]}, "turns", "turn 1 is"),
        ("messages", {"messages": QA, "tools": [{"nom": "f"}]}, "tools[0]", "no name"),
        ("messages", {"messages": turns("user: q")}, "turns", "no assistant turn"),
        ("messages", {"messages": turns("system: q")}, "turns", "no assistant turn"),
        ("messages", {"messages": turns("assistant: q")}, "turns", "turn 1 is assistant"),
        ("messages", {"messages": turns("user: a", "user: b", "assistant: c")}, "turns", "turn 2"),
        ("messages", {"messages": [*QA, *turns("system: s")]}, "turns", "turn 3 is system"),
        ("alpaca", {"instruction": "q"}, "output", "missing"),
        ("alpaca", {"instruction": "q", "output": 3}, "output", "not a string"),
        ("alpaca", {"instruction": "q", "input": 3, "output": "a"}, "input", "not a string"),
        ("alpaca", {"instruction": "q", "history": ["x"], "output": "a"}, "history[0]", "pair"),
        ("text_label", {"text": "x", "label": 1}, "label", "not a string"),
        ("text_label", {"text": "x", "lable": 1}, "label", "missing"),
        ("messages", {"messages": turns("user: \ud83d", "assistant: a")}, "content", "surrogate"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused(format_: Format, row: Any, where: str, words: str) -> None:
    problem = problem_of(row, format_)
    assert problem.where == "d.jsonl:7"
    assert problem.field.startswith("data.train -> ")
    assert problem.field.endswith(where)
    assert words in problem.problem
    assert problem.expected
    "\n".join(problem.lines()).encode()  # can be printed


def test_the_nearest_is_named() -> None:
    assert problem_of({"text": "x", "lable": 1}, "text_label").nearest == "lable"
    assert problem_of({"messages": [{"role": "asistant", "content": ""}]}, "messages").nearest == (
        "assistant"
    )
    options = FormatOptions(labels={"neg": "negative", "pos": "positive"})
    problem = problem_of({"text": "x", "label": "Pos."}, "text_label", options)
    assert (problem.value, problem.nearest) == ("Pos.", "pos")


def test_a_prompt_without_its_text_is_refused() -> None:
    options = FormatOptions(prompt="Positive?")
    problem = problem_of({"text": "x", "label": "a"}, "text_label", options)
    assert problem.field == "data.prompt"
    with pytest.raises(SpecError) as caught:
        convert([(1, {"text": "x", "label": "a"})] * 3, "text_label", options)
    assert len(caught.value.problems) == 1


def test_placeholders_are_filled_once_and_all() -> None:
    row = {"instruction": "hi {{name}}", "output": "I am {{ name }} of {{author}}"}
    filled = FormatOptions(placeholders={"name": "{{author}}", "author": "Us"})
    assert to_messages(row, "alpaca", filled)[1]["content"] == "I am {{author}} of Us"
    assert to_messages(row, "alpaca", NONE)[0]["content"] == "hi {{name}}"
    problem = problem_of(row, "alpaca", FormatOptions(placeholders={"name": "x", "authr": "y"}))
    assert problem.problem == "placeholder {{author}} is not filled"
    assert problem.nearest == "authr"


def test_detection_says_why() -> None:
    found = detect([{"instruction": "q", "input": "", "output": "a", "task": "t"}] * 3)
    assert found.format == "alpaca"
    assert found.because == "every row has instruction and output"
    assert "first 100 rows" in detect([{"text": "a", "label": 1}] * 500).because
    assert detect([{"messages": QA, "images": ["a.jpg"]}]).media == ("images",)
    assert detect([{"messages": QA, "images": []}]).media == ()


@pytest.mark.parametrize(
    ("rows", "words", "near"),
    [
        ([{"messages": QA, "text": "a", "label": 1}], "messages and text_label", None),
        ([{"text": "a"}], "no known format", "text_label, which also needs label"),
        ([{"instruction": "a", "response": "b"}], "no known format",
         "alpaca, which also needs output"),
        ([{"message": QA}], "no known format", "messages, if message is its messages"),
        ([{"zzz": 1}], "no known format", None),
        ([{"messages": QA}] * 9 + [{"text": "a"}], "only 9 of the first 10 rows fit messages",
         "messages"),
        ([], "no rows", None),
    ],
)  # fmt: skip
def test_detection_refuses_what_is_not_clear(rows: Any, words: str, near: str | None) -> None:
    with pytest.raises(SpecError) as caught:
        detect(rows, "d.json")
    problem = caught.value.problems[0]
    assert words in problem.problem
    assert problem.nearest == near
    for key in rows[0] if rows else []:
        assert key in str(problem.value)


def test_a_review_without_a_text_is_empty_whatever_the_prompt_says() -> None:
    options = FormatOptions(prompt="Good or bad? {text}")
    rows = [
        (1, {"text": "fine", "label": "good"}),
        (2, {"text": " \u3000", "label": "bad"}),
        (3, {"text": "", "label": "bad"}),
    ]
    kept, empty = convert(rows, "text_label", options)
    assert list(kept) == [1]
    assert empty == [2, 3]


def test_a_question_that_asks_nothing_is_empty() -> None:
    rows = [(1, {"instruction": " ", "output": "Yes."}), (2, {"instruction": "?", "output": "Yes"})]
    _, empty = convert(rows, "alpaca", NONE)
    assert empty == [1]


def test_empty_answers_are_dropped_and_named() -> None:
    rows = [
        (2, {"instruction": "q", "output": "a"}),
        (3, {"instruction": "q", "output": "  \n"}),
        (5, {"instruction": "q", "output": "", "history": [["x", "y"]]}),
        (6, {"instruction": "q", "output": "a", "history": [["x", ""]]}),
    ]
    kept, empty = convert(rows, "alpaca", NONE)
    assert list(kept) == [2]
    assert empty == [3, 5, 6]


def test_several_bad_rows_are_reported_together() -> None:
    rows = [(n, {"instruction": "q", "output": None}) for n in range(1, 20)]
    with pytest.raises(SpecError) as caught:
        convert(rows, "alpaca", NONE)
    assert [p.where for p in caught.value.problems] == [f"d.json:{n}" for n in range(1, 6)]


@pytest.mark.parametrize(
    ("name", "format_", "options"),
    [
        ("commonsense_17k.json", "alpaca", NONE),
        ("alpaca_zh_demo.json", "alpaca", NONE),
        ("identity.json", "alpaca", FormatOptions(placeholders={"name": "A", "author": "B"})),
        ("lora_identity.jsonl", "conversations", NONE),
        ("medical_minimind_800.jsonl", "conversations", NONE),
        ("chnsenticorp_dev.jsonl", "text_label", SENTIMENT),
        ("mllm_demo.json", "messages", VISION),
        ("mgm_200/data.llava.json", "conversations", VISION),
        ("mgm_200/data.jsonl", "data_juicer", VISION),
    ],
)
def test_real_files_are_recognised_and_converted(
    shared: Path, name: str, format_: Format, options: FormatOptions
) -> None:
    rows = list(read_rows(shared / "data" / name))
    assert detect([row for _, row in rows[:100]]).format == format_
    kept, empty = convert(rows, format_, options)
    assert len(kept) + len(empty) == len(rows)
    assert len(kept) > 0.99 * len(rows)
    assert not options.placeholders or "{{" not in str(kept)


def test_every_format_has_its_keys() -> None:
    assert FORMATS == ("messages", "conversations", "alpaca", "text_label", "data_juicer")


SEEN = turns("user: <image>who?", "assistant: a", "user: and <image>?", "assistant: b")


@pytest.mark.parametrize(
    ("format_", "row", "images"),
    [
        ("messages", {"messages": SEEN, "images": ["a.jpg", "b.jpg"]}, ("a.jpg", "b.jpg")),
        ("messages", {"messages": QA}, ()),
        ("messages", {"messages": QA, "images": None, "image": ""}, ()),
        ("conversations", {"conversations": SEEN[:2], "image": "a.jpg"}, ("a.jpg",)),
        ("conversations", {"conversations": SEEN, "image": ["a.jpg", "b.jpg"]},
         ("a.jpg", "b.jpg")),
    ],
)  # fmt: skip
def test_images_come_with_their_marks(format_: Format, row: Any, images: tuple[str, ...]) -> None:
    assert to_conversation(row, format_, VISION).images == images


@pytest.mark.parametrize(
    ("row", "options", "where", "words"),
    [
        ({"messages": SEEN, "images": ["a.jpg"]}, VISION, "images", "2 <image> in the text for 1"),
        ({"messages": QA, "images": ["a.jpg"]}, VISION, "images", "0 <image> in the text for 1"),
        ({"messages": SEEN}, VISION, "images", "2 <image> in the text for 0"),
        ({"messages": QA, "videos": ["a.mp4"]}, VISION, "videos", "not supported"),
        ({"messages": QA, "image": "a", "images": ["b"]}, VISION, "images", "beside image"),
        ({"messages": QA, "images": [{"bytes": "x"}]}, VISION, "images", "image paths"),
        ({"messages": QA, "images": "a.jpg"}, VISION, "images", "image paths"),
        ({"messages": QA, "images": ["a.jpg"]}, NONE, "images", "text model"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    row: Any, options: FormatOptions, where: str, words: str
) -> None:
    problem = problem_of(row, "messages", options)
    assert problem.field.endswith(where)
    assert words in problem.problem


def captioned(text: str, **more: Any) -> dict[str, Any]:
    return {"id": "7", "text": text, "images": ["a.jpg"], **more}


def test_a_caption_answers_the_question_of_its_id() -> None:
    row = captioned("<__dj__image>\na cat <|__dj__eoc|>")
    asked = FormatOptions(vision=True, questions={"7": "What is it?\n<image>"})
    conversation = to_conversation(row, "data_juicer", asked)
    assert conversation.messages == turns("user: What is it?\n<image>", "assistant: a cat")
    assert conversation.images == ("a.jpg",)
    general = {
        to_messages(row | {"id": n}, "data_juicer", VISION)[0]["content"] for n in range(100)
    }
    assert general == {f"<image>\n{question}" for question in GENERAL_QUESTIONS}
    assert to_messages(row, "data_juicer", VISION) == to_messages(row, "data_juicer", VISION)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (captioned("<__dj__image> a", images=["a", "b"]), "2 images and 1"),
        (captioned("<__dj__image> a", images=[]), "0 images and 1"),
        (captioned("<__dj__image> a <__dj__image>"), "1 images and 2"),
        (captioned("a cat"), "1 images and 0"),
        (captioned("<__dj__image> a <|__dj__eoc|> <b> <|__dj__eoc|>"), "continues after"),
        (captioned("<__dj__image> <__dj__video> a"), "holds <__dj__video>"),
        (captioned("<__dj__image> a", id=None), "not an id"),
        (captioned("<__dj__image> a", id="8"), "no question"),
    ],
)
def test_captions_that_cannot_be_asked_for_are_refused(row: Any, words: str) -> None:
    asked = FormatOptions(vision=True, questions={"7": "<image>?"})
    assert words in problem_of(row, "data_juicer", asked).problem


def test_questions_are_the_first_human_turns(tmp_path: Path) -> None:
    def write(*rows: Any) -> Path:
        path = tmp_path / "stage_1.json"
        path.write_text(json.dumps(rows))
        return path

    row = {"id": 3, "conversations": [{"from": "human", "value": "<image>\nWhat?"}]}
    assert read_questions(write(row)) == {"3": "<image>\nWhat?"}
    other = {**row, "conversations": [{"from": "human", "value": "<image>\nWho?"}]}
    for wrong, words in (
        ([row, other], "another question"),
        ([{"conversations": row["conversations"]}], "no id"),
        ([{"id": 3, "conversations": [{"from": "gpt", "value": "x"}]}], "not a human"),
        ([{"id": 3, "conversations": [{"from": "human", "value": "x"}]}], "not about one image"),
    ):
        with pytest.raises(SpecError, match=words):
            read_questions(write(*wrong))


def test_real_captions_become_the_conversations_they_were(shared: Path) -> None:
    folder = shared / "data" / "mgm_200"
    options = FormatOptions(vision=True, questions=read_questions(folder / "data.llava.json"))
    made, _ = convert(read_rows(folder / "data.jsonl"), "data_juicer", options)
    known, _ = convert(read_rows(folder / "data.llava.json"), "conversations", VISION)
    assert len(made) == 200
    assert made == known
