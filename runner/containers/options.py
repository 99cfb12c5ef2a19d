"""Words of container.arguments as docker run takes them, and which are known to be harmless.

Pure; imports runner.common.errors only. An option that is not on the list counts as weakening the
container's protections, since new versions of docker add options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runner.common.errors import nearest


def _any(value: str) -> bool:
    return True


def _label(value: str) -> bool:
    """Not one of those by which runs are found again, and ended."""
    return not value.startswith("dev.runner.")


def _variable(value: str) -> bool:
    """With its value: a bare name would pass on the caller's own, a secret too. Not those that say
    which GPUs there are, nor those by which runner speaks with what it starts.
    """
    name, equals, _ = value.partition("=")
    return bool(equals) and not name.startswith(("NVIDIA_", "RUNNER_"))


def _positive(value: str) -> bool:
    return value.isdigit()


HARMLESS: dict[str, Callable[[str], bool]] = {
    "--add-host": _any,
    "--blkio-weight": _any,
    "--cap-drop": _any,
    "--cpu-period": _any,
    "--cpu-quota": _any,
    "--cpu-shares": _any,
    "--cpus": _any,
    "--cpuset-cpus": _any,
    "--cpuset-mems": _any,
    "--dns": _any,
    "--dns-option": _any,
    "--dns-search": _any,
    "--domainname": _any,
    "--env": _variable,
    "--hostname": _any,
    "--label": _label,
    "--memory-reservation": _any,
    "--oom-score-adj": _positive,
    "--shm-size": _any,
    "--stop-timeout": _any,
    "--ulimit": _any,
}
"""Options with a value: whether the value is harmless too."""
HARMLESS_FLAGS = frozenset(("--init", "--no-healthcheck"))
_SHORT = {"-c": "--cpu-shares", "-e": "--env", "-h": "--hostname", "-l": "--label"}
_FORBIDDEN_VALUES = {
    "--env": "NAME=VALUE, of a name that begins neither with NVIDIA_ nor with RUNNER_",
    "--label": "a label that does not begin with dev.runner.",
    "--oom-score-adj": "0 or more",
}


@dataclass(frozen=True)
class Undoing:
    """An argument that undoes what closes the container, or is not known not to."""

    position: int
    """Of its first word in container.arguments, from 0."""
    words: str
    why: str
    expected: str
    nearest: str | None


def undoing_arguments(words: Sequence[str]) -> list[Undoing]:
    """What of container.arguments is not known to be harmless, read word by word as docker does."""
    found: list[Undoing] = []
    place = 0
    while place < len(words):
        word = words[place]
        name, equals, value = word.partition("=")
        name = _SHORT.get(name, name)
        step = 1
        if name in HARMLESS and not (equals and word.startswith("-") and word[1] != "-"):
            if not equals:
                step = 2
                value = words[place + 1] if place + 1 < len(words) else ""
            if not equals and place + 1 >= len(words):
                found.append(_bad(place, words, 1, "lacks its value, and would take the image's"))
            elif not HARMLESS[name](value):
                told = _FORBIDDEN_VALUES[name]
                found.append(_bad(place, words, step, f"is harmless only with {told}"))
        elif word not in HARMLESS_FLAGS:
            why = (
                "is not known to leave the container closed"
                if word.startswith("-") and word not in ("-", "--")
                else "is no option: docker would take it for the image"
            )
            found.append(_bad(place, words, 1, why))
        place += step
    return found


def _bad(place: int, words: Sequence[str], count: int, why: str) -> Undoing:
    known = sorted({*HARMLESS, *HARMLESS_FLAGS})
    word = words[place].partition("=")[0]
    return Undoing(
        position=place,
        words=" ".join(words[place : place + count]),
        why=why,
        expected=f"one of {', '.join(known)}",
        nearest=nearest(word, [one for one in known if one != word], 0.7),
    )
