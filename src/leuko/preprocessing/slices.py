"""Two volumes become the colour slices that the network sees, and `Placement` undoes it.

The colour image is that of Xu et al. 2017: red is the area-opening residue of FLAIR, green is
FLAIR, blue is T1, 8 bit each. The recipe of Xu et al., ICIP 2017, takes three successive slices
of one modality instead. What those papers leave open is a field of `Preparation`.
"""

import logging
import math
from dataclasses import dataclass
from typing import Literal, Self, get_args

import diplib
import numpy as np
import scipy.ndimage
import scipy.sparse

from leuko.errors import LeukoError
from leuko.io.background import without_background
from leuko.volume import LARGEST_VOXELS, Array, Orientation, Volume, coverage, resample_onto

log = logging.getLogger(__name__)

Channels = Literal["flair-t1-residue", "flair-3-slices", "t1-3-slices"]


@dataclass(frozen=True)
class Preparation:
    """How scans become slices. A model carries its own, so that use repeats training."""

    channels: Channels = "flair-t1-residue"
    # A common spacing in plane.
    pixel_mm: float = 1.0
    # Two and a half times the tissue still fits 8 bit, which leaves room for lesions. A scale set
    # by the brightest voxels would depend on the fat of the scalp.
    tissue_grey: int = 100
    # Structures up to this area stay in the residue. So large an area departs from the paper, in
    # whose residue large lesions do not appear; see the figures in experiments/README.md.
    opening_mm2: float = 1000.0
    # Whether the model was also trained without T1: that channel is then 0.
    t1_optional: bool = False

    def __post_init__(self) -> None:
        numbers = (self.pixel_mm, self.tissue_grey, self.opening_mm2)
        if self.channels not in get_args(Channels) or not all(number > 0 for number in numbers):
            raise ValueError(f"no such preparation: {self}")

    @property
    def uses_t1(self) -> bool:
        return self.channels != "flair-3-slices"

    @property
    def needs_t1(self) -> bool:
        return self.uses_t1 and not self.t1_optional


# The network's four poolings halve the slice four times.
MULTIPLE = 16
# Air and noise lie below a quarter of the tissue's grey value.
HEAD_PART_OF_TISSUE = 0.25
# A scan whose T1 covers less of the FLAIR's head than this has the wrong T1, or none that helps.
SMALLEST_COVERAGE, WHOLE_COVERAGE = 0.5, 0.985
# Of the histogram of log grey values: 5 % is wider than its noise and narrower than grey to white.
LOG_BIN, LOG_SMOOTHING = 0.01, 0.05
# A part of a per cent of the in-plane spacing: resampling would blur and gain nothing.
SAME_PIXEL = 0.005
# A mask has no voxels but these between its two values: by so little its one value may vary, and of
# its voxels so few.
ONE_VALUE, FEWEST_BETWEEN = 1e-3, 0.01


def prepare(
    flair: Volume, t1: Volume | None, preparation: Preparation
) -> tuple[Array, "Placement"]:
    """Colour slices (N, H, W, 3), uint8, and the placement that takes results back.

    The N slices are the FLAIR's own; H and W are multiples of 16 that hold the head at `pixel_mm`;
    beyond the scan is 0. `t1` may stand on another grid; it is resampled through both affines.

    Raises LeukoError if the channels need a T1 that is missing, is the FLAIR itself, or lies
    elsewhere.
    """
    return Pair.of(flair, t1, preparation).slices()


@dataclass(frozen=True, eq=False)
class Pair:
    """A FLAIR and its T1 in 8 bit on one grid, to be sliced across any axis."""

    scan: Volume  # the FLAIR as it was stored
    flair: Array  # uint8 (X, Y, Z), axes running R, A, S
    t1: Array  # likewise; 0 without a T1
    preparation: Preparation

    @classmethod
    def of(cls, flair: Volume, t1: Volume | None, preparation: Preparation) -> Self:
        """Raises LeukoError as `prepare` does."""
        if preparation.needs_t1 and t1 is None:
            raise LeukoError(
                f"this model needs a T1 (its channels are {preparation.channels}) and none was "
                "given; give one with --t1"
            )
        grey = flair.with_data(requantise(flair, preparation.tissue_grey)).canonical()
        t1_grey = np.zeros_like(grey.data)
        if t1 is not None and not preparation.uses_t1:
            log.warning("the model looks at the FLAIR alone: %s is not used", t1.name)
        elif t1 is not None:
            t1_grey = _matched_t1(grey, t1, preparation)
        return cls(flair, grey.data, t1_grey, preparation)

    def slices(self, across: int | None = None) -> tuple[Array, "Placement"]:
        """Those of `prepare`, across an axis of R, A, S; by default the FLAIR's thick one."""
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
    """8-bit slices as the network wants them: float32, minus 127."""
    return slices.astype(np.float32) - 127


