"""Converts a FLAIR and a T1 to the network's colour slices; `Placement` is the inverse.

The colours follow Xu et al. 2017: red is the area-opening residue of FLAIR, green is FLAIR, blue
is T1, 8 bit each. Xu et al., ICIP 2017, use three successive slices of one modality instead.
`Preparation` holds the parameters that these papers do not give.
"""

import logging
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self, get_args

import diplib
import numpy as np
import scipy.ndimage
import scipy.sparse

from leuko.errors import LeukoError
from leuko.io.background import without_background
from leuko.volume import LARGEST_VOXELS, Array, Volume, coverage, resample_onto

log = logging.getLogger(__name__)

Channels = Literal["flair-t1-residue", "flair-3-slices", "t1-3-slices"]


@dataclass(frozen=True)
class Preparation:
    """Settings for converting scans to slices; each model card holds those of its training."""

    channels: Channels = "flair-t1-residue"
    # A common in-plane spacing.
    pixel_mm: float = 1.0
    # 8 bits hold up to 2.5 times the tissue's grey value, enough for lesions. A scale set by the
    # brightest voxels would depend on scalp fat.
    tissue_grey: int = 100
    # Structures up to this area stay in the residue. The paper's smaller area removes large lesions
    # from the residue; see experiments/README.md.
    opening_mm2: float = 1000.0
    # Whether the model was also trained without T1, with that channel set to 0.
    t1_optional: bool = False

    def __post_init__(self) -> None:
        numbers = (self.pixel_mm, self.tissue_grey, self.opening_mm2)
        if self.channels not in get_args(Channels) or not all(number > 0 for number in numbers):
            raise ValueError(f"invalid preparation: {self}")

    @property
    def uses_t1(self) -> bool:
        return self.channels != "flair-3-slices"

    @property
    def needs_t1(self) -> bool:
        return self.uses_t1 and not self.t1_optional


# The network's four poolings halve the slice four times.
MULTIPLE = 16
# Air and noise are below this fraction of the tissue's grey value.
HEAD_PART_OF_TISSUE = 0.25
# Fractions of the FLAIR's head that the T1 covers: below the first it is refused as the wrong T1,
# below the second a warning is logged.
SMALLEST_COVERAGE, WHOLE_COVERAGE = 0.5, 0.985
# Histogram of log grey values: smoothing by 5 % exceeds its noise and keeps grey and white matter
# apart.
LOG_BIN, LOG_SMOOTHING = 0.01, 0.05
# Pixel sizes within 0.5 % count as equal: resampling would only blur.
SAME_PIXEL = 0.005
# A mask, not a scan: at most FEWEST_BETWEEN of its bright voxels differ by more than ONE_VALUE from
# the brightest (both are fractions).
ONE_VALUE, FEWEST_BETWEEN = 1e-3, 0.01


def prepare(
    flair: Volume, t1: Volume | None, preparation: Preparation
) -> tuple[Array, "Placement"]:
    """Colour slices (N, H, W, 3), uint8, and the placement that maps results back to the scan.

    The N slices are those of the FLAIR; H and W are multiples of 16 that hold the head at
    `pixel_mm`; 0 beyond the scan. `t1` may have another grid; it is resampled onto the FLAIR's.

    Raises LeukoError if the channels need a T1 and it is missing, is the FLAIR itself, or does not
    cover the head.
    """
    return Pair.of(flair, t1, preparation).slices()


