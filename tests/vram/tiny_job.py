"""A job on a model folder that has a config and a tokenizer and no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runner.common.yaml_text import to_yaml
from tests.vram.real import LLAMA, write_model, write_tokenizer

MODEL = {
    **LLAMA,
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
}
WORDS = 300


def write_job(folder: Path, *, device: str = "auto", more: str = "", **training: Any) -> Path:
    """job.yaml, rows.jsonl and the model beside it; `more`: further lines of the job."""
    model = write_model(folder / "model", MODEL)
    write_tokenizer(model, 64)
    rows = [
        {
            "messages": [
                {"role": "user", "content": "t1 t2"},
                {"role": "assistant", "content": " ".join(["t3"] * length)},
            ]
        }
        for length in (5, WORDS, 17)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"per_device_train_batch_size": 8, "max_length": 1024, **training}
    settings = "".join(f"  {name}: {to_yaml(value)}\n" for name, value in fields.items())
    path = folder / "job.yaml"
    path.write_text(
        "# what this is\n"
        "model: model  # beside this file\n"
        "lora: {r: 4, target_modules: [q_proj, v_proj]}\n"
        "data:\n  train: rows.jsonl\n  format: messages\n"
        f"training:  # how\n{settings}"
        f"launch: {{device: {device}}}\n"
        f"{more}"
    )
    return path
