"""ScriptJob: a user's own training script or shell file as a job.

It gets the container, the run folder, the guard and the report, and nothing more is asked of it.
Imports pydantic and the parts' common ground only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from runner.jobs.base import EnvironmentName, Job, JobHead
from runner.jobs.effects import without_device
from runner.jobs.model import ConflictError, JobModel

PLACEHOLDERS = (
    "{output} (the run's output folder), {source} (the script's folder), {inputs.N} (an entry of "
    "inputs, from 0) and, in a smoke, {max_steps}"
)
_INPUT = re.compile(r"\{inputs\.(\d+)\}")


class ScriptSmokeSettings(JobModel):
    """What differs in a smoke of the script."""

    arguments: list[str] | None = Field(
        None,
        description="Arguments in place of the job's own; {max_steps} stands for its steps.",
    )
    environment: dict[EnvironmentName, str] = Field(
        {}, description="Variables set besides the job's own; {max_steps} as in arguments."
    )


class ScriptSettings(JobHead):
    """What only a job of engine script says."""

    engine: Literal["script"] = Field(description="script: your own program trains.")
    script: str = Field(
        min_length=1,
        description="The program: a .py file (run by python), a .sh file (run by bash), or any "
        "executable file; a relative path is from the job file.",
    )
    arguments: list[str] = Field(
        [],
        description=f"Its arguments, word by word. They may contain {PLACEHOLDERS}.",
    )
    environment: dict[EnvironmentName, str] = Field(
        {},
        description="Variables set for it, placeholders as in arguments. No secrets: name those in "
        "container.secrets.",
    )
    inputs: list[str] = Field(
        [],
        description="Files and folders that it reads. They must be there before the start; files "
        "are hashed; a container sees them read-only at the same paths.",
    )
    workdir: Literal["output", "source"] = Field(
        "output",
        description="The folder it starts in: output (of the run, so that what it writes there "
        "is kept with the run) or source (the script's own, writable then).",
    )
    python: str | None = Field(
        None,
        min_length=1,
        description="The interpreter of a .py file; without it, runner's own, or the image's.",
    )
    smoke: ScriptSmokeSettings | None = Field(
        None, description="Settings of a smoke; without them the script has no smoke."
    )


class ScriptJob(Job, ScriptSettings):
    """A script of the user's own. Anything not said has the default that `runner show` prints."""

    def own_risks(self) -> list[str]:
        """That the script is run, and where it may write."""
        lines = [
            f"script {self.script!r} is run: where that is on this machine itself (--on local), as "
            "you, with all that you may"
        ]
        if self.workdir == "source":
            lines.append("workdir is source: the script can write to the folder that it is in")
        return lines

    @model_validator(mode="after")
    def _possible(self) -> ScriptJob:
        if self.launch.deepspeed != "none":
            raise ConflictError("launch.deepspeed", "is the script's own affair with engine script")
        for field, reason in without_device(self.launch, self.budget):
            raise ConflictError(field, reason)
        if self.budget.oom_snapshot:
            raise ConflictError(
                "budget.oom_snapshot", "has no effect: it is of engine sft, whose torch is runner's"
            )
        if self.launch.device == "cpu" and self.launch.num_processes > 1:
            raise ConflictError(
                "launch.num_processes",
                "has no effect: a script is one process, and launch.device is cpu; what it starts "
                "is its own affair (launch.threads_per_process says OMP_NUM_THREADS)",
            )
        if self.python is not None and Path(self.script).suffix != ".py":
            raise ConflictError("python", "has no effect: it runs .py files, and script is none")
        texts = {f"arguments.{i}": text for i, text in enumerate(self.arguments)}
        texts |= {f"environment.{name}": text for name, text in self.environment.items()}
        if self.smoke is not None:
            given = enumerate(self.smoke.arguments or [])
            texts |= {f"smoke.arguments.{i}": text for i, text in given}
            more = self.smoke.environment.items()
            texts |= {f"smoke.environment.{name}": text for name, text in more}
        for field, text in texts.items():
            if "\0" in text:
                raise ConflictError(field, "holds a NUL character")
            for number in _INPUT.findall(text):
                if int(number) >= len(self.inputs):
                    raise ConflictError(
                        field, f"names inputs.{number}, and inputs has {len(self.inputs)} entries"
                    )
        return self
