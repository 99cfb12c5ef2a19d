"""Draw which room of the package imports which, as SVG, with the numbers beneath it.

    python benchmarks/import_graph.py [--commit COMMIT] [--out FILE]

Rooms are the folders in runner/, and each module that lies loose there is one by itself. Their
order comes from the layers in pyproject.toml; where it has none, or lacks a room, they are ordered
so that few arrows point up. An arrow up, or between rooms of one layer, is red. Standard library
only; imports inside functions and under TYPE_CHECKING count.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tarfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = "runner"
Arrow = tuple[str, str]

MIN_WIDTH, ROW, BOX, MARGIN = 900, 74, 30, 24
PLAIN, WRONG = "#9aa5b1", "#d3222a"


@dataclass(frozen=True)
class Graph:
    """What imports what."""

    modules: Mapping[str, frozenset[str]]
    """Module -> the modules of the package that it imports."""
    layers: tuple[tuple[str, ...], ...]
    """Rooms from the highest to the lowest; those in one layer don't import each other."""

    def arrows(self) -> Counter[Arrow]:
        """(room, imported room) -> how many imports of the one's modules name the other's."""
        return Counter(
            (room_of(module), room_of(other))
            for module, others in self.modules.items()
            for other in others
            if room_of(module) != room_of(other)
        )

    def wrong(self) -> Counter[Arrow]:
        """The arrows that don't point to a lower layer."""
        level = {room: number for number, layer in enumerate(self.layers) for room in layer}
        return Counter({(a, b): n for (a, b), n in self.arrows().items() if level[a] >= level[b]})

    def circles(self) -> list[list[str]]:
        """The sets of modules that reach each other, each sorted."""
        return sorted(sorted(one) for one in components(self.modules) if len(one) > 1)

    def room_circles(self) -> list[list[str]]:
        """The same of rooms."""
        rooms: dict[str, set[str]] = {room: set() for layer in self.layers for room in layer}
        for a, b in self.arrows():
            rooms[a].add(b)
        return sorted(sorted(one) for one in components(rooms) if len(one) > 1)


def room_of(module: str) -> str:
    """The second part of a module's name."""
    return module.split(".")[1]


def components(graph: Mapping[str, Iterable[str]]) -> list[set[str]]:
    """The strongly connected components (Tarjan 1972, without recursion)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    on_path: set[str] = set()
    found: list[set[str]] = []
    for root in sorted(graph):
        if root in number:
            continue
        work = [(root, iter(sorted(graph[root])))]
        number[root] = low[root] = len(number)
        path.append(root)
        on_path.add(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in number:
                    number[target] = low[target] = len(number)
                    path.append(target)
                    on_path.add(target)
                    work.append((target, iter(sorted(graph[target]))))
                    break
                if target in on_path:
                    low[node] = min(low[node], number[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == number[node]:
                    component: set[str] = set()
                    while node not in component:
                        component.add(path.pop())
                    on_path -= component
                    found.append(component)
    return found


def read_sources(commit: str | None) -> dict[str, str]:
    """Path -> text of pyproject.toml and of the package's Python files, here or in a commit."""
    if commit is None:
        files = [REPOSITORY / "pyproject.toml", *sorted((REPOSITORY / PACKAGE).rglob("*.py"))]
        return {str(file.relative_to(REPOSITORY)): file.read_text() for file in files}
    archive = subprocess.run(
        ["git", "archive", commit, "pyproject.toml", PACKAGE],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    ).stdout
    texts = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None and member.name.endswith((".py", ".toml")):
                texts[member.name] = file.read().decode()
    return texts


def make_graph(sources: Mapping[str, str]) -> Graph:
    """The graph of the package's modules, `runner` itself and its __main__ left out."""
    texts = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): (path, text)
        for path, text in sources.items()
        if path.endswith(".py")
    }
    modules = {
        name: frozenset(imports_of(name, path, text, texts) - {name, PACKAGE})
        for name, (path, text) in texts.items()
        if name not in (PACKAGE, f"{PACKAGE}.__main__")
    }
    rooms = {room_of(name) for name in modules}
    settings = tomllib.loads(sources["pyproject.toml"])
    contracts = settings.get("tool", {}).get("importlinter", {}).get("contracts", [])
    given = next((one["layers"] for one in contracts if one.get("containers") == [PACKAGE]), [])
    layers = tuple(tuple(layer.split(" | ")) for layer in given)
    if {room for layer in layers for room in layer} != rooms:
        layers = stacked(modules, few_arrows_up(modules))
    return Graph(modules, layers)


