"""Counts the bytes of every storage that lives while operations run: the peak and what it is of.

Imports torch. Works on fake tensors, whose storages have a size and no content, and on real ones.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from runner.vram.allocator import Event, rounded


class Tracker(TorchDispatchMode):
    """What is alive, in bytes rounded as the allocator rounds, by what it was made for.

    `part` names what storages are made for from now on; `phase` is where the step stands. A storage
    counts once, however many tensors show it, and until the last of them is gone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part, self.phase = "other", "before"
        self.live: Counter[str] = Counter()
        self.peak_bytes = 0
        self.peak_parts: dict[str, int] = {}
        self.peak_phase = ""
        self.events: list[Event] = []
        self.weights = 0
        """Of the events, how many are of weights."""
        self.step = 0
        """The first event of the step itself."""
        self.flops = 0.0
        self.parts_by_width: dict[int, str] = {}
        """Size of a tensor's last dimension -> the part that it is of, whoever makes it."""
        self._total = 0
        self._names = 0
        self._known: dict[int, list[Any]] = {}  # storage -> its weak reference, part, size, name

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor):
                self.see(one)
        self.flops += _operations(function, args, kwargs, out)
        return out

    def see(self, tensor: torch.Tensor, part: str | None = None) -> None:
        """Count the storage of `tensor`, where it is not counted yet; `part` renames it."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._known.get(key)
        if known is not None:
            if part is not None and part != known[1]:
                self.live[known[1]] -= known[2]
                self.live[part] += known[2]
                known[1] = part
            return
        size = rounded(storage.nbytes())
        if not size:
            return
        if part is None and tensor.ndim > 1:
            part = self.parts_by_width.get(tensor.shape[-1])
        self._names += 1
        self._known[key] = [
            weakref.ref(storage, lambda _: self._gone(key)),
            part or self.part,
            size,
            self._names,
        ]
        self.live[part or self.part] += size
        self._total += size
        self.events.append((self._names, size))
        if self._total > self.peak_bytes:
            self.peak_bytes, self.peak_phase = self._total, self.phase
            self.peak_parts = dict(self.live)

    def see_all(self, tensors: Iterable[torch.Tensor], part: str) -> None:
        """Count what was there before."""
        for tensor in tensors:
            self.see(tensor, part)

    @contextmanager
    def making(self, part: str) -> Iterator[None]:
        """What is made inside is for `part`."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def forget_peak(self) -> None:
        """Reset the peak; what is alive still counts."""
        self.peak_bytes, self.peak_phase = self._total, self.phase
        self.peak_parts = dict(self.live)
        self.step = len(self.events)

    def _gone(self, key: int) -> None:
        _, part, size, name = self._known.pop(key)
        self.live[part] -= size
        self._total -= size
        self.events.append((name, 0))


def _operations(function: Any, args: Any, kwargs: Any, out: Any) -> float:
    """Floating-point operations of one call: of products and attention; all else counts as none."""
    packet = function.overloadpacket
    known = flop_registry.get(packet)
    if known is not None:
        return float(known(*args, **(kwargs or {}), out_val=out))
    name = packet.__name__
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        return _attention(args[0], args[1])
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        return 2.5 * _attention(args[1], args[2])  # five products in place of two
    return 0.0


def _attention(queries: torch.Tensor, keys: torch.Tensor) -> float:
    """Two products of [tokens x size] matrices for each head of each row."""
    rows, heads, tokens, size = (int(one) for one in queries.shape)
    return 4.0 * rows * heads * tokens * int(keys.shape[2]) * size