@dataclass(frozen=True, eq=False)
class Pair:
    """A FLAIR and its T1 in 8 bit on one grid, to be sliced across any axis."""

    scan: Volume  # the FLAIR as it was stored
    flair: Array  # uint8 (X, Y, Z), axes running R, A, S
    t1: Array  # uint8 (X, Y, Z), on the same grid; 0 without a T1
    preparation: Preparation

    @classmethod
    def of(cls, flair: Volume, t1: Volume | None, preparation: Preparation) -> Self:
        """Raises LeukoError as `prepare` does."""
        if preparation.needs_t1 and t1 is None:
            raise LeukoError(
                f"this model needs a T1 (its channels are {preparation.channels}); none was given: "
                "give one with --t1"
            )
        grey = flair.with_data(requantise(flair, preparation.tissue_grey)).canonical()
        t1_grey = np.zeros_like(grey.data)
        if t1 is not None and not preparation.uses_t1:
            log.warning("the model uses only the FLAIR: %s is not used", t1.name)
        elif t1 is not None:
            t1_grey = _matched_t1(grey, t1, preparation)
        return cls(flair, grey.data, t1_grey, preparation)

    @cached_property
    def given_t1(self) -> Array | None:
        """The T1; None without one."""
        return self.t1 if self.t1.any() else None

    def slices(self, across: int | None = None) -> tuple[Array, "Placement"]:
        """As `prepare`, perpendicular to a RAS axis; by default the FLAIR's through-plane axis."""
        preparation = self.preparation
        placement = place(
            self.scan, _head(self.flair, preparation), preparation.pixel_mm, across=across
        )
        flair, t1 = (placement.slices(grey) for grey in (self.flair, self.t1))
        match preparation.channels:
            case "flair-t1-residue":
                pixel_mm2 = placement.pixel_mm[0] * placement.pixel_mm[1]
                residue = area_residue(flair, round(preparation.opening_mm2 / pixel_mm2))
                return np.stack([residue, flair, t1], axis=-1), placement
            case "flair-3-slices":
                return _with_neighbours(flair), placement
            case "t1-3-slices":
                return _with_neighbours(t1), placement


def centred(slices: Array) -> Array:
    """8-bit slices minus 127, float32: the network's input."""
    return slices.astype(np.float32) - 127


def requantise(volume: Volume, tissue_grey: int) -> Array:
    """The volume as uint8, scaled so that tissue has the grey value `tissue_grey`.

    Background and negative voxels (resampling artefacts) become 0; values are clipped at 255.
    Raises LeukoError as `without_background` and `tissue_level` do.
    """
    scan = without_background(volume)
    scaled = scan.data * (tissue_grey / _tissue_level(scan))
    np.clip(scaled, 0, 255, out=scaled)  # in place: a whole head at 1 mm is 100 MB in float64
    return np.rint(scaled, out=scaled).astype(np.uint8)


def tissue_level(volume: Volume) -> float:
    """The grey value of brain tissue, in the volume's own units.

    It is the peak of the histogram of log grey values, each voxel weighted by its grey value. The
    logarithm makes it independent of the scanner's scale, and the weight suppresses noisy air; fat
    is too spread out to form a peak. It holds for whole heads and extracted brains.

    Raises LeukoError as `without_background` does, and for an image of one grey value.
    """
    return _tissue_level(without_background(volume))


def _tissue_level(scan: Volume) -> float:
    """As `tissue_level`, for a scan whose background is 0."""
    data = scan.data
    positive = data[data > 0]
    bright = float(np.percentile(positive, 99)) if len(positive) else 0.0
    head = positive[positive > bright / 4]
    if np.count_nonzero(head < (1 - ONE_VALUE) * bright) <= FEWEST_BETWEEN * len(head):
        raise LeukoError(
            f"{scan.name} has at most one grey value besides its background; expected a scan: "
            "check that it is not a mask"
        )
    positive = positive[positive < data.max()]  # the maximum may be a clipped peak
    top = math.log(float(np.percentile(positive, 99)))
    counts, edges = np.histogram(np.log(positive), round(3.3 / LOG_BIN), (top - 3, top + 0.3))
    signal = scipy.ndimage.gaussian_filter1d(counts * np.exp(edges[:-1]), LOG_SMOOTHING / LOG_BIN)
    return math.exp(edges[int(np.argmax(signal))] + LOG_BIN / 2)


def area_residue(slices: Array, pixels: int) -> Array:
    """Area-opening residue of each slice (N, H, W), uint8: the slice minus its area opening.

    The opening (Vincent 1993) removes bright 8-connected structures smaller than `pixels`; the
    residue holds only those structures, as their height above their surroundings.
    """
    opened = [
        np.asarray(diplib.AreaOpening(image, filterSize=pixels, connectivity=2)) for image in slices
    ]
    residue: Array = slices - np.stack(opened)
    return residue


