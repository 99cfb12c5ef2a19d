"""What a training's processes hold on the host before any tensor of its model: measured once.

`python -m runner.engines.sft.inside.memory.footprint PACKAGE ...` is the process that is measured:
it imports what a trainer imports, the packages that its plan does not use left out, trains a model
of no size, and prints how much of it is its own and how much it maps; what a launcher holds it asks
another. It is asked once for each set of package versions, and its answer kept in the cache. Only
these processes import torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from runner.common import terminal
from runner.common.own_python import module_argv, safe_environment
from runner.common.tensors_only import load_tensors_only
from runner.engines.sft.inside.imports import without_collection
from runner.engines.sft.memory.ask import ASSUME_VARIABLE, keep_record, kept_record
from runner.engines.sft.unused_packages import SPARED, leave_out

VERSION = 4
TRAINER = (
    "runner.engines.registry",
    "runner.engines.sft.inside.__main__",
    "runner.engines.sft.inside.model.limits",
    "runner.engines.sft.inside.rows",
    "runner.engines.sft.inside.train.result",
    "runner.engines.sft.inside.train.signals",
    "runner.engines.sft.inside.train.train",
    "runner.engines.sft.inside.train.trainer",
)
"""What a trainer imports of runner's own, all jobs' and plans' types among it: the stack by it."""
LAUNCHER = "--launcher"
MIB = 1 << 20
LIMIT_SECONDS = 300
"""On a busy machine imports take most of a minute."""


@dataclass(frozen=True)
class Footprint:
    """Bytes. Pages of files (libraries) are there once, however many processes map them."""

    launcher_bytes: int
    """Of its own, of the process that starts the others."""
    trainer_bytes: int
    """Of its own, of each training process."""
    mapped_bytes: int
    """Pages of libraries that any of them touches."""
    measured: bool = True

    def of(self, ranks: int) -> int:
        """Of a run of so many training processes, as their proportional shares add up."""
        return self.launcher_bytes + ranks * self.trainer_bytes + self.mapped_bytes


ASSUMED = Footprint(160 * MIB, 338 * MIB, 153 * MIB, measured=False)
"""Where it can't be measured: what this module found with torch 2.13 for CPUs, transformers 5.23,
trl 1.16 and nothing beside them on Linux x86-64."""


def footprint(packages: tuple[str, ...], versions: Mapping[str, str | None]) -> Footprint:
    """What processes hold that use `packages` besides the training stack: kept, or measured now.

    Args:
        packages: of runner.engines.sft.unused_packages those that the plan uses.
        versions: of the stack, by name.
    """
    if os.environ.get(ASSUME_VARIABLE) == "assumed":
        return ASSUMED
    name = _name(packages, versions)
    found = _read(kept_record(name))
    if found is not None:
        return found
    made = _measured(packages)
    if made is not None:
        keep_record(name, asdict(made))
    return made or ASSUMED


def _name(packages: tuple[str, ...], versions: Mapping[str, str | None]) -> str:
    parts = [VERSION, packages, dict(sorted(versions.items())), sys.version, sys.prefix]
    parts.append(os.environ.get("GLIBC_TUNABLES"))
    text = json.dumps(parts, default=str)
    return f"footprint-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _read(record: object) -> Footprint | None:
    if not isinstance(record, dict):
        return None
    try:
        found = Footprint(**record)
    except TypeError:
        return None
    sizes = (found.launcher_bytes, found.trainer_bytes, found.mapped_bytes)
    return found if all(isinstance(one, int) and one > 0 for one in sizes) else None


def _measured(packages: tuple[str, ...]) -> Footprint | None:
    terminal.say("runner: measuring what the training libraries hold on this machine, once")
    environment = {**safe_environment(), "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    try:
        done = subprocess.run(
            module_argv("runner.engines.sft.inside.memory.footprint", *packages),
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            env={**environment, "HF_HUB_OFFLINE": "1", "DS_BUILD_OPS": "0"},
        )
        return _read(json.loads(done.stdout.splitlines()[-1]))
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None


def own_memory() -> tuple[int, int] | None:
    """This process's own bytes, and those of the file pages it has touched; None where not told."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = {
        line.split(":")[0]: int(line.split()[1]) * 1024
        for line in text.splitlines()
        if line.startswith(("RssAnon:", "RssFile:"))
    }
    if len(found) < 2:
        return None
    return found["RssAnon"], found["RssFile"]


def _train_nothing() -> None:
    """One step of a model of a few hundred weights: what computing itself loads."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    shape = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    model = get_peft_model(LlamaForCausalLM(shape), lora)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    ids = torch.zeros(2, 16, dtype=torch.long)
    model(input_ids=ids, labels=ids).loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()


def _read_nothing() -> None:
    """One row as rows are read: what Arrow, Parquet and tokenizers load to do so."""
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset
    from tokenizers import Tokenizer, models

    rows = pyarrow.table({"input_ids": [[0] * 16], "messages": ["{}"]})
    with tempfile.TemporaryDirectory() as folder:
        parquet, arrow = Path(folder) / "rows.parquet", Path(folder) / "rows.arrow"
        pyarrow.parquet.write_table(rows, parquet)
        pyarrow.parquet.read_table(parquet).to_pylist()
        with arrow.open("wb") as sink, pyarrow.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        Dataset.from_file(str(arrow))[0]
    Tokenizer(models.BPE({"a": 0}, [])).encode("a")


def _hold(modules: Iterable[str]) -> tuple[int, int] | None:
    """This process's own memory once it has imported `modules`, those that are installed."""
    for module in modules:
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
    return own_memory()


def _launcher(packages: list[str]) -> list[int] | None:
    """The same of a launcher, in a process of its own: it leaves nothing out."""
    done = subprocess.run(
        module_argv("runner.engines.sft.inside.memory.footprint", LAUNCHER, *packages),
        stdout=subprocess.PIPE,
        text=True,
        env=safe_environment(),
    )
    found: list[int] | None = json.loads(done.stdout.splitlines()[-1])
    return found


def main(packages: list[str]) -> int:
    """0; prints the footprint as JSON."""
    load_tensors_only()
    if packages[:1] == [LAUNCHER]:
        launches = [name for name in packages if name == "deepspeed"]
        terminal.put_json(_hold(["accelerate.commands.launch", "torch.distributed.run", *launches]))
        return 0
    launcher = _launcher(packages)
    leave_out(set(SPARED) - set(packages))  # as a training does
    with without_collection():
        _hold([*TRAINER, *packages])
    _read_nothing()
    _train_nothing()
    trainer = own_memory()
    if launcher is None or trainer is None:
        return 1
    found = Footprint(launcher[0], trainer[0], max(launcher[1], trainer[1]))
    terminal.put_json(asdict(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
