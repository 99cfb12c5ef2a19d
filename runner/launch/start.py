"""Start the supervisor as a process of its own, and leave it once it has written its pid.

Standard library and the run's folder. It keeps nothing of the caller's terminal: a session of its
own (no SIGHUP, no Ctrl-C), no stdin, its output in the run's log.
"""

from __future__ import annotations

import hashlib
import signal
import subprocess
import time

from runner.common import durable
from runner.common.errors import RunnerError
from runner.common.output import Output, field
from runner.common.own_python import module_argv, utf8_environment
from runner.plans.base import Plan
from runner.plans.plan_file import plan_yaml
from runner.runs.folder import RunFolder
from runner.runs.records import supervisor_of
from runner.runs.state import state_of

POLL_SECONDS = 0.05


def start_supervisor(
    folder: RunFolder, plan: Plan, *, resume: bool, wait: bool
) -> subprocess.Popen[bytes]:
    """Start it in a session of its own, on this very plan."""
    words = {"--resume": resume, "--wait": wait, "--share": plan.launch.share}
    said = [word for word, wanted in words.items() if wanted]
    said += ["--plan", hashlib.sha256(plan_yaml(plan).encode()).hexdigest()]
    with folder.open_log(folder.supervisor_log) as log:
        return subprocess.Popen(
            module_argv("runner.supervisor", str(folder.path), *said),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=utf8_environment(),
        )


def leave(
    folder: RunFolder, supervisor: subprocess.Popen[bytes], out: Output, *, resumed: bool
) -> int:
    """Print the run's name once its supervisor has taken it over; 0, or as it refused.

    That takes a second: then the GPUs are the run's, or it waits for them.
    """
    try:
        while not took_over(folder, supervisor):
            code = supervisor.poll()
            if code is not None and not took_over(folder, supervisor):
                return _refused(folder, code, out)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        supervisor.send_signal(signal.SIGINT)  # who breaks off a start wants no run
        raise
    name = folder.name
    out.say(field("detached", f"runner attach {name} shows it · runner stop {name} ends it"))
    out.result(
        {
            "run": name,
            "folder": str(folder.path),
            "state": state_of(folder),
            "supervisor_pid": supervisor.pid,
            "resumed": resumed,
        },
        [name],
    )
    return 0


def said_by_supervisor(folder: RunFolder) -> list[str]:
    """Why a supervisor started nothing: a refusal goes to its log, for there is no outcome."""
    try:
        content = durable.read_record(folder.supervisor_log, durable.MAX_JSON_BYTES)
        lines = content.decode(errors="replace").splitlines()
    except OSError:
        return []
    begins = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    return lines[begins[-1] :] if begins else []


def took_over(folder: RunFolder, supervisor: subprocess.Popen[bytes]) -> bool:
    """Whether the run is this supervisor's by its own record."""
    return supervisor_of(folder).get("pid") == supervisor.pid


def _refused(folder: RunFolder, code: int, out: Output) -> int:
    told = said_by_supervisor(folder)
    for line in told:
        out.say(line)
    if not told:
        raise RunnerError(
            f"the supervisor ended at once (exit code {code})", f"its log: {folder.supervisor_log}"
        )
    return code if code > 0 else 1
