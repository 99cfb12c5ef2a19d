"""Real tokenizers and data from the shared folder, and small ones built here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.common.caches import cache_folder
from tests.support.command import SHARED

USERS_CACHE = cache_folder()
"""As it is before a test has one of its own, where the demo model would be made anew."""

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


_LOADED: dict[str, Any] = {}


def _smollm2() -> Path:
    """The built-in demo model, fetched once into the user's cache where it is not there yet."""
    folder = USERS_CACHE / "models" / "smollm2-135m-instruct"
    if not (folder / "config.json").is_file():
        command = [sys.executable, "-m", "runner.engines.sft.inside.builtin_model", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        if done.returncode:
            pytest.skip(f"the demo model can't be fetched: {done.stderr.strip()[-200:]}")
    return folder


def _load(name: str) -> Any:
    """A real tokenizer by short name, with a chat template; skips where it is not here."""
    if name == "smollm2":
        path = _smollm2()
    else:
        path = SHARED / ("models" if name == "stories260k" else "tokenizers") / name
        if not path.is_dir():
            pytest.skip(f"no tokenizer at {path}")
    if name not in _LOADED:
        from transformers import AutoTokenizer

        from runner.data.plain_template import ensure_chat_template

        _LOADED[name] = AutoTokenizer.from_pretrained(str(path))
        ensure_chat_template(_LOADED[name])
    return _LOADED[name]


REAL = ("qwen2_5", "minimind2_small", "stories260k", "smollm2")


@pytest.fixture(params=REAL)
def real_tokenizer(request: pytest.FixtureRequest) -> Any:
    return _load(request.param)


@pytest.fixture(scope="session")
def load_tokenizer() -> Callable[[str], Any]:
    """Loads a real tokenizer by its short name, or skips."""
    return _load


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[..., Any]:
    """Makes a byte-level tokenizer; see _make for what it takes."""
    return _make


def _make(
    template: str | None = CHATML,
    *,
    merges: tuple[tuple[str, str], ...] = (),
    trim_offsets: bool = False,
    rstrip: bool = False,
    eos: str | None = "<|im_end|>",
) -> Any:
    """A byte-level tokenizer, a token for each byte; `merges` add longer ones (Ċ is a newline)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += [a + b for a, b in merges]
    model = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=list(merges))
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if trim_offsets:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.add_special_tokens(
        [AddedToken(t, special=True, rstrip=rstrip) for t in ("<|im_start|>", "<|im_end|>")]
    )
    # padding with the end-of-turn token, as SmolLM2 does
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, pad_token=eos)
    tokenizer.chat_template = template
    return tokenizer
