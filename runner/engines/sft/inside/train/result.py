"""Write the result of a training, an adapter or a whole model, after proving that it was trained.

Imports torch, peft and safetensors when called.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.common import durable, staged_folder
from runner.common.errors import RunnerError
from runner.engines.sft.inside.model.adapter import (
    PREFIX_ENCODER,
    keep_full_precision,
    require_prefix_fits,
)
from runner.engines.sft.inside.model.trained import result_folder
from runner.engines.sft.inside.model.weights import precision_dtype
from runner.engines.sft.plan import SftPlan
from runner.runs.folder import RunFolder
from runner.runs.recover import staging_of

Marks = Mapping[str, int]
"""A checksum of each trained tensor, by the name it is saved under."""

_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
_INDEX = "model.safetensors.index.json"


def ready_to_train(model: Any, plan: SftPlan) -> Marks:
    """Hold what is trained in fp32 (adapter.keep_full_precision), and note what it is before.

    To be called once the trainer has wrapped the model, on every rank, before any checkpoint is
    loaded. The marks go to `save_result` and `publish_from`, which compare.

    Raises RefusedError where a prefix does not fit the model.
    """
    keep_full_precision(model, plan)
    if plan.method == "prefix":
        require_prefix_fits(model)
    return _marks(model)


def save_result(
    trainer: Any, tokenizer: Any, plan: SftPlan, folder: RunFolder, *, start: Marks, first: bool
) -> dict[str, Any]:
    """Write the trained model's adapter/ or model/: staged, proven, flushed, renamed.

    Every rank calls it (ZeRO-3 gathers). Returns what was written, on the first.

    Raises RunnerError where nothing came out of training, or a value is not finite.
    """
    staging = _staging(plan, folder)
    if first:
        shutil.rmtree(staging, ignore_errors=True)
    trainer.save_model(str(staging))
    return _publish(staging, tokenizer, plan, folder, start) if first else {}


def publish_from(
    checkpoint: Path, tokenizer: Any, plan: SftPlan, folder: RunFolder, *, start: Marks
) -> dict[str, Any]:
    """Make the model of a checkpoint the run's result, with the same proof; on the first rank.

    Raises RunnerError as `save_result`, and where the checkpoint holds no weights.
    """
    staging = _staging(plan, folder)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    wanted = [path for path in checkpoint.iterdir() if _is_result(path.name, plan)]
    for path in wanted:
        shutil.copyfile(path, staging / path.name)
    return _publish(staging, tokenizer, plan, folder, start)


def require_moved(model: Any, start: Marks) -> None:
    """Refuse a model in which no trained tensor is another than it was."""
    now = _marks(model)
    if start and all(now.get(name) == mark for name, mark in start.items()):
        raise RunnerError("training changed nothing: every trained tensor is as it was")


def _staging(plan: SftPlan, folder: RunFolder) -> Path:
    return staging_of(result_folder(plan, folder))


def _is_result(name: str, plan: SftPlan) -> bool:
    if plan.method != "full":
        return name in _ADAPTER_FILES
    return name in ("config.json", "generation_config.json", _INDEX) or (
        name.startswith("model") and name.endswith(".safetensors")
    )


def _publish(
    staging: Path, tokenizer: Any, plan: SftPlan, folder: RunFolder, start: Marks
) -> dict[str, Any]:
    tokenizer.save_pretrained(str(staging))
    (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle; the plan says it all
    (staging / PREFIX_ENCODER).unlink(missing_ok=True)  # of use to checkpoints alone
    weights = sorted(
        path for path in staging.glob("*.safetensors") if path.name.startswith(("model", "adapter"))
    )
    _require_trained(weights, plan, start)
    if plan.method == "full":
        _round_weights(weights, staging, plan)
    else:
        _name_base(staging / "adapter_config.json", plan)
    target = result_folder(plan, folder)
    staged_folder.flush(staging)
    staged_folder.replace(staging, target, staged_folder.replaced_of(target))
    return {"folder": target.name, **sums(target, [path.name for path in weights])}


def sums(folder: Path, names: list[str]) -> dict[str, Any]:
    """sha256 and size of weights: of the file, or, where there are several, of the list that
    `sha256sum` would print of them."""
    digests = {}
    for name in names:
        with (folder / name).open("rb") as stream:
            digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    listed = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    one = len(names) == 1
    return {
        "sha256": digests[names[0]] if one else hashlib.sha256(listed.encode()).hexdigest(),
        "size_bytes": sum((folder / name).stat().st_size for name in names),
        **({} if one else {"files": digests}),
    }


def _require_trained(weights: list[Path], plan: SftPlan, start: Marks) -> None:
    """Refuse weights that hold nothing, hold no finite values, or are those of the start.

    LoRA starts with every B at zero and changes nothing; whatever else is trained (a prefix, a
    projector, the base itself) is compared with what it was.
    """
    from safetensors import safe_open

    b_matrices = moved = compared = False
    names = 0
    for file in weights:
        with safe_open(str(file), framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118  (not a dict)
                tensor = stream.get_tensor(name)
                names += 1
                if tensor.numel() == 0:
                    raise RunnerError(f"the saved weights are empty: {name} holds nothing")
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise RunnerError(f"the saved weights hold values that are no number: {name}")
                b_matrices = b_matrices or ("lora_B" in name and bool(tensor.any()))
                if name in start:
                    compared = True
                    moved = moved or _mark(tensor) != start[name]
    if not names:
        raise RunnerError("the saved result is empty: no weights came out of training")
    if plan.method in ("lora", "qlora") and "adapter" in plan.trains and not b_matrices:
        raise RunnerError("the saved adapter changes nothing: every lora_B is zero")
    if start and not (compared and moved):
        raise RunnerError("the saved weights are those that training started from")


def _marks(model: Any) -> dict[str, int]:
    """Checksums of what is trained, apart from LoRA's own matrices, by the names in a save."""
    peft = getattr(model, "peft_config", None)
    if peft is None:
        named = {name: value for name, value in model.named_parameters() if value.requires_grad}
        marks = {}
        for name, value in named.items():
            with _gathered([value]):
                marks[name] = _mark(value)
        return marks
    from peft import get_peft_model_state_dict

    with _gathered([value for value in model.parameters() if value.requires_grad]):
        saved = get_peft_model_state_dict(model, save_embedding_layers=False)
        return {name: _mark(value) for name, value in saved.items() if "lora_" not in name}


