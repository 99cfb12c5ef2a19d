"""Weights and tokenizer of a plan, in the precision or quantization that its method asks for.

Imports torch, transformers and bitsandbytes when called. What is trained of them: `adapter`.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from runner.common.errors import RefusedError
from runner.engines.sft.inside.model.adapter_config import require_plain_model
from runner.engines.sft.inside.model.remote_code import remote_code_refused
from runner.engines.sft.inside.model.tokenizer import first_line, location, unreachable
from runner.engines.sft.plan import SftPlan


def precision_dtype(precision: str) -> Any:
    """torch's dtype of bf16, fp16 or fp32."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def load_model(plan: SftPlan) -> Any:
    """The base model as its method trains it; on the CPU but for qlora, the trainer moves it.

    lora and prefix take the plan's precision. full takes fp32, since updates of 1e-5 vanish in
    bf16 weights; autocast computes in the plan's precision, and DeepSpeed keeps fp32 copies of its
    own. qlora is quantized while it loads, on the device that trains, since quantized weights
    can't be moved about.

    Raises RefusedError where the weights can't be had or bitsandbytes does not work here.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    whole = plan.method == "full" and plan.launch.deepspeed == "none"
    dtype = precision_dtype("fp32" if whole else plan.precision)
    if plan.vision is not None:
        from runner.engines.sft.inside.model.vision.compose import load_vision_model

        return load_vision_model(plan, dtype)
    place, options = location(plan)
    if plan.method == "qlora":
        options |= _quantized(plan)
    require_plain_model(place, options)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, use_safetensors=True, **options
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise unreachable(plan, error) from None
    if plan.method == "qlora":
        _keep_layout(model)
    return model


def load_whole(plan: SftPlan, folder: Path) -> Any:
    """A whole trained model that lies in `folder`, in the plan's precision, on the CPU.

    Raises RefusedError where it can't be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = AutoModelForCausalLM if plan.vision is None else AutoModelForImageTextToText
    require_plain_model(str(folder), {})
    try:
        return kind.from_pretrained(
            str(folder),
            dtype=precision_dtype(plan.precision),
            use_safetensors=True,
            trust_remote_code=plan.trust_remote_code,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise remote_code_refused(error, str(folder)) or RefusedError(
            f"the model in {folder} can't be loaded: {first_line(error)}",
            "its files are damaged, or were changed after the run",
        ) from None


def training_device(plan: SftPlan) -> str:
    """The device of this process: "cpu", or the GPU of its local rank."""
    if plan.launch.device == "cpu":
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"


def _quantized(plan: SftPlan) -> dict[str, Any]:
    """from_pretrained's options for a quantized base."""
    from transformers import BitsAndBytesConfig

    # of every int8 layer, at every step: "inputs will be cast to float16", as the method does
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    device = training_device(plan)
    require_quantization(plan, device)
    settings = plan.quantization
    if settings.bits == 8:
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=settings.quant_type,
            bnb_4bit_use_double_quant=settings.double_quant,
            bnb_4bit_compute_dtype=precision_dtype(plan.precision),
        )
    options: dict[str, Any] = {"quantization_config": config}
    if plan.launch.deepspeed != "zero3":  # which shards while loading and forbids a device map
        options["device_map"] = {"": device}
    return options


def _keep_layout(model: Any) -> None:
    """Keep bitsandbytes 0.50 from repacking 4-bit weights when a model is first evaluated.

    On CPUs with AVX512-BF16 it turns them, in place and for good, to a layout for inference alone:
    scales rounded to bf16, rows a multiple of 32 or an AssertionError; when training continues,
    no gradient through any such layer, without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def require_quantization(plan: SftPlan, device: str) -> None:
    """Quantize one small matrix and compute with it, as the run will.

    Raises RefusedError with bitsandbytes' own words where that does not work.
    """
    import torch

    settings = plan.quantization
    try:
        import bitsandbytes as bnb

        layer: Any
        if settings.bits == 8:
            layer = bnb.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
        else:
            layer = bnb.nn.Linear4bit(
                64,
                64,
                bias=False,
                compute_dtype=precision_dtype(plan.precision),
                compress_statistics=settings.double_quant,
                quant_type=settings.quant_type,
            )
        torch.nn.init.eye_(layer.weight)
        layer = layer.to(device)
        ones = torch.ones(2, 64, device=device, dtype=precision_dtype(plan.precision))
        with torch.no_grad():
            error = float((layer(ones) - ones).abs().max())
        if not error < 0.1:
            raise RuntimeError(f"its product of two small matrices is off by {error:g}")
    except Exception as error:  # a missing CUDA library shows itself in half a dozen ways
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RefusedError(
            f"method qlora: bitsandbytes does not work on {device} here: {reason[0]}",
            "runner doctor looks at the packages; --method lora trains on unquantized weights, "
            "which takes more memory",
        ) from None
