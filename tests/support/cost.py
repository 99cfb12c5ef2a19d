"""What each test costs in CPU-seconds, a table by folder, and a limit for unit tests.

A pytest plugin (registered in tests/conftest.py; workers of xdist report to the one that collects):

    pytest --cost                   print the table at the end
    pytest --cost-file FILE         add a JSON line a test: [id, seconds, marks]

and a check of such a file, for the lint step of a whole run: `python -m tests.support.cost FILE`.
Either fails where a test that is marked neither e2e, container nor soak surely took over 5
CPU-seconds (7.5 as measured) and is not in unit_exceptions.txt. Counted are this process and the
children that it, or they, waited for: of a process that was left to itself (a detached run) nothing
is known, and tests that start one are marked. CPU-seconds hardly depend on what else a machine
does, wall times do.

A test pays for the fixtures that others share, if it comes first. For the import of torch, which
any test may be the first to need, it has TORCH_SECONDS more. What ends with the last test of a file
or of a worker (servers of forks, whose children's time is known only then) is counted apart: which
test comes last is chance.

May import the standard library and pytest.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

UNIT_SECONDS = 5.0
SPREAD = 1.5
"""By how much a test can be measured dearer than it is: a busy machine's caches are others'."""
TORCH_SECONDS = 25.0
"""torch, transformers, trl and peft take 14; what some tests import with them, some more."""
TORCH = "imports torch"
LARGER_MARKS = ("e2e", "container", "soak")
PROPERTY = "cpu_seconds"
EXCEPTIONS = Path(__file__).with_name("unit_exceptions.txt")
"""A line an exception: test id, or a file or folder that holds several; two spaces; why."""


@dataclass(frozen=True)
class Cost:
    """What one test took, in CPU-seconds, and how it is marked."""

    test: str
    seconds: float
    marks: tuple[str, ...]
    """And TORCH, where it was the first of its process to import that."""

    @property
    def is_unit(self) -> bool:
        return not set(self.marks) & set(LARGER_MARKS)

    @property
    def limit_seconds(self) -> float:
        """What it may be measured at: the limit, and how far measurements of one test lie apart."""
        return SPREAD * UNIT_SECONDS + (TORCH_SECONDS if TORCH in self.marks else 0.0)


def cpu_seconds() -> float:
    """Of this process and of the children that it, or they, waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def read_exceptions(path: Path = EXCEPTIONS) -> dict[str, str]:
    """Test, file or folder to the reason.

    Raises ValueError for a line without one.
    """
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, why = line.partition("  ")
        if not why.strip():
            raise ValueError(
                f"{path.name}, line {number}: {name!r} has no reason behind two spaces"
            )
        found[name] = why.strip()
    return found


def too_dear(costs: Iterable[Cost], exceptions: Iterable[str]) -> list[Cost]:
    """Unit tests over their limit that are no exception, the dearest first."""
    excused = tuple(exceptions)
    found = [
        cost
        for cost in costs
        if cost.is_unit
        and cost.seconds > cost.limit_seconds
        and not any(_is_within(cost.test, name) for name in excused)
    ]
    return sorted(found, key=lambda cost: -cost.seconds)


def _is_within(test: str, name: str) -> bool:
    return test == name or test.startswith((f"{name}::", f"{name}[", f"{name}/"))


