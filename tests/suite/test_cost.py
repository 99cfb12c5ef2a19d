"""The account of what tests cost, and its limit for unit tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cost import (
    TORCH,
    TORCH_SECONDS,
    Cost,
    main,
    read_costs,
    read_exceptions,
    table,
    too_dear,
)

pytest_plugins = ["pytester"]

DEAR = Cost("tests/a/test_x.py::test_one", 8.0, ())
LARGER = [Cost(f"tests/a/test_x.py::test_{mark}", 60.0, (mark,)) for mark in
          ("e2e", "container", "soak")]  # fmt: skip


def test_only_unit_tests_have_a_limit() -> None:
    cheap = Cost("tests/a/test_x.py::test_two", 7.4, ("unit",))
    first = Cost("tests/a/test_x.py::test_three", 5.0 + TORCH_SECONDS, (TORCH,))
    assert too_dear([DEAR, cheap, first, *LARGER], []) == [DEAR]
    more = Cost("tests/a/test_x.py::test_four", 7.6 + TORCH_SECONDS, (TORCH,))
    assert too_dear([DEAR, more], []) == [more, DEAR]


@pytest.mark.parametrize(
    ("name", "excused"),
    [
        ("tests/a/test_x.py::test_one", True),
        ("tests/a/test_x.py", True),
        ("tests/a", True),
        ("tests/a/test_x.py::test_on", False),
        ("tests/a/test", False),
    ],
)
def test_an_exception_is_a_test_a_file_or_a_folder(name: str, excused: bool) -> None:
    assert (too_dear([DEAR], [name]) == []) is excused


def test_every_exception_has_a_reason_and_names_something(tmp_path: Path) -> None:
    for name in read_exceptions():
        assert Path(name.partition("::")[0]).exists(), name
    (tmp_path / "list").write_text("tests/a/test_x.py::test_one\n")
    with pytest.raises(ValueError, match="no reason"):
        read_exceptions(tmp_path / "list")


def test_the_table_adds_up() -> None:
    lines = table([DEAR, *LARGER, Cost("tests/test_loose.py::test_it", 1.0, ())])
    assert lines[2:] == [
        "| `tests/a` | 4 | 188 | 180 |",
        "| `tests` | 1 | 1 | 0 |",
        "| all | 5 | 189 | 180 |",
    ]
    ends, last = table([DEAR], 60.0)[3:]
    assert (ends, last) == ("| ends of what tests share | | 60 | |", "| all | 1 | 68 | 0 |")


def test_a_file_of_costs_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "costs.jsonl"
    told = [[DEAR.test, 2.0, []], [DEAR.test, 8.0, []], [LARGER[0].test, 60.0, ["e2e"]]]
    path.write_text("".join(json.dumps(line) + "\n" for line in told))
    assert read_costs(path) == [DEAR, LARGER[0]]
    assert main([str(path)]) == 1
    assert f"8.0 CPU-seconds  {DEAR.test}" in capsys.readouterr().err
    path.write_text(json.dumps(told[0]) + "\n")
    assert main([str(path)]) == 0


TESTS = """
import os, subprocess, sys, time
import pytest

def spend(seconds):
    while time.process_time() < seconds: pass

@pytest.fixture(scope="session")
def server():
    code = "import sys, time\\nwhile time.process_time() < 0.8: pass\\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE):
        yield

def test_own(server): spend(0.3)

def test_childs():
    code = "import time\\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-S", "-c", code], check=True)

@pytest.mark.e2e
def test_larger(): spend(0.8)

def test_last(): pass
"""


@pytest.mark.parametrize("workers", [[], ["-n1", "--dist=loadgroup"]])
def test_the_plugin_counts_this_process_and_its_children(
    workers: list[str], pytester: pytest.Pytester
) -> None:
    pytester.makeconftest(
        "from tests.support import cost\\n"
        "pytest_plugins = ['tests.support.cost']\\n"
        "cost.UNIT_SECONDS = 0.2\\n".replace("\\n", "\n")
    )
    pytester.makeini("[pytest]\nmarkers =\n    e2e: larger\n")
    pytester.makepyfile(TESTS)
    plain = pytester.runpytest_subprocess("-p", "no:cacheprovider", *workers)
    assert plain.ret == 0 and "CPU-seconds" not in plain.stdout.str()
    done = pytester.runpytest_subprocess("--cost", "--cost-file=costs", *workers)
    costs = {cost.test.partition("::")[2]: cost for cost in read_costs(pytester.path / "costs")}
    assert costs.keys() == {"test_own", "test_childs", "test_larger", "test_last"}
    assert costs["test_childs"].seconds >= 0.3 and costs["test_larger"].marks == ("e2e",)
    assert costs["test_last"].seconds < 0.2
    assert done.ret == 1  # the session fails, though every test passed
    done.stdout.fnmatch_lines(["*unit tests over*", "*CPU-seconds  *::test_childs"])
    done.stdout.no_fnmatch_line("*CPU-seconds  *::test_last")
    done.stdout.fnmatch_lines(["| ends of what tests share |*"])
