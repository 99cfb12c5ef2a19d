"""A model's own limits, looked at before any weights are loaded. Tiny random models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.common.errors import RunnerError, SpecError
from runner.engines.load import load_job
from runner.engines.sft.facts import gather
from runner.engines.sft.inside.model import standin
from runner.engines.sft.inside.model.limits import (
    ModelLimits,
    dtype_notes,
    limits_of,
    quantized_how,
    require_ids,
    require_measurable,
    require_plain_weights,
    require_positions,
    require_within,
    stored_formats,
    unreached_lines,
)
from runner.engines.sft.inside.model.tokenizer import load_tokenizer
from runner.engines.sft.inside.rows import prepare_rows
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan

Cli = Callable[..., Any]
STORY = "Once upon a time there was a cat. "
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 5 to some 100 tokens, and a folder of models with one tokenizer."""
    folder = tmp_path_factory.mktemp("limits")
    rows = [("Tell a story.", STORY * 10), ("Q", "A"), ("Why?", "So."), ("Who?", "Me.")]
    (folder / "rows.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": answer},
                    ]
                }
            )
            + "\n"
            for question, answer in rows
        )
    )
    return folder


def model(place: Path, name: str, kind: str, **config: Any) -> Path:
    """A model folder with a tokenizer of 261 tokens; its weights are never read here."""
    from transformers import CONFIG_MAPPING

    out = place / name
    if not (out / "config.json").is_file():
        tokenizer = standin.train_tokenizer(standin.CHATML, iter(["abc"]), size=262)
        tokenizer.save_pretrained(out)
        told = {"vocab_size": len(tokenizer), **config}
        CONFIG_MAPPING[kind](**told).save_pretrained(out)
    return out


def plan_for(place: Path, folder: Path, **more: Any) -> SftPlan:
    training = {"max_length": 256, **more.pop("training", {})}
    job = {
        "model": str(folder),
        "data": {"train": str(place / "rows.jsonl")},
        "launch": {"device": "cpu"},
        "training": training,
        **more,
    }
    path = place / "job.yaml"
    path.write_text(json.dumps(job))
    loaded = load_job(str(path))
    return make_plan(loaded, gather(loaded))


LLAMA = {**SMALL, "intermediate_size": 16, "num_key_value_heads": 2}


# what is looked at


@pytest.mark.parametrize(
    ("kind", "config", "positions", "absolute"),
    [
        ("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}, 64, True),
        ("opt", {**SMALL, "ffn_dim": 16, "max_position_embeddings": 48}, 48, True),
        ("gptj", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40,
                  "rotary_dim": 4}, 40, True),
        ("gpt_neo", {"hidden_size": 16, "num_layers": 2, "num_heads": 2,
                     "attention_types": [[["global"], 2]], "max_position_embeddings": 32},
         32, True),
        ("llama", {**LLAMA, "max_position_embeddings": 80}, 80, False),
        ("qwen2", {**LLAMA, "max_position_embeddings": 96}, 96, False),
        ("gpt_neox", {**SMALL, "intermediate_size": 16, "max_position_embeddings": 72}, 72, False),
        ("bloom", {**SMALL, "n_layer": 1, "n_head": 2}, None, False),
    ],
)  # fmt: skip
def test_positions_and_whether_they_end(
    place: Path, kind: str, config: dict[str, Any], positions: int | None, absolute: bool
) -> None:
    folder = model(place, kind, kind, **config)
    found = limits_of(plan_for(place, folder))
    assert (found.positions, found.absolute) == (positions, absolute)
    assert found.vocabulary == 261


def test_a_scaled_rotary_model_reaches_further(place: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 80,
            "rope_theta": 10000.0}  # fmt: skip
    folder = model(
        place, "yarn", "llama", **LLAMA, max_position_embeddings=80, rope_parameters=rope
    )
    assert limits_of(plan_for(place, folder)).positions == 320


# vocabulary


def test_ids_beyond_the_embedding_are_refused_with_both_sizes(place: Path) -> None:
    folder = model(place, "small-vocab", "llama", **LLAMA, vocab_size=100)
    plan = plan_for(place, folder)
    tokenizer, _ = load_tokenizer(plan)
    with pytest.raises(SpecError) as caught:
        require_within(plan, tokenizer, prepare_rows(plan, tokenizer))
    (problem,) = caught.value.problems
    assert problem.where == str(folder) and problem.field == "model"
    assert "261 tokens" in problem.problem and "100 rows" in problem.problem
    assert problem.value == "vocab_size 100"


