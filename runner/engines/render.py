"""Plan -> the files of a run, whatever trains: plan.yaml, and what its engine renders; and back.

Pure, but for reading plan.yaml. Imports pyyaml and the engines' registry.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from runner.common import durable
from runner.common.errors import RunnerError, UsageError
from runner.common.yaml_text import RecordLoader
from runner.engines.registry import ENGINES, engine_of
from runner.engines.sft.plan import SftPlan
from runner.plans.base import SCHEMA_VERSION as PLAN_VERSION
from runner.plans.base import Plan
from runner.plans.plan_file import plan_yaml
from runner.plans.render import budget_line

SCHEMA_VERSION = 1
MAX_PLAN_BYTES = 4 << 20
"""A plan has some ten KiB; its job file has at most one MiB."""


def render(plan: Plan) -> dict[str, str]:
    """Name -> text of every file that is rendered for `plan`."""
    return {"plan.yaml": plan_yaml(plan), **engine_of(plan).render(plan)}


def summary(plan: Plan) -> list[tuple[str, str]]:
    """Label and text of what a plan is, in the lines that a start and a report print."""
    lines = [*engine_of(plan).summarize(plan), ("memory", budget_line(plan))]
    if plan.container is not None:
        box = plan.container
        lines.append(("container", f"{box.image} {box.image_id[:19]}, network {box.network}"))
    return lines


def read_plan(path: Path) -> SftPlan:
    """The native engine's plan that `plan_yaml` wrote.

    Raises:
        UsageError: it is a plan of another engine, of which rows and weights are not known.
        RunnerError: as read_any_plan.
    """
    plan = read_any_plan(path)
    native: SftPlan | None = engine_of(plan).surveyed(plan)
    if native is None:
        raise UsageError(
            f"{path.parent.name} is a run of another engine than sft: runner knows neither its "
            "model nor its rows",
            "runner report says what it left",
        )
    return native


def read_any_plan(path: Path) -> Plan:
    """The plan that `plan_yaml` wrote, of whatever engine.

    Raises RunnerError where the file is missing, damaged or edited (its hash no longer fits).
    """
    try:
        content = durable.read_record(path, MAX_PLAN_BYTES)
    except OSError as error:
        raise RunnerError(f"{path} can't be read: {error.strerror}") from None
    return parse_plan(content, path)


def parse_plan(content: bytes, path: Path) -> Plan:
    """The plan in these bytes, which were read from `path`. Raises RunnerError as read_any_plan."""
    try:
        text = content.decode()
        record = yaml.load(text, Loader=RecordLoader)  # noqa: S506 - a SafeLoader, and stricter
        if not isinstance(record, dict):
            raise RunnerError(f"{path} is damaged: there is no plan in it")
        other = durable.newer(record, PLAN_VERSION)
        if other is not None:
            raise RunnerError(f"{path} was {other}", "the runner that started it reads it")
        stated = str(record.pop("plan_hash"))
        plan: Plan = ENGINES[record["engine"]].plan_type.model_validate(record)
        fits = plan.hash == stated
    except UnicodeDecodeError:
        raise RunnerError(f"{path} is damaged: it is no text") from None
    except yaml.MarkedYAMLError as error:
        at = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RunnerError(f"{path} is not a plan of this runner: {error.problem}{at}") from None
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RunnerError(f"{path} is not a plan of this runner: {reason}") from None
    if not fits:
        raise RunnerError(
            f"{path} was edited: it says plan {stated[:7]}, its contents are {plan.short_hash}",
            "change the job and render it anew, so that the hash names what runs",
        )
    return plan
