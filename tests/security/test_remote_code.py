"""Models and adapters that bring code: none of it runs unless the plan says so, and it is told."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.common.errors import RefusedError, RunnerError
from runner.engines.sft.inside.model.adapter_config import require_plain_adapter
from runner.engines.sft.plan import PlannedModel, SftPlan
from tests.engines.sft.in_process import make_rows, plan_of

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

CODE = """
import os, pathlib
pathlib.Path({canary!r}).touch()
from transformers import LlamaConfig as Own, LlamaForCausalLM as OwnModel
from transformers import PreTrainedTokenizerFast as OwnTokenizer
from transformers import CLIPImageProcessor as OwnProcessor
class OwnConfig(Own):
    model_type = "own"
"""
AUTO = {
    "AutoConfig": "own_code.OwnConfig",
    "AutoModelForCausalLM": "own_code.OwnModel",
    "AutoTokenizer": ["own_code.OwnTokenizer", "own_code.OwnTokenizer"],
    "AutoImageProcessor": "own_code.OwnProcessor",
}


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def model(tmp_path: Path, shared: Path, canary: Path) -> Path:
    """A whole model that works, and whose config, tokenizer and processor name code of its own."""
    folder = tmp_path / "model"
    shutil.copytree(shared / "models" / "stories260k", folder)
    (folder / "own_code.py").write_text(CODE.format(canary=str(canary)))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": AUTO}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "OwnTokenizer", "auto_map": AUTO}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    processor = {"image_processor_type": "OwnProcessor", "auto_map": AUTO}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def planned(model: Path, tmp_path: Path, **changes: Any) -> SftPlan:
    return plan_of(model, make_rows(tmp_path / "rows.jsonl")).model_copy(update=changes)


def of_model(plan: SftPlan) -> Any:
    from runner.engines.sft.inside.model.weights import load_model

    return load_model(plan)


def of_whole(plan: SftPlan) -> Any:
    from runner.engines.sft.inside.model.weights import load_whole

    return load_whole(plan, Path(str(plan.model.folder)))


def of_tokenizer(plan: SftPlan) -> Any:
    from runner.engines.sft.inside.model.tokenizer import load_tokenizer

    return load_tokenizer(plan)


def of_count(plan: SftPlan) -> Any:
    from runner.engines.sft.inside.model.count import count_parameters

    return count_parameters(plan)


def of_config(plan: SftPlan) -> Any:
    from runner.engines.sft.inside.model.configs import model_config

    return model_config(plan.model, trust_remote_code=plan.trust_remote_code)


def of_merge(plan: SftPlan) -> Any:
    from runner.engines.sft.inside.merge import _own_dtype

    return _own_dtype(plan)


def of_tower(plan: SftPlan) -> Any:
    from runner.engines.sft.inside.model.vision.config import load_auto_config

    return load_auto_config(plan, plan.model, "vision.model")


def of_images(plan: SftPlan) -> Any:
    from runner.engines.sft.inside import images

    return images.image_processor(plan)


LOADS = [of_model, of_whole, of_tokenizer, of_count, of_config, of_merge, of_tower]


@pytest.fixture
def yes_to_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input that answers each question with yes, as a prompt of a user's may begin."""
    answers = tmp_path / "answers"
    answers.write_text("y\n" * 20)
    monkeypatch.setattr(sys, "stdin", answers.open())


@pytest.mark.usefixtures("yes_to_everything")
@pytest.mark.parametrize("load", LOADS)
def test_python_files_of_a_model_are_not_run_and_it_is_told(
    load: Callable[[SftPlan], Any], model: Path, canary: Path, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError) as caught:
        load(planned(model, tmp_path))
    assert str(model) in caught.value.message
    assert "Python files" in caught.value.message and "not run" in caught.value.message
    assert "trust_remote_code: true" in str(caught.value.hint)
    assert "--trust-remote-code" in str(caught.value.hint)
    assert not canary.exists()


