"""The mean space of scans of one brain: each is moved by its share of the motion between them.

Resampling all scans but one onto that one would blur all but one, which looks like a change.
World coordinates are RAS, mm.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import scipy.linalg

from leuko.errors import LeukoError
from leuko.preprocessing.registration import Alignment, align
from leuko.volume import Array, Volume, in_view, require_head_size, resample_onto

SETTLED = 1e-12  # largest step of the mean in its last round, in mm and radians
ROUNDS = 50  # far more than scans of one head need


@dataclass(frozen=True, eq=False)
class Midspace:
    """The mean space of two or more scans: its grid, and the motion of each scan into it."""

    grid: Volume  # bool, True where all scans have voxels; axes run R, A, S
    ways: tuple[Array, ...]  # (4, 4) each; of two scans the second is the inverse of the first
    alignments: tuple[Alignment | None, ...]  # to the scan that has None

    @property
    def moved_mm(self) -> float:
        """The largest displacement of a scan from the one that all are registered to."""
        return max(alignment.moved_mm for alignment in self.alignments if alignment)

    def in_order(self, order: Sequence[int]) -> "Midspace":
        """The same space with the scans in another order: `order` holds their places here."""
        return replace(
            self,
            ways=tuple(self.ways[k] for k in order),
            alignments=tuple(self.alignments[k] for k in order),
        )

    def bring(self, images: Sequence[Volume]) -> list[Array]:
        """An image of each scan, resampled onto the grid once, linearly; float32."""
        return [
            resample_onto(_moved(image, way), self.grid).data
            for image, way in zip(images, self.ways, strict=True)
        ]


def meet(scans: Sequence[Volume], *, threads: int) -> Midspace:
    """Register two or more FLAIRs of one brain rigidly to the first and return their mean space.

    Raises LeukoError, which names the scan, if one cannot be registered.
    """
    first, *others = scans
    alignments = []
    for other in others:
        alignment = align(first, other, mode="always", threads=threads)
        if not alignment.is_sure:
            raise LeukoError(
                f"{other.name} could not be registered to {first.name}: {alignment.doubt()}; check "
                "that both are FLAIRs of one person"
            )
        alignments.append(alignment)
    ways = mean_space([np.eye(4), *(alignment.matrix for alignment in alignments)])
    moved = [_moved(scan, way) for scan, way in zip(scans, ways, strict=True)]
    grid = _common_grid(moved)
    require_head_size(grid)
    seen = np.logical_and.reduce([in_view(grid, scan) for scan in moved])
    return Midspace(grid.with_data(seen), tuple(ways), (None, *alignments))


def mean_space(motions: Sequence[Array]) -> list[Array]:
    """The motion (4, 4) of each scan into their mean space.

    `motions` lead from the world of one scan to that of each. In the mean space the logarithms of
    the results add up to 0 (the bi-invariant mean of Pennec and Arsigny, in Matrix Information
    Geometry, Springer 2013), so the space does not depend on the choice of that one scan. Two scans
    move by half of the motion between them.
    """
    ways = [np.linalg.inv(motion) for motion in motions]
    for _ in range(ROUNDS):
        step = np.mean([scipy.linalg.logm(way).real for way in ways], axis=0)
        back = scipy.linalg.expm(-step)
        back[3] = 0, 0, 0, 1  # which rounding must not change
        ways = [back @ way for way in ways]
        if np.abs(step).max() < SETTLED:
            break
    return ways


def _moved(image: Volume, way: Array) -> Volume:
    return replace(image, affine=way @ image.affine, header=None).canonical()


def _common_grid(scans: Sequence[Volume]) -> Volume:
    """A grid of zeros that holds all scans, along each axis at least as fine as any."""
    spacing_mm = np.min([scan.spacing_mm for scan in scans], axis=0)
    directions = np.sum([scan.affine[:3, :3] / scan.spacing_mm for scan in scans], axis=0)
    left, _, right = np.linalg.svd(directions)
    affine = np.eye(4)
    affine[:3, :3] = (left @ right) * spacing_mm
    corners = np.concatenate([_corners(scan) for scan in scans])
    places = corners @ np.linalg.inv(affine[:3, :3]).T
    low = places.min(axis=0)
    shape = np.ceil(places.max(axis=0) - low - 1e-3).astype(int) + 1
    affine[:3, 3] = affine[:3, :3] @ low
    return Volume(np.zeros(shape, dtype=np.uint8), affine, name="the common space")


def _corners(scan: Volume) -> Array:
    """Centres of the eight voxels in the corners, (8, 3)."""
    ends = np.array(list(product(*[(0, n - 1) for n in scan.data.shape])))
    corners: Array = ends @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    return corners
