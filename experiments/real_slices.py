"""Real scans as slices to train with: labelled ones, thick ones made of thin ones, painted lesions.

    python experiments/real_slices.py FOLDER OUT.npz [--unlabelled FOLDER] [--leave SOURCE ...]
        [--model leuko-base]

FOLDER holds a folder for each scan: FLAIR, T1 if there is one, and `lesions`, all hyperintensities,
`lesions_pathological`, those without the normal caps and rims of the ventricles, or neither for a
head without lesions. The name of a scan begins with that of its source, up to the first "_". A
label is 0 (not WMH), 1 (WMH), 2 (a cap or rim) or 255 (unknown: label 2, other pathology, of a
mask). Only where a scan has both masks does a 0 mean that there is no rim either: one mask alone
says what is WMH and nothing of rims. --unlabelled: a folder of folders of FLAIR and T1. --leave:
sources or scans to leave out. The model tells where white matter is, which is painted.
experiments/train_base.py makes the same of its --real and --unlabelled.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.ndimage

from leuko.evaluation.labels import IGNORED, LABEL_VALUES
from leuko.evaluation.metrics import OTHER_PATHOLOGY
from leuko.io import nifti
from leuko.io.files import find_image
from leuko.model import runtime, weights
from leuko.preprocessing.registration import align
from leuko.preprocessing.slices import Pair, Placement, Preparation, area_residue
from leuko.synthesis.images import LABELLED_PART
from leuko.training.lineage import fingerprint
from leuko.volume import Array, Volume, require_same_grid

NOT_WMH, WMH, RIM = range(3)
CANVAS = {"brain": (176, 208), "head": (192, 240)}  # pixels of 1 mm: extracted brains, whole heads
PREPARATION = Preparation(t1_optional=True)
THIN_STEP = 3  # of the slices of thin scans: neighbours teach nothing new
THICK_MM = {2: (3, 5, 6, 7), 1: (4, 6)}  # across the axial and the coronal axis, made of 1 mm
SHOWN_GREY, SHOWN_PART = 25, 0.02  # a slice that is darker shows no head


class Source(NamedTuple):
    """A data set, its licence and its credit."""

    credit: str
    weight: float = 1.0  # how often its slices are drawn


SOURCES = {
    "ljubljana": Source("Lesjak et al. 2017, doi 10.1007/s12021-017-9348-7, CC BY"),
    "mslesseg": Source("MSLesSeg, Guarnera et al. 2025, CC BY 4.0"),
    "tabriz": Source(
        "Mahdi-Bashiri, Sim-Vent-WMH-Seg and MRI_MS_Insights, MIT; published as MS3SEG, CC BY 4.0"
    ),
    "healthy": Source("a head of neurolabusc/py_synthsr, Apache-2.0", 0.3),
}
WEIGHT_WITH_RIMS = 0.7  # of the scans of a source with both masks: few, and drawn apart
SAME_PERSON = {"tabriz_112776": "tabriz_107130"}


def source(scan: str) -> str:
    """Which data set a scan is of."""
    return scan.partition("_")[0]


def person(scan: str) -> str:
    """Whose scan <source>_<person>[_<time>] is."""
    name = "_".join(scan.split("_")[:2])
    return SAME_PERSON.get(name, name)


@dataclass(frozen=True, eq=False)
class Slices:
    """Slices of one canvas. `images` (N, H, W, 3) and `labels` (N, H, W), uint8."""

    images: Array
    labels: Array
    sagittal: Array  # (N,), bool
    rims_known: Array  # (N,), bool: a label 0 says that there is no rim either
    scan: Array  # (N,), the name of the scan

    def __getitem__(self, chosen: Array) -> "Slices":
        return Slices(*(getattr(self, field.name)[chosen] for field in fields(self)))


def joined(parts: Sequence[Slices]) -> Slices:
    return Slices(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Slices)))


@dataclass(frozen=True, eq=False)
class Scan:
    """A labelled scan: FLAIR and T1 in 8 bit, and labels on their grid, axes running R, A, S."""

    name: str
    flair: Volume
    pair: Pair
    labels: Array  # uint8
    rims_known: bool

    @property
    def canvas(self) -> str:
        """Around an extracted brain most voxels are exactly 0."""
        return "brain" if (self.flair.data == 0).mean() > 0.5 else "head"


def read_scan(folder: Path) -> Scan:
    """The scan of a folder, its T1 brought to its FLAIR."""
    flair, pair = read_pair(folder)
    labels = np.zeros(pair.flair.shape, dtype=np.uint8)
    masks = [find_image(folder, name) for name in ("lesions", "lesions_pathological")]
    # What is pathological comes last: the rest of all hyperintensities are caps and rims.
    for path, label in zip(masks, (RIM if masks[1] else WMH, WMH), strict=True):
        if path:
            mask = nifti.read_labels(path, values=LABEL_VALUES)
            require_same_grid(flair, mask)
            values = mask.canonical().data
            labels[values == 1] = label
            labels[values == OTHER_PATHOLOGY] = IGNORED
    return Scan(folder.name, flair, pair, labels, rims_known=all(masks))


def read_pair(folder: Path) -> tuple[Volume, Pair]:
    """The FLAIR of a folder, and it and its T1, if there is one, in 8 bit on one grid."""
    flair = nifti.read(folder / "FLAIR.nii.gz")
    path = find_image(folder, "T1")
    t1 = nifti.read(path) if path else None
    if t1:
        t1 = align(flair, t1, mode="auto", threads=1).apply(t1)
    return flair, Pair.of(flair, t1, PREPARATION)


def scan_folders(folder: Path) -> list[Path]:
    """The folders of scans in a folder, sorted."""
    return sorted(path.parent for path in folder.glob("*/FLAIR.nii.gz"))


def labelled(folder: Path, *, leave: Sequence[str] = ()) -> dict[str, Slices]:
    """The slices of all scans in a folder, by canvas, as they are and made thick.

    `leave`: sources, or scans, that are left out.
    """
    parts: dict[str, list[Slices]] = {canvas: [] for canvas in CANVAS}
    for home in scan_folders(folder):
        if source(home.name) not in SOURCES:
            raise SystemExit(f"{home.name} is of no source in SOURCES; add it with its licence")
        if leave_out(home.name, leave):
            continue
        scan = read_scan(home)
        parts[scan.canvas] += scan_slices(scan)
        if scan.flair.is_nearly_isotropic:
            parts[scan.canvas] += thick_slices(scan)
    return {canvas: joined(some) for canvas, some in parts.items() if some}


def leave_out(scan: str, leave: Sequence[str]) -> bool:
    """Whether a scan, its person or its source is among those to leave out."""
    return source(scan) in leave or person(scan) in {person(name) for name in leave}


def scan_slices(scan: Scan) -> Iterator[Slices]:
    """Those of a thick scan; of a thin one a part of them, along each axis."""
    thin = scan.flair.is_nearly_isotropic
    step = THIN_STEP if thin else 1
    for axis in range(3) if thin else (None,):
        images, placement = scan.pair.slices(axis)
        labels = as_labels(label_shares(scan, placement), least=0.5)
        chosen = slice(step // 2, None, step)
        yield on_canvas(scan, images[chosen], labels[chosen], sagittal=placement.across == 0)


def thick_slices(scan: Scan) -> Iterator[Slices]:
    """Axial and coronal slices of a thin scan, averaged to the thickness of clinical ones."""
    rng = np.random.default_rng(3)
    for axis, thicknesses in THICK_MM.items():
        images, placement = scan.pair.slices(axis)
        shares = label_shares(scan, placement)
        for thickness in thicknesses:
            first = int(rng.integers(thickness))
            mean = partial(averaged, first=first, thickness=thickness)
            grey = np.rint(mean(images[..., 1:])).astype(np.uint8)
            residue = area_residue(grey[..., 0], round(PREPARATION.opening_mm2))
            labels = as_labels([mean(share) for share in shares], least=LABELLED_PART)
            made = np.concatenate([residue[..., None], grey], axis=-1)
            yield on_canvas(scan, made, labels, sagittal=False)


def averaged(stack: Array, *, first: int, thickness: int) -> Array:
    """The means of so many slices of (N, ...), from the first one on; what is left is dropped."""
    count = (len(stack) - first) // thickness
    whole = stack[first : first + count * thickness].astype(np.float32)
    return np.asarray(whole.reshape(count, thickness, *stack.shape[1:]).mean(axis=1))


def label_shares(scan: Scan, placement: Placement) -> list[Array]:
    """The shares of each pixel (N, H, W) that are WMH, rim, and unknown."""
    return [
        placement.slices((scan.labels == label).astype(np.float32)) for label in (WMH, RIM, IGNORED)
    ]


def as_labels(shares: Sequence[Array], *, least: float) -> Array:
    """Labels of pixels by their shares of WMH, rim, and unknown."""
    wmh, rim, unknown = shares
    found = [wmh >= least, wmh + rim >= least, unknown >= least]
    return np.select(found, [WMH, RIM, IGNORED], NOT_WMH).astype(np.uint8)


def on_canvas(scan: Scan, images: Array, labels: Array, *, sagittal: bool) -> Slices:
    """The slices that show a head, on the canvas of their scan."""
    size = CANVAS[scan.canvas]
    shown = shows_head(images)
    count = int(shown.sum())
    return Slices(
        fitted(images[shown], size),
        fitted(labels[shown], size),
        np.full(count, sagittal),
        np.full(count, scan.rims_known),
        np.full(count, scan.name),
    )


def shows_head(images: Array) -> Array:
    """Which slices (N, H, W, 3) show more than air, bool."""
    shown: Array = (images[..., 1] > SHOWN_GREY).mean(axis=(1, 2)) > SHOWN_PART
    return shown


def fitted(slices: Array, size: tuple[int, int]) -> Array:
    """Slices (N, H, W, ...) cut, or padded with 0, to a size around their middle."""
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


def unlabelled(folder: Path) -> Array:
    """The slices (N, H, W, 3) of all pairs of a folder, on the canvas of whole heads."""
    parts = []
    for home in scan_folders(folder):
        _, pair = read_pair(home)
        images, _ = pair.slices()
        shown = shows_head(images)
        parts.append(fitted(images[shown], CANVAS["head"]))
    return np.concatenate(parts)


def painted(slices: Slices, model: runtime.Model) -> Slices:
    """The slices with small, faint lesions painted into their white matter, those where any shows.

    The model tells white matter from the rest. Whether there are rims is not known any more: a
    painted lesion beside one may hide it.
    """
    rng = np.random.default_rng(11)
    images, labels, chosen = slices.images.copy(), slices.labels.copy(), []
    for number, image in enumerate(images):
        shares = dict(zip(model.card.classes, model.predict(image[None])[0], strict=True))
        labels_there = labels[number]
        free = white_matter(shares) & ~scipy.ndimage.binary_dilation(labels_there, iterations=4)
        centres = np.argwhere(scipy.ndimage.binary_erosion(free))
        if len(centres) < 150:  # too little white matter
            continue
        white = float(np.median(image[..., 1][white_matter(shares)]))
        excess = free * random_spots(free.shape, centres, rng)
        new = seen(excess)
        if not new.any():
            continue
        image[..., 1] = np.rint(np.clip(image[..., 1] + white * excess, 0, 255))
        image[..., 2] = np.rint(image[..., 2] * (1 - rng.uniform(0, 0.35) * excess))
        image[..., 0] = area_residue(image[None, ..., 1], round(PREPARATION.opening_mm2))[0]
        labels_there[new & (labels_there == NOT_WMH)] = WMH
        chosen.append(number)
    kept = np.array(chosen, dtype=int)
    unknown = np.zeros(len(kept), dtype=bool)
    return Slices(images[kept], labels[kept], slices.sagittal[kept], unknown, slices.scan[kept])


def white_matter(shares: dict[str, Array]) -> Array:
    """The pixels (H, W) that are surely white matter, by the probabilities of all classes."""
    others = [share for name, share in shares.items() if name not in ("white", "wmh", "rim")]
    white: Array = (shares["white"] > np.max(others, axis=0)) & (shares["wmh"] < 0.2)
    return white & (shares["rim"] < 0.3) if "rim" in shares else white


def random_spots(shape: tuple[int, ...], centres: Array, rng: np.random.Generator) -> Array:
    """The excess brightness (H, W) of a few soft ellipses of 1 to 4 mm, white matter being 1."""
    rows, columns = np.indices(shape)
    excess = np.zeros(shape)
    for centre in centres[rng.integers(len(centres), size=1 + int(rng.exponential(2.5)))]:
        long = math.exp(rng.uniform(math.log(1.0), math.log(4.0)))
        short = long * math.exp(-abs(rng.normal(0, 0.3)))
        turn = rng.uniform(0, math.pi)
        y, x = (
            grid - at + rng.uniform(-0.5, 0.5)
            for grid, at in zip((rows, columns), centre, strict=True)
        )
        radius = np.hypot(
            (y * math.cos(turn) + x * math.sin(turn)) / long,
            (x * math.cos(turn) - y * math.sin(turn)) / short,
        )
        uneven = 1 + 0.75 * scipy.ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
        spot = np.clip((1 - radius) * short / 0.7 + 0.5, 0, 1) * uneven
        spot = scipy.ndimage.gaussian_filter(spot, rng.uniform(0.5, 1.1))
        height = math.exp(rng.uniform(math.log(0.24), math.log(0.9)))
        excess = np.maximum(excess, height * np.clip(spot, 0, 1.2))
    return excess


def seen(excess: Array) -> Array:
    """Where a reader would label spots of an excess brightness (H, W), white matter being 1: spots
    of some pixels and a fifth above it, up to where readers draw edges."""
    pieces, count = scipy.ndimage.label(excess > 0.01, np.ones((3, 3)))
    labels = np.zeros(excess.shape, dtype=bool)
    for piece in range(1, count + 1):
        inside = pieces == piece
        top = excess[inside].max()
        spot = inside & (excess >= LABELLED_PART * top)
        if top >= 0.2 and spot.sum() >= 3:
            labels |= spot
    return labels


def prepare(
    folder: Path,
    pairs: Path | None,
    out: Path,
    model: runtime.Model,
    *,
    leave: Sequence[str] = (),
) -> None:
    """Write all slices, `real`, `painted` and `unlabelled`, and the fingerprints of their scans."""
    arrays: dict[str, Array] = {}
    print("| scan | canvas | slices | WMH, pixels | rims, pixels | painted slices |")
    print("|---" * 6 + "|")
    for canvas, slices in labelled(folder, leave=leave).items():
        spotted = painted(slices, model)
        for kind, some in (("real", slices), ("painted", spotted)):
            arrays |= {f"{kind}_{canvas}_{f.name}": getattr(some, f.name) for f in fields(some)}
        for name in np.unique(slices.scan):
            own = slices[slices.scan == name]
            counts = [(own.labels == label).sum() for label in (WMH, RIM)]
            cells = [name, canvas, len(own.images), *counts, (spotted.scan == name).sum()]
            print("|", " | ".join(map(str, cells)), "|", flush=True)
    homes = [home for home in scan_folders(folder) if not leave_out(home.name, leave)]
    if pairs:
        arrays["unlabelled"] = unlabelled(pairs)
        homes += scan_folders(pairs)
        print(f"{len(arrays['unlabelled'])} unlabelled slices", flush=True)
    seen = [fingerprint(home / "FLAIR.nii.gz") for home in homes]
    part = out.with_suffix(".part.npz")
    np.savez_compressed(part, seen=np.array(seen), **arrays)  # type: ignore[arg-type]
    part.replace(out)


def stored(arrays: Mapping[str, Array], kind: str) -> dict[str, Slices]:
    """The slices of a kind that `prepare` wrote, by canvas."""
    return {
        canvas: Slices(*(arrays[f"{kind}_{canvas}_{f.name}"] for f in fields(Slices)))
        for canvas in CANVAS
        if f"{kind}_{canvas}_images" in arrays
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--unlabelled", type=Path)
    parser.add_argument("--leave", nargs="*", default=[])
    parser.add_argument("--model", default=weights.DEFAULT)
    options = parser.parse_args()
    model = runtime.load(weights.find(options.model))
    prepare(options.folder, options.unlabelled, options.out, model, leave=options.leave)


if __name__ == "__main__":
    main()
