"""Contrast of lesions in the residue of the area opening, by the area of the opening.

    python experiments/opening_area.py DATA

DATA holds labelled subjects as for `leuko train`. Prints, for each subject, the area under the ROC
curve of the FLAIR and of the residue at several areas, over the voxels of the tissue (FLAIR above a
fifth of the tissue's grey value; the brain alone if brainmask.nii.gz exists). Then prints, for each
subject and area, the percentage of the lesion pixels brighter than tissue that keep at least half
of that excess in the residue.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from leuko.io import nifti
from leuko.preprocessing.slices import Placement, Preparation, area_residue, prepare
from leuko.training.dataset import find_subjects

AREAS_MM2 = (30, 100, 300, 1000, 3000)


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Chance that a positive grey value lies above a negative one, ties counted half."""
    rise, fall = (np.bincount(v, minlength=256) / len(v) for v in (positive, negative))
    return float((rise * (np.cumsum(fall) - fall / 2)).sum())


def main(data: Path) -> None:
    areas = [f"{area} mm2" for area in AREAS_MM2]
    print("area under the curve", "FLAIR", *areas, sep="\t")
    kept = {}
    for subject in find_subjects(data):
        flair = nifti.read(subject.flair)
        preparation = replace(Preparation(), channels="flair-3-slices", pixel_mm=1.0)
        slices, placement = prepare(flair, None, preparation)
        grey = slices[..., 1]

        def on_slices(path: Path, placement: Placement = placement) -> np.ndarray:
            canonical = nifti.read_labels(path, values=(0, 1)).canonical()
            return placement.slices(canonical.data) > 0

        lesion = on_slices(subject.labels)
        brain_file = subject.flair.parent / "brainmask.nii.gz"
        brain = on_slices(brain_file) if brain_file.exists() else grey > 20
        residues = [area_residue(grey, area) for area in AREAS_MM2]
        scores = [auc(image[lesion], image[brain & ~lesion]) for image in (grey, *residues)]
        print(subject.name, *(f"{score:.3f}" for score in scores), sep="\t", flush=True)
        excess = grey[lesion].astype(int) - preparation.tissue_grey
        kept[subject.name] = [
            100 * float((2 * residue[lesion] >= excess)[excess > 0].mean()) for residue in residues
        ]
    print("\nlesion pixels in the residue, %", *areas, sep="\t")
    for name, parts in kept.items():
        print(name, *(f"{part:.0f}" for part in parts), sep="\t")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
