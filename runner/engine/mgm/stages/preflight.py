"""Before anything is trained: is all there that the run needs, and will it fit?

    python preflight.py --plan RUN/mgm/plan.json --run RUN

Prints a line for each check; ends with 1 and a message naming field, value and what is expected
where one fails. Imports the standard library; PIL inside `open_problems`, and nothing is imported
from the toolkit: its packages are looked for by name only.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __package__:
    from .records import fail
else:  # in a run folder the scripts lie beside each other
    from records import fail  # type: ignore[import-not-found, no-redef]

PRETRAIN_GLOBAL_BATCH = 256
FINETUNE_GLOBAL_BATCH = 128
GIB = 2**30

# What upstream's code tells classes by: it looks for these words in the lower-cased paths, but for
# "convnext" and what follows, which it looks for as they are (openclip_encoder.py).
_WORDS_IN_PATH = {
    "model_name_or_path": ("gemma",),
    "vision_tower": ("openai",),
    "vision_tower_aux": ("openclip", "convnext", "large", "d-320"),
}
# Words that select another class before the one that is meant is looked for (train.py).
_OTHER_CLASS = {"model_name_or_path": ("mistral", "mixtral")}
_NEEDED_FILES = {
    "toolkit": ("mgm/train/train.py", "mgm/model/builder.py"),
    "model_name_or_path": ("config.json", "tokenizer_config.json"),
    "vision_tower": ("config.json", "preprocessor_config.json"),
    "vision_tower_aux": ("open_clip_config.json", "open_clip_pytorch_model.bin"),
}
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_PACKAGES = ("torch", "transformers", "peft", "deepspeed", "open_clip", "timm", "PIL", "cv2")


class Finding(NamedTuple):
    """One thing that is not as it has to be."""

    field: str
    value: object
    expected: str

    def __str__(self) -> str:
        return f"{self.field}: {self.value} where {self.expected} is expected"


# names and files --------------------------------------------------------------------------------


def name_findings(field: str, path: str) -> list[Finding]:
    """What `path` must and must not have in it for upstream to take the right class (trap 8)."""
    missing = [
        word
        for word in _WORDS_IN_PATH[field]
        if word not in (path.lower() if word in ("gemma", "openai", "openclip") else path)
    ]
    findings = [
        Finding(field, path, f'a path with "{word}" in it, which selects the class')
        for word in missing
    ]
    if field == "model_name_or_path" and "gemma" not in path and "gemma" in path.lower():
        # the tokenizer's branch does not lower the case
        findings.append(Finding(field, path, 'a path with "gemma" in small letters'))
    return findings + [
        Finding(field, path, f'a path without "{word}", another class')
        for word in _OTHER_CLASS.get(field, ())
        if word in path.lower()
    ]


def run_name_findings(name: str) -> list[Finding]:
    """A merged model's folder selects its class in the evaluation (trap 8)."""
    lowered = name.lower()
    if "mgm" in lowered and "2b" in lowered and "8x7b" not in lowered:
        return []
    return [Finding("experiment_name", name, 'a name with "mgm" and "2b", without "8x7b"')]


def absolute_findings(plan: Mapping[str, Any]) -> list[Finding]:
    """Every path is absolute, so it does not matter where the script is started (trap 4)."""
    named = {field: plan[field] for field in _NEEDED_FILES}
    for stage in ("pretrain", "finetune"):
        for field in ("data_path", "image_folder"):
            named[f"{stage}.{field}"] = plan[stage][field]
    return [
        Finding(field, path, "an absolute path")
        for field, path in named.items()
        if not Path(path).is_absolute()
    ]


