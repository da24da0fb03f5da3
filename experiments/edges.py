"""Where readers draw the edges of lesions, between white matter (0) and the lesion (1), by source.

    python experiments/edges.py FOLDER [--model leuko-base]

FOLDER: labelled scans as for real_slices.py. A lesion is a connected component within one slice.
Its white matter is the median of the model's white matter 3 to 7 mm around it; its brightness is
its 90th percentile. Its edge is the mean of the pixels on both sides of the reader's outline, where
the outline borders on white matter. `synthesis.labels.LABELLED_PART` follows from it. Prints the
median over the lesions of each scan, and the means by source.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.ndimage
from base_data import scans, source

from leuko.io.provenance import Stopwatch
from leuko.model import runtime, weights
from leuko.model.predict import predict_pair
from leuko.training.real_slices import NOT_WMH, WMH, Scan, read_scan
from leuko.volume import Array

NEAR_MM, FAR_MM = 3.0, 7.0  # where the white matter around a lesion is measured
LEAST_PIXELS = {"lesion": 10, "white matter": 15, "edge": 6}
LEAST_CONTRAST = 1.08  # the edge of a dimmer lesion is noise
BRIGHT = {"wmh", "rim"}  # classes of white matter that is not measured
AVOIDED = 0.3  # their probability


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=weights.DEFAULT)
    options = parser.parse_args()
    model = runtime.load(weights.find(options.model))
    medians: dict[str, list[float]] = {}
    print("| scan | lesions | edge, median | quartiles |")
    print("|---" * 4 + "|")
    for item in scans(options.folder):
        scan = read_scan(item)
        found = list(scan_edges(scan, model)) if (scan.labels == WMH).any() else []
        if not found:
            continue
        low, middle, high = np.percentile(found, [25, 50, 75])
        medians.setdefault(source(scan.name), []).append(float(middle))
        print(
            f"| {scan.name} | {len(found)} | {middle:.2f} | {low:.2f} to {high:.2f} |", flush=True
        )
    for name, values in medians.items():
        print(f"| mean of {name} | {len(values)} scans | {np.mean(values):.2f} | |")


def scan_edges(scan: Scan, model: runtime.Model) -> Iterator[float]:
    """The edges of all lesions of a scan, slice by slice."""
    grid = scan.flair.canonical()
    found = predict_pair(scan.pair, model, Stopwatch())
    shares = {
        name: scan.flair.with_data(share).canonical().data
        for name, share in zip(model.card.classes, found, strict=True)
    }
    white = np.argmax([s for n, s in shares.items() if n not in BRIGHT], axis=0)
    white = white == [n for n in shares if n not in BRIGHT].index("white")
    white &= scan.labels == NOT_WMH
    for name in BRIGHT & shares.keys():
        white &= shares[name] <= AVOIDED
    across = grid.through_plane_axis
    stacks = [np.moveaxis(array, across, 0) for array in (grid.data, scan.labels == WMH, white)]
    for flair, mask, beside in zip(*stacks, strict=True):
        yield from edges(flair, mask, beside, np.delete(grid.spacing_mm, across))


def edges(flair: Array, mask: Array, white: Array, spacing_mm: Array) -> Iterator[float]:
    """The median edge of each lesion of a slice (H, W) that is large and bright enough.

    `white` is the white matter that is no lesion.
    """
    pieces, count = scipy.ndimage.label(mask, np.ones((3, 3)))
    for piece in range(1, count + 1):
        lesion = pieces == piece
        if lesion.sum() < LEAST_PIXELS["lesion"]:
            continue
        distance_mm = scipy.ndimage.distance_transform_edt(~lesion, sampling=spacing_mm)
        around = white & (distance_mm > NEAR_MM) & (distance_mm < FAR_MM)
        if around.sum() < LEAST_PIXELS["white matter"]:
            continue
        level, bright = np.median(flair[around]), np.percentile(flair[lesion], 90)
        values = np.concatenate(
            [
                (flair[lesion & other_side] + np.roll(flair, -step, axis)[lesion & other_side]) / 2
                for axis in (0, 1)
                for step in (1, -1)
                for other_side in [np.roll(white, -step, axis)]
            ]
        )
        if bright >= LEAST_CONTRAST * level and len(values) >= LEAST_PIXELS["edge"]:
            yield float((np.median(values) - level) / (bright - level))


if __name__ == "__main__":
    main()
