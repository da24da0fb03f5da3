"""Anatomies for synthetic images, from label maps of whole heads or from the MNI152 brain.

An anatomy holds the structure of each voxel of 1 mm, and its distances from the ventricles and from
the cortex. It has no contrast, and no lesions but those of the label map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor

from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.files import find_images, image_stem
from leuko.io.tissue import Tissue
from leuko.synthesis import mni152
from leuko.volume import Array, Volume

# White matter that is dark on T1: drawn lesions, and what FreeSurfer calls hypointensities.
OWN_LESIONS = (25, 57, 77, 78, 79)
OTHER_VENTRICLES = (14, 15, 72)  # the third, the fourth, the fifth


class Structure(NamedTuple):
    """An anatomical structure: its tissue class, and its labels (FreeSurfer's below 500, above
    those of the SynthSeg heads).

    `flair` and `t1` are the default ranges of its grey value, white matter being 1: wide ones,
    chosen to cover clinical scans (`painting.PaintingSettings`).
    """

    name: str
    tissue: Tissue
    labels: tuple[int, ...]
    flair: tuple[float, float]
    t1: tuple[float, float]


STRUCTURES = (
    Structure("air", Tissue.BACKGROUND, (0,), (0.0, 0.02), (0.0, 0.02)),
    Structure("csf", Tissue.CSF, (14, 15, 24, 72), (0.05, 0.45), (0.10, 0.50)),
    Structure("ventricle", Tissue.VENTRICLE, (4, 5, 43, 44), (0.03, 0.40), (0.08, 0.48)),
    Structure(
        "choroid plexus", Tissue.VENTRICLE, (31, 63, 136, 137, 163, 164), (0.5, 1.7), (0.35, 1.1)
    ),
    Structure("septum", Tissue.WHITE, (), (0.8, 1.7), (0.6, 1.0)),
    Structure("cortex", Tissue.GREY, (3, 42), (1.04, 1.45), (0.50, 0.92)),
    Structure("caudate", Tissue.GREY, (11, 50, 26, 58), (1.0, 1.40), (0.60, 0.90)),
    Structure("putamen", Tissue.GREY, (12, 51, 80, 81, 82), (0.95, 1.35), (0.65, 1.00)),
    Structure("pallidum", Tissue.GREY, (13, 52), (0.75, 1.20), (0.80, 1.02)),
    Structure("thalamus", Tissue.GREY, (10, 49), (0.95, 1.30), (0.70, 1.00)),
    Structure("hippocampus", Tissue.GREY, (17, 18, 53, 54), (1.05, 1.50), (0.55, 0.85)),
    Structure(
        "white", Tissue.WHITE, (2, 41, *OWN_LESIONS, *range(251, 256)), (1.0, 1.0), (1.0, 1.0)
    ),
    Structure("ventral diencephalon", Tissue.WHITE, (28, 60, 85), (0.90, 1.25), (0.80, 1.0)),
    Structure("brain stem", Tissue.WHITE, (16,), (0.85, 1.25), (0.80, 1.02)),
    Structure("cerebellar cortex", Tissue.GREY, (8, 47), (0.95, 1.40), (0.55, 0.88)),
    Structure("cerebellar white", Tissue.WHITE, (7, 46), (0.85, 1.15), (0.88, 1.05)),
    Structure("dura", Tissue.CSF, (), (0.2, 1.8), (0.2, 1.3)),
    Structure("vessel", Tissue.BACKGROUND, (30, 62, 502, 514), (0.05, 1.3), (0.1, 1.2)),
    Structure("bone", Tissue.BACKGROUND, (515,), (0.02, 0.30), (0.03, 0.35)),
    Structure("marrow", Tissue.BACKGROUND, (516,), (0.2, 2.2), (0.5, 2.0)),
    Structure("fat and muscle", Tissue.BACKGROUND, (507,), (0.3, 2.6), (0.6, 2.6)),
    Structure("skin", Tissue.BACKGROUND, (511,), (0.3, 2.0), (0.4, 1.8)),
    Structure("eye", Tissue.BACKGROUND, (506,), (0.03, 0.40), (0.15, 0.45)),
    Structure("other soft tissue", Tissue.BACKGROUND, (508, 509, 530), (0.4, 1.6), (0.4, 1.2)),
    Structure("spinal cord", Tissue.BACKGROUND, (512,), (0.85, 1.20), (0.80, 1.0)),
)
INDEX = {structure.name: number for number, structure in enumerate(STRUCTURES)}
PARCELS = ((1000, 2999, 3), (3000, 5002, 2), (11100, 12999, 3))  # first and last label; becomes
FARTHEST_MM = 40.0  # largest distance that is kept
SULCUS_VOXELS = 4  # half the width of the widest gap in a brain that CSF fills
SEPTUM_VOXELS = 2  # half the width of what lies between the two lateral ventricles
DURA_VOXELS = 1  # thickness of the CSF next to bone that is dura

# Boxes in MNI space, mm, low and high along R, A, S. They stand in for labels: the tissue maps of
# the MNI152 brain do not distinguish ventricles, brain stem and cerebellum.
ANY = (-math.inf, math.inf)
LATERAL_VENTRICLES = ((-42, 42), (-62, 38), (-22, 32))
MIDLINE = ((-5, 5), ANY, (-math.inf, 14))  # no lateral ventricles
THIRD_VENTRICLE = ((-5, 5), (-36, 6), (-14, 14))
FOURTH_VENTRICLE = ((-12, 12), (-58, -34), (-math.inf, -12))
BRAIN_STEM = ((-18, 18), (-42, -12), (-math.inf, -14))
CEREBELLUM = (ANY, (-math.inf, -38), (-math.inf, -16))  # without the brain stem
VENTRICLE_DEPTH_MM = 22  # ventricles lie deeper in the brain than sulci


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One head or brain at 1 mm, all arrays (X, Y, Z), axes R, A, S."""

    name: str
    structure: Tensor  # uint8, indices into STRUCTURES
    ventricle_mm: Tensor  # float16, distance to the lateral ventricles, negative inside
    cortex_mm: Tensor  # float16, distance to the cortex
    lesions: Tensor  # bool, the subject's own
    other_ventricles_mm: Tensor  # float16, distance to the third, fourth and fifth ventricle
    low: tuple[int, int, int]  # box of the brain, voxels
    high: tuple[int, int, int]

    @property
    def has_skull(self) -> bool:
        return bool((self.structure == INDEX["bone"]).any())

    def to(self, device: torch.device) -> "Anatomy":
        """The same on another device."""
        return replace(
            self,
            structure=self.structure.to(device),
            ventricle_mm=self.ventricle_mm.to(device),
            cortex_mm=self.cortex_mm.to(device),
            lesions=self.lesions.to(device),
            other_ventricles_mm=self.other_ventricles_mm.to(device),
        )


