"""Draws the pictures of jobs/data/llava_sample and writes what is true of each.

    python tests/testbed/draw_llava_sample.py

Needs Pillow alone; the same Pillow gives the same bytes.

A scene is drawn and described by one function, from the same figures, so that its caption and its
answers fit the picture. Pictures go to `images/`, captions to `pretrain.jsonl` (data-juicer's
layout), questions and answers to `finetune.json` (LLaVA's layout).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parents[2] / "jobs" / "data" / "llava_sample"
SCALE = 4  # drawn so many times larger, then shrunk: smooth edges
JPEG_QUALITY = 82

COLOURS = {
    "red": (214, 40, 40),
    "orange": (243, 140, 30),
    "yellow": (250, 206, 40),
    "green": (46, 150, 70),
    "blue": (38, 92, 200),
    "purple": (130, 60, 170),
    "pink": (242, 130, 175),
    "brown": (130, 84, 48),
    "grey": (140, 146, 152),
    "black": (28, 28, 32),
    "white": (255, 255, 255),
    "cream": (252, 244, 220),
    "sky": (190, 224, 248),
    "night": (24, 30, 66),
    "grass": (120, 186, 90),
    "sea": (54, 124, 190),
}
WORDS = "no one two three four five six seven eight nine ten eleven twelve"
NUMBERS = WORDS.split(" ")

Point = tuple[float, float]
Turn = tuple[str, str]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Scene:
    """A picture, its caption, and questions about it with their answers."""

    image: Image.Image
    caption: str
    questions: Sequence[Turn]


class Canvas:
    """A page to draw on, in the finished picture's pixels."""

    def __init__(self, width: int, height: int, background: str = "white") -> None:
        self.size = (width, height)
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), COLOURS[background])
        self.pen = ImageDraw.Draw(self.image)

    def polygon(self, points: Sequence[Point], fill: str) -> None:
        self.pen.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=COLOURS[fill])

    def line(self, points: Sequence[Point], fill: str = "black", width: float = 2) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self.pen.line(scaled, fill=COLOURS[fill], width=round(width * SCALE), joint="curve")

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: str, radius: float = 0) -> None:
        edges = (x0 * SCALE, y0 * SCALE, x1 * SCALE, y1 * SCALE)
        self.pen.rounded_rectangle(edges, radius * SCALE, fill=COLOURS[fill])

    def circle(self, x: float, y: float, radius: float, fill: str) -> None:
        edges = [(value * SCALE) for value in (x - radius, y - radius, x + radius, y + radius)]
        self.pen.ellipse(edges, fill=COLOURS[fill])

    def text(self, x: float, y: float, words: str, size: float, fill: str = "black") -> None:
        font = ImageFont.load_default(size * SCALE)
        self.pen.text((x * SCALE, y * SCALE), words, COLOURS[fill], font, anchor="mm")

    def finish(self) -> Image.Image:
        return self.image.resize(self.size, Image.Resampling.LANCZOS)