def test_a_tokenizer_with_more_tokens_than_are_used_is_told_of(place: Path) -> None:
    """As Gemma 3's, whose image token has no row in the text models."""
    plan = plan_for(place, model(place, "llama", "llama", **LLAMA, max_position_embeddings=80))
    tokenizer, _ = load_tokenizer(plan)
    limits = ModelLimits(260, None, absolute=False, unreached=0.0)
    assert "no row uses" in require_ids(limits, plan, tokenizer, 200)[0]
    with pytest.raises(SpecError, match="261 tokens"):
        require_ids(limits, plan, tokenizer, 260)
    tokenizer.add_special_tokens({"pad_token": "<the pad>"})
    with pytest.raises(SpecError, match=r"its pad token has id 261 \('<the pad>'\)"):
        require_ids(limits, plan, tokenizer, 0)


# positions


def within(place: Path, folder: Path, **more: Any) -> list[str]:
    plan = plan_for(place, folder, **more)
    tokenizer, _ = load_tokenizer(plan)
    return require_within(plan, tokenizer, prepare_rows(plan, tokenizer))


def test_rows_longer_than_absolute_positions_are_refused(place: Path) -> None:
    folder = model(place, "gpt2", "gpt2", n_embd=16, n_layer=1, n_head=2, n_positions=64)
    with pytest.raises(SpecError) as caught:
        within(place, folder)
    (problem,) = caught.value.problems
    assert problem.field == "training.max_length" and problem.value == "256"
    assert "line 1" in problem.problem and "64 positions" in problem.problem
    assert "--set training.max_length=64" in (problem.expected or "")
    assert within(place, folder, training={"max_length": 64}) == []


def test_a_longer_limit_than_positions_is_told_where_the_rows_are_short(place: Path) -> None:
    folder = model(place, "gpt2-long", "gpt2", n_embd=16, n_layer=1, n_head=2, n_positions=1000)
    (line,) = within(place, folder, training={"max_length": 2000})
    assert "2,000" in line and "1,000 positions" in line


def test_rows_longer_than_rotary_positions_are_warned_of(place: Path) -> None:
    folder = model(place, "llama", "llama", **LLAMA, max_position_embeddings=80)
    (line,) = within(place, folder)
    assert "was made for 80" in line and "line 1" in line
    assert within(place, folder, training={"max_length": 80}) == []


def test_a_trained_prefix_takes_positions_too(place: Path) -> None:
    folder = model(place, "gpt2", "gpt2", n_embd=16, n_layer=1, n_head=2, n_positions=64)
    plan = plan_for(place, folder, method="prefix", prefix={"num_virtual_tokens": 20})
    limits = limits_of(plan)
    assert require_positions(limits, plan.model_copy(update={}), 44) != []  # max_length alone
    with pytest.raises(SpecError, match="20 of them the prefix's"):
        require_positions(limits, plan, 45)


def test_an_evaluation_is_looked_at_as_well(place: Path) -> None:
    folder = model(place, "gpt2", "gpt2", n_embd=16, n_layer=1, n_head=2, n_positions=64)
    plan = plan_for(place, folder)
    tokenizer, _ = load_tokenizer(plan)
    require_measurable(plan, tokenizer, [[1] * 64], [[1] * 100])  # that one gets no answer
    with pytest.raises(SpecError, match="64 positions"):
        require_measurable(plan, tokenizer, [[1] * 65], [])
    with pytest.raises(SpecError, match="261 rows"):
        require_measurable(plan, tokenizer, [[1]], [[4, 261]])


# quantized bases


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "GPTQ, 4 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "AWQ, 4 bits"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bits"),
        ({"quant_method": "mxfp4"}, "MXFP4"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "something-new"}, "something-new"),
        ({}, "a method that it does not name"),
    ],
)
def test_a_quantized_base_is_refused_by_its_name(
    place: Path, tmp_path: Path, told: dict[str, Any], named: str
) -> None:
    folder = model(tmp_path, "quantized", "llama", **LLAMA)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": told}))
    with pytest.raises(SpecError) as caught:
        require_plain_weights(plan_for(place, folder))
    (problem,) = caught.value.problems
    assert problem.field == "model" and f"stored quantized: {named};" in problem.problem
    assert "unquantized" in (problem.expected or "")


