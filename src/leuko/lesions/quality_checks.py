"""Automatic checks of a result: each returns a finding with its evidence, or nothing.

All work on arrays whose axes run R, A, S, after the network: the place and the volume of the
tissues tell a FLAIR from a T1 and a head from a phantom. The limits lie between the values of real
scans and those of scans with a simulated fault (`experiments/guards.py`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.ndimage

from leuko.io.provenance import Finding, Level, is_useless
from leuko.volume import Array, Volume

TISSUES = ("background", "csf", "ventricle", "grey", "white", "wmh")

THICKEST_MM = 7.0
BRAIN_ML = (600.0, 2400.0)  # with its CSF
LEAST_HEAD_ML = 200.0  # less is no head, or one whose voxel sizes are in another unit
LEAST_CSF_PART = 0.05  # of the brain with its CSF
NO_CSF_PART = 0.01  # less: the model does not tell the tissues of this image
BRIGHT_CSF = 0.85  # of white matter
LEAST_WHITE_PER_GREY = 0.45  # by volume; a T1 taken for a FLAIR has less
LARGEST_CUT = 0.25  # the brain on an outermost slice, as part of its largest slice
CLIPPED_PART = 1e-3  # of the brain at the largest grey value
LARGEST = 0.999  # of the largest grey value: scaled or float files round it
ENHANCED, ENHANCED_PART = 1.15, 0.01  # T1 of choroid plexus by white matter; part of ventricles
STREAK_PART, STREAK_COHERENCE = 0.0015, 1.7  # see `_streaks`


@dataclass(frozen=True, eq=False)
class Case:
    """A segmented pair."""

    flair: Volume  # its axes running R, A, S
    t1: Array | None  # on the grid of the FLAIR, any scale
    tissue: Array  # uint8, indices into TISSUES, on the same grid

    @cached_property
    def ml(self) -> dict[str, float]:
        counts = np.bincount(self.tissue.ravel(), minlength=len(TISSUES))
        return dict(zip(TISSUES, counts * self.flair.voxel_mm3 / 1000, strict=True))

    @cached_property
    def brain_ml(self) -> float:
        return sum(self.ml.values()) - self.ml["background"]

    @property
    def csf_part(self) -> float:
        """CSF, ventricles included, as part of the brain with its CSF."""
        return (self.ml["csf"] + self.ml["ventricle"]) / self.brain_ml

    def median(self, image: Array, tissue: str) -> float:
        values = image[self.tissue == TISSUES.index(tissue)]
        return float(np.median(values)) if len(values) else float("nan")


@dataclass(frozen=True)
class Check:
    """One automatic check. `find` yields the evidence against a result, or nothing."""

    code: str
    title: str  # what is checked, for the list of checks that found nothing
    level: Level
    find: Callable[[Case], Iterator[str]]
    needs_t1: bool = False


def with_wmh(anatomy: Volume, mask: Array) -> Volume:
    """Tissues as if there were no WMH, indices into TISSUES, with WMH where the mask is."""
    return anatomy.with_data(np.where(mask, TISSUES.index("wmh"), anatomy.data).astype(np.uint8))


def examine(case: Case) -> tuple[list[Finding], list[str]]:
    """The findings on a segmented pair, and the titles of the checks that were done.

    After evidence of a wrong scan the other checks are left out: the tissues are those of another
    image.
    """
    findings: list[Finding] = []
    done = []
    for check in (*WRONG_SCAN, *OTHERS):
        if is_useless(findings) or (check in OTHERS and is_doubted(findings)):
            break
        if case.t1 is not None or not check.needs_t1:
            done.append(check.title)
            findings += [Finding(check.level, check.code, text) for text in check.find(case)]
    return findings, list(dict.fromkeys(done))


def is_doubted(findings: Iterable[Finding]) -> bool:
    """Whether a finding is evidence that this is not a FLAIR of a head."""
    codes = {check.code for check in WRONG_SCAN}
    return any(finding.code in codes for finding in findings)


def wrong_scan(case: Case) -> str | None:
    """Why this is not a FLAIR of a head, by its tissues; None if it looks like one."""
    return next((text for check in WRONG_SCAN for text in check.find(case)), None)


def _no_head(case: Case) -> Iterator[str]:
    if case.brain_ml < LEAST_HEAD_ML:
        yield _brain_volume(case)


def _too_little_brain(case: Case) -> Iterator[str]:
    if LEAST_HEAD_ML <= case.brain_ml < BRAIN_ML[0]:
        yield _brain_volume(case)


def _too_much_brain(case: Case) -> Iterator[str]:
    if case.brain_ml > BRAIN_ML[1]:
        yield _brain_volume(case)


def _brain_volume(case: Case) -> str:
    low, high = BRAIN_ML
    return (
        f"{case.brain_ml:.0f} mL of brain and CSF were found, expected {low:.0f} to {high:.0f}: is "
        f"{case.flair.name} a FLAIR of a whole head, its voxel sizes in mm?"
    )


def _little_white(case: Case) -> Iterator[str]:
    ratio = (case.ml["white"] + case.ml["wmh"]) / max(case.ml["grey"], 1e-3)
    # Where not even CSF is told, grey and white matter are not either.
    if ratio < LEAST_WHITE_PER_GREY and case.csf_part >= NO_CSF_PART:
        yield (
            f"{case.flair.name} does not look like a FLAIR: it shows {ratio:.2f} times as much "
            f"white as grey matter, expected at least {LEAST_WHITE_PER_GREY}"
            + ("; were FLAIR and T1 swapped?" if case.t1 is not None else "")
        )


def _bright_csf(case: Case) -> Iterator[str]:
    white = case.median(case.flair.data, "white")
    fluid = [case.median(case.flair.data, name) / white for name in ("csf", "ventricle")]
    ratio = max((value for value in fluid if not np.isnan(value)), default=0.0)
    if ratio > BRIGHT_CSF:
        yield (
            f"{case.flair.name} does not look like a FLAIR: CSF is {ratio:.2f} times as bright as "
            f"white matter, expected {BRIGHT_CSF} at most; {_other(case)}"
        )


def _little_csf(case: Case) -> Iterator[str]:
    if case.csf_part < LEAST_CSF_PART:
        yield (
            f"{case.flair.name} may not be a FLAIR: {100 * case.csf_part:.1f} % of the brain is "
            f"CSF, expected {100 * LEAST_CSF_PART:.0f} % at least; {_other(case)}"
        )


def _other(case: Case) -> str:
    return "is it a T2" + (", or were FLAIR and T1 swapped?" if case.t1 is not None else "?")


def _enhanced(case: Case) -> Iterator[str]:
    if case.t1 is None:
        return
    white = case.median(case.t1, "white")
    inside = case.t1[case.tissue == TISSUES.index("ventricle")]
    part = float((inside > ENHANCED * white).mean()) if len(inside) else 0.0
    if part > ENHANCED_PART:
        yield (
            f"the T1 seems to be contrast-enhanced: {100 * part:.1f} % of the ventricles are as "
            "bright on it as enhanced choroid plexus; a T1 without contrast medium is better"
        )


def _thick(case: Case) -> Iterator[str]:
    thickest = max(case.flair.spacing_mm)
    if thickest > THICKEST_MM:
        yield (
            f"slices are {thickest:.1f} mm apart: small lesions are missed and volumes are "
            "imprecise"
        )


def _clipped(case: Case) -> Iterator[str]:
    brain = case.flair.data[case.tissue > 0]
    clipped = float((brain >= LARGEST * case.flair.data.max()).mean())
    if clipped > CLIPPED_PART:
        yield (
            f"{100 * clipped:.1f} % of the brain has the largest grey value of the FLAIR: it was "
            "clipped, lesions may have merged with the tissue around them"
        )


def _in_motion(case: Case) -> Iterator[str]:
    strength, coherence = _streaks(case)
    if strength > STREAK_PART and coherence > STREAK_COHERENCE:
        yield (
            f"streaks beside the head of {100 * strength:.1f} % of the tissue's signal: the FLAIR "
            "was taken in motion; look at the mask"
        )


def _cut(case: Case) -> Iterator[str]:
    for axis, sides in enumerate(("left and right", "back and front", "bottom and top")):
        others = tuple(k for k in range(3) if k != axis)
        area = np.count_nonzero(case.tissue, axis=others)
        ends = np.array([area[0], area[-1]]) / max(area.max(), 1)
        for end, side in zip(ends, sides.split(" and "), strict=True):
            if end > LARGEST_CUT:
                yield (
                    f"the brain is cut off at its {side}: the outermost slice holds "
                    f"{100 * end:.0f} % of the largest one's area; volumes are too small"
                )


def _streaks(case: Case) -> tuple[float, float]:
    """Ghosts of a moving head beside it: strength, by white matter, and coherence, 1 for noise.

    In each slice the air before and behind the head (or left and right of it) is averaged along
    that way. Noise leaves a flat profile; ghosts leave streaks, whose spread is compared with
    that of the air's pixels. Medians over slices of the stronger of the two ways.
    """
    axis = case.flair.through_plane_axis
    white = case.median(case.flair.data, "white")
    slices = np.moveaxis(np.clip(case.flair.data / white, 0, 0.25), axis, 0)
    in_plane_mm = np.delete(np.array(case.flair.spacing_mm), axis)
    margin, smooth = 8 / in_plane_mm, 6 / in_plane_mm
    found = [(0.0, 0.0)]
    for image in slices:
        head = scipy.ndimage.binary_opening(image > 0.24, iterations=2)
        if head.sum() * in_plane_mm.prod() < 6000:
            continue
        places = np.argwhere(head)
        low = np.maximum(places.min(axis=0) - margin, 0).astype(int)
        high = np.ceil(places.max(axis=0) + 1 + margin).astype(int)
        ways = [(0.0, 0.0)]
        for way in range(2):
            turned = np.moveaxis(image, way, 0)[:, low[1 - way] : high[1 - way]]
            air = np.concatenate([turned[: low[way]], turned[high[way] :]])
            if len(air) < 6:
                continue
            profile = air.mean(axis=0)
            trend = scipy.ndimage.gaussian_filter1d(profile, smooth[1 - way])
            spread = float((profile - trend).std())
            noise = float((air - trend).std()) / np.sqrt(len(air))
            ways.append((spread, spread / noise if noise else 0.0))
        found.append(max(ways))
    strength, coherence = np.median(found, axis=0)
    return float(strength), float(coherence)


WRONG_SCAN = (
    Check("no-head", "volume of the brain", "do not use", _no_head),
    # Part of a head, or an image in which the model tells little.
    Check("little-brain", "volume of the brain", "warning", _too_little_brain),
    Check("little-white", "contrast of a FLAIR", "do not use", _little_white),
    Check("bright-csf", "contrast of a FLAIR", "do not use", _bright_csf),
    # Wrong voxel sizes falsify volumes, not the mask.
    Check("much-brain", "volume of the brain", "warning", _too_much_brain),
    # Weak evidence: some extracted brains have lost their CSF.
    Check("little-csf", "contrast of a FLAIR", "warning", _little_csf),
)
OTHERS = (
    Check("contrast-medium", "contrast medium in the T1", "note", _enhanced, needs_t1=True),
    Check("cut-off", "brain within the image", "warning", _cut),
    Check("slice-distance", "distance between slices", "note", _thick),
    Check("clipped", "clipped grey values", "warning", _clipped),
    Check("motion", "motion", "warning", _in_motion),
)
