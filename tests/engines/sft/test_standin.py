"""Stand-ins: the job's architecture, tiny, with a tokenizer of the job's own texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.common.errors import RefusedError, SpecError
from runner.data.masks import encode, end_of_turn_ids
from runner.data.read import ReadOptions
from runner.data.tables import TableOptions
from runner.engines.sft.inside.model import standin
from runner.engines.sft.inside.model.tokenizer import IMAGE_TOKEN

CONVERSATION: list[Any] = [
    {"role": "user", "content": "天气好吗?"},
    {"role": "assistant", "content": "很好。"},
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    row = {"messages": [{"role": "user", "content": "今天天气很好"}]}
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(20)))  # escaped, as \\u4eca
    return path


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "gemma"])
def test_a_text_stand_in_has_its_architecture_and_computes(
    model_type: str, rows: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / model_type
    standin.make(model_type, out, rows)
    tokenizer = AutoTokenizer.from_pretrained(out)
    model, info = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert model.config.model_type == model_type
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    attention = model.model.layers[0].self_attn
    assert attention.head_dim == 16 and attention.q_proj.weight.shape == (64, 64)
    row = encode(tokenizer, CONVERSATION, None)
    ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
    loss = model(input_ids=ids, labels=labels).loss
    assert 5.5 < loss.item() < 8.5  # ln of the vocabulary, about
    assert row.end_of_turn_trained and row.end_of_turn_id in end_of_turn_ids(tokenizer)


def test_every_linear_layer_fills_blocks_of_4_bit_weights(rows: Path, tmp_path: Path) -> None:
    from torch import nn
    from transformers import AutoModelForCausalLM

    standin.make("gemma", tmp_path / "gemma", rows)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "gemma")
    sizes = {m.weight.numel() for m in model.model.modules() if isinstance(m, nn.Linear)}
    assert sizes and all(size % 64 == 0 for size in sizes)


def test_gemma_keeps_its_own_norm_and_activation(rows: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    standin.make("gemma", tmp_path / "gemma", rows)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "gemma")
    assert model.config.hidden_act == "gelu_pytorch_tanh"
    norm = model.model.norm  # (1 + weight) x: weights at zero pass the normed input through
    assert not norm.weight.any()
    x = torch.randn(3, 64)
    expected = x / x.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected)
    assert float(model.model.embed_tokens.embed_scale) == pytest.approx(8.0)  # sqrt(64)


def test_a_gemma_refuses_a_system_turn_as_the_real_one_does(rows: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    standin.make("gemma", tmp_path / "gemma", rows)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "gemma")
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    assert text.startswith("<bos><start_of_turn>user\n天气好吗?<end_of_turn>\n<start_of_turn>model")
    system: Any = {"role": "system", "content": "Be brief."}
    with pytest.raises(SpecError, match="System role not supported"):
        encode(tokenizer, [system, *CONVERSATION], None)


def test_the_tokenizer_learns_what_the_rows_mean_not_how_they_are_written(
    rows: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    standin.make("qwen2", tmp_path / "a", rows)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    ids = tokenizer("今天天气很好")["input_ids"]
    assert len(ids) == 1  # seen 20 times; escaped it would be 18 bytes
    array = tmp_path / "rows.json"
    array.write_text(json.dumps([{"instruction": "今天天气很好", "output": "好"}] * 20))
    standin.make("qwen2", tmp_path / "b", array)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "b")
    assert len(tokenizer("今天天气很好")["input_ids"]) == 1


def test_a_llava_stand_in_is_one_folder_with_all_its_parts(rows: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, LlavaForConditionalGeneration

    out = tmp_path / "llava"
    standin.make("llava-gemma", out, rows)
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "preprocessor_config.json" in names
    model, info = LlavaForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.text_config.model_type == "gemma"
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) == model.config.image_token_index
    assert model.config.image_token_index < model.config.text_config.vocab_size
    ids = tokenizer(IMAGE_TOKEN * 16, add_special_tokens=False)["input_ids"]
    assert ids == [model.config.image_token_index] * 16
    processor = AutoImageProcessor.from_pretrained(out, backend="pil")
    assert (processor.crop_size.height, processor.crop_size.width) == (56, 56)
    with torch.no_grad():
        out_ = model(input_ids=torch.tensor([ids]), pixel_values=torch.randn(1, 3, 56, 56))
    assert out_.logits.isfinite().all()


def test_the_same_rows_give_the_same_stand_in(rows: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        standin.make("llava-gemma", tmp_path / name, rows)
    for part in ("model.safetensors", "tokenizer.json", "config.json"):
        first, second = ((tmp_path / name / part).read_bytes() for name in ("a", "b"))
        assert first == second, part


def test_a_stand_in_that_is_there_is_left_alone(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    standin.make("qwen2", tmp_path, rows)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("model_type", ["qwenn2", "llava-qwenn2", "clip_vision_model"])
def test_an_architecture_that_is_none_is_refused(
    model_type: str, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match=r"qwenn2|not a text model"):
        standin.make(model_type, tmp_path / "out", rows)
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(SpecError, match=r"broken\.jsonl:2"):
        standin.make("qwen2", tmp_path / "out", broken)
    assert not (tmp_path / "out").exists()


def test_unused_keys_may_hold_anything_and_a_table_is_read_as_the_job_says(tmp_path: Path) -> None:
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"a": "b", "c": "\\ud83d", "d": ' + "7" * 5000 + ', "e": [NaN, null]}\n')
    assert list(standin.texts(odd)) == ["b", "?"]
    table = tmp_path / "table.csv"
    table.write_bytes("text,label\n好,1\n".encode("gb18030"))
    reading = ReadOptions(TableOptions(encoding="gb18030"))
    assert list(standin.texts(table, reading)) == ["好", "1"]
