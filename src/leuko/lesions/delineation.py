"""Masks from probabilities: which lesions are kept, where their edges lie, which rims are drawn.

All arrays are on the grid of the FLAIR.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.ndimage
import scipy.special

from leuko.io.tissue import Tissue
from leuko.lesions.components import TOUCHING, drop_small, find_lesions, large
from leuko.model.calibration import TYPICAL_CONTRAST, Seen
from leuko.model.card import Limits, ModelCard
from leuko.model.predict import Prediction
from leuko.volume import Array, Volume, bounding_box

# Brightness of a lesion's edge, from the white matter around it (0) to the lesion (1). The median
# of readers' edges is 0.39 to 0.46 in three sources (`experiments/edges.py`). Smoothing the FLAIR
# widens lesions: masks at 0.45 reach the same Dice as those at 0.4 and overestimate volume less.
EDGE = 0.45
EDGE_SMOOTHING_MM = 0.6  # standard deviation, within the slice; without it noise makes edges ragged
# Change of the log odds for a step from the brightness of white matter to that of the lesion.
EDGE_WEIGHT = 12.0
EDGE_REACH_MM = 2.5  # largest distance of a corrected voxel from a lesion of the network
BRIGHT_PERCENTILE = 90  # of a lesion's FLAIR in its slice: not lowered by the lesion's edges
AROUND_MM = 4.0  # standard deviation of the Gaussian that averages white matter around a voxel
LEAST_WHITE = 0.02  # smallest share of white matter in that average
# Readers draw caps and rims that are at least this many times as bright as white matter.
RIM_CONTRAST = 1.35
FARTHEST = 1.5  # steps from white matter to lesion; values beyond are clipped
LEAST = 1e-3  # probabilities are clipped to [LEAST, 1 - LEAST], so that the FLAIR can change them
NORMAL_WMH, NORMAL_RIM = 0.2, 0.3  # white matter with lower probabilities is normal
LIBERAL_LOG_ODDS = -1.0  # shift of the thresholds for the liberal mask
SPREAD_LOG_ODDS = 3.0  # shift, up and down, for volumes that show how much the thresholds matter


@dataclass(frozen=True, eq=False)
class Delineation:
    """The masks of one scan, bool (X, Y, Z), mask <= liberal."""

    probability: Array  # of WMH, float32, corrected at lesion edges like the mask
    mask: Array
    liberal: Array  # at lower thresholds
    rims: Array | None  # caps and rims outside the mask; None if unknown
    anatomy: Volume  # most probable tissue apart from WMH and rims, uint8
    level: Array | None  # FLAIR of white matter around each voxel; None if unknown
    own: Array | None = None  # the model's mask, if `mask` was made elsewhere


def delineate(
    prediction: Prediction,
    flair: Volume,
    card: ModelCard,
    limits: Limits | None = None,
) -> Delineation:
    """Masks from a model's prediction, by default at the model's own limits.

    Caps and rims are drawn only where the FLAIR is at least `RIM_CONTRAST` times as bright as the
    white matter around them.
    """
    limits = limits or card.limits()
    voxel_mm3 = flair.voxel_mm3
    wmh, rim, anatomy = prediction.wmh, prediction.rims, prediction.anatomy
    level = None
    white_class = card.number(Tissue.WHITE)
    if white_class is not None and (card.edges or rim is not None):
        white = (anatomy.data == white_class) & (wmh < NORMAL_WMH)
        level = white_level(flair, white if rim is None else white & (rim < NORMAL_RIM))
    wmh, mask = _drawn(wmh, flair, level if card.edges else None, limits)
    liberal = mask | lesions_of(wmh, limits.shifted(LIBERAL_LOG_ODDS), voxel_mm3=voxel_mm3)
    if rim is None or level is None:
        return Delineation(wmh, mask, liberal, None, anatomy, level)
    bright = flair.data >= RIM_CONTRAST * level
    either = np.where(bright, np.minimum(prediction.wmh + rim, 1), 0)
    bright_rims = drop_small(
        (either >= limits.threshold) & ~mask, voxel_mm3=voxel_mm3, smallest_mm3=limits.smallest_mm3
    )
    return Delineation(wmh, mask, liberal, bright_rims, anatomy, level)


def with_rims(drawn: Delineation, prediction: Prediction) -> Delineation:
    """The delineation with caps and rims added to the probability and the masks of WMH."""
    if drawn.rims is None or prediction.rims is None:
        return drawn
    either = np.minimum(prediction.wmh + prediction.rims, 1)
    return replace(
        drawn,
        probability=np.where(drawn.rims, np.maximum(drawn.probability, either), drawn.probability),
        mask=drawn.mask | drawn.rims,
        liberal=drawn.liberal | drawn.rims,
        rims=None,
    )


def tissue_map(anatomy: Volume, mask: Array, rims: Array | None, card: ModelCard) -> Volume:
    """Tissues with caps, rims and WMH drawn in, uint8, indices into the model's classes."""
    tissue = anatomy.data.copy()
    if rims is not None:
        tissue[rims] = len(card.classes) - 2
    tissue[mask] = len(card.classes) - 1
    return anatomy.with_data(tissue)


