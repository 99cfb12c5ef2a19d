"""Check, download or make what a run needs before it starts.

Imports no torch. Each function refuses with what is missing and advice; nothing has been started by
then.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from runner.common.errors import RefusedError
from runner.common.output import Output, field
from runner.common.own_python import module_argv, safe_environment
from runner.containers.cli import require_cli
from runner.containers.images import find_image
from runner.containers.ready import require_ready
from runner.engines.sft.packages import require_packages, require_training_stack
from runner.engines.sft.plan import SftPlan
from runner.jobs.load import LoadedJob
from runner.launch.fetch import fetch, lacking
from runner.plans.base import Plan, PlannedMount
from runner.plans.engine_command import question
from runner.plans.facts import HostFacts, driver_version, emptiest_first, list_gpus
from runner.plans.needs import Wanted
from runner.plans.resolve import planned_container
from runner.plans.sources import BUILTIN_MODELS, offline_switch

WAYS_OUT = (
    "name a mirror in HF_ENDPOINT; or take the model from ModelScope: --set "
    "model=modelscope:OWNER/NAME; or give a copy: --set model=FOLDER, --set data.train=FILE; "
    "runner smoke runs the job with stand-ins"
)
_unfetched: set[Wanted] = set()
"""What could not be had for the smokes of this process: one wait for the network is enough."""


def require_run_stack(plan: Plan, packages: Iterable[str] = ()) -> None:
    """Refuse where what trained a run, and is to be asked of its result, is not here any more.

    `packages` are needed besides those that train; an image of runner's has them.
    """
    if plan.container is None:
        require_training_stack()
        require_packages(packages)
        return
    cli = require_cli()  # of this machine, whatever the record of the run says
    if find_image(cli, plan.container.image_id) is None:
        raise RefusedError(
            f"the image that this run trained in is gone: {plan.container.image} "
            f"{plan.container.image_id[:19]}",
            "runner image load FILE brings a saved one back",
        )


def answering_gpu(plan: Plan) -> list[str]:
    """UUID of the emptiest GPU, for what is asked of a GPU run's result; none of a CPU run's."""
    gpus = list_gpus().gpus if plan.launch.device == "cuda" else ()
    return [gpu.uuid for gpu in emptiest_first(gpus)[:1]]


def fetch_missing(
    loaded: LoadedJob, facts: HostFacts, out: Output, *, required: bool = True
) -> bool:
    """Fetch the weights and rows that are not here; whether anything came, so that facts are old.

    Where it is not `required` (a smoke, which has stand-ins), only the built-in model is fetched,
    which is small, and its absence is no error.

    Raises:
        RefusedError: the network is forbidden or out of reach, said at once, or it can't be had.
    """
    absent = lacking(loaded, facts)
    if not required:
        absent = [one for one in absent if one.source == "builtin" and one not in _unfetched]
    if not absent:
        return False
    if required:
        refuse_unreachable(absent)
    for one in absent:
        named = BUILTIN_MODELS[one.id] if one.source == "builtin" else one.text
        out.say(field("fetching", named if one.split is None else f"{named} ({one.split})"))
    container = planned_container(loaded.job, facts, online=True)
    came = fetch(absent, quiet=out.as_json, container=container)
    failed = [(one, record) for one, record in zip(absent, came, strict=True) if "error" in record]
    for one, record in failed:
        if required:
            raise RefusedError(str(record["error"]), record["hint"])
        _unfetched.add(one)
        out.say(field("not here", f"{one.label}: {record['error']}"))
    return len(failed) < len(came)


def refuse_unreachable(absent: list[Wanted]) -> None:
    """Refuse at once where what is `absent` must come over the network and can't.

    The libraries try for most of a minute before they give up. The built-in model has a second
    source, so that nothing here speaks for it.

    Raises RefusedError, which names all that is lacking.
    """
    kinds = sorted({one.source for one in absent if one.source != "builtin"})
    if not kinds:
        return
    if switch := offline_switch():
        away = [one for one in absent if one.source != "builtin"]
        raise RefusedError(_not_here(away, f"{switch} forbids the network"), WAYS_OUT)
    for kind in kinds:
        if failure := _unreachable(kind):
            raise RefusedError(
                _not_here([one for one in absent if one.source == kind], failure), WAYS_OUT
            )


def _not_here(absent: list[Wanted], why: str) -> str:
    names = " and ".join(one.label for one in absent)
    return f"{names} are not on this machine, and {why}"


def _unreachable(kind: str) -> str | None:
    """Why a hub can't be reached, or None where it answers, whatever it says."""
    from runner.machine.doctor.hub import HUB_SECONDS, ask_hub
    from runner.machine.doctor.programs import ask_program

    if kind == "hub":
        found = ask_hub()
        if not found.failure:
            return None
        return f"{found.endpoint} can't be reached: {found.text or found.failure}"
    answer = ask_program(module_argv("runner.common.hub_address", kind), HUB_SECONDS)
    if not answer.timed_out and '"status"' in answer.out:
        return None
    return "ModelScope can't be reached (MODELSCOPE_ENDPOINT names another address of it)"


def place_line(plan: Plan, facts: HostFacts) -> str:
    """Where it will run, by which interpreter, and why there."""
    return facts.place.line_of(shutil.which(plan.python) or plan.python)


def require_place(plan: Plan, facts: HostFacts) -> None:
    """Refuse where the daemon that is to start the run's container can't, and say the way out."""
    there = facts.place.container
    if there is None:
        return
    uses_gpus = bool(plan.launch.gpu_uuids)
    require_ready(
        there.cli,
        gpus=uses_gpus,
        driver_version=driver_version() if uses_gpus else None,
        image_cuda=there.facts.cuda,
        disk_needed_bytes=None,
    )
    for mount in plan.container.mounts if plan.container else ():
        if not Path(mount.source).exists():
            raise RefusedError(
                f"container.mounts: there is no {mount.source} on this machine",
                "a mount's source has to be there; docker is not to make it",
            )


def make_stand_in(plan: SftPlan, out: Output) -> None:
    """Make the tiny random model of a smoke, where its plan asks for one and it is not there."""
    model = plan.model
    if model.kind != "standin" or model.folder is None or model.model_type is None:
        return
    if (Path(model.folder) / "config.json").is_file():
        return
    rows = plan.trainings[0].rows.train
    if rows.path is None:
        raise RefusedError(
            "a stand-in model needs rows for its tokenizer, and the job's rows are on the hub",
            "name a small file of the same layout in data.sample",
        )
    out.say(field("making", f"a tiny random {model.model_type} in {model.folder}"))
    asked = question(
        plan.container,
        [
            *(
                "runner.engines.sft.inside.model.standin",
                model.model_type,
                model.folder,
                str(rows.path),
            ),
            plan.trainings[0].data.table.model_dump_json(),
        ],
        reads=[PlannedMount(source=rows.path, target=rows.path)],
        caches=["standins"],
        environment=True,
    )
    done = subprocess.run(
        asked.argv,
        stdout=sys.stderr,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=safe_environment(),
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RefusedError(f"the stand-in can't be made: {lines[-1] if lines else 'no reason'}")
