"""The rooms as one SVG picture; ``python tools/structure.py --picture docs/figures/architecture.svg`` draws it.

Floors go from the top down: a room stands just below the lowest of those that import it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from html import escape
from itertools import combinations, pairwise, permutations
from textwrap import wrap
from typing import NamedTuple

WIDTH, GAP, LINE, MARGIN = 214, 26, 16, 24
COLOURS = ("#2f5d9b", "#b3541e", "#2b7a4b", "#8b3a74", "#6b6b1f", "#555555")
_STYLE = (
    "text{font-family:'DejaVu Sans',Verdana,sans-serif;font-size:12px;fill:#222}"
    ".name{font-size:15px;font-weight:bold}.parts{font-size:11px;fill:#446}"
    "rect{fill:#f3f6fb;stroke-width:1.4}path{fill:none;stroke-width:1.5}"
)


class Room(NamedTuple):
    """What the picture tells of one room."""

    knows: str
    parts: list[str]
    """The rooms in it."""
    imports: list[str]
    """The rooms to which an arrow goes."""


class Box(NamedTuple):
    """Where a room is drawn, or where an arrow passes a floor."""

    left: float
    top: float
    height: float
    colour: str


def draw(rooms: Mapping[str, Room], common: Mapping[str, str]) -> str:
    """The picture; ``common`` are the modules that every room may use, each with what it knows."""
    floors, ways = arrange(rooms)
    width = max(map(len, floors)) * (WIDTH + GAP) - GAP + 2 * MARGIN
    boxes: dict[str, Box] = {}
    top = float(MARGIN)
    for floor in floors:
        height = max(len(_lines(name, rooms[name])) for name in floor if name in rooms) * LINE + 16
        left = (width - len(floor) * (WIDTH + GAP) + GAP) / 2
        for at, name in enumerate(floor):
            boxes[name] = Box(left + at * (WIDTH + GAP), top, height, COLOURS[at % len(COLOURS)])
        top += height + 44 + 4 * sum(name in floor for way in ways for name in way[:-1])
    shapes = [shape for name in rooms for shape in _box(boxes[name], _lines(name, rooms[name]))]
    text = [("for every room", "name"), *((f"{name}: {line}", "text") for name, line in common.items())]
    below = Box(MARGIN, top, len(text) * LINE + 16, "#999")
    shapes += _box(below, text, width - 2 * MARGIN)
    height = below.top + below.height + MARGIN
    markers = "".join(
        f'<marker id="a{n}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" style="fill:{colour}"/></marker>'
        for n, colour in enumerate(COLOURS)
    )
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}" '
        f'viewBox="0 0 {width} {height:.0f}">',
        f"<style>{_STYLE}</style><defs>{markers}</defs>",
        '<rect width="100%" height="100%" style="fill:#fff"/>',
        f'<text x="{MARGIN}" y="{MARGIN + 16}">Imports point downwards.</text>',
        f'<text x="{MARGIN}" y="{MARGIN + 32}">What follows from other arrows is left out.</text>',
    ]
    return "\n".join([*head, *_arrows(ways, boxes), *shapes, "</svg>", ""])


def arrange(rooms: Mapping[str, Room]) -> tuple[list[list[str]], list[list[str]]]:
    """The floors from the top down, each in the order with the fewest crossings, and the arrows from floor to floor.

    An arrow that passes a floor has a place of its own there, named ``FROM>TO``.
    """
    depth = depths(rooms)
    floors = [sorted(name for name in rooms if depth[name] == level) for level in range(max(depth.values()) + 1)]
    ways = []
    for start, room in rooms.items():
        for end in room.imports:
            passed = [(level, f"{start}>{end}") for level in range(depth[start] + 1, depth[end])]
            for level, name in passed:
                floors[level].append(f"{name}@{level}")
            ways.append([start, *(f"{name}@{level}" for level, name in passed), end])
    for _ in range(6):
        for level, floor in enumerate(floors):
            best = (_tangle(floors, ways), tuple(floor))
            for order in _orders(floor):
                floors[level] = list(order)
                best = min(best, (_tangle(floors, ways), order))
            floors[level] = list(best[1])
    return floors, ways


MOST_TRIED = 6
"""Rooms and arrows on a floor of which all orders are tried; of more, those in which one has moved."""


def _orders(floor: list[str]) -> Iterator[tuple[str, ...]]:
    if len(floor) <= MOST_TRIED:
        yield from permutations(sorted(floor))
        return
    for name in sorted(floor):
        others = [other for other in floor if other != name]
        for place in range(len(floor)):
            yield (*others[:place], name, *others[place:])


def depths(rooms: Mapping[str, Room]) -> dict[str, int]:
    """Room -> floor, 0 at the top."""
    above = {name: {other for other, room in rooms.items() if name in room.imports} for name in rooms}
    depth: dict[str, int] = {}
    while len(depth) < len(rooms):
        ready = [name for name in rooms if name not in depth and depth.keys() >= above[name]]
        if not ready:
            raise SystemExit("rooms import each other in a circle: there is no picture of that")
        depth |= {name: 1 + max((depth[other] for other in above[name]), default=-1) for name in ready}
    return depth


def _tangle(floors: list[list[str]], ways: list[list[str]]) -> tuple[int, float]:
    """How often arrows cross, and how far they go sideways."""
    level = {name: number for number, floor in enumerate(floors) for name in floor}
    place = {name: at - len(floor) / 2 for floor in floors for at, name in enumerate(floor)}
    steps = defaultdict(list)
    for way in ways:
        for start, end in pairwise(way):
            steps[level[start]].append((place[start], place[end]))
    crossed = sum((a - c) * (b - d) < 0 for level in steps.values() for (a, b), (c, d) in combinations(level, 2))
    return crossed, sum(abs(a - b) for level in steps.values() for a, b in level)


def _lines(name: str, room: Room) -> list[tuple[str, str]]:
    """What stands in a room's box: text and style."""
    knows, parts = wrap(room.knows, 30), wrap(" · ".join(room.parts), 32)
    return [(name, "name"), *((line, "text") for line in knows), *((line, "parts") for line in parts)]


