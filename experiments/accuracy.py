"""Accuracy of a model on real labelled scans: the five measures, with T1 and from FLAIR alone.

    python experiments/accuracy.py DATA MODEL [--left-out SOURCE=MODEL ...] [--pictures FOLDER]

DATA holds folders named <source>_<subject>, each with FLAIR, optionally T1, and a reader's masks:
lesions, or lesions_pathological (without the normal caps and rims of the ventricles), or both; a
folder without either is a healthy head. MODEL is a folder or the name of a model. --left-out names
the model that measures a source, one that was trained without it. Where both masks exist, WMH are
compared with lesions_pathological, and WMH with caps and rims with lesions.

Prints a table with a row for each scan and one with the means by source. The last table counts the
lesions of all references of WMH, and those that hold a voxel of the mask, by volume and by
brightness: mean FLAIR of the lesion divided by the median of white matter more than two voxels away
from any lesion.
"""

import argparse
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from base_data import scans as labelled_scans
from base_data import source

from leuko.evaluation.evaluate import compare
from leuko.evaluation.metrics import dice
from leuko.io import nifti
from leuko.lesions.components import find_lesions
from leuko.lesions.delineation import Delineation, tissue_map
from leuko.lesions.drawing import draw
from leuko.model import runtime, weights
from leuko.model.card import Limits, ModelCard
from leuko.model.predict import predicted
from leuko.model.runtime import Model
from leuko.preprocessing.registration import align
from leuko.preprocessing.simpleitk import without_bias
from leuko.preprocessing.slices import Pair
from leuko.volume import Array, Volume

COLUMNS = ("dsc", "h95_mm", "avd_percent", "lesion_recall", "lesion_f1")
HEADER = "DSC | H95, mm | AVD, % | recall | F1"
VOLUMES_MM3 = (0, 10, 30, 100, 1000, math.inf)
BRIGHTNESSES = (0, 1.25, 1.5, math.inf)
LESIONS, PATHOLOGICAL = "lesions.nii.gz", "lesions_pathological.nii.gz"
WMH, WITH_RIMS = "WMH", "WMH, caps and rims"
THREADS = 2


class Lesion(NamedTuple):
    """A lesion of a reference; its brightness is nan where no white matter is known."""

    volume_mm3: float
    brightness: float
    found: bool


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    parser.add_argument("--left-out", nargs="*", default=[], metavar="SOURCE=MODEL")
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--bias-correction", action="store_true")
    options = parser.parse_args()
    usual = load(options.model)
    left_out = {kind: load(name) for kind, name in (x.split("=", 1) for x in options.left_out)}
    print(f"| subject | scans | counted | {HEADER} | reference, mL | found, mL |")
    print("|---" * 10 + "|")
    means: dict[tuple[str, str, str], list[list[float]]] = {}
    lesions: dict[str, list[Lesion]] = {}
    ventricles: dict[str, list[float]] = {}
    for item in labelled_scans(options.data):
        folder = item.files["flair"].parent
        model = left_out.get(source(folder.name), usual)
        limits = model.card.limits(options.threshold)
        for scans, pair in pairs(folder, model.card, corrected=options.bias_correction):
            drawn = masks_of(pair, model, limits)
            flair, mask = pair.scan, drawn.mask
            tissue = tissue_map(drawn.anatomy, mask, drawn.rims, model.card)
            references = references_of(folder)
            if not references:
                print(f"| {folder.name} | {scans} | {WMH} | | | | | | 0 | {flair.ml(mask):.2f} |")
            for counted, path in references.items():
                truth = nifti.read_labels(path, values=(0, 1, 2)).canonical()
                found = mask if counted == WMH else with_rims(mask, drawn)
                row = compare(truth, flair.with_data(found))
                values = [row[column] for column in COLUMNS]
                means.setdefault((source(folder.name), scans, counted), []).append(values)
                cells = [*(f"{v:.2f}" for v in values), f"{row['reference_ml']:.1f}"]
                cells.append(f"{row['prediction_ml']:.1f}")
                print("|", " | ".join([folder.name, scans, counted, *cells]), "|", flush=True)
                if counted == WMH:
                    white = [k for k, kind in enumerate(model.card.classes) if kind == "white"]
                    seen = lesions_of(truth, flair, mask, np.isin(tissue.data, white))
                    lesions.setdefault(scans, []).extend(seen)
                    if options.pictures and pair.given_t1 is not None:
                        save_picture(options.pictures / f"{folder.name}.png", flair, mask, truth)
            path = folder / "ventricles.nii.gz"
            if path.is_file() and "ventricle" in model.card.classes:
                seen = tissue.data == model.card.classes.index("ventricle")
                overlap = dice(
                    prediction=seen, reference=nifti.read_mask(path).canonical().data > 0
                )
                ventricles.setdefault(scans, []).append(overlap)
    print(f"\n| source | scans | counted | n | {HEADER} |")
    print("|---" * 9 + "|")
    for (name, scans, counted), rows in sorted(means.items()):
        cells = [f"{v:.3f}" for v in np.nanmean(rows, axis=0)]
        print("|", " | ".join([name, scans, counted, str(len(rows)), *cells]), "|")
    for scans, overlaps in ventricles.items():
        print(f"\nventricles, {scans}: mean Dice {np.mean(overlaps):.2f} of {len(overlaps)} scans")
    print_lesions(lesions)


