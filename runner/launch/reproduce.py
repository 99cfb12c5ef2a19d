"""Reproduce a run from its manifest, in a new folder, and compare both. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.common.caches import cache_folder
from runner.common.errors import RefusedError, UsageError, nearest
from runner.common.output import Output, field
from runner.engines.inputs import parts
from runner.engines.recorded_plan import require_code_allowed, take_plan
from runner.engines.registry import engine_of
from runner.engines.render import render
from runner.engines.sft.plan import SftPlan
from runner.launch.container_risks import require_safe
from runner.launch.gpus import preflight, with_free_cards
from runner.launch.preflight import make_stand_in, place_line, require_place, require_run_stack
from runner.launch.train import start_and_follow
from runner.plans.base import Plan
from runner.plans.inputs import is_here
from runner.provenance.bundle.gather_records import JOB_FILE
from runner.provenance.bundle.local_plan import placed_inputs
from runner.provenance.compared import Compared, compare, manifest_folder
from runner.provenance.environment import secret_values, without_secrets
from runner.provenance.hashes import Hasher
from runner.provenance.manifest import Manifest, read_manifest, sha256_of
from runner.provenance.replay import On, origin_of_manifest, placed, plan_of, wrong_inputs
from runner.provenance.results import logged_steps
from runner.provenance.software import interpreter
from runner.runs.create import create_run
from runner.runs.find import default_root
from runner.runs.folder import RunFolder
from runner.runs.origin import Origin
from runner.runs.record_types import OutcomeRecord
from runner.runs.records import read_outcome
from runner.runs.supervisor_process import signal_supervisor

POLL_SECONDS = 0.2
_SHOWN = 5


@dataclass(frozen=True)
class Reproduction:
    """A run that was reproduced, and what came of it."""

    folder: RunFolder
    exit_code: int
    """Of the new run."""
    end: OutcomeRecord
    """How the new run ended, as its termination.json says."""
    compared: Compared | None
    """Both runs; None where the new one ended otherwise than the first."""


def reproduce(
    run: str,
    out: Output,
    *,
    steps: int | None = None,
    on: str | None = None,
    at: Sequence[str] = (),
    trust_code: bool = False,
    runs: Path | None = None,
    unsafe: bool = False,
) -> Reproduction:
    """Run a run again from its manifest, in a new folder, and compare both.

    Args:
        steps: end it after so many steps and compare these.
        on: local or docker; None is where the run ran.
        at: PART=PATH, where an input lies now.
        trust_code: what came with a foreign run may run: script, toolkit, a model's Python files.
        unsafe: its container may be one that is not closed.

    Raises:
        RefusedError: an input is missing or changed, the run has no results, the image is not here.
        UsageError: `on` is neither; `at` names no part of the plan, or another file than was read.
    """
    root = runs or default_root()
    original = manifest_folder(run, root)
    manifest = read_manifest(original.manifest)
    if manifest.results is None:
        never = manifest.never_began
        why = "it has not ended, or was lost" if never is None else never.message
        raise RefusedError(
            f"{manifest.run} has no results to compare with: {why}",
            f"runner report {manifest.run}",
        )
    asked = plan_of(manifest)
    origin = origin_of_manifest(original, asked)
    given = given_places(at, asked)
    require_toolkits_python(asked, origin, given)
    here = placed_inputs(original, asked, given)
    taken = take_plan(
        here,
        origin,
        program=None,
        python=given.get("python", sys.executable),
        code=trust_code,
        whole=True,
    )
    plan, facts = placed(taken.plan, _place(on))
    into_image = asked.container is None and plan.container is not None
    if into_image and origin.is_own and plan.container is not None:  # what its job wants to be told
        box = plan.container.model_copy(update={"secrets": manifest.secrets})
        plan = plan.model_copy(update={"container": box})
    require_safe(plan, where=manifest.run, runs=root, allowed=unsafe)
    native: SftPlan | None = engine_of(plan).surveyed(plan)
    if native is not None:
        require_run_stack(native)
        make_stand_in(native, out)
    require_inputs(original, manifest, plan, given)
    require_code_allowed(here, origin, manifest.run, code=trust_code)
    require_place(plan, facts)
    plan = with_free_cards(plan, wait=False)
    folder = _new_folder(original, manifest, plan, root)
    out.say(field("reproduces", f"{manifest.run}, plan {manifest.plan_hash[:7]}"))
    for line in taken.left_off:
        out.say(field("LEFT OFF", f"{manifest.run} {origin.why}: {line}"))
    if (moved := _moved(asked, plan)) is not None:
        out.say(field("SUBSTITUTE", moved))
    for line in _recovered(manifest):
        out.say(field("WARNING", line))
    _say_versions(manifest, plan, out)
    out.say(field("place", place_line(plan, facts)))
    out.say(preflight(plan))
    out.say(field("run", str(folder.path)))
    planned = plan.planned_steps
    short = steps is not None and (planned is None or steps < planned)
    with _ended_after(folder, steps if short else None):
        code = start_and_follow(folder, plan, out)
    end = read_outcome(folder) or {}
    reached = (
        short and end.get("reason") == "stopped" and int(end.get("steps") or 0) >= (steps or 0)
    )
    if not reached and end.get("reason") != manifest.results.reason:
        return Reproduction(folder, code or 1, end, None)
    compared = compare(original, folder, steps=steps if reached else None)
    return Reproduction(folder, code, end, compared)


def given_places(words: Sequence[str], plan: Plan) -> dict[str, str]:
    """PART=PATH of the command line as the part of the plan to the absolute path.

    `data.train` means the rows of every training of a run that has several. Raises UsageError.
    """
    known = [part.what for part in parts(plan)]
    known.append("python")
    places: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not text:
            raise UsageError(f"--at {word}: expected PART=PATH", f"a PART: {', '.join(known)}")
        meant = [what for what in known if what == name or what.endswith(f": {name}")]
        if not meant:
            near = nearest(name, known)
            raise UsageError(
                f"--at {word}: the run has no {name}; it has {', '.join(known)}",
                f"nearest: {near}" if near else None,
            )
        path = Path(text).expanduser().absolute()
        if not is_here(path):
            raise UsageError(f"--at {word}: there is no {path}")
        places |= dict.fromkeys(meant, str(path))
    return places


def require_toolkits_python(plan: Plan, origin: Origin, given: dict[str, str]) -> None:
    """Refuse where the toolkit's own Python is not here, or named by a foreign record alone."""
    own = engine_of(plan).own_python(plan)
    if own is None or "python" in given:
        return
    if not origin.is_own:
        raise RefusedError(
            f"the run {origin.why}, so its word for the toolkit's Python is not taken: {own}",
            "--at python=PATH names one",
        )
    if not is_here(own):
        raise RefusedError(
            f"the Python of the toolkit's environment is not here: {own}",
            "--at python=PATH names one",
        )


