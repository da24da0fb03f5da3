"""A mask as lesions: groups of voxels that touch by a face, an edge or a corner."""

import numpy as np
import scipy.ndimage

from leuko.volume import Array

TOUCHING = np.ones((3, 3, 3), dtype=bool)  # 26-connected, as in the challenge


def find_lesions(mask: Array) -> tuple[Array, int]:
    """The mask (X, Y, Z) with its lesions numbered from 1, and how many there are."""
    labels, count = scipy.ndimage.label(mask, TOUCHING)
    return labels, int(count)


def drop_small(mask: Array, *, voxel_mm3: float, smallest_mm3: float) -> Array:
    """The mask (X, Y, Z) as bool, without lesions of a volume below `smallest_mm3`."""
    labels, count = find_lesions(mask)
    kept: Array = large(labels[mask], count, voxel_mm3=voxel_mm3, smallest_mm3=smallest_mm3)
    return kept[labels]


def large(lesion: Array, count: int, *, voxel_mm3: float, smallest_mm3: float) -> Array:
    """Whether each lesion from 0 to `count` has `smallest_mm3`, bool; of voxels (N,) numbered by
    their lesion. 0, no lesion, has not."""
    volumes_mm3 = np.bincount(lesion, minlength=count + 1) * voxel_mm3
    # The margin keeps a lesion of just the stated size, whatever the rounding of its spacing.
    kept: Array = volumes_mm3 >= smallest_mm3 * (1 - 1e-6)
    kept[0] = False
    return kept
