"""Registers the T1 to the FLAIR, rigidly by mutual information, and checks the result.

Only the T1's affine changes; `slices` resamples its voxels once. Points are world coordinates in
mm, RAS.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import scipy.ndimage
import SimpleITK as sitk  # noqa: N813, the name in its own documentation

from leuko.io.record import AlignmentRecord
from leuko.preprocessing.simpleitk import as_image
from leuko.preprocessing.slices import requantise
from leuko.volume import Array, Volume, bounding_box, centre_of_mass

Mode = Literal["auto", "always", "never"]

PROBE_SPACING_MM, COARSE_MM, FINE_MM = 3.0, 4.0, 1.5
PROBE_MM, PROBE_DEGREES = 2.0, 2.0
BRAIN_RADIUS_MM = 50.0
ALIGNED_MM = 0.6  # below the reproducibility of registration with thick slices
LOST_MM = 1.0  # a registration with this residual shift has failed
FAR_MM = 3.0  # beyond this the parabola extrapolates and its value is not reliable
AWAY_MM = 4.0
# Sharpness from LEAST_SHARPNESS shows one brain, below ANOTHER_BRAIN two brains; between the limits
# lie poor scans of one brain: experiments/registration.py.
LEAST_SHARPNESS, ANOTHER_BRAIN = 0.3, 0.24
TURN_DEGREES = 15  # between starts: the optimiser recovers half of it
TRIED = 3  # number of best starts that are optimised
TRIES = 4  # number of fine registrations, each from the result of the last


@dataclass(frozen=True, eq=False)
class Alignment:
    """A rigid registration of a T1 to its FLAIR and its quality. Mutual information is in nats."""

    matrix: Array  # (4, 4): FLAIR world coordinates to T1 world coordinates
    moved_mm: float  # displacement of the T1, mean over the brain
    off_mm: float  # residual shift, estimated from the mutual information at nearby positions
    information_before: float  # mutual information within the brain, by the headers alone
    information: float  # the same, after registration
    sharpness: float  # fraction of `information` lost by a shift of 4 mm, mean of six directions

    @property
    def is_sure(self) -> bool:
        """Whether the two scans show one brain and are registered."""
        return self.sharpness >= LEAST_SHARPNESS and self.off_mm < LOST_MM

    @property
    def is_hopeless(self) -> bool:
        """Whether the two scans show different brains, or are 3 mm or more apart."""
        return self.sharpness < ANOTHER_BRAIN or self.off_mm >= FAR_MM

    def doubt(self) -> str | None:
        """The reason why the registration is not sure, with its limit; None if it is sure."""
        if self.sharpness < LEAST_SHARPNESS:
            return (
                f"a shift of {AWAY_MM:g} mm lowers their mutual information by "
                f"{100 * max(0, self.sharpness):.0f} %, expected {100 * LEAST_SHARPNESS:.0f} % or "
                "more for one brain"
            )
        if self.off_mm < LOST_MM:
            return None
        shift = f"{self.off_mm:.1f} mm" if self.off_mm < FAR_MM else f"above {FAR_MM:.0f} mm"
        return f"residual shift {shift}, limit {LOST_MM:.1f} mm"

    def as_record(self) -> AlignmentRecord:
        """For the record of a run, rounded."""
        return AlignmentRecord(
            moved_mm=round(self.moved_mm, 3),
            off_mm=round(self.off_mm, 3) if self.off_mm < FAR_MM else None,
            sharpness=round(self.sharpness, 4),
            mutual_information_before=round(self.information_before, 4),
            mutual_information=round(self.information, 4),
            flair_to_t1=tuple(map(tuple, self.matrix.round(6).tolist())),
        )

    def apply(self, t1: Volume) -> Volume:
        """The T1 with its affine in the world coordinates of the FLAIR; voxels do not change."""
        return t1.moved(self.matrix)

    def write(self, path: Path) -> None:
        """Write an ITK transform (LPS) from FLAIR points to T1 points."""
        lps = np.diag([-1.0, -1.0, 1.0, 1.0])
        turned = lps @ self.matrix @ lps
        transform = sitk.AffineTransform(turned[:3, :3].ravel().tolist(), turned[:3, 3].tolist())
        with TemporaryDirectory() as folder:  # ITK aborts the process if a path is not UTF-8
            written = Path(folder) / "transform.tfm"
            sitk.WriteTransform(transform, str(written))
            path.write_bytes(written.read_bytes())


def align(flair: Volume, t1: Volume, *, mode: Mode = "auto", threads: int = 2) -> Alignment:
    """Register the T1 to the FLAIR.

    "auto" registers only if mutual information near the header position shows a shift, "always" in
    any case; "never" keeps the header position, as do the others if registration does not increase
    mutual information. The caller decides what to do with an alignment that is not sure.
    """
    probe = _Probe(flair, t1)
    here = probe.alignment(probe.stay)
    if mode == "never" or (mode == "auto" and here.is_sure and here.off_mm < ALIGNED_MM):
        return here
    best = here
    for transform in _registered(flair, t1, probe.brain, threads):
        found = probe.alignment(transform)
        best = max(best, found, key=lambda alignment: alignment.information)
        if found.is_sure:
            break
    return best


class _Probe:
    """Mutual information of a FLAIR and a T1, averaged to 3 mm, for any rigid transform."""

    def __init__(self, flair: Volume, t1: Volume) -> None:
        fixed, moving = (
            _in_8_bit(_averaged(scan.canonical(), PROBE_SPACING_MM)) for scan in (flair, t1)
        )
        brain = rough_brain(fixed)
        box = bounding_box(brain.data > 0)  # voxels outside the mask would only take time
        self.brain = brain.crop(box)
        self._images = as_image(fixed.crop(box)), as_image(moving)
        self._method = _method(32, 1.0, 1)
        self._method.SetMetricFixedMask(as_image(self.brain))
        self.stay = sitk.Euler3DTransform(centre_of_mass(self.brain).tolist(), 0.0, 0.0, 0.0)
        self._before = self._information(self.stay)

    def alignment(self, transform: Any) -> Alignment:
        matrix = _matrix(transform)
        points = _points(self.brain)
        moved = np.linalg.norm((points @ (matrix - np.eye(4)).T)[:, :3], axis=1).mean()
        here = self._information(transform)
        return Alignment(
            matrix,
            float(moved),
            self._off_mm(transform, here),
            self._before,
            here,
            self._sharpness(transform, here),
        )

    def _information(self, transform: Any) -> float:
        return _information(self._method, *self._images, transform)

    def _off_mm(self, transform: Any, here: float) -> float:
        """Distance in mm to the maximum of mutual information, by a parabola through three values
        for each of the six rigid parameters.

        Rotations count as the path of a point at the radius of the brain. Infinite if a parabola
        has no maximum.
        """
        way_mm = []
        for k in range(6):
            step, mm = (np.radians(PROBE_DEGREES), BRAIN_RADIUS_MM) if k < 3 else (PROBE_MM, 1.0)
            down, up = (self._beside(transform, k, side * step) for side in (-1, 1))
            bend = 2 * here - up - down
            way_mm.append(mm * step * (up - down) / (2 * bend) if bend > 0 else np.inf)
        return float(np.linalg.norm(way_mm))

    def _sharpness(self, transform: Any, here: float) -> float:
        away = [self._beside(transform, k, mm) for k in (3, 4, 5) for mm in (-AWAY_MM, AWAY_MM)]
        return float(1 - np.mean(away) / here) if here > 0 else 0.0

    def _beside(self, transform: Any, parameter: int, step: float) -> float:
        moved = sitk.Euler3DTransform(transform)
        parameters = np.array(transform.GetParameters())
        parameters[parameter] += step
        moved.SetParameters(parameters.tolist())
        return self._information(moved)


def _registered(flair: Volume, t1: Volume, brain: Volume, threads: int) -> Iterator[Any]:
    """Rigid transforms, from starts at the header position and at matched brain centres; each
    fine registration starts from the last, which may have stopped early.

    `brain` is a rough mask of the FLAIR's brain on any grid.
    """
    grids = [scan.canonical() for scan in (flair, t1)]
    small = [_in_8_bit(_averaged(scan, COARSE_MM)) for scan in grids]
    centres = [centre_of_mass(rough_brain(scan)) for scan in small]
    coarse = [as_image(scan) for scan in small]
    look = _method(24, 1.0, threads)

    def worth(transform: Any) -> float:
        return _information(look, coarse[0], coarse[1], transform)

    starts = sorted(_starts(*centres), key=worth, reverse=True)
    # Not within the brain: a T1 that shows only a part of it is then lost.
    search = _method(24, 0.25, threads)
    search.SetOptimizerAsRegularStepGradientDescent(
        4.0, 0.1, 60, relaxationFactor=0.8, gradientMagnitudeTolerance=1e-8
    )
    found = [_descend(search, coarse[0], coarse[1], start) for start in starts[:TRIED]]
    best = max(found, key=worth)

    fixed, moving = (_in_8_bit(_averaged(scan, FINE_MM)) for scan in grids)
    fine = as_image(fixed), as_image(moving)
    mask = as_image(brain)
    for seed in range(1, TRIES + 1):
        settle = _method(32, 0.2, threads, seed)
        settle.SetMetricFixedMask(mask)
        settle.SetOptimizerAsRegularStepGradientDescent(
            2.0, 0.001, 100, relaxationFactor=0.7, gradientMagnitudeTolerance=1e-8
        )
        best = _descend(settle, *fine, best)
        yield _rounded(best)


def _rounded(transform: Any) -> Any:
    """The transform rounded to 0.0001 radians and 0.01 mm, so that masks are reproducible: the
    last digits of ITK's sums depend on thread order."""
    parameters = np.array(transform.GetParameters())
    rounded = sitk.Euler3DTransform(transform)
    rounded.SetParameters([*parameters[:3].round(4), *parameters[3:].round(2)])
    return rounded


