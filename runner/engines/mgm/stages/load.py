"""Load a merged model through the toolkit's own builder and compare what it loaded with the files.

    python load.py --model FOLDER

Runs on the CPU. Upstream fills in at random, with a warning at most, what it does not find; so each
tensor of the files is compared with the loaded model's. Imports the standard library; torch,
safetensors and the toolkit inside functions.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

if __package__:
    from .ending import refuse
else:  # in a run folder the scripts lie beside each other
    from ending import refuse  # type: ignore[import-not-found, no-redef]


def differing(loaded: torch.nn.Module, folder: Path) -> tuple[int, list[str]]:
    """How many tensors the files have, and which the loaded model has not got as they are."""
    from safetensors import safe_open

    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    state = loaded.state_dict()
    wrong = []
    for shard in sorted(set(index["weight_map"].values())):
        with safe_open(str(folder / shard), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                there = state.get(name)
                stored = file.get_tensor(name)
                same = there is not None and there.shape == stored.shape
                if not same or not bool((there == stored.to(there.dtype)).all()):
                    wrong.append(name)
    return len(index["weight_map"]), wrong


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True)
    given = parser.parse_args()

    here = Path(__file__).resolve().parent
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != here]
    from mgm.mm_utils import get_model_name_from_path  # type: ignore[import-not-found]
    from mgm.model.builder import load_pretrained_model  # type: ignore[import-not-found]

    name = get_model_name_from_path(str(given.model))
    tokenizer, model, _, _ = load_pretrained_model(str(given.model), None, name, device="cpu")
    count, wrong = differing(model, given.model)
    if type(model).__name__ != "MGMGemmaForCausalLM" or wrong:
        return refuse(
            f"load: {type(model).__name__}: {len(wrong)} of {count} tensors are not as merged"
            + (f", such as {wrong[0]}" if wrong else "")
        )
    print(f"load: {type(model).__name__}, {count} tensors as merged, {len(tokenizer)} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
