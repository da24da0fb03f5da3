"""The halfway space of two scans of one brain: each is moved by half the motion between them.

Resampling only one scan onto the other would blur that one alone, which looks like a change.
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


@dataclass(frozen=True, eq=False)
class Halfway:
    """The space halfway between two scans: its grid, and the motion of each scan into it."""

    grid: Volume  # bool, True where both scans have voxels; axes run R, A, S
    ways: tuple[Array, Array]  # (4, 4) each; the second is the inverse of the first
    alignment: Alignment

    def reversed(self) -> "Halfway":
        """The same space with the two scans swapped."""
        return replace(self, ways=self.ways[::-1])

    def bring(self, images: Sequence[Volume]) -> list[Array]:
        """An image of each scan, resampled onto the grid once, linearly; float32."""
        return [
            resample_onto(_moved(image, way), self.grid).data
            for image, way in zip(images, self.ways, strict=True)
        ]


def meet(first: Volume, second: Volume, *, threads: int) -> Halfway:
    """Register two FLAIRs of one brain rigidly and return their halfway space.

    Raises LeukoError if they cannot be registered.
    """
    alignment = align(first, second, mode="always", threads=threads)
    if not alignment.is_sure:
        raise LeukoError(
            f"{second.name} could not be registered to {first.name}: {alignment.doubt()}; check "
            "that both are FLAIRs of one person"
        )
    way = half(alignment.matrix)
    ways = way, np.linalg.inv(way)
    scans = [_moved(scan, way) for scan, way in zip((first, second), ways, strict=True)]
    grid = _common_grid(*scans)
    require_head_size(grid)
    seen = in_view(grid, scans[0]) & in_view(grid, scans[1])
    return Halfway(grid.with_data(seen), ways, alignment)


def half(motion: Array) -> Array:
    """The rigid motion (4, 4) that gives `motion` when it is applied twice."""
    root: Array = scipy.linalg.sqrtm(motion).real
    return root


def _moved(image: Volume, way: Array) -> Volume:
    return replace(image, affine=way @ image.affine, header=None).canonical()


def _common_grid(first: Volume, second: Volume) -> Volume:
    """A grid of zeros that holds both scans, along each axis at least as fine as either."""
    spacing_mm = np.minimum(first.spacing_mm, second.spacing_mm)
    directions = [scan.affine[:3, :3] / scan.spacing_mm for scan in (first, second)]
    left, _, right = np.linalg.svd(directions[0] + directions[1])
    affine = np.eye(4)
    affine[:3, :3] = (left @ right) * spacing_mm
    corners = np.concatenate([_corners(scan) for scan in (first, second)])
    places = corners @ np.linalg.inv(affine[:3, :3]).T
    low = places.min(axis=0)
    shape = np.ceil(places.max(axis=0) - low - 1e-3).astype(int) + 1
    affine[:3, 3] = affine[:3, :3] @ low
    return Volume(np.zeros(shape, dtype=np.uint8), affine, name="the halfway space")


def _corners(scan: Volume) -> Array:
    """Centres of the eight voxels in the corners, (8, 3)."""
    ends = np.array(list(product(*[(0, n - 1) for n in scan.data.shape])))
    corners: Array = ends @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    return corners
