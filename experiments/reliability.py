"""The figure of a model's calibration, docs/reliability.png; `calibrate.py` draws it."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from leuko.model.calibration import Calibration
from leuko.volume import Array

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73")
MANY = 100  # voxels in a bin; fewer are not enough to estimate the part that is lesion
LEVELS = (1e-5, 1e-4, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)  # ticks of probability


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
    colours = dict(zip(scans, COLOURS, strict=False))
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
