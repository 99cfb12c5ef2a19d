"""benchmarks/full_size.py: the real architectures, counted without weights."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest

from tests.support.command import REPOSITORY


@pytest.fixture(scope="module")
def full_size() -> ModuleType:
    path = REPOSITORY / "benchmarks" / "full_size.py"
    spec = importlib.util.spec_from_file_location("full_size", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["full_size"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_count_is_the_published_one(
    full_size: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["full_size.py", "--meta"])
    assert full_size.main() == 0
    counts = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert counts == {
        "qwen2.5-0.5b": "494,032,768",  # ../shared/docs/training-stack.md, and the model's card
        "qwen2.5-3b": "3,085,938,688",  # the same
        "minimind2-small": "29,106,688",  # 25.83 M by its authors, who tie the head (3.28 M)
        "smollm2-135m": "134,515,008",  # the model's card: 135 M
        "gemma-2b": "2,506,172,416",  # the model's card: 2.51 B
        "clip-l-336": "303,507,456",  # of CLIP ViT-L/14@336px the image half: 304 M
    }


def test_lora_and_projector_of_the_real_llava_have_the_contracts_sizes(full_size: Any) -> None:
    """../shared/docs/mgm-contract.md: 19.6 M at r=16 on every linear layer, projector 6.3 M."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import CONFIG_MAPPING, LlavaConfig, LlavaForConditionalGeneration

    from runner.engines.sft.inside.model.vision.compose import adapter_targets
    from runner.engines.sft.inside.model.vision.config import image_tokens
    from runner.engines.sft.inside.model.vision.projector import PROJECTOR, projector_parameters

    def config(name: str) -> Any:
        options = dict(full_size.MODELS[name].config)
        return CONFIG_MAPPING[options.pop("model_type")](**options)

    whole = LlavaConfig(text_config=config("gemma-2b"), vision_config=config("clip-l-336"))
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(whole)
        adapter = LoraConfig(
            r=16, target_modules=adapter_targets(model), modules_to_save=[PROJECTOR]
        )
        total = sum(p.numel() for p in model.parameters())
        model = get_peft_model(model, adapter, low_cpu_mem_usage=True)
    assert image_tokens(whole) == 576
    lora = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    projector = sum(p.numel() for p in projector_parameters(model).values())
    assert (lora, projector) == (19_611_648, 6_295_552)
    assert total == 2_506_172_416 + 303_507_456 + 6_295_552


def test_a_made_model_loads_with_its_tokenizer(
    full_size: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest one; without ../shared its tokenizer is trained on the sample rows."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(full_size, "shared_folder", lambda: None)
    name = "minimind2-small"
    folder = full_size.write(name, full_size.MODELS[name], tmp_path)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and str(model.dtype) == "torch.bfloat16"
    assert full_size.count(model) == full_size.MODELS[name].parameters
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) <= model.config.vocab_size and tokenizer.chat_template
    assert model.config.eos_token_id == tokenizer.eos_token_id