def _drawn(wmh: Array, flair: Volume, level: Array | None, limits: Limits) -> tuple[Array, Array]:
    """The probability, corrected at lesion edges if `level` is given, and its mask."""
    found = lesions_of(wmh, limits, voxel_mm3=flair.voxel_mm3)
    if level is not None:
        wmh = with_edges(wmh, found, flair, level)
    return wmh, _grown(wmh, found, limits, flair.voxel_mm3)


def _grown(probability: Array, found: Array, limits: Limits, voxel_mm3: float) -> Array:
    """The lesions of a corrected probability that contain a voxel of `found`, bool (X, Y, Z)."""
    marked = probability >= limits.threshold
    numbers, count = find_lesions(marked)
    held = np.zeros(count + 1, dtype=bool)
    held[numbers[found]] = True
    held[0] = False
    kept = large(numbers[marked], count, voxel_mm3=voxel_mm3, smallest_mm3=limits.smallest_mm3)
    grown: Array = (held & kept)[numbers]
    return grown


def white_level(flair: Volume, white: Array) -> Array:
    """The mean FLAIR of normal white matter (bool) around each voxel, float32, within its slice.

    Voxels without white matter nearby get the median of the scan; 0 if there is none at all.
    """
    sigma = _in_slice(flair, AROUND_MM)
    weight = _smoothed(white, sigma)
    level = _smoothed(np.where(white, flair.data, 0), sigma)
    everywhere = float(np.median(flair.data[white])) if white.any() else 0.0
    near: Array = np.divide(
        level, weight, out=np.full_like(level, everywhere), where=weight > LEAST_WHITE
    )
    return near


def with_edges(probability: Array, mask: Array, flair: Volume, level: Array) -> Array:
    """The probability of WMH (X, Y, Z), corrected by the FLAIR near the lesions of a mask.

    Voxels are corrected within a slice, up to `EDGE_REACH_MM` from a lesion. Their log odds rise by
    EDGE_WEIGHT * ((f - w) / (b - w) - EDGE), where f is the voxel's FLAIR, w the level of white
    matter around it and b the lesion's 90th percentile.
    """
    across = flair.through_plane_axis
    in_slice = np.take(TOUCHING, [0, 1, 2], axis=across).copy()
    in_slice[tuple(slice(None) if axis != across else [0, 2] for axis in range(3))] = False
    lesions, count = scipy.ndimage.label(mask, in_slice)
    if not count:
        return probability
    smooth = _smoothed(flair.data, _in_slice(flair, EDGE_SMOOTHING_MM))
    bright = _percentiles(smooth[mask], lesions[mask], count)
    cross = scipy.ndimage.generate_binary_structure(3, 1) & in_slice
    step_mm = min(np.delete(flair.spacing_mm, across))
    owner = lesions
    for step in range(round(EDGE_REACH_MM / step_mm)):
        grown = scipy.ndimage.grey_dilation(owner, footprint=cross if step % 2 else in_slice)
        owner = np.where(owner > 0, owner, grown)
    near = owner > 0
    white = level[near]
    step = np.maximum(bright[owner[near]] - white, 1e-3 * np.maximum(white, 1))
    place = np.clip((smooth[near] - white) / step, -FARTHEST, FARTHEST)
    odds = scipy.special.logit(np.clip(probability[near], LEAST, 1 - LEAST))
    corrected = probability.copy()
    corrected[near] = scipy.special.expit(odds + EDGE_WEIGHT * (place - EDGE))
    return corrected


