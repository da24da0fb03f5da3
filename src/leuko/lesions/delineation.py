"""From probabilities to masks: which lesions there are, where they end, and which rims are seen.

All arrays lie on the grid of the FLAIR as it is stored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy.ndimage
import scipy.special

from leuko.lesions.components import TOUCHING, drop_small, find_lesions, large
from leuko.model.calibration import TYPICAL_CONTRAST, Seen
from leuko.model.weights import Limits, ModelCard
from leuko.volume import Array, Volume

# A lesion's edge, between white matter around it (0) and the lesion (1). The median of readers'
# edges is 0.39 to 0.46 on three sources (`experiments/edges.py`); the FLAIR is smoothed here, which
# widens a lesion, and masks at 0.45 overlap as well as those at 0.4 and are less too large.
EDGE = 0.45
EDGE_SMOOTHING_MM = 0.6  # standard deviation, within the slice: noise would make edges ragged
# Of the log odds, for a whole step from white matter to lesion.
EDGE_WEIGHT = 12.0
EDGE_REACH_MM = 2.5  # from the lesion that the network found
BRIGHT_PERCENTILE = 90  # of a lesion in its slice: the lesion without its edges
AROUND_MM = 4.0  # standard deviation of the mean of the white matter around a voxel
LEAST_WHITE = 0.02  # of that mean's weight
# Caps and rims that a reader sees are by so much brighter than white matter.
RIM_CONTRAST = 1.35
FARTHEST = 1.5  # steps from white matter to lesion: brighter or darker voxels are as sure
LEAST = 1e-3  # and 1 less this: probabilities that the FLAIR can still turn
NORMAL_WMH, NORMAL_RIM = 0.2, 0.3  # probabilities below which white matter is normal
LIBERAL_LOG_ODDS = -1.0  # from the thresholds of the mask to those of the liberal mask
SPREAD_LOG_ODDS = 3.0  # to those of the volumes that tell how much the thresholds matter

# What the mask holds: WMH, the rims being kept apart; both; or WMH, the rims being left out.
Rims = Literal["separate", "include", "exclude"]


@dataclass(frozen=True, eq=False)
class Delineation:
    """What is drawn of one scan. Masks are bool (X, Y, Z), mask <= liberal."""

    probability: Array  # of WMH, float32, corrected at the edges: the mask is where it is high
    mask: Array
    liberal: Array  # of lower thresholds
    rims: Array | None  # caps and rims beside the mask; None if they are unknown or not asked for
    anatomy: Volume  # tissues as if there were neither WMH nor rims, uint8
    level: Array | None  # FLAIR of white matter around each voxel; None if that is unknown


def delineate(
    probabilities: Array,
    flair: Volume,
    card: ModelCard,
    limits: Limits | None = None,
    *,
    rims: Rims = "separate",
) -> Delineation:
    """Masks of a model's probabilities (C, X, Y, Z), by default at its own limits.

    With `rims="include"` they are `with_rims`. Only rims that are `RIM_CONTRAST` times as bright
    as the white matter around them are drawn.
    """
    limits = limits or card.limits()
    voxel_mm3 = flair.voxel_mm3
    wmh = probabilities[-1]
    anatomy = _anatomy(probabilities, flair, card)
    rim = probabilities[-2] if card.knows_rims else None
    level = None
    if "white" in card.classes and (card.edges or rim is not None):
        white = (anatomy.data == card.classes.index("white")) & (wmh < NORMAL_WMH)
        level = white_level(flair, white if rim is None else white & (rim < NORMAL_RIM))
    wmh, mask = _drawn(wmh, flair, level if card.edges else None, limits)
    liberal = mask | lesions_of(wmh, limits.shifted(LIBERAL_LOG_ODDS), voxel_mm3=voxel_mm3)
    if rim is None or level is None or rims == "exclude":
        return Delineation(wmh, mask, liberal, None, anatomy, level)
    bright = flair.data >= RIM_CONTRAST * level
    either = np.where(bright, np.minimum(probabilities[-1] + rim, 1), 0)
    bright_rims = drop_small(
        (either >= limits.threshold) & ~mask, voxel_mm3=voxel_mm3, smallest_mm3=limits.smallest_mm3
    )
    drawn = Delineation(wmh, mask, liberal, bright_rims, anatomy, level)
    return drawn if rims == "separate" else with_rims(drawn, probabilities)


def with_rims(drawn: Delineation, probabilities: Array) -> Delineation:
    """WMH and rims together: the probability and the masks of both."""
    if drawn.rims is None:
        return drawn
    either = np.minimum(probabilities[-1] + probabilities[-2], 1)
    return replace(
        drawn,
        probability=np.where(drawn.rims, np.maximum(drawn.probability, either), drawn.probability),
        mask=drawn.mask | drawn.rims,
        liberal=drawn.liberal | drawn.rims,
        rims=None,
    )


def tissue_map(anatomy: Volume, mask: Array, rims: Array | None, card: ModelCard) -> Volume:
    """Tissues with rims and WMH drawn in, uint8, the numbers of the model's classes."""
    tissue = anatomy.data.copy()
    if rims is not None:
        tissue[rims] = len(card.classes) - 2
    tissue[mask] = len(card.classes) - 1
    return anatomy.with_data(tissue)