def imports_of(name: str, path: str, text: str, known: Iterable[str]) -> set[str]:
    """The package's modules that a module imports, anywhere in its text."""
    found = set()
    package = name if path.endswith("/__init__.py") else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join(
                [*(parts if node.level else []), *([node.module] if node.module else [])]
            )
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found |= {one for one in (whole if whole in known else base,) if one in known}
    return found


def few_arrows_up(modules: Mapping[str, frozenset[str]]) -> list[str]:
    """Rooms from the highest to the lowest, by how much more they import than they are imported.

    Eades, Lin and Smyth 1993: sources first, sinks last, else the greatest difference.
    """
    graph = Graph(modules, ())
    left = {room_of(name) for name in modules}
    arrows = graph.arrows()
    high: list[str] = []
    low: list[str] = []
    while left:
        out = {
            room: sum(n for (a, b), n in arrows.items() if a == room and b in left) for room in left
        }
        into = {
            room: sum(n for (a, b), n in arrows.items() if b == room and a in left) for room in left
        }
        sinks = sorted(room for room in left if not out[room])
        best = sinks[0] if sinks else max(sorted(left), key=lambda room: out[room] - into[room])
        (low if sinks else high).append(best)
        left.remove(best)
    return [*high, *reversed(low)]


def stacked(modules: Mapping[str, frozenset[str]], order: list[str]) -> tuple[tuple[str, ...], ...]:
    """The rooms in as few layers as the arrows that follow the order allow."""
    arrows = Graph(modules, ()).arrows()
    height: dict[str, int] = {}
    for room in reversed(order):
        below = [height[b] for a, b in arrows if a == room and b in height]
        height[room] = max(below, default=-1) + 1
    levels = range(max(height.values()), -1, -1)
    return tuple(tuple(sorted(r for r in order if height[r] == level)) for level in levels)


def summarize(graph: Graph) -> str:
    """The numbers, in one line."""
    arrows, wrong = graph.arrows(), graph.wrong()
    return (
        f"{len(graph.modules)} modules in {sum(map(len, graph.layers))} rooms; "
        f"{arrows.total():,} imports between rooms in {len(arrows)} arrows; "
        f"{wrong.total()} imports in {len(wrong)} arrows up or sideways; "
        f"circles: {len(graph.room_circles())} of rooms, {len(graph.circles())} of modules"
    )


def draw(graph: Graph, title: str) -> str:
    """The graph as an SVG document: a row for each layer; counts of wrong arrows beside them."""
    place = places(graph)
    whole = width_of(graph)
    arrows, wrong = graph.arrows(), graph.wrong()
    height = 70 + ROW * len(graph.layers) + 16 * min(len(wrong), 12)
    bottom = 46 + ROW * len(graph.layers)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole:.0f} {height}" '
        f'width="{whole:.0f}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{whole:.0f}" height="{height}" fill="white"/>',
        "<defs>",
        *(marker(name, colour) for name, colour in (("plain", PLAIN), ("wrong", WRONG))),
        "</defs>",
        f'<text x="{MARGIN}" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    most = max(arrows.values(), default=1)
    for arrow, count in sorted(arrows.items(), key=lambda item: item[0] in wrong):
        lines += draw_arrow(
            place[arrow[0]], place[arrow[1]], count / most, count, whole, arrow in wrong
        )
    sizes = Counter(room_of(name) for name in graph.modules)
    for room, (x, y, width) in place.items():
        lines += [
            f'<rect x="{x - width / 2:.0f}" y="{y - BOX / 2:.0f}" width="{width:.0f}" '
            f'height="{BOX}" rx="5" fill="#f2f5f8" stroke="#334155"/>',
            f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">{escape(room)} '
            f'<tspan fill="#64748b">{sizes[room]}</tspan></text>',
        ]
    lines.append(f'<text x="{MARGIN}" y="{bottom:.0f}">{escape(summarize(graph))}</text>')
    for number, ((a, b), count) in enumerate(wrong.most_common(12)):
        lines.append(
            f'<text x="{MARGIN}" y="{bottom + 16 * (number + 1):.0f}" fill="{WRONG}">'
            f"{escape(a)} → {escape(b)}: {count}</text>"
        )
    return "\n".join([*lines, "</svg>", ""])


