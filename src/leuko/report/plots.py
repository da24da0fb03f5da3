"""Plots as inline SVG; colours are those of the page, so that plots follow its dark mode."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

from leuko.volume import Array

INK, PAPER, SOFT = "currentColor", "var(--card)", "var(--soft)"
LINE, FILL = "var(--line)", "var(--accent)"
LOST = "#d55e00"  # of Okabe and Ito: colour-blind people can tell it from the page's blue
SIDES = ("left", "right")
LEAST_SHOWN_ML = 0.05  # rounds to 0.1
DENSE = 0.45  # of the largest volume: on such a field light words are easier to read
LARGEST_ML = 1e3  # in a histogram
BINS = 4  # of a histogram, per power of ten
# Of a bullseye: centre, smallest radius, width of a shell, distance of two lines of text.
CENTRE, INNER, STEP, LINE_HEIGHT = (180, 172), 22, 27, 12

LABEL_PX = 27  # from a bullseye to the name of a sector
STEPS = 20  # of a colour bar
MOST_NAMES = 8  # under an axis

Point = tuple[float, float]


@dataclass(frozen=True)
class Plot:
    """A plot and its data: titles of columns, and rows of a name and a value for each column."""

    svg: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float]]]


def bullseye(ml: Array, shells: Sequence[str], sectors: Sequence[str]) -> Plot:
    """Lesion volume by shell and sector, `ml` (shells, sectors): the ventricles at the centre, the
    cortex outside. Left sectors are on the right, as on the slices."""
    left, right = ([k for k, n in enumerate(sectors) if n.startswith(side)] for side in SIDES)
    others = [k for k in range(len(sectors)) if k not in left + right]
    order = [*left, *others, *reversed(right)]  # clockwise from the top
    most = max(float(np.max(ml)), LEAST_SHOWN_ML)
    radii = [INNER + STEP * k for k in range(len(shells) + 1)]
    turns = np.linspace(0, 2 * math.pi, len(order) + 1)
    parts = []
    for sector, (begin, end) in zip(order, pairwise(turns), strict=True):
        middle = (begin + end) / 2
        for volume, (low, high) in zip(ml[:, sector], pairwise(radii), strict=True):
            parts.append(_arc((begin, end), (low, high), opacity=math.sqrt(volume / most)))
            if volume >= LEAST_SHOWN_ML:
                ink = PAPER if volume > DENSE * most else INK
                parts.append(_text(_at(middle, (low + high) / 2), f"{volume:.1f}", ink=ink))
        x, y = _at(middle, radii[-1] + LABEL_PX)
        words = sectors[sector].split()
        for line, word in enumerate(words):
            parts.append(_text((x, y + LINE_HEIGHT * (line - (len(words) - 1) / 2)), word))
    parts += _colour_bar((80, 372), 200, f"{most:.2g}", f"{most / 4:.2g}")
    rows = [(name, list(row)) for name, row in zip(shells, ml, strict=True)]
    return Plot(_svg(360, 408, parts), sectors, rows)


def volume_histogram(
    volumes_ml: Sequence[float], *, what: str, counted: str, smallest_ml: float
) -> Plot:
    """Histogram of volumes on a logarithmic axis; `what` and `counted` are the titles of the axes.

    Smaller volumes than `smallest_ml`, a power of ten, are counted with those of this size.
    """
    powers: list[float] = np.log10(np.clip(volumes_ml, smallest_ml, LARGEST_ML)).tolist()
    low, high = math.floor(min(powers)), math.ceil(max(powers))
    high = max(high, low + 1)
    edges: list[float] = np.linspace(low, high, BINS * (high - low) + 1).tolist()
    counts: list[int] = np.histogram(powers, edges)[0].tolist()
    left, right, top, bottom = 46, 350, 12, 190
    step = _step(max(counts))
    tallest = step * math.ceil(max(counts) / step)

    def x(power: float) -> float:
        return left + (right - left) * (power - low) / (high - low)

    def y(count: int) -> float:
        return bottom - (bottom - top) * count / tallest

    parts = _scale({k: y(k) for k in range(0, tallest + 1, step)}, (left, right), counted)
    for (begin, end), count in zip(pairwise(edges), counts, strict=True):
        if count:
            size = f'width="{x(end) - x(begin) - 1:.1f}" height="{bottom - y(count):.1f}"'
            parts.append(f'<rect x="{x(begin):.1f}" y="{y(count):.1f}" {size} fill="{FILL}"/>')
    for power in range(low, high + 1):
        parts.append(_line((x(power), bottom), (x(power), bottom + 5), SOFT))
        less = "≤ " if power == low and min(volumes_ml) < smallest_ml else ""
        parts.append(_text((x(power), bottom + 15), f"{less}{10.0**power:g}"))
    parts.append(_line((left, bottom), (right, bottom), SOFT))
    parts.append(_text(((left + right) / 2, bottom + 34), what))
    ranges = [f"{10**begin:.3g} to {10**end:.3g} mL" for begin, end in pairwise(edges)]
    rows = [(name, [count]) for name, count in zip(ranges, counts, strict=True)]
    return Plot(_svg(360, 232, parts), [counted], rows)


def volume_course(ml: Mapping[str, float], floor_ml: Sequence[float]) -> Plot:
    """Volume by visit, in order, and around the first one the change that chance alone may cause.

    `floor_ml` is that change between the first visit and each.
    """
    left, right, top, bottom = 46, 350, 12, 190
    names, volumes = list(ml), list(ml.values())
    low = [volumes[0] - floor for floor in floor_ml]
    high = [volumes[0] + floor for floor in floor_ml]
    least, most = max(0.0, min(*low, *volumes)), max(*high, *volumes, LEAST_SHOWN_ML)
    ticks = _ticks(least, most)

    def x(visit: int) -> float:
        return left + 30 + (right - left - 60) * visit / (len(names) - 1)

    def y(volume: float) -> float:
        return bottom - (bottom - top) * (volume - ticks[0]) / (ticks[-1] - ticks[0])

    parts = _scale({tick: y(tick) for tick in ticks}, (left, right), "Volume, mL")
    edge = [*enumerate(high), *reversed(list(enumerate(low)))]
    points = " ".join(f"{x(k):.1f},{y(max(volume, ticks[0])):.1f}" for k, volume in edge)
    parts.append(f'<polygon points="{points}" fill="{SOFT}" fill-opacity="0.22"/>')
    places = [(x(k), y(volume)) for k, volume in enumerate(volumes)]
    parts += [_line(*ends, FILL, 2) for ends in pairwise(places)]
    every = math.ceil(len(names) / MOST_NAMES)
    for k, (place, name) in enumerate(zip(places, names, strict=True)):
        parts.append(_dot(place, FILL))
        if k % every == 0:
            parts.append(_text((x(k), bottom + 16), _cut(name, 44 // min(len(names), MOST_NAMES))))
    parts.append(
        f'<rect x="{left}" y="{bottom + 32}" width="18" height="10" fill="{SOFT}" '
        'fill-opacity="0.22"/>'
    )
    words = f"within the noise floor of a change since {_cut(names[0], 20)}"
    parts.append(_text((left + 24, bottom + 37), words, anchor="start"))
    rows = [
        (name, [volume, floor]) for (name, volume), floor in zip(ml.items(), floor_ml, strict=True)
    ]
    head = ["volume, mL", f"noise floor of a change since {names[0]}, mL"]
    return Plot(_svg(360, 240, parts), head, rows)


def dice_change(pairs: Mapping[str, tuple[float, float]]) -> Plot:
    """Dice before and after, a line for each subject; `pairs` are by subject."""
    left, right, top, bottom = 90, 270, 12, 220

    def y(dice: float) -> float:
        return bottom - (bottom - top) * dice

    ticks = {dice: y(dice) for dice in (0, 0.2, 0.4, 0.6, 0.8, 1)}
    parts = _scale(ticks, (left - 40, right + 40), "Dice")
    colours = {}
    for before, after in pairs.values():
        if math.isnan(after - before):
            continue
        kind = ("unchanged", "gained", "lost")[int(np.sign(after - before))]
        colours[kind] = {"unchanged": SOFT, "gained": FILL, "lost": LOST}[kind]
        ends = (left, y(before)), (right, y(after))
        parts.append(_line(*ends, colours[kind], 2))
        parts += [_dot(end, colours[kind]) for end in ends]
    for name, place in (("before", left), ("after", right)):
        parts.append(_text((place, bottom + 16), name))
    for k, (kind, colour) in enumerate(sorted(colours.items())):
        parts.append(_line((70 + 90 * k, bottom + 40), (88 + 90 * k, bottom + 40), colour, 2))
        parts.append(_text((93 + 90 * k, bottom + 40), kind, anchor="start"))
    rows = [(name, list(pair)) for name, pair in pairs.items()]
    return Plot(_svg(360, 270, parts), ["before", "after"], rows)


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    opening = f'<svg class="plot" viewBox="0 0 {width} {height}" aria-hidden="true">'
    return f"{opening}{''.join(parts)}</svg>"


def _text(place: Point, words: str, *, ink: str = INK, anchor: str = "middle") -> str:
    x, y = place
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{ink}" text-anchor="{anchor}">{escape(words)}</text>'
    )


def _sideways(place: Point, words: str) -> str:
    x, y = place
    return f'<g transform="translate({x},{y}) rotate(-90)">{_text((0, 0), words)}</g>'


def _line(begin: Point, end: Point, colour: str, width: float = 1) -> str:
    (x, y), (x2, y2) = begin, end
    places = f'x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {places} stroke="{colour}" stroke-width="{width}"/>'


def _dot(place: Point, colour: str) -> str:
    return f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="3" fill="{colour}"/>'


def _scale(ticks: Mapping[float, float], sides: tuple[float, float], title: str) -> list[str]:
    """A vertical axis with grid lines between two sides; `ticks` are heights by value."""
    left, right = sides
    parts = []
    for value, y in ticks.items():
        parts.append(_line((left, y), (right, y), LINE))
        parts.append(_text((left - 8, y), f"{value:g}", anchor="end"))
    return [*parts, _sideways((left - 34, sum(ticks.values()) / len(ticks)), title)]


def _at(turn: float, radius: float) -> Point:
    """The point of the bullseye at an angle, clockwise from the top, and a radius."""
    return CENTRE[0] + radius * math.sin(turn), CENTRE[1] - radius * math.cos(turn)


def _arc(turns: tuple[float, float], radii: tuple[float, float], *, opacity: float) -> str:
    """A field of the bullseye, between two angles of less than half a turn and two radii."""
    (begin, end), (low, high) = turns, radii
    a, b, c, d = (
        "{:.1f} {:.1f}".format(*_at(*place))
        for place in ((begin, low), (begin, high), (end, high), (end, low))
    )
    path = f"M{a} L{b} A{high} {high} 0 0 1 {c} L{d} A{low} {low} 0 0 0 {a}Z"
    return f'<path d="{path}" fill="{FILL}" fill-opacity="{opacity:.3f}" stroke="{LINE}"/>'


def _colour_bar(place: Point, width: int, most: str, quarter: str) -> list[str]:
    """A bar from 0 to the largest volume; opacity is the square root of the volume."""
    x, y = place
    step = width / STEPS
    return [
        *(
            f'<rect x="{x + step * k:.1f}" y="{y}" width="{step:.1f}" height="12" fill="{FILL}" '
            f'fill-opacity="{k / (STEPS - 1):.2f}"/>'
            for k in range(STEPS)
        ),
        f'<rect x="{x}" y="{y}" width="{width}" height="12" fill="none" stroke="{LINE}"/>',
        *(
            _text((x + part * width, y + 24), words)
            for part, words in ((0, "0"), (0.5, quarter), (1, f"{most} mL"))
        ),
    ]


def _cut(name: str, letters: int) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"


def _ticks(least: float, most: float) -> list[float]:
    """Two to seven round numbers that enclose a range above 0."""
    power = 10 ** math.floor(math.log10((most - least) or most))
    for step in (power / 5, power / 2, power, 2 * power):
        first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
        if last - first <= 6:
            return [step * k for k in range(first, max(last, first + 1) + 1)]
    raise AssertionError("a range is at most ten times its power of ten")


def _step(most: int) -> int:
    """The distance of ticks, 1, 2 or 5 times a power of ten, that gives at most five of them."""
    power = 1
    while True:
        for step in (power, 2 * power, 5 * power):
            if most <= 5 * step:
                return step
        power *= 10
