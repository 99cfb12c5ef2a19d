"""The jobs' models at their real size with random weights, for machines without the real ones.

    python benchmarks/full_size.py OUT [NAME ...]     makes OUT/NAME, in bf16
    python benchmarks/full_size.py --meta [NAME ...]  makes nothing, and prints the counts

A line for each model: its name, parameters, and the jobs and settings that take it, such as
`runner smoke emission-unified-lora --set model=OUT/qwen2.5-3b`. Memory and speed are then those of
the real weights; losses are not. Tokenizers: the real ones where ../shared (or RUNNER_SHARED) has
them, else byte-level ones trained on the jobs' sample rows. Exit code 1 where a count is not the
published architecture's. Needs `runner[train]`; the largest model is 6 GB on disk.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.common import staged_folder
from runner.engines.sft.inside.model.configs import bundled

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class FullSize:
    """One checkpoint: a model of runner's table (runner/engines/sft/inside/model/configs.json)."""

    identity: str
    """Its id on the hub, by which its figures and its parameters are known."""
    use: str
    """Jobs, and their settings that name this folder."""
    tokenizer: str | None = None
    """Folder under shared/tokenizers."""
    smaller: tuple[tuple[str, int], ...] = ()
    """Figures of the config that are others here: a rehearsal's, on a CPU."""

    @property
    def config(self) -> dict[str, Any]:
        return {**self._entry["config"], **dict(self.smaller)}

    @property
    def parameters(self) -> int:
        """Weights, each once where a head is tied; a count."""
        return int(self._entry["parameters"])

    @property
    def _entry(self) -> dict[str, Any]:
        found = bundled(self.identity)
        assert found is not None, self.identity
        return found


MODELS = {
    "qwen2.5-0.5b": FullSize(
        "Qwen/Qwen2.5-0.5B", "commonsense-two-stage, chnsenticorp-qlora: --set model=", "qwen2_5"
    ),
    "qwen2.5-3b": FullSize(
        "Qwen/Qwen2.5-3B",
        "emission-unified-lora, emission-column-mapping-lora: --set model=",
        "qwen2_5",
    ),
    "minimind2-small": FullSize(
        "jingyaogong/MiniMind2-Small", "minimind-medical-lora: --set model=", "minimind2_small"
    ),
    "smollm2-135m": FullSize("HuggingFaceTB/SmolLM2-135M", "demo-identity: --set model="),
    "gemma-2b": FullSize("google/gemma-2b", "llava-gemma-10k-lora: --set model="),
    "clip-l-336": FullSize(
        "openai/clip-vit-large-patch14-336", "llava-gemma-10k-lora: --set vision.model="
    ),
}
LARGE = {
    "qwen2.5-7b": FullSize("Qwen/Qwen2.5-7B", "vram_battery.py: --set model=", "qwen2_5"),
    "llama-3.1-8b": FullSize("meta-llama/Llama-3.1-8B", "vram_battery.py: --set model="),
    "qwen3-8b": FullSize("Qwen/Qwen3-8B", "vram_battery.py: --set model=", "qwen2_5"),
}
"""Made only where they are named: 15 GB each."""
TINY = FullSize(
    "Qwen/Qwen2.5-7B",
    "rehearsals on a CPU: --set model=",
    smaller=(
        ("hidden_size", 64),
        ("intermediate_size", 128),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("vocab_size", 32_000),
        ("max_window_layers", 2),
    ),
)
"""The same architecture at 2 M parameters: no figure of it says anything of the real one."""


def built(model: FullSize, device: str) -> Any:
    """The model of these figures with random bf16 weights on `device` ("meta" has none)."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, CLIPVisionModel

    options = dict(model.config)
    config = CONFIG_MAPPING[options.pop("model_type")](**options)
    config.dtype = torch.bfloat16
    with torch.device(device):
        if config.model_type == "clip_vision_model":
            return CLIPVisionModel(config).to(torch.bfloat16)
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def count(model: Any) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def shared_folder() -> Path | None:
    """The material that tests share, where it is on this machine."""
    places = [REPOSITORY.parent / "shared", REPOSITORY / "shared"]
    if given := os.environ.get("RUNNER_SHARED"):
        places.insert(0, Path(given))
    return next((place for place in places if (place / "tokenizers").is_dir()), None)


def write(name: str, model: FullSize, out: Path) -> Path:
    """Make OUT/NAME, whole or not at all; one that is there is left alone."""
    import torch
    from transformers import CLIPImageProcessorPil, set_seed

    folder = out / name
    if (folder / "config.json").is_file():
        return folder
    with staged_folder.staged(folder, existing="keep") as staging:
        set_seed(20260101)
        made = built(model, "cuda" if torch.cuda.is_available() else "cpu").cpu()
        if made.config.model_type == "clip_vision_model":
            size = made.config.image_size
            CLIPImageProcessorPil(
                size={"shortest_edge": size}, crop_size={"height": size, "width": size}
            ).save_pretrained(str(staging))
        else:
            tokenizer = _tokenizer(model)
            for token in ("bos", "eos", "pad"):
                key = f"{token}_token_id"
                setattr(made.config, key, getattr(tokenizer, key))
                setattr(made.generation_config, key, getattr(tokenizer, key))
            tokenizer.save_pretrained(str(staging))
        made.save_pretrained(str(staging), max_shard_size="5GB")
    return folder


def _tokenizer(model: FullSize) -> Any:
    from transformers import AutoTokenizer

    from runner.engines.sft.inside.model import standin

    shared = shared_folder()
    if model.tokenizer and shared and (shared / "tokenizers" / model.tokenizer).is_dir():
        return AutoTokenizer.from_pretrained(str(shared / "tokenizers" / model.tokenizer))
    rows = sorted((REPOSITORY / "jobs" / "data").glob("*.jsonl"))
    texts = (text for path in rows for text in standin.texts(path))
    style = standin.chat_style(str(model.config["model_type"]))
    return standin.train_tokenizer(style, texts, size=min(32_000, model.config["vocab_size"]))


def main() -> int:
    """Make or count; 1 where a count is not what it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--meta", action="store_true", help="count only, without weights")
    parser.add_argument(
        "arguments", nargs="*", metavar="OUT NAME", help=", ".join([*MODELS, *LARGE])
    )
    given = parser.parse_args()
    names = given.arguments if given.meta else given.arguments[1:]
    known = {**MODELS, **LARGE, "tiny": TINY}
    unknown = [name for name in names if name not in known]
    if unknown or not (given.meta or given.arguments):
        parser.error(f"no such model: {', '.join(unknown)}" if unknown else "where to? give OUT")
    wrong = 0
    for name in names or MODELS:
        model = known[name]
        found = count(built(model, "meta"))
        where = name if given.meta else str(write(name, model, Path(given.arguments[0])).resolve())
        verdict = (
            ""
            if model.smaller or found == model.parameters
            else f"  WRONG, not {model.parameters:,}"
        )
        wrong += bool(verdict)
        print(f"{name:<16} {found:>13,}  {model.use}{where}{verdict}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
