"""The kinds of jobs by engine, and the JSON Schema of them all.

`python -m runner.engines.job_kinds`.

Imports pydantic and the models of the jobs. Pure.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from runner.common import terminal
from runner.common.errors import nearest
from runner.engines.mgm.job import MgmJob
from runner.engines.script.job import ScriptJob
from runner.engines.sft.job import Job
from runner.jobs.base import JobBase

KINDS: dict[str, type[JobBase]] = {"sft": Job, "script": ScriptJob, "mgm": MgmJob}
"""Engine -> what its jobs say."""


def kind_of(engine: object) -> type[JobBase]:
    """The model for an `engine:` as written, or nearly; the native one where it names none."""
    meant = nearest(engine, KINDS) if isinstance(engine, str) else None
    return KINDS[meant] if meant else Job


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a job file, as committed in jobs/job.schema.json."""
    names, whole = models_json_schema([(kind, "validation") for kind in KINDS.values()])
    chosen: dict[str, Any] = names[(Job, "validation")]  # where a file names no engine
    for engine, kind in KINDS.items():
        if kind is not Job:
            chosen = {
                "if": {"properties": {"engine": {"const": engine}}, "required": ["engine"]},
                "then": names[(kind, "validation")],
                "else": chosen,
            }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, **chosen}


if __name__ == "__main__":
    terminal.put_json(json_schema(), indent=2)
