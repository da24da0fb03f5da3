"""Label maps become anatomies that images can be made from: whole heads, or the MNI152 brain.

An anatomy says which tissue each cubic millimetre is, and how far it lies from the ventricles and
from the cortex. Contrast and lesions come later.
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
from leuko.synthesis import mni152
from leuko.volume import Array, Volume

# "rim": the normal caps and rims of the ventricles, bright on FLAIR.
CLASSES = ("background", "csf", "ventricle", "grey", "white", "rim", "wmh")
BACKGROUND, CSF, VENTRICLE, GREY, WHITE, RIM, WMH = range(len(CLASSES))

Range = tuple[float, float]


# White matter that is dark on T1: drawn lesions, and what FreeSurfer calls hypointensities.
OWN_LESIONS = (25, 57, 77, 78, 79)
OTHER_VENTRICLES = (14, 15, 72)  # the third, the fourth, the fifth


class Tissue(NamedTuple):
    """A kind of tissue: its class, the labels that mean it (FreeSurfer's below 500, those of the
    SynthSeg heads above), and from where to where its grey value lies, white matter being 1."""

    name: str
    truth: int
    labels: tuple[int, ...]
    flair: Range
    t1: Range


# Ratios to white matter on FLAIR and T1: wide ranges, from which each image draws its own.
TISSUES = (
    Tissue("air", BACKGROUND, (0,), (0.0, 0.02), (0.0, 0.02)),
    Tissue("csf", CSF, (14, 15, 24, 72), (0.05, 0.45), (0.10, 0.50)),
    Tissue("ventricle", VENTRICLE, (4, 5, 43, 44), (0.03, 0.40), (0.08, 0.48)),
    Tissue("choroid plexus", VENTRICLE, (31, 63, 136, 137, 163, 164), (0.5, 1.7), (0.35, 1.1)),
    Tissue("septum", WHITE, (), (0.8, 1.7), (0.6, 1.0)),
    Tissue("cortex", GREY, (3, 42), (1.04, 1.45), (0.50, 0.92)),
    Tissue("caudate", GREY, (11, 50, 26, 58), (1.0, 1.40), (0.60, 0.90)),
    Tissue("putamen", GREY, (12, 51, 80, 81, 82), (0.95, 1.35), (0.65, 1.00)),
    Tissue("pallidum", GREY, (13, 52), (0.75, 1.20), (0.80, 1.02)),
    Tissue("thalamus", GREY, (10, 49), (0.95, 1.30), (0.70, 1.00)),
    Tissue("hippocampus", GREY, (17, 18, 53, 54), (1.05, 1.50), (0.55, 0.85)),
    Tissue("white", WHITE, (2, 41, *OWN_LESIONS, *range(251, 256)), (1.0, 1.0), (1.0, 1.0)),
    Tissue("ventral diencephalon", WHITE, (28, 60, 85), (0.90, 1.25), (0.80, 1.0)),
    Tissue("brain stem", WHITE, (16,), (0.85, 1.25), (0.80, 1.02)),
    Tissue("cerebellar cortex", GREY, (8, 47), (0.95, 1.40), (0.55, 0.88)),
    Tissue("cerebellar white", WHITE, (7, 46), (0.85, 1.15), (0.88, 1.05)),
    Tissue("dura", CSF, (), (0.2, 1.8), (0.2, 1.3)),
    Tissue("vessel", BACKGROUND, (30, 62, 502, 514), (0.05, 1.3), (0.1, 1.2)),
    Tissue("bone", BACKGROUND, (515,), (0.02, 0.30), (0.03, 0.35)),
    Tissue("marrow", BACKGROUND, (516,), (0.2, 2.2), (0.5, 2.0)),
    Tissue("fat and muscle", BACKGROUND, (507,), (0.3, 2.6), (0.6, 2.6)),
    Tissue("skin", BACKGROUND, (511,), (0.3, 2.0), (0.4, 1.8)),
    Tissue("eye", BACKGROUND, (506,), (0.03, 0.40), (0.15, 0.45)),
    Tissue("other soft tissue", BACKGROUND, (508, 509, 530), (0.4, 1.6), (0.4, 1.2)),
    Tissue("spinal cord", BACKGROUND, (512,), (0.85, 1.20), (0.80, 1.0)),
)
INDEX = {tissue.name: number for number, tissue in enumerate(TISSUES)}
FARTHEST_MM = 40.0  # distances are kept up to here
SULCUS_VOXELS = 4  # half the width of the widest gap in a brain that CSF fills


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One head or brain at 1 mm, all arrays (X, Y, Z), axes R, A, S."""

    name: str
    tissue: Tensor  # uint8, indices into TISSUES
    ventricle_mm: Tensor  # float16, distance to the lateral ventricles, negative inside
    cortex_mm: Tensor  # float16, distance to the cortex
    lesions: Tensor  # bool, the subject's own
    other_ventricles_mm: Tensor  # float16, distance to the third, fourth and fifth ventricle
    low: tuple[int, int, int]  # box of the brain, voxels
    high: tuple[int, int, int]

    @property
    def has_skull(self) -> bool:
        return bool((self.tissue == INDEX["bone"]).any())

    def to(self, device: torch.device) -> "Anatomy":
        """The same on another device."""
        return replace(
            self,
            tissue=self.tissue.to(device),
            ventricle_mm=self.ventricle_mm.to(device),
            cortex_mm=self.cortex_mm.to(device),
            lesions=self.lesions.to(device),
            other_ventricles_mm=self.other_ventricles_mm.to(device),
        )


