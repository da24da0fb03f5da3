"""How far caps and rims reach from the ventricles, and what a limit of that distance changes.

    python experiments/rim_reach.py DATA MODEL

DATA holds labelled scans as for `experiments/accuracy.py`; used are those with both masks of a
reader, `lesions` and `lesions_pathological`. MODEL is a folder or the name of a model, preferably
one that was trained without these scans. The first table gives the distance of the reader's caps
and rims from the ventricles that the model finds; the second the measures of WMH with caps and
rims, if pieces of rims farther from the ventricles than the limit are removed.
"""

import argparse
import math
from pathlib import Path
from unittest import mock

import numpy as np
import scipy.ndimage
from accuracy import COLUMNS, HEADER, LESIONS, PATHOLOGICAL, THREADS, load, pairs, with_rims

from leuko.evaluation.evaluate import compare
from leuko.io import nifti
from leuko.io.provenance import Stopwatch
from leuko.io.tissue import Tissue
from leuko.lesions import delineation
from leuko.lesions.drawing import draw
from leuko.model.predict import predict_pair

LIMITS_MM = (math.inf, 20, 15, 10, 5, 2)
PERCENTILES = (50, 90, 95)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    options = parser.parse_args()
    model = load(options.model)
    distances, measures = [], []
    for path in sorted(options.data.glob(f"*/{LESIONS}")):
        if not (path.parent / PATHOLOGICAL).is_file():
            continue
        both, wmh = (
            nifti.read_labels(path.parent / name, values=(0, 1, 2)).canonical()
            for name in (LESIONS, PATHOLOGICAL)
        )
        for scans, pair in pairs(path.parent, model.card, corrected=False):
            shares = predict_pair(pair, model, Stopwatch())
            label = f"| {path.parent.name} | {scans} |"
            for limit_mm in LIMITS_MM:
                with mock.patch.object(delineation, "RIM_REACH_MM", limit_mm):
                    drawn = draw(shares, pair, model.card, threads=THREADS).masks
                row = compare(both, pair.scan.with_data(with_rims(drawn.mask, drawn)))
                cells = " | ".join(f"{row[column]:.3f}" for column in COLUMNS)
                measures.append(f"{label} {limit_mm:g} | {cells} |")
            ventricle = drawn.anatomy.data == model.card.number(Tissue.VENTRICLE)
            away_mm = scipy.ndimage.distance_transform_edt(~ventricle, pair.scan.spacing_mm)
            rims = (both.data > 0) & (wmh.data == 0)
            reach = " | ".join(f"{mm:.1f}" for mm in np.percentile(away_mm[rims], PERCENTILES))
            distances.append(f"{label} {reach} |")
    print(f"| subject | scans | {' | '.join(f'{p} %, mm' for p in PERCENTILES)} |")
    print("|---" * (2 + len(PERCENTILES)) + "|")
    print("\n".join(distances))
    print(f"\n| subject | scans | limit, mm | {HEADER} |")
    print("|---" * (3 + len(COLUMNS)) + "|")
    print("\n".join(measures))


if __name__ == "__main__":
    main()
