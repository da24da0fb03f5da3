"""The brain mask from a model's tissues, and lesions outside the brain. Array axes run R, A, S.

The network also finds false lesions in the neck, the orbits and at the skull base. Two criteria
separate them from lesions of the brain: the tissues around them, and their place in the template.
The limits lie between true and false lesions of real scans (`experiments/outside_brain.py`).
"""

from dataclasses import dataclass, replace

import numpy as np
import scipy.ndimage

from leuko.lesions import mni
from leuko.lesions.components import find_lesions
from leuko.lesions.delineation import Delineation
from leuko.volume import Array, Volume, world

GRID_MM = 2.0  # finer grids take longer and give the same result
BRIDGE_MM = 4.0  # half the width of nerves and vessels that join other tissue to the brain
REGROWTH_MM = 6.0  # restores the brain's edge after cutting those bridges
LARGE_PART = 0.05  # of the largest piece; a black slice splits the brain into large pieces
INSIDE_PART = 0.5  # a lesion with at most this part of its voxels in the brain mask is outside
DEEP_MM = 12.0  # a lesion deeper than this in the template's brain is never outside
BEYOND_TEMPLATE_MM = 1.0  # farther out a lesion is outside; true ones lie 3.5 mm or more inside
# Least mean depth of a cap or rim in the template's brain (`experiments/rim_depth.py`).
RIM_DEPTH_MM = 8.0


@dataclass(frozen=True, eq=False)
class Outside:
    """Lesions that lie outside the brain."""

    voxels: Array  # bool (X, Y, Z)
    lesions: int


def brain_mask(tissue: Volume) -> Array:
    """The brain with its CSF, bool (X, Y, Z): the large pieces of the model's tissues.

    `tissue` must not contain WMH: a lesion alone would count as brain. Bridges thinner than 8 mm
    are cut, holes within slices are filled. No tissue: all False.
    """
    steps = tuple(max(1, int(GRID_MM / mm)) for mm in tissue.spacing_mm)
    spacing_mm = np.multiply(tissue.spacing_mm, steps)
    seen = tissue.data[tuple(slice(None, None, step) for step in steps)] > 0
    core = _large(scipy.ndimage.distance_transform_edt(seen, spacing_mm) > BRIDGE_MM)
    if not core.any():
        return np.zeros(tissue.data.shape, dtype=bool)
    near = scipy.ndimage.distance_transform_edt(~core, spacing_mm) <= REGROWTH_MM
    brain = np.moveaxis(_large(seen & near), tissue.through_plane_axis, 0)
    filled = np.stack([scipy.ndimage.binary_fill_holes(image) for image in brain])
    coarse = np.moveaxis(filled, 0, tissue.through_plane_axis)
    places = [np.arange(n) // step for n, step in zip(tissue.data.shape, steps, strict=True)]
    whole: Array = coarse[np.ix_(*places)]
    return whole


def find_outside(mask: Array, brain: Array, place: mni.Place | None, grid: Volume) -> Outside:
    """The lesions of a mask (X, Y, Z) that lie outside the brain.

    At most half of such a lesion is in the brain mask. If the brain's place in the template is
    known, the mean depth of its voxels in the template's brain must also be below 12 mm; a lesion
    whose voxels lie on average more than 1 mm outside the template's brain is always outside.
    """
    numbers, count = find_lesions(mask)
    is_outside = _means(brain[mask], numbers[mask], count) <= INSIDE_PART
    if place is not None:
        beyond_mm = _means(_beyond_mm(mask, place, grid), numbers[mask], count)
        is_outside &= beyond_mm > -DEEP_MM
        is_outside |= beyond_mm > BEYOND_TEMPLATE_MM
    is_outside[0] = False
    return Outside(is_outside[numbers], int(is_outside.sum()))


def deep_rims(rims: Array, brain: Array, place: mni.Place | None, grid: Volume) -> Array:
    """Caps and rims (X, Y, Z) in the brain mask, bool.

    If the brain's place in the template is known, their pieces must lie on average at least
    `RIM_DEPTH_MM` deep in the template's brain: all ventricles do.
    """
    if place is None:
        return rims & brain
    numbers, count = find_lesions(rims)
    beyond_mm = _means(_beyond_mm(rims, place, grid), numbers[rims], count)
    is_deep = beyond_mm <= -RIM_DEPTH_MM
    is_deep[0] = False
    deep: Array = is_deep[numbers] & brain
    return deep


def within_brain(
    drawn: Delineation, brain: Array, place: mni.Place | None
) -> tuple[Delineation, Outside]:
    """The masks without lesions and rims outside the brain, and those lesions; `place` is the
    brain's place in the template."""
    grid = drawn.anatomy
    outside = find_outside(drawn.mask, brain, place, grid)
    mask = drawn.mask & ~outside.voxels
    liberal = drawn.liberal & ~find_outside(drawn.liberal, brain, place, grid).voxels
    rims = None if drawn.rims is None else deep_rims(drawn.rims, brain, place, grid)
    return replace(drawn, mask=mask, liberal=mask | liberal, rims=rims), outside


def _beyond_mm(mask: Array, place: mni.Place, grid: Volume) -> Array:
    """Distance (N,) of the voxels of a mask from the template's brain; negative inside."""
    return place.beyond_brain_mm(world(grid, np.argwhere(mask)))


def _means(values: Array, lesion: Array, count: int) -> Array:
    """Mean of the values (N,) of each lesion from 0 to `count`; 0 for an empty one."""
    size = np.maximum(np.bincount(lesion, minlength=count + 1), 1)
    means: Array = np.bincount(lesion, weights=values, minlength=count + 1) / size
    return means


def _large(mask: Array) -> Array:
    """The pieces of a mask that are larger than `LARGE_PART` of the largest."""
    pieces, _ = scipy.ndimage.label(mask)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    large: Array = (sizes > LARGE_PART * sizes.max())[pieces]
    return large
