"""Lesions that never were: where white matter hyperintensities lie and how they look.

Two kinds. Vascular: bands and haloes along the ventricles, and deep ones from punctate to
confluent. Multiple sclerosis: fingers from the ventricles outwards, beside the cortex, in the
corpus callosum and below the tentorium. Masks drawn on other brains can be carried over.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from leuko.synthesis.anatomy import INDEX, Anatomy
from leuko.synthesis.random_fields import smooth_noise

# Share of the images with each kind of lesion.
KINDS = {"vascular": 0.42, "ms": 0.27, "both": 0.06, "carried": 0.12, "none": 0.13}
# Share of the images with lesions that have punctate ones too.
PUNCTATE = 0.3


def draw_lesions(
    anatomy: Anatomy,
    rng: np.random.Generator,
    *,
    atlas: Sequence[Tensor] = (),
) -> Tensor:
    """A random mask of lesions (X, Y, Z), bool, on an anatomy and its device.

    `atlas` are masks in MNI space (X, Y, Z) that may be carried over.
    """
    generator = torch.Generator(anatomy.tissue.device).manual_seed(int(rng.integers(2**62)))
    kinds = [kind for kind in KINDS if atlas or kind != "carried"]
    shares = np.array([KINDS[kind] for kind in kinds])
    kind = rng.choice(kinds, p=shares / shares.sum())
    lesions = torch.zeros_like(anatomy.lesions)
    if kind == "none":
        return lesions
    if rng.random() < 0.5:
        lesions |= anatomy.lesions
    if kind in ("vascular", "both"):
        lesions |= _vascular(anatomy, rng, generator)
    if kind in ("ms", "both"):
        lesions |= _sclerosis(anatomy, rng, generator)
    if kind == "carried":
        lesions |= _carried(anatomy, rng, atlas)
    if rng.random() < PUNCTATE:
        lesions |= _punctate(anatomy, rng, generator)
    return lesions


def _vascular(anatomy: Anatomy, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """The voxels of white matter with the highest risk, as many as a drawn volume holds.

    Risk falls with the distance from the ventricles, is low beside the cortex, and has noise at
    three scales: which region, which lesion, which outline.
    """
    allowed = anatomy.tissue == INDEX["white"]
    if rng.random() < 0.25:
        for name in ("thalamus", "putamen", "brain stem"):
            allowed = allowed | (anatomy.tissue == INDEX[name])
    from_ventricle = anatomy.ventricle_mm.float().clamp(min=0)
    volume_ml = math.exp(rng.uniform(math.log(0.1), math.log(130)))
    # Large loads are confluent around the ventricles; small ones may be anywhere.
    band = rng.uniform(0.3, 3.0) * (1 if volume_ml < 20 else 1.5)
    reach_mm = rng.uniform(2, 6) + 0.12 * volume_ml * rng.uniform(0.3, 1)
    lesion_mm = rng.uniform(3, 9) * (1 if volume_ml > 10 else 0.7)
    shape = anatomy.tissue.shape
    risk = band * torch.exp(-from_ventricle / reach_mm)
    risk += rng.uniform(0.2, 0.9) * smooth_noise(shape, 35, generator)
    risk += rng.uniform(0.5, 1.0) * smooth_noise(shape, lesion_mm, generator)
    risk += rng.uniform(0.1, 0.3) * smooth_noise(shape, 2.2, generator)
    risk -= rng.uniform(0.5, 2.5) * torch.exp(-anatomy.cortex_mm.float() / 2.5)
    candidates = risk[allowed]
    count = min(int(1000 * volume_ml), int(0.45 * len(candidates)))
    threshold = torch.topk(candidates, max(count, 1)).values[-1]
    return _rounded(risk >= threshold) & allowed


def _sclerosis(anatomy: Anatomy, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """Ovoids with rough outlines at the places that multiple sclerosis prefers."""
    tissue = anatomy.tissue
    white = tissue == INDEX["white"]
    from_ventricle = anatomy.ventricle_mm.float()
    below = (tissue == INDEX["brain stem"]) | (tissue == INDEX["cerebellar white"])
    deep_grey = (tissue == INDEX["thalamus"]) | (tissue == INDEX["pallidum"])
    middle = (anatomy.low[0] + anatomy.high[0]) / 2
    x = torch.arange(tissue.shape[0], device=tissue.device)[:, None, None]
    sites = {
        "periventricular": white & (from_ventricle < 4) & (from_ventricle > 0),
        "juxtacortical": white & (anatomy.cortex_mm < 2),
        "callosal": white & (from_ventricle < 8) & ((x - middle).abs() < 10),
        "infratentorial": below,
        "deep grey": deep_grey,
        "deep": white & (from_ventricle > 4) & (anatomy.cortex_mm > 2),
    }
    rough = smooth_noise(tissue.shape, 2.5, generator)
    place = white | below | deep_grey
    if rng.random() < 0.5:  # leukocortical lesions
        place = place | (tissue == INDEX["cortex"])
    shares = rng.dirichlet([3.0, 2.0, 0.7, 1.4, 0.5, 2.5])
    counts = rng.multinomial(1 + int(rng.exponential(30)), shares)
    size_mm = math.exp(rng.normal(math.log(1.9), 0.35))
    lesions = torch.zeros_like(white)
    for (name, site), count in zip(sites.items(), counts, strict=True):
        voxels = site.nonzero()
        if count == 0 or len(voxels) == 0:
            continue
        for centre in voxels[rng.integers(len(voxels), size=count)].tolist():
            radius = float(np.clip(size_mm * math.exp(rng.normal(0, 0.55)), 1.2, 14))
            axes = radius * np.exp(rng.normal(0, 0.25, size=3))
            frame = np.linalg.qr(rng.normal(size=(3, 3)))[0]
            if name in ("periventricular", "callosal") and rng.random() < 0.7:
                frame = _outward_frame(from_ventricle, centre, frame)
                axes = radius * np.array([rng.uniform(1.2, 2.2), 0.75, 0.75])
            _add_ovoid(lesions, rough, centre, frame, axes)
    return lesions & place


def _punctate(anatomy: Anatomy, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """Lesions of 1 to 2 mm radius in deep white matter, in a third of the images also in the brain
    stem and the cerebellum: how small-vessel disease begins."""
    place = (anatomy.tissue == INDEX["white"]) & (anatomy.ventricle_mm > 2)
    if rng.random() < 0.33:
        for name in ("brain stem", "cerebellar white"):
            place = place | (anatomy.tissue == INDEX[name])
    voxels = place.nonzero()
    lesions = torch.zeros_like(place)
    if not len(voxels):
        return lesions
    rough = smooth_noise(place.shape, 2.5, generator)
    for centre in voxels[rng.integers(len(voxels), size=1 + int(rng.exponential(15)))].tolist():
        axes = rng.uniform(1.0, 2.2) * np.exp(rng.normal(0, 0.2, size=3))
        frame = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        _add_ovoid(lesions, rough, centre, frame, axes)
    return lesions & place


def _rounded(lesions: Tensor) -> Tensor:
    """Lesions without specks and ragged edges, as readers draw them: the majority of 3x3x3."""
    return F.avg_pool3d(lesions.float()[None], 3, stride=1, padding=1)[0] >= 0.5


def _outward_frame(from_ventricle: Tensor, centre: Sequence[int], frame: np.ndarray) -> np.ndarray:
    """A frame (3, 3), rows orthonormal, whose first row points away from the ventricle."""
    low = [max(0, c - 3) for c in centre]
    box = from_ventricle[tuple(slice(b, c + 4) for b, c in zip(low, centre, strict=True))]
    if min(box.shape) < 2:
        return frame
    outward = np.array([np.gradient(box.cpu().numpy(), axis=axis).mean() for axis in range(3)])
    rows = np.stack([outward + 1e-3, frame[1], frame[2]])
    return np.linalg.qr(rows.T)[0].T


def _add_ovoid(
    lesions: Tensor, rough: Tensor, centre: Sequence[int], frame: np.ndarray, axes: np.ndarray
) -> None:
    """Set an ovoid with a rough outline in `lesions`, in place."""
    reach = int(1.5 * axes.max()) + 2
    low = [max(0, c - reach) for c in centre]
    box = tuple(slice(b, c + reach + 1) for b, c in zip(low, centre, strict=True))
    steps = [
        torch.arange(b, b + n, device=lesions.device, dtype=torch.float32) - c
        for b, n, c in zip(low, lesions[box].shape, centre, strict=True)
    ]
    scaled = torch.as_tensor(frame / axes[:, None], dtype=torch.float32, device=lesions.device)
    points = torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1)
    distance = (points @ scaled.T).norm(dim=-1)
    lesions[box] |= distance + 0.25 * rough[box] < 1


def _carried(anatomy: Anatomy, rng: np.random.Generator, atlas: Sequence[Tensor]) -> Tensor:
    """A mask of the atlas (MNI space) moved by the boxes of the two brains, within white matter."""
    mask = atlas[int(rng.integers(len(atlas)))].to(anatomy.tissue.device)
    if rng.random() < 0.5:
        mask = mask.flip(0)
    inside = torch.zeros_like(anatomy.lesions)
    for name in ("white", "brain stem", "cerebellar white", "thalamus"):
        inside |= anatomy.tissue == INDEX[name]
    voxels = inside.nonzero()
    low, high = (torch.tensor(v, device=voxels.device) for v in (anatomy.low, anatomy.high))
    part = (voxels - low) / (high - low)
    box = torch.tensor(MNI_BRAIN, device=voxels.device)
    shift = torch.as_tensor(rng.normal(0, 2, size=3), device=voxels.device)
    there = (box[0] + part * (box[1] - box[0]) + shift).round().long()
    for axis, size in enumerate(mask.shape):
        there[:, axis].clamp_(0, size - 1)
    lesions = torch.zeros_like(inside)
    lesions[tuple(voxels.T)] = mask[tuple(there.T)]
    return lesions


# Box of the brain in the MNI152 grid of 182 x 218 x 182 voxels, 1 mm, axes R, A, S.
MNI_BRAIN = ((20.0, 21.0, 8.0), (161.0, 196.0, 152.0))
