"""Pictures: data in, a matplotlib Figure out. Saving it is the caller's business."""

import numpy as np
from matplotlib.figure import Figure

from leuko.volume import Array

# Told apart from grey, from yellow fat and from each other by colour-blind people too.
FOUND, KNOWN = "#ff4d00", "#36c9ff"


def method_figure(slice_: Array, mask: Array, reference: Array) -> Figure:
    """One slice on its way: FLAIR, T1, residue, colour image, the outlines of mask and reference.

    `slice_` (H, W, 3), uint8, has residue, FLAIR and T1 as its colours, its rows running to the
    right and its columns to the front; `mask` and `reference` (H, W) are boolean.
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


def _upright(image: Array) -> Array:
    """Front up, and right on the left, as radiologists look at it."""
    return np.flip(np.swapaxes(image, 0, 1), axis=(0, 1))


def _brightest(image: Array) -> float:
    return 255 if image.ndim == 3 else max(1.0, float(np.percentile(image, 99.8)))
