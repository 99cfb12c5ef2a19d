"""Whether a CPU run's frozen weights stay pages of their files, which all its processes share.

Reads headers of safetensors files; imports no torch.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from runner.plan import Plan

MOST_HEADER_BYTES = 100 << 20
_NAMES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}


def weights_stay_mapped(plan: Plan) -> bool:
    """Whether transformers' from_pretrained maps the base and nothing ever writes to it.

    So it is where weights are stored in the number format that they are loaded in, and are neither
    trained, quantized, sharded, nor given out by the first process (DDP and DeepSpeed write what
    they broadcast over every process's own).
    """
    launch = plan.launch
    if plan.method in ("full", "qlora") or launch.num_processes > 1 or launch.deepspeed != "none":
        return False
    return stored_formats(plan.model.folder) == {_NAMES[plan.precision]}


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
