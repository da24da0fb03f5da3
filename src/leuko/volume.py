"""Volumes: a 3-D image with its voxel-to-world affine, and operations on its grid.

Pure numpy and scipy; `nifti` reads and writes files. World coordinates are in mm, in RAS order:
right, anterior, superior.
"""

from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, Self

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from leuko.errors import LeukoError

Array = NDArray[Any]

# Two grids are the same if no corner differs by more than this fraction of a voxel: float32 headers
# round in the sixth digit, and no reader sees a tenth of a voxel.
SAME_GRID_VOXELS = 0.1

# Limits for a scan of a head; a wrong unit in the header exceeds them.
SMALLEST_VOXEL_MM, LARGEST_MM = 0.05, 2000.0
LARGEST_VOXELS = 1 << 27  # a head at 0.4 mm

ROUNDING = 1e-3  # voxels: above the rounding of affine arithmetic, below any visible shift

# Below this ratio of coarsest to finest spacing a scan has no thick slices.
NEAR_ISOTROPIC = 1.5


@dataclass(frozen=True)
class Orientation:
    """Reorients an array to right, anterior, superior (RAS), and back.

    `order[k]` is the array axis closest to world axis k; `flips[k]` is true if it runs in the
    opposite direction.
    """

    order: tuple[int, ...]
    flips: tuple[bool, ...]

    @classmethod
    def of(cls, affine: Array) -> Self:
        """The orientation of the grid that a (4, 4) voxel-to-world affine describes."""
        directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        order = max(
            permutations(range(3)),
            key=lambda axes: sum(abs(directions[k, axis]) for k, axis in enumerate(axes)),
        )
        return cls(order, tuple(bool(directions[k, axis] < 0) for k, axis in enumerate(order)))

    def apply(self, array: Array) -> Array:
        """The stored array (X, Y, Z) with its axes in RAS order."""
        return np.flip(array.transpose(self.order), self._flipped_axes)

    def undo(self, array: Array) -> Array:
        """The inverse of `apply`."""
        return np.flip(array, self._flipped_axes).transpose(np.argsort(self.order))

    @property
    def _flipped_axes(self) -> tuple[int, ...]:
        return tuple(k for k, flipped in enumerate(self.flips) if flipped)


@dataclass(frozen=True, eq=False)
class Volume:
    """An image (X, Y, Z) and its voxel-to-world affine (4, 4), in mm.

    `header` is the file's header, which `nifti` writes back unchanged; `name` identifies the image
    in messages.
    """

    data: Array
    affine: Array
    header: Any = None
    name: str = "volume"

    def __post_init__(self) -> None:
        if self.data.ndim != 3 or self.affine.shape != (4, 4):
            raise ValueError(f"data {self.data.shape} is not 3-D or affine {self.affine.shape}")

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance between neighbouring voxels along each array axis."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel, |det(affine)|, which is exact for sheared grids too."""
        return abs(float(np.linalg.det(self.affine[:3, :3])))

    def ml(self, mask: Array) -> float:
        """Volume in mL of the voxels where a mask (X, Y, Z) is true."""
        return float(np.count_nonzero(mask)) * self.voxel_mm3 / 1000

    @property
    def through_plane_axis(self) -> int:
        """The array axis perpendicular to the slices.

        It is the axis of coarsest spacing; on a nearly isotropic grid, the axis closest to
        superior-inferior, which gives axial slices.
        """
        if self.is_nearly_isotropic:
            return Orientation.of(self.affine).order[2]
        return int(np.argmax(self.spacing_mm))

    @property
    def is_nearly_isotropic(self) -> bool:
        """Whether the coarsest spacing is under 1.5 times the finest; any axis may be sliced."""
        return max(self.spacing_mm) < NEAR_ISOTROPIC * min(self.spacing_mm)

    def moved(self, matrix: Array) -> Self:
        """The same voxels in another world, whose coordinates `matrix` (4, 4) takes to this one."""
        return replace(self, affine=np.linalg.inv(matrix) @ self.affine)

    def with_data(self, data: Array) -> Self:
        """Another image on the same grid."""
        if data.shape != self.data.shape:
            raise ValueError(f"data {data.shape} does not fit the grid {self.data.shape}")
        return replace(self, data=data)

    def canonical(self) -> "Volume":
        """The same image with its axes in RAS order; voxel values do not change."""
        orientation = Orientation.of(self.affine)
        to_stored = np.zeros((4, 4))  # canonical index -> stored index
        to_stored[3, 3] = 1
        for k, axis in enumerate(orientation.order):
            to_stored[axis, k] = -1 if orientation.flips[k] else 1
            to_stored[axis, 3] = self.data.shape[axis] - 1 if orientation.flips[k] else 0
        return Volume(orientation.apply(self.data), self.affine @ to_stored, name=self.name)

    def with_canonical(self, data: Array) -> Self:
        """Another image on the same grid, from data with their axes in RAS order."""
        return self.with_data(Orientation.of(self.affine).undo(data))

    def crop(self, box: tuple[slice, ...]) -> "Volume":
        """The part of the image in a box, at its place in the world."""
        shift = np.eye(4)
        shift[:3, 3] = [part.start for part in box]
        return Volume(self.data[box], self.affine @ shift, name=self.name)

    def shares_grid_with(self, other: "Volume") -> bool:
        """Whether both have the same shape and world coordinates, within 0.1 voxel."""
        if self.data.shape != other.data.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.data.shape])).reshape(3, -1)
        offset = (self.affine - other.affine)[:3] @ np.vstack([corners, np.ones(8)])
        return bool(np.abs(offset).max() <= SAME_GRID_VOXELS * min(self.spacing_mm))