def load(name: str) -> Model:
    return runtime.load(weights.find(name), threads=THREADS)


def pairs(folder: Path, card: ModelCard, *, corrected: bool) -> Iterator[tuple[str, Pair]]:
    """The FLAIR with its T1, if there is one, and the FLAIR alone."""
    flair = nifti.read(folder / "FLAIR.nii.gz").canonical()
    if corrected:
        flair = without_bias(flair, threads=THREADS)
    path = folder / "T1.nii.gz"
    if path.is_file():
        t1 = nifti.read(path)
        if corrected:
            t1 = without_bias(t1, threads=THREADS)
        aligned = align(flair, t1, threads=THREADS).apply(t1)
        yield "FLAIR + T1", Pair.of(flair, aligned, card.preparation)
    yield "FLAIR", Pair.of(flair, None, card.preparation)


def references_of(folder: Path) -> dict[str, Path]:
    """The reader's masks by what they count."""
    every, pathological = folder / LESIONS, folder / PATHOLOGICAL
    if pathological.is_file():
        return {WMH: pathological} | ({WITH_RIMS: every} if every.is_file() else {})
    return {WMH: every} if every.is_file() else {}


def masks_of(pair: Pair, model: Model, limits: Limits) -> Delineation:
    return draw(predicted(pair, model), pair, model.card, limits).masks


def with_rims(mask: Array, drawn: Delineation) -> Array:
    return mask if drawn.rims is None else mask | drawn.rims


def lesions_of(truth: Volume, flair: Volume, mask: Array, white: Array) -> Iterator[Lesion]:
    """The lesions of a reference; all masks are bool, axes as in the FLAIR."""
    labels, count = find_lesions(truth.data == 1)
    near = scipy.ndimage.binary_dilation((labels > 0) | mask, iterations=2)
    normal = flair.data[white & ~near]
    level = float(np.median(normal)) if len(normal) else math.nan
    ids = np.arange(1, count + 1)
    voxels = np.bincount(labels.ravel())[1:]
    brightness = scipy.ndimage.mean(flair.data, labels, ids) / level
    found = np.isin(ids, labels[mask])
    yield from map(Lesion, voxels * truth.voxel_mm3, brightness, found)


def print_lesions(lesions: dict[str, list[Lesion]]) -> None:
    """Lesions and those found, by volume and by brightness."""
    found = " | ".join(f"found, {scans}" for scans in lesions)
    print("\n| lesions of the references | number |", found, "|")
    print("|---" * (2 + len(lesions)) + "|")
    for key, limits, unit in (
        ("volume_mm3", VOLUMES_MM3, "mm³"),
        ("brightness", BRIGHTNESSES, "times white matter"),
    ):
        for low, high in pairwise(limits):
            kept = [
                [lesion.found for lesion in some if low <= getattr(lesion, key) < high]
                for some in lesions.values()
            ]
            span = f"{low:g} {unit} and more" if high == math.inf else f"{low:g} to {high:g} {unit}"
            print("|", " | ".join([span, str(len(kept[0])), *(str(sum(k)) for k in kept)]), "|")


def save_picture(path: Path, flair: Volume, mask: Array, truth: Volume) -> None:
    """Twelve slices: found in red, reference in green."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    axis = flair.through_plane_axis
    stacks = [
        np.moveaxis(a, axis, 0)
        for a in (flair.data, mask.astype(np.uint8), (truth.data == 1).astype(np.uint8))
    ]
    shown = np.flatnonzero((stacks[1] | stacks[2]).any(axis=(1, 2)))
    picks = shown[np.linspace(0, len(shown) - 1, 12).astype(int)]
    figure, axes = plt.subplots(2, 6, figsize=(24, 10))
    top = np.percentile(flair.data[flair.data > 0], 99.7)
    for panel, n in zip(axes.flat, picks, strict=True):
        panel.imshow(stacks[0][n].T, cmap="gray", origin="lower", vmin=0, vmax=top)
        panel.contour(stacks[2][n].T, [0.5], colors="lime", linewidths=0.7)
        panel.contour(stacks[1][n].T, [0.5], colors="red", linewidths=0.7)
        panel.axis("off")
    figure.tight_layout(pad=0.1)
    figure.savefig(path, dpi=70)
    plt.close(figure)


if __name__ == "__main__":
    main()
