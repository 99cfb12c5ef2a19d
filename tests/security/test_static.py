"""What no module of runner may hold, read from its syntax: ways by which data becomes code.

Each rule is tried on a line that breaks it, so that a rule which finds nothing is seen to work.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command import REPOSITORY

MODULES = sorted((REPOSITORY / "runner").rglob("*.py"))

PICKLES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
SHELLS = {
    "os": {"system", "popen"},
    "subprocess": {"getoutput", "getstatusoutput"},
    "asyncio": {"create_subprocess_shell"},
    "pty": {"spawn"},
    "commands": {"getoutput", "getstatusoutput"},
}
EVALUATE = {"eval", "exec", "compile", "__import__", "runpy.run_path", "runpy.run_module"}
STARTS = {"run", "Popen", "call", "check_call", "check_output"}
Found = Iterator[ast.AST]


def _name(node: ast.AST) -> str:
    """ "os.system" of the call's function, as it is written."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def _calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield _name(node), node


def _said(call: ast.Call, keyword: str) -> ast.expr | None:
    return next((each.value for each in call.keywords if each.arg == keyword), None)


def _is(value: ast.expr | None, constant: object) -> bool:
    return isinstance(value, ast.Constant) and value.value is constant


def loads_whole_pickles(tree: ast.AST) -> Found:
    """torch.load without weights_only=True, numpy's and pandas' ways, and the pickle modules."""
    for name, call in _calls(tree):
        last = name.rpartition(".")[2]
        if name in ("torch.load", "torch.serialization.load"):
            if not _is(_said(call, "weights_only"), True):
                yield call
        elif last == "read_pickle" or (last == "load" and _is(_said(call, "allow_pickle"), True)):
            yield call
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            if any(alias.name.partition(".")[0] in PICKLES for alias in node.names):
                yield node
        elif isinstance(node, ast.ImportFrom):
            module, names = node.module or "", {alias.name for alias in node.names}
            if module.partition(".")[0] in PICKLES or (module == "torch" and "load" in names):
                yield node


SAFE_LOADERS = ("Loader", "RecordLoader", "yaml.SafeLoader")
"""The first two are our own, and the classes below are looked at."""


def loads_unsafe_yaml(tree: ast.AST) -> Found:
    """yaml's loads but safe_load; loaders of our own that do not descend from SafeLoader."""
    for name, call in _calls(tree):
        if name in ("yaml.load", "yaml.load_all", "yaml.compose", "yaml.compose_all"):
            loader = _said(call, "Loader") or (call.args[1] if len(call.args) > 1 else None)
            if loader is None or ast.unparse(loader) not in SAFE_LOADERS:
                yield call
        elif name.startswith("yaml.") and name.partition(".")[2].startswith(("unsafe", "full")):
            yield call
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in map(ast.unparse, node.bases):
                if base.startswith("yaml.") and "Loader" in base and base != "yaml.SafeLoader":
                    yield node
        elif (
            isinstance(node, ast.ImportFrom)
            and node.module == "yaml"
            and any("load" in alias.name.lower() for alias in node.names)
        ):
            yield node


def evaluates_text(tree: ast.AST) -> Found:
    """eval, exec, compile and their like."""
    for name, call in _calls(tree):
        if name.removeprefix("builtins.") in EVALUATE:
            yield call


def starts_a_shell(tree: ast.AST) -> Found:
    """A command as one text, which a shell takes apart."""
    for name, call in _calls(tree):
        module, _, last = name.rpartition(".")
        if last in SHELLS.get(module, ()):
            yield call
        elif (module == "subprocess" and last in STARTS) or name == "Popen":
            shell = _said(call, "shell")
            command = call.args[0] if call.args else _said(call, "args")
            text = isinstance(command, ast.JoinedStr | ast.BinOp) and not any(
                isinstance(part, ast.List | ast.Tuple) for part in ast.walk(command)
            )
            constant = isinstance(command, ast.Constant) and isinstance(command.value, str)
            if (shell is not None and not _is(shell, False)) or text or constant:
                yield call
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(
            alias.name in SHELLS.get(node.module or "", ()) for alias in node.names
        ):
            yield node


def leaves_remote_code_open(tree: ast.AST) -> Found:
    """transformers' loads that do not say trust_remote_code: it then asks on the terminal."""
    for name, call in _calls(tree):
        owner, _, last = name.rpartition(".")
        if last not in ("from_pretrained", "from_config") or owner == "PeftModel":
            continue
        keywords = {each.arg for each in call.keywords}
        if not keywords & {"trust_remote_code", None}:  # None: **options, which say it
            yield call


