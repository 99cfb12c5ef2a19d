"""Which GPUs CUDA_VISIBLE_DEVICES leaves, by CUDA's own rules. Pure; standard library only.

The rules are CUDA's (CUDA C++ Programming Guide, "CUDA environment variables"), in the details as
torch has them (torch.cuda._parse_visible_devices, _transform_uuid_to_ordinals; tests compare):

- unset: all; an empty text: none;
- the names are read in order, up to the first that is none of a GPU: `0,-1,1` is GPU 0 alone;
- a GPU named twice: no GPU at all;
- a number is read as strtoul does (`1gpu` is 1; spaces before it do not count);
- a name that begins with GPU- is the begin of exactly one UUID, in a list of such names;
- MIG-...: instances of one GPU. Runner trains on whole GPUs, so these are named and refused.

NVIDIA_VISIBLE_DEVICES is the container toolkit's, and says nothing to CUDA.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
_NUMBER = re.compile(r"[+-]?[0-9]{1,4000}")  # int() takes 4,300 digits
_SHOWN = 60
"""Letters of a name that are shown: whoever sets it can write a book into it."""


@dataclass(frozen=True)
class Visible:
    """What the variable leaves of the GPUs there are."""

    positions: tuple[int, ...]
    """Of the GPUs that are visible, in its order; an index into the list that was given."""
    hides_all: str = ""
    """Why none is, in a few words; empty text where one is, or where there is no GPU."""
    mig: str = ""
    """The MIG instance that it names in place of a GPU; empty text for none."""
    ignored: str = ""
    """What CUDA does not read of it, and why, in a sentence; empty text where it reads all."""
    by_number: bool = False
    """Whether it names GPUs by numbers, whose meaning depends on CUDA_DEVICE_ORDER."""


def visible(text: str | None, uuids: Sequence[str]) -> Visible:
    """What `text`, the value of CUDA_VISIBLE_DEVICES (None: not set), leaves of these GPUs.

    Args:
        uuids: of all GPUs of the machine, in the order that their numbers count in.
    """
    if text is None:
        return Visible(tuple(range(len(uuids))))
    names = text.split(",")
    if text.startswith("MIG-"):
        return Visible((), f"{_said(text)} names a MIG instance", mig=names[0][:_SHOWN])
    by_uuid = text.startswith("GPU-")
    read = _read(names, by_uuid=by_uuid)
    if twice := _first_repeated(read):
        return Visible(
            (), f"{_said(text)} names {_cut(twice)} twice, for which CUDA shows no GPU at all"
        )
    found: list[int] = []
    for name in read:
        position = _position(name, uuids)
        if position is None:
            break
        if position in found:
            reason = f"{_said(text)} names GPU {position} twice, for which CUDA shows no GPU at all"
            return Visible((), reason)
        found.append(position)
    if len(found) == len(names):
        return Visible(tuple(found), by_number=not by_uuid)
    wrong, rest = names[len(found)], names[len(found) + 1 :]
    return _up_to(found, text, wrong, rest, by_number=not by_uuid)


def _read(names: Sequence[str], *, by_uuid: bool) -> list[str]:
    """The names up to the first that can be none of a GPU; numbers as they count, without zeros."""
    read: list[str] = []
    for name in names:
        number = _NUMBER.match(name.strip())
        if by_uuid and name.startswith("GPU-"):
            read.append(name)
        elif not by_uuid and number and int(number[0]) >= 0:
            read.append(str(int(number[0])))
        else:
            break
    return read


def _first_repeated(read: Sequence[str]) -> str:
    return next((name for place, name in enumerate(read) if name in read[:place]), "")


def _position(name: str, uuids: Sequence[str]) -> int | None:
    if not name.startswith("GPU-"):
        return int(name) if int(name) < len(uuids) else None
    found = [position for position, uuid in enumerate(uuids) if uuid.startswith(name)]
    return found[0] if len(found) == 1 else None  # several: it is not enough of a UUID


def _up_to(found: list[int], text: str, wrong: str, rest: list[str], *, by_number: bool) -> Visible:
    """What stands before the first name of no GPU."""
    if not found:
        return Visible((), _why_none(text, wrong))
    behind = f", nor what follows it ({_cut(','.join(rest))!r})" if rest else ""
    ignored = f"{_said(text)}: {_cut(wrong)!r} is no GPU here, so CUDA does not read it{behind}"
    return Visible(tuple(found), ignored=ignored, by_number=by_number)


def _why_none(text: str, wrong: str) -> str:
    if not text.strip():
        return f"{VARIABLE} is set and empty, which hides every GPU"
    if text == "NoDevFiles":
        return f"{_said(text)} hides every GPU (Slurm sets it in a job without GPUs)"
    return f"{_said(text)} hides every GPU: {_cut(wrong)!r}, which comes first, is none"


def _said(text: str) -> str:
    return f"{VARIABLE}={_cut(text)}"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def order_note(seen: Visible, order: str | None, names: Sequence[str]) -> str:
    """What is to be said of numbers where GPUs differ and CUDA would count them otherwise.

    Args:
        order: the value of CUDA_DEVICE_ORDER.
        names: of the GPUs, in the driver's order (PCI_BUS_ID), which runner counts in.
    """
    if not seen.by_number or order == "PCI_BUS_ID" or len(set(names)) < 2:
        return ""
    taken = ", ".join(f"GPU {position} ({names[position]})" for position in seen.positions)
    return (
        f"{VARIABLE} names GPUs by number; taken in nvidia-smi's order: {taken}. CUDA itself "
        f"counts the fastest first where {ORDER} is not PCI_BUS_ID, and these GPUs differ"
    )
