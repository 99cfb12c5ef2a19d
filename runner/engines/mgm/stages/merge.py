"""LoRA output + base -> one model folder that the toolkit's builder loads; upstream has no way to.

    python merge.py --base GEMMA --adapter FINETUNE_OUTPUT --output FOLDER

Works on tensors, a shard of the base at a time: W + (alpha / r) B A in fp32, rounded once to the
base's own type. The projector and the patch info mining (non_lora_trainables.bin) become a shard of
their own; the index names all, since the builder opens the index to find vlm_uni_*. The two image
towers stay where config.json says they are. Quantized training (bits 4 or 8) is merged into the
base's full weights: the adapter was fitted to rounded ones, so answers can differ a little.
Imports the standard library and its neighbours; torch and safetensors inside functions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

if __package__:
    from .ending import refuse
else:  # in a run folder the scripts lie beside each other
    from ending import refuse  # type: ignore[import-not-found, no-redef]

_PEFT_PREFIX = "base_model.model."
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Parts that are trained in full beside the adapter, and how many tensors each has.
_FULL_PARTS = {"mm_projector": 4, "vlm_uni": 12}
# Of the base's files, what is not weights: the tokenizer and how it generates.
_NOT_COPIED = (".safetensors", ".bin", ".index.json", ".gguf", ".h5", ".msgpack", ".pth", ".pt")


class MergeError(ValueError):
    """Files that don't fit each other; the message says which and why."""


def base_name(adapter_key: str) -> str:
    """The name of a weight in the base, of an adapter's key."""
    if not adapter_key.startswith(_PEFT_PREFIX):
        raise MergeError(f"{adapter_key}: not a PEFT name")
    return adapter_key[len(_PEFT_PREFIX) :]


