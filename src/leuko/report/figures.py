"""Figures of scans and measures. Each function returns a matplotlib Figure; the caller saves it."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from leuko.model.calibration import Calibration
from leuko.volume import Array

# Colour-blind people can distinguish these from grey, from the yellow of fat in colour slices, and
# from each other.
FOUND, KNOWN = "#ff4d00", "#36c9ff"
KINDS = ("#0072b2", "#d55e00", "#009e73")  # of scans, in plots; Okabe and Ito
CHANGES = {"gained": KINDS[0], "lost": KINDS[1], "unchanged": "0.5"}
BLUES = colormaps["Blues"]
SIDES = ("left", "right")
CENTRED = {"ha": "center", "va": "center"}
LEAST_SHOWN_ML = 0.05  # rounds to 0.1
MANY = 100  # voxels in a bin; fewer are not enough to estimate the part that is lesion
LEVELS = (1e-5, 1e-4, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)  # ticks of probability


def method_figure(slice_: Array, mask: Array, reference: Array) -> Figure:
    """Steps of the method on a slice: FLAIR, T1, residue, colour image, outlines of both masks.

    `slice_` (H, W, 3), uint8, holds residue, FLAIR and T1; its rows run to the right, its columns
    to the front. `mask` and `reference` (H, W) are boolean.
    """
    residue, flair, t1 = np.moveaxis(slice_, -1, 0)
    panels = (
        ("FLAIR", flair),
        ("T1", t1),
        ("residue of area opening", residue),
        ("colour image", slice_),
        ("found (orange), known (blue)", flair),
    )
    figure = Figure(figsize=(12.5, 3.1), facecolor="black")
    figure.set_layout_engine("constrained", h_pad=0.1)
    for axes, (title, image) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(_upright(image), cmap="gray", vmin=0, vmax=_brightest(image))
        axes.set_title(title, color="white", fontsize=11)
        axes.set_axis_off()
    for outlined, colour in ((reference, KNOWN), (mask, FOUND)):
        figure.axes[-1].contour(_upright(outlined), levels=[0.5], colors=[colour], linewidths=1)
    return figure


def reliability_figure(
    bins: Mapping[str, tuple[Array, Array, Array]],
    scans: Mapping[str, Array],
    calibration: Calibration,
) -> Figure:
    """Observed against predicted probability, before and after calibration; volumes and Dice with
    their 90 % intervals.

    `bins`: by kind of scan, log odds (B,), and for each the part of its voxels that is lesion and
    their number. `scans`: by kind of scan, at most three, (N, 4): volume scale, log ratio of true
    to found volume, spread of thresholds, Dice. Scales above 15 and spreads above 3 are clipped.
    """
    figure = Figure(figsize=(15, 4.6))
    figure.set_layout_engine("constrained")
    left, middle, right = figure.subplots(1, 3)
    colours = dict(zip(scans, KINDS, strict=False))
    left.plot(LEVELS, LEVELS, color="0.6", linewidth=1)
    for name, (odds, part, count) in bins.items():
        told = (count > MANY) & (part > 0) & (part < 1)
        for temperature, style in ((1.0, "o:"), (calibration.temperature, "o-")):
            said = 1 / (1 + np.exp(-odds[told] / temperature))
            label = f"{name}, {'as it is' if temperature == 1 else 'calibrated'}"
            left.plot(said, part[told], style, color=colours[name], markersize=3, label=label)
    left.set(xscale="logit", yscale="logit")
    left.set(xticks=LEVELS, xticklabels=LEVELS, yticks=LEVELS, yticklabels=LEVELS)
    left.minorticks_off()
    left.set(xlim=(LEVELS[0], LEVELS[-1]), ylim=(LEVELS[0], LEVELS[-1]))
    left.set(xlabel="probability", ylabel="part that is lesion")
    left.legend()
    if calibration.volume_width is not None:
        scale = np.linspace(2, 15, 50)
        most = np.exp(calibration.volume_width * scale)
        middle.fill_between(scale, 1 / most, most, color="0.85", label="90 % interval")
    if calibration.dice is not None:
        line, spread = calibration.dice, np.linspace(0, 3, 50)
        expected, width = line.at_zero + line.slope * spread, line.width * (1 + spread)
        right.fill_between(spread, expected - width, expected + width, color="0.85")
        right.plot(spread, expected, color="0.6", linewidth=1)
    for name, some in scans.items():
        scale, ratio, spread, dice = some.T
        dots = {"color": colours[name], "markersize": 4, "label": name}
        middle.plot(np.minimum(scale, 15), np.exp(ratio), "o", **dots)
        right.plot(np.minimum(spread, 3), dice, "o", **dots)
    middle.set(yscale="log", xlabel="(1 + spread) / (contrast - 1)", ylabel="true by found volume")
    right.set(xlabel="spread of thresholds", ylabel="Dice", ylim=(0, 1))
    middle.legend()
    return figure


def mosaic_figure(
    slices: Sequence[Array],
    kinds: Sequence[Array],
    colours: Mapping[int, str],
    *,
    title: str,
    marks: Sequence[str],
    aspect: float = 1.0,
    most: int = 24,
    later: Sequence[int] = (),
) -> Figure:
    """Up to `most` slices (H, W), 0 to 255, with outlines of the kinds that have a colour.

    If there are more slices, they are chosen evenly spaced: first those with outlines, then those
    with outlines only of the kinds `later`, then the others.

    `kinds` (H, W) are 0 where there is nothing; `aspect` is a pixel's height / width. `marks` label
    the left and the right of a slice. Slice numbers count from 1.
    """
    ranks = [int(kind.any()) + int(kind[~np.isin(kind, later)].any()) for kind in kinds]
    chosen = _chosen(ranks, most)
    columns = min(6, len(chosen))
    rows = -(-len(chosen) // columns)
    height, width = slices[0].shape
    tall = 2.0 * aspect * height / width
    figure = Figure(figsize=(2.0 * columns, tall * rows + 0.45), facecolor="black")
    part = "" if len(chosen) == len(slices) else f", {len(chosen)} of {len(slices)} slices"
    figure.suptitle(title + part, color="white", fontsize=11)
    top = 1 - 0.4 / (tall * rows + 0.45)
    axes = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": 0, "right": 1, "bottom": 0, "top": top, "wspace": 0.02, "hspace": 0.02,
        },
    ).ravel()  # fmt: skip
    for ax in axes:
        ax.set_axis_off()
    for ax, k in zip(axes, chosen, strict=False):
        ax.imshow(slices[k], cmap="gray", vmin=0, vmax=200, aspect=aspect)
        for kind, colour in colours.items():
            if (kinds[k] == kind).any():
                ax.contour(kinds[k] == kind, levels=[0.5], colors=[colour], linewidths=0.8)
        ax.text(0.03, 0.02, k + 1, color="white", fontsize=8, transform=ax.transAxes)
    for x, mark in zip((0.03, 0.9), marks, strict=False):
        axes[0].text(x, 0.5, mark, color="white", fontsize=9, transform=axes[0].transAxes)
    return figure


def _chosen(ranks: Sequence[int], most: int) -> list[int]:
    """At most `most` slices, in order: highest ranks first, evenly spaced within a rank."""
    chosen: list[int] = []
    for wanted in sorted(set(ranks), reverse=True):
        group = [k for k, rank in enumerate(ranks) if rank == wanted]
        room = min(most - len(chosen), len(group))
        chosen += [group[round(k)] for k in np.linspace(0, len(group) - 1, room)]
    return sorted(chosen)


def lesion_histogram(volumes_ml: Sequence[float]) -> Figure:
    """Histogram of lesion volumes on a logarithmic axis."""
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    edges = np.geomspace(0.001, 1000, 25)
    axes.hist(np.clip(volumes_ml, edges[0], edges[-1]), bins=edges.tolist(), color=KINDS[0])
    axes.set(xscale="log", xlabel="lesion volume, mL", ylabel="number of lesions")
    filled = np.clip(volumes_ml, edges[0], edges[-1])
    axes.set_xlim(min(filled, default=0.01) / 3, max(filled, default=1) * 3)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def cohort_histogram(volumes_ml: Sequence[float]) -> tuple[Figure, list[tuple[str, int]]]:
    """Histogram of the scans' WMH volumes on a logarithmic axis, and its counts by range."""
    edges = np.geomspace(0.1, 316.2, 15)
    counts = np.histogram(np.clip(volumes_ml, edges[0], edges[-1]), bins=edges)[0]
    figure = Figure(figsize=(4.8, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=KINDS[0], edgecolor="white")
    axes.set(xscale="log", xlabel="WMH volume, mL", ylabel="number of scans")
    axes.set_xticks([0.1, 1, 10, 100], ["0.1 or less", "1", "10", "100"])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    spans = [f"{low:.3g} to {high:.3g} mL" for low, high in pairwise(edges)]
    return figure, list(zip(spans, counts.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class Example:
    """A slice (H, W) of a subject, rows to the right and columns to the front.

    FLAIR, labelled mask, masks found before and after, and the Dice of both over all slices.
    `aspect` is a pixel's length to the front / its length to the right.
    """

    name: str
    flair: Array
    labelled: Array
    found: Sequence[Array]
    dice: Sequence[float]
    aspect: float = 1.0


def before_after_figure(example: Example) -> Figure:
    """The slice before and after, with outlines of the labelled and of the found mask."""
    flair = _upright(example.flair)
    tall = example.aspect * len(flair) / flair.shape[1]
    figure = Figure(figsize=(8.4, 4.2 * tall), facecolor="black")
    figure.set_layout_engine("constrained", h_pad=0, w_pad=0.02)
    for axes, found in zip(figure.subplots(1, 2), example.found, strict=True):
        axes.imshow(flair, cmap="gray", vmin=0, vmax=_brightest(flair), aspect=example.aspect)
        axes.set_axis_off()
        for outlined, colour in ((example.labelled, KNOWN), (found, FOUND)):
            if outlined.any():
                axes.contour(_upright(outlined), levels=[0.5], colors=[colour], linewidths=1)
    return figure


def change_figure(pairs: Mapping[str, tuple[float, float]]) -> Figure:
    """Dice before and after, a line for each subject; `pairs` are by subject."""
    figure = Figure(figsize=(4.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for before, after in pairs.values():
        if not np.isnan(after - before):
            kind = ("unchanged", "gained", "lost")[int(np.sign(after - before))]
            axes.plot([0, 1], [before, after], "o-", color=CHANGES[kind], label=kind)
    named = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    axes.legend(named.values(), named, loc="lower right", frameon=False)
    axes.set_xticks([0, 1], ["before", "after"])
    axes.set(xlim=(-0.2, 1.2), ylim=(0, 1), ylabel="Dice")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def as_jpeg(figure: Figure) -> bytes:
    """The figure as JPEG, for pictures of scans."""
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", dpi=110, facecolor=figure.get_facecolor())
    return file.getvalue()


def as_svg(figure: Figure) -> bytes:
    """The figure as SVG, without a date."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def bullseye_figure(ml: Array, sectors: Sequence[str]) -> Figure:
    """Lesion volume by shell and sector, `ml` (shells, sectors): the ventricles at the centre, the
    cortex outside. Left sectors are on the right, as on the slices."""
    values = np.array(ml)
    left, right = ([k for k, n in enumerate(sectors) if n.startswith(side)] for side in SIDES)
    others = [k for k in range(len(sectors)) if k not in left + right]
    order = [*left, *others, *reversed(right)]  # clockwise from the top
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes: Any = figure.add_subplot(projection="polar")  # its type lacks the polar methods
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    width = 2 * np.pi / len(order)
    most = max(values.max(), 1e-6)
    for place, sector in enumerate(order):
        for shell in range(len(values)):
            part = values[shell, sector] / most
            angle = (place + 0.5) * width
            colour = BLUES(float(np.sqrt(part)))
            axes.bar(
                angle, 1, width, bottom=1 + shell, color=colour, edgecolor="0.5", linewidth=0.5
            )
            if values[shell, sector] >= LEAST_SHOWN_ML:
                ink = "white" if part > 0.4 else "black"
                label = f"{values[shell, sector]:.1f}"
                axes.text(
                    angle, 1.5 + shell, label, color=ink, fontsize=7, ha="center", va="center"
                )
        label = sectors[sector].replace(" ", "\n")
        axes.text((place + 0.5) * width, 5.95, label, fontsize=8, **CENTRED)
    axes.set_ylim(0, 5.2)
    axes.set_axis_off()
    return figure


def _upright(image: Array) -> Array:
    """The slice with the front up and the right on the left, the radiological convention."""
    return np.flip(np.swapaxes(image, 0, 1), axis=(0, 1))


def _brightest(image: Array) -> float:
    return 255 if image.ndim == 3 else max(1.0, float(np.percentile(image, 99.8)))
