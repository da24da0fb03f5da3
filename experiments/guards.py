"""Findings of the automatic quality checks on real scans, unchanged and with a simulated fault.

    python experiments/guards.py DATA [DATA ...] [--model leuko-base]

DATA: folders with FLAIR and T1. Each pair is checked unchanged, and with these faults: FLAIR and T1
swapped; the T1 alone, given as the FLAIR; CSF made bright, as on T2; the upper half alone; clipped;
motion (a quarter of the lines of k-space, each from another position, about 3 mm and 3 degrees
apart). Prints the findings of each case and the measured quantities that the checks rely on.
"""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.ndimage

from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.tissue import Tissue
from leuko.lesions import quality_checks
from leuko.segment import SegmentSettings, segment
from leuko.volume import Array, Volume

Pair = tuple[Volume, Volume | None]

FLUIDS = (Tissue.CSF, Tissue.VENTRICLE)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--model", default="leuko-base")
    options = parser.parse_args()
    logging.getLogger("leuko").addHandler(logging.NullHandler())
    for home in sorted(path.parent for data in options.data for path in data.glob("*/T1.nii.gz")):
        flair, t1 = (nifti.read(home / f"{name}.nii.gz") for name in ("FLAIR", "T1"))
        plain, tissue = said(flair, t1, options.model)
        print(f"\n{home.name}\n  as it is: {plain}", flush=True)
        if tissue is None:
            continue
        for name, fault in FAULTS.items():
            print(f"  {name}: {said(*fault(flair, t1, tissue), options.model)[0]}", flush=True)


def said(flair: Volume, t1: Volume | None, model: str) -> tuple[str, Array | None]:
    """The findings, or why the scans were refused; and the tissues."""
    try:
        result = segment(flair, t1, settings=SegmentSettings(model=model, rims="exclude"))
    except LeukoError as error:
        return f"REFUSED {error}", None
    if result.maps.tissue is None:
        raise SystemExit("the guards need a model that knows tissues")
    grid = flair.canonical()
    tissue = quality_checks.with_wmh(result.maps.tissue, result.maps.mask.data > 0)
    case = quality_checks.CheckedScan(grid, None, tissue.canonical().data)
    white = case.median(grid.data, Tissue.WHITE)
    fluid = [case.median(grid.data, kind) / white for kind in FLUIDS]
    white_ml = sum(case.ml[kind] for kind in (Tissue.WHITE, Tissue.RIM, Tissue.WMH))
    seen = (
        f"[{case.brain_ml:.0f} mL; white to grey "
        f"{white_ml / case.ml[Tissue.GREY]:.2f}; CSF "
        f"{100 * case.csf_part:.0f} %, "
        f"{max(fluid):.2f} of white] "
    )
    found = [f"{finding.level}: {finding.text}" for finding in result.findings]
    return seen + ("; ".join(found) or "nothing"), tissue.data


def swapped(flair: Volume, t1: Volume, _: Array) -> Pair:
    return t1, flair


def t1_alone(_: Volume, t1: Volume, __: Array) -> Pair:
    return t1, None


def like_t2(flair: Volume, t1: Volume, tissue: Array) -> Pair:
    white = np.median(flair.data[tissue == Tissue.WHITE])
    fluid = scipy.ndimage.gaussian_filter(np.isin(tissue, FLUIDS).astype(np.float32), 0.7)
    return flair.with_data(flair.data * (1 - fluid) + 2.2 * white * fluid), t1


def upper_half(flair: Volume, t1: Volume, _: Array) -> Pair:
    grid = flair.canonical()
    middle = grid.data.shape[2] // 2
    affine = grid.affine.copy()
    affine[:3, 3] += middle * affine[:3, 2]
    return Volume(grid.data[:, :, middle:], affine, name=flair.name), t1


def clipped(flair: Volume, t1: Volume, tissue: Array) -> Pair:
    highest = np.percentile(flair.data[tissue == Tissue.GREY], 80)
    return flair.with_data(np.minimum(flair.data, highest)), t1


def in_motion(flair: Volume, t1: Volume, _: Array) -> Pair:
    rng = np.random.default_rng(0)
    axis = flair.through_plane_axis
    stack = np.moveaxis(flair.data.astype(float), axis, 0)
    shaken = np.empty_like(stack)
    for number, image in enumerate(stack):
        lines = np.fft.fftshift(np.fft.fft2(image))
        turn = np.sort(rng.choice(image.shape[1], 3, replace=False))
        part = np.searchsorted(turn, np.arange(image.shape[1]))
        for k in (1, 2, 3):
            moved = scipy.ndimage.rotate(image, rng.normal(0, 3), reshape=False, order=1)
            moved = scipy.ndimage.shift(moved, rng.normal(0, 3, 2), order=1)
            lines[:, part == k] = np.fft.fftshift(np.fft.fft2(moved))[:, part == k]
        shaken[number] = np.abs(np.fft.ifft2(np.fft.ifftshift(lines)))
    return flair.with_data(np.moveaxis(shaken, 0, axis).astype(np.float32)), t1


FAULTS: dict[str, Callable[[Volume, Volume, Array], Pair]] = {
    "swapped": swapped,
    "T1 alone": t1_alone,
    "bright CSF": like_t2,
    "upper half": upper_half,
    "clipped": clipped,
    "in motion": in_motion,
}


if __name__ == "__main__":
    main()
