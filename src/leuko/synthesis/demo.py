"""A first look without data of one's own: the MNI152 brain, given lesions that are known.

nilearn ships the brain's T1 and its tissue maps. A FLAIR is made of the maps, and lesions are put
into both. No torch: `leuko.synthesis.images` makes the images that models are trained with.
"""

from pathlib import Path

import numpy as np
import scipy.ndimage

from leuko.io import nifti
from leuko.io.files import staged
from leuko.synthesis import mni152
from leuko.volume import Array, Volume

SLICE_MM = 3.0
#                        CSF   grey  white
FLAIR_GREY = np.array([100.0, 560.0, 470.0])
LESION_GREY = 880.0
T1_GREY, LESION_ON_T1 = 800.0, 0.7  # of the brightest voxel; part of what was there
CAPS_MM3, DEEP_LESIONS = 8000, 14


def make_subject(folder: Path, seed: int = 0) -> Path:
    """FLAIR.nii.gz, T1.nii.gz and wmh.nii.gz of one brain with known lesions; returns the folder.

    Raises LeukoError without nilearn, or when the folder cannot be written.
    """
    t1, shares = mni152.load()
    rng = np.random.default_rng(seed)
    lesions = _lesions(shares, rng)
    weight = scipy.ndimage.gaussian_filter(lesions.astype(np.float32), 0.7)
    flair = np.tensordot(FLAIR_GREY, shares, axes=1)
    flair += weight * np.maximum(LESION_GREY - flair, 0)
    dimmed = T1_GREY / t1.data.max() * t1.data * (1 - (1 - LESION_ON_T1) * weight)
    thick = round(SLICE_MM / t1.spacing_mm[2])
    scans = {
        "FLAIR": _noisy(_averaged(flair, thick), 14, rng),
        "T1": _noisy(_averaged(dimmed, thick), 16, rng),
        "wmh": (_averaged(lesions, thick) >= 0.5).astype(np.uint8),
    }
    affine = t1.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (thick - 1) / 2
    affine[:3, 2] *= thick
    with staged(folder) as scratch:
        for name, data in scans.items():
            nifti.write(scratch / f"{name}.nii.gz", Volume(data, affine, name=name))
    return folder


def _lesions(shares: Array, rng: np.random.Generator) -> Array:
    """Caps and bands along the ventricles, and ovoids deep in white matter, as bool."""
    white = shares[2] > 0.8
    deep = scipy.ndimage.distance_transform_edt(shares[1] < 0.5) * white
    inner = scipy.ndimage.distance_transform_edt(shares.sum(axis=0) > 0.5) > 25
    far = scipy.ndimage.distance_transform_edt(~((shares[0] > 0.5) & inner))
    noise = scipy.ndimage.gaussian_filter(rng.normal(size=white.shape), 5)
    beside = np.abs(np.arange(white.shape[0]) - white.shape[0] // 2)[:, None, None] > 12
    risk = np.where(white & (deep > 2) & beside, noise / noise.std() - far, -np.inf)
    lesions: Array = risk >= np.partition(risk.ravel(), -CAPS_MM3)[-CAPS_MM3]
    places = np.argwhere((deep > 4) & (far > 8) & (far < 30))
    grid = np.ogrid[tuple(map(slice, white.shape))]
    for centre in rng.permutation(places)[:DEEP_LESIONS]:
        axes = rng.uniform(2, 5) * rng.uniform(0.8, 1.4, size=3)
        lesions |= sum(((x - c) / a) ** 2 for x, c, a in zip(grid, centre, axes, strict=True)) < 1
    kept: Array = lesions & white
    return kept


def _averaged(data: Array, thick: int) -> Array:
    """Slices of `thick` voxels along the last axis: their mean; what is left over is dropped."""
    whole = data.shape[2] // thick * thick
    mean: Array = data[..., :whole].reshape(*data.shape[:2], -1, thick).mean(axis=3)
    return mean


def _noisy(data: Array, spread: float, rng: np.random.Generator) -> Array:
    """With Rician noise inside the brain, int16."""
    noise = rng.normal(scale=spread, size=(2, *data.shape))
    magnitude: Array = np.hypot(data + noise[0], noise[1]) * (data > 0)
    return magnitude.astype(np.int16)
