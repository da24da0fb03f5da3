"""Lesions that a model finds outside the brain, and whether any true lesion is among them.

    python experiments/outside_brain.py MODEL DATA [DATA ...] [--masks FOLDER]

DATA: folders of subjects with FLAIR, optionally T1 and lesions or lesions_pathological. Prints, for
each subject, with its T1 and from FLAIR alone: how many lesions are found, how many are removed,
how many of the removed ones touch a lesion of the reader, and the least distance of a true lesion
inside the template's brain. --masks: readers' masks in MNI space; only their distances are printed.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from leuko.io import nifti
from leuko.lesions import mni
from leuko.lesions.brain import brain_mask, find_outside
from leuko.lesions.components import find_lesions
from leuko.lesions.delineation import delineate
from leuko.model import runtime, weights
from leuko.model.predict import predicted
from leuko.preprocessing.registration import align
from leuko.preprocessing.slices import Pair
from leuko.volume import Array, Volume, world

THREADS = 2
REFERENCES = ("lesions.nii.gz", "lesions_pathological.nii.gz")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data", type=Path, nargs="*")
    parser.add_argument("--masks", type=Path)
    options = parser.parse_args()
    if options.masks:
        masks = [nifti.read_mask(path) for path in sorted(options.masks.glob("*.nii.gz"))]
        beyond = np.concatenate([beyond_mm(m.data > 0, m, mni.Place(np.eye(4))) for m in masks])
        print(f"{len(beyond)} lesions of {len(masks)} masks: {-beyond.max():.1f} mm inside or more")
    model = runtime.load(weights.find(options.model), threads=THREADS)
    print("| subject | scans | lesions | outside | mL | true among them | true ones, mm inside |")
    print("|---|---|---|---|---|---|---|")
    for folder in sorted(path.parent for data in options.data for path in data.glob("*/FLAIR.*")):
        for scans, flair, t1 in pairs(folder):
            print(f"| {folder.name} | {scans} | {row(folder, flair, t1, model)} |", flush=True)


def pairs(folder: Path) -> Iterator[tuple[str, Volume, Volume | None]]:
    flair = nifti.read(folder / "FLAIR.nii.gz")
    if (folder / "T1.nii.gz").is_file():
        t1 = nifti.read(folder / "T1.nii.gz")
        yield "FLAIR + T1", flair, align(flair, t1, threads=THREADS).apply(t1)
    yield "FLAIR", flair, None


def row(folder: Path, flair: Volume, t1: Volume | None, model: runtime.Model) -> str:
    card, grid = model.card, flair.canonical()
    drawn = delineate(predicted(Pair.of(flair, t1, card.preparation), model), flair, card)
    anatomy = drawn.anatomy.canonical()
    mask = flair.with_data(drawn.mask).canonical().data
    brain = brain_mask(anatomy)
    place = mni.Place.of(anatomy.with_data(anatomy.data * brain))
    outside = find_outside(mask, brain, place, grid)
    cells = [str(find_lesions(mask)[1]), str(outside.lesions), f"{grid.ml(outside.voxels):.2f}"]
    references = [folder / name for name in REFERENCES if (folder / name).is_file()]
    if not references:
        return " | ".join([*cells, "", ""])
    truth = nifti.read_labels(references[0], values=(0, 1, 2)).canonical().data == 1
    touched = find_lesions(outside.voxels)[0][truth]
    inside = -beyond_mm(mask & truth, grid, place).max() if place and (mask & truth).any() else 0
    return " | ".join([*cells, str(len(set(touched[touched > 0].tolist()))), f"{inside:.1f}"])


def beyond_mm(mask: Array, grid: Volume, place: mni.Place) -> Array:
    """How far each lesion lies outside the template's brain, mean over its voxels, mm."""
    numbers, count = find_lesions(mask)
    lesion = numbers[mask]
    beyond = place.beyond_brain_mm(world(grid, np.argwhere(mask)))
    sums = np.bincount(lesion, weights=beyond, minlength=count + 1)[1:]
    means: Array = sums / np.bincount(lesion, minlength=count + 1)[1:]
    return means


if __name__ == "__main__":
    main()
