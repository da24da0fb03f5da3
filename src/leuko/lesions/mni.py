"""Where a brain lies in MNI152 space, and so which lobe and side each of its places belongs to.

The atlas, `data/atlas`, has voxels of 2 mm: tissues and lobes of the template
(`experiments/make_atlas.py`).
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
import scipy.ndimage

from leuko.io import nifti
from leuko.preprocessing import simpleitk
from leuko.volume import Array, Volume, apply_affine, world

FOLDER = Path(__file__).parents[1] / "data" / "atlas"
TISSUES = ("background", "csf", "ventricle", "grey", "white")  # of the template
LOBES = ("frontal", "parietal", "temporal", "occipital", "deep grey", "infratentorial")

# What the registration sees: white matter in grey, ventricles as dark holes in it. CSF outside is
# faint, as brain extraction removes any part of it. The last is WMH.
BRIGHTNESS = np.array([0.0, 0.1, 0.0, 0.6, 1.0, 1.0], dtype=np.float32)
GRID_MM = 4.0
SHORTEST_MM = 60.0  # of brain, along each way: less of it does not tell where it belongs
SCALES = (0.7, 1.4)  # of heads by the template; beyond them the registration went astray
SPARSE = 11  # every so manieth voxel tells how much lies within
LEAST_WITHIN = 0.9  # of grey and white matter lies in the template's brain


@dataclass(frozen=True, eq=False)
class Place:
    """A brain's place in the template."""

    to_mni: Array  # (4, 4), world of the scan to world of the template

    @classmethod
    def of(cls, tissue: Volume, *, threads: int) -> Self | None:
        """Register tissues (0 background, 1 CSF, 2 ventricle, 3 grey, 4 white, 5 WMH).

        None where too little of the brain is there, or where it does not come to lie on the
        template.
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
        template = read("tissue")
        try:
            found = simpleitk.affine(_seen(template), _seen(tissue), threads=threads)
        except RuntimeError:  # SimpleITK's, where the two do not overlap
            return None
        place = cls(np.linalg.inv(found))
        scales = np.linalg.svd(found[:3, :3], compute_uv=False)
        low, high = SCALES
        if scales.min() < low or scales.max() > high:
            return None
        inside = np.argwhere(tissue.data >= TISSUES.index("grey"))[::SPARSE]
        parenchyma = world(tissue, inside)
        within = _at(template, place.apply(parenchyma)) > 0
        return place if within.mean() > LEAST_WITHIN else None

    def apply(self, points_mm: Array) -> Array:
        """World coordinates (N, 3) of the scan as MNI coordinates, mm."""
        return apply_affine(self.to_mni, points_mm)

    def lobes(self, points_mm: Array) -> Array:
        """The lobe, an index into LOBES, of each point (N, 3); of the nearest for those outside."""
        return _at(read("lobes"), self.apply(points_mm))

    def is_ventricle(self, points_mm: Array) -> Array:
        """Whether each point (N, 3) lies in the template's lateral ventricles, bool."""
        found: Array = _at(read("tissue"), self.apply(points_mm)) == TISSUES.index("ventricle")
        return found

    def beyond_brain_mm(self, points_mm: Array) -> Array:
        """Distance of each point (N, 3) from the template's brain, mm; inside it negative."""
        return _at(_beyond_brain(), self.apply(points_mm))

    def is_left(self, points_mm: Array) -> Array:
        """Whether each point (N, 3) is left of the midplane, bool."""
        left: Array = self.apply(points_mm)[:, 0] < 0
        return left


@cache
def read(name: str) -> Volume:
    """The template's `tissue`, indices into TISSUES, or its `lobes`, into LOBES, uint8 at 2 mm.

    The lobes fill the whole box: outside the brain stands the nearest.
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
    """What the registration sees, at about GRID_MM."""
    brightness = BRIGHTNESS[tissue.data]
    smooth = scipy.ndimage.gaussian_filter(
        brightness, [GRID_MM / 2 / mm for mm in tissue.spacing_mm]
    )
    steps = [max(1, round(GRID_MM / mm)) for mm in tissue.spacing_mm]
    affine = tissue.affine @ np.diag([*steps, 1.0])
    sparse = smooth[tuple(slice(None, None, step) for step in steps)]
    return Volume(sparse, affine, name=tissue.name)


def _at(volume: Volume, points_mm: Array) -> Array:
    """The nearest voxel's value of each point (N, 3)."""
    voxels = np.rint(apply_affine(np.linalg.inv(volume.affine), points_mm)).astype(np.intp)
    last = np.array(volume.data.shape) - 1
    values: Array = volume.data[tuple(np.clip(voxels, 0, last).T)]
    return values
