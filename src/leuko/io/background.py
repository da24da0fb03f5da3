"""Sets the background of a scan to 0 and refuses standardised (z-scored) images.

Signal is measured by the sum of grey values, not by the voxel count, because most voxels lie
outside the brain.
"""

import numpy as np
import scipy.ndimage

from leuko.errors import LeukoError
from leuko.volume import Volume

# Fractions of the grey-value difference between background and tissue. A constant background varies
# by less than CONSTANT, by spline ringing far from the brain; noisy air varies by more.
CONSTANT = 1e-3
# Spline ringing is below RINGING, except for the first rings within EDGE_VOXELS of an edge.
RINGING, EDGE_VOXELS = 0.1, 3
# A positive background below DARK is as dark as noisy air and is kept.
DARK = 0.01
# Fraction of a positive background's grey value: ringing stays below it, tissue above.
ABOVE = 0.05
# Fraction of a scan's signal that must be brighter than a positive background.
ABOVE_SIGNAL = 0.75
# Fraction of a scan's signal below zero: 0.0004 in real scans, 0.5 in standardised images.
NEGATIVE_SIGNAL = 0.1
# Tolerance for the mean 0 and standard deviation 1 of a standardised image.
STANDARD = 0.05


def without_background(scan: Volume) -> Volume:
    """The scan with its background set to 0.

    The background is the grey value of most voxels on the edges of the slices: -1, -1024, the
    lowest grey value of the brain, or 0 with spline ringing. A scan whose background is about 0 or
    noisy air is returned unchanged. Raises LeukoError for a standardised image, whose grey values
    do not identify tissue, and for a background as bright as tissue.
    """
    data = scan.data
    in_plane = [axis for axis in range(3) if axis != scan.through_plane_axis]
    edges = np.concatenate(
        [np.moveaxis(data, axis, 0)[k].ravel() for axis in in_plane for k in (0, -1)]
    )
    if np.count_nonzero(edges) < 0.5 * len(edges):
        if data.min() < 0:
            _require_signal(scan, 0.0)
        return scan
    level = float(np.median(edges))
    step = float(np.percentile(np.abs(data - level), 99))
    tolerance = CONSTANT * step
    is_constant = float(np.mean(np.abs(edges - level) <= tolerance)) > 0.5
    if data.min() < 0:
        _require_signal(scan, level if is_constant else 0.0)
    is_dark = tolerance < level < DARK * step
    if not is_constant or is_dark:
        return scan
    if level > tolerance:
        _require_darker(scan, level, RINGING * step)
    cleaned = data.copy()
    cleaned[data <= (tolerance if abs(level) <= tolerance else max(0, (1 + ABOVE) * level))] = 0
    return scan.with_data(cleaned)


def _require_darker(scan: Volume, level: float, ringing: float) -> None:
    """Raises LeukoError for a background as bright as tissue. Voxels within `ringing` of the
    background may be either and are not counted."""
    tissue = scan.data[(scan.data > 0) & (np.abs(scan.data - level) > ringing)].astype(float)
    if tissue.sum(where=tissue > level) < ABOVE_SIGNAL * tissue.sum():
        raise LeukoError(
            f"{scan.name} has a background ({level:g}) as bright as its tissue "
            f"(median {np.median(tissue):g}) or brighter; set the background to 0"
        )


def _require_signal(scan: Volume, background: float) -> None:
    """Raises LeukoError for a standardised image. Voxels close to a negative background do not
    count as signal, nor does the lowest grey value, which may fill the outside of the field of
    view."""
    data = scan.data
    mean = float(data.mean(dtype=float))
    is_standard = abs(mean) < STANDARD and abs(float(data.std(dtype=float)) - 1) < STANDARD
    bright = float(np.percentile(data, 99))
    lowest = float(data.min())
    signal = np.abs(data - lowest) > CONSTANT * (bright - lowest)
    if background < min(0.0, bright):
        bodies, _ = scipy.ndimage.label(np.abs(data - background) < RINGING * (bright - background))
        largest = 1 + int(np.argmax(np.bincount(bodies.ravel())[1:]))
        signal &= ~scipy.ndimage.binary_dilation(bodies == largest, iterations=EDGE_VOXELS)
    below = -float(data.sum(where=signal & (data < 0), dtype=float))
    above = float(data.sum(where=signal & (data > 0), dtype=float))
    if is_standard:
        seen = "grey values of mean 0 and standard deviation 1"
    elif below > NEGATIVE_SIGNAL * (below + above):
        part = below / (below + above)
        seen = f"{part:.0%} of its signal below 0 (limit {NEGATIVE_SIGNAL:.0%})"
    else:
        return
    raise LeukoError(
        f"{scan.name} has {seen}: its grey values were standardised (z-scores) or shifted; give "
        "the scan before standardisation"
    )