@pytest.mark.usefixtures("yes_to_everything")
def test_nobody_is_asked_on_the_terminal_whether_an_image_processors_code_may_run(
    model: Path, canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.engines.sft.inside import images

    monkeypatch.setattr(images, "whole_or_tower", lambda plan: plan.model)
    with pytest.raises(RefusedError, match="Python files"):
        images.image_processor(planned(model, tmp_path))
    assert not canary.exists()


def test_a_plan_that_says_so_runs_them(model: Path, canary: Path, tmp_path: Path) -> None:
    of_config(planned(model, tmp_path, trust_remote_code=True))
    assert canary.exists()


@pytest.mark.usefixtures("yes_to_everything")
def test_a_model_in_the_hubs_cache_is_refused_by_the_same_words(
    model: Path, canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    place = tmp_path / "hub" / "models--o--m"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(model, place / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    here = planned(model, tmp_path)
    plan = here.model_copy(update={"model": PlannedModel(kind="hub", id="o/m")})
    with pytest.raises(RefusedError, match="the model o/m needs Python files"):
        of_config(plan)
    assert not canary.exists()


def test_a_chat_template_reaches_nothing_outside_of_its_sandbox(
    shared: Path, tmp_path: Path, canary: Path
) -> None:
    tokenizer, _ = of_tokenizer(planned(shared / "models" / "stories260k", tmp_path))
    for attack in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        f"{{{{ cycler.__init__.__globals__.os.system('touch {canary}') }}}}",
        "{{ messages.append(1) }}",
    ):
        tokenizer.chat_template = attack
        with pytest.raises(Exception, match=r"unsafe|undefined|not safe|no attribute"):
            tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert not canary.exists()


# Adapters


@pytest.fixture
def adapter(shared: Path, tmp_path: Path) -> Path:
    """An adapter as runner's PEFT saves it."""
    from peft import LoraConfig, get_peft_model

    base = of_model(planned(shared / "models" / "stories260k", tmp_path))
    folder = tmp_path / "adapter"
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2)).save_pretrained(str(folder))
    return folder


def put(folder: Path, **keys: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.fixture
def planted(tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package on the path that PEFT's own list of packages lets an adapter import."""
    package = tmp_path / "site" / "megatron"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "evil.py").write_text(
        f"import pathlib, types\npathlib.Path({str(canary)!r}).touch()\n"
        "tensor_parallel = types.SimpleNamespace(ColumnParallelLinear=int, RowParallelLinear=int)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.mark.usefixtures("planted")
def test_an_adapter_has_no_module_imported(
    adapter: Path, shared: Path, tmp_path: Path, canary: Path
) -> None:
    from runner.engines.sft.inside.model.adapter import load_adapter

    base = of_model(planned(shared / "models" / "stories260k", tmp_path))
    put(adapter, megatron_config={"a": 1}, megatron_core="megatron.evil")
    with pytest.raises(RefusedError) as caught:
        load_adapter(base, adapter)
    assert not canary.exists()
    assert "adapter_config.json: megatron_co" in caught.value.message
    put(adapter, megatron_config=None, megatron_core="megatron.core")
    load_adapter(base, adapter)


@pytest.mark.usefixtures("planted")
def test_nor_has_one_that_lies_in_a_models_folder(
    adapter: Path, shared: Path, tmp_path: Path, canary: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(shared / "models" / "stories260k", folder)
    put(adapter, megatron_config={"a": 1}, megatron_core="megatron.evil")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapter / name, folder / name)
    for load in (of_model, of_whole):
        with pytest.raises(RefusedError, match="megatron_co"):
            load(planned(folder, tmp_path))
    assert not canary.exists()


@pytest.mark.parametrize(
    "keys",
    [
        {"peft_type": "XLORA", "adapters": {"0": "someone/adapter"}},
        {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "TEXT", "tokenizer_name_or_path": "x"},
        {"peft_type": "MULTITASK_PROMPT_TUNING", "prompt_tuning_init_state_dict_path": "/x.pt"},
        {"peft_type": None},
        {"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}},
        {"task_type": "SEQ_CLS"},
        {"megatron_core": "evil"},
        {"megatron_config": True},
        {"corda_config": {"covariance_file": "/x.pt"}},
        {"lora_ga_config": {"cache_file": "/x.pt"}},
        {"a_key_of_a_later_peft": "evil.module"},
    ],
)
def test_an_adapter_is_lora_or_a_prefix_and_nothing_else(
    adapter: Path, keys: dict[str, Any]
) -> None:
    require_plain_adapter(adapter / "adapter_config.json")
    put(adapter, **keys)
    with pytest.raises(RefusedError) as caught:
        require_plain_adapter(adapter / "adapter_config.json")
    assert str(adapter) in caught.value.message
    assert any(key in caught.value.message for key in keys)


def test_an_adapter_without_safetensors_is_refused_not_looked_for_elsewhere(
    adapter: Path, shared: Path, tmp_path: Path, canary: Path
) -> None:
    from runner.engines.sft.inside.model.adapter import load_adapter

    base = of_model(planned(shared / "models" / "stories260k", tmp_path))
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(
        b"cposix\nsystem\n(S'touch %s'\ntR." % (os.fsencode(canary))
    )
    with pytest.raises(RefusedError, match=r"has no adapter_model\.safetensors"):
        load_adapter(base, adapter)
    assert not canary.exists()


def test_one_that_does_not_fit_is_told_in_a_line(
    adapter: Path, shared: Path, tmp_path: Path
) -> None:
    from runner.engines.sft.inside.model.adapter import load_adapter

    base = of_model(planned(shared / "models" / "stories260k", tmp_path))
    put(adapter, r=64)
    with pytest.raises(RunnerError, match="can't be put on its base"):
        load_adapter(base, adapter)
