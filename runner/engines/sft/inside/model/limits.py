"""What a model can't do, looked at before any weights are loaded: its vocabulary, its positions,
weights that are stored quantized, parts that no adapter reaches.

Imports torch and transformers when called. Everything is told from config.json, the heads of
safetensors files, and the architecture on the meta device.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.common.errors import Problem, SpecError
from runner.engines.sft.plan import PlannedModel, SftPlan

MAX_HEAD_BYTES = 100 << 20
"""Of a safetensors file's head; safetensors itself takes no more."""
MUCH = 0.1
"""Share of a model's weights above which those that no adapter reaches are told."""
_POSITIONS = re.compile(
    r"(^|\.)(wpe|embed_positions|positions_embed|pos_emb\w*|position_embed\w*|position_embeddings?)$"
)
"""Names of learned (or tabled) positions in transformers' language models."""
_CODES = ("F8_", "F4", "F6_", "U8", "I8", "U4", "I4")
"""Number formats of safetensors in which weights are codes, worth nothing without their scales."""
_METHODS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "bitsandbytes": "bitsandbytes",
    "mxfp4": "MXFP4",
    "compressed-tensors": "compressed-tensors",
    "auto-round": "AutoRound",
}


@dataclass(frozen=True)
class ModelLimits:
    """How far a model reaches."""

    vocabulary: int
    """Rows of its embedding; a token's id lies below."""
    positions: int | None
    """Tokens of the longest row that it was made for; None where its config says none."""
    absolute: bool
    """Whether there is nothing behind the last position: learned or tabled ones, not rotary."""
    unreached: float
    """Share of its weights in experts that are one tensor each, to which no adapter is put."""


def limits_of(plan: SftPlan) -> ModelLimits:
    """The limits of a plan's language model. Raises RefusedError where its config can't be had."""
    from torch import nn

    from runner.engines.sft.inside.model.count import model_on_meta

    model = model_on_meta(plan)
    if plan.vision is not None:
        model = model.model.language_model
    config = model.config.get_text_config()
    tables = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and _POSITIONS.search(name)
    ]
    tables += [
        int(buffer.shape[0])
        for name, buffer in model.named_buffers()
        if buffer.ndim == 2 and _POSITIONS.search(name)
    ]
    said, reach = _said_positions(config)
    weights = sum(one.numel() for one in model.parameters())
    experts = sum(one.numel() for one in model.parameters() if one.ndim == 3)
    absolute = bool(tables) or config.model_type == "mpt"  # its ALiBi is a table too
    positions = said if said is not None else min(tables, default=None)
    return ModelLimits(
        vocabulary=int(model.get_input_embeddings().num_embeddings),
        positions=positions if absolute else reach,
        absolute=absolute,
        unreached=experts / weights if weights else 0.0,
    )


def _said_positions(config: Any) -> tuple[int | None, int | None]:
    """Positions that a config says, and how far its rotary scaling (YaRN, say) reaches."""
    said = None
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            said = value
            break
    if said is None:
        return None, None
    reach = said
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    for one in _rotary(scaling):
        factor = float(one.get("factor") or 1.0)
        original = int(one.get("original_max_position_embeddings") or said)
        reach = max(reach, int(original * factor))
    return said, reach


def _rotary(scaling: Any) -> list[dict[str, Any]]:
    """A config's rotary parameters; where kinds of layers have their own, each."""
    if not isinstance(scaling, dict):
        return []
    if any(isinstance(value, dict) for value in scaling.values()):
        return [value for value in scaling.values() if isinstance(value, dict)]
    return [scaling]


