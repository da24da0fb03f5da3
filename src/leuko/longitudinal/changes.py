"""What changed between two times: lesion by lesion, and beyond what chance does.

Two things are asked of a change. The masks must differ by more than the border of a lesion
wanders when one brain is scanned twice; and the FLAIR itself must have become brighter or darker
there. Masks alone will not do: a model that sees a faint lesion once and misses it once has
changed its mind, not the brain. All arrays (X, Y, Z) are on one grid whose axes run R, A, S.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from leuko.lesions.components import drop_small
from leuko.lesions.measure import numbered
from leuko.volume import Array, Volume

STATES = ("", "new", "grown", "stable", "shrunk", "resolved")
NEW, GROWN, STABLE, SHRUNK, RESOLVED = range(1, 6)

# How far borders wander by chance, see docs/methods.md: those of all lesions of a scan, and of one.
BORDER_MM, LESION_BORDER_MM = 0.15, 0.37
# How much brighter or darker the FLAIR became, in % of the grey value of tissue; at a border voxels
# are lesion in part at both times.
EVIDENCE, BORDER_EVIDENCE = 20.0, 15.0
UNKNOWN = float("nan")


@dataclass(frozen=True, eq=False)
class Time:
    """What is known of one of the two times, on the common grid."""

    mask: Array  # bool
    probability: Array  # of WMH, 0 to 1
    flair: Array  # tissue at 100


@dataclass(frozen=True)
class Change:
    """One lesion, 26-connected in both times taken together."""

    id: int  # from 1, the largest first
    state: str  # of STATES
    baseline_ml: float
    followup_ml: float
    change_ml: float
    change_percent: float  # of the baseline; nan where there was none
    floor_ml: float  # what chance alone may change
    x_mm: float  # of the centroid, in the halfway space: right, anterior, superior
    y_mm: float
    z_mm: float
    baseline_probability: float  # mean over the lesion of both times
    followup_probability: float
    flair_change: float  # of the voxels gained or lost, in % of tissue; nan where there are none


@dataclass(frozen=True, eq=False)
class Changes:
    """All lesions of two times."""

    lesions: list[Change]
    numbers: Array  # (X, Y, Z), the lesions' ids
    states: Array  # (X, Y, Z) uint8: new, gained, unchanged, lost and resolved voxels, as STATES
    surface_mm2: float  # of all lesions, mean of both times

    @cached_property
    def baseline_ml(self) -> float:
        return sum(lesion.baseline_ml for lesion in self.lesions)

    @cached_property
    def followup_ml(self) -> float:
        return sum(lesion.followup_ml for lesion in self.lesions)

    @property
    def change_ml(self) -> float:
        return self.followup_ml - self.baseline_ml

    @property
    def change_percent(self) -> float:
        """Of the baseline; nan where there was none."""
        return 100 * self.change_ml / self.baseline_ml if self.baseline_ml else UNKNOWN

    @property
    def floor_ml(self) -> float:
        """What chance alone may change the whole volume by."""
        return BORDER_MM * self.surface_mm2 / 1000

    @property
    def is_beyond_floor(self) -> bool:
        return abs(self.change_ml) > self.floor_ml

    @property
    def counts(self) -> dict[str, int]:
        """How many lesions there are of each state."""
        found = Counter(lesion.state for lesion in self.lesions)
        return {state: found[state] for state in STATES[1:]}

    @property
    def change_by_state(self) -> dict[str, float]:
        """The change in mL of the lesions of each state together."""
        change_ml = dict.fromkeys(STATES[1:], 0.0)
        for lesion in self.lesions:
            change_ml[lesion.state] += lesion.change_ml
        return change_ml


def find_changes(
    baseline: Time, followup: Time, grid: Volume, *, smallest_mm3: float = 0.0
) -> Changes:
    """Match the lesions of two times by overlap, and judge each; what is smaller at both times
    together than `smallest_mm3` is left out."""
    both = baseline.mask | followup.mask
    inside = drop_small(both, voxel_mm3=grid.voxel_mm3, smallest_mm3=smallest_mm3)
    numbers = numbered(inside)
    lesion = numbers[inside].astype(np.intp)
    count = int(lesion.max(initial=0)) + 1
    sizes = np.maximum(np.bincount(lesion, minlength=count), 1)
    before, after = baseline.mask[inside], followup.mask[inside]

    def total(values: Array) -> Array:
        return np.bincount(lesion, weights=values, minlength=count)

    voxel_ml = grid.voxel_mm3 / 1000
    volumes_ml = [total(mask) * voxel_ml for mask in (before, after)]
    change_ml = volumes_ml[1] - volumes_ml[0]
    surface_mm2 = (
        _surface_mm2(baseline.mask & inside, numbers, count, grid)
        + _surface_mm2(followup.mask & inside, numbers, count, grid)
    ) / 2
    floor_ml = LESION_BORDER_MM * surface_mm2 / 1000
    probabilities = [total(time.probability[inside]) / sizes for time in (baseline, followup)]
    moved = np.where(change_ml[lesion] > 0, after & ~before, before & ~after)
    brighter = np.where(moved, followup.flair[inside] - baseline.flair[inside], 0.0)
    changed = total(moved)
    flair_change = np.where(changed > 0, total(brighter) / np.maximum(changed, 1), UNKNOWN)

    once = np.minimum(*volumes_ml) == 0
    is_real = np.abs(change_ml) > floor_ml
    is_real &= np.sign(change_ml) * flair_change >= np.where(once, EVIDENCE, BORDER_EVIDENCE)
    kinds = np.where(change_ml > 0, np.where(once, NEW, GROWN), np.where(once, RESOLVED, SHRUNK))
    state = np.where(is_real, kinds, STABLE)

    places = np.argwhere(inside) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    centroids = np.stack([total(way) / sizes for way in places.T], axis=1)
    states = np.zeros(numbers.shape, dtype=np.uint8)
    states[inside] = np.where(moved, state[lesion], STABLE)
    return Changes(
        lesions=[
            Change(
                id=k,
                state=STATES[state[k]],
                baseline_ml=float(volumes_ml[0][k]),
                followup_ml=float(volumes_ml[1][k]),
                change_ml=float(change_ml[k]),
                change_percent=_percent(change_ml[k], volumes_ml[0][k]),
                floor_ml=float(floor_ml[k]),
                x_mm=float(centroids[k, 0]),
                y_mm=float(centroids[k, 1]),
                z_mm=float(centroids[k, 2]),
                baseline_probability=float(probabilities[0][k]),
                followup_probability=float(probabilities[1][k]),
                flair_change=float(flair_change[k]),
            )
            for k in range(1, count)
        ],
        numbers=numbers,
        states=states,
        surface_mm2=float(surface_mm2.sum()),
    )


def _percent(change: float, of: float) -> float:
    return float(100 * change / of) if of else UNKNOWN


def _surface_mm2(mask: Array, numbers: Array, count: int, grid: Volume) -> Array:
    """Area of the voxel faces between a mask and what is not in it, by lesion from 0."""
    area = np.zeros(count)
    padded = np.pad(mask, 1)
    inner = (slice(1, -1),) * 3
    for axis in range(3):
        face_mm2 = np.prod(np.delete(np.array(grid.spacing_mm), axis))
        for step in (-1, 1):
            bare = mask & ~np.roll(padded, step, axis)[inner]
            area += face_mm2 * np.bincount(numbers[bare], minlength=count)
    return area
