"""What holds by the source alone: where files are opened for writing, and how Python is started.

A run's folder can be written by the code that runs in it, so what the host writes there goes
through runner.common.shared_folder, which follows no link. Whoever writes by other means is listed
here with the reason. runner's own Python is started by runner.common.own_python, which leaves the
folder one stands in out of the modules' path.
"""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import REPOSITORY

PACKAGE = REPOSITORY / "runner"
ALONE = PACKAGE / "engines" / "mgm" / "stages"
"""Scripts that stand alone in the run folder and import nothing of runner."""

CACHE = "in the cache"
STAGED = "in a folder of its own making, renamed into place when it is whole"
INSIDE = "what trains writes what it trained, with its own rights, inside of the container"
NAMED = "where its user said"
TEMPORARY = "in a temporary folder of its own"

WRITERS = {
    "provenance/bundle/unpack.py": STAGED,
    "provenance/bundle/write.py": NAMED,
    "runs/checkpoints.py": INSIDE,
    "cli/__init__.py": "/dev/null in place of a terminal that is gone",
    "launch/data.py": TEMPORARY,
    "launch/doctor.py": NAMED,
    "engines/mgm/preflight.py": TEMPORARY,
    "launch/recorded_plan.py": TEMPORARY,
    "launch/prepare_smokes.py": TEMPORARY,
    "launch/survey.py": TEMPORARY,
    "launch/fit.py": NAMED,
    "launch/survey_cache.py": CACHE,
    "launch/train.py": "removes the folder of a dry run, which nothing ran in",
    "containers/archive.py": NAMED,
    "containers/build.py": TEMPORARY,
    "containers/context.py": TEMPORARY,
    "containers/images.py": CACHE,
    "containers/in_place.py": "in place, for what is mounted over it in a container",
    "plans/engine_command.py": "removes a folder of secrets of its own making",
    "plans/container/overlays.py": "makes what is mounted over, by descriptors from the folder on",
    "containers/private.py": "a folder of secrets, outside of every run's",
    "containers/secrets.py": "a folder of secrets, outside of every run's",
    "containers/staged.py": STAGED,
    "common/durable.py": "it is what the others write with",
    "engines/sft/inside/train/best.py": INSIDE,
    "engines/sft/inside/builtin_model.py": CACHE,
    "engines/sft/inside/memory/footprint.py": TEMPORARY,
    "engines/sft/inside/prepare_rows.py": NAMED,
    "data/cache.py": CACHE,
    "data/image_files.py": CACHE,
    "data/prepare.py": CACHE,
    "data/prepared.py": STAGED,
    "engines/sft/inside/evaluate/picture.py": INSIDE,
    "engines/mgm/fetch/__main__.py": CACHE,
    "engines/mgm/fetch/archive.py": CACHE,
    "engines/mgm/fetch/download.py": CACHE,
    "engines/mgm/fetch/git.py": CACHE,
    "engines/mgm/fetch/hub.py": CACHE,
    "engines/mgm/fetch/place.py": CACHE,
    "engines/mgm/fetch/rows.py": CACHE,
    "fetch/modelscope.py": CACHE,
    "fetch/hub.py": CACHE,
    "fetch/rows.py": CACHE,
    "fetch/stream.py": CACHE,
    "engines/sft/inside/merge.py": STAGED,
    "engines/sft/inside/train/result.py": INSIDE,
    "engines/sft/inside/rows.py": CACHE,
    "engines/sft/inside/train/trainer.py": INSIDE,
    "engines/sft/inside/model/vision/projector.py": INSIDE,
    "common/errors.py": "a report of a bug, in a new temporary file",
    "supervisor/execute/docker.py": "its records and its log in a run's folder: by shared_folder",
    "runs/create.py": "removes the folder of a run that could not be made",
    "machine/leases/store.py": "the folder of leases, by rules of its own",
    "machine/leases/run_files.py": "opens for reading, with flags that it is given",
    "common/lease_file.py": "a lease, by the descriptor of its folder and through no link",
    "machine/leases/small_file.py": "opens for reading, with flags that it puts together",
    "machine/leases/turn.py": "touches its own lease, by its descriptor",
    "common/locks.py": "a file that is locked: in the cache, or opened by shared_folder",
    "runs/origin.py": "the seal, whole, and the key in the user's state folder",
    "provenance/hashes.py": CACHE,
    "provenance/image_list.py": CACHE,
    "report/monitor/metrics.py": NAMED,
    "supervisor/rendered.py": "removes byte code beside stage scripts, never through a link",
    "common/staged_folder.py": "it is what the others make folders with, where no container writes",
    "common/shared_folder.py": "it is what writes in a run's folder",
    "runs/tmpdir.py": "a run's temporary folder, outside of its own",
    "engines/sft/memory/ask.py": CACHE,
    "vram/calibration.py": "what was measured, in the user's state folder",
}
"""Modules that open for writing, copy or remove trees by other means than shared_folder."""