def _in_slice(grid: Volume, mm: float) -> list[float]:
    """A length within the slices in voxels of each axis; 0 across the slices."""
    across = grid.through_plane_axis
    return [0 if axis == across else mm / size for axis, size in enumerate(grid.spacing_mm)]


def _smoothed(image: Array, sigma: Sequence[float]) -> Array:
    """The image after a Gaussian filter, float32; `sigma` in voxels of each axis."""
    smooth: Array = scipy.ndimage.gaussian_filter(image.astype(np.float32), sigma, truncate=3)
    return smooth


def _percentiles(values: Array, group: Array, count: int) -> Array:
    """The `BRIGHT_PERCENTILE` of the values (N,) of each group from 0 to `count`."""
    order = np.lexsort((values, group))
    sizes = np.bincount(group, minlength=count + 1)
    first = np.cumsum(sizes) - sizes
    at = first + (BRIGHT_PERCENTILE / 100 * np.maximum(sizes - 1, 0)).round().astype(int)
    ranked: Array = values[order][np.minimum(at, len(values) - 1)]
    return ranked


def lesions_of(probability: Array, limits: Limits, *, voxel_mm3: float) -> Array:
    """Voxels at or above the threshold, bool (X, Y, Z), in lesions of at least `smallest_mm3`
    whose highest probability reaches `lesion_threshold`."""
    marked = probability >= limits.threshold
    numbers, count = find_lesions(marked)
    lesion, values = numbers[marked], probability[marked]
    highest = np.zeros(count + 1, dtype=probability.dtype)
    np.maximum.at(highest, lesion, values)
    kept = large(lesion, count, voxel_mm3=voxel_mm3, smallest_mm3=limits.smallest_mm3)
    chosen: Array = (kept & (highest >= limits.lesion_threshold))[numbers]
    return chosen


def seen(
    wmh: Array,
    drawn: Delineation,
    mask: Array,
    flair: Volume,
    card: ModelCard,
    *,
    allowed: Array | None = None,
) -> Seen:
    """Volumes and contrast that show how certain a segmentation at the card's limits is.

    `wmh` is the model's probability (X, Y, Z), `mask` is `drawn.mask` after removing lesions.
    Removed voxels, and voxels outside `allowed`, do not count.
    """
    counts = mask | ~drawn.mask
    if allowed is not None:
        counts &= allowed
    higher, lower = (card.limits().shifted(step) for step in (SPREAD_LOG_ODDS, -SPREAD_LOG_ODDS))
    near = _box((wmh >= lower.threshold) & counts, flair.spacing_mm)
    part = flair.crop(near)
    level = drawn.level
    around = None if level is None or not card.edges else level[near]
    conservative, liberal = (
        _drawn(np.where(counts[near], wmh[near], 0), part, around, limits)[1]
        for limits in (higher, lower)
    )
    contrast = TYPICAL_CONTRAST
    if level is not None and (told := mask & (level > 0)).any():
        contrast = float(np.median(flair.data[told] / level[told]))
    ml = float(flair.voxel_mm3) / 1000
    return Seen(
        found_ml=ml * np.count_nonzero(mask),
        conservative_ml=ml * np.count_nonzero(conservative),
        liberal_ml=ml * np.count_nonzero(liberal & counts[near]),
        contrast=contrast,
    )


def _box(mask: Array, spacing_mm: Sequence[float]) -> tuple[slice, ...]:
    """The bounding box of a mask with a margin of `EDGE_REACH_MM` or more; empty: one voxel."""
    if not mask.any():
        return (slice(0, 1),) * mask.ndim
    steps = (math.ceil(EDGE_REACH_MM / mm) + 1 for mm in spacing_mm)
    return tuple(
        slice(max(0, part.start - step), part.stop + step)
        for part, step in zip(bounding_box(mask), steps, strict=True)
    )