def a(words: str) -> str:
    """The words after their indefinite article."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def count(number: int, noun: str) -> str:
    """`one red circle`, `three boxes`."""
    if number == 1:
        return f"one {noun}"
    return f"{NUMBERS[number]} {noun}{'es' if noun.endswith('x') else 's'}"


def listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def capital(words: str) -> str:
    return words[0].upper() + words[1:]


def pick(variants: Sequence[Item], index: int) -> Item:
    return variants[index % len(variants)]


def ring(x: float, y: float, radius: float, corners: int, turn: float = 0.0) -> list[Point]:
    """The corners of a regular polygon; the first is straight up, or `turn` degrees on."""
    angles = [math.radians(turn + 360 * corner / corners - 90) for corner in range(corners)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def draw_shape(page: Canvas, shape: str, x: float, y: float, size: float, colour: str) -> None:
    if shape == "circle":
        page.circle(x, y, size, colour)
    elif shape == "square":
        page.polygon(ring(x, y, size * 1.28, 4, 45), colour)
    elif shape == "triangle":
        page.polygon(ring(x, y + size * 0.2, size * 1.2, 3), colour)
    elif shape == "diamond":
        page.polygon(ring(x, y, size * 1.2, 4), colour)
    elif shape == "hexagon":
        page.polygon(ring(x, y, size * 1.1, 6), colour)
    elif shape == "star":
        outer, inner = ring(x, y, size * 1.2, 5), ring(x, y, size * 0.5, 5, 36)
        page.polygon([point for pair in zip(outer, inner, strict=True) for point in pair], colour)
    else:
        raise ValueError(shape)


Group = tuple[int, str, str]


def shapes(index: int, groups: Sequence[Group], background: str) -> Scene:
    """Groups of (how many, colour, shape), spread over a page of three by three places."""
    page = Canvas(168, 168, background)
    order = (4, 0, 8, 2, 6, 1, 7, 3, 5)
    shift = ((0, 3), (4, -3), (-4, 2), (3, 4), (-3, -4), (2, -2), (-2, 3), (4, 2), (-4, -2))
    things = [(colour, shape) for number, colour, shape in groups for _ in range(number)]
    for place, (colour, shape) in enumerate(things):
        cell = order[(place + index) % 9]
        x, y = 30 + cell % 3 * 54 + shift[cell][0], 30 + cell // 3 * 54 + shift[cell][1]
        draw_shape(page, shape, x, y, 18, colour)
    counted = [count(number, f"{colour} {shape}") for number, colour, shape in groups]
    ground = f"{a(background)} background"
    number, colour, shape = pick(groups, index)
    total = len(things)
    caption = pick(
        [
            f"{listed(counted)} on {ground}",
            f"simple flat shapes: {listed(counted)}, drawn over {ground}",
            f"{a(background)} page with {listed(counted)} spread over it",
            f"an arrangement of {NUMBERS[total]} shapes: {listed(counted)}",
        ],
        index,
    )
    there = "is" if number == 1 else "are"
    sorts = f": {listed(counted)}" if len(groups) > 1 else f", all of them {colour} {shape}s"
    colours = {colour for _, colour, _ in groups}
    missing = next(colour for colour in ("blue", "red", "green", "pink") if colour not in colours)
    return Scene(
        page.finish(),
        caption,
        [
            (
                pick(
                    [
                        f"How many {colour} {shape}s are there?",
                        f"Count the {colour} {shape}s in the picture.",
                    ],
                    index,
                ),
                f"There {there} {count(number, f'{colour} {shape}')}.",
            ),
            (
                pick(
                    ["How many shapes are there in all?", "Count all the shapes in the picture."],
                    index,
                ),
                f"There are {NUMBERS[total]} shapes{sorts}.",
            ),
            (
                f"Is any of the shapes {missing}?",
                f"No, none of them is {missing}. I see {listed(counted)}.",
            ),
        ],
    )


def relation(
    index: int, first: tuple[str, str], where: str, second: tuple[str, str], background: str
) -> Scene:
    """Two shapes, and where the first is, seen from the second."""
    page = Canvas(144, 144, background)
    places: dict[str, tuple[Point, float]] = {
        "to the left of": ((34, 72), 24),
        "to the right of": ((110, 72), 24),
        "above": ((72, 34), 24),
        "below": ((72, 110), 24),
        "inside": ((72, 72), 20),
    }
    (x, y), size = places[where]
    if where == "inside":
        draw_shape(page, second[1], 72, 72, 52, second[0])
    else:
        draw_shape(page, second[1], 144 - x, 144 - y, 24, second[0])
    draw_shape(page, first[1], x, y, size, first[0])
    one, other = " ".join(first), " ".join(second)
    opposite = {
        "to the left of": "to the right of",
        "to the right of": "to the left of",
        "above": "below",
        "below": "above",
        "inside": "outside",
    }[where]
    caption = pick(
        [
            f"{a(one)} {where} {a(other)}",
            f"two shapes, {a(one)} and {a(other)}; the {first[1]} is {where} the {second[1]}",
            f"on {a(background)} ground, {a(one)} is {where} {a(other)}",
        ],
        index,
    )
    return Scene(
        page.finish(),
        caption,
        [
            (f"Where is the {one}?", f"The {one} is {where} the {other}."),
            (f"What is {where} the {other}?", f"{capital(a(one))} is {where} it."),
            (
                f"Is the {first[1]} {opposite} the {second[1]}?",
                f"No, the {first[1]} is {where} the {second[1]}.",
            ),
            (f"What colour is the {second[1]}?", f"The {second[1]} is {second[0]}."),
        ],
    )


def bars(index: int, title: str, unit: str, values: dict[str, int], colour: str) -> Scene:
    """A bar chart with the value over each bar. `unit` says what is counted."""
    page = Canvas(200, 160)
    page.text(100, 14, title, 13)
    base, step, high = 134, 168 / len(values), max(values.values())
    for place, (name, value) in enumerate(values.items()):
        middle = 24 + step * (place + 0.5)
        top = base - 90 * value / high
        page.box(middle - step * 0.3, top, middle + step * 0.3, base, colour)
        page.text(middle, top - 8, str(value), 12)
        page.text(middle, base + 12, name, 12)
    page.line([(20, 30), (20, base), (194, base)], width=1.5)
    most = max(values, key=lambda name: values[name])
    least = min(values, key=lambda name: values[name])
    spelled = listed([f"{name} {value}" for name, value in values.items()])
    caption = pick(
        [
            f"a bar chart titled {title}: {spelled}",
            f"{a(colour)} bar chart of {unit}, the highest of its {NUMBERS[len(values)]} bars is"
            f" {most}",
            f"{title} as a bar chart, from {least} with {values[least]} to {most} with"
            f" {values[most]}",
        ],
        index,
    )
    names = list(values)
    return Scene(
        page.finish(),
        caption,
        [
            (
                pick(["Which bar is the tallest?", "Where is the chart at its highest?"], index),
                f"{most} is the tallest bar, with {values[most]} {unit}.",
            ),
            (
                pick(["Which bar is the shortest?", "What is the smallest value?"], index),
                f"{least} is the shortest bar, with {values[least]} {unit}.",
            ),
            (
                f"How many {unit} does the chart show for {names[1]}?",
                f"It shows {values[names[1]]} {unit} for {names[1]}.",
            ),
            (
                "What do all the bars add up to?",
                f"{' + '.join(map(str, values.values()))} = {sum(values.values())} {unit}.",
            ),
        ],
    )


def clock(index: int, hour: int, minute: int, rim: str) -> Scene:
    """A clock face with twelve numerals; minutes are a multiple of five."""
    page = Canvas(150, 150, "cream")
    page.circle(75, 75, 68, rim)
    page.circle(75, 75, 62, "white")
    for numeral, (x, y) in enumerate(ring(75, 75, 51, 12), start=0):
        page.text(x, y, str(numeral or 12), 14)
    (hour_hand,) = ring(75, 75, 28, 1, 30 * (hour + minute / 60))
    (minute_hand,) = ring(75, 75, 42, 1, 6 * minute)
    page.line([(75, 75), hour_hand], width=6)
    page.line([(75, 75), minute_hand], width=3)
    page.circle(75, 75, 5, "black")
    spelled = {0: f"{NUMBERS[hour]} o'clock", 15: f"a quarter past {NUMBERS[hour]}"}
    spelled |= {30: f"half past {NUMBERS[hour]}", 45: f"a quarter to {NUMBERS[hour % 12 + 1]}"}
    figures = f"{hour}:{minute:02d}"
    said = spelled.get(minute, figures)
    caption = pick(
        [
            f"a round clock with {a(rim)} rim that shows {said}",
            f"the hands of {a(rim)} wall clock at {figures}",
            f"a clock face, the time is {said}",
        ],
        index,
    )
    return Scene(
        page.finish(),
        caption,
        [
            ("What time does the clock show?", f"The clock shows {figures}."),
            (
                "Which number does the long hand point at?",
                f"The long minute hand points at {minute // 5 or 12}.",
            ),
            ("What colour is the rim of the clock?", f"The rim is {rim}."),
        ],
    )


def light(index: int, lit: str, upright: bool) -> Scene:
    """A traffic light with one lamp on; the others are dark grey."""
    page = Canvas(112, 176, "sky") if upright else Canvas(192, 112, "sky")
    width, height = page.size
    if upright:
        page.box(width / 2 - 5, 130, width / 2 + 5, height, "grey")
        page.box(28, 10, 84, 152, "black", 10)
    else:
        page.box(20, 30, 172, 86, "black", 10)
    for place, colour in enumerate(("red", "yellow", "green")):
        x, y = (56, 36 + 45 * place) if upright else (46 + 50 * place, 58)
        page.circle(x, y, 20, "grey")
        page.circle(x, y, 18, colour if colour == lit else "black")
    order = ("top", "middle", "bottom") if upright else ("left", "middle", "right")
    where = order[("red", "yellow", "green").index(lit)]
    meaning = {
        "red": "Drivers must stop.",
        "yellow": "Drivers should get ready to stop.",
        "green": "Drivers may go if the way is clear.",
    }[lit]
    form = "an upright" if upright else "a horizontal"
    caption = pick(
        [
            f"{form} traffic light that shows {lit}",
            f"{form} traffic signal, its {where} lamp lit in {lit}",
        ],
        index,
    )
    return Scene(
        page.finish(),
        caption,
        [
            ("Which colour is the traffic light showing?", f"It is showing {lit}."),
            ("What does this light tell drivers?", f"The {lit} light is on. {meaning}"),
            ("Where is the lamp that is on?", f"It is the {where} lamp, and it is {lit}."),
        ],
    )


def sign(index: int, word: str, form: str, colour: str, ink: str) -> Scene:
    """A sign on a post with one word in capitals."""
    page = Canvas(144, 168, "sky")
    page.box(0, 150, 144, 168, "grass")
    page.box(68, 90, 76, 156, "grey")
    if form == "octagonal":
        page.polygon(ring(72, 66, 58, 8, 22.5), "white")
        page.polygon(ring(72, 66, 53, 8, 22.5), colour)
    elif form == "diamond-shaped":
        page.polygon(ring(72, 66, 62, 4), "black")
        page.polygon(ring(72, 66, 57, 4), colour)
    elif form == "round":
        page.circle(72, 66, 54, "white")
        page.circle(72, 66, 49, colour)
    else:
        page.box(12, 36, 132, 96, "white", 6)
        page.box(16, 40, 128, 92, colour, 4)
    room = 70 if form in ("diamond-shaped", "round") else 92
    page.text(72, 66, word, min(28, room / (0.72 * len(word))), ink)
    caption = pick(
        [
            f"{a(form)} {colour} sign that says {word}",
            f"a road sign with the word {word} in {ink} letters on {colour}",
            f"{a(colour)} sign on a grey post, it reads {word}",
        ],
        index,
    )
    return Scene(
        page.finish(),
        caption,
        [
            ("What does the sign say?", f'The sign says "{word}".'),
            ("What shape and colour is the sign?", f"It is {a(form)} sign in {colour}."),
            ("What colour are the letters?", f"The letters are {ink}."),
        ],
    )


def house(
    index: int, wall: str, roof: str, windows: int, tree: str | None, night: bool, chimney: bool
) -> Scene:
    """A house with a door and up to three windows, by day or by night; a tree left, right or no."""
    page = Canvas(192, 160, "night" if night else "sky")
    page.box(0, 130, 192, 160, "grass")
    if night:
        page.circle(168, 26, 14, "cream")
        page.circle(162, 22, 12, "night")
        for x, y in ((20, 20), (60, 12), (110, 22), (140, 48)):
            draw_shape(page, "star", x, y, 4, "yellow")
    else:
        page.circle(168, 26, 15, "yellow")
    if chimney:
        page.box(118, 30, 132, 70, "grey")
    page.polygon([(46, 74), (96, 30), (146, 74)], roof)
    page.box(54, 74, 138, 136, wall)
    page.box(86, 104, 106, 136, "brown")
    page.circle(102, 120, 1.8, "yellow")
    glass = "yellow" if night else "white"
    for x in {1: (64,), 2: (64, 112), 3: (60, 87, 114)}[windows]:
        page.box(x - 1, 79, x + 19, 97, "black")
        page.box(x + 1, 81, x + 17, 95, glass)
        page.line([(x + 9, 81), (x + 9, 95)], width=1)
    if tree:
        x = 26 if tree == "left" else 168
        page.box(x - 4, 106, x + 4, 140, "brown")
        page.circle(x, 94, 20, "green")
    sky = "at night under the moon" if night else "on a sunny day"
    beside = f" with a tree on its {tree}" if tree else ""
    panes = count(windows, "window")
    caption = pick(
        [
            f"{a(wall)} house with {a(roof)} roof and {panes}, {sky}{beside and ',' + beside}",
            f"a small house {sky}: {wall} walls, {a(roof)} roof, {panes} and a brown door",
            f"{sky}, {a(wall)} house{beside}; its roof is {roof}",
        ],
        index,
    )
    smoke = "Yes, there is a grey chimney." if chimney else "No, the roof has no chimney."
    green = f"Yes, a green tree stands {tree} of the house." if tree else "No, there is no tree."
    return Scene(
        page.finish(),
        caption,
        [
            ("What colour is the roof?", f"The roof is {roof}, and the walls are {wall}."),
            ("How many windows does the house have?", f"It has {panes}."),
            (
                "Is it day or night?",
                "It is night: the moon and stars are out."
                if night
                else "It is day: the sun is shining.",
            ),
            ("Does the house have a chimney?", smoke),
            ("Is there a tree beside the house?", green),
        ],
    )


def boat(index: int, hull: str, sail: str, birds: int, sun: bool) -> Scene:
    """A sailing boat on the sea, with some birds in the sky."""
    page = Canvas(176, 144, "sky")
    page.box(0, 104, 176, 144, "sea")
    if sun:
        page.circle(26, 26, 14, "yellow")
    page.box(86, 26, 90, 100, "brown")
    page.polygon([(92, 28), (92, 90), (136, 90)], sail)
    page.polygon([(84, 40), (84, 90), (56, 90)], sail)
    page.polygon([(42, 96), (144, 96), (126, 120), (58, 120)], hull)
    for x, y in ((118, 20), (148, 34), (56, 16), (156, 12))[:birds]:
        page.line([(x - 8, y - 4), (x, y + 2), (x + 8, y - 4)], width=2)
    for x in (12, 150):
        page.line([(x, 130), (x + 8, 127), (x + 16, 130)], "white", 1.5)
    flock = count(birds, "bird") if birds else "no birds"
    flying = f" and {flock} in the sky" if birds else ""
    caption = pick(
        [
            f"{a(hull)} sailing boat with {sail} sails on the sea{flying}",
            f"a boat under {sail} sails, its hull {hull}, {'sun and ' if sun else ''}blue water",
        ],
        index,
    )
    return Scene(
        page.finish(),
        caption,
        [
            ("What colour are the sails?", f"The sails are {sail}."),
            ("How many birds are in the sky?", f"There {'is' if birds == 1 else 'are'} {flock}."),
            (
                "Can you see the sun?",
                "Yes, the sun is at the top left." if sun else "No, the sun is not in the picture.",
            ),
            ("What is on the water?", f"{capital(a(hull))} boat with {sail} sails is on the sea."),
        ],
    )


def cloud(page: Canvas, x: float, y: float, colour: str) -> None:
    page.circle(x - 26, y, 18, colour)
    page.circle(x, y - 12, 25, colour)
    page.circle(x + 28, y - 2, 19, colour)
    page.box(x - 30, y - 2, x + 32, y + 17, colour, 8)


def weather(index: int, kind: str, degrees: int) -> Scene:
    """A weather icon over a temperature in degrees Celsius."""
    page = Canvas(140, 160, "sky" if kind in ("sunny", "partly cloudy", "cloudy") else "cream")
    if kind in ("sunny", "partly cloudy"):
        x, y = (70, 60) if kind == "sunny" else (48, 44)
        for inner, outer in zip(ring(x, y, 26, 8), ring(x, y, 38, 8), strict=True):
            page.line([inner, outer], "orange", 4)
        page.circle(x, y, 22, "yellow")
    if kind == "partly cloudy":
        cloud(page, 80, 78, "white")
    elif kind == "cloudy":
        cloud(page, 72, 68, "grey")
    elif kind != "sunny":
        cloud(page, 70, 52, "grey")
    if kind == "rainy":
        for x, y in ((44, 84), (64, 92), (84, 84), (100, 94)):
            page.line([(x, y - 6), (x - 5, y + 8)], "blue", 4)
    elif kind == "snowy":
        for x, y in ((44, 88), (64, 98), (84, 86), (102, 98)):
            for end in ring(x, y, 7, 6):
                page.line([(x, y), end], "blue", 2)
    elif kind == "stormy":
        page.polygon([(74, 66), (54, 94), (68, 94), (60, 118), (88, 84), (73, 84)], "orange")
    page.text(70, 140, f"{degrees} °C", 22)
    parts = {
        "sunny": "a bright sun",
        "partly cloudy": "a sun behind a white cloud",
        "cloudy": "one grey cloud",
        "rainy": "a grey cloud with blue raindrops",
        "snowy": "a grey cloud with snowflakes",
        "stormy": "a grey cloud with a flash of lightning",
    }[kind]
    caption = pick(
        [
            f"a {kind} weather icon with {degrees} °C below it",
            f"weather symbol: {parts}, and the temperature {degrees} °C",
            f"{parts} over the figure {degrees} °C",
        ],
        index,
    )
    return Scene(
        page.finish(),
        caption,
        [
            ("What is the weather like?", f"It is {kind}: the icon shows {parts}."),
            ("What temperature is shown?", f"The temperature shown is {degrees} °C."),
            (
                "Would you take an umbrella?",
                "Yes, the icon shows rain."
                if kind == "rainy"
                else "The icon shows a storm, so it is better to be ready for rain."
                if kind == "stormy"
                else "The icon shows no rain, so an umbrella is not needed for that.",
            ),
        ],
    )


def number_line(index: int, last: int, marked: int, colour: str) -> Scene:
    """A line from 0 to `last`, an arrow over one of its numbers."""
    page = Canvas(216, 96)
    step = 184 / last
    page.line([(10, 58), (206, 58)], width=2)
    for number in range(last + 1):
        x = 16 + step * number
        page.line([(x, 52), (x, 64)], width=2)
        page.text(x, 76, str(number), 12)
    x = 16 + step * marked
    page.box(x - 3, 14, x + 3, 36, colour)
    page.polygon([(x - 9, 34), (x + 9, 34), (x, 49)], colour)
    caption = pick(
        [
            f"a number line from 0 to {last} with {a(colour)} arrow at {marked}",
            f"{a(colour)} arrow that points at {marked} on a line numbered 0 to {last}",
        ],
        index,
    )
    half = last / 2
    side = "right" if marked > half else "left"
    return Scene(
        page.finish(),
        caption,
        [
            ("Which number does the arrow point at?", f"The arrow points at {marked}."),
            (
                f"How far is the arrow from {last}?",
                f"It is at {marked}, so it is {last - marked} away from {last}.",
            ),
            (
                "Is the arrow left or right of the middle of the line?",
                f"It is on the {side}: {marked} is {'more' if side == 'right' else 'less'} than"
                f" {half:g}.",
            ),
        ],
    )


def apple_tree(index: int, hanging: int, fallen: int, colour: str) -> Scene:
    """A tree with apples on it and under it."""
    page = Canvas(152, 168, "sky")
    page.box(0, 140, 152, 168, "grass")
    page.box(66, 92, 86, 146, "brown")
    for x, y, radius in ((48, 70, 34), (104, 70, 34), (76, 48, 38), (76, 84, 30)):
        page.circle(x, y, radius, "green")
    on_tree = ((76, 40), (44, 66), (106, 62), (74, 74), (52, 90), (98, 88), (50, 40), (104, 36))
    for x, y in on_tree[:hanging]:
        page.circle(x, y, 6, colour)
    for x, y in ((30, 152), (116, 150), (98, 158))[:fallen]:
        page.circle(x, y, 6, colour)
    up = count(hanging, f"{colour} apple")
    down = f"{NUMBERS[fallen] if fallen else 'none'} on the ground"
    caption = pick(
        [
            f"a green tree with {up} on it and {down}",
            f"an apple tree: {up} in the leaves, {down}",
        ],
        index,
    )
    return Scene(
        page.finish(),
        caption,
        [
            ("How many apples hang on the tree?", f"{capital(up)} hang on the tree."),
            (
                "How many apples lie on the grass?",
                f"{capital(count(fallen, 'apple') if fallen else 'no apples')}"
                f" {'lies' if fallen == 1 else 'lie'} on the grass.",
            ),
            (
                "How many apples are there altogether?",
                f"{hanging} on the tree and {fallen} on the ground make {hanging + fallen}.",
            ),
        ],
    )


def dice(index: int, values: Sequence[int], colour: str) -> Scene:
    """One to three dice, seen from above."""
    page = Canvas(32 + 64 * len(values), 96, "cream")
    spots = {
        1: [(0, 0)],
        2: [(-1, -1), (1, 1)],
        3: [(-1, -1), (0, 0), (1, 1)],
        4: [(-1, -1), (1, -1), (-1, 1), (1, 1)],
        5: [(-1, -1), (1, -1), (0, 0), (-1, 1), (1, 1)],
        6: [(-1, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (1, 1)],
    }
    for place, value in enumerate(values):
        x, y = 48 + 64 * place, 48
        page.box(x - 28, y - 28, x + 28, y + 28, "black", 9)
        page.box(x - 26, y - 26, x + 26, y + 26, colour, 8)
        for across, down in spots[value]:
            ink = "black" if colour in ("white", "yellow") else "white"
            page.circle(x + across * 14, y + down * 14, 5, ink)
    shown = listed([str(value) for value in values])
    many = count(len(values), f"{colour} die") if len(values) == 1 else ""
    many = many or f"{NUMBERS[len(values)]} {colour} dice"
    caption = pick([f"{many} showing {shown}", f"{many}, the spots on top: {shown}"], index)
    questions = [
        (
            "What colour are the dice?" if len(values) > 1 else "What colour is the die?",
            f"{'They are' if len(values) > 1 else 'It is'} {colour}.",
        )
    ]
    if len(values) > 1:
        total = f"{' + '.join(map(str, values))} = {sum(values)}."
        questions.append(("What is the sum of the dice?", total))
        questions.append(("What does the die on the left show?", f"It shows {values[0]}."))
    else:
        questions.append(("What number was rolled?", f"The die shows {values[0]}."))
    return Scene(page.finish(), caption, questions)


def arrow(index: int, direction: str, colour: str, background: str) -> Scene:
    """One thick arrow."""
    page = Canvas(112, 112, background)
    straight_up = [(0, -42), (34, -4), (14, -4), (14, 42), (-14, 42), (-14, -4), (-34, -4)]
    quarter = ("up", "right", "down", "left").index(direction)
    points: list[Point] = [(float(x), float(y)) for x, y in straight_up]
    for _ in range(quarter):
        points = [(-y, x) for x, y in points]
    page.polygon([(56 + x, 56 + y) for x, y in points], colour)
    side = {"left": "to the left", "right": "to the right"}.get(direction, direction)
    opposite = {"up": "down", "down": "up", "left": "right", "right": "left"}[direction]
    caption = pick(
        [
            f"a thick {colour} arrow pointing {side}",
            f"{a(colour)} arrow on {a(background)} square, it points {side}",
        ],
        index,
    )
    return Scene(
        page.finish(),
        caption,
        [
            ("Which way does the arrow point?", f"It points {side}."),
            (f"Does the arrow point {opposite}?", f"No, it points {side}."),
            (
                "What colours are the arrow and its background?",
                f"The arrow is {colour}, the background is {background}.",
            ),
        ],
    )


def train(index: int, engine: str, wagons: Sequence[str]) -> Scene:
    """An engine on the left that pulls up to four wagons."""
    page = Canvas(224, 96, "cream")
    page.box(0, 80, 224, 84, "grey")
    page.box(10, 44, 46, 72, engine, 4)
    page.box(34, 26, 50, 72, engine, 2)
    page.box(38, 31, 47, 42, "white")
    page.box(16, 30, 23, 46, "black")
    for x in (20, 40):
        page.circle(x, 74, 7, "black")
    for place, colour in enumerate(wagons):
        left = 56 + 42 * place
        page.line([(left - 7, 66), (left, 66)], width=3)
        page.box(left, 44, left + 35, 72, colour, 2)
        for x in (left + 9, left + 26):
            page.circle(x, 74, 6, "black")
    many = count(len(wagons), "wagon")
    caption = pick(
        [
            f"{a(engine)} engine with {many}: {listed(wagons)}",
            f"a toy train, {engine} engine in front, then {many} in {listed(wagons)}",
        ],
        index,
    )
    return Scene(
        page.finish(),
        caption,
        [
            ("How many wagons does the engine pull?", f"It pulls {many}."),
            ("What colour is the last wagon?", f"The last wagon is {wagons[-1]}."),
            ("What colour is the engine?", f"The engine is {engine}."),
            (
                "Name the colours of the wagons from front to back.",
                f"From front to back: {listed(wagons)}.",
            ),
        ],
    )


SCENES: dict[Callable[..., Scene], list[tuple[object, ...]]] = {
    shapes: [
        ([(3, "red", "circle"), (2, "blue", "square")], "white"),
        ([(4, "green", "triangle")], "cream"),
        ([(1, "purple", "star"), (5, "orange", "circle")], "white"),
        ([(2, "yellow", "hexagon"), (2, "black", "diamond"), (1, "red", "square")], "sky"),
        ([(6, "pink", "star")], "night"),
        ([(3, "brown", "diamond"), (3, "green", "circle")], "cream"),
        ([(2, "blue", "triangle"), (1, "orange", "square"), (4, "purple", "circle")], "white"),
        ([(7, "red", "square"), (1, "yellow", "star")], "grey"),
    ],
    relation: [
        (("red", "circle"), "above", ("blue", "square"), "white"),
        (("green", "triangle"), "to the left of", ("orange", "star"), "cream"),
        (("yellow", "star"), "inside", ("purple", "circle"), "white"),
        (("black", "diamond"), "below", ("pink", "hexagon"), "white"),
        (("blue", "hexagon"), "to the right of", ("brown", "square"), "cream"),
        (("white", "square"), "inside", ("green", "hexagon"), "yellow"),
        (("orange", "circle"), "below", ("grey", "triangle"), "white"),
        (("purple", "square"), "to the left of", ("red", "diamond"), "sky"),
    ],
    bars: [
        ("Apples sold", "apples", {"Mon": 3, "Tue": 5, "Wed": 2}, "red"),
        ("Rainy days", "rainy days", {"Jan": 9, "Apr": 12, "Jul": 4, "Oct": 7}, "blue"),
        ("Books read", "books", {"Ana": 6, "Ben": 2, "Cleo": 8, "Dan": 5}, "green"),
        ("Cars parked", "cars", {"8 h": 10, "12 h": 25, "16 h": 18, "20 h": 6}, "orange"),
        ("Laps swum", "laps", {"Fri": 7, "Sat": 11, "Sun": 4}, "purple"),
        ("Votes", "votes", {"Park": 14, "Pool": 20, "Zoo": 17, "Lake": 11, "Farm": 8}, "brown"),
    ],
    clock: [
        (3, 0, "red"),
        (7, 30, "blue"),
        (10, 15, "green"),
        (1, 45, "black"),
        (5, 20, "purple"),
        (11, 50, "orange"),
    ],
    light: [("red", True), ("green", True), ("yellow", True), ("green", False), ("red", False)],
    sign: [
        ("STOP", "octagonal", "red", "white"),
        ("EXIT", "rectangular", "green", "white"),
        ("SLOW", "diamond-shaped", "yellow", "black"),
        ("OPEN", "rectangular", "blue", "white"),
        ("BUS", "round", "blue", "yellow"),
        ("QUIET", "rectangular", "purple", "white"),
        ("DETOUR", "rectangular", "orange", "black"),
    ],
    house: [
        ("yellow", "red", 2, "left", False, True),
        ("white", "blue", 1, None, False, False),
        ("pink", "purple", 2, "right", True, False),
        ("orange", "brown", 3, "right", False, True),
        ("grey", "black", 3, "left", False, False),
        ("cream", "green", 1, None, True, True),
        ("blue", "orange", 2, "left", True, False),
    ],
    boat: [
        ("brown", "white", 2, True),
        ("red", "yellow", 0, True),
        ("black", "orange", 3, False),
        ("green", "pink", 1, True),
        ("purple", "white", 4, False),
    ],
    weather: [
        ("sunny", 29),
        ("rainy", 14),
        ("snowy", -3),
        ("cloudy", 18),
        ("stormy", 22),
        ("partly cloudy", 24),
    ],
    number_line: [(10, 7, "red"), (10, 2, "blue"), (6, 5, "green"), (8, 1, "purple")],
    apple_tree: [(5, 2, "red"), (8, 0, "yellow"), (3, 1, "red"), (6, 3, "orange")],
    dice: [
        ((4,), "white"),
        ((6, 1), "red"),
        ((2, 5), "blue"),
        ((3, 3, 5), "green"),
        ((1, 4, 6), "yellow"),
    ],
    arrow: [
        ("up", "black", "yellow"),
        ("left", "red", "white"),
        ("down", "white", "blue"),
        ("right", "green", "cream"),
    ],
    train: [
        ("red", ["blue", "yellow"]),
        ("black", ["green", "orange", "purple"]),
        ("green", ["pink"]),
        ("blue", ["red", "grey", "brown", "yellow"]),
    ],
}
SKY_NAMES = {"sky": "light blue", "night": "dark blue"}


def scenes() -> Iterator[tuple[str, int, Scene]]:
    """Name, running number and scene of every picture."""
    number = 0
    for draw, settings in SCENES.items():
        for index, values in enumerate(settings):
            yield f"{draw.__name__}_{index + 1}", number, draw(index, *values)
            number += 1


def plain(words: str) -> str:
    """Palette names as a reader would say them."""
    for name, said in SKY_NAMES.items():
        words = words.replace(f"a {name} ", f"a {said} ")
    return words


def main() -> None:
    (HERE / "images").mkdir(exist_ok=True)
    pretrain, finetune = [], []
    for name, number, scene in scenes():
        path = f"images/{name}.jpg"
        scene.image.save(HERE / path, quality=JPEG_QUALITY, optimize=True)
        text = f"<__dj__image>\n{plain(scene.caption)} <|__dj__eoc|>"
        pretrain.append({"id": name, "text": text, "images": [path]})
        first = number % len(scene.questions)
        turns = [*scene.questions[first:], *scene.questions[:first]][
            : 2 if number % 5 in (0, 3) else 1
        ]
        conversations = []
        for place, (question, answer) in enumerate(turns):
            mark = "<image>\n" if place == 0 else ""
            conversations.append({"from": "human", "value": mark + question})
            conversations.append({"from": "gpt", "value": answer})
        finetune.append({"id": name, "image": path, "conversations": conversations})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pretrain)
    (HERE / "pretrain.jsonl").write_text(lines, encoding="utf-8")
    rows = json.dumps(finetune, ensure_ascii=False, indent=1) + "\n"
    (HERE / "finetune.json").write_text(rows, encoding="utf-8")


if __name__ == "__main__":
    main()