def bounding_box(mask: Array) -> tuple[slice, ...]:
    """The smallest box that holds a mask; an empty mask has an empty box."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(k for k in range(mask.ndim) if k != axis)
        held = np.flatnonzero(mask.any(axis=others))
        box.append(slice(held[0], held[-1] + 1) if len(held) else slice(0, 0))
    return tuple(box)


def require_head_size(volume: Volume) -> None:
    """Raises LeukoError if the voxel size, field of view or voxel count does not fit a head."""
    if volume.data.size > LARGEST_VOXELS:
        raise LeukoError(
            f"{volume.name} has {volume.data.size / 1e6:.0f} million voxels; expected a head with "
            f"at most {LARGEST_VOXELS / 1e6:.0f} million: resample it"
        )
    extent_mm = np.array(volume.spacing_mm) * volume.data.shape
    if min(volume.spacing_mm) < SMALLEST_VOXEL_MM or extent_mm.max() > LARGEST_MM:
        shown = " x ".join(f"{mm:.3g}" for mm in extent_mm)
        raise LeukoError(
            f"{volume.name} spans {shown} mm; expected a head: correct its voxel sizes or their "
            "unit"
        )


def require_same_grid(first: Volume, second: Volume) -> None:
    """Raises LeukoError unless both images have the same grid, in any storage order."""
    if first.canonical().shares_grid_with(second.canonical()):
        return
    raise LeukoError(
        f"{_describe(first)} and {_describe(second)} are not on the same voxel grid; "
        "resample one of them onto the other's grid"
    )


def resample_onto(moving: Volume, fixed: Volume) -> Volume:
    """`moving` resampled onto the grid of `fixed` by linear interpolation.

    Values do not change if the grids are the same; 0 outside the field of view of `moving`.
    """
    if moving.shares_grid_with(fixed):
        return fixed.with_data(moving.data)
    to_moving = np.linalg.inv(moving.affine) @ fixed.affine
    data = scipy.ndimage.affine_transform(
        moving.data.astype(np.float32),
        to_moving,
        output_shape=fixed.data.shape,
        order=1,
        mode="nearest",  # scipy's other modes lose the outer half voxel, or more by rounding
    )
    data[~in_view(fixed, moving)] = 0
    return replace(fixed, data=data, name=moving.name)


def labels_onto(moving: Volume, fixed: Volume) -> Volume:
    """A label image, or a mask as uint8, on the grid of `fixed`: each voxel has the label of the
    nearest voxel of `moving`, so that volumes stay; 0 outside its field of view."""
    data = scipy.ndimage.affine_transform(
        moving.data,
        np.linalg.inv(moving.affine) @ fixed.affine,
        output_shape=fixed.data.shape,
        order=0,
        mode="nearest",
    )
    data[~in_view(fixed, moving)] = 0
    return replace(fixed, data=data, name=moving.name)


def rounded_down(image: Volume, step: float) -> Volume:
    """Voxels rounded down to multiples of `step`, float32; a threshold that is one gives the same
    mask."""
    # 0.4 stored in 32 bits may be slightly below 0.4.
    steps = np.floor(image.data.astype(np.float64) / step + ROUNDING)
    return image.with_data((steps * step).astype(np.float32))


def as_type(values: Array, dtype: np.dtype[Any]) -> Array:
    """Values in a data type; for integers they are rounded and clipped to its range."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.rint(values).clip(limits.min, limits.max)
    converted: Array = values.astype(dtype)
    return converted


def world(grid: Volume, voxels: Array) -> Array:
    """World coordinates (N, 3), in mm, of voxel indices (N, 3)."""
    return apply_affine(grid.affine, voxels)


def apply_affine(matrix: Array, points: Array) -> Array:
    """Points (N, 3) transformed by a (4, 4) affine matrix."""
    moved: Array = points @ matrix[:3, :3].T + matrix[:3, 3]
    return moved


def centre_of_mass(volume: Volume) -> Array:
    """The centre of mass in world coordinates, mm (3,)."""
    return apply_affine(volume.affine, np.array(scipy.ndimage.center_of_mass(volume.data)))


def coverage(fixed: Volume, moving: Volume) -> float:
    """Fraction of the non-zero voxels of `fixed` in the field of view of `moving`, 0 to 1.

    No non-zero voxel: nan.
    """
    shown = fixed.data != 0
    if not shown.any():
        return float("nan")
    if moving.shares_grid_with(fixed):
        return 1.0
    return float(np.count_nonzero(shown & in_view(fixed, moving)) / shown.sum())


def in_view(fixed: Volume, moving: Volume) -> Array:
    """Which voxels of `fixed` lie within the outer faces of `moving`, bool (X, Y, Z)."""
    to_moving = np.linalg.inv(moving.affine) @ fixed.affine
    x, y, z = np.ogrid[tuple(slice(n) for n in fixed.data.shape)]
    inside: Array = np.array(True)
    for (a, b, c, start), count in zip(to_moving[:3], moving.data.shape, strict=True):
        index = start + a * x + b * y + c * z  # broadcasts to 3-D only here, to save memory
        inside = inside & (index >= -0.5 - ROUNDING) & (index <= count - 0.5 + ROUNDING)
    return inside


def _describe(volume: Volume) -> str:
    shape = "x".join(str(n) for n in volume.data.shape)
    spacing = "x".join(f"{s:.3g}" for s in volume.spacing_mm)
    origin = ", ".join(f"{o:.1f}" for o in volume.affine[:3, 3])
    return f"{volume.name} ({shape}, {spacing} mm, origin {origin})"
