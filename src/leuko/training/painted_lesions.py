"""Simulated small, faint lesions in the white matter of real slices."""

import math
from dataclasses import dataclass

import numpy as np
import scipy.ndimage

from leuko.io.tissue import Tissue
from leuko.lesions.delineation import NORMAL_RIM, NORMAL_WMH
from leuko.model import runtime
from leuko.preprocessing.slices import area_residue
from leuko.synthesis.labels import LABELLED_PART
from leuko.synthesis.ranges import Range
from leuko.training.real_slices import NOT_WMH, PREPARATION, WMH, RealSlices
from leuko.volume import Array

SEED = 11  # of all painted lesions: they do not depend on the run


@dataclass(frozen=True)
class SpotSettings:
    """Ranges of painted lesions: small and faint, as models miss them in vascular disease.

    Grey values are relative to white matter (1). Pixels are 1 mm.
    """

    lesion_distance_px: int = 4  # from labelled lesions
    least_white_px: int = 150  # white matter of a slice that gets any
    mean_count: float = 2.5  # of further lesions beside the first, exponentially distributed
    semi_axis_mm: Range = Range(1.0, 4.0)  # the longer one
    axis_log_sd: float = 0.3  # of the shorter semi-axis, relative to the longer one
    height: Range = Range(0.24, 0.9)  # of the FLAIR above white matter
    edge_mm: float = 0.7  # over which a spot falls from its height to 0
    unevenness: float = 0.75  # of smooth noise, as part of the height
    unevenness_px: float = 1.5
    highest: float = 1.2  # limit of an uneven spot, as part of its height
    blur_px: Range = Range(0.5, 1.1)
    t1_darkening: Range = Range(0, 0.35)  # of the T1, per excess of the FLAIR
    # Readers label spots of this height and size, see `reader_labels`.
    labelled_height: float = 0.2
    labelled_px: int = 3


SPOTS = SpotSettings()


def painted(slices: RealSlices, model: runtime.Model) -> RealSlices:
    """Copies of the slices with small, faint lesions painted into their white matter.

    `model` segments the white matter. Slices without a visible painted lesion are dropped. Rims are
    unknown in the result, since a painted lesion may cover a rim.
    """
    rng = np.random.default_rng(SEED)
    images, labels, chosen = slices.images.copy(), slices.labels.copy(), []
    for number, image in enumerate(images):
        shares = dict(zip(model.card.classes, model.predict(image[None])[0], strict=True))
        labels_there = labels[number]
        near = scipy.ndimage.binary_dilation(labels_there, iterations=SPOTS.lesion_distance_px)
        free = white_matter(shares) & ~near
        centres = np.argwhere(scipy.ndimage.binary_erosion(free))
        if len(centres) < SPOTS.least_white_px:
            continue
        white = float(np.median(image[..., 1][white_matter(shares)]))
        excess = free * random_spots(free.shape, centres, rng)
        new = reader_labels(excess)
        if not new.any():
            continue
        image[..., 1] = np.rint(np.clip(image[..., 1] + white * excess, 0, 255))
        image[..., 2] = np.rint(image[..., 2] * (1 - SPOTS.t1_darkening.draw(rng) * excess))
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

    `centres` (N, 2) are the candidates.
    """
    rows, columns = np.indices(shape)
    excess = np.zeros(shape)
    count = 1 + int(rng.exponential(SPOTS.mean_count))
    for centre in centres[rng.integers(len(centres), size=count)]:
        long = SPOTS.semi_axis_mm.draw_log(rng)
        short = long * math.exp(-abs(rng.normal(0, SPOTS.axis_log_sd)))
        turn = rng.uniform(0, math.pi)
        y, x = (
            grid - at + rng.uniform(-0.5, 0.5)
            for grid, at in zip((rows, columns), centre, strict=True)
        )
        radius = np.hypot(
            (y * math.cos(turn) + x * math.sin(turn)) / long,
            (x * math.cos(turn) - y * math.sin(turn)) / short,
        )
        noise = scipy.ndimage.gaussian_filter(rng.normal(size=shape), SPOTS.unevenness_px)
        spot = np.clip((1 - radius) * short / SPOTS.edge_mm + 0.5, 0, 1)
        spot = spot * (1 + SPOTS.unevenness * noise)
        spot = scipy.ndimage.gaussian_filter(spot, SPOTS.blur_px.draw(rng))
        height = SPOTS.height.draw_log(rng)
        excess = np.maximum(excess, height * np.clip(spot, 0, SPOTS.highest))
    return excess


def reader_labels(excess: Array) -> Array:
    """The lesions that a reader would delineate, as a mask (H, W).

    `excess` (H, W) is the brightness above white matter, in units of white matter. Each spot is
    labelled down to `LABELLED_PART` of its peak, where readers draw edges. Spots with a peak below
    `labelled_height` or with fewer than `labelled_px` labelled pixels are not labelled.
    """
    pieces, count = scipy.ndimage.label(excess > 0.01, np.ones((3, 3)))
    labels = np.zeros(excess.shape, dtype=bool)
    for piece in range(1, count + 1):
        inside = pieces == piece
        top = excess[inside].max()
        spot = inside & (excess >= LABELLED_PART * top)
        if top >= SPOTS.labelled_height and spot.sum() >= SPOTS.labelled_px:
            labels |= spot
    return labels
