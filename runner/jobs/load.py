"""Load a validated Job by name or path, with overrides and the source of each value.

Imports pydantic and the modules that read YAML and word the problems. Writes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from runner.common.errors import Problem, SpecError, UsageError, nearest
from runner.common.packaged import jobs_folder
from runner.common.yaml_text import FieldPath, dotted_name, parse, read_mapping, shown_path
from runner.jobs.base import Job
from runner.jobs.fields import possible_types, without_empty_nulls
from runner.jobs.validation_errors import problems_of


@dataclass(frozen=True)
class LoadedJob:
    """A valid job with where it came from."""

    name: str
    path: Path
    job: Job
    """Of the kind that its `engine` says."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Dotted field -> "jobs/x.yaml:12" or "--set"; a field not in it has its default."""
    sha256: str | None = None
    """Of the file's bytes."""
    overridden: frozenset[str] = frozenset()
    """Dotted fields given by --set: their relative paths are meant from the current folder."""


def list_jobs(folder: Path | None = None) -> dict[str, Path]:
    """Name -> file of every job in `folder` (default ./jobs) and of the packaged ones."""
    found: dict[str, Path] = {}
    for place in (jobs_folder(), folder or Path("jobs")):
        for path in sorted([*place.glob("*.yaml"), *place.glob("*.yml")]):
            if path.is_file():  # a pipe there would be waited for
                found[path.stem] = path
    return dict(sorted(found.items()))


def find_job(name: str) -> Path:
    """The file of a JOB argument: a path to a YAML file, or a name in jobs/.

    Raises UsageError naming the jobs that exist and the nearest of them.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if path.is_file():
            return path
        near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")])
        raise UsageError(
            f"no job file {name!r}" + (" (it is a folder)" if path.is_dir() else ""),
            f"nearest in that folder: {path.parent / near}" if near else None,
        )
    jobs = list_jobs()
    if name in jobs:
        return jobs[name]
    near = nearest(name, jobs)
    raise UsageError(
        f"no job named {name!r}; there are: {', '.join(jobs) or 'none'}",
        f"nearest: {near}" if near else "runner jobs lists them",
    )


def read_job(name: str, overrides: Sequence[str], kinds: Mapping[str, type[Job]]) -> LoadedJob:
    """Read, override and validate a job.

    Args:
        name: a JOB as on the command line.
        overrides: texts of the form "training.learning_rate=2e-4", values in YAML.
        kinds: engine -> the type of its jobs; the first is that of a job which names none.

    Raises:
        UsageError: no such job. SpecError: every problem of the file and the overrides.
    """
    path = find_job(name)
    raw, lines = read_mapping(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    shown = shown_path(path)
    sources = {dotted_name(key): f"{shown}:{line}" for key, line in lines.items() if key}
    given: dict[FieldPath, str] = {}
    kind = _kind(raw, overrides, kinds)
    for text in overrides:
        key, value = _parse_override(text, kind)
        key = _put(raw, key, value, text)
        dotted = dotted_name(key)
        for known in [s for s in sources if s == dotted or s.startswith(dotted + ".")]:
            del sources[known]
        sources |= dict.fromkeys(_leaves(dotted, value), f"--set {dotted}")
        lines = {known: line for known, line in lines.items() if known[: len(key)] != key}
        given = {known: told for known, told in given.items() if known[: len(key)] != key}
        given[key] = text
    try:
        job = kind.model_validate(without_empty_nulls(raw, kind))
    except ValidationError as error:
        problems = problems_of(error, raw, shown, lines, given, kind)
        raise SpecError([_with_engines(problem, kinds) for problem in problems]) from None
    overridden = frozenset(name for name, source in sources.items() if source.startswith("--set"))
    return LoadedJob(path.stem, path.resolve(), job, sources, digest, overridden)


def _leaves(dotted: str, value: object) -> list[str]:
    """The field itself and, where `value` is a block, every field that it says."""
    inner = value.items() if isinstance(value, dict) else ()
    return [dotted, *(leaf for name, part in inner for leaf in _leaves(f"{dotted}.{name}", part))]


def _kind(
    raw: Mapping[str, object], overrides: Sequence[str], kinds: Mapping[str, type[Job]]
) -> type[Job]:
    """The kind of job that the file, or the last --set of it, says."""
    engine = raw.get("engine")
    for text in overrides:
        name, _, value = text.partition("=")
        if name.strip() == "engine":
            engine = value.strip()
    return kind_of(engine, kinds)


def kind_of(engine: object, kinds: Mapping[str, type[Job]]) -> type[Job]:
    """The type for an `engine:` as written, or nearly; the first where it names none."""
    meant = nearest(engine, kinds) if isinstance(engine, str) else None
    return kinds[meant] if meant else next(iter(kinds.values()))


def _with_engines(problem: Problem, kinds: Mapping[str, type[Job]]) -> Problem:
    """An unknown engine is told all there are, not just that of the job it was taken for."""
    if problem.field != "engine":
        return problem
    near = nearest(problem.value or "", kinds)
    return replace(problem, expected=" or ".join(kinds), nearest=near)


def _parse_override(text: str, kind: type[Job]) -> tuple[FieldPath, object]:
    name, equals, value = text.partition("=")
    key: FieldPath = tuple(name.strip().split("."))
    if not equals or not all(key) or not _is_utf8(text):
        raise UsageError(
            f"--set {text!r} is not FIELD=VALUE in UTF-8",
            "for example --set training.learning_rate=2e-4",
        )
    try:
        parsed, _ = parse(value, "--set")
    except SpecError:
        parsed = value  # a path such as "*x" is taken as text
    takes = possible_types(key, kind)
    if str in takes and not isinstance(parsed, str) and (parsed is not None or None not in takes):
        parsed = value  # --set model=123 names a folder
    return key, parsed


def _is_utf8(text: str) -> bool:
    """False for the surrogates by which Python carries a command line's other bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _put(raw: dict[str, object], key: FieldPath, value: object, text: str) -> FieldPath:
    """Set the field; its key, with numbers where it leads through lists."""
    place: Any = raw
    real: FieldPath = ()
    for depth, part in enumerate(key[:-1]):
        if isinstance(place, list):
            place = _entry(place, key, depth, text)
            real = (*real, int(part))
            continue
        real = (*real, part)
        inner = place.get(part)
        if inner is None:
            inner = place[part] = {}
        if not isinstance(inner, dict | list):
            raise SpecError(
                [
                    Problem(
                        f"--set {text}",
                        dotted_name(key),
                        f"{dotted_name(key[: depth + 1])} has no fields of its own",
                    )
                ]
            )
        place = inner
    if isinstance(place, list):
        _entry(place, key, len(key) - 1, text)
        place[int(key[-1])] = value
        return (*real, int(key[-1]))
    place[key[-1]] = value
    return (*real, key[-1])


def _entry(entries: list[object], key: FieldPath, depth: int, text: str) -> object:
    """The entry that a number in a dotted name means; SpecError where there is none."""
    part = str(key[depth])
    if not part.isdigit() or int(part) >= len(entries):
        name = dotted_name(key[:depth])
        expected = f"{name}.0 to {name}.{len(entries) - 1}" if entries else "a field that has some"
        raise SpecError(
            [
                Problem(
                    f"--set {text}",
                    dotted_name(key),
                    f"{name} has no entry {part!r}; it has {len(entries)}",
                    expected=expected,
                )
            ]
        )
    return entries[int(part)]
