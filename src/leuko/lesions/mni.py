"""Registration of a brain to MNI152 space, which gives the lobe and the side of its points.

The template is the symmetric ICBM 152 of 2009, release a (MNI152NLin2009aSym in BIDS). The atlas in
`data/atlas` holds its tissues and lobes, voxels of 2 mm (`experiments/make_atlas.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
import scipy.ndimage
from scipy.spatial import cKDTree

from leuko.io import nifti
from leuko.io.tissue import Tissue
from leuko.volume import (
    Array,
    Volume,
    apply_affine,
    bounding_box,
    centre_of_mass,
    resample_onto,
    world,
)

SPACE = "MNI152NLin2009aSym"  # the template's name in BIDS
SHAPE, ORIGIN_MM = (197, 233, 189), (-98, -134, -72)  # of its own grid, 1 mm
FOLDER = Path(__file__).parents[1] / "data" / "atlas"
LOBES = ("frontal", "parietal", "temporal", "occipital", "deep grey", "infratentorial")

# Grey values of each `Tissue` for the registration. CSF around the brain is faint
# because brain extraction may remove it.
BRIGHTNESS = np.array([0.0, 0.1, 0.0, 0.6, 1.0, 1.0, 1.0], dtype=np.float32)
GRID_MM = 4.0
ROUGH_MM = 6.0  # standard deviation of the Gaussian that smooths them for a first registration
ROUGH_STEP_MM, FINE_STEP_MM = 1.0, 0.1  # largest movement of a voxel in the last step
MOST_STEPS = 30  # a brain needs about 4
SHORTEST_MM = 60.0  # smallest extent of a brain along each axis that can be registered
SCALES = (0.7, 1.4)  # of a head relative to the template; beyond them the registration has failed
LEAST_WITHIN = 0.9  # part of the grey and white matter that must lie in the template's brain
SPARSE = 11  # every 11th voxel is enough to estimate that part


@dataclass(frozen=True, eq=False)
class Place:
    """A brain's place in the template, by an affine registration."""

    to_mni: Array  # (4, 4), world of the scan to world of the template

    @classmethod
    def of(cls, tissue: Volume) -> Self | None:
        """Register a map of `Tissue` values.

        None if too little of the brain is in the image, or if the registration fails.
        """
        brain = tissue.data > 0
        if not brain.any():
            return None
        size_mm = [
            (part.stop - part.start) * mm
            for part, mm in zip(bounding_box(brain), tissue.spacing_mm, strict=True)
        ]
        if min(size_mm) < SHORTEST_MM:
            return None
        inside = np.argwhere(tissue.data >= Tissue.GREY)[::SPARSE]
        if not len(inside):
            return None
        template = read("tissue")
        found = _registered(_seen(template), _seen(tissue))
        scales = np.linalg.svd(found[:3, :3], compute_uv=False)
        low, high = SCALES
        if scales.min() < low or scales.max() > high:
            return None
        place = cls(np.linalg.inv(found))
        within = _at(template, place.apply(world(tissue, inside))) > 0
        return place if within.mean() > LEAST_WITHIN else None

    def apply(self, points_mm: Array) -> Array:
        """World coordinates (N, 3) of the scan as MNI coordinates, mm."""
        return apply_affine(self.to_mni, points_mm)

    def lobes(self, points_mm: Array) -> Array:
        """The lobe of each point (N, 3), an index into LOBES; outside, the nearest lobe."""
        return _at(read("lobes"), self.apply(points_mm))

    def is_ventricle(self, points_mm: Array) -> Array:
        """Whether each point (N, 3) lies in the template's lateral ventricles, bool."""
        found: Array = _at(read("tissue"), self.apply(points_mm)) == Tissue.VENTRICLE
        return found

    def beyond_brain_mm(self, points_mm: Array) -> Array:
        """Distance of each point (N, 3) from the template's brain, mm; negative inside it."""
        return _at(_beyond_brain(), self.apply(points_mm))

    def is_left(self, points_mm: Array) -> Array:
        """Whether each point (N, 3) is left of the midplane, bool."""
        left: Array = self.apply(points_mm)[:, 0] < 0
        return left


@dataclass(frozen=True)
class Residual:
    """How far a registered brain is from the template: mean distances of surfaces, mm."""

    brain_mm: float
    ventricles_mm: float  # nan without ventricles; atrophy and the registration both add to it

    @classmethod
    def of(cls, tissue: Volume, place: Place) -> Self:
        """The residual of a map of `Tissue` values. The edges of the image are no surface."""
        template = read("tissue")

        def off_mm(mask: Array, drawn: Array) -> float:
            ours = place.apply(_surface(tissue, mask))
            far_mm = np.asarray(cKDTree(_surface(template, drawn)).query(ours)[0])
            return float(far_mm.mean()) if len(far_mm) else float("nan")

        return cls(
            off_mm(tissue.data > 0, template.data > 0),
            off_mm(tissue.data == Tissue.VENTRICLE, template.data == Tissue.VENTRICLE),
        )