def lora_pairs(keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Base weight -> its keys of A and B. Raises MergeError for half a pair or any other tensor."""
    halves: dict[str, dict[str, str]] = {}
    for key in keys:
        module, _, which = base_name(key).rpartition(".lora_")
        letter = which.split(".")[0]
        if letter not in ("A", "B") or not which.endswith(".weight"):
            raise MergeError(f"{key}: neither lora_A nor lora_B of a linear layer")
        halves.setdefault(f"{module}.weight", {})[letter] = key
    for weight, found in halves.items():
        if set(found) != {"A", "B"}:
            raise MergeError(f"{weight}: only lora_{next(iter(found))} is there")
    if not halves:
        raise MergeError("the adapter is empty")
    return {weight: (found["A"], found["B"]) for weight, found in halves.items()}


def full_parts(keys: Iterable[str]) -> dict[str, str]:
    """Name in the merged model -> key in non_lora_trainables.bin.

    Raises MergeError where the projector or the patch info mining is not there whole.
    """
    named = {base_name(key): key for key in keys}
    for part, expected in _FULL_PARTS.items():
        found = sum(f".{part}" in f".{name}" for name in named)
        if found != expected:
            raise MergeError(f"{part}: {found} tensors where {expected} are expected")
    return named


def scaling(adapter_config: Mapping[str, Any]) -> float:
    """What B A is multiplied by. Raises MergeError for a kind of LoRA that this does not merge."""
    for field in ("fan_in_fan_out", "use_rslora", "use_dora"):
        if adapter_config.get(field):
            raise MergeError(f"adapter_config.json: {field} is not merged here")
    return float(adapter_config["lora_alpha"]) / int(adapter_config["r"])


def merged_config(saved: Mapping[str, object]) -> dict[str, object]:
    """The run's config.json for the merged model: its class named, nothing quantized."""
    if saved.get("model_type") != "mgm_gemma":
        raise MergeError(f"config.json: model_type {saved.get('model_type')!r}, not mgm_gemma")
    config = dict(saved, architectures=["MGMGemmaForCausalLM"], use_cache=True)
    config.pop("quantization_config", None)
    config.pop("pretrain_mm_mlp_adapter", None)  # the builder would load it over what was trained
    return config


def shard_name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


# effects ----------------------------------------------------------------------------------------


def read_shard(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file; pickles are read as tensors only."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(str(path)))
    import torch

    return dict(torch.load(path, map_location="cpu", weights_only=True))


def base_shards(base: Path) -> list[Path]:
    """The base's weight files, in order. Raises MergeError where there is no index."""
    for name in _INDEXES:
        if (base / name).is_file():
            named = set(json.loads((base / name).read_text("utf-8"))["weight_map"].values())
            return [base / shard for shard in sorted(named)]
    raise MergeError(f"{base}: no {_INDEXES[0]}")


def add_lora(
    tensors: dict[str, torch.Tensor],
    pairs: dict[str, tuple[str, str]],
    adapter: Mapping[str, torch.Tensor],
    factor: float,
) -> Iterator[str]:
    """Add the update of each pair whose weight is in `tensors`; yields the weights changed."""
    for weight, (key_a, key_b) in pairs.items():
        if weight not in tensors:
            continue
        base, a, b = tensors[weight], adapter[key_a].float(), adapter[key_b].float()
        if tuple(base.shape) != (b.shape[0], a.shape[1]):
            raise MergeError(f"{weight}: {tuple(base.shape)} in the base, not of this adapter")
        tensors[weight] = (base.float() + (b @ a) * factor).to(base.dtype)
        yield weight


def merge(base: Path, adapter_folder: Path, output: Path) -> dict[str, int]:
    """Write the merged model; returns its figures. Raises MergeError, OSError."""
    from safetensors.torch import save_file

    config = merged_config(json.loads((adapter_folder / "config.json").read_text("utf-8")))
    factor = scaling(json.loads((adapter_folder / "adapter_config.json").read_text("utf-8")))
    adapter = read_shard(adapter_file(adapter_folder))
    trained = read_shard(adapter_folder / "non_lora_trainables.bin")
    # lora_bias "all" saves the biases of the parts trained in full once more
    trained.update((key, adapter.pop(key)) for key in list(adapter) if ".lora_" not in key)
    pairs, parts = lora_pairs(adapter), full_parts(trained)
    if not any(bool(adapter[key_b].any()) for _, key_b in pairs.values()):
        raise MergeError("every lora_B is 0: nothing was trained")
    for key, tensor in {**adapter, **trained}.items():
        if not bool(tensor.isfinite().all()):
            raise MergeError(f"{key}: not all numbers are finite")

    shards = base_shards(base)
    output.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    changed: set[str] = set()
    total = 0
    dtype = None
    for number, shard in enumerate([*shards, None], 1):
        if shard is None:
            # contiguous copies, since a saved tensor may be a view
            tensors = {
                name: trained[key].to(dtype).contiguous().clone() for name, key in parts.items()
            }
        else:
            tensors = read_shard(shard)
            changed.update(add_lora(tensors, pairs, adapter, factor))
            dtype = next(iter(tensors.values())).dtype
        name = shard_name(number, len(shards) + 1)
        save_file(tensors, str(output / name), metadata={"format": "pt"})
        (output / name).chmod(0o644)  # safetensors leaves it to its owner alone
        weight_map.update(dict.fromkeys(tensors, name))
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if set(pairs) - changed:
        raise MergeError(f"{min(set(pairs) - changed)}: in the adapter, not in the base")

    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    for name, record in (("config.json", config), (_INDEXES[0], index)):
        (output / name).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for file in base.iterdir():
        if file.is_file() and file.name != "config.json" and not file.name.endswith(_NOT_COPIED):
            shutil.copyfile(file, output / file.name)
    return {"weights_changed": len(changed), "parts": len(parts), "bytes": total}


def adapter_file(folder: Path) -> Path:
    """The adapter's weights. Raises MergeError where there are none."""
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise MergeError(f"{folder}: no adapter_model.bin")


def sync(folder: Path) -> None:
    """Flush the folder and its files to the disk."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    staged = given.output.with_name(f".{given.output.name}.part")
    try:
        shutil.rmtree(staged, ignore_errors=True)
        figures = merge(given.base, given.adapter, staged)
        sync(staged)
        if given.output.exists():  # of an earlier merge; its marker no longer fits
            shutil.rmtree(given.output)
        staged.rename(given.output)
    except (MergeError, OSError, KeyError, ValueError) as error:
        shutil.rmtree(staged, ignore_errors=True)
        return refuse(f"merge: {error}")
    print(
        f"merge: {figures['weights_changed']} weights changed, {figures['parts']} tensors beside "
        f"them, {figures['bytes'] / 2**20:,.0f} MiB in {given.output}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