def unpacks_all(tree: ast.AST) -> Found:
    """Archives as a whole: what is in them was not looked at."""
    for name, call in _calls(tree):
        if name.rpartition(".")[2] in ("extractall", "unpack_archive"):
            yield call


RULES: list[tuple[Callable[[ast.AST], Found], list[str]]] = [
    (
        loads_whole_pickles,
        [
            "torch.load(path)",
            "torch.load(path, weights_only=False)",
            "torch.load(path, weights_only=chosen)",
            "import pickle",
            "from pickle import loads",
            "from torch import load",
            "import os, marshal",
            "np.load(path, allow_pickle=True)",
            "pandas.read_pickle(path)",
        ],
    ),
    (
        loads_unsafe_yaml,
        [
            "yaml.load(text)",
            "yaml.load(text, yaml.Loader)",
            "yaml.load(text, Loader=yaml.UnsafeLoader)",
            "yaml.unsafe_load(text)",
            "yaml.full_load(text)",
            "class Loader(yaml.Loader): pass",
            "from yaml import load",
        ],
    ),
    (evaluates_text, ["eval(text)", "exec(text)", "compile(text, '', 'exec')", "__import__(name)"]),
    (
        starts_a_shell,
        [
            "os.system(command)",
            "os.popen('ls')",
            "from os import system",
            "subprocess.run(command, shell=True)",
            "subprocess.run(command, shell=asked)",
            "subprocess.run('ls')",
            "subprocess.Popen(f'ls {folder}')",
            "subprocess.check_output('ls ' + folder)",
            "subprocess.getoutput('ls')",
        ],
    ),
    (
        leaves_remote_code_open,
        ["AutoConfig.from_pretrained(place)", "AutoModelForCausalLM.from_config(config)"],
    ),
    (unpacks_all, ["tar.extractall(folder)", "shutil.unpack_archive(path)"]),
]


@pytest.mark.parametrize("rule", [rule for rule, _ in RULES], ids=lambda rule: rule.__name__)
def test_no_module_of_runner(rule: Callable[[ast.AST], Found]) -> None:
    assert len(MODULES) > 200
    found = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}: {ast.unparse(node)[:80]}"  # type: ignore[attr-defined]
        for path in MODULES
        for node in rule(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("rule", "line"), [(rule, line) for rule, lines in RULES for line in lines]
)
def test_a_rule_finds_what_breaks_it(rule: Callable[[ast.AST], Found], line: str) -> None:
    assert list(rule(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path, map_location='cpu', weights_only=True)",
        "yaml.safe_load(text)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "model.eval()",
        "re.compile(text)",
        "subprocess.run(['ls', folder])",
        "subprocess.run(module_argv('pip'), shell=False)",
        "subprocess.run([*command] + more)",
        "AutoConfig.from_pretrained(place, **options)",
        "AutoConfig.from_pretrained(place, trust_remote_code=False)",
        "json.load(stream)",
    ],
)
def test_no_rule_finds_what_is_right(line: str) -> None:
    assert not [rule for rule, _ in RULES if list(rule(ast.parse(line)))]


# The processes that may load a pickle

OTHERS = {
    "runner/engines/mgm/fetch/address.py": "standard library only",
    "runner/engines/job_kinds.py": "prints a schema",
    "runner/engines/job_reference.py": "prints a page",
}
UPSTREAM = "runner/engines/mgm/stages"
"""Scripts beside the toolkit's own code, in its environment; they stand alone."""


def entry_points() -> list[Path]:
    """Modules of the engine that are started as a process."""
    places = [
        path
        for name in ("engines", "fetch")
        for path in (REPOSITORY / "runner" / name).rglob("*.py")
    ]
    return sorted(
        path
        for path in places
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
        and not path.is_relative_to(REPOSITORY / UPSTREAM)
        and str(path.relative_to(REPOSITORY)) not in OTHERS
    )


@pytest.mark.parametrize("path", entry_points(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_each_process_of_the_engine_begins_by_forbidding_pickles(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    main = next(
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"
    )
    body = main.body[1:] if ast.get_docstring(main) else main.body
    assert ast.unparse(body[0]) == "load_tensors_only()"
    # nothing may load one while the module itself is imported
    assert not [
        node
        for node in tree.body
        if isinstance(node, ast.Import) and any(alias.name == "torch" for alias in node.names)
    ]


def test_there_are_such_processes() -> None:
    assert len(entry_points()) >= 10


def test_the_training_processes_have_it_from_the_launch_script_too() -> None:
    text = (REPOSITORY / "shell" / "launch.sh.j2").read_text(encoding="utf-8")
    assert "export TORCH_FORCE_WEIGHTS_ONLY_LOAD=1" in text
    assert "unset TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" in text