def load_heads(folder: Path) -> list[Anatomy]:
    """The anatomies of all label maps in a folder, sorted by name.

    Raises LeukoError if there is none, and as `from_labels` does.
    """
    paths = [path for path in find_images(folder) if path.is_file()]
    if not paths:
        raise LeukoError(f"{folder} holds no label maps; expected NIfTI with FreeSurfer's labels")
    return [load_head(path) for path in paths]


def load_head(path: Path) -> Anatomy:
    """The anatomy of one label map, named by its file. Raises LeukoError as `from_labels` does."""
    labels = replace(nifti.read(path), name=str(path))
    return from_labels(labels, image_stem(path))


def from_labels(labels: Volume, name: str) -> Anatomy:
    """The anatomy of a label map with FreeSurfer's numbers, at 1 mm.

    Three structures have no label. The septum is white matter between the two lateral ventricles,
    the dura is CSF next to bone, and the sulci of maps that leave them empty become CSF. Parcels
    are cortex (1000 to 2999, 11100 to 12999) or white matter (3000 to 5002). Raises LeukoError for
    other numbers, for voxels of another size, and without white matter, cortex or ventricles.
    """
    if not np.allclose(labels.spacing_mm, 1, atol=0.05):
        size = " x ".join(f"{mm:.2f}" for mm in labels.spacing_mm)
        raise LeukoError(f"{labels.name} has voxels of {size} mm; expected 1 mm: resample it")
    found = labels.canonical().data
    data = np.rint(found).astype(np.int32)
    if not np.allclose(data, found, rtol=0, atol=1e-3):
        raise LeukoError(f"{labels.name} holds values that are not whole numbers; give a label map")
    for first, last, label in PARCELS:
        data[(data >= first) & (data <= last)] = label
    unknown = set(np.unique(data).tolist()) - {label for s in STRUCTURES for label in s.labels}
    if unknown:
        raise LeukoError(
            f"{labels.name} holds the label {min(unknown)}; expected a label map with FreeSurfer's "
            "numbers"
        )
    table = np.zeros(1000, dtype=np.uint8)
    for number, known in enumerate(STRUCTURES):
        table[list(known.labels)] = number
    structure = table[data]
    closed = scipy.ndimage.binary_closing(structure > 0, iterations=SULCUS_VOXELS)
    structure[closed & (structure == 0)] = INDEX["csf"]
    left, right = (_dilated(np.isin(data, side), SEPTUM_VOXELS) for side in ((4, 136), (43, 163)))
    septum = left & right & np.isin(structure, _indices("white", "choroid plexus"))
    structure[septum] = INDEX["septum"]
    near_bone = _dilated(structure == INDEX["bone"], DURA_VOXELS)
    structure[near_bone & (structure == INDEX["csf"])] = INDEX["dura"]
    return make_anatomy(
        name,
        structure,
        lesions=np.isin(data, OWN_LESIONS),
        other_ventricles=np.isin(data, OTHER_VENTRICLES),
    )


