from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.common.errors import RefusedError, SpecError
from runner.data.convert import Converter, convert_rows
from runner.data.detect import detect
from runner.data.encoded import IGNORED_LABEL, Encoded
from runner.data.formats import FormatOptions
from runner.data.masks import encode, encode_rows, end_of_turn_ids, prompt_ids, segments
from runner.data.messages import Message
from runner.data.plain_template import ensure_chat_template
from runner.data.read import read_rows
from runner.data.token_stats import TokenStats

Tokenizers = Callable[..., Any]  # a fixture that makes or loads one

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Set:
    """Rows encoded and counted; those kept, with their lines."""

    def __init__(self, tokenizer: Any, rows: Any, max_length: int | None) -> None:
        rows = list(rows)
        self.tally = TokenStats(max_length)
        self.rows: list[Encoded] = []
        self.lines: list[int] = []
        for (line, _), row in zip(rows, encode_rows(tokenizer, rows, max_length), strict=True):
            if self.tally.add(line, row):
                self.rows.append(row)
                self.lines.append(line)
        self.tally.require_rows()
        self.notes = self.tally.notes("the template")


def encode_all(tokenizer: Any, rows: Any, max_length: int | None) -> Set:
    return Set(tokenizer, rows, max_length)


def chat(*contents: str, system: str | None = None) -> list[Message]:
    """User and assistant in turn."""
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for index, content in enumerate(contents):
        messages.append({"role": ("user", "assistant")[index % 2], "content": content})
    return messages


def trained_runs(row: Encoded) -> list[tuple[int, list[int]]]:
    """(index of the first token, ids) of each stretch of trained tokens."""
    runs: list[tuple[int, list[int]]] = []
    for index, label in enumerate(row.labels):
        if label == IGNORED_LABEL:
            continue
        assert label == row.input_ids[index]
        if runs and runs[-1][0] + len(runs[-1][1]) == index:
            runs[-1][1].append(label)
        else:
            runs.append((index, [label]))
    return runs


def prompt_of(tokenizer: Any, messages: list[Message]) -> list[int]:
    """As a server asks; special tokens that the messages spell out are text."""
    (ids,) = prompt_ids(tokenizer, [messages])
    if not encode(
        tokenizer, [*messages, {"role": "assistant", "content": "x"}], None
    ).special_texts:
        assert ids == tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    return ids


def assert_last_turn_is_what_the_model_must_write(
    tokenizer: Any, messages: list[Message], row: Encoded
) -> None:
    prompt = prompt_of(tokenizer, messages[:-1])
    start, trained = trained_runs(row)[-1]
    assert start == len(prompt)
    assert row.input_ids[: start + len(trained)] == prompt + trained
    assert trained[-1] == row.end_of_turn_id
    assert row.end_of_turn_trained


def trained_texts(tokenizer: Any, messages: list[Message]) -> list[str]:
    return [s.text for s in segments(tokenizer, messages, None)[1] if s.trained]


def answer_text(tokenizer: Any, content: str) -> str:
    """What is trained for an answer: the plain template's space, the answer, the turn's end."""
    space = " " if tokenizer.chat_template.startswith("{{ bos_token }}") else ""
    return f"{space}{content}{tokenizer.eos_token}"


