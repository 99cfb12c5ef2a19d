"""Part 1 of first_contact.py: does what a training stands on load and run on this machine?

Each question is asked for itself, so that one failure hides no other answer. Imports the stack when
called.
"""

from __future__ import annotations

import importlib
import platform
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

PACKAGES = (
    *("torch", "triton", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes"),
    *("liger_kernel", "duckdb", "pydantic", "pynvml", "tokenizers", "safetensors"),
)


def load_and_run(call: Any) -> None:
    """Every question in its turn; the answers are emitted as they come."""
    questions: tuple[tuple[str, Callable[[Any], tuple[str, dict[str, Any]]]], ...] = (
        ("packages", find_packages),
        ("device", find_device),
        ("bf16 GEMM", multiply),
        ("attention", attend),
        ("bitsandbytes 4 bit", quantize),
        ("bitsandbytes 8-bit AdamW", step_8bit),
        ("triton", compile_kernel),
    )
    for what, ask in questions:
        began = time.monotonic()
        try:
            said, figures = ask(call)
            ok = figures.pop("ok", True)
        except Exception as error:
            said, figures, ok = f"{type(error).__name__}: {str(error)[:300]}", {}, False
        call.emit(what, said, ok=ok, seconds=round(time.monotonic() - began, 2), **figures)


def find_packages(call: Any) -> tuple[str, dict[str, Any]]:
    """Versions, and which can't be imported."""
    versions, failures = {"python": platform.python_version()}, {}
    for name in PACKAGES:
        try:
            module = importlib.import_module(name)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        versions[name] = str(getattr(module, "__version__", None) or _installed(name))
    said = " ".join(f"{name} {version}" for name, version in versions.items())
    wanted = {name for name in failures if not (call.rehearse and name == "triton")}
    said += "".join(f"; {name}: {why}" for name, why in failures.items())
    return said, {"versions": versions, "failures": failures, "ok": not wanted}


def _installed(name: str) -> str:
    try:
        return metadata.version({"pynvml": "nvidia-ml-py"}.get(name, name))
    except metadata.PackageNotFoundError:
        return "of no version"


def find_device(call: Any) -> tuple[str, dict[str, Any]]:
    import torch

    if call.device == "cpu":
        return f"CPU, {torch.get_num_threads()} threads, built for CUDA {torch.version.cuda}", {}
    free, total = torch.cuda.mem_get_info()
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    said = f"{name}, {capability}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    said += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    figures = {"name": name, "free_bytes": free, "total_bytes": total}
    return said, {**figures, "architectures": torch.cuda.get_arch_list()}


def multiply(call: Any) -> tuple[str, dict[str, Any]]:
    """The rate of a bf16 matrix product on random data: the ceiling of any step's MFU."""
    import torch

    size, repeats = (256, 3) if call.rehearse else (8192, 20)
    left, right = (
        torch.randn(size, size, device=call.device, dtype=torch.bfloat16) for _ in range(2)
    )
    seconds = _timed(call.device, lambda: left @ right, repeats)
    rate = 2 * size**3 / seconds / 1e12
    return f"{size}^3: {rate:.1f} TFLOP/s", {"tflops": rate}


def attend(call: Any) -> tuple[str, dict[str, Any]]:
    """Forward and backward of causal attention at 7B's shape, by each backend, in milliseconds.

    "chosen" is what torch takes when all may be; "new shape" the first call of another length,
    which for cuDNN is the time to build a plan.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    tokens, repeats = (64, 2) if call.rehearse else (4096, 10)

    def once(length: int) -> None:
        query = _heads(28, length, call.device)
        key, value = _heads(4, length, call.device), _heads(4, length, call.device)
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )
        out.sum().backward()

    found: dict[str, Any] = {}
    backends = {"chosen": None, "flash": SDPBackend.FLASH_ATTENTION}
    backends |= {"cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}
    for name, backend in backends.items():
        try:
            if backend is None:
                found[name] = _attention_times(call.device, once, tokens, repeats)
                found["chosen kernels"] = _kernel_names(call.device, lambda: once(tokens))
            else:
                with sdpa_kernel(backend):
                    found[name] = _attention_times(call.device, once, tokens, repeats)
        except RuntimeError as error:
            found[name] = str(error).splitlines()[0][:120]
    said = f"{found['chosen']}; kernels {found.get('chosen kernels')}"
    return said, {"milliseconds": found, "ok": isinstance(found["chosen"], dict)}


def _heads(number: int, length: int, device: str) -> Any:
    import torch

    shape = (2, number, length, 128)
    return torch.randn(*shape, device=device, dtype=torch.bfloat16, requires_grad=True)


def _attention_times(
    device: str, once: Callable[[int], None], tokens: int, repeats: int
) -> dict[str, float]:
    steady = _timed(device, lambda: once(tokens), repeats)
    fresh = _timed(device, lambda: once(tokens - 24), 1, warm_up=0)
    return {"ms": round(1000 * steady, 2), "new shape ms": round(1000 * fresh, 2)}


def _kernel_names(device: str, work: Callable[[], None]) -> list[str]:
    from step_speed import attention_kernels
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as seen:
        work()
        _synchronise(device)
    figure = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    found = [(each.key, getattr(each, figure) / 1000) for each in seen.key_averages()]
    return [name for name, _ms in attention_kernels(sorted(found, key=lambda pair: -pair[1]))]


def quantize(call: Any) -> tuple[str, dict[str, Any]]:
    """A 4-bit linear layer's output against the same weights in bf16."""
    import bitsandbytes
    import torch

    size = 128 if call.rehearse else 4096
    weight = torch.randn(size, size, device=call.device, dtype=torch.bfloat16)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4")
    back = bitsandbytes.functional.dequantize_4bit(packed, state)
    off = float((back - weight).abs().mean() / weight.abs().mean())
    return f"nf4: mean error {off:.1%} of the weights", {"ok": off < 0.15, "error": off}


def step_8bit(call: Any) -> tuple[str, dict[str, Any]]:
    import bitsandbytes
    import torch

    if call.rehearse:
        return "not rehearsed: it has no CPU kernel to speak of", {"ok": None}
    weight = torch.nn.Parameter(torch.randn(4096, 4096, device=call.device))
    before = weight.detach().clone()
    optimizer = bitsandbytes.optim.AdamW8bit([weight], lr=1e-3)
    weight.square().sum().backward()
    optimizer.step()
    moved = float((weight.detach() - before).abs().mean())
    return f"moved weights by {moved:.2e}", {"ok": 0 < moved < 1}


def compile_kernel(call: Any) -> tuple[str, dict[str, Any]]:
    """Liger's RMSNorm against torch's: Triton compiles, and its compiler is there."""
    import torch

    if call.rehearse:
        return "not rehearsed: Triton's kernels need a GPU", {"ok": None}
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    given = torch.randn(64, 3584, device=call.device, dtype=torch.bfloat16)
    weight = torch.ones(3584, device=call.device, dtype=torch.bfloat16)
    began = time.monotonic()
    found = LigerRMSNormFunction.apply(given, weight, 1e-6)
    _synchronise(call.device)
    wanted = torch.nn.functional.rms_norm(given.float(), (3584,), weight.float(), 1e-6)
    off = float((found.float() - wanted).abs().max())
    said = f"Liger's RMSNorm compiled and ran in {time.monotonic() - began:.1f} s, off by {off:.3f}"
    return said, {"ok": off < 0.1}


def _synchronise(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _timed(device: str, work: Callable[[], Any], repeats: int, warm_up: int = 2) -> float:
    """Seconds of one call, the mean of `repeats`."""
    for _ in range(warm_up):
        work()
    _synchronise(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    _synchronise(device)
    return (time.perf_counter() - began) / repeats
