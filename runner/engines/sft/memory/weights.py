"""What of a model folder's files a CPU run holds: its frozen weights as pages that all processes
share or as copies, and its tokenizer.

Reads headers of safetensors files; imports no torch.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from runner.engines.sft.plan import SftPlan

MOST_HEADER_BYTES = 100 << 20
TOKENIZER_FACTOR = 16
"""Bytes in memory for each of tokenizer.json."""
_NAMES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}


def maps_weights(plan: SftPlan) -> bool:
    """Whether from_pretrained maps the base's files for good, in place of reading them.

    So it is where weights are stored in the number format that they are loaded in. ZeRO-3 and a
    full training replace each by a copy of its own.
    """
    if plan.method == "full" or plan.launch.deepspeed == "zero3":
        return False
    return stored_formats(plan.model.folder) == {_NAMES[plan.precision]}


def shares_weights(plan: SftPlan) -> bool:
    """Whether all processes share the pages of mapped weights.

    DDP and DeepSpeed write what they broadcast at the start over every process's own.
    """
    return plan.launch.num_processes == 1 and plan.launch.deepspeed == "none"


def stored_bytes(folder: str | None) -> int:
    """Size of a model folder's safetensors files; 0 where there are none."""
    paths = Path(folder).glob("*.safetensors") if folder else ()
    try:
        return sum(path.stat().st_size for path in paths)
    except OSError:
        return 0


def tokenizer_bytes(folder: str | None) -> int:
    """What a loaded tokenizer holds, about; 0 where its tokenizer.json is not there.

    Of a process's own memory, with the vocabulary given out once: 123 MiB for Qwen2.5's 7.0 MB,
    43 for SmolLM2's 2.7, 5 for MiniMind2's 0.44 (transformers 5.23, tokenizers 0.23).
    """
    try:
        return TOKENIZER_FACTOR * (Path(folder) / "tokenizer.json").stat().st_size if folder else 0
    except OSError:
        return 0


def stored_formats(folder: str | None) -> set[str]:
    """The number formats of the tensors in a model folder's safetensors files; empty: not known."""
    found: set[str] = set()
    for path in sorted(Path(folder).glob("*.safetensors")) if folder else []:
        try:
            with path.open("rb") as stream:
                (size,) = struct.unpack("<Q", stream.read(8))
                if size > MOST_HEADER_BYTES:
                    return set()
                header = json.loads(stream.read(size))
            found |= {one["dtype"] for name, one in header.items() if name != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return set()
    return found
