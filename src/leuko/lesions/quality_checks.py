"""Automatic quality checks: each returns a finding with its evidence, or nothing.

They use the tissues that the network found, whose place and volume distinguish a FLAIR from a T1
and a head from a phantom. The limits lie between the values of real scans and those of scans with
a simulated fault (`experiments/guards.py`). Array axes run R, A, S.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.ndimage

from leuko.io.provenance import Finding, Level, is_useless
from leuko.io.tissue import Tissue
from leuko.volume import Array, Volume

THICKEST_MM = 7.0
BRAIN_ML = (600.0, 2400.0)  # with its CSF
LEAST_HEAD_ML = 200.0  # less is not a head, or its voxel sizes are not in mm
LEAST_CSF_PART = 0.05  # of the brain with its CSF
NO_CSF_PART = 0.01  # less: the model does not recognise the tissues of this image
BRIGHT_CSF = 0.85  # of white matter
LEAST_WHITE_PER_GREY = 0.45  # by volume; a T1 taken for a FLAIR has less
LARGEST_CUT = 0.25  # area of the brain on an outermost slice, as part of its largest slice
CLIPPED_PART = 1e-3  # of the brain at the largest grey value
LARGEST = 0.999  # of the largest grey value; from there on voxels are clipped, within rounding
ENHANCED, ENHANCED_PART = 1.15, 0.01  # T1 of choroid plexus / white matter; part of ventricles
STREAK_PART, STREAK_COHERENCE = 0.0015, 1.7  # see `_streaks`


@dataclass(frozen=True, eq=False)
class CheckedScan:
    """A segmented scan to check."""

    flair: Volume  # its axes run R, A, S
    t1: Array | None  # on the grid of the FLAIR, any scale
    tissue: Array  # uint8, values of `Tissue`, on the same grid

    @cached_property
    def ml(self) -> dict[Tissue, float]:
        counts = np.bincount(self.tissue.ravel(), minlength=len(Tissue))
        return dict(zip(Tissue, counts * self.flair.voxel_mm3 / 1000, strict=True))

    @cached_property
    def brain_ml(self) -> float:
        return sum(self.ml.values()) - self.ml[Tissue.BACKGROUND]

    @property
    def csf_part(self) -> float:
        """CSF, ventricles included, as part of the brain with its CSF."""
        return (self.ml[Tissue.CSF] + self.ml[Tissue.VENTRICLE]) / self.brain_ml

    def median(self, image: Array, tissue: Tissue) -> float:
        values = image[self.tissue == tissue]
        return float(np.median(values)) if len(values) else float("nan")


@dataclass(frozen=True)
class Check:
    """One automatic check. `find` yields a text for each problem it found."""

    code: str
    title: str  # what is checked, for the list of checks that were done
    level: Level
    find: Callable[[CheckedScan], Iterator[str]]
    needs_t1: bool = False


def with_wmh(anatomy: Volume, mask: Array) -> Volume:
    """`anatomy`, values of `Tissue` without WMH, with WMH added where the mask is."""
    return anatomy.with_data(np.where(mask, Tissue.WMH, anatomy.data).astype(np.uint8))


def examine(case: CheckedScan) -> tuple[list[Finding], list[str]]:
    """The findings on a segmented scan, and the titles of the checks that were done.

    If the scan may not be a FLAIR of a head, the remaining checks are skipped, because its tissues
    are not reliable.
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
    """Whether a finding suggests that the scan is not a FLAIR of a head."""
    return wrong_scan(findings) is not None


def wrong_scan(findings: Iterable[Finding]) -> str | None:
    """The first evidence that the scan is not a FLAIR of a head; None if there is none."""
    codes = {check.code for check in WRONG_SCAN}
    return next((finding.text for finding in findings if finding.code in codes), None)


def _no_head(case: CheckedScan) -> Iterator[str]:
    if case.brain_ml < LEAST_HEAD_ML:
        yield _brain_volume(case)


def _too_little_brain(case: CheckedScan) -> Iterator[str]:
    if LEAST_HEAD_ML <= case.brain_ml < BRAIN_ML[0]:
        yield _brain_volume(case)


def _too_much_brain(case: CheckedScan) -> Iterator[str]:
    if case.brain_ml > BRAIN_ML[1]:
        yield _brain_volume(case)


def _brain_volume(case: CheckedScan) -> str:
    low, high = BRAIN_ML
    return (
        f"{case.brain_ml:.0f} mL of brain and CSF were found, expected {low:.0f} to {high:.0f}; "
        f"check that {case.flair.name} is a FLAIR of a whole head with voxel sizes in mm"
    )


def _little_white(case: CheckedScan) -> Iterator[str]:
    white = sum(case.ml[tissue] for tissue in (Tissue.WHITE, Tissue.RIM, Tissue.WMH))
    ratio = white / max(case.ml[Tissue.GREY], 1e-3)
    # If the model does not recognise CSF, its grey and white matter are not reliable either.
    if ratio < LEAST_WHITE_PER_GREY and case.csf_part >= NO_CSF_PART:
        yield (
            f"{case.flair.name} does not look like a FLAIR: white matter has {ratio:.2f} times "
            f"the volume of grey matter, expected at least {LEAST_WHITE_PER_GREY}"
            + ("; were FLAIR and T1 swapped?" if case.t1 is not None else "")
        )