@dataclass(frozen=True)
class Line:
    """Positions of the model's pixels along one in-plane axis of the scan.

    The centre of model pixel k is at voxel `start + k * step`.
    """

    voxels: int
    pixels: int
    start: float
    step: float

    def to_model(self, array: Array, axis: int) -> Array:
        """The array with one axis resampled from the scan's voxels to the model's pixels."""
        if self.step == 1:
            return _window(array, axis, int(self.start), self.pixels)
        positions = self.start + self.step * np.arange(self.pixels)
        return _along(_interpolation(positions, self.voxels, max(1.0, self.step)), array, axis)

    def to_scan(self, array: Array, axis: int) -> Array:
        """The array with one axis resampled from the model's pixels to the scan's voxels."""
        if self.step == 1:
            return _window(array, axis, -int(self.start), self.voxels)
        positions = (np.arange(self.voxels) - self.start) / self.step
        return _along(_interpolation(positions, self.pixels, max(1.0, 1 / self.step)), array, axis)


@dataclass(frozen=True, eq=False)
class Placement:
    """The model's grid in a scan: converts arrays on the scan's grid to slices, and back.

    `across` is the RAS axis perpendicular to the slices; `rows` and `columns` are the other two.
    `pixel_mm` is the model's pixel size along rows and columns.
    """

    scan: Volume
    across: int
    rows: Line
    columns: Line
    pixel_mm: tuple[float, float]

    def slices(self, canonical: Array) -> Array:
        """Slices (N, H, W) of an array in RAS order, in its data type; integers are rounded.

        0 outside the scan.
        """
        stack = np.moveaxis(canonical, self.across, 0)
        moved = self.columns.to_model(self.rows.to_model(stack, 1), 2)
        if np.issubdtype(canonical.dtype, np.integer):
            moved = np.rint(moved)
        return moved.astype(canonical.dtype)

    def to_scan(self, slices: Array) -> Array:
        """Slices (..., H, W) on the scan's pixels along rows and columns, float32; 0 outside them.

        If the model's pixels are the scan's, values are restored exactly.
        """
        return self.columns.to_scan(self.rows.to_scan(slices, -2), -1)


def place(flair: Volume, head: Array, pixel_mm: float, *, across: int | None = None) -> Placement:
    """The model's grid over the bounding box of `head`, a mask in RAS order on the grid of `flair`.

    Raises LeukoError if that grid has more pixels than a head needs.
    """
    grid = flair.canonical()
    across = grid.through_plane_axis if across is None else across
    axes = [axis for axis in range(3) if axis != across]
    lines = []
    for axis in axes:
        profile = head.sum(axis=tuple(k for k in range(3) if k != axis))
        inside = np.flatnonzero(profile > 0.002 * profile.max())  # excludes specks of noise
        low, high = int(inside[0]), int(inside[-1]) + 1
        lines.append(_line(head.shape[axis], low, high, pixel_mm / grid.spacing_mm[axis]))
    pixels = head.shape[across] * lines[0].pixels * lines[1].pixels
    if pixels > LARGEST_VOXELS:
        raise LeukoError(
            f"{flair.name} needs {pixels / 1e6:.0f} million pixels of {pixel_mm:g} mm (limit "
            f"{LARGEST_VOXELS / 1e6:.0f} million); expected a head: correct its voxel sizes"
        )
    rows_mm, columns_mm = (
        line.step * grid.spacing_mm[axis] for line, axis in zip(lines, axes, strict=True)
    )
    return Placement(flair, across, lines[0], lines[1], (rows_mm, columns_mm))


def _line(voxels: int, low: int, high: int, step: float) -> Line:
    """The model's grid over voxels `low` to `high` (exclusive), centred on them."""
    if abs(step - 1) < SAME_PIXEL:
        step = 1.0
    pixels = math.ceil((high - low) / step / MULTIPLE) * MULTIPLE
    start = (low + high - 1) / 2 - step * (pixels - 1) / 2
    return Line(voxels, pixels, math.floor(start) if step == 1 else start, step)


