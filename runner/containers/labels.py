"""The labels by which a run's container is found again, and which host and process they mean.

Standard library, runner.common.processes and runner's version only. Labels are the only memory of a
run that outlives both its supervisor and dockerd.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from runner import __version__
from runner.common.process_times import start_ticks

PREFIX = "dev.runner."
RUN = PREFIX + "run"
"""The run's absolute folder."""
JOB = PREFIX + "job"
PLAN = PREFIX + "plan"
"""The plan's hash."""
UID = PREFIX + "uid"
SUPERVISOR = PREFIX + "supervisor"
"""PID:START_TICKS of the process that watches the container."""
HOST = PREFIX + "host"
"""See `host_id`."""
VERSION = PREFIX + "version"


def run_labels(
    run_folder: Path, job: str, plan_hash: str, uid: int, supervisor: str
) -> dict[str, str]:
    """All labels of a run's container; `supervisor` as `supervisor_label` gives it.

    Raises:
        ValueError: the folder is not absolute, or `supervisor` is not PID:START_TICKS. Either
            would make a container that is never found again, or taken for an orphan.
    """
    if not run_folder.is_absolute():
        raise ValueError(f"expected an absolute run folder, not {run_folder}")
    if parse_supervisor(supervisor) is None:
        raise ValueError(f"expected PID:START_TICKS, not {supervisor!r}")
    return {
        RUN: str(run_folder),
        JOB: job,
        PLAN: plan_hash,
        UID: str(uid),
        SUPERVISOR: supervisor,
        HOST: host_id(),
        VERSION: __version__,
    }


def supervisor_label(pid: int | None = None) -> str:
    """PID:START_TICKS of a living process, this one by default.

    Raises:
        ProcessLookupError: there is no such process.
    """
    pid = os.getpid() if pid is None else pid
    ticks = start_ticks(pid)
    if ticks is None:
        raise ProcessLookupError(f"no process {pid}")
    return f"{pid}:{ticks}"


def parse_supervisor(text: str) -> tuple[int, int] | None:
    """The pid and start ticks of a label; None where it is not one."""
    pid, _, ticks = text.partition(":")
    numbers = parse_number(pid), parse_number(ticks)
    return None if numbers[0] is None or numbers[1] is None else (numbers[0], numbers[1])


def parse_number(text: str) -> int | None:
    """A number as a label has it: 1 to 19 ASCII digits. int() takes "²", "1_0" and " 1" too, and
    raises on thousands of digits.
    """
    return int(text) if re.fullmatch("[0-9]{1,19}", text) else None


def host_id() -> str:
    """Names the machine and pid namespace in which pids of a label mean something: 32 hex digits.

    Where two machines share a daemon (DOCKER_HOST), each sees only its own processes and would
    take the other's supervisors for dead; so would `runner` in two containers beside the same
    socket. Of the machine id, the host's name (clones of a virtual machine often share the id) and
    the pid namespace. Hashed, since the machine id is not to be shown around (machine-id(5)). A
    reboot keeps it, so that containers left from before are still known as ours.
    """
    machine = ""
    for place in ("/etc/machine-id", "/var/lib/dbus/machine-id", "/proc/sys/kernel/random/boot_id"):
        try:
            machine = Path(place).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if machine and machine != "uninitialized":
            break
    try:
        # of the namespace of all processes on a host the number is always the same
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    told = "\0".join(("dev.runner", machine, os.uname().nodename, namespace))
    return hashlib.sha256(told.encode()).hexdigest()[:32]
