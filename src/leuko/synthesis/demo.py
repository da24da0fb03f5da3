"""The demo subject: the MNI152 brain with known lesions.

nilearn provides the brain's T1 and its tissue maps. The FLAIR is computed from the maps, and
lesions are added to both. Works without torch; models are trained with the scans of
`leuko.synthesis.images` instead.
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
T1_GREY, LESION_ON_T1 = 800.0, 0.7  # of the brightest voxel; part of the grey value without lesion
FLAIR_NOISE, T1_NOISE = 14, 16  # standard deviation, grey values
EDGE_MM = 0.7  # standard deviation of the blur of lesion edges

# Lesions. Distances in mm, ranges low and high; chosen to look plausible.
SURE_WHITE = 0.8  # least share of white matter where lesions lie
VENTRICLE_DEPTH_MM = 25  # CSF deeper in the brain is of the ventricles
MIDLINE_MM = 12  # half the width of the midline region without caps: the corpus callosum
RISK_MM = 5  # standard deviation of the noise that makes caps and bands irregular
CAPS_MM3, CAPS_FROM_CORTEX_MM = 8000, 2
DEEP_LESIONS, DEEP_FROM_CORTEX_MM, DEEP_FROM_VENTRICLES_MM = 14, 4, (8, 30)
DEEP_RADIUS_MM, DEEP_AXES = (2, 5), (0.8, 1.4)  # of each ovoid; its three radii as parts of it


def make_subject(folder: Path, seed: int = 0) -> Path:
    """FLAIR.nii.gz, T1.nii.gz and wmh.nii.gz of one brain with known lesions; returns the folder.

    Raises LeukoError without nilearn, or when the folder cannot be written.
    """
    t1, shares = mni152.load()
    rng = np.random.default_rng(seed)
    lesions = _lesions(shares, rng)
    weight = scipy.ndimage.gaussian_filter(lesions.astype(np.float32), EDGE_MM)
    flair = np.tensordot(FLAIR_GREY, shares, axes=1)
    flair += weight * np.maximum(LESION_GREY - flair, 0)
    dimmed = T1_GREY / t1.data.max() * t1.data * (1 - (1 - LESION_ON_T1) * weight)
    thick = round(SLICE_MM / t1.spacing_mm[2])
    scans = {
        "FLAIR": _noisy(_averaged(flair, thick), FLAIR_NOISE, rng),
        "T1": _noisy(_averaged(dimmed, thick), T1_NOISE, rng),
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
    white = shares[2] > SURE_WHITE
    deep = scipy.ndimage.distance_transform_edt(shares[1] < 0.5) * white
    inner = scipy.ndimage.distance_transform_edt(shares.sum(axis=0) > 0.5) > VENTRICLE_DEPTH_MM
    far = scipy.ndimage.distance_transform_edt(~((shares[0] > 0.5) & inner))
    noise = scipy.ndimage.gaussian_filter(rng.normal(size=white.shape), RISK_MM)
    from_midline = np.abs(np.arange(white.shape[0]) - white.shape[0] // 2)[:, None, None]
    allowed = white & (deep > CAPS_FROM_CORTEX_MM) & (from_midline > MIDLINE_MM)
    risk = np.where(allowed, noise / noise.std() - far, -np.inf)
    lesions: Array = risk >= np.partition(risk.ravel(), -CAPS_MM3)[-CAPS_MM3]
    low, high = DEEP_FROM_VENTRICLES_MM
    places = np.argwhere((deep > DEEP_FROM_CORTEX_MM) & (far > low) & (far < high))
    grid = np.ogrid[tuple(map(slice, white.shape))]
    for centre in rng.permutation(places)[:DEEP_LESIONS]:
        axes = rng.uniform(*DEEP_RADIUS_MM) * rng.uniform(*DEEP_AXES, size=3)
        lesions |= sum(((x - c) / a) ** 2 for x, c, a in zip(grid, centre, axes, strict=True)) < 1
    kept: Array = lesions & white
    return kept


def _averaged(data: Array, thick: int) -> Array:
    """The means of slices of `thick` voxels along the last axis, without an incomplete slice."""
    whole = data.shape[2] // thick * thick
    mean: Array = data[..., :whole].reshape(*data.shape[:2], -1, thick).mean(axis=3)
    return mean


def _noisy(data: Array, spread: float, rng: np.random.Generator) -> Array:
    """The image with Rician noise inside the brain, int16."""
    noise = rng.normal(scale=spread, size=(2, *data.shape))
    magnitude: Array = np.hypot(data + noise[0], noise[1]) * (data > 0)
    return magnitude.astype(np.int16)