@contextlib.contextmanager
def _gathered(parameters: list[Any]) -> Iterator[None]:
    """Inside, parameters that ZeRO-3 has sharded are whole."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield


def _mark(tensor: Any) -> int:
    """A sum over a tensor's bits, the same on every device and in every order."""
    import torch

    size = tensor.element_size()
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    return int(tensor.detach().contiguous().view(kind).sum(dtype=torch.int64))


def _round_weights(weights: list[Path], staging: Path, plan: SftPlan) -> None:
    """A full training's fp32 weights, in the plan's precision: half the size, as bases come."""
    import torch
    from safetensors.torch import load_file, save_file

    if plan.precision == "fp32":
        return
    dtype, total = precision_dtype(plan.precision), 0
    for file in weights:
        tensors = load_file(str(file))
        rounded = {
            name: tensor.to(dtype) if tensor.dtype == torch.float32 else tensor
            for name, tensor in tensors.items()
        }
        total += sum(tensor.numel() * tensor.element_size() for tensor in rounded.values())
        save_file(rounded, str(file), metadata={"format": "pt"})
    if (staging / _INDEX).is_file():
        index = json.loads((staging / _INDEX).read_text())
        index["metadata"]["total_size"] = total
        durable.write_json(staging / _INDEX, index)
    config = json.loads((staging / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    durable.write_json(staging / "config.json", config)


def _name_base(config: Path, plan: SftPlan) -> None:
    """Say in adapter_config.json what the adapter is of: a hub id with its revision, or a folder;
    not the place in this machine's cache where the hub's files lie."""
    record = json.loads(config.read_text())
    model = plan.model
    on_hub = model.kind == "hub"
    record["base_model_name_or_path"] = model.id if on_hub else model.folder or model.id
    record["revision"] = model.revision if on_hub else None
    durable.write_json(config, record)
