"""Makes a step on CPU tensors allocate as it would on a CUDA GPU. Imports torch and trl.

Three things differ. Autocast computes other operations in fp32 there (torch 2.13, "CUDA Ops that
can autocast to float32" in the notes on amp); TRL's loss head folds its tiles in Triton kernels,
without the copies of its fallback; and its products are accumulated in fp32 without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as nnf
from torch.overrides import TorchFunctionMode

_IN_FP32: frozenset[Callable[..., Any]] = frozenset(
    [
        *(nnf.layer_norm, nnf.group_norm, nnf.softmax, nnf.log_softmax, nnf.softplus),
        *(nnf.cross_entropy, nnf.nll_loss, nnf.normalize, nnf.cosine_similarity),
        *(torch.layer_norm, torch.softmax, torch.log_softmax, torch.group_norm),
        *(torch.pow, torch.Tensor.pow, torch.rsqrt, torch.exp, torch.log, torch.reciprocal),
        *(torch.cumsum, torch.Tensor.cumsum, torch.sum, torch.Tensor.sum, torch.Tensor.softmax),
        *(torch.norm, torch.Tensor.norm, torch.prod, torch.Tensor.exp, torch.Tensor.rsqrt),
    ]
)
_HALF = (torch.bfloat16, torch.float16)


class CudaAutocast(TorchFunctionMode):
    """CUDA's autocast list of fp32 operations, on top of the CPU's autocast."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in _IN_FP32 and torch.is_autocast_enabled("cpu"):
            args = tuple(
                one.float() if isinstance(one, torch.Tensor) and one.dtype in _HALF else one
                for one in args
            )
        return function(*args, **(kwargs or {}))


class _NoKernel:
    """A Triton kernel: it reads and writes what is there, and allocates nothing."""

    def __getitem__(self, _grid: Any) -> Callable[..., None]:
        return lambda *_, **__: None


@contextmanager
def triton_head() -> Iterator[None]:
    """TRL's fused loss head as it runs on a GPU; else it is a CPU's."""
    import trl.trainer.utils  # first: its copy of `_use_triton` keeps every position in the batch
    from trl.kernels import chunked_logprob as head

    del trl
    kernel = _NoKernel()
    new: dict[str, Any] = {
        "_use_triton": lambda _device: True,
        "_forward_kernel": kernel,
        "_backward_kernel": kernel,
        "_addmm_fp32": lambda *_: None,
    }
    if not hasattr(head, "triton"):  # it rounds the grid's size up, which is nothing's here
        new["triton"] = type("triton", (), {"cdiv": staticmethod(lambda a, b: -(-a // b))})
    before = {name: getattr(head, name) for name in new if hasattr(head, name)}
    for name, value in new.items():
        setattr(head, name, value)
    try:
        yield
    finally:
        for name in new:
            if name in before:
                setattr(head, name, before[name])
            else:
                delattr(head, name)
