"""Shell completion of jobs and runs: what bash is given, by the command and by a real bash."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.runs.create import create_run
from runner.runs.folder import RunFolder
from tests.support.command import REPOSITORY

RUNNER = Path(sys.executable).with_name("runner")
HEAVY = {"pydantic", "yaml", "rich", "jinja2", "psutil", "torch", "numpy", "transformers"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    if not RUNNER.is_file():
        pytest.skip("there is no runner command beside this Python")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "demo-of-mine.yaml").write_text("not even: [a job")
    return tmp_path


def make(place: Path, second: int) -> RunFolder:
    files = {"plan.yaml": "x\n"}
    return create_run(place / "runs", "demo", "3f2a91c", "train", files, 1_700_000_000.0 + second)


def complete(place: Path, words: str) -> list[str]:
    """The completions of the last of `words` ("" where they end in a space)."""
    done = subprocess.run(
        [str(RUNNER)],
        cwd=place,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "_RUNNER_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("command", ["train", "show", "check", "render", "smoke", "fit"])
def test_jobs_are_completed(command: str, place: Path) -> None:
    assert complete(place, f"runner {command} demo") == ["demo-identity", "demo-of-mine"]
    assert complete(place, f"runner {command} nothing-like-it") == []


def test_names_with_combining_marks_are_completed_and_signs_of_the_shell_are_not(
    place: Path,
) -> None:
    names = ["demo-cafe\u0301", "demo-हिन्दी", "demo-ไทยที่", "demo-你好"]
    for name in [*names, "demo-a;b", "demo-$(c)", "demo-\u200bd", "demo-e f"]:
        (place / "jobs" / f"{name}.yaml").write_text("model: a/b\n")
    known = ["demo-identity", "demo-of-mine"]
    assert complete(place, "runner train demo-") == sorted([*known, *names])


@pytest.mark.parametrize(
    "command",
    ["report", "stop", "attach", "logs", "wait", "rm", "chat", "monitor", "evaluate", "bundle"],
)
def test_runs_are_completed(command: str, place: Path) -> None:
    assert complete(place, f"runner {command} ") == []
    first, second = make(place, 1), make(place, 2)
    assert complete(place, f"runner {command} ") == ["@last", second.name, first.name]
    assert complete(place, f"runner {command} demo/") == [second.name, first.name]
    assert complete(place, f"runner {command} 2023") == [second.path.name, first.path.name]


def test_a_second_run_and_another_runs_folder_are_completed(place: Path) -> None:
    run = make(place, 1)
    assert complete(place, f"runner rm {run.name} demo") == [run.name]
    (place / "runs").rename(place / "others")
    assert complete(place, "runner rm demo") == []
    assert complete(place, "runner rm --runs others demo") == [run.name]


def test_bash_itself_completes_a_run(place: Path) -> None:
    """With the script that --show-completion prints, by bash's own completion function."""
    make(place, 1)
    run = make(place, 2)
    script = (
        'eval "$(_RUNNER_COMPLETE=source_bash runner)"; COMP_WORDS=(runner attach demo/); '
        'COMP_CWORD=2; _runner_completion runner; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = f"{RUNNER.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.name in done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("attach @", "attach @last "),
        ("attach @la", "attach @last "),
        ("rm @last @l", "@last @last "),
    ],
)
def test_an_interactive_bash_completes_at_last(typed: str, shown: str, place: Path) -> None:
    """bash takes "@" for the end of a word: it hands over "@" and "la" apart."""
    make(place, 1)
    pid, terminal = pty.fork()
    if not pid:
        path = f"{RUNNER.parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PYTHONPATH": str(REPOSITORY), "PATH": path, "TERM": "dumb", "PS1": "> "}
        os.chdir(place)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], {**os.environ, **own})  # noqa: S606
    try:
        os.write(terminal, b'eval "$(_RUNNER_COMPLETE=source_bash runner)"; echo re""ady\n')
        read_until(terminal, "ready")
        os.write(terminal, f"runner {typed}\t".encode())
        assert "@@" not in read_until(terminal, shown)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def read_until(terminal: int, text: str, seconds: float = 20) -> str:
    seen, end = "", time.monotonic() + seconds
    while text not in seen:
        assert select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0], seen
        seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


def test_completing_imports_nothing_slow(place: Path) -> None:
    make(place, 1)
    code = (
        "import sys, json, typer\n"
        "from runner.cli.complete import complete_jobs, complete_runs\n"
        "class Context: params = {}\n"
        "before = set(sys.modules)\n"
        "assert complete_jobs('demo') and complete_runs(Context, 'demo')\n"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not HEAVY & set(done.stdout.split())
