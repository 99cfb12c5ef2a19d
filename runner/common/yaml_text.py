"""YAML text to plain values with the line of each, and back: safe, YAML 1.2's scalars.

Imports pyyaml and runner.common.errors. Knows no job. Reads files; writes nothing.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NoReturn

import yaml

from runner.common.errors import Problem, SpecError

FieldPath = tuple[str | int, ...]

MAX_FILE_BYTES = 1 << 20

MAX_NODES = 20_000  # a job has about a hundred; more is an alias bomb

MAX_RECORD_DEPTH = 32  # a plan has 7
MAX_RECORD_NODES = 50_000  # the largest plan has some two thousand


class Loader(yaml.SafeLoader):
    """Safe YAML with YAML 1.2's scalars: 1e-4 is a number, `no` and 12:30 are text."""

    yaml_implicit_resolvers: dict[str, object] = {}  # noqa: RUF012 - pyyaml's own protocol


for _tag, _pattern, _first in (
    ("bool", r"true|false|True|False|TRUE|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
    )


def _number(loader: Loader, node: yaml.ScalarNode) -> int:
    # pyyaml reads "010" as octal 8 and "0o10" not at all; YAML 1.2 has it the other way round
    text = node.value.replace("_", "")
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


Loader.add_constructor("tag:yaml.org,2002:int", _number)


class RecordLoader(yaml.SafeLoader):
    """YAML as runner itself writes its records: no aliases, no tags, of bounded depth and size.

    An alias in each line of ten multiplies to what no memory holds; and a whole number of a million
    digits takes hours. Raises yaml.YAMLError.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self._refuse("an alias, which no record of runner's has")
        self._depth, self._count = self._depth + 1, self._count + 1
        if self._depth > MAX_RECORD_DEPTH or self._count > MAX_RECORD_NODES:
            self._refuse("more values than a record has")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None:
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            if kind not in _TAGS[type(node)]:
                self._refuse(f"a value of kind {kind}")
            if kind != "str" and isinstance(node, yaml.ScalarNode) and len(node.value) > 40:
                self._refuse("a figure of more than 40 letters")
        return node

    def _refuse(self, what: str) -> NoReturn:
        mark = yaml.Mark("", 0, self.line, self.column, None, 0)
        raise yaml.MarkedYAMLError(problem=f"it holds {what}", problem_mark=mark)


_TAGS: dict[type[yaml.Node], tuple[str, ...]] = {
    yaml.ScalarNode: ("null", "bool", "int", "float", "str"),
    yaml.SequenceNode: ("seq",),
    yaml.MappingNode: ("map",),
}


class _Dumper(yaml.SafeDumper):
    """Quotes what `Loader` would otherwise take for something else; every value on one line."""

    yaml_implicit_resolvers = Loader.yaml_implicit_resolvers


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


def shown_path(path: Path) -> str:
    """The path as a user would type it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def dotted_name(key: FieldPath) -> str:
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
    return SpecError([Problem(where, dotted_name(key), problem, value, expected)])


def read_mapping(path: Path) -> tuple[dict[str, object], dict[FieldPath, int]]:
    shown = shown_path(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _refusal(shown, f"can't be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise _refusal(shown, f"is too long; a job file has at most {MAX_FILE_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refusal(shown, f"is not UTF-8 text (byte {error.start})") from None
    value, lines = parse(text, shown)
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


def parse(text: str, shown: str) -> tuple[object, dict[FieldPath, int]]:
    """Plain values of a YAML text, and the line of each. Raises SpecError naming `shown`:line."""
    lines: dict[FieldPath, int] = {}
    seen = 0

    def value_of(node: yaml.Node, key: FieldPath) -> object:
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
                shown, f"can't be read as {tag}", line, key=key, value=brief(node.value)
            ) from None

    def mapping_of(node: yaml.MappingNode, key: FieldPath) -> dict[str, object]:
        out: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refusal(shown, "a key must be plain text", line, key=key)
            name = str(key_node.value).encode(errors="backslashreplace").decode()
            if name in out:
                raise _refusal(
                    shown,
                    f"{name!r} is given twice",
                    line,
                    key=(*key, name),
                    expected="each field once",
                )
            lines[(*key, name)] = line
            out[name] = value_of(value_node, (*key, name))
        return out

    try:
        loader = Loader(text)
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


def brief(value: object) -> str:
    text = value if isinstance(value, str) else to_yaml(value)
    return text if len(text) <= 80 else text[:77] + "..."
