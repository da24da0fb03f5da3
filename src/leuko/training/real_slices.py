"""Training slices of real scans: labelled slices, simulated thick slices, unlabelled slices.

Labels are 0 (not WMH), 1 (WMH), 2 (periventricular cap or rim) and 255 (unknown: value 2, other
pathology, in a mask). The mask `lesions` contains all hyperintensities; `lesions_pathological`
excludes the normal caps and rims. Rims are known only for scans with both masks: with one mask, a
pixel labelled 0 may be a rim. A labelled scan without masks is taken to be free of WMH.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np

from leuko.errors import LeukoError
from leuko.evaluation.labels import IGNORED, LABEL_VALUES
from leuko.evaluation.metrics import OTHER_PATHOLOGY
from leuko.io import nifti
from leuko.preprocessing.registration import align
from leuko.preprocessing.slices import Pair, Placement, Preparation, area_residue
from leuko.synthesis.labels import LABELLED_PART
from leuko.training.material import Item
from leuko.volume import Array, Volume, require_same_grid

NOT_WMH, WMH, RIM = range(3)
CANVAS = {"brain": (176, 208), "head": (192, 240)}  # 1 mm pixels; extracted brains, whole heads
PREPARATION = Preparation(t1_optional=True)
THIN_STEP = 3  # every third slice of thin scans: adjacent slices are nearly identical
THICK_MM = {2: (3, 5, 6, 7), 1: (4, 6)}  # axial and coronal slices, averaged from 1 mm slices
SHOWN_GREY, SHOWN_PART = 25, 0.02  # a slice shows a head if over 2 % of its FLAIR is above grey 25


@dataclass(frozen=True, eq=False)
class RealSlices:
    """Labelled slices of one canvas size."""

    images: Array  # (N, H, W, 3), uint8
    labels: Array  # (N, H, W), uint8
    sagittal: Array  # (N,), bool
    rims_known: Array  # (N,), bool; if true, pixels labelled 0 are not rims
    scan: Array  # (N,), names of the scans

    def __getitem__(self, chosen: Array) -> "RealSlices":
        return RealSlices(*(getattr(self, field.name)[chosen] for field in fields(self)))


def joined(parts: Sequence[RealSlices]) -> RealSlices:
    """Slices of the same canvas concatenated."""
    return RealSlices(
        *(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(RealSlices))
    )


@dataclass(frozen=True, eq=False)
class Scan:
    """A labelled scan: FLAIR and T1 in 8 bits, and labels on the same grid, in RAS orientation."""

    name: str
    flair: Volume
    pair: Pair
    labels: Array  # uint8
    rims_known: bool

    @property
    def canvas(self) -> str:
        """`brain` if most voxels are exactly 0, as around an extracted brain; otherwise `head`."""
        return "brain" if (self.flair.data == 0).mean() > 0.5 else "head"


def read_scan(item: Item) -> Scan:
    """A labelled scan, its T1 registered to its FLAIR.

    Raises LeukoError if a file cannot be read or a mask is on another grid than the FLAIR.
    """
    flair, pair = read_pair(item)
    labels = np.zeros(pair.flair.shape, dtype=np.uint8)
    masks = [item.files.get(kind) for kind in ("lesions", "pathological")]
    # The pathological mask overwrites the other one, whose remaining voxels are caps and rims.
    for path, label in zip(masks, (RIM if masks[1] else WMH, WMH), strict=True):
        if path:
            mask = nifti.read_labels(path, values=LABEL_VALUES)
            require_same_grid(flair, mask)
            values = mask.canonical().data
            labels[values == 1] = label
            labels[values == OTHER_PATHOLOGY] = IGNORED
    return Scan(item.name, flair, pair, labels, rims_known=all(masks))


def read_pair(item: Item) -> tuple[Volume, Pair]:
    """The FLAIR as read, and the FLAIR and T1 (if any) in 8 bits on one grid."""
    flair = nifti.read(item.files["flair"])
    t1 = nifti.read(item.files["t1"]) if "t1" in item.files else None
    if t1:
        t1 = align(flair, t1, mode="auto", threads=1).apply(t1)
    return flair, Pair.of(flair, t1, PREPARATION)


def labelled(item: Item) -> tuple[str, RealSlices]:
    """The canvas and the slices of a scan; for a thin scan also simulated thick slices.

    Raises LeukoError if the scan cannot be read or prepared.
    """
    try:
        scan = read_scan(item)
    except LeukoError as error:
        raise LeukoError(f"{item.name}: {error}") from error
    parts = [*scan_slices(scan)]
    if scan.flair.is_nearly_isotropic:
        parts += thick_slices(scan)
    return scan.canvas, joined(parts)


def unlabelled(item: Item) -> Array:
    """The slices (N, H, W, 3), uint8, of a scan without labels, on the canvas "head".

    Raises LeukoError if the scan cannot be read or prepared.
    """
    try:
        _, pair = read_pair(item)
    except LeukoError as error:
        raise LeukoError(f"{item.name}: {error}") from error
    images, _ = pair.slices()
    return fitted(images[shows_head(images)], CANVAS["head"])


def scan_slices(scan: Scan) -> Iterator[RealSlices]:
    """All slices of a thick scan; of a thin scan every `THIN_STEP`-th slice along each axis."""
    thin = scan.flair.is_nearly_isotropic
    step = THIN_STEP if thin else 1
    for axis in range(3) if thin else (None,):
        images, placement = scan.pair.slices(axis)
        labels = labels_from_shares(label_shares(scan, placement), least=0.5)
        chosen = slice(step // 2, None, step)
        yield on_canvas(scan, images[chosen], labels[chosen], sagittal=placement.across == 0)


def thick_slices(scan: Scan) -> Iterator[RealSlices]:
    """Axial and coronal slices of a thin scan, averaged to the thickness of clinical slices."""
    rng = np.random.default_rng(3)
    for axis, thicknesses in THICK_MM.items():
        images, placement = scan.pair.slices(axis)
        shares = label_shares(scan, placement)
        for thickness in thicknesses:
            first = int(rng.integers(thickness))
            mean = partial(averaged, first=first, thickness=thickness)
            grey = np.rint(mean(images[..., 1:])).astype(np.uint8)
            residue = area_residue(grey[..., 0], round(PREPARATION.opening_mm2))
            labels = labels_from_shares([mean(share) for share in shares], least=LABELLED_PART)
            made = np.concatenate([residue[..., None], grey], axis=-1)
            yield on_canvas(scan, made, labels, sagittal=False)


def averaged(stack: Array, *, first: int, thickness: int) -> Array:
    """Means of consecutive groups of `thickness` slices of a stack (N, ...), from index `first`.

    Slices that do not fill a group at the end are dropped. Result ((N - first) // thickness, ...).
    """
    count = (len(stack) - first) // thickness
    whole = stack[first : first + count * thickness].astype(np.float32)
    means: Array = whole.reshape(count, thickness, *stack.shape[1:]).mean(axis=1)
    return means


def label_shares(scan: Scan, placement: Placement) -> list[Array]:
    """The shares of each pixel that are WMH, rim, and unknown: each (N, H, W), in [0, 1]."""
    return [
        placement.slices((scan.labels == label).astype(np.float32)) for label in (WMH, RIM, IGNORED)
    ]


def labels_from_shares(shares: Sequence[Array], *, least: float) -> Array:
    """Labels (N, H, W), uint8, of pixels with the given shares of WMH, rim, and unknown.

    A pixel gets the first label that applies: WMH, rim if WMH and rim together, or unknown, if the
    share is `least` or larger. Otherwise not WMH.
    """
    wmh, rim, unknown = shares
    found = [wmh >= least, wmh + rim >= least, unknown >= least]
    return np.select(found, [WMH, RIM, IGNORED], NOT_WMH).astype(np.uint8)


def on_canvas(scan: Scan, images: Array, labels: Array, *, sagittal: bool) -> RealSlices:
    """The slices that show a head, on the canvas of the scan."""
    size = CANVAS[scan.canvas]
    shown = shows_head(images)
    count = int(shown.sum())
    return RealSlices(
        fitted(images[shown], size),
        fitted(labels[shown], size),
        np.full(count, sagittal),
        np.full(count, scan.rims_known),
        np.full(count, scan.name),
    )


def shows_head(images: Array) -> Array:
    """Whether each slice (N, H, W, 3) shows more than air: (N,), bool."""
    shown: Array = (images[..., 1] > SHOWN_GREY).mean(axis=(1, 2)) > SHOWN_PART
    return shown


def fitted(slices: Array, size: tuple[int, int]) -> Array:
    """Slices (N, H, W, ...), cropped or padded with 0 to `size` around their centre."""
    for axis, wanted in enumerate(size, 1):
        spare = wanted - slices.shape[axis]
        if spare < 0:
            first = -spare // 2
            slices = np.take(slices, range(first, first + wanted), axis)
        else:
            padding = [(0, 0)] * slices.ndim
            padding[axis] = (spare // 2, spare - spare // 2)
            slices = np.pad(slices, padding)
    return slices


def stored(arrays: Mapping[str, Array], kind: str) -> dict[str, RealSlices]:
    """The slices of a kind, by canvas, from arrays with the names that `as_arrays` gives."""
    return {
        canvas: RealSlices(*(arrays[f"{kind}_{canvas}_{f.name}"] for f in fields(RealSlices)))
        for canvas in CANVAS
        if f"{kind}_{canvas}_images" in arrays
    }


def as_arrays(slices: Mapping[str, RealSlices], kind: str) -> dict[str, Array]:
    """The slices of a kind, by canvas, as named arrays for a file: `KIND_CANVAS_FIELD`."""
    return {
        f"{kind}_{canvas}_{f.name}": getattr(some, f.name)
        for canvas, some in slices.items()
        for f in fields(RealSlices)
    }