def numbers_in(classes: Sequence[str]) -> list[int]:
    """The number that each of `CLASSES` has among the classes of a model, which may lack some.

    Without a class of their own, rims are white matter, and any other tissue is background.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    numbers.setdefault("rim", numbers.get("white", BACKGROUND))
    return [numbers.get(name, BACKGROUND) for name in CLASSES]


def load_heads(folder: Path) -> list[Anatomy]:
    """The anatomies of all label maps in a folder, sorted by name.

    Raises LeukoError when there is none, or one holds no brain.
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

    The septum is what lies between the two ventricles, the dura where CSF meets bone, and CSF also
    fills the sulci of maps that leave them empty: none of them has a label. Parcels are cortex
    (1000 to 2999, 11100 to 12999) or white matter (3000 to 5002). Raises LeukoError for other
    numbers, for voxels of another size, and if there is no white matter, cortex or ventricle.
    """
    if not np.allclose(labels.spacing_mm, 1, atol=0.05):
        size = " x ".join(f"{mm:.2f}" for mm in labels.spacing_mm)
        raise LeukoError(f"{labels.name} has voxels of {size} mm; expected 1 mm: resample it")
    found = labels.canonical().data
    data = np.rint(found).astype(np.int32)
    if not np.allclose(data, found, rtol=0, atol=1e-3):
        raise LeukoError(
            f"{labels.name} holds values that are no whole numbers; is it a label map?"
        )
    for first, last, label in ((1000, 2999, 3), (3000, 5002, 2), (11100, 12999, 3)):
        data[(data >= first) & (data <= last)] = label
    unknown = set(np.unique(data).tolist()) - {label for kind in TISSUES for label in kind.labels}
    if unknown:
        raise LeukoError(f"{labels.name} holds labels that are not FreeSurfer's: {min(unknown)}")
    table = np.zeros(1000, dtype=np.uint8)
    for number, kind in enumerate(TISSUES):
        table[list(kind.labels)] = number
    tissue = table[data]
    sulci = scipy.ndimage.binary_closing(tissue > 0, iterations=SULCUS_VOXELS) & (tissue == 0)
    tissue[sulci] = INDEX["csf"]
    near = [_dilated(np.isin(data, side), 2) for side in ((4, 136), (43, 163))]
    tissue[near[0] & near[1] & np.isin(tissue, _indices("white", "choroid plexus"))] = INDEX[
        "septum"
    ]
    tissue[_dilated(tissue == INDEX["bone"], 1) & (tissue == INDEX["csf"])] = INDEX["dura"]
    return make_anatomy(
        name,
        tissue,
        lesions=np.isin(data, OWN_LESIONS),
        other_ventricles=np.isin(data, OTHER_VENTRICLES),
    )


def from_mni152() -> Anatomy:
    """The anatomy of the MNI152 brain, from the tissue maps that nilearn ships.

    Raises LeukoError without nilearn.
    """
    t1, shares = mni152.load()
    kinds = np.array(_indices("csf", "cortex", "white"), dtype=np.uint8)
    brain: Array = shares.sum(axis=0) > 0
    tissue = np.where(brain, kinds[shares.argmax(axis=0)], 0).astype(np.uint8)
    grid = np.stack(np.meshgrid(*map(np.arange, tissue.shape), indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(grid @ t1.affine[:3, :3].T + t1.affine[:3, 3], -1, 0)
    # Boxes in MNI space, mm; the maps tell neither ventricles nor what lies below the tentorium.
    lateral = (np.abs(x) < 42) & (y > -62) & (y < 38) & (z > -22) & (z < 32)
    third = (np.abs(x) < 5) & (z < 14)
    fourth = (np.abs(x) < 12) & (y > -58) & (y < -34) & (z < -12)
    inner = scipy.ndimage.distance_transform_edt(brain) > 22
    others = (tissue == INDEX["csf"]) & inner & (fourth | (third & (y > -36) & (y < 6) & (z > -14)))
    tissue[(tissue == INDEX["csf"]) & lateral & ~third & inner] = INDEX["ventricle"]
    stem = (np.abs(x) < 18) & (y > -42) & (y < -12) & (z < -14)
    below = (z < -16) & (y < -38) & ~stem
    for region, kind, becomes in (
        (stem, "white", "brain stem"),
        (stem, "cortex", "brain stem"),
        (below, "white", "cerebellar white"),
        (below, "cortex", "cerebellar cortex"),
    ):
        tissue[region & (tissue == INDEX[kind])] = INDEX[becomes]
    none = np.zeros(tissue.shape, dtype=bool)
    return make_anatomy("mni152", tissue, lesions=none, other_ventricles=others)


def reshape(anatomy: Anatomy, *, ventricle_widening_mm: float, sulcal_filling_mm: float) -> Anatomy:
    """The anatomy with ventricles widened into what surrounds them (negative: narrowed), and with
    as many mm of cortex in its sulci. Lesions reach up to the ventricles, as before.
    """
    tissue, lesions = anatomy.tissue, anatomy.lesions
    filled = (anatomy.cortex_mm < sulcal_filling_mm) & (tissue == INDEX["csf"])
    tissue = torch.where(filled, INDEX["cortex"], tissue)
    from_ventricle = anatomy.ventricle_mm - ventricle_widening_mm
    white = torch.tensor([k.truth >= WHITE for k in TISSUES], device=tissue.device)
    yields = white[tissue.long()] | (tissue == INDEX["caudate"])
    cavity = (tissue == INDEX["ventricle"]) | (tissue == INDEX["choroid plexus"])
    opened, closed = yields & (from_ventricle < 0), cavity & (from_ventricle >= 0)
    tissue = torch.where(opened, INDEX["ventricle"], tissue)
    tissue = torch.where(closed, INDEX["white"], tissue)
    if ventricle_widening_mm < 0:
        reach = math.ceil(-ventricle_widening_mm)
        near = F.max_pool3d(lesions.float()[None], 2 * reach + 1, stride=1, padding=reach)[0] > 0
        lesions = lesions | (near & closed)
    return replace(anatomy, tissue=tissue, ventricle_mm=from_ventricle, lesions=lesions & ~opened)


def make_anatomy(
    name: str, tissue: Array, *, lesions: Array, other_ventricles: Array | None = None
) -> Anatomy:
    """An anatomy of tissue indices (X, Y, Z), its distances measured.

    `other_ventricles` is the mask of all but the lateral ones; None where it is not known.
    """
    truth = np.array([kind.truth for kind in TISSUES])[tissue]
    if not all(
        (kind == value).any()
        for kind, value in ((truth, WHITE), (truth, VENTRICLE), (tissue, INDEX["cortex"]))
    ):
        raise LeukoError(f"{name} holds no brain with white matter, cortex and lateral ventricles")
    brain = np.argwhere(truth >= VENTRICLE)
    ventricle = truth == VENTRICLE
    return Anatomy(
        name,
        torch.from_numpy(tissue),
        _distance(ventricle) - _distance(~ventricle),
        _distance(tissue == INDEX["cortex"]),
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