def rough_brain(scan: Volume) -> Volume:
    """A mask, uint8, of the brain and the 8 mm around it, from an 8-bit scan with tissue at 100.

    The brain is the largest component of tissue after everything thinner than 8 mm is removed: the
    skull separates it from scalp and face.
    """
    tissue = np.pad(scan.data > 55, 1)
    depth = scipy.ndimage.distance_transform_edt(tissue, sampling=scan.spacing_mm)
    bodies, count = scipy.ndimage.label(depth > 4)
    if count == 0:
        return scan.with_data((scan.data > 25).astype(np.uint8))
    largest = 1 + int(np.argmax(np.bincount(bodies.ravel())[1:]))
    away = scipy.ndimage.distance_transform_edt(bodies != largest, sampling=scan.spacing_mm)
    return scan.with_data((away[1:-1, 1:-1, 1:-1] < 8).astype(np.uint8))


def _in_8_bit(scan: Volume) -> Volume:
    return scan.with_data(requantise(scan, 100).astype(np.float32))


def _averaged(scan: Volume, mm: float) -> Volume:
    """Means of blocks of voxels with edges of about `mm`, float32."""
    blocks = np.array([max(1, round(mm / s)) for s in scan.spacing_mm])
    count = np.array(scan.data.shape) // blocks
    kept = scan.data[tuple(slice(n) for n in count * blocks)]
    shape = np.stack([count, blocks], axis=1).ravel()
    affine = scan.affine @ np.diag([*blocks, 1.0])
    affine[:3, 3] += scan.affine[:3, :3] @ ((blocks - 1) / 2)
    means = kept.reshape(shape).mean(axis=(1, 3, 5), dtype=np.float32)
    return Volume(means, affine, name=scan.name)


