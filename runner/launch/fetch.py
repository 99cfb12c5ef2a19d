"""What a job needs from elsewhere, whether it is here, and fetching it in a process of its own.

Imports no torch, no huggingface_hub and no datasets: the process does.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from runner.common.errors import RunnerError
from runner.common.own_python import safe_environment
from runner.engines.sft.facts import Facts, row_fields
from runner.engines.sft.job import sft_job
from runner.jobs.load import LoadedJob
from runner.plans.base import PlannedContainer
from runner.plans.engine_command import question
from runner.plans.sources import DataSource, ModelSource


@dataclass(frozen=True)
class Wanted:
    """One thing that the process runner.fetch can bring."""

    what: Literal["model", "rows"]
    source: Literal["hub", "modelscope", "builtin"]
    id: str
    revision: str | None
    """As the job asks for it."""
    name: str | None = None
    """rows only: the data set's configuration."""
    split: str | None = None
    """rows only."""
    folder: str | None = None
    """builtin only: where it goes."""
    trust_remote_code: bool = False

    @property
    def text(self) -> str:
        """As a job would write it."""
        revision = f"@{self.revision}" if self.revision else ""
        plain = self.source == "hub" and self.what == "model"
        return f"{'' if plain else self.source + ':'}{self.id}{revision}"

    @property
    def label(self) -> str:
        """What it is to a person: "the weights of X", "the rows of Y (test)"."""
        if self.what == "model":
            return f"the weights of {self.text}"
        return f"the rows of {self.text} ({self.split})"


@dataclass(frozen=True)
class Need:
    """One source of a job, the fields that name it, and what is here of it."""

    fields: tuple[str, ...]
    source: ModelSource | DataSource
    wanted: Wanted | None
    """How to fetch it; None for a folder or file of the user's own."""


def needs(loaded: LoadedJob, facts: Facts) -> list[Need]:
    """Every source that the job names, samples aside, each once and in the job's order."""
    job = sft_job(loaded)
    code = job.trust_remote_code
    named: list[tuple[str, ModelSource | DataSource]] = [("model", facts.model)]
    if facts.vision is not None:
        named.append(("vision.model", facts.vision))
    named += [
        (field, facts.rows[field]) for field in row_fields(job) if not field.endswith(".sample")
    ]
    texts = {"model": job.model}
    if job.vision is not None:
        texts["vision.model"] = job.vision.model
    found: dict[object, tuple[list[str], ModelSource | DataSource, Wanted | None]] = {}
    for field, source in named:
        wanted = _wanted(source, texts.get(field, ""), code)
        found.setdefault(wanted or source, ([], source, wanted))[0].append(field)
    return [Need(tuple(fields), source, wanted) for fields, source, wanted in found.values()]


def lacking(loaded: LoadedJob, facts: Facts) -> list[Wanted]:
    """What is not here and can be fetched."""
    return [
        need.wanted
        for need in needs(loaded, facts)
        if need.wanted is not None and not need.source.present
    ]


def fetch(
    wanted: list[Wanted], *, quiet: bool, container: PlannedContainer | None = None
) -> list[dict[str, Any]]:
    """Fetch all of `wanted`; for each its record, with "error" where it could not be had.

    `container` is where it is done; None is this machine.

    Raises:
        RunnerError: the process ended without having answered for all of them.
        KeyboardInterrupt: the user stopped it; what came is kept.
    """
    ask = question(
        container, ["runner.engines.sft.fetch"], online=True, environment=True, interactive=True
    )
    process = subprocess.Popen(
        ask.argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=safe_environment(to_terminal=True),
    )
    asked = json.dumps({"quiet": quiet, "wanted": [asdict(one) for one in wanted]})
    try:
        told, _ = process.communicate(asked)
    except KeyboardInterrupt:
        process.wait()  # it got the same signal
        ask.abandon()
        raise
    finally:
        ask.close()
    records = [json.loads(line) for line in told.splitlines()]
    if process.returncode == 130:
        raise KeyboardInterrupt
    if len(records) < len(wanted):
        raise RunnerError(
            f"fetching {wanted[len(records)].label} ended with exit code {process.returncode}",
            "what came so far is kept; the same command continues",
        )
    return records


def _wanted(source: ModelSource | DataSource, text: str, code: bool) -> Wanted | None:
    if isinstance(source, DataSource):
        if source.kind == "file":
            return None
        return Wanted(
            "rows", source.kind, source.id or "", source.asked, source.name, source.split or "train"
        )
    if source.kind == "folder":
        return None
    if source.kind == "builtin":
        return Wanted("model", "builtin", source.id, None, folder=str(source.folder))
    asked = text.partition("@")[2] or None  # source.revision is the commit, once it is here
    return Wanted("model", source.kind, source.id, asked, trust_remote_code=code)


def place(source: ModelSource | DataSource) -> Path | None:
    """Where it lies, or None where it does not."""
    where = source.path if isinstance(source, DataSource) else source.folder
    return where if source.present else None
