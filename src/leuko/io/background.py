"""The background of a scan: 0, whatever grey value a tool gave it. And what is no scan any more.

Judged by signal, not by the number of voxels: most voxels lie outside the brain.
"""

import numpy as np
import scipy.ndimage

from leuko.errors import LeukoError
from leuko.volume import Volume

# Of the step from background to tissue: splines ring by less far from the brain, air is noisier.
CONSTANT = 1e-3
# Likewise, all but the first rings; those, and partial volume, lie within some voxels of the edge.
RINGING, EDGE_VOXELS = 0.1, 3
# Likewise: a positive background as dark as that is no more than noisy air is.
DARK = 0.01
# Of a positive background: its ringing is no darker tissue.
ABOVE = 0.05
# Of a scan's signal: a positive background lies below as much, or it hides tissue.
ABOVE_SIGNAL = 0.75
# Of a scan's signal: real scans have 0.0004 below zero, standardised images 0.5.
NEGATIVE_SIGNAL = 0.1
# Mean and standard deviation of a standardised image are 0 and 1, by as much.
STANDARD = 0.05


def without_background(scan: Volume) -> Volume:
    """The scan with 0 as its background, where most edges of its slices have one grey value: -1,
    -1024, the smallest of the brain, or 0 with the ringing of splines.

    A scan whose background is 0 or nearly as dark, or noisy air, is returned as it is. Raises
    LeukoError for an image that was standardised to zero mean, where no grey value means tissue,
    and for a background as bright as tissue.
    """
    data = scan.data
    in_plane = [axis for axis in range(3) if axis != scan.through_plane_axis]
    edges = np.concatenate([data.take(k, axis).ravel() for axis in in_plane for k in (0, -1)])
    if data.min() >= 0 and np.count_nonzero(edges) < 0.5 * len(edges):
        return scan
    level = float(np.median(edges))
    step = float(np.percentile(np.abs(data - level), 99))
    tolerance = CONSTANT * step
    is_constant = float(np.mean(np.abs(edges - level) <= tolerance)) > 0.5
    if data.min() < 0:
        _require_signal(scan, level if is_constant else 0.0)
    is_dark = tolerance < level < DARK * step
    if not is_constant or is_dark or np.count_nonzero(edges) < 0.5 * len(edges):
        return scan
    if level > tolerance:
        _require_darker(scan, level, RINGING * step)
    cleaned = data.copy()
    cleaned[data <= (tolerance if abs(level) <= tolerance else max(0, (1 + ABOVE) * level))] = 0
    return scan.with_data(cleaned)


def _require_darker(scan: Volume, level: float, ringing: float) -> None:
    """Raises LeukoError for a background as bright as tissue. What differs from it by no more than
    `ringing` may be either."""
    tissue = scan.data[(scan.data > 0) & (np.abs(scan.data - level) > ringing)].astype(float)
    if tissue.sum(where=tissue > level) < ABOVE_SIGNAL * tissue.sum():
        raise LeukoError(
            f"{scan.name}: its background ({level:g}) is as bright as its tissue or brighter "
            f"(median {np.median(tissue):g}); set the background to 0"
        )


def _require_signal(scan: Volume, background: float) -> None:
    """Raises LeukoError for a standardised image. What lies close to a background below zero is no
    signal, nor is the lowest grey value, which may fill what lies outside the field of view."""
    data = scan.data
    mean, spread = float(data.mean(dtype=float)), float(data.std(dtype=float))
    bright = float(np.percentile(data, 99))
    lowest = float(data.min())
    signal = np.abs(data - lowest) > CONSTANT * (bright - lowest)
    if background < min(0.0, bright):
        bodies, _ = scipy.ndimage.label(np.abs(data - background) < RINGING * (bright - background))
        largest = 1 + int(np.argmax(np.bincount(bodies.ravel())[1:]))
        signal &= ~scipy.ndimage.binary_dilation(bodies == largest, iterations=EDGE_VOXELS)
    below = -float(data.sum(where=signal & (data < 0), dtype=float))
    above = float(data.sum(where=signal & (data > 0), dtype=float))
    if abs(mean) < STANDARD and abs(spread - 1) < STANDARD:
        seen = "grey values of mean 0 and standard deviation 1"
    elif below > NEGATIVE_SIGNAL * (below + above):
        part = below / (below + above)
        seen = f"{part:.0%} of its signal below 0 (expected {NEGATIVE_SIGNAL:.0%} at most)"
    else:
        return
    raise LeukoError(
        f"{scan.name} has {seen}: its grey values were standardised (z-scores) or shifted; give "
        "the scan as it was before standardisation"
    )