def file_findings(plan: Mapping[str, Any]) -> list[Finding]:
    """Files and folders that are not there, an empty one counted as absent."""
    findings = []
    for field, names in _NEEDED_FILES.items():
        for name in names:
            path = Path(plan[field], name)
            if not path.is_file() or not path.stat().st_size:
                findings.append(Finding(field, plan[field], f"a folder with {name}"))
    tower = Path(plan["vision_tower"])
    if not any((tower / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")):
        findings.append(Finding("vision_tower", tower, "a folder with the weights of the tower"))
    for stage in ("pretrain", "finetune"):
        rows, images = Path(plan[stage]["data_path"]), Path(plan[stage]["image_folder"])
        if not rows.is_file() or not rows.stat().st_size:
            findings.append(Finding(f"{stage}.data_path", rows, "a file with rows"))
        if not images.is_dir():
            findings.append(Finding(f"{stage}.image_folder", images, "a folder"))
    questions = plan["questions"]
    if questions is not None and not Path(questions).is_file():
        findings.append(Finding("pretrain.questions", questions, "a file (or no such setting)"))
    return findings


def index_findings(folder: Path) -> list[Finding]:
    """Upstream opens the base's index without asking whether there is one (trap 8)."""
    index = next((folder / name for name in _INDEXES if (folder / name).is_file()), None)
    if index is None:
        return [
            Finding(
                "model_name_or_path", folder, f"weights in shards with an index ({_INDEXES[0]})"
            )
        ]
    try:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return [Finding("model_name_or_path", index, f"an index that can be read ({error!r})")]
    return [
        Finding("model_name_or_path", folder, f"the shard {name} that its index names")
        for name in sorted(shards)
        if not (folder / name).is_file()
    ]


def package_findings(found: Callable[[str], bool], flash: bool, quantized: bool) -> list[Finding]:
    """Python packages that the toolkit imports."""
    wanted = [*_PACKAGES, *(["flash_attn"] * flash), *(["bitsandbytes"] * quantized)]
    return [
        Finding("python", f"no package {name}", "the environment of the toolkit")
        for name in wanted
        if not found(name)
    ]


# arithmetic -------------------------------------------------------------------------------------


def batch_findings(plan: Mapping[str, Any]) -> list[Finding]:
    """batch x accumulation x processes = 256 and 128 (trap 3); a smoke's is not asked for."""
    if plan["variant"] == "smoke":
        return []
    processes = max(1, len(plan["gpus"]))
    findings = []
    for stage, expected in (
        ("pretrain", PRETRAIN_GLOBAL_BATCH),
        ("finetune", FINETUNE_GLOBAL_BATCH),
    ):
        training = plan[stage]
        batch, accumulation = (
            training["per_device_train_batch_size"],
            training["gradient_accumulation_steps"],
        )
        total = batch * accumulation * processes
        if total != expected:
            findings.append(
                Finding(
                    f"{stage}.gradient_accumulation_steps",
                    f"{batch} x {accumulation} x {processes} processes = {total}",
                    str(expected),
                )
            )
    return findings


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


def training_steps(samples: int, global_batch: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a training: 10,000 samples of 256 are 39."""
    return max_steps or max(1, math.floor(samples / global_batch * epochs))


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


# images -----------------------------------------------------------------------------------------


def image_candidates(folder: str, image: str) -> list[str]:
    """Where upstream would read an image from (train.py's OCR and Visual Genome rules)."""
    if "ocr" in image:
        return [str(Path(folder, name)) for name in (image, image.replace(".jpg", ".png"))]
    if "VG_100K" in image:
        image = image.replace("VG_100K_2", "images").replace("VG_100K", "images")
    return [str(Path(folder, image))]


def row_images(row: Mapping[str, Any]) -> list[str]:
    """The images that a LLaVA or data-juicer row names."""
    named = row.get("image", row.get("images")) or []
    return [named] if isinstance(named, str) else [str(each) for each in named]


def read_rows(path: Path) -> Iterator[Any]:
    """Rows of a JSONL file, or of a JSON array (in memory whole, as upstream reads it)."""
    with path.open(encoding="utf-8") as stream:
        if path.suffix == ".json":
            yield from json.load(stream)
        else:
            yield from (json.loads(line) for line in stream if line.strip())


def find_images(
    rows: Iterable[Mapping[str, Any]], folder: str, there: Callable[[str], bool]
) -> tuple[list[str], list[str]]:
    """Paths of the images found and those that are absent, each once."""
    found: dict[str, None] = {}
    absent: dict[str, None] = {}
    for row in rows:
        for image in row_images(row):
            path = next((each for each in image_candidates(folder, image) if there(each)), None)
            if path is None:
                absent[image] = None
            else:
                found[path] = None
    return list(found), list(absent)


def spread(items: Sequence[str], count: int | str) -> Sequence[str]:
    """`count` of the items at even distances, or "all"."""
    if count == "all" or int(count) >= len(items):
        return items
    return [items[number * len(items) // int(count)] for number in range(int(count))]


def open_problems(paths: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Images that can't be decoded, with the reason; says how many are done, each thousand."""
    from PIL import Image

    problems = []
    for number, path in enumerate(paths, 1):
        try:
            with Image.open(path) as image:
                image.convert("RGB")
        except Exception as error:  # PIL raises many kinds; each is a row that upstream would swap
            problems.append(f"{path}: {error}")
        if number % 1000 == 0:
            say(f"images opened: {number} of {len(paths)}")
    return problems


def image_findings(plan: Mapping[str, Any], say: Callable[[str], None]) -> list[Finding]:
    """Every image is looked for, as many as asked are opened (trap 13)."""
    findings = []
    for stage in ("pretrain", "finetune"):
        rows, folder = Path(plan[stage]["data_path"]), plan[stage]["image_folder"]
        try:
            found, absent = find_images(read_rows(rows), folder, os.path.isfile)
        except (OSError, ValueError, AttributeError) as error:
            findings.append(Finding(f"{stage}.data_path", rows, f"rows that can be read ({error})"))
            continue
        chosen = spread(found, plan["open_images"])
        broken = open_problems(chosen, say)
        say(
            f"images of {stage}: {len(found)} there, {len(absent)} absent; {len(chosen)} opened "
            f"({'all' if len(chosen) == len(found) else 'a sample'}), {len(broken)} broken"
        )
        if absent:
            findings.append(
                Finding(
                    f"{stage}.image_folder",
                    folder,
                    f"all images of the rows ({len(absent)} absent, such as {absent[0]})",
                )
            )
        if broken:
            findings.append(
                Finding(
                    f"{stage}.image_folder",
                    folder,
                    f"images that open ({len(broken)} do not, such as {broken[0]})",
                )
            )
    return findings


# the machine ------------------------------------------------------------------------------------


def room_findings(plan: Mapping[str, Any], run: Path, say: Callable[[str], None]) -> list[Finding]:
    """Disk under the run folder, host memory for the weights and the offloaded optimizer."""
    base = Path(plan["model_name_or_path"])
    config = json.loads((base / "config.json").read_text("utf-8"))
    vision = json.loads(Path(plan["vision_tower"], "config.json").read_text("utf-8"))
    width = vision.get("vision_config", vision)["hidden_size"]
    trained = trained_parameters(config, width, 192 + 384 + 768 + 1536, plan["lora"]["r"])
    base_bytes = weights_bytes(base)
    towers = sum(weights_bytes(Path(plan[name])) for name in ("vision_tower", "vision_tower_aux"))
    rows = sum(Path(plan[stage]["data_path"]).stat().st_size for stage in ("pretrain", "finetune"))
    findings = []

    samples = min(count_rows(Path(plan["pretrain"]["data_path"])), plan["max_samples"])
    steps = training_steps(
        samples,
        plan["pretrain"]["global_batch_size"],
        plan["num_train_epochs"],
        plan["max_steps"],
    )
    saves = steps // plan["save_steps"]
    kept = plan["save_total_limit"]
    disk = disk_bytes_needed(base_bytes, towers, rows, trained, saves, kept)
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
    training = plan["finetune"]
    logits = logits_bytes(
        training["per_device_train_batch_size"], training["model_max_length"], config["vocab_size"]
    )
    say(f"logits of a full batch: {logits / 2**20:.0f} MiB in bf16 on the GPU, several times that")
    return findings


def count_rows(path: Path) -> int:
    """Lines of a JSONL file that are not blank."""
    with path.open("rb") as stream:
        return sum(bool(line.strip()) for line in stream)


def _text(*paths: str) -> str | None:
    for path in paths:
        try:
            return Path(path).read_text("utf-8")
        except OSError:
            continue
    return None


def check(plan: Mapping[str, Any], run: Path, say: Callable[[str], None]) -> list[Finding]:
    """All findings; what needs files is asked only where the files are there."""
    findings = absolute_findings(plan) + batch_findings(plan)
    for field in _WORDS_IN_PATH:
        findings += name_findings(field, plan[field])
    findings += run_name_findings(f"MGM-2B-Finetune-{plan['experiment_name']}-merged")
    absent = file_findings(plan)
    findings += absent + index_findings(Path(plan["model_name_or_path"]))
    lacking = package_findings(
        lambda name: importlib.util.find_spec(name) is not None,
        plan["attn_implementation"] == "flash_attention_2",
        plan["bits"] != 16,
    )
    findings += lacking
    if not absent:
        findings += room_findings(plan, run, say)
    if not absent and not lacking:
        findings += image_findings(plan, say)
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    given = parser.parse_args()
    plan = json.loads(given.plan.read_text("utf-8"))
    for stage in ("pretrain", "finetune"):
        training = plan[stage]
        print(
            f"preflight: {stage}: batch {training['per_device_train_batch_size']} x accumulation "
            f"{training['gradient_accumulation_steps']} x {max(1, len(plan['gpus']))} processes = "
            f"{training['global_batch_size']}"
            + (" (a smoke: not the baseline's)" if plan["variant"] == "smoke" else "")
        )
    findings = check(plan, given.run, lambda text: print(f"preflight: {text}", flush=True))
    for finding in findings:
        print(f"preflight: {finding}", file=sys.stderr)
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        fail("refused", f"preflight: {findings[0]}{more}", given.run)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
