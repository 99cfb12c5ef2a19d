"""Will a run fit? Host memory and disk that the trainings need, against what there is.

Standard library only; Python 3.10. Used by preflight, in a run folder and before a start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

if __package__:
    from .finding import Finding
    from .steps import planned_steps
else:  # in a run folder the scripts lie beside each other
    from finding import Finding  # type: ignore[import-not-found, no-redef]
    from steps import planned_steps  # type: ignore[import-not-found, no-redef]

GIB = 2**30
AUX_WIDTH = 192 + 384 + 768 + 1536  # channels of the large ConvNeXt's four stages


def trained_parameters(config: Mapping[str, Any], vision_width: int, aux_width: int, r: int) -> int:
    """Parameters that the finetuning trains: LoRA on q k v o gate up down, projector, vlm_uni_*.

    With r = 0 what the pretraining trains. Gemma-2B at r 16: 19.6 + 6.3 + 7.0 million.
    """
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    attention = 2 * (hidden + queries) + 2 * (hidden + keys)
    lora = config["num_hidden_layers"] * r * (attention + 3 * (hidden + inner))
    projector = vision_width * hidden + hidden + hidden * hidden + hidden
    query = 2 * vision_width + vision_width * vision_width + vision_width
    other = 2 * aux_width + aux_width * vision_width + vision_width
    return int(lora + projector + query + 2 * other)


def host_bytes_needed(base_bytes: int, tower_bytes: int, trained: int, processes: int) -> int:
    """Host memory of a training with ZeRO-2 and the optimizer in host memory.

    DeepSpeed's estimate_zero2_model_states_mem_needs (stage_1_and_2.py): parameters x max(4 x GPUs,
    16) x 1.5 for all ranks, of the trained ones here; and each rank reads the weights once into a
    state dict and once into the model (transformers' from_pretrained), the towers likewise.
    """
    optimizer = int(trained * max(4 * processes, 16) * 1.5)
    return optimizer + processes * 2 * (base_bytes + tower_bytes)


def logits_bytes(batch: int, tokens: int, vocabulary: int) -> int:
    """Gemma's logits in bf16: 1 x 1024 x 256,000 x 2 = 500 MiB, what trap 10's run died of."""
    return batch * tokens * vocabulary * 2


def disk_bytes_needed(
    base_bytes: int, tower_bytes: int, rows_bytes: int, trained: int, pretrain_saves: int, kept: int
) -> int:
    """What a run writes: the merged model; mm_projector.bin, at the end and at each save of the
    pretraining (upstream puts both towers into it and never deletes one); finetuning checkpoints
    (16 bytes a trained parameter, one more while the oldest goes); the converted rows twice."""
    projectors = (pretrain_saves + 1) * (tower_bytes + 4 * trained)
    checkpoints = (kept + 1) * 16 * trained
    return base_bytes + projectors + checkpoints + 2 * rows_bytes


def weights_bytes(folder: Path) -> int:
    """Bytes of a folder's weights; of one format, where it has the same in two."""
    sizes = {
        suffix: sum(each.stat().st_size for each in folder.glob(f"*{suffix}"))
        for suffix in (".safetensors", ".bin")
    }
    return sizes[".safetensors"] or sizes[".bin"]


def available_bytes(
    meminfo: str, cgroup_limit: str | None, cgroup_used: str | None, cgroup_stat: str | None
) -> int | None:
    """Host memory to be had: MemAvailable, or less where the container's limit is nearer.

    Files that were read count as used in a cgroup until someone needs the room; those long not
    touched (inactive_file) are taken off.
    """
    free: int | None = None
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    if cgroup_limit and cgroup_limit.strip().isdigit():
        used = int((cgroup_used or "0").strip() or 0)
        for line in (cgroup_stat or "").splitlines():
            if line.startswith(("inactive_file ", "total_inactive_file ")):
                used -= int(line.split()[1])
                break
        left = int(cgroup_limit) - max(0, used)
        free = left if free is None else min(free, left)
    return free


def room_findings(
    plan: Mapping[str, Any],
    run: Path,
    rows: Mapping[str, int],
    say: Callable[[str], None],
    host_budget: int | None = None,
) -> list[Finding]:
    """Disk under the run folder, host memory for the weights and the offloaded optimizer.

    `rows` are each training's; `host_budget` are the bytes that the guard lets the run take.
    """
    base = Path(plan["model_name_or_path"])
    config = json.loads((base / "config.json").read_text("utf-8"))
    vision = json.loads(Path(plan["vision_tower"], "config.json").read_text("utf-8"))
    width = vision.get("vision_config", vision)["hidden_size"]
    trained = trained_parameters(config, width, AUX_WIDTH, plan["lora"]["r"])
    base_bytes = weights_bytes(base)
    towers = sum(weights_bytes(Path(plan[name])) for name in ("vision_tower", "vision_tower_aux"))
    text = sum(Path(plan[stage]["data_path"]).stat().st_size for stage in ("pretrain", "finetune"))
    findings = []

    steps = planned_steps(plan, "pretrain", rows["pretrain"])
    saves = steps // plan["save_steps"]
    kept = plan["save_total_limit"]
    disk = disk_bytes_needed(base_bytes, towers, text, trained, saves, kept)
    free = shutil.disk_usage(run).free
    say(f"disk: {disk / GIB:.1f} GiB needed, {free / GIB:.1f} free")
    if free < disk:
        findings.append(Finding("disk", f"{free / GIB:.1f} GiB free", f"{disk / GIB:.1f} GiB"))

    memory = host_bytes_needed(base_bytes, towers, trained, max(1, len(plan["gpus"])))
    available = available_bytes(
        Path("/proc/meminfo").read_text("utf-8"),
        _text("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        _text("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        _text("/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/memory/memory.stat"),
    )
    say(
        f"host memory: {memory / GIB:.1f} GiB needed ({trained / 1e6:.1f} M parameters trained), "
        + ("available unknown" if available is None else f"{available / GIB:.1f} available")
    )
    if available is not None and available < memory:
        findings.append(
            Finding("host memory", f"{available / GIB:.1f} GiB", f"{memory / GIB:.1f} GiB")
        )
    if host_budget is not None and host_budget < memory:
        findings.append(
            Finding(
                "budget.host_memory",
                f"{host_budget / GIB:.2f} GiB",
                f"{memory / GIB:.2f} GiB or more, which weights, towers and optimizer take alone,",
            )
        )
    training = plan["finetune"]
    logits = logits_bytes(
        training["per_device_train_batch_size"], training["model_max_length"], config["vocab_size"]
    )
    say(f"logits of a full batch: {logits / 2**20:.0f} MiB in bf16 on the GPU, several times that")
    return findings


def _text(*paths: str) -> str | None:
    for path in paths:
        try:
            return Path(path).read_text("utf-8")
        except OSError:
            continue
    return None
