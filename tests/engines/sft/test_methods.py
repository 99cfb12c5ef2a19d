"""Each training method, from its exact counts to a result that is what was trained."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.common.errors import RefusedError, RunnerError, SpecError
from tests.engines.sft.methods import METHODS, Trained, plan_of, train

pytestmark = pytest.mark.e2e
Get = Callable[[str], Trained]


@pytest.fixture(scope="module")
def material(shared: Path) -> tuple[Path, Path]:
    return shared / "models" / "stories260k", shared / "data" / "lora_identity.jsonl"


@pytest.fixture(scope="module")
def trained(material: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Get:
    """A training by its name in METHODS, made once."""
    done: dict[str, Trained] = {}

    def get(name: str) -> Trained:
        if name not in done:
            plan = plan_of(*material, **METHODS[name])
            done[name] = train(plan, tmp_path_factory.mktemp(name.replace(" ", "-")))
        return done[name]

    return get


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_and_reloads_as_it_is_in_memory(name: str, trained: Get) -> None:
    from runner.engines.sft.inside.model.trained import reload_result

    run = trained(name)
    assert len(run.losses) == 3
    assert all(math.isfinite(loss) for loss in run.losses)
    assert run.losses[-1] != run.losses[0]
    check = reload_result(run.plan, run.folder, run.trainer, {"input_ids": list(range(3, 40))})
    assert check["compared"]
    assert check["largest_relative_difference"] <= 1e-5


@pytest.mark.parametrize("name", METHODS)
def test_counts_before_the_start_are_those_of_the_model_that_trains(
    name: str, trained: Get
) -> None:
    from runner.engines.sft.inside.model.count import count_parameters, counted

    run = trained(name)
    before, real = count_parameters(run.plan), counted(run.trainer.model)
    assert before == real
    base = 260_032
    if name == "full":
        assert (real.trainable, real.total) == (base, base)
    else:
        assert real.total - real.trainable == base


def test_counts_are_right_by_hand(trained: Get) -> None:
    from runner.engines.sft.inside.model.count import count_parameters

    # 5 layers of q, o 64x64, k, v 64->32, gate, up 64->172, down 172->64; r (in + out) each
    lora = 4 * 5 * (2 * (64 + 64) + 2 * (64 + 32) + 2 * (64 + 172) + (172 + 64))
    assert count_parameters(trained("lora").plan).trainable == lora
    outputs = 5 * (2 * 64 + 2 * 32 + 2 * 172 + 64)
    assert count_parameters(trained("dora").plan).trainable == lora + outputs
    # five tokens, each a key and a value of 4 heads of 8 in 5 layers
    assert count_parameters(trained("prefix").plan).trainable == 5 * 5 * 2 * 32


@pytest.mark.parametrize(
    ("shape", "lora", "base"),
    [
        ({"hidden_size": 896, "intermediate_size": 4864, "layers": 24, "heads": 14}, 8_798_208, 0),
        (
            {"hidden_size": 2048, "intermediate_size": 11008, "layers": 36, "heads": 16},
            29_933_568,
            3_085_938_688,
        ),
    ],
    ids=["Qwen2.5-0.5B", "Qwen2.5-3B"],
)
def test_counts_of_published_models_need_no_weights(
    shape: dict[str, int], lora: int, base: int, tmp_path: Path
) -> None:
    from transformers import Qwen2Config

    from runner.engines.sft.inside.model.count import count_parameters

    shape = dict(shape)
    Qwen2Config(
        vocab_size=151936,
        num_hidden_layers=shape.pop("layers"),
        num_attention_heads=shape.pop("heads"),
        num_key_value_heads=2,
        tie_word_embeddings=True,
        **shape,
    ).save_pretrained(tmp_path)
    (tmp_path / "rows.jsonl").write_text("")
    seven = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    for settings in ({}, {"lora": {"target_modules": seven}}, {"method": "qlora"}):
        count = count_parameters(plan_of(tmp_path, tmp_path / "rows.jsonl", **settings))
        assert count.trainable == lora
        assert not base or count.total - count.trainable == base


@pytest.mark.parametrize("name", ["lora", "nf4", "int8", "prefix", "full"])
def test_what_is_saved_says_what_it_is(name: str, trained: Get) -> None:
    run = trained(name)
    where = run.folder.model if name == "full" else run.folder.adapter
    assert run.saved["folder"] == where.name
    file = where / ("model" if name == "full" else "adapter_model")
    content = file.with_suffix(".safetensors").read_bytes()
    assert run.saved["sha256"] == hashlib.sha256(content).hexdigest()
    assert run.saved["size_bytes"] == len(content)
    assert not list(where.glob("*.bin"))
    assert (where / "tokenizer.json").is_file()
    if name != "full":
        record = json.loads((where / "adapter_config.json").read_text())
        assert record["base_model_name_or_path"] == run.plan.model.folder


def test_an_adapter_of_a_hub_model_names_it_with_its_revision(trained: Get, tmp_path: Path) -> None:
    from runner.engines.sft.inside.train.result import publish_from
    from runner.runs.folder import RunFolder

    run = trained("lora")
    model = run.plan.model.model_copy(update={"kind": "hub", "id": "o/m", "revision": "abc123"})
    plan = run.plan.model_copy(update={"model": model})
    checkpoint = run.folder.checkpoints / "checkpoint-3"
    publish_from(checkpoint, run.tokenizer, plan, RunFolder(tmp_path), start=run.start)
    record = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (record["base_model_name_or_path"], record["revision"]) == ("o/m", "abc123")


@pytest.mark.parametrize("name", ["lora", "nf4", "prefix", "projected prefix", "full"])
def test_a_checkpoint_becomes_the_result(name: str, trained: Get, tmp_path: Path) -> None:
    """The last checkpoint holds what was saved at the end, so the files are the same."""
    from runner.engines.sft.inside.train.result import publish_from
    from runner.runs.folder import RunFolder

    run = trained(name)
    saved = publish_from(
        run.folder.checkpoints / "checkpoint-3",
        run.tokenizer,
        run.plan,
        RunFolder(tmp_path),
        start=run.start,
    )
    assert saved == run.saved
    assert {path.name for path in (tmp_path / saved["folder"]).glob("*.safetensors")}
    assert not (tmp_path / saved["folder"] / "optimizer.pt").exists()


@pytest.mark.parametrize("name", ["lora", "prefix", "full"])
def test_a_training_that_changed_nothing_is_no_result(
    name: str, material: tuple[Path, Path], tmp_path: Path
) -> None:
    plan = plan_of(*material, **METHODS[name])
    still = plan.training.model_copy(update={"learning_rate": 0.0})
    plan = plan.model_copy(update={"training": still})
    with pytest.raises(RunnerError, match=r"changes nothing|started from"):
        train(plan, tmp_path)
    assert not [path for path in tmp_path.glob("*/*/*") if path.name in ("adapter", "model")]


def test_weights_that_are_no_number_are_no_result(trained: Get, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from runner.engines.sft.inside.train.result import publish_from
    from runner.runs.folder import RunFolder

    run = trained("lora")
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    source = run.folder.checkpoints / "checkpoint-3"
    (checkpoint / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    tensors = load_file(str(source / "adapter_model.safetensors"))
    next(iter(tensors.values()))[0, 0] = math.nan
    save_file(tensors, str(checkpoint / "adapter_model.safetensors"))
    with pytest.raises(RunnerError, match="no number"):
        publish_from(checkpoint, run.tokenizer, run.plan, RunFolder(tmp_path), start=run.start)
    assert not (tmp_path / "adapter").exists()


def test_a_full_result_is_rounded_to_the_plans_precision(
    material: tuple[Path, Path], tmp_path: Path
) -> None:
    from safetensors import safe_open

    run = train(plan_of(*material, method="full", precision="bf16"), tmp_path)
    assert {str(p.dtype) for p in run.trainer.model.parameters()} == {"torch.float32"}
    with safe_open(str(run.folder.model / "model.safetensors"), framework="pt") as stream:
        kinds = {stream.get_slice(name).get_dtype() for name in stream.keys()}  # noqa: SIM118
    assert kinds == {"BF16"}
    assert json.loads((run.folder.model / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_adapters_of_a_quantized_base_train_in_fp32(
    name: str, material: tuple[Path, Path], tmp_path: Path
) -> None:
    """TRL rounds them to bf16; with recomputed activations gradients must still arrive."""
    settings = {**METHODS[name], "training": {"gradient_checkpointing": True}}
    run = train(plan_of(*material, precision="bf16", **settings), tmp_path)
    kinds = {str(p.dtype) for p in run.trainer.model.parameters() if p.requires_grad}
    assert kinds == {"torch.float32"}
    assert run.losses[-1] < run.losses[0]


@pytest.mark.parametrize("name", ["nf4", "fp4", "int8"])
def test_an_evaluation_leaves_quantized_weights_as_they_were(
    name: str, material: tuple[Path, Path]
) -> None:
    """bitsandbytes 0.50 would repack 4-bit ones on some CPUs, and no gradient came through.

    Of 8 bits it computes an evaluation by another way than training (LLM.int8's own).
    """
    import torch
    from peft import get_peft_model

    from runner.engines.sft.inside.model.adapter import trainable_setup
    from runner.engines.sft.inside.model.weights import load_model

    plan = plan_of(*material, **METHODS[name])
    model = load_model(plan)
    model = get_peft_model(model, trainable_setup(model, plan))
    ids = torch.arange(3, 40).unsqueeze(0)

    def forward_and_gradient() -> tuple[Any, Any]:
        model.zero_grad()
        model.train()
        out = model(input_ids=ids).logits
        out.square().sum().backward()
        first = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj.lora_B")
        return out.detach(), first["default"].weight.grad.clone()

    before = forward_and_gradient()
    model.eval()
    with torch.no_grad():
        evaluated = model(input_ids=ids).logits
    after = forward_and_gradient()
    assert torch.equal(evaluated, before[0]) == (name != "int8")
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])
    assert bool(before[1].any())


@pytest.mark.parametrize("name", ["dora", "nf4", "int8", "prefix", "projected prefix", "full"])
def test_a_resumed_training_ends_where_the_undisturbed_one_did(
    name: str, material: tuple[Path, Path], tmp_path: Path
) -> None:
    import torch

    from runner.engines.sft.inside.train.result import ready_to_train
    from runner.runs.folder import RunFolder
    from tests.engines.sft.methods import make_trainer

    plan = plan_of(*material, **METHODS[name], training={"max_steps": 4, "save_steps": 2})
    run = train(plan, tmp_path / "whole")
    again = RunFolder(tmp_path / "again")
    again.checkpoints.mkdir(parents=True)
    trainer, _ = make_trainer(plan, again)
    ready_to_train(trainer.model, plan)
    trainer.train(resume_from_checkpoint=str(run.folder.checkpoints / "checkpoint-2"))
    trained = [value for value in run.trainer.model.parameters() if value.requires_grad]
    resumed = [value for value in trainer.model.parameters() if value.requires_grad]
    assert trained
    for ours, theirs in zip(trained, resumed, strict=True):
        assert torch.equal(ours, theirs)
    assert not list(run.folder.path.glob("adapter/prefix_encoder*"))


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (["q_prj"], "q_prj -> q_proj"),
        (["q_proj", "value"], "value"),
        (["mlp.q_proj"], "self_attn.q_proj"),
        (["lm_head"], "output head"),
    ],
)
def test_target_modules_that_cannot_be_trained_are_refused(
    targets: list[str], told: str, material: tuple[Path, Path]
) -> None:
    from runner.engines.sft.inside.model.count import count_parameters

    plan = plan_of(*material, lora={"target_modules": targets})
    with pytest.raises(SpecError) as caught:
        count_parameters(plan)
    assert told in "\n".join(caught.value.lines())


def test_gpt2s_conv1d_layers_are_targets_too(material: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from runner.engines.sft.inside.model.adapter import trainable_setup
    from runner.engines.sft.inside.model.modules import linear_names

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32))
    assert linear_names(model) == ["c_attn", "c_fc", "c_proj", "lm_head"]
    trainable_setup(model, plan_of(*material, lora={"target_modules": ["c_attn"]}))
    with pytest.raises(SpecError) as caught:
        trainable_setup(model, plan_of(*material, lora={"target_modules": ["c_atn"]}))
    (wrong,) = caught.value.problems
    assert (wrong.value, wrong.nearest) == ("c_atn", "c_atn -> c_attn")


def test_a_prefix_that_does_not_fit_the_model_is_refused(material: tuple[Path, Path]) -> None:
    """Falcon's one key and value for all heads, of which PEFT knows nothing."""
    from peft import get_peft_model
    from transformers import FalconConfig, FalconForCausalLM

    from runner.engines.sft.inside.model.adapter import trainable_setup
    from runner.engines.sft.inside.train.result import ready_to_train

    plan = plan_of(*material, method="prefix")
    falcon = FalconForCausalLM(
        FalconConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    model = get_peft_model(falcon, trainable_setup(falcon, plan))
    with pytest.raises(RefusedError, match="method prefix does not fit falcon"):
        ready_to_train(model, plan)


def test_a_prefix_under_zero3_is_refused_before_the_start(material: tuple[Path, Path]) -> None:
    """Its first checkpoint would wait for ever."""
    from runner.engines.sft.inside.model.count import count_parameters

    plan = plan_of(*material, method="prefix")
    launch = plan.launch.model_copy(update={"deepspeed": "zero3"})
    with pytest.raises(RefusedError, match="ZeRO-3"):
        count_parameters(plan.model_copy(update={"launch": launch}))


def test_a_bitsandbytes_that_fails_is_a_refusal(
    material: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitsandbytes

    from runner.engines.sft.inside.model.weights import load_model

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("libcudart.so.13: cannot open shared object file\nmore")

    monkeypatch.setattr(bitsandbytes.nn, "Linear4bit", broken)
    with pytest.raises(RefusedError, match=r"does not work on cpu here: libcudart.so.13") as caught:
        load_model(plan_of(*material, method="qlora"))
    assert "--method lora" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["lora", "nf4", "prefix", "projected prefix", "full"])
def test_run_and_base_answer_side_by_side(name: str, trained: Get) -> None:
    """The base's answer is that of the base loaded on its own; each keeps its conversation."""
    from runner.engines.sft.inside.chat import Talker
    from runner.engines.sft.inside.model.weights import load_model

    run = trained(name)
    talker = Talker(run.folder, run.plan, base=True, max_new_tokens=12)
    ours, base = talker.speakers
    answers = [talker.answer(speaker, "Once upon a time") for speaker in talker.speakers]
    alone = Talker(run.folder, run.plan, base=False, max_new_tokens=12)
    assert alone.answer(alone.speakers[0], "Once upon a time") == answers[0]
    alone.speakers[0].model = load_model(run.plan).eval()
    alone.forget()
    assert alone.answer(alone.speakers[0], "Once upon a time") == answers[1]
    assert answers[0] != answers[1]
    assert [message["role"] for message in base.messages] == ["user", "assistant"]
    assert ours.messages[-1]["content"] == answers[0].text
