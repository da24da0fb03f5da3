"""Changes between visits, lesion by lesion, and whether they exceed chance.

A lesion has changed if two conditions hold: its masks differ by more than lesion borders vary
when one brain is scanned twice, and the FLAIR became brighter or darker there. Masks alone are not
enough: a model may find a faint lesion at one time and miss it at the other although the brain has
not changed. Of more than two visits, each pair of consecutive ones is judged so. Arrays (X, Y, Z)
are on one grid whose axes run R, A, S.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from leuko.lesions.components import drop_small, find_lesions
from leuko.lesions.measure import numbered
from leuko.volume import Array, Volume

STATES = ("", "new", "grown", "stable", "shrunk", "resolved")
NEW, GROWN, STABLE, SHRUNK, RESOLVED = range(1, 6)
WHY_STABLE = "not beyond their noise floors, or not seen in the FLAIR"
BY_CHANGE = ("new", "grown", "shrunk", "resolved", "stable")
EVENTS = ("merged", "split")

# Shift of lesion borders by chance (docs/methods.md): for all lesions of a scan, and for one.
BORDER_MM, LESION_BORDER_MM = 0.20, 0.42
# Smallest change of the FLAIR, in % of the grey value of tissue: for new and resolved lesions, and
# for grown and shrunk ones, whose border voxels are partly lesion at both times.
EVIDENCE, BORDER_EVIDENCE = 20.0, 15.0
UNKNOWN = float("nan")


@dataclass(frozen=True, eq=False)
class Time:
    """One of the visits, on the common grid."""

    mask: Array  # bool
    probability: Array  # of WMH, 0 to 1
    flair: Array  # scaled to tissue at 100


@dataclass(frozen=True)
class Change:
    """One lesion, 26-connected in the union of the masks of two visits, at these visits.

    Lesions that another visit connects have one id.
    """

    id: int  # as in `Followed`; from 1 for the largest
    part: int  # from 1 for the largest with this id
    state: str  # of STATES
    baseline_ml: float
    followup_ml: float
    change_ml: float
    change_percent: float  # of the baseline; nan if that is 0
    floor_ml: float  # change that chance alone may cause
    x_mm: float  # of the centroid, in the halfway space: right, anterior, superior
    y_mm: float
    z_mm: float
    baseline_probability: float  # mean over the lesion, the union of both masks
    followup_probability: float
    flair_change: float  # of the voxels gained or lost, in % of tissue; nan without any
    events: tuple[str, ...] = ()  # of EVENTS


@dataclass(frozen=True, eq=False)
class Changes:
    """All lesions of two visits; one that neither of them has is left out."""

    lesions: list[Change]
    numbers: Array  # (X, Y, Z), ids of lesions, of all visits
    states: Array  # (X, Y, Z) uint8, of STATES: new, gained, unchanged, lost, resolved voxels
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
        """Change of the total volume in % of the baseline; nan if that is 0."""
        return 100 * self.change_ml / self.baseline_ml if self.baseline_ml else UNKNOWN

    @property
    def floor_ml(self) -> float:
        """Change of the total volume that chance alone may cause."""
        return BORDER_MM * self.surface_mm2 / 1000

    @property
    def is_beyond_floor(self) -> bool:
        return abs(self.change_ml) > self.floor_ml

    @property
    def counts(self) -> dict[str, int]:
        """The number of lesions of each state."""
        found = Counter(lesion.state for lesion in self.lesions)
        return {state: found[state] for state in STATES[1:]}

    @property
    def event_counts(self) -> dict[str, int]:
        """The number of lesions that merged and that split."""
        return {event: sum(event in lesion.events for lesion in self.lesions) for event in EVENTS}

    def states_of(self, number: int) -> tuple[str, ...]:
        """The states of the parts of a lesion, each once, changes first."""
        found = {lesion.state for lesion in self._parts.get(number, ())}
        return tuple(state for state in BY_CHANGE if state in found)

    def events_of(self, number: int) -> tuple[str, ...]:
        """The events of the parts of a lesion, each once."""
        found = {event for lesion in self._parts.get(number, ()) for event in lesion.events}
        return tuple(event for event in EVENTS if event in found)

    @cached_property
    def _parts(self) -> dict[int, list[Change]]:
        found = defaultdict(list)
        for lesion in self.lesions:
            found[lesion.id].append(lesion)
        return found

    @property
    def change_by_state(self) -> dict[str, float]:
        """The total change in mL of the lesions of each state."""
        change_ml = dict.fromkeys(STATES[1:], 0.0)
        for lesion in self.lesions:
            change_ml[lesion.state] += lesion.change_ml
        return change_ml


@dataclass(frozen=True)
class Followed:
    """One lesion through all visits; the states and events are of the intervals between them."""

    id: int  # from 1 for the largest
    x_mm: float  # of the centroid, in the common space: right, anterior, superior
    y_mm: float
    z_mm: float
    ml: tuple[float, ...]  # by visit
    states: tuple[tuple[str, ...], ...]  # of STATES, of its parts; none: absent at both visits
    events: tuple[tuple[str, ...], ...]  # of EVENTS


@dataclass(frozen=True, eq=False)
class Course:
    """All lesions through all visits, at least two."""

    lesions: list[Followed]
    intervals: list[Changes]  # between consecutive visits
    overall: Changes  # from the first visit to the last
    ml: tuple[float, ...]  # of all lesions, by visit
    surface_mm2: tuple[float, ...]  # likewise

    def floor_ml(self, first: int, second: int) -> float:
        """Change of the total volume between two visits that chance alone may cause."""
        return BORDER_MM * (self.surface_mm2[first] + self.surface_mm2[second]) / 2 / 1000


def follow(times: Sequence[Time], grid: Volume, *, smallest_mm3: float = 0.0) -> Course:
    """Follow each lesion, a component of the union of all masks, through all visits in order.

    Lesions whose union is smaller than `smallest_mm3` are dropped.
    """
    union = np.logical_or.reduce([time.mask for time in times])
    inside = drop_small(union, voxel_mm3=grid.voxel_mm3, smallest_mm3=smallest_mm3)
    numbers = numbered(inside)
    count = int(numbers.max(initial=0)) + 1

    def between(before: Time, after: Time) -> Changes:
        return _between(before, after, numbers, grid, smallest_mm3)

    intervals = [between(*pair) for pair in pairwise(times)]
    voxels = np.stack([_counts(numbers[time.mask], count) for time in times], axis=1)
    volumes_ml = voxels * grid.voxel_mm3 / 1000
    centroids = _centroids(numbers, count, grid)
    lesions = [
        Followed(
            id=k,
            x_mm=float(centroids[k, 0]),
            y_mm=float(centroids[k, 1]),
            z_mm=float(centroids[k, 2]),
            ml=tuple(map(float, volumes_ml[k])),
            states=tuple(changes.states_of(k) for changes in intervals),
            events=tuple(changes.events_of(k) for changes in intervals),
        )
        for k in range(1, count)
    ]
    surfaces = [_surface_mm2(time.mask & inside, numbers, count, grid).sum() for time in times]
    return Course(
        lesions=lesions,
        intervals=intervals,
        overall=intervals[0] if len(times) == 2 else between(times[0], times[-1]),
        ml=tuple(map(float, volumes_ml[1:].sum(axis=0))),
        surface_mm2=tuple(map(float, surfaces)),
    )


def find_changes(
    baseline: Time, followup: Time, grid: Volume, *, smallest_mm3: float = 0.0
) -> Changes:
    """Match the lesions of two visits by overlap and give each its state; lesions whose union over
    both visits is smaller than `smallest_mm3` are dropped."""
    return follow((baseline, followup), grid, smallest_mm3=smallest_mm3).overall


def _between(
    baseline: Time, followup: Time, tracks: Array, grid: Volume, smallest_mm3: float
) -> Changes:
    """The changes between two visits of the lesions in `tracks`, ids (X, Y, Z) over all visits.

    A lesion that only another visit connects has several parts here, each with its own state.
    """
    inside = (baseline.mask | followup.mask) & (tracks > 0)
    numbers = numbered(inside)
    lesion = numbers[inside].astype(np.intp)
    count = int(numbers.max(initial=0)) + 1
    voxels = _counts(lesion, count)
    sizes = np.maximum(voxels, 1)
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
    is_real = (np.abs(change_ml) > floor_ml) & (voxels * grid.voxel_mm3 >= smallest_mm3)
    is_real &= np.sign(change_ml) * flair_change >= np.where(once, EVIDENCE, BORDER_EVIDENCE)
    kinds = np.where(change_ml > 0, np.where(once, NEW, GROWN), np.where(once, RESOLVED, SHRUNK))
    state = np.where(is_real, kinds, STABLE)

    centroids = _centroids(numbers, count, grid)
    track = np.zeros(count, np.intp)
    track[lesion] = tracks[inside]
    part = _ranks(track)
    events = _events(baseline, followup, numbers, grid, smallest_mm3)
    states = np.zeros(numbers.shape, dtype=np.uint8)
    states[inside] = np.where(moved, state[lesion], STABLE)
    return Changes(
        lesions=[
            Change(
                id=int(track[k]),
                part=int(part[k]),
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
                events=tuple(event for event in EVENTS if k in events[event]),
            )
            for k in np.lexsort([part, track]).tolist()
            if k
        ],
        numbers=tracks,
        states=states,
        surface_mm2=float(surface_mm2.sum()),
    )


def _events(
    baseline: Time, followup: Time, numbers: Array, grid: Volume, smallest_mm3: float
) -> dict[str, set[int]]:
    """The ids of lesions that merged and that split. Two lesions that split backwards in time
    merged."""
    parts = []
    for time in (baseline, followup):
        mask = time.mask & (numbers > 0)
        large = drop_small(mask, voxel_mm3=grid.voxel_mm3, smallest_mm3=smallest_mm3)
        parts.append(find_lesions(large)[0])
    merged = _joined(baseline, followup, parts[0], parts[1], numbers)
    split = _joined(followup, baseline, parts[1], parts[0], numbers)
    return dict(zip(EVENTS, (merged, split), strict=True))


def _joined(apart: Time, joined: Time, parts: Array, wholes: Array, numbers: Array) -> set[int]:
    """The ids of lesions of which two or more of the `parts` (numbers of components) overlap one of
    the `wholes`, and the FLAIR is brighter where only the whole is."""
    both = (parts > 0) & (wholes > 0)
    pairs = np.unique(np.stack([wholes[both], parts[both]]), axis=1)
    count = int(wholes.max(initial=0)) + 1
    held = _counts(pairs[0], count)
    bridge = (wholes > 0) & ~apart.mask
    brighter = np.bincount(
        wholes[bridge], weights=(joined.flair - apart.flair)[bridge], minlength=count
    ) / np.maximum(_counts(wholes[bridge], count), 1)
    found = np.isin(wholes, np.flatnonzero((held > 1) & (brighter >= BORDER_EVIDENCE)))
    return set(np.unique(numbers[found]).tolist())


def _ranks(track: Array) -> Array:
    """The place of each number among those of its track, from 1, in their order."""
    seen: Counter[int] = Counter()
    ranks = np.zeros(len(track), np.intp)
    for k, number in enumerate(track.tolist()):
        seen[number] += 1
        ranks[k] = seen[number]
    return ranks


def _counts(numbers: Array, count: int) -> Array:
    return np.bincount(numbers.astype(np.intp), minlength=count)


def _centroids(numbers: Array, count: int, grid: Volume) -> Array:
    """Centroids in mm of the lesions, (count, 3), by number; those without voxels at the origin."""
    inside = numbers > 0
    lesion = numbers[inside].astype(np.intp)
    places = np.argwhere(inside) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    sizes = np.maximum(_counts(lesion, count), 1)
    return np.stack(
        [np.bincount(lesion, weights=way, minlength=count) / sizes for way in places.T], axis=1
    )


def _percent(change: float, of: float) -> float:
    return float(100 * change / of) if of else UNKNOWN


def _surface_mm2(mask: Array, numbers: Array, count: int, grid: Volume) -> Array:
    """Surface of a mask by lesion from 0: area of the voxel faces between inside and outside."""
    area = np.zeros(count)
    padded = np.pad(mask, 1)
    inner = (slice(1, -1),) * 3
    for axis in range(3):
        face_mm2 = np.prod(np.delete(np.array(grid.spacing_mm), axis))
        for step in (-1, 1):
            bare = mask & ~np.roll(padded, step, axis)[inner]
            area += face_mm2 * np.bincount(numbers[bare], minlength=count)
    return area
