"""Answers and losses of a tiny random model: the same whatever rows they are batched with."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from runner.data.masks import encode, encode_rows, prompt_ids  # noqa: E402
from runner.data.plain_template import ensure_chat_template  # noqa: E402
from runner.engines.sft.inside.evaluate.generate import Greedy, batches, longest_sequence  # noqa: E402
from runner.engines.sft.inside.evaluate.loss import answer_losses  # noqa: E402
from runner.engines.sft.inside.evaluate.measure import measure, tokenize  # noqa: E402
from runner.engines.sft.inside.evaluate.tasks import ExactMatch, Row  # noqa: E402
from runner.engines.sft.inside.subjects import Subject  # noqa: E402

WORDS = [
    "the",
    "train",
    "left",
    "late",
    "and",
    "nobody",
    "minded",
    "much",
    "since",
    "tea",
    "was",
    "hot",
]
POSITIONS = 96


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    ensure_chat_template(made)
    made.pad_token = made.eos_token  # as SmolLM2 has it: the pad token also ends a turn
    return made


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    transformers.set_seed(11)
    made = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=POSITIONS,
            initializer_range=0.4,  # far from uniform, so that its answers end and differ
        )
    )
    # what a published model's generation_config.json holds, and greedy answers must not follow
    made.generation_config.do_sample = True
    made.generation_config.temperature = 1.7
    made.generation_config.repetition_penalty = 1.4
    return made.float().eval()


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    draw = random.Random(2)  # noqa: S311 - no secret
    out = []
    for number in range(13):
        question = " ".join(draw.choices(WORDS, k=draw.randint(1, 14)))
        answer = " ".join(draw.choices(WORDS, k=draw.randint(1, 6)))
        prompt = [{"role": "user", "content": question}]
        out.append(Row(number, "rows", number + 1, prompt, answer))
    return out


def answers(model: Any, tokenizer: Any, rows: list[Row], size: int) -> dict[int, Any]:
    """Everything measured of each row, in batches of `size`."""
    told: dict[int, Any] = {}
    material = tokenize(tokenizer, rows, 512, None, generates=True)
    measure(
        [Subject("model", model)],
        ExactMatch(),
        material,
        Greedy(tokenizer, 12),
        size,
        lambda batch: told.update({index: each["model"] for index, each in batch}),
    )
    return told


def test_answers_do_not_depend_on_the_batch_size(
    model: Any, tokenizer: Any, rows: list[Row]
) -> None:
    alone, together = answers(model, tokenizer, rows, 1), answers(model, tokenizer, rows, 8)
    assert sorted(alone) == sorted(together) == list(range(len(rows)))
    for index in alone:
        assert alone[index].generated == together[index].generated
        assert alone[index].tokens == together[index].tokens
        assert alone[index].nats == pytest.approx(together[index].nats, rel=1e-5)
    assert len({each.generated.text for each in alone.values()}) > 3  # they do say something


def test_greedy_takes_the_likeliest_token_whatever_the_models_defaults(
    model: Any, tokenizer: Any, rows: list[Row]
) -> None:
    ids = prompt_ids(tokenizer, [rows[0].prompt])[0]
    told = Greedy(tokenizer, 12).answer(model, [ids])[0]
    line = list(ids)
    with torch.no_grad():
        for _ in range(12):
            token = int(model(input_ids=torch.tensor([line])).logits[0, -1].argmax())
            line.append(token)
            if token == tokenizer.eos_token_id:
                break
    wrote = line[len(ids) :]
    assert told.tokens == len(wrote)
    assert told.finished == (wrote[-1] == tokenizer.eos_token_id)
    assert told.text == tokenizer.decode(wrote, skip_special_tokens=True)


def test_losses_are_those_of_the_whole_logits(model: Any, tokenizer: Any, rows: list[Row]) -> None:
    encoded = [encode(tokenizer, row.messages, 512) for row in rows]
    told = answer_losses(model, encoded, tokenizer.pad_token_id)
    for row, (nats, tokens) in zip(encoded, told, strict=True):
        with torch.no_grad():
            out = model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels]))
        assert tokens == row.supervised
        assert nats / tokens == pytest.approx(float(out.loss), rel=1e-5)


def test_a_model_that_keeps_all_logits_gives_the_same_losses(
    model: Any, tokenizer: Any, rows: list[Row]
) -> None:
    class Plain(torch.nn.Module):
        """A model whose forward knows no logits_to_keep."""

        device = torch.device("cpu")

        def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool) -> Any:
            return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    encoded = [encode(tokenizer, row.messages, 512) for row in rows[:4]]
    pad = tokenizer.pad_token_id
    for (one, n), (two, m) in zip(
        answer_losses(model, encoded, pad), answer_losses(Plain(), encoded, pad), strict=True
    ):
        assert n == m
        assert one == pytest.approx(two, rel=1e-6)


def test_only_answers_logits_are_computed(model: Any, tokenizer: Any, rows: list[Row]) -> None:
    widths = []
    hook = model.lm_head.register_forward_hook(lambda _m, _i, out: widths.append(out.shape[1]))
    try:
        encoded = [encode(tokenizer, row.messages, 512) for row in rows[:1]]
        answer_losses(model, encoded, tokenizer.pad_token_id)
    finally:
        hook.remove()
    assert widths == [encoded[0].supervised]


def test_a_prompt_is_what_stands_before_the_answer_in_training(
    tokenizer: Any, rows: list[Row]
) -> None:
    ids = prompt_ids(tokenizer, [row.prompt for row in rows])
    places = ((row.line, row.messages) for row in rows)
    for prompt, whole in zip(ids, encode_rows(tokenizer, places, None), strict=True):
        assert whole.input_ids[: whole.prompt_tokens] == prompt


@pytest.mark.parametrize("name", ["qwen2_5", "minimind2_small"])
def test_real_templates_are_asked_as_they_are_trained(shared: Path, name: str) -> None:
    real = transformers.AutoTokenizer.from_pretrained(str(shared / "tokenizers" / name))
    prompt = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "\u8fd9\u5bb6\u9152\u5e97\u600e\u4e48\u6837\uff1f"},
    ]
    row = Row(0, "rows", 1, prompt, "\u8fd8\u4e0d\u9519")
    whole = encode(real, row.messages, None)
    assert prompt_ids(real, [prompt])[0] == whole.input_ids[: whole.prompt_tokens]
    assert whole.end_of_turn_id in Greedy(real, 4).stop_ids


def test_prompts_that_fill_the_model_get_no_answer_and_shorten_no_others(
    model: Any, tokenizer: Any
) -> None:
    assert longest_sequence(model) == POSITIONS
    short = prompt_ids(tokenizer, [[{"role": "user", "content": "tea"}]])[0]
    greedy = Greedy(tokenizer, 12)
    alone = greedy.answer(model, [short])[0]
    full, nearly = [5] * POSITIONS, [5] * (POSITIONS - 2)
    together = greedy.answer(model, [full, short, nearly])
    assert together[0].text == "" and not together[0].finished
    assert together[1] == alone
    assert together[2].tokens <= 2


def test_rows_that_lose_their_answer_are_counted_not_dropped(
    model: Any, tokenizer: Any, rows: list[Row]
) -> None:
    material = tokenize(tokenizer, rows, 8, None, generates=True)
    assert len(material.rows) == len(rows)
    assert len(material.encoded) < len(rows)
    assert any(line.startswith("WARNING") for line in material.notes)
    told: dict[int, Any] = {}
    measure(
        [Subject("model", model)],
        ExactMatch(),
        material,
        Greedy(tokenizer, 2),
        4,
        lambda batch: told.update({index: each["model"] for index, each in batch}),
    )
    lost = [each for each in told.values() if not each.tokens]
    assert len(told) == len(rows) and lost
    assert all(each.record()["answer_loss"] is None for each in lost)
    assert all(math.isfinite(each.nats) for each in told.values())


def test_batches_hold_every_row_once_the_longest_first() -> None:
    groups = batches([3, 9, 1, 9, 4], 2)
    assert groups == [[1, 3], [4, 0], [2]]


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_with_its_adapter_off_a_model_answers_as_its_base(
    model: Any, tokenizer: Any, rows: list[Row], method: str
) -> None:
    peft = pytest.importorskip("peft")
    alone = answers(model, tokenizer, rows, 4)
    if method == "lora":
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False)
    else:
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    trained = peft.get_peft_model(copy.deepcopy(model), config).eval()
    told: dict[int, Any] = {}
    measure(
        [Subject("model", trained), Subject("base", trained, trained.disable_adapter)],
        ExactMatch(),
        tokenize(tokenizer, rows, 512, None, generates=True),
        Greedy(tokenizer, 12),
        4,
        lambda batch: told.update(dict(batch)),
    )
    changed = 0
    for index, answer in alone.items():
        assert told[index]["base"].generated == answer.generated
        assert told[index]["base"].nats == pytest.approx(answer.nats, rel=1e-5)
        changed += told[index]["model"].nats != pytest.approx(answer.nats, rel=1e-3)
    assert changed == len(rows)  # the adapter does something, to every row
    one = answers(trained, tokenizer, rows, 1)
    assert all(one[index].generated == told[index]["model"].generated for index in one)
