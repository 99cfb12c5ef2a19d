"""Merging LoRA output into a base: the arithmetic, and every way in which the files may not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.engines.mgm.stages import merge

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

WEIGHT = "model.layers.0.self_attn.q_proj.weight"
PREFIX = "base_model.model."


def trained_parts() -> dict[str, Any]:
    """non_lora_trainables.bin in small: 4 tensors of the projector, 12 of the patch info mining."""
    names = [f"mm_projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
    for part in ("query", "aux", "val"):
        names += [
            f"vlm_uni_{part}_projector.{layer}.{kind}"
            for layer in (0, 1)
            for kind in ("weight", "bias")
        ]
    return {f"{PREFIX}model.{name}": torch.randn(3, 2) for name in names}


class Files:
    """A base in two shards and the output of a LoRA training, to be spoilt by a test."""

    def __init__(self, folder: Path) -> None:
        self.base, self.adapter, self.output = folder / "base", folder / "run", folder / "mgm-2b"
        self.base.mkdir()
        self.adapter.mkdir()
        self.weights = {
            WEIGHT: torch.randn(6, 4).bfloat16(),
            "model.embed_tokens.weight": torch.randn(5, 4).bfloat16(),
        }
        names = {}
        for number, (name, tensor) in enumerate(self.weights.items()):
            names[name] = f"model-{number}.safetensors"
            safetensors.save_file({name: tensor}, str(self.base / names[name]))
        index = {"metadata": {}, "weight_map": names}
        (self.base / "model.safetensors.index.json").write_text(json.dumps(index))
        (self.base / "tokenizer.json").write_text("{}")
        self.a, self.b = torch.randn(2, 4), torch.randn(6, 2)
        stem = PREFIX + WEIGHT.removesuffix(".weight")
        self.lora = {f"{stem}.lora_A.weight": self.a, f"{stem}.lora_B.weight": self.b}
        self.parts = trained_parts()
        self.config: dict[str, Any] = {"model_type": "mgm_gemma", "vocab_size": 5}
        self.lora_config: dict[str, Any] = {"r": 2, "lora_alpha": 8}

    def write(self) -> None:
        torch.save(self.lora, self.adapter / "adapter_model.bin")
        torch.save(self.parts, self.adapter / "non_lora_trainables.bin")
        (self.adapter / "config.json").write_text(json.dumps(self.config))
        (self.adapter / "adapter_config.json").write_text(json.dumps(self.lora_config))

    def merge(self) -> dict[str, Any]:
        self.write()
        return merge.merge(self.base, self.adapter, self.output)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    torch.manual_seed(0)
    return Files(tmp_path)


def merged_tensors(folder: Path) -> dict[str, Any]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors: dict[str, Any] = {}
    for shard in sorted(set(index["weight_map"].values())):
        tensors |= safetensors.load_file(str(folder / shard))
    assert set(tensors) == set(index["weight_map"])
    return tensors


def test_the_update_is_added_in_fp32_and_rounded_once(files: Files) -> None:
    figures = files.merge()
    tensors = merged_tensors(files.output)
    expected = files.weights[WEIGHT].float() + (files.b @ files.a) * 4.0
    assert torch.equal(tensors[WEIGHT], expected.bfloat16())
    same = "model.embed_tokens.weight"
    assert torch.equal(tensors[same], files.weights[same])
    for key, tensor in files.parts.items():
        assert torch.equal(tensors[key.removeprefix(PREFIX)], tensor.bfloat16())
    assert figures["weights_changed"] == 1
    assert (files.output / "tokenizer.json").exists()
    config = json.loads((files.output / "config.json").read_text())
    assert config["architectures"] == ["MGMGemmaForCausalLM"]
    assert config["torch_dtype"] == "bfloat16"


def test_the_builder_finds_the_patch_info_mining_by_the_index(files: Files) -> None:
    files.merge()
    index = json.loads((files.output / "model.safetensors.index.json").read_text())
    shards = {shard for name, shard in index["weight_map"].items() if "vlm_uni" in name}
    assert shards == {"model-00003-of-00003.safetensors"}


def test_what_quantized_training_left_in_the_config_is_dropped(files: Files) -> None:
    files.config["quantization_config"] = {"load_in_4bit": True}
    files.merge()
    assert "quantization_config" not in json.loads((files.output / "config.json").read_text())


def test_biases_that_lora_bias_all_saves_twice_are_taken_once(files: Files) -> None:
    key = f"{PREFIX}model.mm_projector.0.bias"
    files.lora[key] = files.parts[key]
    files.merge()
    assert "model.mm_projector.0.bias" in merged_tensors(files.output)


def spoil_half(files: Files) -> None:
    files.lora.pop(next(key for key in files.lora if "lora_B" in key))


def spoil_zero(files: Files) -> None:
    files.b.zero_()


def spoil_nan(files: Files) -> None:
    files.a[0, 0] = float("nan")


def spoil_shape(files: Files) -> None:
    key = next(key for key in files.lora if "lora_B" in key)
    files.lora[key] = torch.randn(7, 2)


def spoil_name(files: Files) -> None:
    files.lora = {key.replace("layers.0", "layers.9"): value for key, value in files.lora.items()}


def spoil_projector(files: Files) -> None:
    files.parts.pop(next(key for key in files.parts if "mm_projector" in key))


def spoil_mining(files: Files) -> None:
    files.parts.pop(next(key for key in files.parts if "vlm_uni" in key))


def spoil_kind(files: Files) -> None:
    files.lora_config["use_dora"] = True


def spoil_type(files: Files) -> None:
    files.config["model_type"] = "llava"


def spoil_index(files: Files) -> None:
    (files.base / "model.safetensors.index.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_half, "only lora_A"),
        (spoil_zero, "nothing was trained"),
        (spoil_nan, "finite"),
        (spoil_shape, "not of this adapter"),
        (spoil_name, "not in the base"),
        (spoil_projector, "mm_projector: 3"),
        (spoil_mining, "vlm_uni: 11"),
        (spoil_kind, "use_dora"),
        (spoil_type, "llava"),
        (spoil_index, "no model.safetensors.index.json"),
    ],
)
def test_files_that_do_not_fit_are_refused(files: Files, spoil: Any, told: str) -> None:
    spoil(files)
    with pytest.raises(merge.MergeError, match=told):
        files.merge()


def test_a_pickle_that_is_more_than_tensors_is_not_run(files: Files, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "pwned",))

    files.write()
    torch.save({"x": Hostile()}, files.adapter / "non_lora_trainables.bin")
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        merge.merge(files.base, files.adapter, files.output)
    assert not (tmp_path / "pwned").exists()
