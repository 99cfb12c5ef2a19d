"""Tiny random weights in the shape that the MGM toolkit expects, to try a run of it on a CPU.

    PYTHONPATH=TOOLKIT python benchmarks/mgm_tiny.py OUT ROWS.json

Run by the toolkit's environment (transformers 4.38, open_clip). A Gemma of 2 layers, its tokenizer
trained on the rows, a CLIP of 2 layers at 28 pixels; the ConvNeXt is the large one with random
weights, since the toolkit takes its architecture from the folder's name (about 400 MB in fp16).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
VOCABULARY = 1024
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


def main() -> None:
    out, rows = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text("utf-8"))
    torch.manual_seed(0)
    gemma(out / "gemma-2b-it-tiny", rows)
    clip(out / "openai" / "clip-tiny")
    convnext(out / "openclip-convnext-large-d-320-random")


def gemma(folder: Path, rows: list[dict[str, Any]]) -> None:
    """A Gemma of 2 layers, in shards with an index, and its tokenizer."""
    from transformers import GemmaConfig, GemmaForCausalLM

    save_tokenizer(folder, [turn["value"] for row in rows for turn in row["conversations"]])
    config = GemmaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    model = GemmaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="200KB", safe_serialization=True)


def save_tokenizer(folder: Path, texts: list[str]) -> None:
    """A byte-level BPE with Gemma's special tokens, <bos> put before a text as Gemma's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    # few rows give few tokens; the rest are spares, as Gemma's <unused...> are
    spare = VOCABULARY - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<unused{number}>" for number in range(spare)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    ).save_pretrained(folder)


def clip(folder: Path) -> None:
    """A CLIP image tower of 2 layers: 28 pixels in 2 x 2 patches."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_mean=MEAN,
        image_std=STD,
    ).save_pretrained(folder)


def convnext(folder: Path) -> None:
    """The large ConvNeXt of open_clip with random weights, its projection head left out."""
    from open_clip.factory import get_model_config
    from open_clip.model import _build_vision_tower

    folder.mkdir(parents=True)
    known = get_model_config("convnext_large_d_320")
    tower = _build_vision_tower(known["embed_dim"], known["vision_cfg"])
    state = {f"visual.{name}": tensor.half() for name, tensor in tower.state_dict().items()}
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    record = {"model_cfg": known, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