def test_a_plain_base_is_none(place: Path) -> None:
    from transformers import LlamaConfig

    require_plain_weights(plan_for(place, model(place, "llama", "llama", **LLAMA)))
    assert quantized_how(LlamaConfig()) is None


def write_weights(folder: Path, **tensors: Any) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors")


def test_codes_without_a_word_in_the_config_are_refused(place: Path, tmp_path: Path) -> None:
    import torch

    folder = model(tmp_path, "coded", "llama", **LLAMA)
    plan = plan_for(place, folder)
    for kind, named in ((torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8")):
        weight = torch.zeros(4, 4).to(kind)
        write_weights(folder, **{"a.weight": weight, "b.bias": torch.zeros(4)})
        with pytest.raises(SpecError, match=f"1 matrices of {named}"):
            require_plain_weights(plan)
    write_weights(folder, **{"a.qweight": torch.zeros(4, 4, dtype=torch.int32)})
    with pytest.raises(SpecError, match="qweight"):
        require_plain_weights(plan)
    # a mask that old GPT-2 checkpoints hold is no weight
    mask = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    write_weights(folder, **{"a.weight": torch.zeros(4, 4), "h.0.attn.bias": mask})
    require_plain_weights(plan)
    assert stored_formats(folder) == {"F32": 1}
    (folder / "model.safetensors").write_bytes(b"\xff" * 40)
    assert stored_formats(folder) == {}


def test_rounding_while_loading_is_said(place: Path, tmp_path: Path) -> None:
    import torch

    folder = model(tmp_path, "wide", "llama", **LLAMA)
    write_weights(folder, **{"a.weight": torch.zeros(4, 4)})
    plan = plan_for(place, folder)
    assert dtype_notes(plan) == []  # fp32 on a CPU
    assert (
        "stored in fp32; bf16 rounds"
        in dtype_notes(plan.model_copy(update={"precision": "bf16"}))[0]
    )
    write_weights(folder, **{"a.weight": torch.zeros(4, 4, dtype=torch.bfloat16)})
    assert dtype_notes(plan.model_copy(update={"precision": "bf16"})) == []


def test_experts_that_no_adapter_reaches_are_told(place: Path) -> None:
    folder = model(
        place, "moe", "mixtral", **LLAMA, num_local_experts=4, max_position_embeddings=300
    )
    plan = plan_for(place, folder)
    limits = limits_of(plan)
    lines = unreached_lines(limits, plan)
    assert limits.unreached > 0.1 and "does not reach them" in lines[0]
    assert unreached_lines(limits, plan.model_copy(update={"method": "full"})) == []


# target modules


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("embed_tokens", r"the embedding, whose weight is the output head's too \(tied\)"),
        ("self_attn", "is a block of layers"),
        ("input_layernorm", "is a LlamaRMSNorm, no linear layer"),
        ("lm_head", "the output head takes no adapter.*tied"),
        ("q_prj", "has no such layer"),
    ],
)
def test_target_modules_are_refused_for_the_true_reason(
    place: Path, target: str, reason: str
) -> None:
    from runner.engines.sft.inside.model.count import count_parameters

    folder = model(place, "tied", "llama", **LLAMA, tie_word_embeddings=True)
    plan = plan_for(place, folder, lora={"target_modules": [target]})
    with pytest.raises(RunnerError, match=reason) as caught:
        count_parameters(plan)
    told = " ".join(caught.value.lines())
    # what is offered can be taken: the head can't
    assert target == "lm_head" or ("q_proj" in told and "lm_head" not in told)
    untied = model(place, "untied", "llama", **LLAMA, tie_word_embeddings=False)
    other = plan_for(place, untied, lora={"target_modules": ["embed_tokens"]})
    with pytest.raises(RunnerError, match="is an embedding"):
        count_parameters(other)


# memory of a folder whose rows are not here


def test_memory_is_predicted_from_a_folder_without_the_rows(place: Path, tmp_path: Path) -> None:
    from runner.engines.sft.inside.memory.batches import batches_of

    folder = model(place, "llama", "llama", **LLAMA, max_position_embeddings=80)
    job = tmp_path / "job.yaml"
    job.write_text(
        json.dumps({"model": str(folder), "data": {"train": "nowhere.jsonl"},
                    "launch": {"device": "cpu"}, "training": {"max_length": 99}})
    )  # fmt: skip
    loaded = load_job(str(job))
    (batch,) = batches_of(make_plan(loaded, gather(loaded)))
    assert batch.tokens == 99
    assert batch.because == "training.max_length, since the rows are not on this machine"
