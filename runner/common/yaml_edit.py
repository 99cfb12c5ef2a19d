"""Set fields in a YAML text and leave everything else, comments included, unchanged.

Pure. Imports pyyaml, runner.common.errors and runner.common.yaml_text. Values are replaced in
place; a missing field is added after the last one of its block. The result is parsed again, and
must differ in the given fields only.
"""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from runner.common.errors import SpecError
from runner.common.yaml_text import Loader, parse, to_yaml


class NotEdited(Exception):
    """The text can't be edited in place; the message says why."""


def set_fields(text: str, fields: Mapping[str, object]) -> str:
    """The text with `fields` (dotted name -> value) set; None removes a field's value (null).

    Raises NotEdited where the text has a form that this does not edit.
    """
    try:
        wanted, _ = parse(text, "the job")
        for name, value in fields.items():
            text = _set(text, name.split("."), value)
            _put(wanted, name.split("."), value)
        read, _ = parse(text, "the edited job")
    except (yaml.YAMLError, SpecError) as error:
        raise NotEdited(f"it can't be edited in place: {str(error).splitlines()[0]}") from None
    if read != wanted:  # an alias, or a form that nobody thought of
        raise NotEdited(f"{', '.join(fields)} could not be set without changing something else")
    return text


def _put(value: object, path: list[str], new: object) -> None:
    """Set what lies at `path` in nested lists and mappings; nothing where it leads elsewhere."""
    for part in path[:-1]:
        if isinstance(value, list):
            value = value[int(part)]
        elif isinstance(value, dict):
            value = value.setdefault(part, {})
    if isinstance(value, list):
        value[int(path[-1])] = new
    elif isinstance(value, dict):
        value[path[-1]] = new


def _set(text: str, path: list[str], value: object) -> str:
    node = yaml.compose(text, Loader)
    flow = False
    for depth, part in enumerate(path):
        flow = flow or bool(getattr(node, "flow_style", False))
        if isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            continue
        if not isinstance(node, yaml.MappingNode):
            raise NotEdited(f"{'.'.join(path[:depth])} is no block")
        inner = {key.value: child for key, child in node.value}.get(part)
        if inner is None:
            return _added(text, node, _nested(path[depth + 1 :], value), part)
        node = inner
    if node is None:
        raise NotEdited("there is nothing in it")
    return _replaced(text, node, _rendered(value, flow=flow))


def _rendered(value: object, *, flow: bool) -> str:
    """A value on one line; inside of [] and {} commas and brackets are quoted."""
    return to_yaml([value])[1:-1] if flow else to_yaml(value)


def _nested(path: list[str], value: object) -> object:
    for part in reversed(path):
        value = {part: value}
    return value


def _replaced(text: str, node: yaml.Node, new: str) -> str:
    start, end = node.start_mark.index, node.end_mark.index
    if _is_block(node):
        raise NotEdited("a block of several lines is not replaced")
    if text[start:end].endswith("\n"):  # a text of several lines: | or >
        new += "\n"
    if start and not text[start - 1].isspace() and text[start - 1] not in "[{":
        new = f" {new}"  # nothing stood behind "name:"
    return text[:start] + new + text[end:]


def _added(text: str, block: yaml.MappingNode, value: object, name: str) -> str:
    flow = bool(block.flow_style)
    line = f"{_rendered(name, flow=flow)}: {_rendered(value, flow=flow)}"
    if not block.value:
        raise NotEdited(f"there is no key beside which {name} could be added")
    last_key, last = block.value[-1]
    if flow:
        end = last.end_mark.index
        return f"{text[:end]}, {line}{text[end:]}"
    indent = " " * last_key.start_mark.column
    while _is_block(last) and last.value:  # a block's end mark stands where the next thing begins
        last = last.value[-1][1] if isinstance(last, yaml.MappingNode) else last.value[-1]
    body = text[: last.end_mark.index].rstrip()
    end = text.find("\n", len(body))
    if end < 0:
        return f"{text}\n{indent}{line}\n"
    return f"{text[:end]}\n{indent}{line}{text[end:]}"


def _is_block(node: object) -> bool:
    return isinstance(node, yaml.CollectionNode) and not node.flow_style
