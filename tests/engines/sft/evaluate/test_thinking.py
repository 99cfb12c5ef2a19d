"""Think blocks before an answer: taken off, said, counted where they were cut."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from runner.data.masks import encode, prompt_ids  # noqa: E402
from runner.data.messages import Message  # noqa: E402
from runner.engines.sft.inside.evaluate import record  # noqa: E402
from runner.engines.sft.inside.evaluate.expected import expected_as_read, thinking_notes  # noqa: E402
from runner.engines.sft.inside.evaluate.generate import Greedy  # noqa: E402
from runner.engines.sft.inside.evaluate.measure import Material, measure, tokenize  # noqa: E402
from runner.engines.sft.inside.evaluate.rows import RowSet  # noqa: E402
from runner.engines.sft.inside.evaluate.tasks import Classification, Row, classification_for  # noqa: E402
from runner.engines.sft.inside.evaluate.thinking import ThinkMarks, part_thinking, think_marks  # noqa: E402
from runner.engines.sft.inside.subjects import Subject  # noqa: E402

COMMON = ThinkMarks()
# A thinking template of our own, after the behaviour of Qwen3: the last answer begins with a think
# block, empty where nothing was thought; earlier ones lose theirs.
THINK = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and (loop.last or m.reasoning_content) %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# After DeepSeek-R1's: the generation prompt itself opens the block.
OPENED = THINK.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
# After GPT-OSS's: channels of special tokens.
CHANNELS = (
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}{% if m.thinking %}"
    "{{ '<|im_start|>assistant<|box_start|>analysis<|box_end|>' + m.thinking + '<|quad_end|>' }}"
    "{% endif %}{{ '<|im_start|>assistant<|box_start|>final<|box_end|>' + m.content }}"
    "{{ '<|im_end|>' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '<|box_end|>' + m.content + '<|im_end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("negative", None, "negative"),
        ("<think>\n\n</think>\n\nnegative", "", "negative"),
        ("\n<think>\nBad words.\n</think>\n\nnegative", "Bad words.", "negative"),
        ("<thinking>a</thinking> b", "a", "b"),
        ("[THINK]a[/THINK]b", "a", "b"),
        ("<think>a</think><think>b</think>c", "a\nb", "c"),
        ("a</think>\n\nb", "a", "b"),
        ("see <think>a</think>", None, "see <think>a</think>"),
        ("<thinker>a", None, "<thinker>a"),
    ],
)
def test_a_block_at_the_start_is_no_part_of_the_answer(
    text: str, thinking: str | None, answer: str
) -> None:
    parted = part_thinking(text, COMMON)
    assert (parted.thinking, parted.answer, parted.closed) == (thinking, answer, True)


@pytest.mark.parametrize("text", ["<think>", "<think>\nnegative", "<think>a</think><think>b </thi"])
def test_a_block_that_was_cut_leaves_no_answer(text: str) -> None:
    parted = part_thinking(text, COMMON, finished=False)
    assert parted.answer == "" and not parted.closed


def test_a_block_that_the_prompt_began() -> None:
    begun = ThinkMarks(begun="<think>")
    assert part_thinking("hm\n</think>\n\nyes", begun).answer == "yes"
    cut = part_thinking("hm yes", begun, finished=False)
    assert not cut.closed and cut.thinking == "hm yes" and cut.answer == ""
    # the model ended its turn without closing what the template opened: it answered
    assert part_thinking("yes", begun).answer == "yes"


@given(st.text(), st.text().filter(lambda text: "<" not in text and "[" not in text))
def test_what_was_put_together_comes_apart(thought: str, answer: str) -> None:
    if "think>" in thought or "think>" in answer:
        return
    parted = part_thinking(f"<think>{thought}</think>{answer}", COMMON)
    assert parted.closed
    assert (parted.thinking, parted.answer) == (thought.strip(), answer.lstrip())


@pytest.fixture(scope="module")
def qwen(shared: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(str(shared / "tokenizers" / "qwen2_5"))


def with_template(tokenizer: Any, template: str | None) -> Any:
    import copy

    if template is None:
        return tokenizer
    made = copy.copy(tokenizer)
    made.chat_template = template
    return made


def test_marks_are_those_of_the_template(qwen: Any) -> None:
    assert think_marks(qwen) == ThinkMarks()
    assert think_marks(with_template(qwen, THINK)) == ThinkMarks()
    assert think_marks(with_template(qwen, OPENED)).begun == "<think>"
    told = think_marks(with_template(qwen, CHANNELS))
    closing = "<|quad_end|><|im_start|>assistant<|box_start|>final<|box_end|>"
    assert told.pairs[0] == ("<|box_start|>analysis<|box_end|>", closing)
    assert told.lead == "<|box_start|>final<|box_end|>"


class Speaks(torch.nn.Module):
    """A model that answers each prompt by what it is told to."""

    def __init__(self, tokenizer: Any, says: dict[tuple[int, ...], str], size: int) -> None:
        super().__init__()
        self.device = torch.device("cpu")
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())
        self.tokenizer, self.says, self.size = tokenizer, says, size
        self.generation_config: Any = None

    def generate(self, input_ids: Any, attention_mask: Any, **_: Any) -> Any:
        rows = []
        for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
            asked = tuple(i for i, real in zip(ids, mask, strict=True) if real)
            said = self.tokenizer(self.says[asked], add_special_tokens=False)["input_ids"]
            limit = self.generation_config.max_new_tokens
            rows.append((ids + said)[: len(ids) + limit])
        longest = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        return torch.tensor([row + [pad] * (longest - len(row)) for row in rows])

    def forward(self, input_ids: Any, **_: Any) -> Any:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, self.size))


def evaluated(
    tokenizer: Any, rows: list[Row], says: list[str], limit: int = 64, *, strips: bool = True
) -> tuple[dict[str, Any], list[Any], list[str]]:
    """The figures, answers and notes of a classification in which a model says `says`."""
    greedy = Greedy(tokenizer, limit, strips_thinking=strips)
    rows = [expected_as_read(row, greedy) for row in rows]
    task: Classification = classification_for(rows, {"0": "negative", "1": "positive"}, None)
    prompts = prompt_ids(tokenizer, [row.prompt for row in rows])
    material = Material(rows, prompts, None, {}, 0, [])
    model = Speaks(tokenizer, dict(zip(map(tuple, prompts), says, strict=True)), len(tokenizer))
    told: dict[int, Any] = {}
    measure([Subject("model", model)], task, material, greedy, 4,
            lambda batch: told.update(dict(batch)))  # fmt: skip
    answers = [told[index] for index in range(len(rows))]
    each = RowSet("test", "test", [], rows, len(rows), True, [], [])
    (figures,) = record.figures([each], [0], answers, task)
    return figures, answers, thinking_notes(answers)


def reviews(count: int = 6) -> list[Row]:
    words = [("bad", "negative"), ("good", "positive")]
    return [
        Row(n, "rows.jsonl", n + 1, [{"role": "user", "content": f"{words[n % 2][0]} film {n}"}],
            words[n % 2][1])
        for n in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("template", [None, THINK, OPENED, CHANNELS])
def test_a_model_that_is_right_is_right_whatever_its_template(
    qwen: Any, template: str | None
) -> None:
    """It says just what the template writes for the right answer: with a thought and without."""
    tokenizer = with_template(qwen, template)
    rows = reviews()
    says = []
    for index, row in enumerate(rows):
        answer: Message = {"role": "assistant", "content": row.expected}
        if index % 3 == 0 and template is not None:
            answer["reasoning_content"] = "positive or negative? Let me see."
        shown = tokenizer.apply_chat_template(
            [*row.prompt, {**answer, "thinking": answer.get("reasoning_content", "")}],
            tokenize=False,
        )
        prompt = tokenizer.apply_chat_template(
            row.prompt, tokenize=False, add_generation_prompt=True
        )
        assert shown.startswith(prompt) or template is CHANNELS
        says.append(shown.removeprefix(prompt))
    figures, _, notes = evaluated(tokenizer, rows, says)
    assert figures["accuracy"]["model"]["value"] == 1.0
    assert figures["unparseable"]["model"]["value"] == 0.0
    assert bool(notes) == (template is not None)
    if template is THINK:
        assert notes == [
            "6 of 6 answers are judged without their think blocks, and what the chat template "
            "writes before an answer (evaluation.thinking)"
        ]
        kept = evaluated(tokenizer, rows, says, strips=False)[0]
        assert kept["accuracy"]["model"]["value"] == 0.0


def test_an_answer_that_was_cut_in_thinking_is_unparseable_of_its_own_kind(qwen: Any) -> None:
    tokenizer = with_template(qwen, THINK)
    rows = reviews(4)
    says = [f"<think>\n{'hm ' * 40}\n</think>\n\n{row.expected}<|im_end|>" for row in rows[:1]]
    says += [f"<think>\n\n</think>\n\n{row.expected}<|im_end|>" for row in rows[1:]]
    figures, answers, notes = evaluated(tokenizer, rows, says, limit=16)
    assert figures["accuracy"]["model"]["value"] == 0.75
    assert figures["unclosed_thinking"]["model"]["value"] == 0.25
    assert figures["answers_with_thinking"] == {"model": 4}
    line = answers[0]["model"].record()
    assert line["generated"] == "" and line["unparseable"] == "cut within its think block"
    assert line["thinking"].startswith("hm hm")
    assert notes[1] == (
        "WARNING: 1 answers were cut within their think block, which counts as unparseable; "
        "a larger evaluation.max_new_tokens lets them end"
    )


def test_a_row_whose_answer_calls_a_tool_expects_what_the_template_writes(qwen: Any) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "Bern"}}}
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    answer: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
    row = Row(0, "r", 1, [{"role": "user", "content": "?"}], "", None, (), tools, answer)
    greedy = Greedy(qwen, 16)
    told = expected_as_read(row, greedy)
    written = '<tool_call>\n{"name": "look", "arguments": {"at": "Bern"}}\n</tool_call>'
    assert told.expected == written
    assert told.messages == row.messages == [*row.prompt, answer]
    material = tokenize(qwen, [told], 512, None, generates=True)
    whole = encode(qwen, row.messages, None, tools)
    assert material.prompts[0] == whole.input_ids[: whole.prompt_tokens]
    assert material.encoded[0] == whole


def test_thoughts_in_a_rows_own_text_are_read_as_generated_ones(qwen: Any) -> None:
    text = "<think>\nbad words\n</think>\n\nnegative"
    row = Row(0, "r", 1, [{"role": "user", "content": "?"}], text)
    told = expected_as_read(row, Greedy(qwen, 16))
    assert told.expected == "negative" and told.messages == row.messages
    assert expected_as_read(row, Greedy(qwen, 16, strips_thinking=False)) == row


def test_chat_hides_a_block_while_it_streams(capsys: pytest.CaptureFixture[str], qwen: Any) -> None:
    from runner.engines.sft.inside.chat import answer_streamer

    pieces = ["<thi", "nk>\nhm ", "hm</thi", "nk>\n\n", "Yes", ", sure."]
    hidden = answer_streamer(qwen, ThinkMarks())
    for index, piece in enumerate(pieces):
        hidden.on_finalized_text(piece, stream_end=index == len(pieces) - 1)
    assert capsys.readouterr().out == "Yes, sure.\n"
    plain = answer_streamer(qwen, ThinkMarks())
    for index, piece in enumerate(["<b", ">Yes", "."]):
        plain.on_finalized_text(piece, stream_end=index == 2)
    assert capsys.readouterr().out == "<b>Yes.\n"