def require_ids(limits: ModelLimits, plan: SftPlan, tokenizer: Any, highest: int) -> list[str]:
    """Refuse token ids that the embedding has no row for; a line on those that no row uses.

    Args:
        limits: of the plan's model.
        plan: names the model.
        tokenizer: whose tokens the ids are, its pad token among them.
        highest: the highest id of the rows.

    Raises SpecError with both sizes.
    """
    pad = tokenizer.pad_token_id
    used = max(highest, pad if pad is not None else 0)
    known = max(len(tokenizer), used + 1)
    if used >= limits.vocabulary:
        token = tokenizer.convert_ids_to_tokens(used)
        padding = used == pad and highest < limits.vocabulary
        what = "its pad token has" if padding else "the rows come to"
        raise SpecError(
            [
                Problem(
                    _place(plan.model),
                    "model",
                    f"the tokenizer has {known:,} tokens, the model's embedding "
                    f"{limits.vocabulary:,} rows, and {what} id {used:,} ({token!r})",
                    f"vocab_size {limits.vocabulary}",
                    "the tokenizer that was published with these weights",
                )
            ]
        )
    if known > limits.vocabulary:
        return [
            f"the tokenizer has {known:,} tokens, the model's embedding {limits.vocabulary:,} "
            "rows; no row uses a token beyond them"
        ]
    return []


def require_positions(
    limits: ModelLimits, plan: SftPlan, longest: int, line: int | str | None = None
) -> list[str]:
    """Refuse rows that are longer than a model with absolute positions; a line for other models.

    Args:
        limits: of the plan's model.
        plan: its training.max_length cuts the rows; a trained prefix takes positions too.
        longest: of the rows as they are trained on, in tokens.
        line: where the longest comes from.

    Raises SpecError with both lengths.
    """
    positions, most = limits.positions, plan.training.max_length
    if positions is None:
        return []
    prefix = plan.prefix.num_virtual_tokens if plan.method == "prefix" else 0
    beside = f", {prefix} of them the prefix's" if prefix else ""
    room = positions - prefix
    where = f" (line {line})" if line is not None else ""
    if longest > room and limits.absolute:
        fits = max(room, 0)
        raise SpecError(
            [
                Problem(
                    _place(plan.model),
                    "training.max_length",
                    f"the longest row{where} has {longest:,} tokens, the model {positions:,} "
                    f"positions{beside}, and none after them",
                    f"{most}",
                    f"at most {fits:,}, which cuts longer rows: --set training.max_length={fits}"
                    if fits >= 8
                    else "a model with more positions, or a shorter prefix",
                )
            ]
        )
    if longest > room:
        return [
            f"the longest row{where} has {longest:,} tokens, and the model was made for "
            f"{positions:,}{beside}: its rotary positions continue, but what it does there was "
            f"never trained; --set training.max_length={max(room, 8)} cuts such rows"
        ]
    if most is not None and most > room and limits.absolute:
        return [
            f"training.max_length {most:,} is more than the model's {positions:,} "
            f"positions{beside}; no row is that long ({longest:,} tokens)"
        ]
    return []


def require_plain_weights(plan: SftPlan) -> None:
    """Refuse a base, or an image tower, whose weights are stored quantized, by the method's name.

    An adapter could be trained on few of these, merged into none, and full training would round its
    steps away; method qlora quantizes plain weights while it loads them.

    Raises SpecError.
    """
    from runner.engines.sft.inside.model.configs import model_config

    parts = [("model", plan.model)]
    if plan.vision is not None and plan.vision.model.folder != plan.model.folder:
        parts.append(("vision.model", plan.vision.model))
    problems = []
    for field, model in parts:
        config, _ = model_config(model, trust_remote_code=plan.trust_remote_code)
        how = quantized_how(config) or _stored_as_codes(model)
        if how is not None:
            expected = "the same model unquantized (bf16, fp16 or fp32)"
            if field == "model":
                expected += "; method qlora quantizes it while it is loaded"
            problem = f"the weights are stored quantized: {how}; nothing can be trained on these"
            problems.append(Problem(_place(model), field, problem, model.id, expected))
    if problems:
        raise SpecError(problems)


def quantized_how(config: Any) -> str | None:
    """How a checkpoint's weights are quantized, in a few words; None where its config says not."""
    for part in (config, config.get_text_config()):
        said = getattr(part, "quantization_config", None)
        if said is None:
            continue
        record = said if isinstance(said, dict) else said.to_dict()
        method = record.get("quant_method")
        name = str(getattr(method, "value", method) or "a method that it does not name")
        bits = record.get("bits") or record.get("w_bit")
        if name == "bitsandbytes":
            bits = 4 if record.get("load_in_4bit") else 8
        shown = _METHODS.get(name, name)
        return f"{shown}, {bits} bits" if bits else shown
    return None


