"""What software a run runs by: runner's own code, the interpreter's packages, the image, the lock.

Asks git, an interpreter and the container program as short processes: to be called before the run's
own processes start, since the supervisor reaps every child after that.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

from runner import __version__
from runner.common.errors import RunnerError
from runner.common.own_python import utf8_environment
from runner.common.packaged import docker_folder
from runner.containers import context
from runner.containers.cli import require_cli
from runner.containers.images import Image, find_image, image_facts
from runner.plans.base import Plan
from runner.provenance.manifest import Code, ImageRecord, Interpreter, Lock

ASK_SECONDS = 60.0
_OURS = ("docker", "jobs", "runner", "shell", "pyproject.toml")
_VERSIONS = """
import importlib.metadata, json, platform, re
found = {}
for one in importlib.metadata.distributions():
    found.setdefault(re.sub(r"[-_.]+", "-", one.name or "").lower(), one.version)
print(json.dumps({"version": platform.python_version(), "packages": found}))
"""


def code() -> tuple[Code, str]:
    """Runner's own code, and what is not committed of it as a diff; '' where all is."""
    source = context.tree_sha256(context.package_files())
    root = docker_folder().parent
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    if commit is None:
        return Code(version=__version__, source_sha256=source), ""
    diff = _git(root, "diff", "HEAD", "--no-ext-diff", "--", *_OURS) or ""
    listed = _git(root, "ls-files", "--others", "--exclude-standard", "--", *_OURS) or ""
    return (
        Code(
            version=__version__,
            source_sha256=source,
            commit=commit.strip(),
            dirty=bool(diff or listed),
            untracked=listed.splitlines(),
        ),
        diff,
    )


def of_plan(
    plan: Plan, *, asked: bool
) -> tuple[Interpreter, ImageRecord | None, Lock | None, list[str]]:
    """Interpreter, image and lock of a plan, and notes; without `asked` as the plan names them."""
    if asked:
        python, notes = interpreter(plan)
        image, lock, more = image_and_lock(plan)
        return python, image, lock, [*notes, *more]
    box = plan.container
    bare = None if box is None else ImageRecord(name=box.image, id=box.image_id)
    told = "it never began: nothing was hashed, and what is installed was not asked"
    return Interpreter(path=plan.python), bare, None, [told]


def interpreter(plan: Plan) -> tuple[Interpreter, list[str]]:
    """The Python that trains and its packages; notes on what could not be found out."""
    if plan.container is not None:
        return _inside(plan)
    if plan.python == sys.executable:
        packages: dict[str, str] = {}
        for one in importlib.metadata.distributions():
            name = re.sub(r"[-_.]+", "-", one.name or "").lower()
            packages.setdefault(name, one.version)
        found = Interpreter(
            path=plan.python,
            version=platform.python_version(),
            packages=dict(sorted(packages.items())),
        )
        return found, []
    try:
        done = subprocess.run(
            # -c takes modules from the current folder first, and a toolkit's Python may have no -P
            [plan.python, "-c", _VERSIONS],
            cwd="/",
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=utf8_environment(),
            timeout=ASK_SECONDS,
        )
        told = json.loads(done.stdout)
        packages = dict(sorted(told["packages"].items()))
        return Interpreter(path=plan.python, version=told["version"], packages=packages), []
    except (OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
        return Interpreter(path=plan.python), [f"packages of {plan.python} are not known: {error}"]


def image_and_lock(plan: Plan) -> tuple[ImageRecord | None, Lock | None, list[str]]:
    """The image, the lock that packages are from, and notes."""
    if plan.container is None:
        lock = docker_folder().parent / "requirements.lock"
        if not lock.is_file():
            return None, None, []
        here = hashlib.sha256(lock.read_bytes()).hexdigest()
        return None, Lock(file=lock.name, sha256=here), []
    bare = ImageRecord(name=plan.container.image, id=plan.container.image_id)
    try:
        cli = require_cli()
        image = find_image(cli, plan.container.image_id)
    except RunnerError as error:
        return bare, None, [f"the image could not be asked about: {error}"]
    if image is None:
        return bare, None, ["the image is not here any more"]
    asked = ("image", "inspect", "--format", "{{json .RepoDigests}}", image.id)
    answer = cli.ask(*asked)
    try:
        digests = json.loads(answer.out) or [] if answer.code == 0 else []
    except ValueError:
        digests = []
    file, digest = image.labels.get(context.LOCK_FILE), image.labels.get(context.LOCK)
    record = bare.model_copy(
        update={
            "digests": [str(one) for one in digests],
            "base": image.labels.get(context.BASE_DIGEST),
            "source_sha256": image.labels.get(context.SOURCE),
        }
    )
    return record, Lock(file=file, sha256=digest) if file and digest else None, []


def _inside(plan: Plan) -> tuple[Interpreter, list[str]]:
    assert plan.container is not None  # noqa: S101 - the caller has looked
    box = plan.container
    try:
        known = image_facts(require_cli(), Image(box.image, box.image_id, {}, 0, ""))
    except (RunnerError, OSError) as error:
        return Interpreter(path=plan.python), [f"packages of the image are not known: {error}"]
    notes = [] if known.packages else ["the image does not say what is installed in it"]
    packages = dict(sorted(known.packages.items()))
    return Interpreter(path=plan.python, version=known.python, packages=packages), notes


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASK_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