def bring(
    image: Volume, place: Place, onto: Callable[[Volume, Volume], Volume] = resample_onto
) -> Volume:
    """An image of a scan on the template's grid of 1 mm, by `resample_onto` or `labels_onto`."""
    affine = np.eye(4)
    affine[:3, 3] = ORIGIN_MM
    grid = Volume(np.zeros(SHAPE, dtype=np.uint8), affine)
    moved = replace(image, affine=place.to_mni @ image.affine, header=None)
    return nifti.in_mni(onto(moved, grid))


def _surface(grid: Volume, mask: Array) -> Array:
    """World coordinates (N, 3) of the surface voxels of a mask."""
    inner = scipy.ndimage.binary_erosion(mask, border_value=1)
    return world(grid, np.argwhere(mask & ~inner))


@cache
def read(name: str) -> Volume:
    """The template's map "tissue" (values of `Tissue`) or "lobes" (indices into LOBES), uint8.

    Voxels outside the brain have the nearest lobe.
    """
    volume = nifti.read(FOLDER / f"{name}.nii.gz")
    return volume.with_data(volume.data.astype(np.uint8))


@cache
def _beyond_brain() -> Volume:
    template = read("tissue")
    inside, outside = (
        scipy.ndimage.distance_transform_edt(part, template.spacing_mm)
        for part in (template.data > 0, template.data == 0)
    )
    return template.with_data(outside - inside)


def _seen(tissue: Volume) -> Volume:
    """The tissues as a smooth grey image for the registration, at about GRID_MM."""
    smooth = _smooth(tissue.with_data(BRIGHTNESS[tissue.data]), GRID_MM / 2)
    steps = [max(1, round(GRID_MM / mm)) for mm in tissue.spacing_mm]
    affine = tissue.affine @ np.diag([*steps, 1.0])
    sparse = smooth.data[tuple(slice(None, None, step) for step in steps)]
    return Volume(sparse, affine, name=tissue.name)


def _smooth(volume: Volume, mm: float) -> Volume:
    """The volume after a Gaussian filter; `mm` is its standard deviation."""
    return volume.with_data(
        scipy.ndimage.gaussian_filter(volume.data, np.divide(mm, volume.spacing_mm))
    )


def _registered(fixed: Volume, moving: Volume) -> Array:
    """The affine (4, 4) from world coordinates of `fixed` to those of `moving` with the least mean
    square difference, from matched centres of mass."""
    to_moving = np.eye(4)
    to_moving[:3, 3] = centre_of_mass(moving) - centre_of_mass(fixed)
    rough_fixed, rough_moving = (_smooth(volume, ROUGH_MM) for volume in (fixed, moving))
    to_moving = _least_squares(rough_fixed, rough_moving, to_moving, ROUGH_STEP_MM)
    return _least_squares(fixed, moving, to_moving, FINE_STEP_MM)


def _least_squares(fixed: Volume, moving: Volume, to_moving: Array, last_mm: float) -> Array:
    """`to_moving`, an affine (4, 4), improved by Gauss-Newton steps until one is below `last_mm`.

    Every second voxel of `fixed` along each axis counts if it lies within `moving`.
    """
    voxels = 2 * np.indices([-(-n // 2) for n in fixed.data.shape]).reshape(3, -1).T
    points = np.c_[world(fixed, voxels), np.ones(len(voxels))]
    values = fixed.data[::2, ::2, ::2].ravel()
    to_voxels = np.linalg.inv(moving.affine)
    last = np.array(moving.data.shape) - 1
    images = [moving.data, *np.gradient(moving.data)]
    for _ in range(MOST_STEPS):
        places = apply_affine(to_voxels @ to_moving, points[:, :3])
        within = ((places >= 0) & (places <= last)).all(axis=1)
        value, *slopes = (
            scipy.ndimage.map_coordinates(image, places[within].T, order=1) for image in images
        )
        slopes_mm = np.stack(slopes, axis=1) @ to_voxels[:3, :3]
        jacobian = (slopes_mm[:, :, None] * points[within, None, :]).reshape(-1, 12)
        difference = values[within] - value
        step, *_ = np.linalg.lstsq(jacobian.T @ jacobian, jacobian.T @ difference)
        change = step.reshape(3, 4)
        to_moving = to_moving + np.vstack([change, np.zeros(4)])
        if np.linalg.norm(points[::SPARSE] @ change.T, axis=1).max() < last_mm:
            break
    return to_moving


def _at(volume: Volume, points_mm: Array) -> Array:
    """The value of the voxel nearest to each point (N, 3)."""
    voxels = np.rint(apply_affine(np.linalg.inv(volume.affine), points_mm)).astype(np.intp)
    last = np.array(volume.data.shape) - 1
    values: Array = volume.data[tuple(np.clip(voxels, 0, last).T)]
    return values
