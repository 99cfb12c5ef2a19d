"""`runner reproduce`: a run again from its manifest, in a new folder, and whether it is the same.

Imports no torch. Nothing is started before every input is known to be the one that the run read.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from runner import durable
from runner.cli.cards import preflight, with_free_cards
from runner.cli.output import Output, field
from runner.cli.preflight import make_stand_in, require_place, require_run_stack
from runner.cli.report import verdict_lines as end_lines
from runner.cli.train import start_and_follow
from runner.cli.verify import compare, manifest_folder, verdict_lines
from runner.errors import RefusedError, UsageError, nearest
from runner.folder import RunFolder, create, default_root
from runner.liveness import host_pid
from runner.plan import Plan
from runner.plan_base import PlanBase
from runner.provenance.environment import secret_values, without_secrets
from runner.provenance.hashes import Hasher
from runner.provenance.manifest import Manifest, read_manifest, sha256_of
from runner.provenance.replay import On, placed, plan_of, wrong_inputs
from runner.provenance.results import logged_steps
from runner.provenance.software import interpreter
from runner.recorded import end_of, supervisor_of
from runner.render import render
from runner.sources import cache_folder

POLL_SECONDS = 0.2
_SHOWN = 5


def reproduce_run(
    run: str, *, steps: int | None, on: str | None, runs: Path | None, as_json: bool
) -> int:
    """0 where the new run is identical, 1 where not; the new run's code where it did not end well.

    Args:
        steps: end it after so many steps and compare these.
        on: local or docker; None is where the run ran.

    Raises:
        RefusedError: an input is missing or changed, the run has no results, the image is not here.
        UsageError: `on` is neither.
    """
    out, root = Output(as_json=as_json), runs or default_root()
    original = manifest_folder(run, root)
    manifest = read_manifest(original.manifest)
    if manifest.results is None:
        never = manifest.never_began
        why = "it has not ended, or was lost" if never is None else never.message
        raise RefusedError(
            f"{manifest.run} has no results to compare with: {why}",
            f"runner report {manifest.run}",
        )
    then = plan_of(manifest)
    plan, facts = placed(then, _place(on))
    if then.container is None and plan.container is not None:  # what its job wants to be told
        box = plan.container.model_copy(update={"secrets": manifest.secrets})
        plan = plan.model_copy(update={"container": box})
    if isinstance(plan, Plan):
        require_run_stack(plan)
        make_stand_in(plan, out)
    require_inputs(manifest, plan)
    require_place(plan, facts)
    plan = with_free_cards(plan, wait=False)
    folder = _new_folder(original, manifest, plan, root)
    out.say(field("reproduces", f"{manifest.run}, plan {manifest.plan_hash[:7]}"))
    if (moved := _moved(then, plan)) is not None:
        out.say(field("SUBSTITUTE", moved))
    for line in _recovered(manifest):
        out.say(field("WARNING", line))
    _say_versions(manifest, plan, out)
    out.say(field("place", facts.place.line))
    out.say(preflight(plan))
    out.say(field("run", str(folder.path)))
    planned = plan.planned_steps
    short = steps is not None and (planned is None or steps < planned)
    with _ended_after(folder, steps if short else None):
        code = start_and_follow(folder, plan, out)
    end = end_of(folder) or {}
    reached = (
        short and end.get("reason") == "stopped" and int(end.get("steps") or 0) >= (steps or 0)
    )
    for line in end_lines(folder, end)[:1]:
        out.say(line)
    if not reached and end.get("reason") != manifest.results.reason:
        out.result({"run": folder.name, "identical": None, **end}, end_lines(folder, end))
        return code or 1
    compared = compare(original, folder, steps=steps if reached else None)
    record = {**compared.record(), "folder": str(folder.path)}
    out.result(record, verdict_lines(compared))
    return 0 if compared.first is None else 1


def require_inputs(manifest: Manifest, plan: PlanBase) -> None:
    """Refuse where something that the run read is missing here or is another."""
    wrong = list(wrong_inputs(manifest, plan, Hasher(cache_folder() / "hashes")))
    if wrong:
        more = f" (and {len(wrong) - 1} more: {'; '.join(wrong[1:_SHOWN])})" if wrong[1:] else ""
        raise RefusedError(
            f"{manifest.run} can't be reproduced here: {wrong[0]}{more}",
            "put the file back as it was; the manifest says every path and hash",
        )


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


def _new_folder(original: RunFolder, manifest: Manifest, plan: PlanBase, root: Path) -> RunFolder:
    folder = create(root, plan.job, plan.short_hash, "replay", render(plan))
    durable.write_json(
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


def _moved(then: PlanBase, now: PlanBase) -> str | None:
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


def _say_versions(manifest: Manifest, plan: PlanBase, out: Output) -> None:
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
            pid = host_pid(supervisor_of(folder))
            if logged and logged[-1].step >= steps and pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
