"""A T1 whose lesions look like normal white matter, for programs that measure the brain.

Lesions are dark on a T1: FreeSurfer, FastSurfer and CAT12 count some of them as grey matter. Each
lesion voxel gets the mean of the normal white matter around it plus noise. The idea of filling from
nearby normal white matter is that of Chard et al. 2010 (doi 10.1002/jmri.22214) and Valverde et al.
2014 (doi 10.1016/j.nicl.2014.08.016). Those draw the noise from a normal distribution; here it is
copied in small blocks from that white matter, so that its texture stays.
"""

import zlib

import numpy as np
import scipy.ndimage

from leuko.errors import LeukoError
from leuko.volume import Array, Volume, as_type, bounding_box, labels_onto, resample_onto

CLEAR_MM = 2.0  # white matter closer to a lesion may be part of it
PURE = 0.99  # least share of white matter in a voxel of the T1: no partial volume
AROUND_MM = (4.0, 8.0, 16.0)  # standard deviations of the mean around a voxel, the first that works
LEAST_WHITE = 0.02  # least share of white matter in that mean
TYPICAL_MAD = 3.0  # voxels farther from the mean, in robust standard deviations, are not normal
BLOCK_MM = 6.0  # edge of the blocks of noise
REACH_MM = 30.0  # farthest that a block is copied
STEP_MM = 2.0  # between the places that are tried
ENOUGH = 0.95  # share of a block in white matter at which the search ends
CHUNK = 256  # places that are tried at once
MARGIN_MM = 60.0  # around the lesions; white matter beyond has no influence
LEAST_VOXELS = 100  # of normal white matter


def fill(t1: Volume, mask: Array, white: Array) -> Volume:
    """The T1 with the voxels of `mask` filled; all other voxels, the grid and the type stay.

    Arguments and errors are those of `filling`.
    """
    if not mask.any():
        return t1
    data = t1.data.copy()
    data[mask] = as_type(filling(t1, mask, white), data.dtype)
    return t1.with_data(data)


def filling(t1: Volume, mask: Array, white: Array) -> Array:
    """The grey values (N,) of the voxels of `mask` when they are filled.

    `mask` (X, Y, Z) marks the lesions and `white` normal white matter, bool, both on the grid of
    the T1. Where no white matter is within reach, the mean of all is used. The same input gives
    the same output. Raises LeukoError for fewer than 100 voxels of normal white matter.
    """
    if not mask.any():
        return np.zeros(0)
    spacing_mm = np.array(t1.spacing_mm)
    box = _widened(bounding_box(mask), MARGIN_MM / spacing_mm, mask.shape)
    lesion = mask[box]
    image = t1.data[box].astype(np.float32)
    clear = scipy.ndimage.distance_transform_edt(~lesion, spacing_mm) > CLEAR_MM
    normal, residual, level = _normal(image, white[box] & clear, spacing_mm)
    if np.count_nonzero(normal) < LEAST_VOXELS:
        raise LeukoError(
            f"{t1.name} shows {np.count_nonzero(normal)} voxels of normal white matter, expected "
            f"{LEAST_VOXELS} or more; its lesions are not filled"
        )
    noise = _noise(lesion, normal, residual, spacing_mm)
    values: Array = level[lesion] + noise
    return values


def filling_from_flair(
    t1: Volume, mask: Volume, white: Volume, flair_to_t1: Array
) -> tuple[Array, Array]:
    """The mask on the grid of the T1, bool (X, Y, Z), and its `filling`.

    Lesions and white matter, bool, are on the grid of the FLAIR; `flair_to_t1` (4, 4) maps world
    coordinates of the FLAIR to those of the T1.
    """
    lesions, normal = (
        Volume(image.data, flair_to_t1 @ image.affine, name=image.name) for image in (mask, white)
    )
    on_t1 = labels_onto(lesions.with_data(lesions.data.astype(np.uint8)), t1).data > 0
    return on_t1, filling(t1, on_t1, resample_onto(normal, t1).data >= PURE)


