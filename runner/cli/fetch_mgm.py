"""Print what `runner fetch` of a job on the MGM toolkit found and brought."""

from __future__ import annotations

from runner.common import terminal
from runner.common.output import Output, field, table
from runner.common.units import format_bytes
from runner.launch.fetch_mgm import FetchedMgm, MgmItem


def print_fetched_mgm(done: FetchedMgm, out: Output) -> int:
    """The exit code."""
    out.result(done.to_record(), _lines(done.items))
    for line in done.complaints:
        terminal.say(line)
    return done.exit_code


def _lines(items: list[MgmItem]) -> list[str]:
    rows = []
    for item in items:
        fetched = item.state == "fetched"
        state = f"{item.state} in {item.seconds:.1f} s" if fetched else item.state
        rows.append(
            [
                item.name,
                _source(item),
                (item.revision or "-")[:7],
                format_bytes(item.size_bytes) if item.size_bytes is not None else "-",
                (item.sha256 or "-")[:12],
                "optional, absent" if item.is_done_without else state,
                item.where or "-",
            ]
        )
    lines = table(["WHAT", "SOURCE", "REVISION", "SIZE", "SHA256", "STATE", "WHERE"], rows)
    for item in items:
        if item.verified:
            lines.append(field("verified", f"{item.name}: {'; '.join(item.verified)}"))
    if plain := [item.name for item in items if item.authenticated is False]:
        lines.append(
            field(
                "unproven",
                f"{', '.join(plain)}: from a mirror or over plain http, without a hash that their "
                "makers state. The checks above hold; who wrote the files can't be verified",
            )
        )
    if own := [item.name for item in items if item.source == "your own" and item.where]:
        lines.append(field("your own", f"{', '.join(own)}: used as they are, nothing verified"))
    good = sum(item.is_here for item in items)
    came = sum(item.fetched_bytes for item in items)
    if good < len(items):
        lines.append(f"{good} of {len(items)} are here")
    elif came:
        lines.append(field("all here", f"{format_bytes(came)} came over the network"))
    else:
        lines.append("all here")
    return lines


def _source(item: MgmItem) -> str:
    """Short: the host of an address, the hub's id."""
    text = str(item.source)
    return text.partition("://")[2].partition("/")[0] or text
