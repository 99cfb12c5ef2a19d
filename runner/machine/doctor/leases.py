"""Who owns the folder of leases, and what that means. Reading is the edge; judging is pure.

Imports the standard library, common.packaged, machine.leases and the doctor's own modules.
"""

from __future__ import annotations

import os
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runner.common import file_systems
from runner.common.packaged import templates_folder
from runner.machine.doctor.check import Check
from runner.machine.doctor.gpus import Gpus
from runner.machine.leases.store import FOLDER_VARIABLE, LeaseStore, user_name

TMPFILES = "runner.tmpfiles.conf"

_MODE = 0o1777

_USUAL = Path("/run/lock/runner-leases")
"""The folder that the packaged line for systemd-tmpfiles makes."""


@dataclass(frozen=True)
class Leases:
    """The folder of leases as it is."""

    folder: Path
    given: bool
    """By $RUNNER_LEASES, not the one for all users of the machine."""
    is_folder: bool | None
    """None where there is nothing yet."""
    uid: int | None
    user: str
    mode: int | None
    own: bool
    """It belongs to the user who asks."""
    notes: tuple[str, ...] = ()
    """What could not be read in it."""
    disk: str | None = None
    """The type of the file system it lies on, where a lock there can't be believed."""


def read_leases() -> Leases:
    """Look at the folder; nothing is made."""
    book = LeaseStore()
    given = FOLDER_VARIABLE in os.environ
    trusted = file_systems.has_trusted_flock(book.folder)
    disk = None if trusted else file_systems.name_type(book.folder)
    try:
        about = book.folder.lstat()
    except OSError:
        return Leases(book.folder, given, None, None, "", None, own=False, disk=disk)
    book.claims()
    return Leases(
        folder=book.folder,
        given=given,
        is_folder=stat.S_ISDIR(about.st_mode),
        uid=about.st_uid,
        user=user_name(about.st_uid),
        mode=stat.S_IMODE(about.st_mode),
        own=about.st_uid == os.geteuid(),
        notes=book.notes,
        disk=disk,
    )


def repair_command(found: Leases) -> str:
    """The command that makes the folder root's with mode 1777, for an administrator."""
    if found.given or found.folder.parent != _USUAL.parent:
        folder = shlex.quote(str(found.folder))
        make = "" if found.is_folder else f"sudo mkdir -p {folder} && "
        return f"{make}sudo chown -h root: {folder} && sudo chmod 1777 {folder}"
    source, target = shlex.quote(str(templates_folder() / TMPFILES)), "/etc/tmpfiles.d/runner.conf"
    return f"sudo install -m 644 {source} {target} && sudo systemd-tmpfiles --create {target}"


def judge_leases(found: Leases) -> tuple[Literal["ok", "warning", "problem"], str, str | None]:
    """Status, what was found, and what to do, as in runner.machine.doctor.check.Check."""
    told, fix = "; ".join([str(found.folder), *found.notes]), repair_command(found)
    if found.disk is not None:
        text = (
            f"{told} is on {found.disk}, where locks may be given to several: GPU runs are refused"
        )
        return "problem", text, f"{FOLDER_VARIABLE} names a folder on a disk of this machine"
    if found.is_folder is None:
        text = f"{told} is made by the first GPU run, whose user then owns it"
        return "ok", text, f"so that nobody but root does: {fix}"
    if not found.is_folder or found.mode is None:
        return "problem", f"{told} is not a folder: GPU runs are refused", f"remove it; {fix}"
    if found.mode & 0o022 and not found.mode & stat.S_ISVTX:
        text = (
            f"{told} has mode {found.mode:04o}: anybody could remove leases; GPU runs are refused"
        )
        return "problem", text, fix
    if found.uid == 0:
        if found.mode == _MODE:
            return "ok", f"{told} belongs to root: leases are removed by who wrote them alone", None
        text = f"{told} has mode {found.mode:04o}: other users can't start GPU runs"
        return "warning", text, fix
    who = "you" if found.own else found.user
    text = f"{told} belongs to {who}, who could remove the leases of others"
    if found.mode != _MODE:
        text += f"; its mode is {found.mode:04o}: other users can't start GPU runs"
    return ("ok" if found.own and found.mode == _MODE else "warning"), text, fix


def leases_check(leases: Leases, gpus: Gpus) -> Check:
    """Whose the folder is in which runs say which GPUs they have (docs/gpus.md)."""
    if not gpus.cards:
        return Check("leases", "skipped", "not looked at: there is no GPU to take")
    status, found, advice = judge_leases(leases)
    return Check("leases", status, found, advice)