def table(costs: Iterable[Cost], ends_seconds: float = 0.0) -> list[str]:
    """CPU-seconds by folder, the dearest first, as a table of Markdown.

    Args:
        ends_seconds: what ended with the last test of a file or worker, a row of its own.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    larger: defaultdict[str, float] = defaultdict(float)
    for cost in costs:
        parts = cost.test.partition("::")[0].split("/")
        folder = "/".join(parts[:2]) if len(parts) > 2 else parts[0]
        seconds[folder] += cost.seconds
        counts[folder] += 1
        larger[folder] += 0 if cost.is_unit else cost.seconds
    rows = [
        f"| `{folder}` | {counts[folder]} | {total:.0f} | {larger[folder]:.0f} |"
        for folder, total in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    if ends_seconds:
        rows.append(f"| ends of what tests share | | {ends_seconds:.0f} | |")
    total = sum(seconds.values()) + ends_seconds
    last = f"| all | {counts.total()} | {total:.0f} | {sum(larger.values()):.0f} |"
    head = ["| folder | tests | CPU-seconds | of these e2e, container, soak |", "|---|---|---|---|"]
    return [*head, *rows, last]


def failure_lines(dear: Iterable[Cost]) -> list[str]:
    """What is said of tests over the limit, with the way out."""
    lines = [f"{cost.seconds:6.1f} CPU-seconds  {cost.test}" for cost in dear]
    if not lines:
        return []
    return [
        f"unit tests over {UNIT_SECONDS:g} CPU-seconds:",
        *lines,
        "make them cheaper, mark them (e2e, container, soak), or give the reason in "
        f"tests/support/{EXCEPTIONS.name}",
    ]


def read_costs(path: Path) -> list[Cost]:
    """The lines of a --cost-file; of a test that ran twice the larger."""
    found: dict[str, Cost] = {}
    for line in path.read_text().splitlines():
        test, seconds, marks = json.loads(line)
        cost = Cost(test, float(seconds), tuple(marks))
        if test not in found or found[test].seconds < cost.seconds:
            found[test] = cost
    return [*found.values()]


def main(arguments: list[str]) -> int:
    """Exit code 1 where a unit test in the file is over its limit."""
    costs = read_costs(Path(arguments[0]))
    print("\n".join(table(costs)))
    told = failure_lines(too_dear(costs, read_exceptions()))
    print("\n".join(told), file=sys.stderr)
    return 1 if told else 0


# The plugin


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cost")
    group.addoption("--cost", action="store_true", help="CPU-seconds by folder, at the end")
    group.addoption("--cost-file", metavar="FILE", help="add a JSON line for each test to FILE")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the one that collects, or the only one
        config.pluginmanager.register(_Collected(config), "cost-collected")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    is_last = nextitem is None or nextitem.path != item.path
    item.stash[_BEGAN] = cpu_seconds(), "torch" in sys.modules, is_last
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    began, had_torch, is_last = item.stash[_BEGAN]
    if report.when != "teardown":
        item.stash[_RAN] = cpu_seconds()  # after a skipped setup there is no call
        return report
    ended = cpu_seconds()
    own_end = item.stash[_RAN] if is_last else ended
    marks = sorted({mark.name for mark in item.iter_markers()} & {*LARGER_MARKS, "unit"})
    marks += [TORCH] if "torch" in sys.modules and not had_torch else []
    costs = [own_end - began, ended - own_end]
    report.user_properties.append((PROPERTY, [*(round(each, 3) for each in costs), marks]))
    return report


_BEGAN = pytest.StashKey[tuple[float, bool, bool]]()
_RAN = pytest.StashKey[float]()


class _Collected:
    """The costs of all tests, of all workers, and what is said of them."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._costs: list[Cost] = []
        self._ends_seconds = 0.0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown":
            return
        for name, value in report.user_properties:
            if name == PROPERTY:
                own, ends, marks = value
                cost = Cost(report.nodeid, own, tuple(marks))
                self._costs.append(cost)
                self._note(cost)
                self._ends_seconds += ends

    def _note(self, cost: Cost) -> None:
        path = self._config.getoption("--cost-file")
        if path:
            with Path(path).open("a") as stream:
                stream.write(json.dumps([cost.test, cost.seconds, cost.marks]) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        # without the table a limit would fail who runs one file, whose first test pays the imports
        if self._config.getoption("--cost") and exitstatus == pytest.ExitCode.OK and self._dear():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _dear(self) -> list[Cost]:
        return too_dear(self._costs, read_exceptions())

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._config.getoption("--cost"):
            return
        terminalreporter.section("CPU-seconds by folder")
        for line in [*table(self._costs, self._ends_seconds), *failure_lines(self._dear())]:
            terminalreporter.write_line(line)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUTF8", "1")
    sys.exit(main(sys.argv[1:]))
