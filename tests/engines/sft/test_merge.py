"""Merging: the written model is base and adapter, or nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.common.errors import RefusedError, RunnerError
from tests.engines.sft.methods import METHODS, Trained, plan_of, train

pytestmark = pytest.mark.e2e
Get = Callable[[str], Trained]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNNER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Get:
    """A training by its name in METHODS, made once."""
    model, rows = shared / "models" / "stories260k", shared / "data" / "lora_identity.jsonl"
    done: dict[str, Trained] = {}

    def get(name: str) -> Trained:
        if name not in done:
            plan = plan_of(model, rows, **METHODS[name])
            done[name] = train(plan, tmp_path_factory.mktemp(name.replace(" ", "-")))
        return done[name]

    return get


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "nf4", "nf4 dora", "int8"])
def test_the_merged_model_is_base_and_adapter(name: str, trained: Get, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from runner.engines.sft.inside.merge import merge

    run = trained(name)
    out = tmp_path / "new" / "merged"
    record = merge(run.folder, run.plan, out, None)
    base = AutoModelForCausalLM.from_pretrained(run.plan.model.folder)
    ids = torch.arange(3, 60).unsqueeze(0)
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(str(out)).eval()(ids).logits
        alone = base.eval()(ids).logits
        together = PeftModel.from_pretrained(base, str(run.folder.adapter)).eval()(ids).logits
    assert (merged - together).abs().max() < 1e-4 * together.abs().max()
    assert (merged - alone).abs().max() > 0.01 * alone.abs().max()

    assert json.loads((out / "merge.json").read_text()) == record
    assert record["dtype"] == "fp32" and record["rows"] == "8 rows of the run"
    assert record["stored_check"]["same_first_choice"] == record["stored_check"]["tokens"] > 100
    assert record["adapter_sha256"] == run.saved["sha256"]
    assert (record["quantized"] is None) == (run.plan.method == "lora")
    if run.plan.method == "qlora":
        assert record["quantized"]["compared"]
        # what rounding the base to 4 or 8 bits does is no small thing, and not hidden
        assert record["quantized"]["relative"] > record["stored_check"]["relative"]
    tokenizer = AutoTokenizer.from_pretrained(str(out))
    assert tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False
    ) == run.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert (out / "generation_config.json").is_file()
    assert not [path.name for path in out.parent.iterdir() if path.name != "merged"]


def test_rounding_is_measured(trained: Get, tmp_path: Path) -> None:
    from safetensors import safe_open

    from runner.engines.sft.inside.merge import merge

    record = merge(trained("lora").folder, trained("lora").plan, tmp_path / "merged", "bf16")
    assert record["computed_in"] == "fp32"
    assert record["merge_check"]["largest_relative"] < 1e-5
    assert 1e-5 < record["stored_check"]["largest_relative"] < 0.1
    with safe_open(str(tmp_path / "merged" / "model.safetensors"), framework="pt") as stream:
        kinds = {stream.get_slice(name).get_dtype() for name in stream.keys()}  # noqa: SIM118
    assert kinds == {"BF16"}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_merge_that_is_wrong_writes_nothing(
    trained: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.engines.sft.inside import merge as module

    run = trained("lora")
    real = module._reload

    def damaged(*arguments: Any) -> Any:
        model = real(*arguments)
        model.model.layers[0].self_attn.q_proj.weight.data *= -1
        return model

    monkeypatch.setattr(module, "_reload", damaged)
    with pytest.raises(RunnerError, match="nothing was written"):
        module.merge(run.folder, run.plan, tmp_path / "merged", None)
    assert list(tmp_path.iterdir()) == []


def test_rows_that_are_gone_are_replaced_and_named(
    trained: Get, tmp_path: Path, shared: Path
) -> None:
    from runner.common import durable
    from runner.engines.sft.inside.merge import merge
    from runner.plans.plan_file import plan_yaml
    from runner.runs.folder import RunFolder

    run = trained("lora")
    copy = RunFolder(tmp_path / "tiny" / run.folder.path.name)
    shutil.copytree(run.folder.adapter, copy.adapter)
    gone = run.plan.rows.train.model_copy(update={"path": str(tmp_path / "gone.jsonl")})
    plan = run.plan.model_copy(update={"rows": run.plan.rows.model_copy(update={"train": gone})})
    durable.write_text(copy.plan, plan_yaml(plan))
    record = merge(copy, plan, copy.merged, None)
    assert "can't be read" in record["rows"]
    assert record["stored_check"]["tokens"] > 20


def test_too_little_disk_or_memory_is_refused_before_anything_is_loaded(
    trained: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.engines.sft.inside import merge as module

    run = trained("lora")
    with monkeypatch.context() as patch:
        usage = SimpleNamespace(free=(64 << 20) + 260_032 * 4 - 1)
        patch.setattr(module.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(RefusedError, match="takes 1016 KiB"):
            module.merge(run.folder, run.plan, tmp_path / "merged", "fp32")
    with monkeypatch.context() as patch:
        memory = SimpleNamespace(available=1 << 30)
        patch.setattr(module.psutil, "virtual_memory", lambda: memory)
        with pytest.raises(RefusedError, match="host memory"):
            module.merge(run.folder, run.plan, tmp_path / "merged", None)
    assert not list(tmp_path.iterdir())


def test_where_fp32_does_not_fit_the_written_format_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from runner.engines.sft.inside import merge as module

    memory = SimpleNamespace(available=12 << 30)
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: memory)
    assert module._working_precision("bf16", 3_000_000_000) == "bf16"
    assert module._working_precision("bf16", 1_000_000_000) == "fp32"
    with pytest.raises(RefusedError):
        module._working_precision("fp32", 3_000_000_000)


def test_adapter_and_projector_of_an_image_text_model_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared on rows with their images: the projector that was trained is in the new model."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer, set_seed
    from trl import SFTConfig, SFTTrainer

    from runner.common import durable
    from runner.engines.load import load_job
    from runner.engines.sft.facts import gather
    from runner.engines.sft.inside.image_tokens import image_tokens
    from runner.engines.sft.inside.images import ImageTextCollator, for_trainer, image_processor
    from runner.engines.sft.inside.merge import merge
    from runner.engines.sft.inside.model import standin
    from runner.engines.sft.inside.model.adapter import trainable_setup
    from runner.engines.sft.inside.model.count import count_parameters, counted
    from runner.engines.sft.inside.model.tokenizer import load_tokenizer
    from runner.engines.sft.inside.model.trained import reload_result
    from runner.engines.sft.inside.model.vision.projector import projector_parameters
    from runner.engines.sft.inside.model.weights import load_model
    from runner.engines.sft.inside.rows import prepare_rows
    from runner.engines.sft.inside.train.result import ready_to_train, save_result
    from runner.engines.sft.resolve import make_plan
    from runner.plans.plan_file import plan_yaml
    from runner.runs.folder import RunFolder
    from tests.support.command import REPOSITORY

    monkeypatch.chdir(REPOSITORY)
    loaded = load_job("llava-gemma-10k-lora", ["launch.device=cpu", "budget={}"])
    whole = make_plan(loaded, gather(loaded), "smoke")
    plan = whole.trainings[-1]
    if plan.model.kind != "standin":
        pytest.skip("the job's own weights are here")
    first = whole.trainings[0].rows.train.path
    standin.make(str(plan.model.model_type), Path(str(plan.model.folder)), Path(str(first)))
    folder = RunFolder(tmp_path / "llava" / "20260101-000000-0000000")
    folder.checkpoints.mkdir(parents=True)
    durable.write_text(folder.plan, plan_yaml(plan))
    set_seed(plan.training.seed)
    tokenizer, _ = load_tokenizer(plan)
    rows = for_trainer(prepare_rows(plan, tokenizer, image_tokens=image_tokens(plan)).train)
    set_seed(plan.training.seed)
    model = load_model(plan)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder.checkpoints),
            max_steps=2,
            per_device_train_batch_size=2,
            learning_rate=5e-3,
            activation_checkpointing=False,
            save_strategy="no",
            max_length=None,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=rows,
        data_collator=ImageTextCollator(tokenizer, image_processor(plan)),
        processing_class=tokenizer,
        peft_config=trainable_setup(model, plan),
    )
    start = ready_to_train(trainer.model, plan)
    assert len(start) == 4  # the projector's tensors
    assert count_parameters(plan) == counted(trainer.model)
    trainer.train()
    save_result(trainer, tokenizer, plan, folder, start=start, first=True)
    check = reload_result(plan, folder, trainer, rows[0])
    assert check["largest_relative_difference"] < 1e-5

    record = merge(folder, plan, folder.merged, "fp32")
    assert record["rows"] == "8 rows of the run"
    assert record["stored_check"]["largest_relative"] < 1e-4
    assert record["adapter_effect"]["relative"] > 1e-3
    merged = AutoModelForImageTextToText.from_pretrained(str(folder.merged))
    ours = projector_parameters(trainer.model)
    for name, value in projector_parameters(merged).items():
        assert (value - ours[name]).abs().max() < 1e-6
    assert "<image>" in AutoTokenizer.from_pretrained(str(folder.merged)).get_added_vocab()
    assert (folder.merged / "preprocessor_config.json").is_file()
