"""The JSON Schema of a job file of any engine: `python -m runner.engines.job_kinds`. Pure."""

from __future__ import annotations

from pydantic.json_schema import models_json_schema

from runner.common import terminal
from runner.engines.registry import ENGINES


def json_schema() -> dict[str, object]:
    """The JSON Schema of a job file, as committed in jobs/job.schema.json."""
    kinds = {name: engine.job_type for name, engine in ENGINES.items()}
    default, *_ = kinds.values()
    names, whole = models_json_schema([(kind, "validation") for kind in kinds.values()])
    chosen: dict[str, object] = names[(default, "validation")]  # where a file names no engine
    for engine, kind in kinds.items():
        if kind is not default:
            chosen = {
                "if": {"properties": {"engine": {"const": engine}}, "required": ["engine"]},
                "then": names[(kind, "validation")],
                "else": chosen,
            }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, **chosen}


if __name__ == "__main__":
    terminal.put_json(json_schema(), indent=2)
