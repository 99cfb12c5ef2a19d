"""A stand-in for weights that are not on this machine: same architecture, tiny, random.

`python -m runner.engine.standin MODEL_TYPE OUTDIR TEXT_FILE` makes a transformers folder: the
architecture's own config class shrunk, weights drawn from a fixed seed, and a byte-level tokenizer
trained on TEXT_FILE. It proves that a job runs from end to end, and nothing about quality.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from runner.errors import RefusedError, RunnerError

_SEED = 20260101
_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make(model_type: str, out: Path, text: Path) -> None:
    """Write the stand-in to `out`, whole or not at all; one that is there is left alone.

    Raises RefusedError for an architecture that transformers does not know.
    """
    if (out / "config.json").is_file():
        return
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed

    if model_type not in CONFIG_MAPPING:
        raise RefusedError(f"transformers knows no architecture {model_type!r} (smoke.model_type)")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        text.read_text(encoding="utf-8", errors="replace").splitlines(),
        trainers.BpeTrainer(
            vocab_size=1024,
            special_tokens=_SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=2048,
        chat_template=_CHATML,
    )
    set_seed(_SEED)
    config = CONFIG_MAPPING[model_type](
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **_TINY,
    )
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise RefusedError(f"{model_type} is not a text model: {str(error)[:120]}") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        model.save_pretrained(str(staging))
        tokenizer.save_pretrained(str(staging))
        publish(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish(staging: Path, out: Path) -> None:
    """Flush a finished model folder and rename it into place; the first of two at once wins."""
    for path in staging.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    staging.chmod(0o755)
    try:
        staging.rename(out)
    except OSError:
        if not (out / "config.json").is_file():
            raise


def main() -> int:
    """Command line; exit code 0 or that of the refusal."""
    model_type, out, text = sys.argv[1:4]
    try:
        make(model_type, Path(out), Path(text))
    except RunnerError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