def _box(box: Box, lines: list[tuple[str, str]], width: float = WIDTH) -> Iterator[str]:
    yield (
        f'<rect x="{box.left:.0f}" y="{box.top:.0f}" width="{width:.0f}" height="{box.height:.0f}" rx="6" '
        f'style="stroke:{box.colour}"/>'
    )
    for number, (line, style) in enumerate(lines):
        y = box.top + 20 + LINE * number
        yield f'<text class="{style}" x="{box.left + 10:.0f}" y="{y:.0f}">{escape(line.replace("``", ""))}</text>'


def _arrows(ways: list[list[str]], boxes: Mapping[str, Box]) -> Iterator[str]:
    """Curves in the colour of the room they come from; each has an end of its own on a box."""
    leaving, arriving = defaultdict(list), defaultdict(list)
    for way in ways:
        for start, end in pairwise(way):
            leaving[start].append(end)
            arriving[end].append(start)

    def port(name: str, other: str, others: list[str]) -> float:
        order = sorted(others, key=lambda n: boxes[n].left)
        spread = min(36, WIDTH / (len(order) + 1))
        return boxes[name].left + WIDTH / 2 + (order.index(other) - (len(order) - 1) / 2) * spread

    for way in ways:
        path = ""
        for start, end in pairwise(way):
            x1, y1 = port(start, end, leaving[start]), boxes[start].top + boxes[start].height
            x2, y2 = port(end, start, arriving[end]), boxes[end].top
            bend = (y2 - y1) / 2
            path += f"{'L' if path else 'M'}{x1:.0f} {y1:.0f}"
            path += f"C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"
        colour = boxes[way[0]].colour
        yield f'<path d="{path}" style="stroke:{colour}" marker-end="url(#a{COLOURS.index(colour)})"/>'
