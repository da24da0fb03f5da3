"""Location of lesions: periventricular, deep, infratentorial or juxtacortical; depth and lobe.

Functions work on the N lesion voxels of a mask, as points (N, 3) in world coordinates, mm.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.ndimage
from scipy.spatial import cKDTree

from leuko.io.lookup_tables import GREEN, ORANGE, SKY, YELLOW, Label
from leuko.io.tissue import Tissue
from leuko.lesions import mni
from leuko.lesions.components import TOUCHING
from leuko.volume import Array, Volume, world

Rule = Literal["voxel10", "shiva2", "contiguity", "mcdonald2017"]
RULES: dict[Rule, str] = {
    "voxel10": "periventricular: voxels up to 10 mm from the lateral ventricles",
    "shiva2": "periventricular: whole lesions that touch the lateral ventricles or come within "
    "2 mm",
    "contiguity": "periventricular: whole lesions that touch the lateral ventricles",
    "mcdonald2017": "periventricular: whole lesions that touch the lateral ventricles or come "
    "within 2 mm; juxtacortical: others that touch the cortex or come within 2 mm",
}
# Juxtacortical only by the rule mcdonald2017.
REGIONS = ("background", "periventricular", "deep", "infratentorial", "juxtacortical")
REGION_LABELS = [
    Label(number, name, colour)
    for number, (name, colour) in enumerate(
        zip(REGIONS[1:], (ORANGE, SKY, GREEN, YELLOW), strict=True), start=1
    )
]
NEAR_MM, DEEP_MM = 2.0, 10.0
SHELLS = ("innermost", "inner", "outer", "outermost")  # quarters of the distance to the cortex
SECTORS = (
    *(f"{side} {lobe}" for lobe in mni.LOBES[:4] for side in ("left", "right")),
    "deep grey",
)

# A piece of the model's ventricles is kept if it is large enough and near the template's.
LEAST_PIECE_ML, LEAST_VENTRICLES_ML, FARTHEST_MM = 0.02, 0.5, 12.0
LEAST_CORTEX_ML = 1.0  # of grey matter in one piece; smaller pieces are rims of lesions


@dataclass(frozen=True, eq=False)
class Where:
    """Location of each of N lesion voxels, in the order of `np.argwhere` of the mask.

    If the brain's place in the template is unknown, `lobe` and `is_left` are None, no voxel is
    infratentorial and `cortex_mm` is nan.
    """

    ventricle_mm: Array  # (N,), to the centre of the nearest voxel of a lateral ventricle
    touches: Array  # (N,) bool: shares a face, an edge or a corner with a ventricle's voxel
    cortex_mm: Array  # (N,), to the centre of the nearest voxel of the cortex
    touches_cortex: Array  # (N,) bool, likewise
    lobe: Array | None  # (N,), indices into mni.LOBES
    is_left: Array | None  # (N,) bool

    @property
    def _at_ventricle(self) -> Array:
        """Voxels that touch a ventricle or lie within 2 mm of one, bool; on thick slices the centre
        of a touching voxel may be farther away."""
        near: Array = self.touches | (self.ventricle_mm <= NEAR_MM)
        return near

    def regions(self, lesion: Array, rule: Rule) -> Array:
        """Indices (N,) into REGIONS by a rule of RULES; `lesion` (N,) numbers the lesions from 1.

        Voxels below the tentorium are infratentorial by every rule. mcdonald2017 has the places of
        Thompson et al. 2018 (doi 10.1016/S1474-4422(17)30470-2); a lesion that touches both the
        ventricles and the cortex counts as periventricular.
        """
        if rule == "voxel10":
            near = self.ventricle_mm <= DEEP_MM
        else:
            voxelwise = self.touches if rule == "contiguity" else self._at_ventricle
            near = any_of(lesion, voxelwise)[lesion]
        found = np.where(near, 1, 2)
        if rule == "mcdonald2017":
            at_cortex = any_of(lesion, self.touches_cortex | (self.cortex_mm <= NEAR_MM))[lesion]
            found[at_cortex & ~near] = 4
        if self.lobe is not None:
            found[self.lobe == mni.LOBES.index("infratentorial")] = 3
        return found

    def confluent(self, lesion: Array) -> Array:
        """Whether each lesion, by number from 0, touches the ventricles or comes within 2 mm of
        them and reaches beyond 10 mm from them; bool."""
        return any_of(lesion, self._at_ventricle) & any_of(lesion, self.ventricle_mm > DEEP_MM)

    def bullseye(self, voxel_mm3: float) -> Array | None:
        """Lesion volume in mL by SHELLS and SECTORS, (4, 9); Sudre et al. 2018.

        A shell is a quarter of the distance from the ventricles to the cortex. Infratentorial
        voxels are left out. None if the place in the template or the cortex is unknown.
        """
        if self.lobe is None or self.is_left is None or np.isnan(self.cortex_mm).any():
            return None
        way = self.ventricle_mm / np.maximum(self.ventricle_mm + self.cortex_mm, 1e-6)
        shell = np.minimum((4 * way).astype(int), 3)
        deep_grey = mni.LOBES.index("deep grey")
        sector = np.where(self.lobe < deep_grey, 2 * self.lobe + ~self.is_left, len(SECTORS) - 1)
        above = self.lobe <= deep_grey
        counts = np.zeros((len(SHELLS), len(SECTORS)))
        np.add.at(counts, (shell[above], sector[above]), voxel_mm3 / 1000)
        return counts


def locate(mask: Array, tissue: Volume, place: mni.Place | None, *, threads: int) -> Where | None:
    """Location of the voxels of a lesion mask (X, Y, Z).

    `tissue` holds values of `Tissue`, `place` is the brain's place in the template, if known. None
    if neither shows the lateral ventricles.
    """
    ventricles = lateral_ventricles(tissue, place)
    if not ventricles.any():
        return None
    lesion = np.argwhere(mask)
    points = world(tissue, lesion)
    shell = ventricles & ~scipy.ndimage.binary_erosion(ventricles)
    cortex_mm, touches_cortex = np.full(len(points), np.nan), np.zeros(len(points), bool)
    if place is not None:
        voxels = np.argwhere(_large(tissue.data == Tissue.GREY, tissue))
        voxels = voxels[place.lobes(world(tissue, voxels)) != mni.LOBES.index("deep grey")]
        if len(voxels):
            cortex_mm = _nearest_mm(points, world(tissue, voxels), threads)
            cortex = np.zeros(mask.shape, bool)
            cortex[tuple(voxels.T)] = True
            touches_cortex = _touches(lesion, cortex)
    return Where(
        ventricle_mm=_nearest_mm(points, world(tissue, np.argwhere(shell)), threads),
        touches=_touches(lesion, ventricles),
        cortex_mm=cortex_mm,
        touches_cortex=touches_cortex,
        lobe=None if place is None else place.lobes(points),
        is_left=None if place is None else place.is_left(points),
    )


def lateral_ventricles(tissue: Volume, place: mni.Place | None) -> Array:
    """The model's ventricles without specks and without pieces far from the template's; bool.

    If less than `LEAST_VENTRICLES_ML` remains (slit ventricles), the template's are added. If the
    place in the template is unknown, only specks are removed.
    """
    seen = tissue.data == Tissue.VENTRICLE
    pieces, count = scipy.ndimage.label(seen, TOUCHING)
    large = np.bincount(pieces.ravel(), minlength=1) * tissue.voxel_mm3 / 1000 > LEAST_PIECE_ML
    large[0] = False
    if place is None:
        kept: Array = large[pieces]
        return kept
    template = mni.read("tissue")
    expected = world(template, np.argwhere(template.data == Tissue.VENTRICLE))
    near = np.zeros(count + 1, dtype=bool)
    voxels = np.argwhere(seen)
    far_mm = _nearest_mm(place.apply(world(tissue, voxels)), expected, threads=1)
    np.logical_or.at(near, pieces[tuple(voxels.T)], far_mm <= FARTHEST_MM)
    kept = (large & near)[pieces]
    if tissue.ml(kept) >= LEAST_VENTRICLES_ML:
        return kept
    inside = np.argwhere(tissue.data > 0)
    drawn = np.zeros(seen.shape, dtype=bool)
    drawn[tuple(inside.T)] = place.is_ventricle(world(tissue, inside))
    return drawn | kept


def any_of(lesion: Array, is_so: Array) -> Array:
    """Whether `is_so` (N,) holds for any voxel of each lesion, by number from 0; bool."""
    found: Array = np.bincount(lesion, weights=is_so, minlength=1) > 0
    return found


def _large(mask: Array, grid: Volume) -> Array:
    pieces, _ = scipy.ndimage.label(mask)
    large = np.bincount(pieces.ravel(), minlength=1) * grid.voxel_mm3 / 1000 > LEAST_CORTEX_ML
    large[0] = False
    kept: Array = large[pieces]
    return kept


def _touches(voxels: Array, structure: Array) -> Array:
    """Whether each voxel (N, 3) lies in a structure (X, Y, Z) or touches it; bool (N,)."""
    around = np.pad(structure, 1)
    touched = [around[tuple((voxels + step).T)] for step in np.argwhere(TOUCHING)]
    found: Array = np.any(touched, axis=0)
    return found


def _nearest_mm(points: Array, targets: Array, threads: int) -> Array:
    tree = cKDTree(targets, compact_nodes=False, balanced_tree=False)
    return np.asarray(tree.query(points, workers=threads)[0])
