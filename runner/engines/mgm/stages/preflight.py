"""Before anything is trained: is all there that the run needs, and will it fit?

    python preflight.py --plan RUN/mgm/plan.json --run RUN [--host-budget BYTES] [--json]

Prints a line for each check; ends with 1 and a message naming field, value and what is expected
where one fails. With --json nothing is recorded in RUN, and one JSON document is printed, for
`runner check`. Imports the standard library and its neighbours; nothing is imported from the
toolkit: its packages are looked for by name only.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

if __package__:
    from .finding import Finding
    from .pictures import image_findings
    from .records import clear_failure, fail, tell_stage
    from .room import room_findings
    from .rows import Rows, look_at_rows
    from .steps import planned_steps, warmup_findings
else:  # in a run folder the scripts lie beside each other
    from finding import Finding  # type: ignore[import-not-found, no-redef]
    from pictures import image_findings  # type: ignore[import-not-found, no-redef]
    from records import (  # type: ignore[import-not-found, no-redef]
        clear_failure,
        fail,
        tell_stage,
    )
    from room import room_findings  # type: ignore[import-not-found, no-redef]
    from rows import Rows, look_at_rows  # type: ignore[import-not-found, no-redef]
    from steps import planned_steps, warmup_findings  # type: ignore[import-not-found, no-redef]

PRETRAIN_GLOBAL_BATCH = 256
FINETUNE_GLOBAL_BATCH = 128

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
STAGES = ("pretrain", "finetune")


class Report(NamedTuple):
    """What preflight found."""

    findings: list[Finding]
    lines: list[str]
    """What was looked at, in words."""
    warnings: list[str]
    """What is trained otherwise than one may think."""
    steps: dict[str, int]
    """Optimizer steps of each training; empty where its rows can't be read."""


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
    lacking = [name for name in wanted if not found(name)]
    if not lacking:
        return []
    value = f"{sys.executable}, which has no {', '.join(lacking)},"
    return [Finding("python", value, "the environment of the toolkit")]


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


# all of it --------------------------------------------------------------------------------------


def check(
    plan: Mapping[str, Any],
    run: Path,
    say: Callable[[str], None] = lambda text: None,
    *,
    host_budget: int | None = None,
    has_package: Callable[[str], bool] | None = None,
    images: bool = True,
    toolkit: bool = True,
) -> Report:
    """All findings; what needs files is asked only where the files are there.

    Args:
        run: the run's folder, or one on its disk.
        say: is told what was looked at as it is.
        host_budget: bytes of host memory that the run may take.
        has_package: whether the toolkit's Python has a package; without it none is looked for.
        images: whether they are opened and looked for.
        toolkit: whether the toolkit lies on this machine, and not in the run's image.
    """
    lines: list[str] = []
    warnings: list[str] = []

    def note(text: str) -> None:
        lines.append(text)
        say(text)

    def warn(text: str) -> None:
        warnings.append(text)
        say(f"WARNING: {text}")

    findings = absolute_findings(plan) + batch_findings(plan)
    for field in _WORDS_IN_PATH:
        findings += name_findings(field, plan[field])
    findings += run_name_findings(f"MGM-2B-Finetune-{plan['experiment_name']}-merged")
    absent = [each for each in file_findings(plan) if toolkit or each.field != "toolkit"]
    findings += absent + index_findings(Path(plan["model_name_or_path"]))
    lacking = []
    if has_package is not None:
        lacking = package_findings(
            has_package,
            plan["attn_implementation"] == "flash_attention_2",
            plan["bits"] != 16,
        )
    findings += lacking
    if absent:
        return Report(findings, lines, warnings, {})
    rows = {stage: _rows(plan, stage, note, warn) for stage in STAGES}
    findings += [finding for looked in rows.values() for finding in looked.findings]
    counts = {stage: looked.total for stage, looked in rows.items()}
    findings += room_findings(plan, run, counts, note, host_budget)
    steps = {}
    if all(counts.values()):
        steps = {stage: planned_steps(plan, stage, counts[stage]) for stage in STAGES}
        findings += warmup_findings(plan, counts)
        note("steps: " + ", ".join(f"{count} of {stage}" for stage, count in steps.items()))
    if images and (has_package is None or has_package("PIL")):
        for stage, looked in rows.items():
            findings += image_findings(stage, looked.images, plan, note, warn)
    return Report(findings, lines, warnings, steps)


def _rows(
    plan: Mapping[str, Any],
    stage: str,
    note: Callable[[str], None],
    warn: Callable[[str], None],
) -> Rows:
    """A training's rows, what was seen of them said."""
    columns = plan.get("columns", {}) if stage == "pretrain" else {}
    looked = look_at_rows(stage, Path(plan[stage]["data_path"]), columns)
    note(f"rows of {stage}: {looked.total:,}, {len(looked.images):,} images")
    if looked.unused:
        warn(f"{stage}: keys of rows that nothing reads: {', '.join(looked.unused[:20])}")
    if looked.unseen:
        warn(f"{stage}: {looked.unseen} rows have an image and no <image>: the model never sees it")
    return looked


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--host-budget", type=int)
    parser.add_argument("--no-images", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    plan = json.loads(given.plan.read_text("utf-8"))

    def say(text: str) -> None:
        print(f"preflight: {text}", file=sys.stderr if given.json else sys.stdout, flush=True)

    if not given.json:
        clear_failure(given.run)
        tell_stage(given.run, stage="preflight")
    for stage in STAGES:
        training = plan[stage]
        say(
            f"{stage}: batch {training['per_device_train_batch_size']} x accumulation "
            f"{training['gradient_accumulation_steps']} x {max(1, len(plan['gpus']))} processes = "
            f"{training['global_batch_size']}"
            + (" (a smoke: not the baseline's)" if plan["variant"] == "smoke" else "")
        )
    report = check(
        plan,
        given.run,
        say,
        host_budget=given.host_budget,
        has_package=lambda name: importlib.util.find_spec(name) is not None,
        images=not given.no_images,
    )
    if given.json:
        print(json.dumps(report._asdict(), default=str))
        return 0
    tell_stage(given.run, trainings=report.steps, warnings=report.warnings)
    for finding in report.findings:
        print(f"preflight: {finding}", file=sys.stderr)
    if report.findings:
        more = f" (and {len(report.findings) - 1} more)" if len(report.findings) > 1 else ""
        fail("refused", f"preflight: {report.findings[0]}{more}", given.run)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
