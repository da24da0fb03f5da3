"""Fazekas grades, estimated from how far lesions reach and how wide they are. Research only.

Fazekas et al. 1987 grade by looking: periventricular caps or a pencil-thin lining (1), a smooth
halo (2), into the deep white matter (3); deep foci (1), foci that begin to merge (2), large
confluent areas (3). The limits in millimetres are those of the CREDOS rating (Noh et al. 2014):
periventricular 5 and 10 mm thick, deep 10 and 25 mm long.
"""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage

from leuko.lesions import TOUCHING
from leuko.regions import DEEP_MM, NEAR_MM, Where, any_of, world
from leuko.volume import Array, Volume

PERIVENTRICULAR_MM = (5.0, 10.0)
DEEP_LENGTH_MM = (10.0, 25.0)
LEAST_ML = 0.05  # that must reach so far: a voxel or two are no grade


@dataclass(frozen=True)
class Grades:
    """Fazekas grades, 0 to 3."""

    periventricular: int
    deep: int


def grades(mask: Volume, lesion: Array, where: Where) -> Grades:
    """Grades of a lesion mask (X, Y, Z); `lesion` (N,) numbers the lesion of each of its voxels.

    Periventricular is what belongs to lesions that come within 2 mm of the lateral ventricles: its
    thickness is how far from them at least 0.05 mL of it reaches. Deep is the rest, and what of it
    lies beyond 10 mm; its length is that of its longest piece. No lesion: 0. Lesions that
    lie mostly below the tentorium, where that is known, are not graded.
    """
    below = np.bincount(lesion, weights=where.regions(lesion, "voxel10") == 3, minlength=1)
    above = (2 * below <= np.bincount(lesion, minlength=1))[lesion]
    touching = any_of(lesion, where.ventricle_mm <= NEAR_MM)[lesion] & above
    reach_mm = np.sort(where.ventricle_mm[touching])[::-1]
    least = max(1, round(LEAST_ML * 1000 / mask.voxel_mm3))
    periventricular = 0
    if len(reach_mm):
        thickness_mm = float(reach_mm[min(least, len(reach_mm)) - 1])
        periventricular = _grade(thickness_mm, PERIVENTRICULAR_MM)
    deep = np.zeros(mask.data.shape, dtype=bool)
    deep[mask.data > 0] = above & (~touching | (where.ventricle_mm > DEEP_MM))
    length_mm = _longest_mm(mask.with_data(deep))
    return Grades(
        periventricular=periventricular,
        deep=_grade(length_mm, DEEP_LENGTH_MM) if length_mm else 0,
    )


def _grade(size_mm: float, limits_mm: tuple[float, float]) -> int:
    return 1 + int(np.searchsorted(limits_mm, size_mm, side="right"))


def _longest_mm(mask: Volume) -> float:
    """Length of the longest lesion along its principal axis, its outer voxels whole; none: 0."""
    numbers, _ = scipy.ndimage.label(mask.data, TOUCHING)
    longest = 0.0
    for number, box in enumerate(scipy.ndimage.find_objects(numbers), start=1):
        points = world(mask, np.argwhere(numbers[box] == number))
        axis = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2][0]
        along = points @ axis
        longest = max(longest, float(np.ptp(along)) + min(mask.spacing_mm))
    return longest
