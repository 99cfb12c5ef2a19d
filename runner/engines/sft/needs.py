"""Weights and rows that a job of the native engine names, each once. Pure."""

from __future__ import annotations

from runner.engines.sft.facts import Facts, row_fields
from runner.engines.sft.job import sft_job
from runner.jobs.load import LoadedJob
from runner.plans.needs import Need, Wanted
from runner.plans.sources import DataSource, ModelSource


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