def _points(brain: Volume) -> Array:
    voxels = np.argwhere(brain.data)[::101]
    points: Array = np.c_[voxels, np.ones(len(voxels))] @ brain.affine.T
    return points


def _starts(fixed: Array, moving: Array) -> list[Any]:
    """Rotations about the FLAIR's brain centre, at the header position and with the brain centres
    matched."""
    turns = [np.zeros(3)] + [
        side * np.radians(TURN_DEGREES) * np.eye(3)[axis]
        for axis, side in product(range(3), (-1, 1))
    ]
    return [
        sitk.Euler3DTransform(fixed.tolist(), *turn.tolist(), shift.tolist())
        for shift, turn in product((np.zeros(3), moving - fixed), turns)
    ]


def _method(bins: int, part: float, threads: int, seed: int = 1) -> Any:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(bins)
    method.SetMetricSamplingStrategy(method.RANDOM if part < 1 else method.NONE)
    method.SetMetricSamplingPercentage(part, seed=seed)
    # The gradient filter smooths by the largest spacing: wrong for thick slices, and slower than
    # differences between neighbours.
    method.SetMetricUseFixedImageGradientFilter(False)
    method.SetMetricUseMovingImageGradientFilter(False)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetNumberOfThreads(threads)
    return method


def _information(method: Any, fixed: Any, moving: Any, transform: Any) -> float:
    method.SetInitialTransform(transform)
    try:
        return -float(method.MetricEvaluate(fixed, moving))
    except RuntimeError as error:
        if "outside" not in str(error):
            raise
        return 0.0  # the images do not overlap


def _descend(method: Any, fixed: Any, moving: Any, start: Any) -> Any:
    transform = sitk.Euler3DTransform(start)
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError as error:
        if "outside" not in str(error):
            raise
        return start  # the optimiser moved the images apart
    return transform


def _matrix(transform: Any) -> Array:
    turn, centre = np.array(transform.GetMatrix()).reshape(3, 3), np.array(transform.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = centre + transform.GetTranslation() - turn @ centre
    return matrix
