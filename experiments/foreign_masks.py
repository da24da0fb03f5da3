"""Whether a mask belongs to a scan: readers' masks on their own FLAIR, and on those of others.

    python experiments/foreign_masks.py DATA

DATA: as for accuracy.py. Each reader's mask is put on its own FLAIR, and on the FLAIR of every
other person: as its header places it, and moved so that both brains have the same place in the
template. Prints the ranges of two measures: the part of the mask's volume in lesions outside the
brain, and the part of its voxels that is at least 1.1 times as bright as the white matter around.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from accuracy import THREADS
from base_data import person
from base_data import scans as labelled_scans

from leuko.io import nifti
from leuko.lesions.brain import find_outside
from leuko.lesions.delineation import Delineation, delineate
from leuko.lesions.drawing import Checked, check
from leuko.lesions.given_mask import brighter_part
from leuko.model import runtime, weights
from leuko.model.predict import predicted
from leuko.model.runtime import Model
from leuko.preprocessing.slices import Pair
from leuko.training.material import Item
from leuko.volume import Array, Volume, resample_onto


@dataclass(frozen=True, eq=False)
class Case:
    """One scan with its tissues and its reader's mask, axes in RAS order."""

    name: str
    flair: Volume
    mask: Volume
    drawn: Delineation
    checked: Checked


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    folder = parser.parse_args().data
    model = runtime.load_model(weights.DEFAULT, threads=THREADS)
    cases = [case for item in labelled_scans(folder) for case in opened(item, model)]
    own = [measures(case, case.mask) for case in cases]
    others = [
        (one, other) for one in cases for other in cases if person(one.name) != person(other.name)
    ]
    by_header = [measures(other, resample_onto(one.mask, other.flair)) for one, other in others]
    by_brain = [measures(other, moved(one, other)) for one, other in others]
    print("| masks | n | outside the brain, % | brighter than white matter, % |\n|---|---|---|---|")
    rows = {"own": own, "of others, by header": by_header, "of others, brain on brain": by_brain}
    for name, values in rows.items():
        print(f"| {name} | {len(values)} | {' | '.join(ranges(values))} |")


def opened(item: Item, model: Model) -> Iterator[Case]:
    reader = item.files.get("pathological", item.files.get("lesions"))
    if reader is None:
        return
    flair = nifti.read(item.files["flair"]).canonical()
    pair = Pair.of(flair, None, model.card.preparation)
    drawn = delineate(predicted(pair, model), pair.scan, model.card)
    mask = nifti.read_mask(reader).canonical()
    yield Case(item.name, flair, mask, drawn, check(drawn, pair, model.card, flair=flair))


def moved(one: Case, other: Case) -> Volume:
    """The mask of one person with its brain where that of the other is."""
    first, second = one.checked.place, other.checked.place
    assert first is not None
    assert second is not None
    affine = np.linalg.inv(second.to_mni) @ first.to_mni @ one.mask.affine
    return resample_onto(replace(one.mask, affine=affine), other.flair)


def measures(case: Case, given: Volume) -> tuple[float, float]:
    mask: Array = given.data >= 0.5
    assert case.checked.brain is not None
    outside = find_outside(mask, case.checked.brain, case.checked.place, case.flair)
    bright = brighter_part(mask, case.drawn, case.flair)
    return outside.voxels.sum() / max(mask.sum(), 1), bright


def ranges(values: list[tuple[float, float]]) -> Iterator[str]:
    for column in np.array(values).T * 100:
        known = column[~np.isnan(column)]  # nan: no voxel of the mask lies on the FLAIR
        low, quarter, middle, three, high = np.percentile(known, [0, 25, 50, 75, 100])
        yield f"{low:.0f} to {high:.0f}, median {middle:.0f}, quartiles {quarter:.0f}, {three:.0f}"


if __name__ == "__main__":
    main()
