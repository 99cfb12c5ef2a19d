"""torch's settings and builds that decide a result's bits, as the trainer has them.

Imports torch when called. The supervisor, which has none, takes them into the run's manifest.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC", "NCCL_ALGO", "NCCL_PROTO")
Plain = str | int | float | bool | None


def stack_record() -> dict[str, Any]:
    """engine/stack.json: `switches` that a job or a library turned, `stack` as it was built."""
    import torch

    backends = torch.backends
    switches: dict[str, Plain] = {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "deterministic_warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "num_threads": torch.get_num_threads(),
        "cudnn.deterministic": backends.cudnn.deterministic,
        "cudnn.benchmark": backends.cudnn.benchmark,
    }
    if torch.are_deterministic_algorithms_enabled():
        switches["deterministic_fill"] = torch.utils.deterministic.fill_uninitialized_memory
    stack: dict[str, Plain] = {
        "torch": str(torch.__version__),
        "torch_git": torch.version.git_version,
        "cuda": torch.version.cuda,
        "cpu_capability": backends.cpu.get_cpu_capability(),
    }
    if torch.cuda.is_available():
        switches["cuda.matmul.allow_tf32"] = backends.cuda.matmul.allow_tf32
        switches["cudnn.allow_tf32"] = backends.cudnn.allow_tf32
        for name in ("flash", "mem_efficient", "math", "cudnn"):
            asked = getattr(backends.cuda, f"{name}_sdp_enabled", None)
            if asked is not None:
                switches[f"sdp.{name}"] = bool(asked())
        for name in _VARIABLES:  # as launch.sh left them, which the supervisor does not see
            if name in os.environ:
                switches[name] = os.environ[name]
        stack["cudnn"] = backends.cudnn.version()
        with contextlib.suppress(Exception):  # a build without NCCL has no version of it
            stack["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())
    return {"schema_version": 1, "switches": switches, "stack": stack}
