"""A T1 is brought to its FLAIR: rigidly, by mutual information, and judged before it is believed.

No voxel changes: what moves is the T1's affine, so that it is resampled once, by `channels`. Points
are millimetres in the world, RAS, throughout.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import scipy.ndimage
import SimpleITK as sitk  # noqa: N813, the name in its own documentation

from leuko.preprocessing.simpleitk import as_image
from leuko.preprocessing.slices import requantise
from leuko.volume import Array, Volume

Mode = Literal["auto", "always", "never"]

PROBE_SPACING_MM, COARSE_MM, FINE_MM = 3.0, 4.0, 1.5
PROBE_MM, PROBE_DEGREES = 2.0, 2.0
BRAIN_RADIUS_MM = 50.0
ALIGNED_MM = 0.6  # what a registration of thick slices would not find again either
LOST_MM = 1.0  # a registration that ends so far from the best place has failed
FAR_MM = 3.0  # what a parabola says beyond its three values is no measure
AWAY_MM = 4.0
# Two scans of one brain have more, of two brains less: experiments/registration.py.
LEAST_SHARPNESS = 0.3
ANOTHER_BRAIN = 0.24  # two brains have less; poor pairs of one brain lie between it and the limit
TURN_DEGREES = 15  # between starts: half of it lies within reach of a descent
TRIED = 3  # of the starts, the best, are followed
TRIES = 4  # to settle


@dataclass(frozen=True, eq=False)
class Alignment:
    """How a T1 lies to its FLAIR, and what speaks for it. Mutual information is in nats."""

    matrix: Array  # (4, 4): where a point of the FLAIR's world lies in the T1's
    moved_mm: float  # by how much the T1 was, mean over the brain
    off_mm: float  # by how much it still is, as far as the mutual information around tells
    information_before: float  # mutual information within the brain, as the headers say
    information: float
    sharpness: float  # the part of it that is lost 4 mm away, mean over six ways

    @property
    def is_sure(self) -> bool:
        """Whether these are two scans of one brain, and lie on each other."""
        return self.sharpness >= LEAST_SHARPNESS and self.off_mm < LOST_MM

    @property
    def is_hopeless(self) -> bool:
        """Whether the two show different brains, or lie far apart."""
        return self.sharpness < ANOTHER_BRAIN or self.off_mm >= FAR_MM

    def doubt(self) -> str | None:
        """Why it is not sure that these are two scans of one brain on each other, or None."""
        if self.sharpness < LEAST_SHARPNESS:
            return (
                f"moved by {AWAY_MM:g} mm they lose {100 * max(0, self.sharpness):.0f} % of their "
                f"mutual information, expected {100 * LEAST_SHARPNESS:.0f} % or more"
            )
        if self.off_mm < LOST_MM:
            return None
        shift = f"{self.off_mm:.1f} mm" if self.off_mm < FAR_MM else f"above {FAR_MM:.0f} mm"
        return f"residual shift {shift}, limit {LOST_MM:.1f} mm"

    def apply(self, t1: Volume) -> Volume:
        """The same voxels at their place in the world of the FLAIR."""
        return replace(t1, affine=np.linalg.inv(self.matrix) @ t1.affine)

    def write(self, path: Path) -> None:
        """As a transform of ITK, which counts LPS: points of the FLAIR to points of the T1."""
        lps = np.diag([-1.0, -1.0, 1.0, 1.0])
        turned = lps @ self.matrix @ lps
        transform = sitk.AffineTransform(turned[:3, :3].ravel().tolist(), turned[:3, 3].tolist())
        with TemporaryDirectory() as folder:  # ITK ends the process for a path that is not UTF-8
            written = Path(folder) / "transform.tfm"
            sitk.WriteTransform(transform, str(written))
            path.write_bytes(written.read_bytes())


def align(flair: Volume, t1: Volume, *, mode: Mode = "auto", threads: int = 2) -> Alignment:
    """Find where the T1 lies to its FLAIR.

    "auto" registers where a look at the mutual information around the place that the headers say
    tells that it is needed, "always" without a look; "never" takes the headers at their word. What
    the headers say also stays where registration finds no better. Whoever calls decides what to do
    with an alignment that is not sure.
    """
    probe = _Probe(flair, t1)
    stay = sitk.Euler3DTransform(probe.centre.tolist(), 0.0, 0.0, 0.0)
    here = probe.alignment(stay, before=stay)
    if mode == "never" or (mode == "auto" and here.is_sure and here.off_mm < ALIGNED_MM):
        return here
    best = here
    for transform in _registered(flair, t1, threads):
        found = probe.alignment(transform, before=stay)
        best = max(best, found, key=lambda alignment: alignment.information)
        if found.is_sure:
            break
    return best


class _Probe:
    """A FLAIR and a T1 in blocks of some millimetres, and what they share if one is moved."""

    def __init__(self, flair: Volume, t1: Volume) -> None:
        fixed, moving = (
            _in_8_bit(_averaged(scan.canonical(), PROBE_SPACING_MM)) for scan in (flair, t1)
        )
        self._brain = rough_brain(fixed)
        self.centre = _centre(self._brain)
        self._images = as_image(fixed), as_image(moving)
        self._method = _method(32, 1.0, 1)
        self._method.SetMetricFixedMask(as_image(self._brain))

    def alignment(self, transform: Any, *, before: Any) -> Alignment:
        matrix = _matrix(transform)
        points = _points(self._brain)
        moved = np.linalg.norm((points @ (matrix - np.eye(4)).T)[:, :3], axis=1).mean()
        here = self._information(transform)
        return Alignment(
            matrix,
            float(moved),
            self._off_mm(transform, here),
            self._information(before),
            here,
            self._sharpness(transform, here),
        )

    def _information(self, transform: Any) -> float:
        return _information(self._method, *self._images, transform)

    def _off_mm(self, transform: Any, here: float) -> float:
        """How far the best place is: a parabola through three values along each of six ways.

        Turns count as the way of a point at the radius of the brain. Infinite where the place is
        no hilltop at all.
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


