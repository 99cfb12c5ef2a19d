"""Is a stage done and unchanged? Its marker says, keyed by a hash of its inputs and command.

    python stage.py state  --run RUN --name NAME --input PATH... --output PATH... -- COMMAND...
    python stage.py done   (the same)

`state` prints "done" or "todo REASON" (telling engine/stages.json); `done` writes the marker,
last and whole. A file up to 64 MiB counts by content, a larger one and those in folders by size and
time of change. The run folder's own path does not count, so a copy of a run folder is done where
the run was. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

if __package__:
    from .records import tell_stage
    from .whole import split_command, write_whole
else:  # in a run folder the scripts lie beside each other
    from records import tell_stage  # type: ignore[import-not-found, no-redef]
    from whole import split_command, write_whole  # type: ignore[import-not-found, no-redef]

SCHEMA_VERSION = 1
_BY_CONTENT_BYTES = 64 * 2**20
_IN_RUN = "$RUN_FOLDER"


def stage_key(run: Path, name: str, inputs: Sequence[Path], command: Sequence[str]) -> str:
    """The hash that a stage's marker is kept by."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "stage": name,
        "command": [word.replace(str(run), _IN_RUN) for word in command],
        "inputs": [[str(path).replace(str(run), _IN_RUN), fingerprint(path)] for path in inputs],
    }
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def fingerprint(path: Path) -> object:
    """What an input is, as far as a change of it matters; None where it is absent."""
    if path.is_dir():
        return [[str(each.relative_to(path)), *_seen(each)] for each in _files(path)]
    if not path.exists():
        return None
    if path.stat().st_size > _BY_CONTENT_BYTES:
        return _seen(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            each = Path(place, name)
            if each.exists():
                yield each


def _seen(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def outputs_now(run: Path, outputs: Sequence[Path]) -> dict[str, list[list[object]] | int | None]:
    """Sizes of a stage's outputs, by their path in the run folder; None where one is absent."""
    found: dict[str, list[list[object]] | int | None] = {}
    for path in outputs:
        name = str(path).replace(str(run), _IN_RUN)
        if path.is_dir():
            found[name] = [
                [str(each.relative_to(path)), each.stat().st_size] for each in _files(path)
            ]
        else:
            found[name] = path.stat().st_size if path.exists() else None
    return found


def why_to_run(marker: object, key: str, outputs: Mapping[str, object]) -> str | None:
    """Why a stage has to run, or None where it is done and unchanged."""
    if not isinstance(marker, dict) or marker.get("schema_version") != SCHEMA_VERSION:
        return "not run yet"
    if marker.get("key") != key:
        return "its inputs or its command changed"
    if marker.get("outputs") != json.loads(json.dumps(outputs)):
        return "its outputs changed"
    return None


def marker_path(run: Path, name: str) -> Path:
    return run / "stages" / f"{name}.json"


def read_marker(path: Path) -> object:
    """The marker, or None where there is none or it is damaged: then the stage runs again."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("action", choices=["state", "done"])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--input", type=Path, action="append", default=[])
    parser.add_argument("--output", type=Path, action="append", default=[])
    options, command = split_command(sys.argv[1:])
    given = parser.parse_args(options)
    key = stage_key(given.run, given.name, given.input, command)
    outputs = outputs_now(given.run, given.output)
    path = marker_path(given.run, given.name)
    if given.action == "state":
        reason = why_to_run(read_marker(path), key, outputs)
        if reason is not None:
            tell_stage(given.run, stage=given.name)
        print("done" if reason is None else f"todo {reason}")
        return 0
    missing = [name for name, size in outputs.items() if size is None]
    if missing:
        print(f"{given.name}: did not leave {', '.join(missing)}", file=sys.stderr)
        return 1
    record = {"schema_version": SCHEMA_VERSION, "stage": given.name, "key": key, "outputs": outputs}
    write_whole(path, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
