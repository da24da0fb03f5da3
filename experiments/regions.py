"""Accuracy of volumes by region: from a model's tissues, against the true labels.

    python experiments/regions.py HEADS MODEL [--scans 8]

HEADS: as for synthetic_validation.py; each held-out head is made into scans of random geometry and
contrast. The lesions are the true ones in both cases; only the ventricles, the cortex and the brain
come from the model. Prints the error in % of the true volume: of the intracranial volume, and of
the periventricular and deep volumes by each rule.
"""

import argparse
from pathlib import Path

import numpy as np
from synthetic_validation import held_out

from leuko.io.tissue import Tissue
from leuko.lesions import quality_checks
from leuko.lesions.location import RULES
from leuko.lesions.measure import MaskedScan, analyse
from leuko.lesions.mni import Place
from leuko.model import runtime, weights
from leuko.model.predict import predicted
from leuko.preprocessing.slices import Pair
from leuko.synthesis.images import synthesise
from leuko.synthesis.sampling import choose
from leuko.volume import Array, Volume

LEAST_ML = 1.0  # of a region: a percentage of less says little


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path)
    parser.add_argument("model")
    parser.add_argument("--scans", type=int, default=8)
    options = parser.parse_args()
    model = runtime.load(weights.find(options.model))
    errors: dict[str, list[tuple[float, float]]] = {}
    for number, anatomy in enumerate(held_out(options.heads)):
        for scan in range(options.scans):
            choice = choose(anatomy, np.random.default_rng([5, number, scan]), every_mm=0)
            made = synthesise(anatomy, [5, number, scan], choice=choice, size=(208, 224)).volumes()
            truth = made["tissue"].canonical()
            truth = truth.with_data(np.where(truth.data == Tissue.RIM, Tissue.WHITE, truth.data))
            pair = Pair.of(made["FLAIR"], made.get("T1"), model.card.preparation)
            drawn = made["wmh"].data > 0
            tissues = predicted(pair, model).anatomy
            seen = quality_checks.with_wmh(tissues, drawn).canonical()
            mask = truth.data == Tissue.WMH
            for rule in RULES:
                true, found = (
                    analyse(
                        a_case(tissue, mask),
                        place=Place.of(tissue),
                        rule=rule,
                        threads=2,
                    )
                    for tissue in (truth, seen)
                )
                if rule == "voxel10":
                    assert found.intracranial_ml is not None
                    assert true.intracranial_ml is not None
                    note(errors, "intracranial", found.intracranial_ml, true.intracranial_ml)
                for part in ("periventricular_ml", "deep_ml"):
                    ours, theirs = getattr(found.regions, part), getattr(true.regions, part)
                    note(errors, f"{rule}, {part.removesuffix('_ml')}", ours, theirs)
            print(f"{anatomy.name} {scan}", flush=True)
    print("| volume | scans | together, % | median, % | worst, % | within 3 % | within 5 % |")
    print("|---|---|---|---|---|---|---|")
    for name, rows in errors.items():
        found_ml, true_ml = np.array(rows).T
        off = 100 * np.abs(found_ml / true_ml - 1)
        together = 100 * (found_ml.sum() / true_ml.sum() - 1)
        print(
            f"| {name} | {len(off)} | {together:+.1f} | {np.median(off):.1f} | {off.max():.1f} | "
            f"{(off <= 3).sum()} | {(off <= 5).sum()} |"
        )


def a_case(tissue: Volume, mask: Array) -> MaskedScan:
    nothing = np.zeros(mask.shape, dtype=np.float32)
    return MaskedScan(tissue.with_data(nothing), None, tissue, nothing, mask, mask)


def note(
    errors: dict[str, list[tuple[float, float]]], name: str, found_ml: float, true_ml: float
) -> None:
    if true_ml >= LEAST_ML:
        errors.setdefault(name, []).append((found_ml, true_ml))


if __name__ == "__main__":
    main()
