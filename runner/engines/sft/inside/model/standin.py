"""A stand-in for weights that are not on this machine: same architecture, tiny, random.

`python -m runner.engines.sft.inside.model.standin MODEL_TYPE OUTDIR ROWS` makes a transformers
folder: the architecture's own config class shrunk, weights drawn from a fixed seed, and a
byte-level tokenizer trained on ROWS (any file of rows that a job may name). MODEL_TYPE
llava-TEXT_TYPE adds a tiny CLIP tower and a projector. It proves that a job runs from end to end,
and nothing about quality. Imports torch and transformers when called.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from runner.common import staged_folder, terminal
from runner.common.errors import RefusedError, RunnerError
from runner.common.tensors_only import load_tensors_only
from runner.data.read import AS_THEY_ARE, ReadOptions, read_rows
from runner.data.sources import table_options
from runner.jobs.data import TableSettings

LLAVA = "llava-"
_SEED = 20260101
_VOCABULARY = 1024
_ROWS_READ = 5000  # more would not change a vocabulary of 1,024 much, and rows may be millions
_LONGEST = 2048  # tokens
# matrices of multiples of 64 elements, which is what a block of 4-bit weights holds
_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": _LONGEST,
    "tie_word_embeddings": True,
}
_TINY_TOWER: dict[str, Any] = {  # 16 patches an image
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}


@dataclass(frozen=True)
class ChatStyle:
    """How a family of models writes a conversation: its special tokens and its chat template."""

    special: tuple[str, ...]
    eos: str
    pad: str
    bos: str | None
    template: str


CHATML = ChatStyle(
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    eos="<|im_end|>",
    pad="<|endoftext|>",
    bos=None,
    template=(
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
        "+ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
)
# Like Gemma's own: no system role, and a turn ends with a token that is not eos.
GEMMA = ChatStyle(
    special=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    eos="<eos>",
    pad="<pad>",
    bos="<bos>",
    template=(
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else "
        "message['role']) + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    ),
)


def make(model_type: str, out: Path, rows: Path, reading: ReadOptions = AS_THEY_ARE) -> None:
    """Write the stand-in to `out`, whole or not at all; one that is there is left alone.

    Args:
        model_type: transformers' name of the architecture, or llava- and that of its text model.
        out: the folder to make.
        rows: a file of rows, whose texts the tokenizer is trained on.
        reading: how the job says that it is written.

    Raises:
        RefusedError: an architecture that transformers does not know.
        SpecError: rows that can't be read.
    """
    if (out / "config.json").is_file():
        return
    from transformers import CONFIG_MAPPING, set_seed

    text_type = model_type.removeprefix(LLAVA)
    if text_type not in CONFIG_MAPPING:
        raise RefusedError(f"transformers knows no architecture {text_type!r} (smoke.model_type)")
    tokenizer = train_tokenizer(chat_style(text_type), texts(rows, reading))
    parts: list[Any] = [tokenizer]
    set_seed(_SEED)
    if model_type.startswith(LLAVA):
        parts += _tiny_llava(text_type, tokenizer)
    else:
        parts.append(_tiny_text(text_type, tokenizer))
    with staged_folder.staged(out, existing="keep") as staging:
        for part in parts:
            part.save_pretrained(str(staging))
    if not (out / "config.json").is_file():
        raise FileExistsError(errno.EEXIST, "it is there, and no model", str(out))


def chat_style(model_type: str) -> ChatStyle:
    """How models of this architecture write a conversation, as far as a smoke should notice."""
    return GEMMA if model_type.startswith("gemma") else CHATML


def train_tokenizer(style: ChatStyle, lines: Iterator[str], size: int = _VOCABULARY) -> Any:
    """A byte-level BPE of at most `size` tokens trained on `lines`, with the style's template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(style.special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=style.bos,
        eos_token=style.eos,
        pad_token=style.pad,
        model_max_length=_LONGEST,
        chat_template=style.template,
    )


def texts(rows: Path, reading: ReadOptions = AS_THEY_ARE) -> Iterator[str]:
    """Every text in the first rows of a file, as it is meant: no quotes, no escapes.

    Raises SpecError where the rows can't be read.
    """
    for _, row in islice(read_rows(rows, "data.train", reading), _ROWS_READ):
        yield from _strings(row)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        # half of a surrogate pair, as an unused key can hold, is no text for a tokenizer
        yield value.encode("utf-8", "replace").decode("utf-8")
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)


def _tiny_config(model_type: str, tokenizer: Any) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type](
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **_TINY,
    )


def _tiny_text(model_type: str, tokenizer: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    config = _tiny_config(model_type, tokenizer)
    try:
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    except ValueError as error:
        raise RefusedError(f"{model_type} is not a text model: {str(error)[:120]}") from None


def _tiny_llava(text_type: str, tokenizer: Any) -> list[Any]:
    """Model and image processor; the tokenizer gets its image token."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    from runner.engines.sft.inside.model.tokenizer import add_image_token
    from runner.engines.sft.inside.model.vision.config import image_tokens

    token = add_image_token(tokenizer)
    text = _tiny_config(text_type, tokenizer)
    config = LlavaConfig(
        text_config=text,
        vision_config=CLIPVisionConfig(**_TINY_TOWER),
        image_token_index=token,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    )
    config.image_seq_length = image_tokens(config)
    size = int(_TINY_TOWER["image_size"])
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    return [LlavaForConditionalGeneration(config), processor]


def main() -> int:
    """Command line; exit code 0 or that of the refusal, whose reason is the last line."""
    load_tensors_only()
    model_type, out, rows, *more = sys.argv[1:5]
    table = TableSettings.model_validate_json(more[0]) if more else TableSettings()
    try:
        make(model_type, Path(out), Path(rows), ReadOptions(table_options(table)))
    except RunnerError as error:
        terminal.say(f"error: {error.message}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    terminal.guard_streams()
    sys.exit(main())