def _anatomy(probabilities: Array, flair: Volume, card: ModelCard) -> Volume:
    """The most probable tissue of each voxel; caps and rims are white matter."""
    count = len(card.tissues) - 1
    tissues = probabilities[:count]
    if card.knows_rims and "white" in card.tissues:
        tissues = tissues.copy()
        tissues[card.classes.index("white")] += probabilities[-2]
    return flair.with_data(tissues.argmax(axis=0).astype(np.uint8))


def _drawn(wmh: Array, flair: Volume, level: Array | None, limits: Limits) -> tuple[Array, Array]:
    """The probability, corrected at the edges where the level is known, and its mask."""
    found = lesions_of(wmh, limits, voxel_mm3=flair.voxel_mm3)
    if level is not None:
        wmh = with_edges(wmh, found, flair, level)
    return wmh, _grown(wmh, found, limits, flair.voxel_mm3)


def _grown(probability: Array, found: Array, limits: Limits, voxel_mm3: float) -> Array:
    """The lesions of a corrected probability that hold a voxel of one that was found."""
    marked = probability >= limits.threshold
    numbers, count = find_lesions(marked)
    held = np.zeros(count + 1, dtype=bool)
    held[numbers[found]] = True
    held[0] = False
    kept = large(numbers[marked], count, voxel_mm3=voxel_mm3, smallest_mm3=limits.smallest_mm3)
    grown: Array = (held & kept)[numbers]
    return grown


def white_level(flair: Volume, white: Array) -> Array:
    """The FLAIR of normal white matter (bool) around each voxel, float32, within its slice.

    Where there is none near, that of the whole scan.
    """
    weight = _smoothed(flair.with_data(white), AROUND_MM)
    level = _smoothed(flair.with_data(np.where(white, flair.data, 0)), AROUND_MM)
    everywhere = float(np.median(flair.data[white])) if white.any() else 0.0
    near: Array = np.divide(
        level, weight, out=np.full_like(level, everywhere), where=weight > LEAST_WHITE
    )
    return near


def with_edges(probability: Array, mask: Array, flair: Volume, level: Array) -> Array:
    """The probability of WMH (X, Y, Z) near the lesions of a mask, corrected by the FLAIR.

    Within a slice each voxel that is at most `EDGE_REACH_MM` from a lesion has the FLAIR f, white
    matter around it the level w, and the lesion the 90th percentile b. The log odds rise by
    EDGE_WEIGHT * ((f - w) / (b - w) - EDGE).
    """
    across = flair.through_plane_axis
    in_slice = np.take(TOUCHING, [0, 1, 2], axis=across).copy()
    in_slice[tuple(slice(None) if axis != across else [0, 2] for axis in range(3))] = False
    lesions, count = scipy.ndimage.label(mask, in_slice)
    if not count:
        return probability
    smooth = _smoothed(flair, EDGE_SMOOTHING_MM)
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


def _smoothed(image: Volume, sigma_mm: float) -> Array:
    """A Gaussian filter within the slices, float32."""
    across = image.through_plane_axis
    sigma = [0 if axis == across else sigma_mm / mm for axis, mm in enumerate(image.spacing_mm)]
    grey = image.data.astype(np.float32)
    smooth: Array = scipy.ndimage.gaussian_filter(grey, sigma, truncate=3)
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
    """Voxels at or above the threshold, bool (X, Y, Z), of lesions whose highest probability
    reaches `lesion_threshold` and which are not too small."""
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
    """What a segmentation at the card's limits shows of how sure it is.

    `wmh` is the model's probability (X, Y, Z), `mask` what is left of `drawn.mask`. Volumes are
    without what was removed from it and without what is not `allowed`.
    """
    counts = mask | ~drawn.mask
    if allowed is not None:
        counts &= allowed
    higher, lower = (card.limits().shifted(step) for step in (SPREAD_LOG_ODDS, -SPREAD_LOG_ODDS))
    near = _box((wmh >= lower.threshold) & counts, flair.spacing_mm)
    part = replace(flair, data=flair.data[near])
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
    """The bounding box of a mask, larger by what edges reach."""
    found = scipy.ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return (slice(0, 1),) * mask.ndim
    steps = (math.ceil(EDGE_REACH_MM / mm) + 1 for mm in spacing_mm)
    return tuple(
        slice(max(0, part.start - step), part.stop + step)
        for part, step in zip(found[0], steps, strict=True)
    )
