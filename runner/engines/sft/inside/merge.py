"""Base and adapter of a run as one model.

`python -m runner.engines.sft.inside.merge RUN_FOLDER PLAN OUT DTYPE`, where PLAN says how the model
is loaded. Imports torch, transformers and peft when called. On the CPU, in this order: the base is
loaded unquantized, the adapter put on it, its logits on rows of the run kept; merged; written
beside OUT; read again by plain transformers and compared; then renamed to OUT. Prints one JSON
document.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from runner.common import durable, staged_folder, terminal
from runner.common.errors import RefusedError, RunnerError, bug
from runner.common.tensors_only import load_tensors_only
from runner.common.units import format_bytes
from runner.engines.render import read_plan
from runner.engines.sft.inside.model.trained import (
    LIMIT,
    Difference,
    difference,
    load_base,
    load_trained,
    logits,
    require_result,
    token_batch,
)
from runner.engines.sft.inside.quiet import silence_libraries
from runner.engines.sft.inside.train.result import sums
from runner.engines.sft.plan import SftPlan
from runner.runs.folder import RunFolder

SCHEMA_VERSION = 1
ROWS, TOKENS = 8, 64  # rows that are compared, and how many tokens of each
_SPARE_BYTES = 64 << 20  # tokenizer, configs, and what a disk needs to stay usable
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_SENTENCES = (
    "Who are you?",
    "What is the capital of France?",
    "List three things that a careful engineer checks before a release, and say why.",
    "Write one sentence about the sea.",
)


def merge(folder: RunFolder, plan: SftPlan, out: Path, dtype: str | None) -> dict[str, Any]:
    """Merge the adapter of a run into its base, in `out`; the record that is its merge.json.

    Args:
        folder: a finished run of method lora or qlora.
        plan: by which its model is loaded.
        out: the folder to make; it must not be there.
        dtype: bf16, fp16 or fp32; None is the base's own.

    Raises:
        RefusedError: no result to merge, a base that is itself quantized, or too little disk or
            memory for it.
        RunnerError: the merged model does not compute what base and adapter do.
    """
    plan = plan.model_copy(update={"earlier": []})
    require_result(plan, folder)
    if out.exists() or out.is_symlink():
        raise RefusedError(f"{out} is there already", "give another folder with --out DIR")
    cpu = plan.launch.model_copy(update={"device": "cpu", "deepspeed": "none"})
    plain = plan.model_copy(update={"method": "lora", "launch": cpu})
    kept = dtype or _own_dtype(plain)
    weights = _base_weights(plain)
    _require_disk(out, weights * _BYTES[kept])
    working = _working_precision(kept, weights)
    plain = plain.model_copy(update={"precision": working})

    from runner.engines.sft.inside.model.adapter import load_adapter
    from runner.engines.sft.inside.model.tokenizer import load_tokenizer

    tokenizer, _ = load_tokenizer(plain)
    batches, rows = _batches(plan, tokenizer)
    _say(f"loading the base unquantized, to compute in {working}")
    base = load_base(plain, folder)
    if getattr(base, "is_quantized", False):
        raise RefusedError(
            f"the weights of {plan.model.id} are stored quantized; there is nothing to merge into",
            "take the unquantized model as the job's `model`; the adapter fits it too",
        )
    model = load_adapter(base, folder.adapter).eval()
    wanted = logits(model, batches, "fp32")
    with model.disable_adapter():
        effect = difference(logits(model, batches, "fp32"), wanted)
    merged = model.merge_and_unload(safe_merge=True)
    arithmetic = difference(logits(merged, batches, "fp32"), wanted)
    _require_same(arithmetic, working, "the merged weights")

    with staged_folder.staged(out, existing="refuse") as staging:
        _write(merged, tokenizer, plain, staging, kept)
        del model, merged, base
        _say("reading it again with plain transformers")
        stored = difference(logits(_reload(plain, staging), batches, "fp32"), wanted)
        _require_same(stored, kept, f"the model as written in {kept}")
        record = {
            "schema_version": SCHEMA_VERSION,
            "run": folder.name,
            "job": plan.job,
            "plan_hash": plan.hash,
            "method": plan.method,
            "base": plan.model.model_dump(mode="json"),
            "adapter_sha256": sums(folder.adapter, ["adapter_model.safetensors"])["sha256"],
            "dtype": kept,
            "computed_in": working,
            "rows": rows,
            "adapter_effect": asdict(effect),
            "merge_check": asdict(arithmetic),
            "stored_check": asdict(stored),
            "quantized": _quantized(plan, folder, batches, wanted),
            **sums(staging, sorted(path.name for path in staging.glob("*.safetensors"))),
        }
        durable.write_json(staging / "merge.json", record)
    return record


def _own_dtype(plan: SftPlan) -> str:
    """The number format in which the base is published; bf16 where its config says none."""
    from transformers import AutoConfig

    from runner.engines.sft.inside.model.tokenizer import location, unreachable

    place, options = location(plan)
    try:
        config = AutoConfig.from_pretrained(place, **options)
    except (OSError, ValueError) as error:
        raise unreachable(plan, error) from None
    return _NAMES.get(str(config.dtype).removeprefix("torch."), "bf16")


def _base_weights(plan: SftPlan) -> int:
    from runner.engines.sft.inside.model.count import count_parameters

    count = count_parameters(plan.model_copy(update={"trains": ["adapter"]}))
    return count.total - count.trainable


def _require_disk(out: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(_existing_parent(out)).free
    if free < size_bytes + _SPARE_BYTES:
        raise RefusedError(
            f"the merged model takes {format_bytes(size_bytes)}, and where {out} would be there "
            f"are {format_bytes(free)} free",
            "free disk space, or name another place with --out DIR",
        )


def _existing_parent(out: Path) -> Path:
    return next(parent for parent in out.absolute().parents if parent.is_dir())


def _working_precision(kept: str, weights: int) -> str:
    """fp32 where there is memory for it, since then only the rounding at the end is left.

    Raises RefusedError where even the format that is written does not fit.
    """
    available = psutil.virtual_memory().available
    for precision in dict.fromkeys(("fp32", kept)):
        if weights * _BYTES[precision] * 1.2 + (1 << 30) < available:
            return precision
    raise RefusedError(
        f"merging takes {format_bytes(int(weights * _BYTES[kept] * 1.2))} of host memory in "
        f"{kept}; {format_bytes(available)} are to be had",
        "end other programs, or merge on a machine with more memory (a run folder can be copied)",
    )


def _batches(plan: SftPlan, tokenizer: Any) -> tuple[list[dict[str, Any]], str]:
    """What the models are compared on, and in words what it is: rows that the run trained on."""
    from runner.engines.sft.inside.image_tokens import image_tokens
    from runner.engines.sft.inside.images import for_trainer
    from runner.engines.sft.inside.rows import prepare_rows

    try:
        rows = for_trainer(prepare_rows(plan, tokenizer, image_tokens=image_tokens(plan)).train)
        chosen = [rows[at] for at in range(min(ROWS, len(rows)))]
        told = f"{len(chosen)} rows of the run"
        if plan.vision is None:
            return [token_batch(row["input_ids"][:TOKENS]) for row in chosen], told
        from runner.engines.sft.inside.images import ImageTextCollator, image_processor

        collate = ImageTextCollator(tokenizer, image_processor(plan))
        return [
            {name: value for name, value in collate([row]).items() if name != "labels"}
            for row in chosen
        ], told
    except (RunnerError, OSError) as error:
        told = f"sentences of runner's own, since the run's rows can't be read: {error}"
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": sentence}], tokenize=False, add_generation_prompt=True
        )
        for sentence in _SENTENCES
    ]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [token_batch(row[:TOKENS]) for row in ids], told


def _require_same(found: Difference, precision: str, what: str) -> None:
    limit = LIMIT[precision]
    if not found.largest_relative <= limit:
        raise RunnerError(
            f"{what} are not base and adapter: logits differ by {found.largest_relative:.3g} of "
            f"their largest value (limit {limit:g}); nothing was written"
        )


def _write(model: Any, tokenizer: Any, plan: SftPlan, staging: Path, dtype: str) -> None:
    from runner.engines.sft.inside.model.weights import precision_dtype

    model = model.to(precision_dtype(dtype))
    model.config.dtype = precision_dtype(dtype)
    model.save_pretrained(str(staging), max_shard_size="5GB")
    tokenizer.save_pretrained(str(staging))
    if plan.vision is not None:
        from runner.engines.sft.inside.images import image_processor

        image_processor(plan).prepare.save_pretrained(str(staging))


def _reload(plan: SftPlan, folder: Path) -> Any:
    from runner.engines.sft.inside.model.weights import load_whole

    return load_whole(plan, folder).eval()


def _quantized(
    plan: SftPlan, folder: RunFolder, batches: list[dict[str, Any]], wanted: list[Any]
) -> dict[str, Any] | None:
    """For qlora: how far the quantized model that was trained lies from the merged one.

    Information, not a check: the adapter was trained on the rounded weights and is now on the
    exact ones. None for other methods.
    """
    if plan.method != "qlora":
        return None
    _say("loading the quantized model that was trained, to compare")
    import torch

    device = "cuda" if plan.launch.device == "cuda" and torch.cuda.is_available() else "cpu"
    launch = plan.launch.model_copy(update={"device": device, "deepspeed": "none"})
    there = plan.model_copy(update={"launch": launch})
    try:
        trained = load_trained(there, folder).eval()
    except RefusedError as error:
        return {"compared": False, "because": error.message}
    found = difference(wanted, logits(trained, batches, plan.precision))
    return {"compared": True, **asdict(found)}


def _say(line: str) -> None:
    terminal.say(f"runner: {line}")


def main() -> int:
    """Command line; exit code 0 or that of the refusal."""
    load_tensors_only()
    parser = argparse.ArgumentParser(
        prog="python -m runner.engines.sft.inside.merge", description=__doc__
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("plan", type=Path, help="by which its model is loaded")
    parser.add_argument("out", type=Path)
    parser.add_argument("dtype", choices=["own", *_BYTES])
    arguments = parser.parse_args()
    folder = RunFolder(arguments.folder)
    try:
        plan = read_plan(arguments.plan)
        silence_libraries(plan)
        dtype = None if arguments.dtype == "own" else arguments.dtype
        record = merge(folder, plan, arguments.out, dtype)
    except RunnerError as error:
        terminal.say("\n".join(error.lines()))
        return error.exit_code
    except OSError as error:
        terminal.say(f"error: the merged model can't be written: {error}")
        return 1
    except Exception as error:  # a model from who knows where
        terminal.say("\n".join(bug(error).lines()))
        return 1
    terminal.put_json(record)
    return 0


if __name__ == "__main__":
    terminal.guard_streams()
    sys.exit(main())
