"""What a person should know before a bundle leaves the machine.

Imports runner.provenance and this package's `gathering`.
"""

from __future__ import annotations

import re
from pathlib import Path

from runner.provenance.bundle.gathering import Gathering
from runner.provenance.environment import looks_secret

_ABSOLUTE = re.compile(r"(?:^|[=:\s])(/[^\s:]+)")


def add_remarks(gathered: Gathering) -> None:
    """What a person should know before this leaves the machine."""
    record = gathered.plan.model_dump(mode="json")
    if gathered.plan.on_end:
        gathered.notes.append("plan.yaml holds on_end as the job says it; a replay leaves it out")
    named: dict[str, str] = dict(record.get("environment") or {}) if "script" in record else {}
    for name in named:
        if looks_secret(name):
            gathered.notes.append(f"plan.yaml holds environment.{name} with its value")
    texts = {f"environment.{name}": text for name, text in named.items()}
    if "script" in record:
        texts |= {f"arguments.{i}": text for i, text in enumerate(record["arguments"])}
        script = Path(record["script"]["path"])
        beside = script.suffix == ".py" and any(
            each != script for each in script.parent.glob("*.py")
        )
        if record["workdir"] == "source" or beside or any("{source}" in t for t in texts.values()):
            gathered.notes.append(
                f"of the script's folder only {script.name} is in it; what it reads beside "
                "itself belongs in inputs"
            )
    for what, text in texts.items():
        if (path := _ABSOLUTE.search(text)) is not None:
            gathered.notes.append(f"{what} names {path[1]}, a path of this machine")
    if gathered.plan.container is not None:
        for mount in gathered.plan.container.mounts:
            gathered.notes.append(f"container.mounts names {mount.source}, a path of this machine")