STARTERS = {
    "common/own_python.py": "the one place",
    "provenance/software.py": "asks another Python, which may have no -P, in the folder /",
}
"""Modules that may put sys.executable, or `-m runner...`, into a command line."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if not path.is_relative_to(ALONE):
            yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text(encoding="utf-8"))


def writes_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The lines that open a file for writing, copy one, or remove a tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (what := _writes(node)):
            yield node.lineno, what


def _writes(call: ast.Call) -> str | None:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else None
    of = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if isinstance(call.func, ast.Name):
        name = call.func.id
    if of == "durable":
        known = ("write_json", "write_text", "write_bytes", "whole_file", "JsonlWriter")
        return f"durable.{name}" if name in known else None
    if of == "os" and name == "open":
        flags = ast.unparse(call.args[1]) if len(call.args) > 1 else ""
        read_only = all(part.strip("() ") in READING for part in flags.split("|"))
        return None if read_only else f"os.open with {flags}"
    if of == "shutil" and name not in ("which", "disk_usage", "get_terminal_size"):
        return f"shutil.{name}"
    if name in ("write_text", "write_bytes", "touch", "mkstemp", "NamedTemporaryFile"):
        return name
    if name in ("open", "fdopen") and _mode(
        call, has_path=of in ("", "io", "os", "gzip", "tarfile")
    ):
        return name if of != "os" else None  # what it is given was opened by os.open
    return None


READING = (
    "os.O_RDONLY",
    "os.O_DIRECTORY",
    "os.O_NOFOLLOW",
    "os.O_NONBLOCK",
    "os.O_NOCTTY",
    "os.O_CLOEXEC",
    "os.O_PATH",
)


def _mode(call: ast.Call, *, has_path: bool) -> bool:
    """Whether a call of open() is for writing; a mode that is not a plain text counts as such."""
    given: list[ast.expr] = [word.value for word in call.keywords if word.arg == "mode"]
    given += call.args[1:2] if has_path else call.args[:1]
    if not given:
        return False
    if isinstance(given[0], ast.Constant) and isinstance(given[0].value, str):
        return bool(set(given[0].value) & set("wax+"))
    return has_path


def starts_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The lines that put this Python, or one of runner's modules, into a command line."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.List | ast.Tuple):
            continue
        words = [ast.unparse(one) for one in node.elts]
        if "sys.executable" in words:
            yield node.lineno, "sys.executable in a command line"
        for place, (word, after) in enumerate(itertools.pairwise(words)):
            python = any("python" in one.lower() for one in words[:place])
            if (word == "'-m'" and "runner" in after) or (word == "'-c'" and python):
                yield node.lineno, f"{word} {after}"


def test_files_are_written_by_one_module_or_by_those_that_are_listed() -> None:
    found = {name: list(writes_in(tree)) for name, tree in modules()}
    wrong = [
        f"runner/{name}:{line}: {what}"
        for name, lines in found.items()
        if name not in WRITERS
        for line, what in lines
    ]
    assert not wrong, (
        "write in a run's folder with its own functions (common/shared_folder.py); elsewhere, "
        "list the module with the reason:\n" + "\n".join(wrong)
    )
    idle = [name for name in WRITERS if not found.get(name)]
    assert not idle, f"listed, but they write nothing: {idle}"


def test_own_python_is_started_in_one_place() -> None:
    wrong = [
        f"runner/{name}:{line}: {what}"
        for name, tree in modules()
        if name not in STARTERS
        for line, what in starts_in(tree)
    ]
    assert not wrong, "start it by runner/common/own_python.py:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "code",
    [
        'open(p, "w")',
        'open(p, mode="ab")',
        'p.open("r+")',
        'io.open(p, "x")',
        "open(p, mode)",
        'gzip.open(p, "wb")',
        'p.write_text("x")',
        'p.write_bytes(b"x")',
        "p.touch()",
        "os.open(p, os.O_WRONLY)",
        "os.open(p, os.O_RDONLY | os.O_CREAT)",
        "os.open(p, flags)",
        "shutil.copyfile(a, b)",
        "shutil.rmtree(p)",
        "durable.write_json(p, record)",
        "durable.JsonlWriter(p)",
        "tempfile.mkstemp()",
    ],
)
def test_the_check_sees_a_write(code: str) -> None:
    assert list(writes_in(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "open(p)",
        'p.open("rb")',
        'p.open(encoding="utf-8")',
        "Image.open(path)",
        "os.open(p, os.O_RDONLY | os.O_DIRECTORY)",
        "shutil.which(program)",
        "folder.write_json(folder.termination, record)",
        "durable.read_json(p)",
        "webbrowser.open_new(url)",
    ],
)
def test_the_check_sees_no_write_where_there_is_none(code: str) -> None:
    assert not list(writes_in(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        'subprocess.run([sys.executable, "-m", "runner.engines.sft.inside"])',
        'subprocess.run([python, "-m", "runner.engines.sft.inside", folder])',
        'argv = (python, "-P", "-m", f"runner.{name}")',
        'run(["python3", "-c", text])',
    ],
)
def test_the_check_sees_a_start(code: str) -> None:
    assert list(starts_in(ast.parse(code)))


@pytest.mark.parametrize("rule", ["S301", "S506", "S602", "S604", "S605", "S609"])
def test_ruff_refuses_a_shell_a_pickle_and_unsafe_yaml(rule: str, tmp_path: Path) -> None:
    """The rules that hold these lines are on, whatever pyproject.toml leaves out."""
    code = {
        "S301": "import pickle\npickle.loads(b'')\n",
        "S506": "import yaml\nyaml.load('', Loader=yaml.Loader)\n",
        "S602": "import subprocess\ncommand = input()\nsubprocess.run(command, shell=True)\n",
        "S604": "import os\n\n\ndef run(*a, **k): ...\n\n\nrun(os.sep, shell=True)\n",
        "S605": "import os\nos.system(input())\n",
        "S609": "import subprocess\nsubprocess.Popen('chmod +w *', shell=True)\n",
    }
    (tmp_path / "wrong.py").write_text(code[rule])
    settings = REPOSITORY / "pyproject.toml"
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--config", settings, "--no-cache", "wrong.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and rule in done.stdout, done.stdout + done.stderr
