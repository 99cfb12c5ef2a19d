"""Nothing in runner prints but runner.common.terminal, which cleans: read from the code itself.

Scripts that stand alone in a run folder (the toolkit's stages) print into that run's log.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import REPOSITORY

SINKS = ("runner/common/terminal.py",)
ALONE = "runner/engines/mgm/stages/"
STREAMS = {
    "runner/engines/sft/fetch.py": "what libraries print must not get between the answers",
    "runner/engines/mgm/fetch/__main__.py": "what libraries print must not get between the answers",
    "runner/fetch/progress.py": "the stream that terminal.draw_line and put are given",
    "runner/engines/sft/inside/evaluate/progress.py": "the stream that terminal.put is given",
    "runner/engines/sft/inside/__main__.py": "both are flushed at the end",
}
"""Who may name a standard stream otherwise than to ask it something, and why."""
ASKED = ("isatty", "fileno", "flush")
PRINTS = {
    *(("typer", "echo"), ("typer", "secho"), ("click", "echo"), ("click", "secho")),
    *(("rich", "print"), ("logging", "basicConfig"), ("warnings", "warn")),
    *(("traceback", "print_exc"), ("pprint", "pprint")),
}


def printing(source: str, name: str) -> Iterator[str]:
    """Each place in a module that prints by another way than runner.common.terminal."""
    tree = ast.parse(source)
    fine: set[ast.expr] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ASKED:
            fine.add(node.value)
        if isinstance(node, ast.Call):
            func = node.func
            # a child's stream, or what a function of the sink is given
            fine |= {k.value for k in node.keywords if k.arg in ("stdout", "stderr")}
            if isinstance(func, ast.Attribute) and _is(func.value, "terminal"):
                fine |= set(node.args)
            if _is(func, "hasattr") or _is(func, "getattr"):
                fine |= set(node.args)
    for node in ast.walk(tree):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            func = node.func
            if _is(func, "print") or _is(func, "Console") or _is(func, "pprint"):
                yield f"{where} {ast.unparse(func)}"
            if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name):
                standard = isinstance(node.args[0], ast.Constant) if node.args else False
                if (func.value.id, func.attr) in PRINTS or (
                    (func.value.id, func.attr) == ("os", "write") and standard
                ):
                    yield f"{where} {ast.unparse(func)}"
        if (
            isinstance(node, ast.Attribute)
            and node.attr in ("stdout", "stderr", "__stdout__", "__stderr__")
            and _is(node.value, "sys")
            and node not in fine
            and name not in STREAMS
        ):
            yield f"{where} {ast.unparse(node)}"


def _is(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def modules() -> Iterator[Path]:
    for path in sorted((REPOSITORY / "runner").rglob("*.py")):
        name = str(path.relative_to(REPOSITORY))
        if name not in SINKS and not name.startswith(ALONE):
            yield path


def test_nothing_prints_but_the_one_place_that_cleans() -> None:
    found = [
        line
        for path in modules()
        for line in printing(path.read_text(), str(path.relative_to(REPOSITORY)))
    ]
    assert found == [], "print by runner.common.terminal (say, put, put_json) or cli.output.Output"


@pytest.mark.parametrize(
    "line",
    [
        "print('x')",
        "print('x', file=sys.stderr)",
        "sys.stdout.write('x')",
        "sys.stderr.buffer.write(b'x')",
        "out = sys.stdout",
        "typer.echo('x')",
        "click.secho('x')",
        "Console().print('x')",
        "os.write(1, b'x')",
    ],
)
def test_each_way_of_printing_is_found(line: str) -> None:
    assert list(printing(line, "runner/x.py"))


@pytest.mark.parametrize(
    "line",
    [
        "terminal.say('x')",
        "terminal.draw_line('x', sys.stdout)",
        "sys.stdout.isatty()",
        "subprocess.run([], stdout=sys.stderr)",
    ],
)
def test_what_does_not_print_is_not_taken_for_it(line: str) -> None:
    assert not list(printing(line, "runner/x.py"))


def test_the_table_of_exceptions_holds_only_what_is_there() -> None:
    assert all((REPOSITORY / name).is_file() for name in (*SINKS, *STREAMS))
