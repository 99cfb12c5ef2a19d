"""From a name or a path to a validated Job: YAML with line numbers, overrides, clear refusals.

Imports pyyaml, pydantic and runner.job. Reads job files; writes nothing.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from runner.errors import Problem, SpecError, UsageError, nearest
from runner.job import ConflictError, Job
from runner.packaged import jobs_folder

FieldPath = tuple[str | int, ...]
MAX_FILE_BYTES = 1 << 20
MAX_NODES = 20_000  # a job has about a hundred; more is an alias bomb


class _Loader(yaml.SafeLoader):
    """Safe YAML with YAML 1.2's scalars: 1e-4 is a number, `no` and 12:30 are text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - pyyaml's own protocol


for _tag, _pattern, _first in (
    ("bool", r"true|false|True|False|TRUE|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
    )


def _number(loader: _Loader, node: yaml.ScalarNode) -> int:
    # pyyaml reads "010" as octal 8 and "0o10" not at all; YAML 1.2 has it the other way round
    text = node.value.replace("_", "")
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_TAGS: dict[type[yaml.Node], tuple[str, ...]] = {
    yaml.ScalarNode: ("null", "bool", "int", "float", "str"),
    yaml.SequenceNode: ("seq",),
    yaml.MappingNode: ("map",),
}


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would otherwise take for something else; every value on one line."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    """Text for a YAML dumper; line breaks of every kind as escapes, or they don't read back."""
    style = None if value.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, represent_text)


def to_yaml(value: object) -> str:
    """One field's value on one line, which a job file reads back as the same value."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=sys.maxsize
    )
    return text.removesuffix("\n").removesuffix("\n...")


@dataclass(frozen=True)
class LoadedJob:
    """A valid job with where it came from."""

    name: str
    path: Path
    job: Job
    sources: Mapping[str, str] = field(default_factory=dict)
    """Dotted field -> "jobs/x.yaml:12" or "--set"; a field not in it has its default."""
    overridden: frozenset[str] = frozenset()
    """Dotted fields given by --set: their relative paths are meant from the current folder."""


def list_jobs(folder: Path | None = None) -> dict[str, Path]:
    """Name -> file of every job in `folder` (default ./jobs) and of the packaged ones."""
    found: dict[str, Path] = {}
    for place in (jobs_folder(), folder or Path("jobs")):
        for path in sorted([*place.glob("*.yaml"), *place.glob("*.yml")]):
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


def load_job(name: str, overrides: Sequence[str] = ()) -> LoadedJob:
    """Read, override and validate a job.

    Args:
        name: a JOB as on the command line.
        overrides: texts of the form "training.learning_rate=2e-4", values in YAML.

    Raises:
        UsageError: no such job. SpecError: every problem of the file and the overrides.
    """
    path = find_job(name)
    raw, lines = _read(path)
    shown = _shown(path)
    sources = {_dotted(key): f"{shown}:{line}" for key, line in lines.items() if key}
    given: dict[FieldPath, str] = {}
    for text in overrides:
        key, value = _parse_override(text)
        _put(raw, key, value, text)
        dotted = _dotted(key)
        for known in [s for s in sources if s == dotted or s.startswith(dotted + ".")]:
            del sources[known]
        sources |= dict.fromkeys(_leaves(dotted, value), f"--set {dotted}")
        lines = {known: line for known, line in lines.items() if known[: len(key)] != key}
        given = {known: told for known, told in given.items() if known[: len(key)] != key}
        given[key] = text
    try:
        job = Job.model_validate(raw)
    except ValidationError as error:
        raise SpecError(_problems(error, raw, shown, lines, given)) from None
    overridden = frozenset(name for name, source in sources.items() if source.startswith("--set"))
    return LoadedJob(path.stem, path.resolve(), job, sources, overridden)


def _leaves(dotted: str, value: object) -> list[str]:
    """The field itself and, where `value` is a block, every field that it says."""
    inner = value.items() if isinstance(value, dict) else ()
    return [dotted, *(leaf for name, part in inner for leaf in _leaves(f"{dotted}.{name}", part))]


def _shown(path: Path) -> str:
    """The path as a user would type it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _dotted(key: FieldPath) -> str:
    return ".".join(str(part) for part in key)


def _refusal(
    shown: str,
    problem: str,
    line: int | None = None,
    *,
    key: FieldPath = (),
    value: str | None = None,
    expected: str | None = None,
) -> SpecError:
    where = f"{shown}:{line}" if line else shown
    return SpecError([Problem(where, _dotted(key), problem, value, expected)])


