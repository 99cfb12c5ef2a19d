"""Two compared runs in words: the verdict, and every difference. Pure."""

from __future__ import annotations

from runner.common.output import field
from runner.provenance.compared import Compared

_TITLES = {
    "record": "records",
    "files": "files",
    "versions": "versions",
    "settings": "settings",
    "rows": "rows",
    "losses": "losses",
    "results": "results",
    "machine": "machine",
}


def verdict_lines(compared: Compared) -> list[str]:
    """Identical, or the first thing that differs, and whether the machine does."""
    one, other = compared.one.manifest, compared.other.manifest
    first = compared.first
    if first is None:
        lines = [field("identical", f"{one.run} and {other.run}")]
        files = sum(each.kind != "remote" for each in one.files)
        lines.append(
            field(
                "inputs",
                f"{files} files, {len(one.python.packages)} packages, plan {one.plan_hash[:7]}",
            )
        )
        elsewhere = [each.text for each in compared.found if each.what == "places"]
        lines += [field("", text.removeprefix("places: ")) for text in elsewhere]
        results = one.results
        if compared.steps is not None:
            lines.append(field("losses", f"the first {compared.steps} steps, bit for bit"))
            return lines
        if results and results.losses:
            losses = results.losses
            text = f"{losses.count} logged steps, bit for bit, sha256 {losses.sha256[:12]}"
            lines.append(field("losses", text))
        if results and results.adapter_sha256:
            lines.append(field("adapter", f"sha256 {results.adapter_sha256}"))
        elif results and results.output:
            lines.append(field("output", f"sha256 {results.output.sha256}"))
        return lines
    lines = [field("different", f"{_TITLES[first.group]}: {first.text}")]
    more = sum(each.decides for each in compared.found) - 1
    if more:
        lines.append(field("", f"and {more} more: runner diff {one.run} {other.run}"))
    if not any(each.decides and each.group in ("losses", "results") for each in compared.found):
        lines.append(field("results", "the same all the same, as far as they are compared"))
    machine = [each.text for each in compared.found if each.group == "machine"]
    if first.group in ("losses", "results") and machine:
        lines.append(field("machine", "; ".join(machine)))
    return lines


def diff_lines(compared: Compared) -> list[str]:
    """Every difference in words, by what it is of."""
    one, other = compared.one.manifest, compared.other.manifest
    lines = [f"{one.run} → {other.run}"]
    for group, title in _TITLES.items():
        texts = [each.text for each in compared.found if each.group == group]
        lines += [field(title if not number else "", text) for number, text in enumerate(texts)]
    if len(lines) == 1:
        lines.append("no difference")
    for side in (one, other):
        lines += [field("note", f"{side.run}: {note}") for note in side.notes]
    return lines
