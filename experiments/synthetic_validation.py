"""Accuracy of a model on synthetic scans of brains that it was never trained on.

    python experiments/synthetic_validation.py HEADS MODEL [--labelmaps FOLDER] [--scans 8]

HEADS: the folder of label maps that `leuko train --recipe base` was given; the held-out ones are
used. --labelmaps: MS patients as tissue (1 CSF, 2 grey, 3 white), lesions and brainmask; the
lesions are the patients' own. Prints the Dice of each class, mean over scans; for WMH, over the
scans with at least 0.5 mL of it. The last rows are the pooled Dice of the WMH of all scans of a
kind.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.ndimage
from base_data import HELD_OUT

from leuko.evaluation.metrics import dice
from leuko.io import nifti
from leuko.io.tissue import Tissue, numbers_in
from leuko.model import runtime, weights
from leuko.preprocessing.slices import Preparation
from leuko.synthesis.anatomy import INDEX, Anatomy, load_head, make_anatomy
from leuko.synthesis.images import synthesise
from leuko.volume import Array, Volume

LEAST_ML = 0.5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path)
    parser.add_argument("model")
    parser.add_argument("--labelmaps", type=Path)
    parser.add_argument("--scans", type=int, default=8)
    options = parser.parse_args()
    model = runtime.load(weights.find(options.model))
    known = model.card.classes
    numbers = np.array(numbers_in(known))
    print("| brain | scans |", " | ".join(known[1:]), "|")
    print("|---" * (len(known) + 1) + "|")
    sources = {"held-out heads": (held_out(options.heads), False, known[1:])}
    if options.labelmaps:
        # FAST knows no ventricles, and what it calls CSF or grey is not what the heads do.
        sources["labelmaps"] = (patients(options.labelmaps), True, ("grey", "white", "wmh"))
    for source, (anatomies, own, classes) in sources.items():
        rows = []
        twice_shared_ml = summed_ml = 0.0
        for number, anatomy in enumerate(anatomies):
            for scan in range(options.scans):
                made = synthesise(anatomy, [77, number, scan], own_lesions=own)
                slices, truth = made.slices(Preparation())
                found = model.predict(slices)
                found_wmh, true_wmh = found[:, -1] >= model.card.threshold, truth == Tissue.WMH
                labels = np.where(found_wmh, len(known) - 1, found[:, :-1].argmax(axis=1))
                rows.append(overlaps(labels, numbers[truth], len(known), made.spacing_mm))
                twice_shared_ml += 2 * (found_wmh & true_wmh).sum() * made.spacing_mm / 1000
                summed_ml += (found_wmh.sum() + true_wmh.sum()) * made.spacing_mm / 1000
            means = np.nanmean(rows[-options.scans :], axis=0)
            print_row(
                anatomy.name, options.scans, dict(zip(known[1:], means, strict=True)), classes
            )
        means = dict(zip(known[1:], np.nanmean(rows, axis=0), strict=True))
        print_row(f"mean of {source}", len(rows), means, classes)
        together = dict.fromkeys(known[1:], twice_shared_ml / summed_ml)
        print_row(f"all WMH of {source}", len(rows), together, ("wmh",))


def overlaps(labels: Array, truth: Array, classes: int, spacing_mm: float) -> list[float]:
    row = [dice(prediction=labels == k, reference=truth == k) for k in range(1, classes)]
    if (truth == classes - 1).sum() * spacing_mm / 1000 < LEAST_ML:
        row[-1] = np.nan
    return row


def print_row(name: str, count: int, means: dict[str, float], classes: tuple[str, ...]) -> None:
    cells = [f"{v:.2f}" if c in classes else "" for c, v in means.items()]
    print("|", " | ".join([name, str(count), *cells]), "|", flush=True)


def held_out(folder: Path) -> Iterator[Anatomy]:
    for name in HELD_OUT:
        yield load_head(folder / f"{name}.nii.gz")


def patients(folder: Path) -> Iterator[Anatomy]:
    """Brains of patients at 1 mm, with their own lesions."""
    for home in sorted(path for path in folder.iterdir() if path.is_dir()):
        tissue, lesions, brain = (
            nifti.read(home / f"{name}.nii.gz") for name in ("tissue", "lesions", "brainmask")
        )
        labels, own, mask = (at_1_mm(scan) for scan in (tissue, lesions, brain))
        kinds = np.array([INDEX[k] for k in ("csf", "csf", "cortex", "white")], dtype=np.uint8)
        indices = np.where(mask > 0, kinds[np.rint(labels).astype(int)], 0).astype(np.uint8)
        deep = scipy.ndimage.distance_transform_edt(mask > 0) > 25
        indices[deep & (indices == INDEX["csf"])] = INDEX["ventricle"]
        indices[own > 0] = INDEX["white"]
        yield make_anatomy(home.name, indices, lesions=own > 0)


def at_1_mm(volume: Volume) -> Array:
    """Labels on a grid of 1 mm whose axes run R, A, S."""
    turned = volume.canonical()
    return scipy.ndimage.zoom(turned.data, turned.spacing_mm, order=0)


if __name__ == "__main__":
    main()
