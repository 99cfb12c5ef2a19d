"""Clean, split and mix a job's rows without training.

The work is done in a process of its own (runner.engines.sft.inside.prepare_rows). Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.common.caches import cache_folder
from runner.common.errors import EXIT_INTERRUPTED, RefusedError
from runner.common.output import Output, field
from runner.common.own_python import safe_environment
from runner.engines.mounts import plan_mounts
from runner.engines.sft.facts import Facts, gather, require_data
from runner.engines.sft.job import sft_job
from runner.engines.sft.packages import require_packages
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan
from runner.jobs.load import LoadedJob
from runner.launch.fetch import fetch, lacking
from runner.launch.preflight import refuse_unreachable
from runner.plans.container.mounts import PREPARED
from runner.plans.engine_command import question
from runner.plans.plan_file import plan_yaml
from runner.plans.resolve import planned_container

_PACKAGES = ("duckdb", "pyarrow")
CLEAN_UP_SECONDS = 5.0


@dataclass(frozen=True)
class PreparedRows:
    """What became of a job's rows."""

    exit_code: int
    """2 for wrong rows, 3 for what is lacking; 0 where they are prepared."""
    answer: dict[str, Any]
    """Of the process that prepared: `trainings`, each with its `report`; or `error`, its lines."""
    substitutions: list[str]
    """What was taken in place of the job's own rows."""

    @property
    def is_refused(self) -> bool:
        return "error" in self.answer


def prepare_rows(
    job: LoadedJob, output: Output, *, sample: bool = False, out: Path | None = None
) -> PreparedRows:
    """Prepare a job's rows, fetched where they were not here.

    Args:
        sample: take the job's sample rows in place of its own.
        out: a folder that gets each side as JSONL as well; files there are not overwritten.

    Raises:
        SpecError, RefusedError: what is wrong with the job, or lacking here.
        KeyboardInterrupt: it was stopped, and has removed what it had written.
    """
    loaded = _rows_alone(job)
    facts = gather(loaded)
    pictures = ("pillow",) if sft_job(loaded).vision is not None else ()
    require_packages((*_PACKAGES, *pictures), facts.place)
    if sample:
        plan = make_plan(loaded, _without_rows(loaded, facts), "smoke")
    else:
        require_data(loaded, facts)
        if _fetch_rows(loaded, facts, output):
            facts = gather(loaded)
        plan = make_plan(loaded, facts, "train")
    substitutions = [
        text
        for text in plan.substitutions
        if any(text.startswith(f"{Path(rows.path).name} ") for rows in _files(plan) if rows.path)
    ]
    code, answer = _prepare(plan, out)
    return PreparedRows(code, answer, substitutions)


def _prepare(plan: SftPlan, out: Path | None) -> tuple[int, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.yaml"
        path.write_text(plan_yaml(plan), encoding="utf-8")
        command = ["runner.engines.sft.inside.prepare_rows", str(path)]
        made = False
        writes = [Path(folder)]
        if out is not None:
            command += ["--out", str(out.absolute())]
            if plan.container is not None:
                made = _make_out(out)
                writes.append(out.absolute())
        asked = question(
            plan.container,
            command,
            reads=plan_mounts(plan, None, cache_folder()),
            writes=writes,
            caches=[PREPARED],
            environment=True,
        )
        process = subprocess.Popen(  # says on stderr
            asked.argv,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=safe_environment(to_terminal=True),
        )
        try:
            told, _ = process.communicate()
        except KeyboardInterrupt:
            # a terminal's Ctrl-C has reached it too: it removes what it had written
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(CLEAN_UP_SECONDS)
            process.kill()
            asked.abandon()
            raise
        finally:
            if made and out is not None:
                with contextlib.suppress(OSError):  # it holds rows
                    out.rmdir()
    if process.returncode == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    try:
        answer: dict[str, Any] = json.loads(told.splitlines()[-1])
    except (ValueError, IndexError):
        raise RefusedError(
            f"the rows could not be prepared: their process ended with {process.returncode}",
            "the lines above say why, where it could; runner doctor looks at the packages",
        ) from None
    return process.returncode, answer


def _make_out(out: Path) -> bool:
    """Make the folder that a container is to write to, so that it needs no more than that one;
    whether it was not there. Raises RefusedError.
    """
    if out.is_dir():
        return False
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise RefusedError(f"--out {out} can't be made: {error.strerror or error}") from None
    return True


def _rows_alone(loaded: LoadedJob) -> LoadedJob:
    """The job without what only its training needs of a machine."""
    job = sft_job(loaded)
    changes = {"launch": type(job.launch)(on=job.launch.on), "method": "lora"}
    return replace(loaded, job=job.model_copy(update=changes))


def _without_rows(loaded: LoadedJob, facts: Facts) -> Facts:
    """The facts of a machine that has none of the job's own rows, but its samples."""
    samples = {name for name in facts.rows if name.endswith(".sample")}
    lacking_sample = not any(facts.rows[name].present for name in samples)
    if lacking_sample:
        raise RefusedError(
            f"the job {loaded.name} has no sample rows here (data.sample)",
            "leave --sample out, or name a small file of the same layout in data.sample",
        )
    rows = {
        name: source if name in samples else replace(source, present=False)
        for name, source in facts.rows.items()
    }
    return replace(facts, rows=rows)


def _fetch_rows(loaded: LoadedJob, facts: Facts, output: Output) -> bool:
    """Fetch the hub's rows that are not here; whether any came. Raises RefusedError."""
    absent = [one for one in lacking(loaded, facts) if one.what == "rows"]
    if not absent:
        return False
    refuse_unreachable(absent)
    for one in absent:
        output.say(field("fetching", one.label))
    container = planned_container(loaded.job, facts, online=True)
    for record in fetch(absent, quiet=output.as_json, container=container):
        if "error" in record:
            raise RefusedError(str(record["error"]), record["hint"])
    return True


def _files(plan: SftPlan) -> list[Any]:
    return [rows for training in plan.trainings for rows in training.rows.each]
