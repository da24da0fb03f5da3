"""The brain in a model's tissues, and lesions outside it. All arrays run R, A, S.

Lesions are found in the neck, the orbits and at the skull base too. Two witnesses tell them from
lesions of the brain: the tissues around them, and their place in the template. The limits lie
between true and false lesions of real scans (`experiments/outside_brain.py`).
"""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage

from leuko.lesions import mni
from leuko.lesions.components import find_lesions
from leuko.volume import Array, Orientation, Volume, world

GRID_MM = 2.0  # finer grids cost time and change nothing
BRIDGE_MM = 4.0  # half the width of nerves and vessels that join other tissue to the brain
REGROWTH_MM = 6.0  # gives back what cutting those bridges took
LARGE_PART = 0.05  # of the largest piece: others as large are brain too, beyond a black slice
INSIDE_PART = 0.5  # of a lesion of the brain lies in the brain mask, or more
DEEP_MM = 12.0  # in the template's brain: nothing there is outside, whatever the tissues
BEYOND_TEMPLATE_MM = 1.0  # true lesions lie 3.5 mm and more inside the template


@dataclass(frozen=True, eq=False)
class Outside:
    """Lesions that lie outside the brain."""

    voxels: Array  # bool (X, Y, Z)
    lesions: int


def brain_mask(tissue: Volume) -> Array:
    """The brain with its CSF, bool (X, Y, Z): the large pieces of the model's tissues.

    Give the tissues as if there were no WMH, lest a lesion be brain by itself. Bridges thinner than
    8 mm are cut, holes within slices are filled. No tissue: all False.
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

    At most half of such a lesion is in the brain mask. Where the brain's place in the template is
    known, its voxels lie on average less than 12 mm inside the template's brain; more than 1 mm
    outside it they are outside by that alone.
    """
    numbers, count = find_lesions(mask)
    lesion = numbers[mask]
    size = np.maximum(np.bincount(lesion, minlength=count + 1), 1)

    def mean(values: Array) -> Array:
        return np.bincount(lesion, weights=values, minlength=count + 1) / size

    is_outside = mean(brain[mask]) <= INSIDE_PART
    if place is not None:
        beyond_mm = mean(place.beyond_brain_mm(world(grid, np.argwhere(mask))))
        is_outside &= beyond_mm > -DEEP_MM
        is_outside |= beyond_mm > BEYOND_TEMPLATE_MM
    is_outside[0] = False
    return Outside(is_outside[numbers], int(is_outside.sum()))


def without_outside(mask: Array, anatomy: Volume, *, threads: int) -> Array:
    """A mask (X, Y, Z) without its lesions outside the brain; `anatomy` are the tissues as if there
    were no WMH, stored in any order."""
    grid = anatomy.canonical()
    brain = brain_mask(grid)
    place = mni.Place.of(grid.with_data(grid.data * brain), threads=threads)
    orientation = Orientation.of(anatomy.affine)
    outside = find_outside(orientation.apply(mask), brain, place, grid)
    kept: Array = mask & ~orientation.undo(outside.voxels)
    return kept


def _large(mask: Array) -> Array:
    """The pieces of a mask that are not much smaller than the largest."""
    pieces, _ = scipy.ndimage.label(mask)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    large: Array = (sizes > LARGE_PART * sizes.max())[pieces]
    return large
