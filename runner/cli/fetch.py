"""`runner fetch JOB`: download weights and rows into the caches, and print what is here."""

from __future__ import annotations

import re

from runner.cli.fetch_mgm import print_fetched_mgm
from runner.common import terminal
from runner.common.output import Output, field, table
from runner.common.units import format_bytes
from runner.launch.fetch_job import Item, fetch_job
from runner.launch.fetch_mgm import fetch_mgm
from runner.launch.jobs import is_of_toolkit, load_job


def fetch_inputs(name: str, sets: list[str], *, as_json: bool) -> int:
    """0 where all of it is here, 2 for a wrong job or a file that no one can fetch, 3 where the
    hub, the disk or the content refuses.
    """
    out = Output(as_json=as_json)
    loaded = load_job(name, sets)
    if is_of_toolkit(loaded):  # has sources of its own, which no hub lists
        return print_fetched_mgm(fetch_mgm(loaded, out), out)
    done = fetch_job(loaded, out)
    out.result(done.to_record(), _lines(done.items))
    for error in done.complaints:
        terminal.say("\n".join(error.lines()))
    return done.exit_code


def _lines(items: list[Item]) -> list[str]:
    rows = []
    for item in items:
        split = f" ({item.split})" if item.split else ""
        seconds = item.seconds
        rows.append(
            [
                ", ".join(item.fields),
                f"{item.source}{split}",
                _short(item.revision),
                format_bytes(item.size_bytes) if item.size_bytes is not None else "-",
                (item.sha256 or "-")[:12],
                item.state if seconds is None else f"{item.state} in {seconds:.1f} s",
                item.where or "-",
            ]
        )
    lines = table(["FIELD", "SOURCE", "REVISION", "SIZE", "SHA256", "STATE", "WHERE"], rows)
    fetched = [item for item in items if item.state == "fetched"]
    good = sum(item.is_here for item in items)
    if good < len(items):
        lines.append(f"{good} of {len(items)} are here")
    elif fetched:
        came = sum(item.fetched_bytes for item in fetched)
        lines.append(field("all here", f"{format_bytes(came)} came over the network"))
    else:
        lines.append("all here")
    return lines


def _short(revision: str | None) -> str:
    """A commit in seven letters; other revisions whole."""
    if revision is None:
        return "-"
    return revision[:7] if re.fullmatch(r"[0-9a-f]{40}", revision) else revision
