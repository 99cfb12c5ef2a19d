"""Write down the flags of the toolkit's real parser as JSON; to a file, as libraries print much.

Run once for a toolkit commit, by the interpreter that can import the toolkit:
    PYTHONPATH=TOOLKIT python record_flags.py COMMIT flags.json
Imports the standard library; transformers and the toolkit inside `parser_actions`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

# Of the machine or the moment, not of the parser.
_VARYING = ("--logging_dir", "--local_rank")


def parser_actions() -> Iterable[argparse.Action]:
    """The actions of the very parser that the toolkit's train() builds."""
    import transformers
    from mgm.train import train  # type: ignore[import-not-found]

    parser = transformers.HfArgumentParser(
        (train.ModelArguments, train.DataArguments, train.TrainingArguments)
    )
    return parser._actions


def flag_record(action: argparse.Action) -> dict[str, object]:
    """What a flag takes: its type's name, choices, how many values and its default."""
    record: dict[str, object] = {"type": type_name(action)}
    if action.choices is not None:
        record["choices"] = sorted(str(choice) for choice in action.choices)
    if action.nargs is not None:
        record["nargs"] = action.nargs
    if action.option_strings[0] not in _VARYING:
        record["default"] = plain(action.default)
    return record


def type_name(action: argparse.Action) -> str:
    """ "bool", "int", "float", "str", "switch" (takes no value), or the type's own name."""
    if action.nargs == 0:
        return "switch"
    name = getattr(action.type, "__name__", None)
    if name == "string_to_bool":
        return "bool"
    if action.choices is not None:  # transformers wraps the types of choices
        return "str"
    return name or "str"


def plain(value: object) -> object:
    """A default as JSON can hold it."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value)


def as_text(head: dict[str, object], flags: dict[str, dict[str, object]]) -> str:
    """One JSON document with a line for each flag, so that two versions compare by line."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    rows = [f"  {json.dumps(name)}: {json.dumps(flags[name])}" for name in sorted(flags)]
    return "{\n" + "\n".join(lines) + '\n "flags": {\n' + ",\n".join(rows) + "\n }\n}\n"


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    import transformers

    flags = {
        option: flag_record(action)
        for action in parser_actions()
        for option in action.option_strings
        if option.startswith("--") and option != "--help"
    }
    head = {
        "schema_version": 1,
        "source": f"dvlab-research/MGM {sys.argv[1]} mgm/train/train.py",
        "transformers": transformers.__version__,
    }
    Path(sys.argv[2]).write_text(as_text(head, flags), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