def box_width(room: str) -> float:
    """Of a room's box, in pixels; its name and the number of its modules fit in."""
    return 34 + 7.2 * (len(room) + 3)


def width_of(graph: Graph) -> float:
    """Of the whole picture, in pixels."""
    return max(MIN_WIDTH, *(sum(box_width(room) + 16 for room in layer) for layer in graph.layers))


def places(graph: Graph) -> dict[str, tuple[float, float, float]]:
    """Room -> centre and width of its box."""
    placed, whole = {}, width_of(graph)
    for number, layer in enumerate(graph.layers):
        # single rooms step aside by turns: arrows over several layers then pass them by
        shift = 0 if len(layer) > 1 else (-1, 1)[number % 2] * whole / 6
        for position, room in enumerate(layer):
            x = whole * (position + 1) / (len(layer) + 1) + shift
            if len(layer) > 4:  # too many for equal steps: side by side
                before = sum(box_width(other) + 16 for other in layer[:position])
                x = before + 8 + box_width(room) / 2
            placed[room] = (x, 60 + ROW * number, box_width(room))
    return placed


def marker(name: str, colour: str) -> str:
    """An arrow's head."""
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" markerUnits="userSpaceOnUse" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
    )


def lean(distance: float, width: float) -> float:
    """How far from a box's middle an arrow to something so far to the right starts."""
    return max(-width / 2 + 8, min(width / 2 - 8, distance / 6))


def draw_arrow(
    start: tuple[float, float, float],
    end: tuple[float, float, float],
    share: float,
    count: int,
    whole: float,
    is_wrong: bool,
) -> list[str]:
    """A curve from box to box with its count, the wider the greater its share of the most."""
    (x1, y1, width1), (x2, y2, width2) = start, end
    x1, x2 = x1 + lean(x2 - x1, width1), x2 + lean(x1 - x2, width2)
    down = 1 if y2 > y1 else -1
    y1, y2 = (
        (y1 + down * BOX / 2, y2 - down * BOX / 2) if y1 != y2 else (y1 - BOX / 2, y2 - BOX / 2)
    )
    span = abs(y2 - y1) / ROW
    bend = (x1 + x2) / 2 + (60 * span if x1 + x2 >= whole else -60 * span) * 0.5
    bend = min(max(bend, 10), whole - 10)
    middle = (y1 + y2) / 2 - (30 if y1 == y2 else 0)
    colour, name = (WRONG, "wrong") if is_wrong else (PLAIN, "plain")
    width = 0.8 + 3 * share**0.5
    at_x, at_y = (x1 + 2 * bend + x2) / 4, (y1 + 2 * middle + y2) / 4
    return [
        f'<path d="M{x1:.0f} {y1:.0f}Q{bend:.0f} {middle:.0f} {x2:.0f} {y2:.0f}" fill="none" '
        f'stroke="{colour}" stroke-opacity="{1 if is_wrong else 0.6}" '
        f'stroke-width="{width:.1f}" marker-end="url(#{name})"/>',
        f'<text x="{at_x:.0f}" y="{at_y:.0f}" font-size="9" fill="{colour}" stroke="white" '
        f'stroke-width="2" paint-order="stroke">{count}</text>',
    ]


def main() -> int:
    """Print the numbers, and the circles; write the picture where --out names a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commit", help="a commit, in place of the files as they lie here")
    parser.add_argument("--out", type=Path, help="the SVG to write")
    parser.add_argument("--title", default="Which room imports which")
    arguments = parser.parse_args()
    graph = make_graph(read_sources(arguments.commit))
    print(summarize(graph))
    for circle in graph.circles():
        print(f"  circle of {len(circle)}: {', '.join(circle)}")
    if arguments.out is not None:
        arguments.out.write_text(draw(graph, arguments.title))
    return 0


if __name__ == "__main__":
    sys.exit(main())
