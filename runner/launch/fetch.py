"""List what a job needs from elsewhere, see whether it is here, and download it in a process of its
own.

Imports no torch, no huggingface_hub and no datasets: the process does.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runner.common.errors import RunnerError
from runner.common.own_python import safe_environment
from runner.engines.registry import engine_of
from runner.jobs.load import LoadedJob
from runner.plans.base import PlannedContainer
from runner.plans.engine_command import question
from runner.plans.facts import HostFacts
from runner.plans.needs import Wanted
from runner.plans.sources import DataSource, ModelSource


def lacking(loaded: LoadedJob, facts: HostFacts) -> list[Wanted]:
    """What is not here and can be fetched."""
    return [
        need.wanted
        for need in engine_of(loaded.job).needs(loaded, facts)
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


def place(source: ModelSource | DataSource) -> Path | None:
    """Where it lies, or None where it does not."""
    where = source.path if isinstance(source, DataSource) else source.folder
    return where if source.present else None