def _interpolation(positions: Array, samples: int, width: float) -> scipy.sparse.csr_array:
    """Sparse weights (positions, samples) of linear interpolation; 0 beyond the outermost samples.

    `width` above 1 widens the triangular kernel to that many samples, so that none is skipped when
    positions are farther apart than samples. Sums have a fixed order, so that the number of threads
    does not change a result.
    """
    reach = math.ceil(width)
    neighbours = np.floor(positions)[:, None] + np.arange(1 - reach, reach + 1)
    weights = np.maximum(0, 1 - np.abs(neighbours - positions[:, None]) / width)
    inside = (positions >= -0.5) & (positions <= samples - 0.5)
    weights[(neighbours < 0) | (neighbours >= samples) | ~inside[:, None]] = 0
    sums = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, sums, out=weights, where=sums > 0)
    row, k = np.nonzero(weights)
    return scipy.sparse.csr_array(
        (weights[row, k].astype(np.float32), (row, neighbours[row, k].astype(int))),
        shape=(len(positions), samples),
    )


def _window(array: Array, axis: int, start: int, length: int) -> Array:
    """`length` entries of one axis of an array from index `start`; 0 outside the array."""
    low, high = max(0, start), min(array.shape[axis], start + length)
    shape = list(array.shape)
    shape[axis] = length
    window = np.zeros(shape, dtype=array.dtype)
    if low < high:
        source, target = ([slice(None)] * array.ndim for _ in range(2))
        source[axis], target[axis] = slice(low, high), slice(low - start, high - start)
        window[tuple(target)] = array[tuple(source)]
    return window


def _along(matrix: scipy.sparse.csr_array, array: Array, axis: int) -> Array:
    """`matrix` (m, n) applied along one axis, of length n, of an array."""
    front = np.moveaxis(array, axis, 0).astype(np.float32)
    product = matrix @ front.reshape(len(front), -1)
    return np.moveaxis(product.reshape(-1, *front.shape[1:]), 0, axis)


def _with_neighbours(slices: Array) -> Array:
    """Slices n-1, n, n+1 as colours (N, H, W, 3); end slices are repeated."""
    padded = np.pad(slices, ((1, 1), (0, 0), (0, 0)), mode="edge")
    return np.stack([padded[:-2], padded[1:-1], padded[2:]], axis=-1)


def _head(flair: Array, preparation: Preparation) -> Array:
    """Mask, bool, of the voxels of an 8-bit FLAIR that are brighter than air and noise."""
    head: Array = flair > HEAD_PART_OF_TISSUE * preparation.tissue_grey
    return head


def _matched_t1(flair: Volume, t1: Volume, preparation: Preparation) -> Array:
    """The T1, uint8, on the grid of the FLAIR, which is uint8 in RAS order."""
    moving = t1.canonical()
    grey = moving.with_data(requantise(moving, preparation.tissue_grey))
    if moving.shares_grid_with(flair) and _differ_by_rounding(grey.data, flair.data):
        raise LeukoError(f"{flair.name} and {t1.name} hold the same image; give a FLAIR and a T1")
    covered = coverage(flair.with_data(_head(flair.data, preparation)), moving)
    if covered < SMALLEST_COVERAGE:
        raise LeukoError(
            f"{t1.name} covers {covered:.0%} of the head in {flair.name} (at least "
            f"{SMALLEST_COVERAGE:.0%} needed); check that they show the same brain"
        )
    if covered < WHOLE_COVERAGE:
        log.warning(
            "%s covers only %.0f %% of the head in %s; elsewhere only the FLAIR is used",
            t1.name,
            100 * covered,
            flair.name,
        )
    return np.rint(resample_onto(grey, flair).data).astype(np.uint8)


def _differ_by_rounding(first: Array, second: Array) -> bool:
    """Whether two 8-bit images differ by at most one grey level in every voxel."""
    return bool((np.maximum(first, second) - np.minimum(first, second)).max() <= 1)