def require_inputs(
    original: RunFolder, manifest: Manifest, plan: Plan, given: dict[str, str]
) -> None:
    """Refuse where something that the run read is missing here or is another.

    Raises UsageError where --at named it, RefusedError else.
    """
    wrong = list(wrong_inputs(manifest, plan, Hasher(cache_folder() / "hashes")))
    if not wrong:
        return
    first = next((each for each in wrong if each.part in given), wrong[0])
    others = [each.text for each in wrong if each is not first]
    more = f" (and {len(others)} more: {'; '.join(others[: _SHOWN - 1])})" if others else ""
    text = f"{manifest.run} can't be reproduced here: {first.text}{more}"
    if first.part in given:
        raise UsageError(text, f"name another place: --at {shlex.quote(first.part)}=PATH")
    ways = f"--at {shlex.quote(first.part)}=PATH says where it is now"
    if first.id is not None and first.part in ("model", "vision.model"):
        beside = original.path / JOB_FILE
        job = shlex.quote(str(beside)) if beside.is_file() else manifest.job.name
        ways = f"runner fetch {job} --set {first.part}={first.id} brings it; or {ways}"
    raise RefusedError(text, ways)


def _place(on: str | None) -> On | None:
    if on in (None, "auto"):
        return None
    if on == "local" or on == "docker":
        return on  # type: ignore[return-value]
    near = nearest(str(on), ["auto", "local", "docker"])
    raise UsageError(
        f"--on {on}: expected auto (where it ran), local or docker",
        f"nearest: {near}" if near else None,
    )


def _new_folder(original: RunFolder, manifest: Manifest, plan: Plan, root: Path) -> RunFolder:
    folder = create_run(root, plan.job, plan.short_hash, "replay", render(plan))
    folder.write_json(
        folder.sources,
        {
            "schema_version": 1,
            "job_file": manifest.job.file,
            "job_sha256": manifest.job.sha256,
            "command": without_secrets(sys.argv, secret_values(os.environ, manifest.secrets)),
            "secrets": manifest.secrets,
            "sources": manifest.sources,
            "reproduces": {
                "run": manifest.run,
                "manifest_sha256": sha256_of(original.manifest),
            },
        },
    )
    return folder


def _moved(then: Plan, now: Plan) -> str | None:
    """What stands in place of what the run had, where it goes into an image or out of one."""
    if then.container is None and now.container is not None:
        return (
            f"the image {now.container.image} and what is in it, in place of {then.python}; "
            "variables of this machine do not reach it, but secrets of the job"
        )
    if then.container is not None and now.container is None:
        return (
            f"this machine and {now.python}, in place of the image {then.container.image}; "
            "nothing is closed to it"
        )
    return None


def _recovered(manifest: Manifest) -> list[str]:
    """That a run whose plan was changed on the way can't be had by its last plan alone."""
    before = [each for each in manifest.attempts if each.checkpoint is not None]
    if not before:
        return []
    names = ", ".join(dict.fromkeys(name for each in before for name in each.changed))
    return [
        f"it was recovered at step {before[-1].steps}: steps up to {before[-1].checkpoint} are of "
        f"an earlier plan ({names}). All steps of this run are of the last one, so the bits differ"
    ]


def _say_versions(manifest: Manifest, plan: Plan, out: Output) -> None:
    """What is installed otherwise here: said and not refused, since it may give the same bits."""
    then, now = manifest.python.packages, interpreter(plan)[0].packages
    if not then or not now:
        return
    changed = [
        f"{name} {then.get(name, '(none)')} → {now.get(name, '(none)')}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    if changed:
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        out.say(field("WARNING", f"other versions than then: {', '.join(changed[:_SHOWN])}{more}"))


@contextlib.contextmanager
def _ended_after(folder: RunFolder, steps: int | None) -> Iterator[None]:
    """Inside, the run is asked to end once it has logged that many steps.

    Its plan stays whole: with fewer steps the schedule of the learning rate would be another.
    """
    if steps is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            logged = logged_steps(folder.metrics)
            if logged and logged[-1].step >= steps:
                signal_supervisor(folder, signal.SIGTERM)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