def _normal(image: Array, white: Array, spacing_mm: Array) -> tuple[Array, Array, Array]:
    """White matter without outliers (bool), its difference from the mean around it, and that mean
    everywhere; all (X, Y, Z)."""
    level = _level(image, white, spacing_mm)
    if not white.any():
        return white, np.zeros_like(image), level
    away = np.abs(image - level)
    typical = 1.4826 * float(np.median(away[white]))
    normal = white & (away <= TYPICAL_MAD * typical)
    level = _level(image, normal, spacing_mm)
    return normal, image - level, level


def _level(image: Array, white: Array, spacing_mm: Array) -> Array:
    """The mean of the white matter around each voxel; far from it the mean of all."""
    level = np.full(image.shape, image[white].mean() if white.any() else 0, np.float32)
    lacking = np.ones(image.shape, bool)
    for mm in AROUND_MM:
        weight, total = (
            scipy.ndimage.gaussian_filter(part.astype(np.float32), mm / spacing_mm, mode="constant")
            for part in (white, np.where(white, image, 0))
        )
        known = lacking & (weight > LEAST_WHITE)
        level[known] = total[known] / weight[known]
        lacking &= ~known
        if not lacking.any():
            break
    return level


def _noise(lesion: Array, normal: Array, residual: Array, spacing_mm: Array) -> Array:
    """Noise (N,) for the N voxels of a lesion mask, in the order of the mask.

    Each block of a lesion gets the noise of the nearest place of its shape in white matter. Voxels
    outside white matter there get the noise of a random voxel.
    """
    # The same mask gives the same noise.
    rng = np.random.default_rng(zlib.crc32(np.packbits(lesion).tobytes()))
    voxels = np.argwhere(lesion)
    noise = rng.choice(residual[normal], len(voxels))
    shifts = _shifts(spacing_mm)
    reach = np.abs(shifts).max(axis=0)
    there = np.pad(normal, [(n, n) for n in reach])
    around = np.pad(residual, [(n, n) for n in reach])
    edge = np.maximum(1, np.rint(BLOCK_MM / spacing_mm)).astype(int)
    _, block = np.unique(voxels // edge, axis=0, return_inverse=True)
    order = np.argsort(block.ravel(), kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(block.ravel()[order])) + 1):
        places = voxels[members] + reach
        shift = _best(places, there, shifts)
        moved = tuple((places + shift).T)
        seen = there[moved]
        noise[members[seen]] = around[moved][seen]
    found: Array = noise
    return found


def _best(places: Array, there: Array, shifts: Array) -> Array:
    """The shift (3,) that brings most of the voxels (N, 3) into white matter, the nearest first."""
    best: Array = shifts[0]
    most = -1.0
    for start in range(0, len(shifts), CHUNK):
        tried = shifts[start : start + CHUNK]
        moved = places + tried[:, None]
        shares = there[moved[..., 0], moved[..., 1], moved[..., 2]].mean(axis=1)
        k = int(np.argmax(shares >= ENOUGH)) if (shares >= ENOUGH).any() else int(shares.argmax())
        if shares[k] > most:
            best, most = tried[k], float(shares[k])
        if most >= ENOUGH:
            break
    return best


def _shifts(spacing_mm: Array) -> Array:
    """The shifts (N, 3) in voxels that are tried, the nearest first."""
    steps = np.maximum(1, np.rint(STEP_MM / spacing_mm)).astype(int)
    most = (REACH_MM / (steps * spacing_mm)).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij"), axis=-1)
    shifts = grid.reshape(-1, 3) * steps
    far_mm = np.linalg.norm(shifts * spacing_mm, axis=1)
    order = np.argsort(far_mm, kind="stable")
    kept = order[far_mm[order] <= REACH_MM][1:]  # the first is no shift
    nearest_first: Array = shifts[kept]
    return nearest_first


def _widened(box: tuple[slice, ...], margin: Array, shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(
        slice(max(0, part.start - int(more)), min(n, part.stop + int(more)))
        for part, more, n in zip(box, margin, shape, strict=True)
    )