def _read(path: Path) -> tuple[dict[str, Any], dict[FieldPath, int]]:
    shown = _shown(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _refusal(shown, f"can't be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise _refusal(
            shown, f"is {len(content)} bytes long; a job file has at most {MAX_FILE_BYTES}"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refusal(shown, f"is not UTF-8 text (byte {error.start})") from None
    value, lines = _parse(text, shown)
    if value is None:
        raise _refusal(shown, "is empty", expected="at least `model:` and `data:`")
    if not isinstance(value, dict):
        raise _refusal(
            shown,
            "does not hold fields",
            lines[()],
            expected="'name: value' lines, at least `model:` and `data:`",
        )
    return value, lines


def _parse(text: str, shown: str) -> tuple[Any, dict[FieldPath, int]]:
    """Plain values of a YAML text, and the line of each. Raises SpecError naming `shown`:line."""
    lines: dict[FieldPath, int] = {}
    seen = 0

    def value_of(node: yaml.Node, key: FieldPath) -> Any:
        nonlocal seen
        seen += 1
        line = node.start_mark.line + 1
        if seen > MAX_NODES or len(key) > 32:
            raise _refusal(shown, "has too many values (aliases that multiply?)", line)
        lines.setdefault(key, line)
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        if tag not in _TAGS[type(node)]:
            raise _refusal(
                shown,
                f"tag {node.tag.replace('tag:yaml.org,2002:', '!!')} is not allowed",
                line,
                key=key,
                expected="plain YAML",
            )
        if isinstance(node, yaml.MappingNode):
            return mapping_of(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [value_of(item, (*key, index)) for index, item in enumerate(node.value)]
        try:
            node.value.encode()
            return loader.construct_object(node)
        except (ValueError, KeyError):  # !!int abc, !!bool 7, 5,000 digits, "\uD800"
            raise _refusal(
                shown, f"can't be read as {tag}", line, key=key, value=_brief(node.value)
            ) from None

    def mapping_of(node: yaml.MappingNode, key: FieldPath) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refusal(shown, "a key must be plain text", line, key=key)
            name = str(key_node.value).encode(errors="backslashreplace").decode()
            if name in out:
                raise _refusal(
                    shown,
                    f"{name!r} stands twice",
                    line,
                    key=(*key, name),
                    expected="each field once",
                )
            lines[(*key, name)] = line
            out[name] = value_of(value_node, (*key, name))
        return out

    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _refusal(
            shown,
            f"is not valid YAML: {error.problem or error.context}",
            mark.line + 1 if mark else None,
            expected="spaces for indentation, 'name: value' lines",
        ) from None
    except RecursionError:
        raise _refusal(shown, "is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: "\UFFFFFFFF"
        raise _refusal(shown, f"is not valid YAML: {str(error).splitlines()[0]}") from None
    return (None if root is None else value_of(root, ())), lines


def _parse_override(text: str) -> tuple[FieldPath, Any]:
    name, equals, value = text.partition("=")
    key = tuple(part for part in name.strip().split("."))
    if not equals or not all(key) or not _is_utf8(text):
        raise UsageError(
            f"--set {text!r} is not FIELD=VALUE in UTF-8",
            "for example --set training.learning_rate=2e-4",
        )
    try:
        parsed, _ = _parse(value, "--set")
    except SpecError:
        parsed = value  # a path such as "*x" is taken as text
    takes = _possible_types(key)
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


def _possible_types(key: FieldPath) -> tuple[Any, ...]:
    """The members of a field's type, None for NoneType; of an entry of a text mapping too."""
    info = _annotation(key)
    if info is None and key[:-1]:
        mappings = [part for part in _members(_annotation(key[:-1])) if get_origin(part) is dict]
        info = get_args(mappings[0])[1] if mappings else None
    return tuple(None if part is types.NoneType else part for part in _members(info))


def _members(annotation: Any) -> tuple[Any, ...]:
    union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if union else (annotation,)


def _put(raw: dict[str, Any], key: FieldPath, value: Any, text: str) -> None:
    place: Any = raw
    for depth, part in enumerate(key[:-1]):
        inner = place.get(part) if isinstance(place, dict) else None
        if inner is None:
            inner = place[part] = {}
        if not isinstance(inner, dict):
            raise SpecError(
                [
                    Problem(
                        f"--set {text}",
                        _dotted(key),
                        f"{_dotted(key[: depth + 1])} has no fields of its own",
                    )
                ]
            )
        place = inner
    place[key[-1]] = value


def _model_at(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _annotation(key: FieldPath) -> Any:
    """The type of the field at `key`, or None."""
    current: Any = Job
    for part in key:
        model = _model_at(current)
        if model is None or part not in model.model_fields:
            return None
        current = model.model_fields[str(part)].annotation
    return current


def all_fields(model: type[BaseModel] = Job, prefix: str = "") -> list[str]:
    """Every dotted field name of a job, in order."""
    out = []
    for name, info in model.model_fields.items():
        inner = _model_at(info.annotation)
        out.append(prefix + name)
        if inner is not None:
            out += all_fields(inner, f"{prefix}{name}.")
    return out


_NUMBER = re.compile(r"[-+]?[0-9._]+(?:[eE][-+]?[0-9]+)?")
_EXPECTED = {
    "missing": "this field, which has no default",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "list_type": "a list, such as [q_proj, v_proj]",
    "dict_type": "a mapping of names to text",
    "model_type": "fields of its own (an indented block)",
    "model_attributes_type": "fields of its own (an indented block)",
    "finite_number": "a finite number",
}


def _problems(
    error: ValidationError,
    raw: Mapping[str, Any],
    shown: str,
    lines: Mapping[FieldPath, int],
    given: Mapping[FieldPath, str],
) -> list[Problem]:
    found: dict[FieldPath, Problem] = {}
    for item in error.errors(include_url=False):
        key = _real_key(item["loc"], raw)
        where = _where(key, shown, lines, given)
        kind, context = item["type"], item.get("ctx", {})
        value = None if kind == "missing" or item["input"] is raw else _brief(item["input"])
        expected = _EXPECTED.get(kind)
        problem, near = item["msg"], None
        if kind == "extra_forbidden":
            model = _model_at(_annotation(key[:-1])) or Job
            names = list(model.model_fields)
            problem, expected = "unknown field", "one of " + ", ".join(names)
            near = nearest(str(key[-1]), names)
            if near is None or str(key[-1]) in _last_names():
                near = _elsewhere(str(key[-1]))
        elif kind == "missing":
            problem = "is missing"
        elif kind == "literal_error":
            choices = [str(choice) for choice in _choices(_annotation(key))]
            problem, expected = "is not one of the possible values", " or ".join(choices)
            near = nearest(str(item["input"]), choices)
        elif kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
            sign = {
                "greater_than": "above",
                "greater_than_equal": "at least",
                "less_than": "below",
                "less_than_equal": "at most",
            }[kind]
            bound = next(iter(context.values()))
            problem, expected = "is out of range", f"{sign} {bound:.12g}"
        elif kind == "value_error":
            cause = context.get("error")
            text = str(cause or problem)
            if isinstance(cause, ConflictError):
                key = (*key, *cause.field.split("."))
                where = _where(key, shown, lines, given)
                value = _value_at(raw, key)
            problem, expected = (
                ("has no usable value", text.removeprefix("expected "))
                if text.startswith("expected ")
                else (text, None)
            )
        elif expected:
            unusable = kind in ("finite_number", "string_too_short")
            problem = "has no usable value" if unusable else "has the wrong type"
        if kind in ("int_type", "float_type") and _NUMBER.fullmatch(str(item["input"]).strip()):
            quoted = isinstance(item["input"], str)
            expected = f"{expected}, without quotes" if quoted else expected
        if key in found:  # the members of a union each complain
            earlier = found[key]
            if expected and earlier.expected and expected not in earlier.expected:
                joined = f"{earlier.expected}, or {expected}"
                found[key] = Problem(
                    where, _dotted(key), earlier.problem, value, joined, earlier.nearest or near
                )
            continue
        found[key] = Problem(where, _dotted(key), problem, value, expected, near)
    return list(found.values())


def _real_key(loc: tuple[str | int, ...], raw: Any) -> FieldPath:
    """pydantic's location without the labels that it puts in for union members."""
    key: list[str | int] = []
    place: Any = raw
    for index, part in enumerate(loc):
        if isinstance(place, dict) and (part in place or index == 0):
            place = place.get(part)
        elif isinstance(place, list) and isinstance(part, int):
            place = place[part] if part < len(place) else None
        elif _annotation((*key, part)) is not None:
            place = None
        else:
            continue
        key.append(part)
    return tuple(key)


def _where(
    key: FieldPath, shown: str, lines: Mapping[FieldPath, int], given: Mapping[FieldPath, str]
) -> str:
    for length in range(len(key), 0, -1):
        if key[:length] in given:
            return f"--set {given[key[:length]]}"
        if key[:length] in lines:
            return f"{shown}:{lines[key[:length]]}"
    for path, text in given.items():
        if path[: len(key)] == key:  # a block that only --set BLOCK.FIELD names
            return f"--set {text}"
    return shown


def _value_at(raw: Any, key: FieldPath) -> str | None:
    for part in key:
        raw = raw.get(part) if isinstance(raw, dict) else None
    return None if raw is None else _brief(raw)


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _elsewhere(name: str) -> str | None:
    """The field of that (or nearly that) name in another block: `r` -> lora.r."""
    last = _last_names()
    near = nearest(name, last, likeness=0.75)  # of so many names, some always looks alike
    return last[near] if near else None


def _last_names() -> dict[str, str]:
    """Field name without its blocks -> dotted; of two, that of the outermost block."""
    fields = sorted(all_fields(), key=lambda dotted: dotted.count("."), reverse=True)
    return {dotted.rsplit(".", 1)[-1]: dotted for dotted in fields}


def _brief(value: object) -> str:
    text = value if isinstance(value, str) else to_yaml(value)
    return text if len(text) <= 80 else text[:77] + "..."
