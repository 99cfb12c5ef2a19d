"""Manifest: what manifest.json says; its JSON Schema: `python -m runner.provenance.manifest`.

Imports pydantic, the parts' common ground and runner.common.durable/errors. Holds no secret's
value.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from runner.common import durable, terminal
from runner.common.errors import RunnerError
from runner.jobs.model import JobModel
from runner.plans.inputs import FileRecord

SCHEMA_VERSION = 1
Plain = str | int | float | bool | None


class JobFile(JobModel):
    """What the user wrote."""

    name: str
    file: str | None = Field(None, description="Path of the job file")
    sha256: str | None = Field(None, description="Of the job file's bytes as they were read")
    command: list[str] = Field([], description="The command line of runner")


class Code(JobModel):
    """The code of runner itself."""

    version: str
    source_sha256: str = Field(description="Over the files of the package, as in an image's label")
    commit: str | None = Field(None, description="Where it is a git checkout")
    dirty: bool | None = None
    diff_sha256: str | None = Field(None, description="Of project.diff beside the manifest")
    untracked: list[str] = Field([], description="Files of it that git does not know")


class ImageRecord(JobModel):
    """The image that the run ran in."""

    name: str
    id: str
    digests: list[str] = Field([], description="NAME@sha256:... of registries")
    base: str | None = Field(None, description="Digest of the image that it was built on")
    source_sha256: str | None = Field(None, description="Over runner's files in it")


class Lock(JobModel):
    """The lock that the packages are from."""

    file: str
    sha256: str


class Interpreter(JobModel):
    """The Python that trained, and all that is installed in it."""

    path: str
    version: str | None = None
    packages: dict[str, str] = Field({}, description="Canonical name to version")


class Rows(JobModel):
    """The rows of one training, once they were prepared."""

    counts: dict[str, int] = Field(description="Rows of each side: train, eval, test; as drawn")
    split_sha256: dict[str, str] = Field(
        {}, description="Of each side: over the sorted hashes of its rows"
    )


class Card(JobModel):
    """A GPU of the run."""

    uuid: str
    index: int
    name: str
    total_bytes: int | None = None
    compute_capability: float | None = None


class Host(JobModel):
    """The machine."""

    name: str
    system: str
    kernel: str
    machine: str
    cpu: str | None
    cores: int = Field(description="That the run could use")
    memory_bytes: int | None
    gpus: list[Card] = Field([])
    driver: str | None = Field(None, description="Version of the NVIDIA driver, of GPU runs")


class Losses(JobModel):
    """The sequence of losses in metrics.jsonl."""

    count: int
    last_step: int
    sha256: str = Field(description="Over a line `PHASE STEP LOSS` for each logged step")


class Results(JobModel):
    """What the run gave."""

    reason: str
    exit_code: int
    message: str
    steps: int
    max_steps: int | None = None
    tokens: int | None = None
    losses: Losses | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    eval_loss: float | None = None
    best: dict[str, object] | None = Field(
        None, description="The best checkpoint, where it was kept"
    )
    result: str | None = Field(None, description="The folder of what was trained")
    adapter_sha256: str | None = None
    adapter_bytes: int | None = None
    output: FileRecord | None = Field(None, description="What a script of the user's wrote")
    peak_bytes: int | None = None
    peak_source: str | None = None
    peaks: dict[str, int] = Field({})
    attempts: int = Field(1, description="Starts of the trainer; more than 1 after a recovery")
    started_unix_seconds: float
    ended_unix_seconds: float
    seconds: float


class Attempt(JobModel):
    """An attempt that ran out of memory; the next continued with another plan."""

    number: int = Field(description="Of its folder, attempts/N")
    plan_hash: str
    changed: dict[str, list[object]] = Field(
        description="Dotted field of the plan to [what it was, what the next attempt had]"
    )
    reason: str
    message: str
    steps: int = Field(description="Optimizer steps that were done when it ended")
    checkpoint: str | None = Field(
        None, description="The checkpoint that the next attempt resumed from"
    )
    peak_bytes: int | None = None


class NeverBegan(JobModel):
    """How a run ended that never left the queue for a GPU; it has no results."""

    reason: str
    exit_code: int
    message: str
    ended_unix_seconds: float


class Origin(JobModel):
    """The run that this one was made to repeat."""

    run: str
    manifest_sha256: str


class Manifest(JobModel):
    """All that determined a run, and all that it gave. Not edited after the run's end."""

    schema_version: Literal[1] = 1
    run: str = Field(description="JOB/TIME-HASH")
    complete: bool = Field(
        False, description="The run has trained and ended, and all of this is final"
    )
    resumed: bool = Field(False, description="Resumed from a checkpoint of an earlier start")
    reproduces: Origin | None = None
    created_unix_seconds: float
    job: JobFile
    plan_hash: str
    plan: dict[str, Any] = Field(
        description="As plan.yaml holds it; after a recovery, the plan that the results are of"
    )
    attempts: list[Attempt] = Field([], description="What was tried before that plan, in order")
    sources: dict[str, str] = Field({}, description="Field to where its value came from")
    rendered: dict[str, str] = Field(description="Name to sha256 of every rendered file")
    argv: list[str] = Field([], description="What was executed; known once it was started")
    code: Code
    image: ImageRecord | None = None
    lock: Lock | None = None
    python: Interpreter
    files: list[FileRecord] = Field([])
    rows: dict[str, Rows] = Field({}, description="By training; '' is the only one or the last")
    seeds: dict[str, int] = Field({}, description="Dotted field of the plan to seed")
    switches: dict[str, Plain] = Field(
        {}, description="torch's settings that decide bits, as the trainer had them"
    )
    stack: dict[str, Plain] = Field({}, description="Builds: torch, CUDA, cuDNN, NCCL; ISA")
    host: Host
    environment: dict[str, str] = Field({}, description="Variables of an allow-list")
    secrets: list[str] = Field([], description="Names of the secrets the job asks for, that is all")
    notes: list[str] = Field([], description="What could not be recorded, and why")
    results: Results | None = None
    never_began: NeverBegan | None = Field(
        None, description="Of a run that was ended while it waited for a GPU"
    )


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`.

    Raises RunnerError where it is missing, damaged, or of another version of its schema.
    """
    record = durable.read_json(path)
    if not isinstance(record, dict):
        if not os.path.lexists(path):
            raise RunnerError(
                f"there is no manifest at {path}",
                "a run that was never started has none, nor has one from before manifests were "
                "written",
            )
        raise RunnerError(f"{path} is damaged{_why(path)}", "a copy of the run may have it whole")
    version = record.get("schema_version")
    newer = durable.newer(record, SCHEMA_VERSION)
    if newer is not None:
        raise RunnerError(f"{path} was {newer}", "take the runner that wrote it")
    if version != SCHEMA_VERSION:
        raise RunnerError(
            f"{path} has schema_version {version!r}, this runner reads {SCHEMA_VERSION}",
            "take the runner that wrote it",
        )
    try:
        return Manifest.model_validate(record)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise RunnerError(f"{path} is no manifest: it is nested without end") from None
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RunnerError(f"{path} is no manifest: {place}: {first['msg']}") from None


def _why(path: Path) -> str:
    try:
        durable.open_record(path).close()
        return ""
    except OSError as error:
        return f" or can't be read: {error.strerror}"


def sha256_of(path: Path) -> str:
    """Hash of a manifest's bytes, by which a replay names it. Raises OSError."""
    return hashlib.sha256(durable.read_record(path, durable.MAX_JSON_BYTES)).hexdigest()


def json_schema() -> dict[str, object]:
    """The JSON Schema of manifest.json, as committed in docs/manifest.schema.json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Manifest.model_json_schema(),
    }


if __name__ == "__main__":
    terminal.put_json(json_schema(), indent=2)
