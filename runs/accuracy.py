"""How good a model is on real labelled scans: the five measures, with T1 and from FLAIR alone.

    python runs/accuracy.py DATA MODEL [--pictures FOLDER] [--bias-correction]

DATA holds one folder a patient with FLAIR, T1, lesions, and if there are lesions_pathological
and ventricles; folders without lesions are left out. MODEL is a folder or the name of a model. The
second table counts the lesions of all references, and those of them that hold a voxel of the mask,
by volume and by brightness: mean FLAIR of the lesion by the median of white matter more than two
voxels from any lesion.
"""

import argparse
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.ndimage

from leuko import nifti, runtime, weights
from leuko.delineate import delineate, tissue_map
from leuko.evaluate import compare
from leuko.held_out import within_brain
from leuko.itk import without_bias
from leuko.lesions import find_lesions
from leuko.metrics import dice
from leuko.predict import predict
from leuko.volume import Array, Volume

COLUMNS = ("dsc", "h95_mm", "avd_percent", "lesion_recall", "lesion_f1")
VOLUMES_MM3 = (0, 10, 30, 100, 1000, math.inf)
BRIGHTNESSES = (0, 1.25, 1.5, math.inf)


class Lesion(NamedTuple):
    """A lesion of a reference; its brightness is nan where no white matter is known."""

    volume_mm3: float
    brightness: float
    found: bool


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--bias-correction", action="store_true")
    options = parser.parse_args()
    model = runtime.load(weights.find(options.model))
    limits = model.card.limits(options.threshold)
    print("| subject | scans | DSC | H95, mm | AVD, % | recall | F1 | reference, mL | found, mL |")
    print("|---|---|---|---|---|---|---|---|---|")
    means: dict[str, list[list[float]]] = {}
    lesions: dict[str, list[Lesion]] = {}
    for folder in sorted(path.parent for path in options.data.glob("*/lesions.nii.gz")):
        flair = nifti.read(folder / "FLAIR.nii.gz")
        for scans in ("FLAIR + T1", "FLAIR"):
            t1 = nifti.read(folder / "T1.nii.gz") if scans != "FLAIR" else None
            pair = flair, t1
            if options.bias_correction:
                pair = tuple(scan and without_bias(scan, threads=2) for scan in pair)
            drawn = delineate(predict(*pair, model), flair, model.card, limits)
            mask = within_brain(drawn, model, threads=2)
            tissue = tissue_map(drawn.anatomy, mask, drawn.rims, model.card)
            for reference in ("lesions", "lesions_pathological"):
                path = folder / f"{reference}.nii.gz"
                if not path.is_file():
                    continue
                truth = nifti.read_labels(path, values=(0, 1, 2))
                row = compare(truth, flair.with_data(mask))
                values = [row[column] for column in COLUMNS]
                name = folder.name + reference.removeprefix("lesions").replace("_", ", ")
                if reference == "lesions":
                    means.setdefault(scans, []).append(values)
                    white = [k for k, kind in enumerate(model.card.classes) if kind == "white"]
                    seen = lesions_of(truth, flair, mask, np.isin(tissue.data, white))
                    lesions.setdefault(scans, []).extend(seen)
                cells = [f"{v:.2f}" for v in values] + [
                    f"{row['reference_ml']:.1f}", f"{row['prediction_ml']:.1f}"
                ]  # fmt: skip
                print("|", " | ".join([name, scans, *cells]), "|", flush=True)
                if options.pictures and scans != "FLAIR" and reference == "lesions":
                    save_picture(options.pictures / f"{folder.name}.png", flair, mask, truth)
            ventricles = folder / "ventricles.nii.gz"
            if ventricles.is_file() and "ventricle" in model.card.classes:
                found = tissue.data == model.card.classes.index("ventricle")
                overlap = dice(prediction=found, reference=nifti.read_mask(ventricles).data > 0)
                print(f"| {folder.name}, ventricles | {scans} | {overlap:.2f} | | | | | | |")
    for scans, rows in means.items():
        cells = [f"{v:.3f}" for v in np.nanmean(rows, axis=0)]
        print("|", " | ".join(["mean", scans, *cells]), "| | |")
    print_lesions(lesions)


def lesions_of(truth: Volume, flair: Volume, mask: Array, white: Array) -> Iterator[Lesion]:
    """The lesions of a reference; all masks are bool, on the grid of the FLAIR as it is stored."""
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
    grey = flair.canonical()
    axis = grey.through_plane_axis
    stacks = [
        np.moveaxis(flair.with_data(a).canonical().data, axis, 0)
        for a in (flair.data, mask.astype(np.uint8), (truth.data == 1).astype(np.uint8))
    ]
    shown = np.flatnonzero((stacks[1] | stacks[2]).any(axis=(1, 2)))
    picks = shown[np.linspace(0, len(shown) - 1, 12).astype(int)]
    figure, axes = plt.subplots(2, 6, figsize=(24, 10))
    top = np.percentile(grey.data[grey.data > 0], 99.7)
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
