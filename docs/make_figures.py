"""Writes the figures of docs/accuracy.md, docs/repeatability.md and docs/speed.md, from the tables
of other documents.

Each SVG holds the numbers that it shows as its description, so that a test can compare them with
the tables.
"""

import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
# Okabe and Ito's colours, which colour-blind people can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#8a8a8a"
COLOURS = {"tabriz": BLUE, "mslesseg": ORANGE, "ljubljana": GREEN}
KINDS = ("turned", "synthetic")  # of pairs of scans
WITH_T1, ALONE = "FLAIR + T1", "FLAIR"

Numbers = dict[str, list[float]]  # by the name of a row


class Drawing(NamedTuple):
    """A figure: its numbers, and how they are drawn."""

    numbers: Numbers
    draw: Callable[[Axes, Numbers], None]
    height: float  # inches


def table(document: str, first: str) -> list[list[str]]:
    """The cells of the rows of the first table whose heading begins with `first`."""
    text = (ROOT / document).read_text(encoding="utf-8")
    (block, *_) = (part for part in text.split("\n\n") if part.startswith(f"| {first} |"))
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()[2:]]


def scans(column: int) -> Numbers:
    """A column of the model card, for every scan with lesions: the values by "scan, images"."""
    return {
        f"{subject}, {images}": [float(cells[column])]
        for subject, images, counted, *cells in table("docs/model-card.md", "subject")
        if counted == "WMH" and cells[0]
    }


def volumes() -> Numbers:
    """Reference and found volume in mL of every scan with T1."""
    found = scans(6)
    return {
        name: [*reference, *found[name]]
        for name, reference in scans(5).items()
        if name.endswith(WITH_T1)
    }


def lesions(kind: str) -> Numbers:
    """Lesions, and those of them that were found with T1, by size ("mm³") or brightness."""
    return {
        name: [float(number), float(found)]
        for name, number, found, _ in table("docs/model-card.md", "lesions of the references")
        if kind in name
    }


def tools(scan: str) -> Numbers:
    """Seconds of each tool."""
    return {name: [float(cells[0])] for name, *cells in table("experiments/README.md", scan)}


def rescans() -> Numbers:
    """Both volumes in mL of each pair of scans: turned real ones, synthetic ones."""
    return {
        f"{name}, {kind}": [float(first), float(second)]
        for kind in KINDS
        for name, first, second, *_ in table("experiments/README.md", f"pair, {kind}")
    }


def draw_dice(axes: Axes, numbers: Numbers) -> None:
    names = sorted({name.split("_")[0] for name in numbers}, key=list(COLOURS).index)
    for images, colour, style, shift in ((WITH_T1, BLUE, "o", -0.12), (ALONE, ORANGE, "^", 0.12)):
        points = [
            (dice, names.index(name.split("_")[0]) + shift)
            for name, (dice,) in numbers.items()
            if name.endswith(f", {images}")
        ]
        axes.plot(*zip(*points, strict=True), style, color=colour, label=images, alpha=0.8)
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.6), xlabel="Dice (DSC) of each scan")
    axes.set_yticks(range(len(names)), names)
    axes.legend(loc="lower left")


def draw_volumes(axes: Axes, numbers: Numbers) -> None:
    ends = (2, 60)
    axes.plot(ends, ends, color="0.6", linewidth=1)
    for source, colour in COLOURS.items():
        points = [xy for name, xy in numbers.items() if name.startswith(source)]
        axes.plot(*zip(*points, strict=True), "o", color=colour, label=source)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    axes.set(xlabel="reference volume, mL", ylabel="volume found, mL")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([2, 5, 10, 20, 50], labels=["2", "5", "10", "20", "50"])
        axis.set_ticks([], minor=True)
    axes.legend(loc="upper left")


def draw_rescans(axes: Axes, numbers: Numbers) -> None:
    for kind, colour, style in zip(KINDS, (BLUE, ORANGE), "o^", strict=True):
        pairs = [pair for name, pair in numbers.items() if name.endswith(kind)]
        means = [(first + second) / 2 for first, second in pairs]
        percent = [
            100 * (second - first) / mean
            for (first, second), mean in zip(pairs, means, strict=True)
        ]
        axes.plot(means, percent, style, color=colour, label=kind, alpha=0.8)
        middle, reach = statistics.mean(percent), 1.96 * statistics.stdev(percent)
        axes.axhline(middle, color=colour, linewidth=1)
        for limit in (middle - reach, middle + reach):
            axes.axhline(limit, color=colour, linewidth=1, linestyle="dashed")
    axes.set(xscale="log", xlabel="mean volume of both scans, mL", ylabel="difference, %")
    axes.xaxis.set_ticks(
        [0.5, 1, 2, 5, 10, 20, 50], labels=["0.5", "1", "2", "5", "10", "20", "50"]
    )
    axes.xaxis.set_ticks([], minor=True)
    axes.legend(loc="lower right")


def draw_lesions(axes: Axes, numbers: Numbers, *, label: str) -> None:
    places = range(len(numbers))
    shares = [100 * found / number for number, found in numbers.values()]
    axes.barh(places, shares, color=BLUE)
    for place, share, (number, found) in zip(places, shares, numbers.values(), strict=True):
        axes.text(share + 1, place, f"{found:.0f} of {number:.0f}", va="center")
    names = [name.replace(" times white matter", "").replace(" mm³", "") for name in numbers]
    axes.set_yticks(places, names)
    axes.set(xlim=(0, 125), xticks=range(0, 101, 25), xlabel="lesions found, %", ylabel=label)
    axes.invert_yaxis()


def draw_tools(axes: Axes, numbers: Numbers) -> None:
    seconds = [value for (value,) in numbers.values()]
    places = range(len(numbers))
    axes.barh(places, seconds, color=[BLUE if "leuko" in name else GREY for name in numbers])
    for place, value in zip(places, seconds, strict=True):
        axes.text(value, place, f" {value:.0f} s", va="center")
    axes.set_yticks(places, [name.replace(", ", ",\n", 1) for name in numbers])
    axes.set(xlim=(0, 20 * math.ceil(max(seconds) / 16)), xlabel="seconds, from files to files")
    axes.invert_yaxis()


def drawings() -> dict[str, Drawing]:
    """The figures by their file names."""
    size = partial(draw_lesions, label="size, mm³")
    brightness = partial(draw_lesions, label="times white\nmatter")
    return {
        "dice.svg": Drawing(scans(0), draw_dice, 2.6),
        "volumes.svg": Drawing(volumes(), draw_volumes, 4.2),
        "lesion-sizes.svg": Drawing(lesions("mm³"), size, 2.8),
        "lesion-brightness.svg": Drawing(lesions("white"), brightness, 2.0),
        "repeatability.svg": Drawing(rescans(), draw_rescans, 3.4),
        "speed-thick.svg": Drawing(tools("thick slices, 240x240x48"), draw_tools, 2.8),
        "speed-1mm.svg": Drawing(tools("1 mm, 182x218x182"), draw_tools, 2.8),
    }


def save(drawing: Drawing, path: Path) -> None:
    """Draw one figure; the same numbers give the same file."""
    with mpl.rc_context({"svg.hashsalt": "leuko", "font.size": 11}):
        figure = Figure(figsize=(5.4, drawing.height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        drawing.draw(axes, drawing.numbers)
        described = json.dumps(drawing.numbers, ensure_ascii=False)
        figure.savefig(path, metadata={"Date": None, "Creator": None, "Description": described})


if __name__ == "__main__":
    for name, drawing in drawings().items():
        save(drawing, Path(__file__).parent / name)