def requantise(volume: Volume, tissue_grey: int) -> Array:
    """The whole volume in 8 bit, scaled so that the tissue has `tissue_grey`.

    The background is 0, and so are negative voxels (resampling artefacts); 255 is the ceiling.
    Raises LeukoError as `without_background` and `tissue_level` do.
    """
    scan = without_background(volume)
    scaled = scan.data * (tissue_grey / _tissue_level(scan))
    np.clip(scaled, 0, 255, out=scaled)  # in place: a whole head at 1 mm is 100 MB in float64
    return np.rint(scaled, out=scaled).astype(np.uint8)


def tissue_level(volume: Volume) -> float:
    """The grey value at which the volume has most of its signal, in its own units.

    That is the peak of the histogram of log grey values, each voxel weighed by its grey value. The
    logarithm makes the answer independent of the scanner's scale; the weight keeps noisy air from
    winning, and fat is too spread out to: the peak lies in the brain's tissue, on whole heads
    and extracted brains alike.

    Raises LeukoError as `without_background` does, and for an image of one grey value.
    """
    return _tissue_level(without_background(volume))


def _tissue_level(scan: Volume) -> float:
    """As `tissue_level`, of a scan whose background is 0."""
    data = scan.data
    positive = data[data > 0]
    bright = float(np.percentile(positive, 99)) if len(positive) else 0.0
    head = positive[positive > bright / 4]
    if np.count_nonzero(head < (1 - ONE_VALUE) * bright) <= FEWEST_BETWEEN * len(head):
        raise LeukoError(
            f"{scan.name} shows one grey value at most besides its background; expected a scan: "
            "is it a mask?"
        )
    positive = positive[positive < data.max()]  # the maximum may be a clipped peak
    top = math.log(float(np.percentile(positive, 99)))
    counts, edges = np.histogram(np.log(positive), round(3.3 / LOG_BIN), (top - 3, top + 0.3))
    signal = scipy.ndimage.gaussian_filter1d(counts * np.exp(edges[:-1]), LOG_SMOOTHING / LOG_BIN)
    return math.exp(edges[int(np.argmax(signal))] + LOG_BIN / 2)


def area_residue(slices: Array, pixels: int) -> Array:
    """What an area opening takes from each slice (N, H, W), uint8: slice minus its opening.

    The opening (Vincent 1993) removes bright 8-connected structures smaller than `pixels`; the
    residue keeps just those, at their height above the surround.
    """
    opened = [
        np.asarray(diplib.AreaOpening(image, filterSize=pixels, connectivity=2)) for image in slices
    ]
    residue: Array = slices - np.stack(opened)
    return residue


@dataclass(frozen=True)
class Line:
    """Where the model's pixels lie along one in-plane axis of the scan.

    Model pixel k has its centre at voxel `start + k * step`.
    """

    voxels: int
    pixels: int
    start: float
    step: float

    def to_model(self, array: Array, axis: int) -> Array:
        """One axis of an array, from the scan's voxels to the model's pixels."""
        if self.step == 1:
            return _window(array, axis, int(self.start), self.pixels)
        positions = self.start + self.step * np.arange(self.pixels)
        return _along(_interpolation(positions, self.voxels, max(1.0, self.step)), array, axis)

    def to_scan(self, array: Array, axis: int) -> Array:
        """One axis of an array, from the model's pixels to the scan's voxels."""
        if self.step == 1:
            return _window(array, axis, -int(self.start), self.voxels)
        positions = (np.arange(self.voxels) - self.start) / self.step
        return _along(_interpolation(positions, self.pixels, max(1.0, 1 / self.step)), array, axis)