def _registered(flair: Volume, t1: Volume, threads: int) -> Iterator[Any]:
    """Rigid transforms, from what the headers say or from brain upon brain; each starts from the
    one before, should that have got stuck."""
    grids = [scan.canonical() for scan in (flair, t1)]
    small = [_in_8_bit(_averaged(scan, COARSE_MM)) for scan in grids]
    centres = [_centre(rough_brain(scan)) for scan in small]
    coarse = [as_image(scan) for scan in small]
    look = _method(24, 1.0, threads)

    def worth(transform: Any) -> float:
        return _information(look, coarse[0], coarse[1], transform)

    starts = sorted(_starts(*centres), key=worth, reverse=True)
    search = _method(24, 0.5, threads)
    search.SetOptimizerAsRegularStepGradientDescent(4.0, 0.2, 30)
    found = [_descend(search, coarse[0], coarse[1], start) for start in starts[:TRIED]]
    best = max(found, key=worth)

    fixed, moving = (_in_8_bit(_averaged(scan, FINE_MM)) for scan in grids)
    fine = as_image(fixed), as_image(moving)
    mask = as_image(rough_brain(fixed))
    for seed in range(1, TRIES + 1):
        settle = _method(32, 0.2, threads, seed)
        settle.SetMetricFixedMask(mask)
        settle.SetOptimizerAsRegularStepGradientDescent(
            2.0, 0.001, 100, relaxationFactor=0.7, gradientMagnitudeTolerance=1e-8
        )
        best = _descend(settle, *fine, best)
        yield _rounded(best)


def _rounded(transform: Any) -> Any:
    """To 0.0001 radians and 0.01 mm: ITK's sums differ in the last digits from run to run, with
    the turns that its threads take, and a mask must not."""
    parameters = np.array(transform.GetParameters())
    rounded = sitk.Euler3DTransform(transform)
    rounded.SetParameters([*parameters[:3].round(4), *parameters[3:].round(2)])
    return rounded


def rough_brain(scan: Volume) -> Volume:
    """The brain and what lies within 8 mm of it, uint8, of a scan in 8 bit whose tissue is at 100.

    The largest body of tissue once all that is less than 8 mm thick is gone: skull parts the brain
    from scalp and face.
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
    """Blocks of voxels, as many along each axis as make about `mm`, become one; float32."""
    blocks = np.array([max(1, round(mm / s)) for s in scan.spacing_mm])
    count = np.array(scan.data.shape) // blocks
    kept = scan.data[tuple(slice(n) for n in count * blocks)]
    shape = np.stack([count, blocks], axis=1).ravel()
    affine = scan.affine @ np.diag([*blocks, 1.0])
    affine[:3, 3] += scan.affine[:3, :3] @ ((blocks - 1) / 2)
    means = kept.reshape(shape).mean(axis=(1, 3, 5), dtype=np.float32)
    return Volume(means, affine, name=scan.name)


def _centre(brain: Volume) -> Array:
    inside = np.array(scipy.ndimage.center_of_mass(brain.data))
    centre: Array = brain.affine[:3, :3] @ inside + brain.affine[:3, 3]
    return centre


def _points(brain: Volume) -> Array:
    voxels = np.argwhere(brain.data)[::101]
    points: Array = np.c_[voxels, np.ones(len(voxels))] @ brain.affine.T
    return points


def _starts(fixed: Array, moving: Array) -> list[Any]:
    """Turns about the FLAIR's brain, where the headers place the T1 and brain upon brain."""
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
    # The filter would smooth by the largest spacing before it differentiates: wrong for thick
    # slices, and slower than differences between neighbours.
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
        return 0.0  # the images do not meet


def _descend(method: Any, fixed: Any, moving: Any, start: Any) -> Any:
    transform = sitk.Euler3DTransform(start)
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError as error:
        if "outside" not in str(error):
            raise
        return start  # it left the image
    return transform


def _matrix(transform: Any) -> Array:
    turn, centre = np.array(transform.GetMatrix()).reshape(3, 3), np.array(transform.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = centre + transform.GetTranslation() - turn @ centre
    return matrix