def stored_formats(folder: Path) -> Counter[str]:
    """Number format -> matrices of a model folder's safetensors files stored so; heads alone read.

    A file that can't be read counts nothing here: loading it says so.
    """
    found: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in _head(path).items():
            shape, kind = entry.get("shape"), entry.get("dtype")
            if (
                name.endswith((".weight", ".qweight"))
                and isinstance(shape, list)
                and len(shape) > 1
            ):
                found[str(kind) if name.endswith(".weight") else "qweight"] += 1
    return found


def _head(path: Path) -> dict[str, dict[str, Any]]:
    try:
        with path.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > MAX_HEAD_BYTES:
                return {}
            record = json.loads(stream.read(size))
    except (OSError, ValueError, struct.error):
        return {}
    if not isinstance(record, dict):
        return {}
    return {name: entry for name, entry in record.items() if isinstance(entry, dict)}


def _stored_as_codes(model: PlannedModel) -> str | None:
    """For weights whose config names no method: the number format that gives them away."""
    if model.folder is None or model.kind == "standin":
        return None
    formats = stored_formats(Path(model.folder))
    if formats["qweight"]:
        return (
            "packed matrices (qweight, as GPTQ and AWQ write them), which config.json does not say"
        )
    coded = {name: count for name, count in formats.items() if name.startswith(_CODES)}
    if not coded:
        return None
    name = max(coded, key=lambda one: coded[one])
    return f"{coded[name]:,} matrices of {name}, of which config.json says nothing"


def dtype_notes(plan: SftPlan) -> list[str]:
    """A line where weights are rounded as they are loaded."""
    if plan.model.folder is None or plan.model.kind == "standin" or plan.precision == "fp32":
        return []
    if plan.method == "full" and plan.launch.deepspeed == "none":
        return []  # loaded in fp32
    formats = stored_formats(Path(plan.model.folder))
    wide = formats["F32"] + formats["F64"]
    if wide and wide >= sum(formats.values()) / 2:
        return [f"the weights are stored in fp32; {plan.precision} rounds them as they are loaded"]
    return []


def unreached_lines(limits: ModelLimits, plan: SftPlan) -> list[str]:
    """A line where an adapter leaves out a large part of a model: fused experts (MoE)."""
    if plan.method not in ("lora", "qlora") or limits.unreached < MUCH:
        return []
    stored = ", and qlora does not quantize them" if plan.method == "qlora" else ""
    return [
        f"{limits.unreached:.0%} of the model's weights are experts in one tensor each, no linear "
        f"layers: the adapter does not reach them{stored}"
    ]


def require_within(plan: SftPlan, tokenizer: Any, rows: Any) -> list[str]:
    """Refuse rows (PreparedRows) that a plan's model has no room for; lines on what is near it.

    Raises SpecError.
    """
    limits = limits_of(plan)
    highest = max((_highest_id(part) for part in (rows.train, rows.eval)), default=0)
    audits = (rows.train_audit, rows.eval_audit)
    longest = max(audits, key=lambda one: one.longest)
    return [
        *require_ids(limits, plan, tokenizer, highest),
        *require_positions(limits, plan, longest.longest, longest.longest_line),
        *unreached_lines(limits, plan),
    ]


def require_measurable(
    plan: SftPlan, tokenizer: Any, rows: Sequence[list[int]], prompts: Sequence[list[int]]
) -> None:
    """Refuse what an evaluation would put through a model that has no room for it.

    Args:
        rows: token ids of the rows whose loss is measured.
        prompts: of those that are answered; of one that fills every position, generation itself
            says so and gives no answer.

    Raises SpecError.
    """
    limits = limits_of(plan)
    highest = max((max(ids, default=0) for ids in (*rows, *prompts)), default=0)
    require_ids(limits, plan, tokenizer, highest)
    require_positions(limits, plan, max((len(ids) for ids in rows), default=0))


def _highest_id(rows: Any) -> int:
    """The highest token id of a datasets.Dataset; read column by column, whatever its size."""
    from pyarrow import compute

    highest = 0
    for chunk in rows.data.column("input_ids").chunks:
        found = compute.max(chunk.flatten()).as_py()
        highest = max(highest, found or 0)
    return highest


def _place(model: PlannedModel) -> str:
    return model.folder or model.id