def from_mni152() -> Anatomy:
    """The anatomy of the MNI152 brain, from the tissue maps in nilearn.

    Raises LeukoError without nilearn.
    """
    t1, shares = mni152.load()
    kinds = np.array(_indices("csf", "cortex", "white"), dtype=np.uint8)
    brain: Array = shares.sum(axis=0) > 0
    structure = np.where(brain, kinds[shares.argmax(axis=0)], 0).astype(np.uint8)
    grid = np.stack(np.meshgrid(*map(np.arange, structure.shape), indexing="ij"), axis=-1)
    at_mm = np.moveaxis(grid @ t1.affine[:3, :3].T + t1.affine[:3, 3], -1, 0)

    def within(box: Sequence[tuple[float, float]]) -> Array:
        sides = zip(at_mm, box, strict=True)
        inside: Array = np.all([(low < x) & (x < high) for x, (low, high) in sides], axis=0)
        return inside

    inner = scipy.ndimage.distance_transform_edt(brain) > VENTRICLE_DEPTH_MM
    cavities = (structure == INDEX["csf"]) & inner
    others = cavities & (within(FOURTH_VENTRICLE) | within(THIRD_VENTRICLE))
    structure[cavities & within(LATERAL_VENTRICLES) & ~within(MIDLINE)] = INDEX["ventricle"]
    stem = within(BRAIN_STEM)
    below = within(CEREBELLUM) & ~stem
    for region, kind, becomes in (
        (stem, "white", "brain stem"),
        (stem, "cortex", "brain stem"),
        (below, "white", "cerebellar white"),
        (below, "cortex", "cerebellar cortex"),
    ):
        structure[region & (structure == INDEX[kind])] = INDEX[becomes]
    none = np.zeros(structure.shape, dtype=bool)
    return make_anatomy("mni152", structure, lesions=none, other_ventricles=others)


def reshape(anatomy: Anatomy, *, ventricle_widening_mm: float, sulcal_filling_mm: float) -> Anatomy:
    """The anatomy with its ventricles widened into the tissue around them (negative: narrowed), and
    with as many mm of cortex in its sulci. Lesions beside ventricles still reach them.
    """
    structure, lesions = anatomy.structure, anatomy.lesions
    filled = (anatomy.cortex_mm < sulcal_filling_mm) & (structure == INDEX["csf"])
    structure = torch.where(filled, INDEX["cortex"], structure)
    from_ventricle = anatomy.ventricle_mm - ventricle_widening_mm
    white = torch.tensor([s.tissue >= Tissue.WHITE for s in STRUCTURES], device=structure.device)
    yields = white[structure.long()] | (structure == INDEX["caudate"])
    cavity = (structure == INDEX["ventricle"]) | (structure == INDEX["choroid plexus"])
    opened, closed = yields & (from_ventricle < 0), cavity & (from_ventricle >= 0)
    structure = torch.where(opened, INDEX["ventricle"], structure)
    structure = torch.where(closed, INDEX["white"], structure)
    if ventricle_widening_mm < 0:
        reach = math.ceil(-ventricle_widening_mm)
        near = F.max_pool3d(lesions.float()[None], 2 * reach + 1, stride=1, padding=reach)[0] > 0
        lesions = lesions | (near & closed)
    return replace(
        anatomy, structure=structure, ventricle_mm=from_ventricle, lesions=lesions & ~opened
    )


def make_anatomy(
    name: str, structure: Array, *, lesions: Array, other_ventricles: Array | None = None
) -> Anatomy:
    """An anatomy of indices into STRUCTURES (X, Y, Z), with its distances.

    `other_ventricles` is the mask of all but the lateral ones; None if they are not known. Raises
    LeukoError without white matter, cortex or lateral ventricles.
    """
    tissue = np.array([s.tissue for s in STRUCTURES])[structure]
    ventricle, cortex = tissue == Tissue.VENTRICLE, structure == INDEX["cortex"]
    if not all(mask.any() for mask in (tissue == Tissue.WHITE, ventricle, cortex)):
        raise LeukoError(
            f"{name} lacks white matter, cortex or lateral ventricles; give a label map of a whole "
            "brain"
        )
    brain = np.argwhere(tissue >= Tissue.VENTRICLE)
    return Anatomy(
        name,
        torch.from_numpy(structure),
        _distance(ventricle) - _distance(~ventricle),
        _distance(cortex),
        torch.from_numpy(lesions),
        _distance(np.zeros_like(ventricle) if other_ventricles is None else other_ventricles),
        tuple(brain.min(axis=0).tolist()),
        tuple(brain.max(axis=0).tolist()),
    )


def _distance(mask: Array) -> Tensor:
    """Millimetres to the nearest voxel of a mask, half a voxel less: 0 at its surface.

    An empty mask is `FARTHEST_MM` away.
    """
    if not mask.any():
        return torch.full(mask.shape, FARTHEST_MM, dtype=torch.float16)
    distance = scipy.ndimage.distance_transform_edt(~mask).astype(np.float32)
    return torch.from_numpy(np.clip(distance - 0.5, 0, FARTHEST_MM).astype(np.float16))


def _dilated(mask: Array, voxels: int) -> Array:
    return scipy.ndimage.binary_dilation(mask, iterations=voxels)


def _indices(*names: str) -> Sequence[int]:
    return [INDEX[name] for name in names]
