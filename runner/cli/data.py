"""`runner data JOB`: clean, split and mix a job's rows without training, and report the result.

The work is done in a process of its own (runner.engines.sft.inside.prepare_rows).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.common import terminal
from runner.common.caches import cache_folder
from runner.common.errors import EXIT_INTERRUPTED, RefusedError
from runner.common.output import Output, field, table
from runner.common.own_python import safe_environment
from runner.data.summary import OLD_RULE, cleaning_lines, leaks, name_of
from runner.engines.load import load_job
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
_STEPS = ("empty", "untrained", "duplicates", "conflicts", "leaked")
_ALWAYS = ("empty", "duplicates", "conflicts", "leaked")
_LABELS_SHOWN = 20
CLEAN_UP_SECONDS = 5.0


def data_job(
    name: str, sets: list[str], *, sample: bool = False, out: Path | None = None, as_json: bool
) -> int:
    """0 where the rows are prepared, 2 for a wrong job or rows, 3 for what is lacking here.

    Args:
        sample: take the job's sample rows in place of its own.
        out: a folder that gets each side as JSONL as well; files there are not overwritten.
    """
    output = Output(as_json=as_json)
    loaded = _rows_alone(load_job(name, sets))
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
    if "error" in answer:
        terminal.say("\n".join(answer["error"]))
        if as_json:
            output.result({"ok": False, "job": loaded.name, "exit_code": code, **answer}, [])
        return code
    lines = [field("SUBSTITUTE", text) for text in substitutions]
    for training in answer["trainings"]:
        lines += ["", field("phase", training["phase"])] if training["phase"] else []
        lines += report_lines(training["report"])
        if training["report"].get("left_out", {}).get("rows"):
            number, name = training["report"]["left_out"].values()
            where = Path(training["folder"]) / name
            lines.append(field("left out", f"{number:,} rows, each with its reason, in {where}"))
        lines.append(field("prepared", training["folder"]))
        lines += [field("written", path) for path in training["files"]]
    output.result(
        {
            "ok": True,
            "job": loaded.name,
            "exit_code": 0,
            "substitutions": substitutions,
            "trainings": answer["trainings"],
        },
        lines,
    )
    return 0


def report_lines(report: Any) -> list[str]:
    """What became of the rows: a table of the steps, then splits, mix, labels and lengths."""
    sources = report["sources"]
    steps = [
        step
        for step in _STEPS
        if step in _ALWAYS or any(source[step]["rows"] for source in sources)
    ]
    header = ["ROWS", "FORMAT", "READ", *(step.upper() for step in steps), "TRAIN", "EVAL", "TEST"]
    mixed = report["mix"] is not None
    if mixed:
        header.append("DRAWN")
    rows = [
        [
            name_of(source),
            source["format"],
            f"{source['read']:,}",
            *(f"{source[step]['rows']:,}" for step in steps),
            *(f"{source[side]:,}" for side in ("train", "eval", "test")),
            *([f"{source['drawn']:,}"] if mixed else []),
        ]
        for source in sources
    ]
    lines = table(header, rows)
    lines.append("")
    total = sum(report["sides"].values())
    shares = ", ".join(
        f"{rows:,} {side} ({rows / total:.1%})" for side, rows in report["sides"].items() if rows
    )
    lines.append(field("sides", shares))
    lines += [field("", text) for text in cleaning_lines(report)]
    lines.append(field("leakage", _leakage_words(report["leakage"])))
    strata = (report["split"] or {}).get("strata")
    if strata:
        lines += _distribution(f"by {report['split']['stratify']}", strata)
    elif report["labels"]:
        lines += _distribution("by label", report["labels"])
    for side, buckets in report["characters"].items():
        shown = ", ".join(f"{low}-{high}: {rows:,}" for low, high, rows in buckets)
        lines.append(field("characters", f"{side}: {shown}"))
    return lines


def _leakage_words(leakage: dict[str, Any]) -> str:
    rule = leakage.get("rule", OLD_RULE)
    found = leaks(leakage)
    if not found:
        return f"none: no prompt is on two sides ({rule})"
    said = {"remove": "left out", "keep": "kept, as the job says", "refuse": "refused"}
    shared = ", ".join(
        f"{number:,} {side} rows with a prompt of {other}" for (side, other), number in found
    )
    return f"{shared} ({rule}): {said[leakage['mode']]}"


def _distribution(head: str, values: dict[str, dict[str, int]]) -> list[str]:
    """A value on each line, with its share of each side; the most frequent first."""
    sides = [side for side in ("train", "eval", "test") if any(v[side] for v in values.values())]
    totals = {side: sum(counts[side] for counts in values.values()) for side in sides}
    ordered = sorted(values.items(), key=lambda item: -sum(item[1].values()))
    rows = [
        [value, *(f"{counts[side]:,} ({counts[side] / totals[side]:.1%})" for side in sides)]
        for value, counts in ordered[:_LABELS_SHOWN]
    ]
    lines = ["", *table([head, *sides], rows)]
    if len(ordered) > _LABELS_SHOWN:
        lines.append(f"and {len(ordered) - _LABELS_SHOWN:,} more")
    return [*lines, ""]


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