@dataclass(frozen=True, eq=False)
class Placement:
    """Where slices came from: turns arrays on the scan's grid into slices, and back.

    `across` is the canonical axis of the slices; `rows` and `columns` are the two others.
    `pixel_mm` is the size of the model's pixels along rows and columns.
    """

    scan: Volume
    across: int
    rows: Line
    columns: Line
    pixel_mm: tuple[float, float]

    def slices(self, canonical: Array) -> Array:
        """Slices (N, H, W) of an array whose axes run R, A, S; its type is kept, integers rounded.

        0 where the model's grid reaches beyond the scan.
        """
        stack = np.moveaxis(canonical, self.across, 0)
        moved = self.columns.to_model(self.rows.to_model(stack, 1), 2)
        if np.issubdtype(canonical.dtype, np.integer):
            moved = np.rint(moved)
        return moved.astype(canonical.dtype)

    def restore(self, slices: Array) -> Array:
        """Slices (N, H, W) back on the scan's grid (X, Y, Z) as it was stored, float32.

        0 outside the box that the slices cover. Where the model's pixels are the scan's, every
        value comes back exactly.
        """
        stack = self.columns.to_scan(self.rows.to_scan(slices, 1), 2)
        canonical = np.moveaxis(stack, 0, self.across)
        return Orientation.of(self.scan.affine).undo(canonical).astype(np.float32)


def place(flair: Volume, head: Array, pixel_mm: float, *, across: int | None = None) -> Placement:
    """The model's grid over the box of the head, a canonical mask on the grid of `flair`.

    Raises LeukoError where that would be larger than a head can be.
    """
    grid = flair.canonical()
    across = grid.through_plane_axis if across is None else across
    axes = [axis for axis in range(3) if axis != across]
    lines = []
    for axis in axes:
        profile = head.sum(axis=tuple(k for k in range(3) if k != axis))
        inside = np.flatnonzero(profile > 0.002 * profile.max())  # specks of noise are no head
        low, high = int(inside[0]), int(inside[-1]) + 1
        lines.append(_line(head.shape[axis], low, high, pixel_mm / grid.spacing_mm[axis]))
    pixels = head.shape[across] * lines[0].pixels * lines[1].pixels
    if pixels > LARGEST_VOXELS:
        raise LeukoError(
            f"{flair.name} would need {pixels / 1e6:.0f} million pixels of {pixel_mm:g} mm; "
            "expected a head: correct its voxel sizes"
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
    """Weights (positions, samples) of linear interpolation; none beyond the samples' footprint.

    `width` above 1 widens the triangle to that many samples, so that none is skipped when the
    positions are farther apart than the samples. Sparse and summed in a fixed order: the number
    of threads cannot change a result.
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
    """From `start` on, `length` entries of one axis of an array; 0 beyond it."""
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
    """Slices n-1, n, n+1 as colours (N, H, W, 3); the end slices stand in for what lies beyond."""
    padded = np.pad(slices, ((1, 1), (0, 0), (0, 0)), mode="edge")
    return np.stack([padded[:-2], padded[1:-1], padded[2:]], axis=-1)


def _head(flair: Array, preparation: Preparation) -> Array:
    """What is as bright as a head, as bool, of a FLAIR in 8 bit."""
    head: Array = flair > HEAD_PART_OF_TISSUE * preparation.tissue_grey
    return head


def _matched_t1(flair: Volume, t1: Volume, preparation: Preparation) -> Array:
    """The T1 in 8 bit on the canonical grid of the FLAIR, which is in 8 bit already, uint8."""
    moving = t1.canonical()
    grey = moving.with_data(requantise(moving, preparation.tissue_grey))
    if moving.shares_grid_with(flair) and _differ_by_rounding(grey.data, flair.data):
        raise LeukoError(f"{flair.name} and {t1.name} hold the same image; give a FLAIR and a T1")
    covered = coverage(flair.with_data(_head(flair.data, preparation)), moving)
    if covered < SMALLEST_COVERAGE:
        raise LeukoError(
            f"{t1.name} covers {covered:.0%} of the head in {flair.name}; the two must show the "
            "same brain: check that they belong together"
        )
    if covered < WHOLE_COVERAGE:
        log.warning(
            "%s covers only %.0f %% of the head in %s; elsewhere the FLAIR alone decides",
            t1.name,
            100 * covered,
            flair.name,
        )
    return np.rint(resample_onto(grey, flair).data).astype(np.uint8)


def _differ_by_rounding(first: Array, second: Array) -> bool:
    """Whether no voxel of two images in 8 bit differs by more than one grey level."""
    return bool((np.maximum(first, second) - np.minimum(first, second)).max() <= 1)
