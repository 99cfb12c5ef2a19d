"""A fork is a process like any other: its own environment, arguments, folder, streams and end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forked import ForkedPopen, forks_for_modules, module_of, run_module

pytest.importorskip("trl")
pytestmark = pytest.mark.e2e

PROGRAM = '''
"""Says what a process is, as its first argument asks."""
import atexit, json, logging, os, signal, sys, time, warnings

atexit.register(lambda: print("at exit", file=sys.stderr))
what = sys.argv[1]
if what == "facts":
    listed = map(int, os.listdir("/proc/self/fd"))
    open_files = [one for one in listed if os.path.exists(f"/proc/self/fd/{one}")]
    print(json.dumps({
        "argv": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd(),
        "pid": os.getpid(), "parent": os.getppid(), "name": __name__,
        "torch": "torch" in sys.modules, "stdin": sys.stdin.read(), "open": open_files,
        "session": os.getsid(0),
    }))
    warnings.warn("a warning")
    logging.getLogger("someone").error("a log line")
elif what == "exits":
    sys.exit(7)
elif what == "says why":
    sys.exit("it ends")
elif what == "raises":
    raise ValueError("broken")
elif what == "waits":
    print("waiting", flush=True)
    time.sleep(600)
elif what == "trains":
    import torch
    weight = torch.ones(64, 64, requires_grad=True)
    (weight @ weight).sum().backward()
    print(torch.get_num_threads(), float(weight.grad.sum()))
'''


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that a fork finds."""
    (tmp_path / "forked_program.py").write_text(textwrap.dedent(PROGRAM))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "forked_program"


def test_a_fork_has_what_it_is_given_and_the_stack(program: str, tmp_path: Path) -> None:
    held = (tmp_path / "held").open("w")
    done = run_module(
        program, "facts", "a b", environment={"ONLY": "this"}, folder=tmp_path, seconds=60
    )
    held.close()
    facts = json.loads(done.out)
    assert done.code == 0
    assert facts["argv"] == ["facts", "a b"]
    assert facts["environment"] == {"ONLY": "this"}
    assert facts["folder"] == str(tmp_path)
    assert (facts["parent"], facts["name"]) == (os.getpid(), "__main__")
    assert facts["pid"] != os.getpid()
    assert facts["torch"]
    assert facts["stdin"] == ""
    assert facts["open"] == [0, 1, 2]  # and no file, pipe or lock of the test's
    for said in ("a warning", "a log line", "at exit"):
        assert said in done.err


def test_this_process_is_as_it_was(program: str, tmp_path: Path) -> None:
    before = (Path.cwd(), dict(os.environ), sys.argv, sys.stdout, signal.getsignal(signal.SIGINT))
    run_module(program, "facts", environment={}, folder=tmp_path, seconds=60)
    after = (Path.cwd(), dict(os.environ), sys.argv, sys.stdout, signal.getsignal(signal.SIGINT))
    assert after == before


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [("exits", 7, ""), ("says why", 1, "it ends"), ("raises", 1, "ValueError: broken")],
)
def test_a_fork_ends_as_a_process_does(program: str, what: str, code: int, said: str) -> None:
    done = run_module(program, what, seconds=60)
    assert (done.code, done.out) == (code, "")
    assert said in done.err and "at exit" in done.err


def test_a_fork_computes_gradients(program: str) -> None:
    done = run_module(program, "trains", seconds=60)
    assert (done.code, done.out) == (0, f"1 {2.0 * 64**3}\n"), done.err


def test_a_fork_is_signalled_and_a_late_one_is_killed(program: str) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_module(program, "waits", seconds=0.2)
    process = ForkedPopen([sys.executable, "-m", program, "waits"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"waiting\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    process.stdout.close()


def test_what_starts_a_module_gets_a_fork_and_all_else_a_process(program: str) -> None:
    real = subprocess.Popen
    with forks_for_modules():
        command = [sys.executable, "-P", "-m", program, "facts"]
        asked = subprocess.run(
            command, input="words", capture_output=True, text=True, start_new_session=True
        )
        facts = json.loads(asked.stdout)
        assert facts["torch"] and facts["stdin"] == "words"
        assert facts["session"] == facts["pid"]
        code = "import sys; print('torch' in sys.modules)"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert other.stdout == "False\n"
    assert subprocess.Popen is real


@pytest.mark.parametrize(
    ("package", "is_forked"), [("forked_program", True), ("forked", False), ("other", False)]
)
def test_modules_of_the_packages_that_are_named_are_forked(
    program: str, package: str, is_forked: bool
) -> None:
    with forks_for_modules(package):
        said = subprocess.run(
            [sys.executable, "-m", program, "facts"], capture_output=True, input=b""
        )
    assert (json.loads(said.stdout)["torch"] if said.returncode == 0 else False) == is_forked


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        ([sys.executable, "-m", "a.b", "-m", "x"], ["a.b", "-m", "x"]),
        ([sys.executable, "-P", "-m", "a"], ["a"]),
        ([sys.executable, "-c", "pass"], None),
        ([sys.executable, "-W", "error", "-m", "a"], None),
        (["/other/python", "-m", "a"], None),
        ([sys.executable], None),
        ("python -m a", None),
    ],
)
def test_a_module_is_told_from_other_commands(argv: object, command: list[str] | None) -> None:
    assert module_of(argv) == command


def test_a_fork_costs_little(program: str) -> None:
    """Measured in CPU-seconds of children, which a busy machine does not make more of."""
    run_module(program, "exits", seconds=60)  # what is imported first is imported once
    before = os.times().children_user + os.times().children_system
    run_module(program, "exits", seconds=60)
    assert os.times().children_user + os.times().children_system - before < 1
