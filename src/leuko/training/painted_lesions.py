"""Simulated small, faint lesions in the white matter of real slices."""

import math

import numpy as np
import scipy.ndimage

from leuko.io.tissue import Tissue
from leuko.lesions.delineation import NORMAL_RIM, NORMAL_WMH
from leuko.model import runtime
from leuko.preprocessing.slices import area_residue
from leuko.synthesis.labels import LABELLED_PART
from leuko.training.real_slices import NOT_WMH, PREPARATION, WMH, RealSlices
from leuko.volume import Array


def painted(slices: RealSlices, model: runtime.Model) -> RealSlices:
    """Copies of the slices with small, faint lesions painted into their white matter.

    `model` segments the white matter. Slices without a visible painted lesion are dropped. Rims are
    unknown in the result, since a painted lesion may cover a rim.
    """
    rng = np.random.default_rng(11)
    images, labels, chosen = slices.images.copy(), slices.labels.copy(), []
    for number, image in enumerate(images):
        shares = dict(zip(model.card.classes, model.predict(image[None])[0], strict=True))
        labels_there = labels[number]
        free = white_matter(shares) & ~scipy.ndimage.binary_dilation(labels_there, iterations=4)
        centres = np.argwhere(scipy.ndimage.binary_erosion(free))
        if len(centres) < 150:  # too little white matter
            continue
        white = float(np.median(image[..., 1][white_matter(shares)]))
        excess = free * random_spots(free.shape, centres, rng)
        new = reader_labels(excess)
        if not new.any():
            continue
        image[..., 1] = np.rint(np.clip(image[..., 1] + white * excess, 0, 255))
        image[..., 2] = np.rint(image[..., 2] * (1 - rng.uniform(0, 0.35) * excess))
        image[..., 0] = area_residue(image[None, ..., 1], round(PREPARATION.opening_mm2))[0]
        labels_there[new & (labels_there == NOT_WMH)] = WMH
        chosen.append(number)
    kept = np.array(chosen, dtype=int)
    unknown = np.zeros(len(kept), dtype=bool)
    return RealSlices(images[kept], labels[kept], slices.sagittal[kept], unknown, slices.scan[kept])


def white_matter(shares: dict[str, Array]) -> Array:
    """The mask (H, W) of confident white matter, from the class probabilities, each (H, W)."""
    white, rim, wmh = (kind.label for kind in (Tissue.WHITE, Tissue.RIM, Tissue.WMH))
    others = [share for name, share in shares.items() if name not in (white, rim, wmh)]
    normal: Array = (shares[white] > np.max(others, axis=0)) & (shares[wmh] < NORMAL_WMH)
    return normal & (shares[rim] < NORMAL_RIM) if rim in shares else normal


def random_spots(shape: tuple[int, ...], centres: Array, rng: np.random.Generator) -> Array:
    """The excess brightness (H, W) of a few soft ellipses, relative to white matter (1).

    The longer semi-axis is 1 to 4 pixels (mm). `centres` (N, 2) are the candidates.
    """
    rows, columns = np.indices(shape)
    excess = np.zeros(shape)
    for centre in centres[rng.integers(len(centres), size=1 + int(rng.exponential(2.5)))]:
        long = math.exp(rng.uniform(math.log(1.0), math.log(4.0)))
        short = long * math.exp(-abs(rng.normal(0, 0.3)))
        turn = rng.uniform(0, math.pi)
        y, x = (
            grid - at + rng.uniform(-0.5, 0.5)
            for grid, at in zip((rows, columns), centre, strict=True)
        )
        radius = np.hypot(
            (y * math.cos(turn) + x * math.sin(turn)) / long,
            (x * math.cos(turn) - y * math.sin(turn)) / short,
        )
        uneven = 1 + 0.75 * scipy.ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
        spot = np.clip((1 - radius) * short / 0.7 + 0.5, 0, 1) * uneven
        spot = scipy.ndimage.gaussian_filter(spot, rng.uniform(0.5, 1.1))
        height = math.exp(rng.uniform(math.log(0.24), math.log(0.9)))
        excess = np.maximum(excess, height * np.clip(spot, 0, 1.2))
    return excess


def reader_labels(excess: Array) -> Array:
    """The lesions that a reader would delineate, as a mask (H, W).

    `excess` (H, W) is the brightness above white matter, in units of white matter. Each spot is
    labelled down to `LABELLED_PART` of its peak, where readers draw edges. Spots with a peak below
    0.2 or with fewer than 3 labelled pixels are not labelled.
    """
    pieces, count = scipy.ndimage.label(excess > 0.01, np.ones((3, 3)))
    labels = np.zeros(excess.shape, dtype=bool)
    for piece in range(1, count + 1):
        inside = pieces == piece
        top = excess[inside].max()
        spot = inside & (excess >= LABELLED_PART * top)
        if top >= 0.2 and spot.sum() >= 3:
            labels |= spot
    return labels
