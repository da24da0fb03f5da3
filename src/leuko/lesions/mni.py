"""Registration of a brain to MNI152 space, which gives the lobe and the side of its points.

The atlas in `data/atlas` holds tissues and lobes of the template, voxels of 2 mm
(`experiments/make_atlas.py`).
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
import scipy.ndimage

from leuko.io import nifti
from leuko.io.tissue import Tissue
from leuko.volume import Array, Volume, apply_affine, world

FOLDER = Path(__file__).parents[1] / "data" / "atlas"
LOBES = ("frontal", "parietal", "temporal", "occipital", "deep grey", "infratentorial")

# Grey values of each `Tissue` for the registration. CSF around the brain is faint
# because brain extraction may remove it.
BRIGHTNESS = np.array([0.0, 0.1, 0.0, 0.6, 1.0, 1.0, 1.0], dtype=np.float32)
GRID_MM = 4.0
SHORTEST_MM = 60.0  # smallest extent of a brain along each axis that can be registered
SCALES = (0.7, 1.4)  # of a head relative to the template; beyond them the registration has failed
LEAST_WITHIN = 0.9  # part of the grey and white matter that must lie in the template's brain
SPARSE = 11  # every 11th voxel is enough to estimate that part


@dataclass(frozen=True, eq=False)
class Place:
    """A brain's place in the template, by an affine registration."""

    to_mni: Array  # (4, 4), world of the scan to world of the template

    @classmethod
    def of(cls, tissue: Volume, *, threads: int) -> Self | None:
        """Register a map of `Tissue` values.

        None if too little of the brain is in the image, or if the registration fails.
        """
        brain = tissue.data > 0
        if not brain.any():
            return None
        around = scipy.ndimage.find_objects(brain.astype(np.uint8))[0]
        size_mm = [
            (part.stop - part.start) * mm
            for part, mm in zip(around, tissue.spacing_mm, strict=True)
        ]
        if min(size_mm) < SHORTEST_MM:
            return None
        from leuko.preprocessing import simpleitk  # not needed to read the names of regions

        template = read("tissue")
        try:
            found = simpleitk.affine(_seen(template), _seen(tissue), threads=threads)
        except RuntimeError:  # raised by SimpleITK if the two do not overlap
            return None
        scales = np.linalg.svd(found[:3, :3], compute_uv=False)
        low, high = SCALES
        inside = np.argwhere(tissue.data >= Tissue.GREY)[::SPARSE]
        if scales.min() < low or scales.max() > high or not len(inside):
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
    brightness = BRIGHTNESS[tissue.data]
    smooth = scipy.ndimage.gaussian_filter(
        brightness, [GRID_MM / 2 / mm for mm in tissue.spacing_mm]
    )
    steps = [max(1, round(GRID_MM / mm)) for mm in tissue.spacing_mm]
    affine = tissue.affine @ np.diag([*steps, 1.0])
    sparse = smooth[tuple(slice(None, None, step) for step in steps)]
    return Volume(sparse, affine, name=tissue.name)


def _at(volume: Volume, points_mm: Array) -> Array:
    """The value of the voxel nearest to each point (N, 3)."""
    voxels = np.rint(apply_affine(np.linalg.inv(volume.affine), points_mm)).astype(np.intp)
    last = np.array(volume.data.shape) - 1
    values: Array = volume.data[tuple(np.clip(voxels, 0, last).T)]
    return values