def _bright_csf(case: CheckedScan) -> Iterator[str]:
    white = case.median(case.flair.data, Tissue.WHITE)
    fluid = [case.median(case.flair.data, k) / white for k in (Tissue.CSF, Tissue.VENTRICLE)]
    ratio = max((value for value in fluid if not np.isnan(value)), default=0.0)
    if ratio > BRIGHT_CSF:
        yield (
            f"{case.flair.name} does not look like a FLAIR: CSF is {ratio:.2f} times as bright as "
            f"white matter, expected at most {BRIGHT_CSF}; {_other(case)}"
        )


def _little_csf(case: CheckedScan) -> Iterator[str]:
    if case.csf_part < LEAST_CSF_PART:
        yield (
            f"{case.flair.name} may not be a FLAIR: CSF is {100 * case.csf_part:.1f} % of the "
            f"brain, expected at least {100 * LEAST_CSF_PART:.0f} %; {_other(case)}"
        )


def _other(case: CheckedScan) -> str:
    return "is it a T2" + (", or were FLAIR and T1 swapped?" if case.t1 is not None else "?")


def _enhanced(case: CheckedScan) -> Iterator[str]:
    if case.t1 is None:
        return
    white = case.median(case.t1, Tissue.WHITE)
    inside = case.t1[case.tissue == Tissue.VENTRICLE]
    part = float((inside > ENHANCED * white).mean()) if len(inside) else 0.0
    if part > ENHANCED_PART:
        yield (
            f"the T1 seems to be contrast-enhanced: {100 * part:.1f} % of the ventricles are as "
            f"bright as enhanced choroid plexus (limit {100 * ENHANCED_PART:.0f} %); use a T1 "
            "without contrast medium if there is one"
        )


def _thick(case: CheckedScan) -> Iterator[str]:
    thickest = max(case.flair.spacing_mm)
    if thickest > THICKEST_MM:
        yield (
            f"slices are {thickest:.1f} mm apart (limit {THICKEST_MM:.0f} mm): small lesions are "
            "missed and volumes are imprecise"
        )


def _clipped(case: CheckedScan) -> Iterator[str]:
    brain = case.flair.data[case.tissue > 0]
    clipped = float((brain >= LARGEST * case.flair.data.max()).mean())
    if clipped > CLIPPED_PART:
        yield (
            f"the FLAIR is clipped: {100 * clipped:.1f} % of the brain has its largest grey value "
            f"(limit {100 * CLIPPED_PART:.1f} %); lesions may merge with the tissue around them"
        )


def _in_motion(case: CheckedScan) -> Iterator[str]:
    strength, coherence = _streaks(case)
    if strength > STREAK_PART and coherence > STREAK_COHERENCE:
        yield (
            f"the FLAIR shows motion: streaks beside the head have {100 * strength:.2f} % of the "
            f"signal of white matter (limit {100 * STREAK_PART:.2f} %); check the mask"
        )


def _cut(case: CheckedScan) -> Iterator[str]:
    for axis, sides in enumerate(("left and right", "back and front", "bottom and top")):
        others = tuple(k for k in range(3) if k != axis)
        area = np.count_nonzero(case.tissue, axis=others)
        ends = np.array([area[0], area[-1]]) / max(area.max(), 1)
        for end, side in zip(ends, sides.split(" and "), strict=True):
            if end > LARGEST_CUT:
                yield (
                    f"the brain is cut off at its {side}: the outermost slice has "
                    f"{100 * end:.0f} % of the largest slice's area (limit "
                    f"{100 * LARGEST_CUT:.0f} %); volumes are too small"
                )


def _streaks(case: CheckedScan) -> tuple[float, float]:
    """Motion ghosts beside the head: strength, relative to white matter; coherence, 1 for noise.

    In each slice the air in front of and behind the head (or left and right of it) is averaged
    along that direction. Noise gives a flat profile, ghosts give streaks; the profile's spread is
    compared with that of the air's pixels. Medians over slices, for the stronger direction.
    """
    axis = case.flair.through_plane_axis
    white = case.median(case.flair.data, Tissue.WHITE)
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
    # The scan shows part of a head, or the model recognises little in it.
    Check("little-brain", "volume of the brain", "warning", _too_little_brain),
    Check("little-white", "contrast of a FLAIR", "do not use", _little_white),
    Check("bright-csf", "contrast of a FLAIR", "do not use", _bright_csf),
    # Wrong voxel sizes falsify volumes, not the mask.
    Check("much-brain", "volume of the brain", "warning", _too_much_brain),
    # Weak evidence: brain extraction may have removed the CSF.
    Check("little-csf", "contrast of a FLAIR", "warning", _little_csf),
)
OTHERS = (
    Check("contrast-medium", "contrast medium in the T1", "note", _enhanced, needs_t1=True),
    Check("cut-off", "brain within the image", "warning", _cut),
    Check("slice-distance", "distance between slices", "note", _thick),
    Check("clipped", "clipped grey values", "warning", _clipped),
    Check("motion", "motion", "warning", _in_motion),
)
