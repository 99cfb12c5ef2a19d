"""The records of a run that go into every bundle: an allow-list.

Imports runner.provenance, runs and this package's `gathering` and `members`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from runner.plans.inputs import is_here
from runner.provenance.bundle import members
from runner.provenance.bundle.gathering import Gathering
from runner.provenance.environment import secret_values, without_secrets
from runner.provenance.manifest import Manifest
from runner.runs.folder import RunFolder

JOB_FILE = "job.yaml"


def gather_records(gathered: Gathering, folder: RunFolder) -> None:
    """Take along the run's records, secrets struck out of its logs, and the job file as it was."""
    secrets = secret_values(os.environ, gathered.manifest.secrets)
    for path in record_files(folder, gathered.manifest):
        name = path.relative_to(folder.path).as_posix()
        content = None
        if secrets and path.suffix == ".log":
            text = path.read_bytes().decode(errors="surrogateescape")
            clean = str(without_secrets(text, secrets))
            if clean != text:
                content = clean.encode(errors="surrogateescape")
                gathered.notes.append(f"{name}: values of secrets were struck out")
        gathered.add(name, path, content=content)
    job = gathered.manifest.job
    places = [folder.path / JOB_FILE, *([Path(job.file)] if job.file else [])]
    for place in [each for each in places if job.sha256 and is_here(each)][:1]:
        if gathered.hasher.file(place) == job.sha256:
            gathered.add(JOB_FILE, place)
        else:
            told = f"the job file was changed since, so it is left out: {place.name}"
            gathered.notes.append(told)


def record_files(folder: RunFolder, manifest: Manifest) -> Iterator[Path]:
    """The allow-list: what of a run folder goes into every bundle, as far as it is there."""
    names = [folder.manifest, folder.plan, folder.sources]
    names += [folder.path / name for name in manifest.rendered]
    names += folder.path.glob("images*.sha256")
    names += [folder.project_diff, folder.metrics, folder.memory, folder.events]
    names += [folder.data_report, folder.prediction, folder.advice]
    names += [folder.best, folder.train_log, folder.supervisor_log]
    names += [folder.container_log, folder.engine_failure, folder.engine_result]
    names += [folder.engine_stack, *folder.row_hashes.rglob("*")]
    names += folder.phases.glob(f"*/{folder.data_report.name}")
    names += folder.attempts.glob(f"*/{folder.plan.name}")
    root = folder.path.resolve()
    for path in dict.fromkeys(names):
        name = os.path.relpath(path, folder.path)
        # a link on the way would lead elsewhere, into whatever may be read by who bundles
        if members.is_record(name) and path.is_file() and path.resolve() == root / name:
            yield path
