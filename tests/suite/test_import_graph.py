"""The picture of who imports whom: its arrows, circles and colours, on packages made by hand."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import grimp

from benchmarks.import_graph import draw, make_graph, read_sources, summarize

CONTRACT = """
[[tool.importlinter.contracts]]
containers = ["runner"]
layers = ["cli", "data | fetch", "common"]
"""
SOURCES = {
    "runner/__init__.py": "",
    "runner/__main__.py": "from runner.cli import main",
    "runner/cli/__init__.py": "def main():\n    from runner.data import rows",
    "runner/data/__init__.py": "",
    "runner/data/rows.py": "from . import columns\nfrom ..fetch import hub\nimport json",
    "runner/data/columns.py": "import runner.data.rows",
    "runner/fetch/__init__.py": "",
    "runner/fetch/hub.py": "from runner.common.units import GIB\nfrom runner.common import units",
    "runner/common/__init__.py": "",
    "runner/common/units.py": "import runner.cli",
}


def test_arrows_against_the_layers_and_circles_are_found() -> None:
    graph = make_graph({**SOURCES, "pyproject.toml": CONTRACT})
    assert graph.layers == (("cli",), ("data", "fetch"), ("common",))
    assert graph.arrows() == {
        ("cli", "data"): 1,
        ("data", "fetch"): 1,
        ("fetch", "common"): 1,
        ("common", "cli"): 1,
    }
    assert graph.wrong() == {("data", "fetch"): 1, ("common", "cli"): 1}
    assert graph.room_circles() == [["cli", "common", "data", "fetch"]]
    assert len(graph.circles()) == 1
    assert summarize(graph).startswith(
        "8 modules in 4 rooms; 4 imports between rooms in 4 arrows; 2"
    )


def test_rooms_without_a_contract_are_ordered_by_their_imports() -> None:
    sources = {name: text for name, text in SOURCES.items() if name != "runner/common/units.py"}
    sources["runner/common/units.py"] = "GIB = 1 << 30"
    graph = make_graph({**sources, "pyproject.toml": ""})
    assert graph.layers == (("cli",), ("data",), ("fetch",), ("common",))
    assert not graph.wrong()


def test_wrong_arrows_are_red() -> None:
    wrong = draw(make_graph({**SOURCES, "pyproject.toml": CONTRACT}), "A <title>")
    document = ElementTree.fromstring(wrong)  # noqa: S314 - our own text
    space = "{http://www.w3.org/2000/svg}"
    paths = [path for path in document.iter(f"{space}path") if path.get("fill") == "none"]
    assert len(paths) == 4
    assert sum(path.get("marker-end") == "url(#wrong)" for path in paths) == 2
    text = "".join(document.itertext())
    assert "A <title>" in text
    assert "data → fetch: 1" in text


def test_it_sees_the_imports_that_the_contract_sees() -> None:
    seen = make_graph(read_sources(None)).modules
    theirs = grimp.build_graph("runner", cache_dir=None)
    for module, found in seen.items():
        assert found == theirs.find_modules_directly_imported_by(module) - {"runner"}, module
