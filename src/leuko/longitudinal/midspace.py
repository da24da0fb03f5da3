"""Two scans of one brain meet halfway: each moves by half of what parts them, onto one grid.

Whoever resampled one of them onto the other would blur that one alone, and see a change. Points are
millimetres in the world, RAS.
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
    """The space between two scans: its grid, and the way there from the world of each."""

    grid: Volume  # bool, true where both scans see; axes run R, A, S
    ways: tuple[Array, Array]  # (4, 4) each; the second is the inverse of the first
    alignment: Alignment

    def reversed(self) -> "Halfway":
        """The same place, with the scans the other way round."""
        return replace(self, ways=self.ways[::-1])

    def bring(self, images: Sequence[Volume]) -> list[Array]:
        """An image of each scan on the grid, float32, linear; each is resampled just once."""
        return [
            resample_onto(_moved(image, way), self.grid).data
            for image, way in zip(images, self.ways, strict=True)
        ]


def meet(first: Volume, second: Volume, *, threads: int) -> Halfway:
    """Register two FLAIRs of one brain, rigidly, and find their halfway space.

    Raises LeukoError where they do not come to lie on each other.
    """
    alignment = align(first, second, mode="always", threads=threads)
    if not alignment.is_sure:
        raise LeukoError(
            f"{second.name} could not be registered to {first.name}: {alignment.doubt()}; are both "
            "FLAIRs of one person?"
        )
    way = half(alignment.matrix)
    ways = way, np.linalg.inv(way)
    scans = [_moved(scan, way) for scan, way in zip((first, second), ways, strict=True)]
    grid = _common_grid(*scans)
    require_head_size(grid)
    seen = in_view(grid, scans[0]) & in_view(grid, scans[1])
    return Halfway(grid.with_data(seen), ways, alignment)


def half(motion: Array) -> Array:
    """The rigid motion (4, 4) that, done twice, is the one given."""
    root: Array = scipy.linalg.sqrtm(motion).real
    return root


def _moved(image: Volume, way: Array) -> Volume:
    return replace(image, affine=way @ image.affine, header=None).canonical()


def _common_grid(first: Volume, second: Volume) -> Volume:
    """A grid that holds both, its axes between theirs, along none coarser than either; zeros."""
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
