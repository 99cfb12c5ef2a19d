"""`runner monitor`: a live view of GPUs or host, and of one run where one is named."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

from runner import durable
from runner.cli.output import Output
from runner.folder import RunFolder, all_runs, default_root, find_run
from runner.guard.nvml import Nvml, NvmlFailed, NvmlUnavailable
from runner.liveness import host_pid
from runner.report.monitor_view import Snapshot, gather, render


def watch(run: str | None, *, interval: float, once: bool, runs: Path | None, as_json: bool) -> int:
    """Show views until Ctrl-C (exit 0) or, with a RUN, until that run has ended.

    With --json each view is one line of JSON, with --once one indented document.
    """
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    root = runs or default_root()
    followed = find_run(run, root) if run else None
    out = Output(as_json=as_json)
    with contextlib.ExitStack() as stack:
        nvml = None
        try:
            nvml = stack.enter_context(Nvml())
        except NvmlUnavailable as error:
            if error.fatal:
                out.say(f"warning: NVML can't be used: {error}; showing the host only")

        def view() -> Snapshot:
            nonlocal nvml
            try:
                return gather(nvml, run_pids(root, followed))
            except NvmlFailed as error:
                out.say(f"warning: NVML stopped answering: {error}; showing the host only")
                nvml = None
                return gather(None, run_pids(root, followed))

        def drawn() -> Group:
            parts = [render(view())]
            if followed is not None:
                parts.insert(0, Text(run_line(followed)))
            return Group(*parts)

        if as_json:
            while True:
                record = view().to_record()
                if followed is not None:
                    record["run"] = {"name": followed.name, "line": run_line(followed)}
                if once:
                    out.result(record, [])
                    return 0
                print(json.dumps(record, ensure_ascii=False), flush=True)
                if followed is not None and followed.termination.exists():
                    return 0
                time.sleep(interval)
        console = Console(file=sys.stdout)
        if once or not console.is_terminal:
            while True:
                console.print(drawn())
                if once or (followed is not None and followed.termination.exists()):
                    return 0
                time.sleep(interval)
        with (
            contextlib.suppress(KeyboardInterrupt),
            Live(drawn(), console=console, auto_refresh=False, screen=False) as live,
        ):
            while followed is None or not followed.termination.exists():
                time.sleep(interval)
                live.update(drawn(), refresh=True)
    return 0


def run_pids(root: Path, followed: RunFolder | None) -> dict[int, str]:
    """pid of each living supervisor and training process -> its run's name."""
    out: dict[int, str] = {}
    for folder in [followed] if followed else all_runs(root)[-50:]:
        if folder.termination.exists():
            continue
        for path in [folder.supervisor, *folder.engine.glob("rank-*.json")]:
            status = durable.read_json(path) or {}
            pid = host_pid(status)
            if pid is not None:
                out[pid] = folder.name
    return out


def run_line(folder: RunFolder) -> str:
    """Where the followed run stands, or how it ended."""
    from runner.cli.follow import Progress
    from runner.render import read_any_plan
    from runner.report.run import read_report, verdict

    if folder.termination.exists():
        return "\n".join(verdict(read_report(folder)))
    progress = Progress(folder, read_any_plan(folder.plan))
    progress.update()
    return f"{folder.name}  {progress.line(200)}"
