"""Merge a run's adapter into its base, in a process of its own. Imports no torch."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.common.errors import RefusedError, UsageError
from runner.common.output import Output
from runner.common.own_python import safe_environment
from runner.containers.staged import staged_beside
from runner.engines.sft.inside.model.trained import require_result
from runner.engines.sft.mergeable import nothing_to_merge
from runner.engines.sft.plan import SftPlan
from runner.launch.left_out import say_left_out
from runner.launch.preflight import require_run_stack
from runner.launch.recorded_plan import mount_of, plan_file, plan_to_ask, result_mounts
from runner.plans.engine_command import question
from runner.runs.find import default_root, find_run
from runner.runs.folder import RunFolder

_DTYPES = ("bf16", "fp16", "fp32")


@dataclass(frozen=True)
class Merged:
    """What a merge left."""

    exit_code: int
    """Of the merging process; its refusal has been printed by it."""
    record: dict[str, Any]
    """The folder and what was compared; empty where it was refused."""


def merge(
    run: str,
    output: Output,
    *,
    out: Path | None = None,
    dtype: str | None = None,
    trust_code: bool = False,
    runs: Path | None = None,
) -> Merged:
    """Write base and adapter of a run as one model, in a process of its own.

    Args:
        out: the folder to make; None is merged/ in the run's folder.
        dtype: bf16, fp16 or fp32; None is the base's own.
        trust_code: the Python files of a foreign run's model may run.

    Raises:
        RefusedError: a run with nothing to merge, or a folder that is there already.
        UsageError: another number format.
    """
    if dtype not in (None, *_DTYPES):
        raise UsageError(f"--dtype {dtype}: no such number format", f"one of {', '.join(_DTYPES)}")
    folder = find_run(run, runs or default_root())
    plan = plan_to_ask(folder, output, trust_code=trust_code)
    require_mergeable(plan, folder)
    require_result(plan, folder)
    target = (out or folder.merged).absolute()
    if target.exists() or target.is_symlink():
        raise RefusedError(
            f"{target} is there already; nothing is overwritten",
            "name another folder with --out DIR, or remove it",
        )
    require_run_stack(plan)
    apart = plan.container is not None
    with plan_file(plan) as given, staged_beside(target, apart=apart) as place:
        asked = question(
            plan.container,
            [
                "runner.engines.sft.inside.merge",
                str(folder.path),
                str(given),
                str(place),
                dtype or "own",
            ],
            reads=[*result_mounts(plan, folder), mount_of(given)],
            writes=[place.parent],
        )
        say_left_out()
        done = subprocess.run(
            asked.argv,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=safe_environment(to_terminal=True),
        )
    if done.returncode:
        return Merged(done.returncode, {})
    return Merged(0, {"folder": str(target), **json.loads(done.stdout.splitlines()[-1])})


def require_mergeable(plan: SftPlan, folder: RunFolder) -> None:
    """Refuse the methods that leave nothing to merge, and say what there is instead."""
    found = nothing_to_merge(plan)
    if found is None:
        return
    found = found.replace("trains", "trained", 1)
    if plan.method == "full" and plan.trains != ["projector"]:
        found = f"{found}, in {folder.model}"
    ways_out = {"prefix": f"serve it as it is: PEFT loads {folder.adapter} on the base model"}
    hint = ways_out.get(plan.method) if plan.trains != ["projector"] else None
    raise RefusedError(f"run {folder.name} {found}", hint)
