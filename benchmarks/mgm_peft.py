"""Compare our merge of a trial with PEFT's own merge_and_unload, tensor by tensor.

    python benchmarks/mgm_peft.py BASE FINETUNE_OUTPUT MERGED

Run by the toolkit's environment (peft 0.4). Ends with 1 where a tensor differs in a single bit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def main() -> int:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import GemmaForCausalLM

    base, adapter, merged = (Path(argument) for argument in sys.argv[1:4])
    ours: dict[str, Any] = {}
    for shard in merged.glob("*.safetensors"):
        ours |= load_file(str(shard))
    model = GemmaForCausalLM.from_pretrained(base, torch_dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    theirs = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    theirs.pop("lm_head.weight")  # the embeddings once more
    changed = [name for name, tensor in theirs.items() if not torch.equal(tensor, before[name])]
    differing = [
        name for name, tensor in theirs.items() if not torch.equal(tensor.bfloat16(), ours[name])
    ]
    print(f"peft: {len(theirs)} tensors, {len(changed)} changed by LoRA, {len(differing)} differ")
    return 1 if differing or not changed else 0


if __name__ == "__main__":
    sys.exit(main())
