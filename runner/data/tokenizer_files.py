"""The files that make a tokenizer, looked for in a model folder before it is loaded.

Imports the standard library only. transformers makes an empty tokenizer of a folder that lacks them
(Qwen2Tokenizer, GemmaTokenizer, GPT2Tokenizer), which turns every row into nothing.
"""

from __future__ import annotations

from pathlib import Path

from runner.common.errors import Problem, SpecError

WHOLE = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "tekken.json",
)
"""A vocabulary in one file."""
PATTERNS = ("*.tiktoken", "tokenizer.model.v*", "*.spm", "tokenization_*.py")
"""The same; the last is a tokenizer in a model's own Python file, which knows its files itself."""
PAIR = ("vocab.json", "merges.txt")
"""A vocabulary in two files, of byte-level BPE."""


def require_tokenizer_files(folder: Path) -> None:
    """Raise SpecError, which names them, where a model folder lacks its tokenizer's files."""
    if not folder.is_dir():
        return  # refused where it is loaded
    if any((folder / name).is_file() for name in WHOLE):
        return
    if any(True for pattern in PATTERNS for _ in folder.glob(pattern)):
        return
    there = [name for name in PAIR if (folder / name).is_file()]
    if len(there) == len(PAIR):
        return
    if there:
        (lacking,) = set(PAIR) - set(there)
        problem = f"lacks {lacking}, the other half of its tokenizer beside {there[0]}"
    else:
        lacking = "tokenizer.json"
        config = (
            "" if (folder / "tokenizer_config.json").is_file() else " and tokenizer_config.json"
        )
        problem = f"lacks its tokenizer's files: tokenizer.json{config}"
    raise SpecError(
        [
            Problem(
                str(folder),
                "model",
                problem,
                expected="tokenizer.json, or tokenizer.model, or vocab.json with merges.txt, as "
                "the model was published with them: copy them into the folder",
            )
        ]
    )
