"""The contract of who may import whom holds, and breaks where an import is turned around.

On copies of the package, since a contract that can't fail says nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.support.command import REPOSITORY

LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")
UPWARD = "No room imports a room above it"
ENGINES = "The engines don't import each other, nor what chooses between them"
COMMANDS = "A command asks launch and report, and the rooms that say what jobs and runs are"
LIBRARIES = "Only the code inside an engine imports the training libraries"
CIRCLES = "No circles between the modules of a room"


def lint_imports(folder: Path) -> tuple[int, str]:
    """Exit code and output of the contract, for the package in `folder`."""
    done = subprocess.run(
        [LINT_IMPORTS, "--no-cache", "--no-logo"], cwd=folder, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def broken(output: str) -> list[str]:
    """The names of the contracts that the output calls broken."""
    return re.findall(r"^(.+) BROKEN", output, re.MULTILINE)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with pyproject.toml and the package's Python files, to be changed."""
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    shutil.copytree(
        REPOSITORY / "runner", tmp_path / "runner", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


def append(copy: Path, module: str, text: str) -> None:
    """Add lines at the end of a module, made where it is missing."""
    with (copy / module).open("a") as file:
        file.write(f"\n\n{text}\n")


def test_the_package_keeps_the_contract() -> None:
    code, output = lint_imports(REPOSITORY)
    assert code == 0, output
    assert broken(output) == []


@pytest.mark.parametrize(
    ("module", "text", "contract"),
    [
        pytest.param(
            "runner/common/units.py", "from runner.runs import state", UPWARD, id="up a room"
        ),
        pytest.param(
            "runner/report/run.py", "import runner.launch.start", UPWARD, id="up to launch"
        ),
        pytest.param(
            "runner/supervisor/run.py",
            "def show() -> None:\n    from runner.report import run",
            UPWARD,
            id="sideways, in a function",
        ),
        pytest.param(
            "runner/engines/script/plan.py",
            "from runner.engines.sft.plan import SftPlan",
            ENGINES,
            id="engine to engine",
        ),
        pytest.param(
            "runner/supervisor/attempt.py",
            "def count() -> int:\n    import torch\n\n    return torch.cuda.device_count()",
            LIBRARIES,
            id="torch in a function",
        ),
        pytest.param(
            "runner/cli/ps.py",
            "def decide() -> None:\n    from runner.plans import base",
            COMMANDS,
            id="a command that decides",
        ),
        pytest.param(
            "runner/machine/cores.py", "import accelerate", "Nothing imports accelerate", id="lib"
        ),
    ],
)
def test_an_import_turned_around_breaks_it(
    copy: Path, module: str, text: str, contract: str
) -> None:
    append(copy, module, text)
    code, output = lint_imports(copy)
    assert code == 1, output
    assert broken(output) == [contract]
    assert module.removesuffix(".py").replace("/", ".") in output


def test_two_modules_of_a_room_that_import_each_other_break_it(copy: Path) -> None:
    append(copy, "runner/runs/one.py", "from runner.runs import other")
    append(copy, "runner/runs/other.py", "NUMBER = 1")
    assert lint_imports(copy)[0] == 0
    append(copy, "runner/runs/other.py", "from runner.runs import one")
    code, output = lint_imports(copy)
    assert code == 1
    assert broken(output) == [CIRCLES]


def test_a_module_that_lies_loose_in_the_package_breaks_it(copy: Path) -> None:
    append(copy, "runner/helpers.py", "ANSWER = 42")
    code, output = lint_imports(copy)
    assert code == 1
    assert broken(output) == [UPWARD]
    assert "helpers" in output


def test_an_exception_that_no_import_needs_any_more_breaks_it(copy: Path) -> None:
    settings = copy / "pyproject.toml"
    text = settings.read_text()
    first = text.index("ignore_imports = [\n") + len("ignore_imports = [\n")
    gone = '  "runner.common.units -> runner.cli.ps",\n'
    settings.write_text(text[:first] + gone + text[first:])
    code, output = lint_imports(copy)
    assert code == 1
    assert "runner.common.units -> runner.cli.ps" in output


def test_every_room_is_a_package_with_a_place_in_the_order() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    contract = settings["tool"]["importlinter"]["contracts"][0]
    rooms = {room for layer in contract["layers"] for room in layer.split(" | ")}
    folders = {
        path.name
        for path in (REPOSITORY / "runner").iterdir()
        if any(path.rglob("*.py")) and path.name != "_packaged"  # no leftovers of compiled modules
    }
    assert rooms == folders - set(contract["exhaustive_ignores"])
    assert len(rooms) <= 15


def test_pre_commit_runs_what_lint_runs() -> None:
    recipe = (REPOSITORY / "Justfile").read_text().split("\nlint: setup\n")[1].split("\n\n")[0]
    settings = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())
    hooks = [hook["entry"] for repo in settings["repos"] for hook in repo["hooks"]]
    commands = [line.strip() for line in recipe.splitlines()]
    assert len(hooks) == len(commands)
    for hook, command in zip(hooks, commands, strict=True):
        assert command == hook or command.startswith(f"{hook} ")
