"""How deep caps and rims lie in the template's brain, and what a least depth changes.

    python experiments/rim_depth.py DATA MODEL

DATA holds labelled scans as for `experiments/accuracy.py`; used are those with both masks of a
reader, `lesions` and `lesions_pathological`. MODEL is a folder or the name of a model, preferably
one that was trained without these scans. The first table gives the depth of the reader's caps and
rims; the second the measures of WMH with caps and rims, if pieces of rims that lie less deep are
removed.
"""

import argparse
import math
from pathlib import Path
from unittest import mock

import numpy as np
from accuracy import COLUMNS, HEADER, LESIONS, PATHOLOGICAL, load, pairs, with_rims

from leuko.evaluation.evaluate import compare
from leuko.io import nifti
from leuko.lesions import brain
from leuko.lesions.drawing import draw
from leuko.model.predict import predicted
from leuko.volume import world

DEPTHS_MM = (-math.inf, 5, 8, 12, 16, 20)
PERCENTILES = (1, 2, 5, 10, 50)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    options = parser.parse_args()
    model = load(options.model)
    depths, measures = [], []
    for path in sorted(options.data.glob(f"*/{LESIONS}")):
        if not (path.parent / PATHOLOGICAL).is_file():
            continue
        both, wmh = (
            nifti.read_labels(path.parent / name, values=(0, 1, 2)).canonical()
            for name in (LESIONS, PATHOLOGICAL)
        )
        for scans, pair in pairs(path.parent, model.card, corrected=False):
            prediction = predicted(pair, model)
            label = f"| {path.parent.name} | {scans} |"
            for least_mm in DEPTHS_MM:
                with mock.patch.object(brain, "RIM_DEPTH_MM", least_mm):
                    drawing = draw(prediction, pair, model.card)
                drawn = drawing.masks
                row = compare(both, pair.scan.with_data(with_rims(drawn.mask, drawn)))
                cells = " | ".join(f"{row[column]:.3f}" for column in COLUMNS)
                measures.append(f"{label} {least_mm:g} | {cells} |")
            place = drawing.checked.place
            if place is None:
                continue
            rims = np.argwhere((both.data > 0) & (wmh.data == 0))
            depth_mm = -place.beyond_brain_mm(world(both, rims))
            found = " | ".join(f"{mm:.1f}" for mm in np.percentile(depth_mm, PERCENTILES))
            depths.append(f"{label} {found} |")
    print(f"| subject | scans | {' | '.join(f'{p} %, mm' for p in PERCENTILES)} |")
    print("|---" * (2 + len(PERCENTILES)) + "|")
    print("\n".join(depths))
    print(f"\n| subject | scans | least depth, mm | {HEADER} |")
    print("|---" * (3 + len(COLUMNS)) + "|")
    print("\n".join(measures))


if __name__ == "__main__":
    main()
