"""Explain a failed `docker run` or `podman run`: from its wording to a job's field and advice.

Pure: text in, text out. Imports the standard library and `refusal_table`, which has the wordings.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from runner.containers.refusal_table import TABLE

# setrlimit(2) numbers on Linux (asm-generic/resource.h), by the names that --ulimit takes
_RLIMITS = (
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
)
_FLAGS = {
    "--ulimit": "container.ulimits",
    "--memory": "container.memory",
    "--memory-swap": "container.memory",
    "--shm-size": "container.shm_size",
    "--pids-limit": "container.pids",
    "--network": "container.network",
    "--net": "container.network",
    "--mount": "container.mounts",
    "--volume": "container.mounts",
}
LONGEST = 4000  # letters of a message that are looked at; nothing bounds what a hook prints
_OWN = (125, 126, 127)
"""The codes with which docker and podman say that they failed themselves."""


_RULES = tuple((re.compile(row.seen, re.IGNORECASE), row) for row in TABLE)


def explain_run(stderr: str, exit_code: int) -> tuple[str, str] | None:
    """What is wrong and what to do, for a container that was not started; None where the code is
    the container's own, or the words are not known.

    A program in the container may end with 125 to 127 too: only what docker or podman themselves
    are known to say is taken for theirs.
    """
    lost = re.search(r"failed to initialize nvml: ([^\n]*)\s*$", stderr[-LONGEST:], re.IGNORECASE)
    if lost and exit_code and "mismatch" not in lost[1].lower():
        return (  # a program's last words, with a code of its own
            f"the GPU was taken from the container: NVML: {lost[1].strip()}",
            "a systemctl daemon-reload does that under systemd cgroups; start the run again. "
            "With nvidia-container-toolkit 1.18 or newer and NVIDIA's runtime it does not happen",
        )
    if exit_code not in _OWN:
        return None
    if daemon_lost(stderr, exit_code):
        return (
            "the daemon went away while the container ran; the container may still run",
            "once the daemon is back, runner doctor --fix ends what runs without a supervisor",
        )
    said = last_error(stderr)
    for pattern, row in _RULES:
        match = pattern.search(said)
        if match:
            return _fill(row.meaning, match), _fill(row.way_out, match)
    return None


def daemon_lost(stderr: str, exit_code: int) -> bool:
    """Whether an attached client ended because dockerd did: 125 then says nothing of the container,
    whose processes run on under their shim (seen with kill -9 of dockerd 20.10, client 28.2).
    """
    lost = "error waiting for container: " in stderr
    return exit_code == 125 and lost and not last_error(stderr)


def last_error(stderr: str) -> str:
    """The client's own message in one line: without usage, pull progress and hints for help.

    Empty where nothing in `stderr` is docker's or podman's: then what is there is the program's.
    """
    lines = [line.strip() for line in stderr.splitlines()]
    for number in range(len(lines) - 1, -1, -1):
        if re.match(
            r"(?i)(docker|error|invalid argument|unknown (shorthand )?flag)\b", lines[number]
        ):
            rest = [
                line
                for line in lines[number:]
                if line and not re.match(r"See '|Run '|Usage:|ERRO\[|time=", line)
            ]
            return " ".join(rest)[:LONGEST]
    return ""


def discarded(stderr: str) -> tuple[str, ...]:
    """Settings that the daemon said it ignores, while it starts the container all the same.

    Docker warns "Your kernel does not support ... discarded" where the cgroup controller is not
    there: the limit that was asked for does not hold.
    """
    lines = (
        re.sub(r"^(WARNING:|time=.*? msg=)\s*", "", line.strip()) for line in stderr.splitlines()
    )
    return tuple(
        line
        for line in lines
        if re.search(r"(?i)does not support.*(discarded|without swap|ignored)", line)
    )


def _field(flag: str) -> str:
    """The job's field behind an option of `docker run`, such as "-m, --memory"."""
    names = [name for name in re.findall(r"--[a-z-]+", flag) if name in _FLAGS]
    return _FLAGS[names[0]] if names else "container.arguments"


def _ulimit(text: str) -> str:
    """A limit as ulimit(1) names it, of its name or of its number for setrlimit(2)."""
    if not text.isdigit():
        return text.lower()
    return _RLIMITS[int(text)] if int(text) < len(_RLIMITS) else text


_FORMS: dict[str, Callable[[str], str]] = {
    "ulimit": _ulimit,
    "ULIMIT": lambda text: _ulimit(text).upper(),
    "field": _field,
}


def _fill(text: str, match: re.Match[str]) -> str:
    """The text with the match's groups in place of {1}, {field:2} and their like."""

    # not str.format: what docker said may have braces
    def group(place: re.Match[str]) -> str:
        form, found = place[1], match[int(place[2])] or ""
        return _FORMS[form](found) if form else _shorten(found)

    return re.sub(r"\{(?:(\w+):)?(\d)\}", group, text)


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."
