"""`python -m runner.engines.sft.fetch`: what to fetch, as JSON on stdin; what came of it on stdout.

In: {"quiet": bool, "wanted": [{"what", "source", "id", ...}]} (runner.launch.preflight.Wanted).
Out: one JSON object a line, in the order asked. Exit code 0, or that of the first refusal.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from runner.common import terminal
from runner.common.errors import EXIT_INTERRUPTED, RunnerError, bug
from runner.common.tensors_only import load_tensors_only


def main() -> int:
    """Fetch one after the other; one that can't be had does not keep the others away."""
    load_tensors_only()
    asked = json.load(sys.stdin)
    # their bars and notes would be drawn over ours; what matters of them comes as errors
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    quiet, code = bool(asked["quiet"]), 0
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries that print must not get between the answers
    for wanted in asked["wanted"]:
        began = time.monotonic()
        try:
            record = _fetch(wanted, quiet)
        except RunnerError as error:
            record = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
            code = code or error.exit_code
        except KeyboardInterrupt:
            terminal.say("\nstopped; the same command continues where it was")
            return EXIT_INTERRUPTED
        record["seconds"] = round(time.monotonic() - began, 1)
        terminal.put_json(record, stream=answers)
    return code


def _fetch(wanted: dict[str, Any], quiet: bool) -> dict[str, Any]:
    from runner.fetch import hub, modelscope, rows
    from runner.fetch.refusals import refusal

    def say(line: str) -> None:
        if not quiet:
            terminal.say(line)

    source, identity, revision = wanted["source"], wanted["id"], wanted.get("revision")
    what = f"{identity}@{revision}" if revision else str(identity)
    kind = "modelscope" if source == "modelscope" else "hub"
    try:
        if source == "builtin":
            return _builtin(Path(wanted["folder"]))
        if wanted["what"] == "rows":
            asked = rows.Asked(source, identity, revision, wanted["name"], wanted["split"])
            return rows.fetch_rows(asked, quiet=quiet, say=say).to_record()
        fetch_model = modelscope.fetch_model if source == "modelscope" else hub.fetch_model
        code = bool(wanted.get("trust_remote_code"))
        return fetch_model(identity, revision, code=code, quiet=quiet, say=say).to_record()
    except Exception as error:
        refused = refusal(error, what, kind)
        raise refused or bug(error) from error


def _builtin(folder: Path) -> dict[str, object]:
    from runner.engines.sft.inside import builtin_model as builtin

    builtin.fetch(folder)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return {
        "place": str(folder),
        "revision": None,
        "size_bytes": size,
        "fetched_bytes": size,
        "sha256": None,
        "rows": None,
    }


if __name__ == "__main__":
    terminal.guard_streams()
    sys.exit(main())