CONVERSATIONS = [
    chat("Hello", "Hi there."),
    chat("你好，介绍一下你自己", "我是一个助手。🤖", system="你是助手"),
    chat("What is 2+2?", "4", "And 3+3?", "It is 6.\n\nAnything else?", "No", "Bye 👩‍👩‍👧!"),
    chat("Say <|im_end|>\n<|im_start|>assistant\nyes", "no </s> <|im_end|> yes", "more", "e\u0301"),
    chat("x", "\n\nstarts with blank lines\n"),
    chat("x", "  starts with spaces  "),
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_last_turn_is_what_the_model_must_write(
    real_tokenizer: Any, messages: list[Message]
) -> None:
    row = encode(real_tokenizer, messages, None)
    assert_last_turn_is_what_the_model_must_write(real_tokenizer, messages, row)


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_every_assistant_turn_is_trained_and_nothing_else(
    real_tokenizer: Any, messages: list[Message]
) -> None:
    row = encode(real_tokenizer, messages, None)
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    assert row.turns == len(answers) == len(trained_runs(row))
    assert (row.skipped_turns, row.straddled_turns) == (0, 0)
    assert row.supervised == sum(len(ids) for _, ids in trained_runs(row))
    assert trained_texts(real_tokenizer, messages) == [
        answer_text(real_tokenizer, answer) for answer in answers
    ]
    assert all(ids[-1] == row.end_of_turn_id for _, ids in trained_runs(row))


@pytest.mark.parametrize("name", ["qwen2_5", "minimind2_small", "smollm2"])
def test_the_ids_are_those_of_the_template(load_tokenizer: Tokenizers, name: str) -> None:
    tokenizer = load_tokenizer(name)
    for messages in CONVERSATIONS[:3]:
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert encode(tokenizer, messages, None).input_ids == ids


def test_padding_with_the_end_of_turn_masks_nothing(real_tokenizer: Any) -> None:
    pad = real_tokenizer.pad_token
    real_tokenizer.pad_token = real_tokenizer.eos_token
    try:
        row = encode(real_tokenizer, CONVERSATIONS[2], None)
    finally:
        real_tokenizer.pad_token = pad
    assert row.labels.count(real_tokenizer.eos_token_id) == 3
    assert row.end_of_turn_trained


def test_a_tokenizer_that_pads_with_its_end_of_turn(tiny_tokenizer: Tokenizers) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    row = encode(tokenizer, CONVERSATIONS[2], None)
    assert row.labels.count(tokenizer.eos_token_id) == 3


fragments = st.sampled_from(
    [
        "<|im_end|>",
        "<|im_start|>assistant\n",
        "<|im_start|>",
        "</s>",
        "\nAssistant: ",
        "User: ",
        "你好",
        "酒店",
        "🤖",
        "👩‍👩‍👧",
        "e\u0301",
        "\u0301",
        "\n",
        "\n\n",
        " ",
        "\t",
        "\u3000",
        "{{ x }}",
        "hello world",
        "don't",
        "3.14",
        "runnerprobe",
    ]
)
contents = st.lists(
    fragments | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=6
).map("".join)
answers = contents.filter(str.strip)
exchanges = st.lists(st.tuples(contents, answers), min_size=1, max_size=3)


@pytest.mark.parametrize("name", ["tiny", "qwen2_5", "minimind2_small", "stories260k", "smollm2"])
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(exchanges=exchanges, system=st.none() | answers)
def test_user_text_is_never_trained(
    tiny_tokenizer: Tokenizers,
    load_tokenizer: Tokenizers,
    name: str,
    exchanges: list[tuple[str, str]],
    system: str | None,
) -> None:
    tokenizer = tiny_tokenizer() if name == "tiny" else load_tokenizer(name)
    messages = chat(*[text for pair in exchanges for text in pair], system=system)
    row, shown = segments(tokenizer, messages, None)
    assert row.straddled_turns == 0
    assert [s.text for s in shown if s.trained] == [
        answer_text(tokenizer, answer) for _, answer in exchanges
    ]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert "".join(s.text for s in shown) == whole
    # with several turns, an earlier answer may be tokenized as it was written, see _part
    first = messages[: len(messages) - 2 * (len(exchanges) - 1)]
    assert_last_turn_is_what_the_model_must_write(tokenizer, first, encode(tokenizer, first, None))


# A stand-in for the templates that drop the thinking of all but the last turn, as Qwen3's does.
FORGETS_THINKING = (
    "{% for m in messages %}{% set c = m['content'] %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ c + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_turns_the_template_rewrites_are_skipped_and_counted(tiny_tokenizer: Tokenizers) -> None:
    tokenizer = tiny_tokenizer(FORGETS_THINKING)
    encoded = encode_all(tokenizer, [(1, chat("a", "b", "c", "d")), (2, chat("a", "b"))], None)
    assert [row.turns for row in encoded.rows] == [1, 1]
    assert encoded.tally.skipped_turns == 1
    assert "1 earlier assistant turns are not trained" in encoded.notes[0]
    thinking = "<think>\n\n</think>\n\n"
    assert trained_texts(tokenizer, chat("a", "b", "c", "d")) == [f"{thinking}d<|im_end|>"]


def test_a_template_whose_prompt_is_not_its_turns_start_is_refused(
    tiny_tokenizer: Tokenizers,
) -> None:
    tokenizer = tiny_tokenizer(
        CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<x>' }}{% endif")
    )
    tokenizer.name_or_path = "some/model"
    with pytest.raises(SpecError) as caught:
        encode_all(tokenizer, [(7, chat("a", "b"))], None)
    (problem,) = caught.value.problems
    assert problem.where == "row 7"
    assert problem.problem.startswith("the chat template of some/model hides where")


def test_a_template_that_raises_names_the_row(tiny_tokenizer: Tokenizers) -> None:
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    tokenizer = tiny_tokenizer(template + CHATML)
    rows = [(1, chat("a", "b")), (9, chat("a", "b", system="s"))]
    with pytest.raises(SpecError, match=r"row 9 .* refuses the conversation: no system") as caught:
        encode_all(tokenizer, rows, None)
    assert caught.value.exit_code == 2
    assert "takes no system turn" in str(caught.value.problems[0].expected)


def test_a_template_without_an_end_of_turn_says_so(tiny_tokenizer: Tokenizers) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    tokenizer = tiny_tokenizer(template)
    encoded = encode_all(tokenizer, [(1, chat("a", "b<|im_end|>c", "d", "e"))], None)
    assert encoded.tally.end_of_turn_id is None
    assert not encoded.tally.ended
    assert "will not learn to stop" in encoded.notes[-1]
    assert trained_texts(tokenizer, chat("a", "b<|im_end|>c", "d", "e")) == [
        "b<|im_end|>c\n",
        "e\n",
    ]
    assert end_of_turn_ids(tokenizer) == (tokenizer.eos_token_id,)


def test_an_end_of_turn_that_is_not_eos_is_found(tiny_tokenizer: Tokenizers) -> None:
    tokenizer = tiny_tokenizer(eos="<|im_start|>")
    ending = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert encode(tokenizer, chat("a", "b"), None).end_of_turn_id == ending
    assert end_of_turn_ids(tokenizer) == (tokenizer.eos_token_id, ending)


def test_a_template_that_insists_on_a_system_turn(tiny_tokenizer: Tokenizers) -> None:
    template = (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    tokenizer = tiny_tokenizer(template + CHATML, eos="<|im_start|>")
    assert len(end_of_turn_ids(tokenizer)) == 2
    assert trained_texts(tokenizer, chat("a", "b", system="s")) == ["b<|im_end|>"]


def test_default_system_prompts_and_trimmed_answers(tiny_tokenizer: Tokenizers) -> None:
    template = (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe kind<|im_end|>\\n' }}"
        "{% endif %}" + CHATML.replace("m['content']", "m['content'] | trim")
    )
    messages = chat("a", "  b <|im_end|> \n", "c", "\n d ")
    assert trained_texts(tiny_tokenizer(template), messages) == [
        "b <|im_end|><|im_end|>",
        "d<|im_end|>",
    ]


NEWLINES_MERGE = (("Ċ", "Ċ"),)
WORD_MERGES = (("Ċ", "Ċ"), ("Ġ", "b"))  # " b" is one token: trimmed, its offsets are those of "b"


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("rstrip", [False, True])
def test_a_token_over_the_answers_start_is_parted(
    tiny_tokenizer: Tokenizers, trim_offsets: bool, rstrip: bool
) -> None:
    tokenizer = tiny_tokenizer(merges=WORD_MERGES, trim_offsets=trim_offsets, rstrip=rstrip)
    for content in ("\nb", "\n\n\nb\n", " b", "b", "好\n\n"):
        messages = chat("a\n\n", content)
        row = encode(tokenizer, messages, None)
        assert_last_turn_is_what_the_model_must_write(tokenizer, messages, row)
        assert tokenizer.decode(trained_runs(row)[0][1]).startswith(content)
        if not rstrip:  # such a token holds the newline behind it too
            assert trained_texts(tokenizer, messages) == [content + "<|im_end|>"]


def test_a_token_that_cannot_be_parted_is_left_out_and_counted(load_tokenizer: Tokenizers) -> None:
    tokenizer = copy.deepcopy(load_tokenizer("stories260k"))
    # the prompt ends in the space that this vocabulary joins to the answer's first word, and the
    # tokenizer would put another space before the answer if it were tokenized alone
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    encoded = encode_all(tokenizer, [(1, chat("Hi", "the cat"))], None)
    assert encoded.tally.straddled_turns == 1
    assert "in 1 turns the first token mixes header and answer" in encoded.notes[0]
    assert trained_texts(tokenizer, chat("Hi", "the cat")) == [" cat</s>"]


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_a_header_that_is_tokenized_otherwise_alone_is_parted(
    tiny_tokenizer: Tokenizers, trim_offsets: bool
) -> None:
    # GPT-2's rule splits two newlines before a word, and joins them at the end of a prompt
    template = CHATML.replace("\\n", "\\n\\n")
    tokenizer = tiny_tokenizer(template, merges=NEWLINES_MERGE, trim_offsets=trim_offsets)
    for messages in (chat("hi", "ho"), chat(" x ", " y"), chat("x\n", "\n\ny")):
        row = encode(tokenizer, messages, None)
        assert_last_turn_is_what_the_model_must_write(tokenizer, messages, row)
    row = encode(tokenizer, chat("hi", "ho", " x ", "y"), None)
    texts = [tokenizer.decode(ids) for _, ids in trained_runs(row)]
    assert texts == ["ho<|im_end|>", "y<|im_end|>"]


def test_truncation_cuts_the_end_and_is_counted(tiny_tokenizer: Tokenizers) -> None:
    tokenizer = tiny_tokenizer()
    messages = chat("question", "answer")
    full = encode(tokenizer, messages, None)
    start, ids = trained_runs(full)[0]
    cut = encode(tokenizer, messages, start + 2)
    assert cut.truncated
    assert cut.input_ids == full.input_ids[: start + 2]
    assert cut.supervised == 2
    assert not cut.end_of_turn_trained
    assert cut.end_of_turn_id == full.end_of_turn_id
    just = encode(tokenizer, messages, start + len(ids))
    assert just.truncated
    assert just.end_of_turn_trained
    assert not encode(tokenizer, messages, len(full.input_ids)).truncated
    assert encode(tokenizer, messages, start).supervised == 0


def test_rows_that_truncation_empties_are_named(tiny_tokenizer: Tokenizers) -> None:
    tokenizer = tiny_tokenizer()
    rows = [(4, chat("q", "a")), (8, chat("q" * 500, "a")), (9, chat("q", "a" * 500))]
    encoded = encode_all(tokenizer, rows, 100)
    assert encoded.lines == [4, 9]
    assert encoded.tally.lost_lines == [8]
    assert encoded.tally.truncated == 2
    assert encoded.tally.longest_prompt > 500
    with pytest.raises(SpecError) as caught:
        encode_all(tokenizer, rows, 5)
    problem = caught.value.problems[0]
    assert problem.field == "training.max_length"
    assert problem.value == "max_length 5"
    assert str(encoded.tally.longest_prompt) in str(problem.expected)
    with pytest.raises(SpecError, match="no rows"):
        encode_all(tokenizer, [], 5)


def test_many_rows_are_the_same_as_one_by_one(tiny_tokenizer: Tokenizers) -> None:
    tokenizer = tiny_tokenizer(merges=NEWLINES_MERGE)
    rows = [(n, chat(f"q{n}" * (n % 7), "\n" * (n % 3) + f"a{n}")) for n in range(1, 1200)]
    encoded = encode_all(tokenizer, iter(rows), 60)
    kept = dict(zip(encoded.lines, encoded.rows, strict=True))
    for line, messages in rows[::97]:
        row = encode(tokenizer, messages, 60)
        assert kept.get(line, row) == row
        assert (line in kept) == (row.supervised > 0)
    assert len(kept) + encoded.tally.lost == len(rows)


def test_a_missing_template_is_replaced_in_words(tiny_tokenizer: Tokenizers) -> None:
    tokenizer = tiny_tokenizer(None)
    with pytest.raises(RefusedError, match="no chat template"):
        encode(tokenizer, chat("a", "b"), None)
    sentence = ensure_chat_template(tokenizer)
    assert sentence is not None
    assert "no chat template" in sentence
    assert ensure_chat_template(tokenizer) is None
    assert tokenizer.apply_chat_template(chat("a", "b", system="s"), tokenize=False) == (
        "System: s\nUser: a\nAssistant: b<|im_end|>\n"
    )
    with pytest.raises(RefusedError, match="eos"):
        ensure_chat_template(tiny_tokenizer(None, eos=None))


def test_the_plain_template_begins_as_the_tokenizer_would(load_tokenizer: Tokenizers) -> None:
    tokenizer = load_tokenizer("stories260k")
    row = encode(tokenizer, chat("Once", "upon a time"), None)
    assert row.input_ids[:2] != [tokenizer.bos_token_id] * 2
    assert row.input_ids[0] == tokenizer.bos_token_id
    assert row.end_of_turn_id == tokenizer.eos_token_id


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        chat_template = "x"
        is_fast = False
        name_or_path = "slow/one"

    with pytest.raises(RefusedError, match="slow/one gives no character offsets"):
        encode(Slow(), chat("a", "b"), None)


@pytest.mark.parametrize(
    "name", ["commonsense_17k.json", "alpaca_zh_demo.json", "medical_minimind_800.jsonl"]
)
def test_real_rows(shared: Path, real_tokenizer: Any, name: str) -> None:
    rows = list(read_rows(shared / "data" / name))[:300]
    found = detect([row for _, row in rows])
    converted = convert_rows(rows, Converter(found.format, FormatOptions()))
    conversations = [(line, made.messages) for line, _, made in converted if made is not None]
    encoded = encode_all(real_tokenizer, conversations, None)
    assert encoded.lines == [line for line, _ in conversations]
    for row, (_, messages) in list(zip(encoded.rows, conversations, strict=True))[::10]:
        assert_last_turn_is_what_the_model_must_write(real_tokenizer, list(messages), row)
