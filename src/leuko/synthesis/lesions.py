"""Synthetic lesions: vascular and multiple sclerosis.

Vascular: bands and haloes along the ventricles, and deep lesions from punctate to confluent.
Multiple sclerosis: ovoids perpendicular to the ventricles, juxtacortical, callosal and
infratentorial ones. Masks of other brains can be transferred.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from leuko.synthesis.anatomy import INDEX, Anatomy
from leuko.synthesis.random_fields import smooth_noise
from leuko.synthesis.ranges import Range

# Box of the brain in the MNI152 grid of 182 x 218 x 182 voxels, 1 mm, axes R, A, S.
MNI_BRAIN = ((20.0, 21.0, 8.0), (161.0, 196.0, 152.0))


@dataclass(frozen=True)
class VascularSettings:
    """Lesions of small-vessel disease: the voxels of white matter with the highest risk.

    Strengths are in units of risk; the ranges were chosen to cover small, punctate to large,
    confluent loads.
    """

    volume_ml: Range = Range(0.1, 130)  # drawn on a logarithmic scale
    largest_part: float = 0.45  # of the tissue that may have lesions
    grey_probability: float = 0.25  # of lesions in thalamus, putamen and brain stem too
    band: Range = Range(0.3, 3.0)  # risk at the ventricles
    large_ml: float = 20  # larger loads are confluent around the ventricles:
    large_band_factor: float = 1.5  # their risk at the ventricles is higher
    reach_mm: Range = Range(2, 6)  # from the ventricles to where the risk has fallen to 1 / e
    reach_mm_per_ml: float = 0.12  # added for large loads,
    reach_part: Range = Range(0.3, 1)  # times this
    region_noise: Range = Range(0.2, 0.9)  # decides which regions have lesions
    region_mm: float = 35
    lesion_noise: Range = Range(0.5, 1.0)  # decides where the lesions of a region are
    lesion_mm: Range = Range(3, 9)
    small_ml: float = 10  # loads up to this one have smaller lesions:
    small_lesion_factor: float = 0.7
    outline_noise: Range = Range(0.1, 0.3)  # makes outlines irregular
    outline_mm: float = 2.2
    cortex_penalty: Range = Range(0.5, 2.5)  # less risk beside the cortex
    cortex_mm: float = 2.5  # to where the penalty has fallen to 1 / e


@dataclass(frozen=True)
class SclerosisSettings:
    """Lesions of multiple sclerosis: ovoids at typical sites.

    Numbers and sizes were chosen to cover clinical scans.
    """

    # Dirichlet weights of the sites among the lesions of an image.
    sites: Mapping[str, float] = field(
        default_factory=lambda: {
            "periventricular": 3.0,
            "juxtacortical": 2.0,
            "callosal": 0.7,
            "infratentorial": 1.4,
            "deep grey": 0.5,
            "deep": 2.5,
        }
    )
    # Largest distances of the centres. Deep lesions are farther from ventricles and cortex.
    periventricular_mm: float = 4
    juxtacortical_mm: float = 2
    callosal_mm: float = 8  # from the ventricles,
    callosal_midline_mm: float = 10  # and from the midline
    leukocortical_probability: float = 0.5  # of lesions that may extend into the cortex
    mean_count: float = 30  # of an exponential distribution; one is added
    median_radius_mm: float = 1.9
    image_radius_log_sd: float = 0.35  # between images
    lesion_radius_log_sd: float = 0.55  # between lesions of an image
    radius_mm: Range = Range(1.2, 14)  # limits
    axis_log_sd: float = 0.25  # of the three radii of a lesion
    finger_probability: float = 0.7  # of ovoids perpendicular to the ventricles (Dawson's fingers)
    finger_length: Range = Range(1.2, 2.2)  # in radii
    finger_width: float = 0.75


@dataclass(frozen=True)
class PunctateSettings:
    """Small lesions in deep white matter, as in early small-vessel disease."""

    probability: float = 0.3  # of the images with lesions
    ventricle_mm: float = 2  # least distance of the centres from the ventricles
    infratentorial_probability: float = 0.33  # of lesions in brain stem and cerebellum too
    mean_count: float = 15  # of an exponential distribution; one is added
    radius_mm: Range = Range(1.0, 2.2)
    axis_log_sd: float = 0.2


@dataclass(frozen=True)
class LesionSettings:
    """Kinds of lesions, and how often each is drawn."""

    # Part of the images with each kind; "transferred": masks of other brains, if there are any.
    kinds: Mapping[str, float] = field(
        default_factory=lambda: {
            "vascular": 0.42,
            "ms": 0.27,
            "both": 0.06,
            "transferred": 0.12,
            "none": 0.13,
        }
    )
    own_probability: float = 0.5  # of images with lesions that keep those of the label map
    vascular: VascularSettings = VascularSettings()
    sclerosis: SclerosisSettings = field(default_factory=SclerosisSettings)
    punctate: PunctateSettings = PunctateSettings()
    transferred_flip_probability: float = 0.5  # left to right
    transferred_shift_sd_mm: float = 2  # along each axis: brains differ
    outline_mm: float = 2.5  # irregular outlines of ovoids vary over so many mm
    outline_roughness: float = 0.25  # in radii


def draw_lesions(
    anatomy: Anatomy,
    rng: np.random.Generator,
    *,
    atlas: Sequence[Tensor] = (),
    settings: LesionSettings = LesionSettings(),
) -> Tensor:
    """A random mask of lesions (X, Y, Z), bool, on an anatomy and its device.

    `atlas` are masks in MNI space (X, Y, Z) that may be transferred.
    """
    generator = torch.Generator(anatomy.structure.device).manual_seed(int(rng.integers(2**62)))
    kinds = [kind for kind in settings.kinds if atlas or kind != "transferred"]
    shares = np.array([settings.kinds[kind] for kind in kinds])
    kind = rng.choice(kinds, p=shares / shares.sum())
    lesions = torch.zeros_like(anatomy.lesions)
    if kind == "none":
        return lesions
    if rng.random() < settings.own_probability:
        lesions |= anatomy.lesions
    if kind in ("vascular", "both"):
        lesions |= _vascular(anatomy, rng, generator, settings.vascular)
    if kind in ("ms", "both"):
        lesions |= _sclerosis(anatomy, rng, generator, settings)
    if kind == "transferred":
        lesions |= _transferred(anatomy, rng, atlas, settings)
    if rng.random() < settings.punctate.probability:
        lesions |= _punctate(anatomy, rng, generator, settings)
    return lesions


def _vascular(
    anatomy: Anatomy,
    rng: np.random.Generator,
    generator: torch.Generator,
    settings: VascularSettings,
) -> Tensor:
    """The voxels of white matter with the highest risk, as many as make up a random volume.

    Risk falls with the distance from the ventricles, is low beside the cortex, and has noise at
    three scales: region, lesion, outline.
    """
    allowed = _is_any(anatomy, "white")
    if rng.random() < settings.grey_probability:
        allowed = allowed | _is_any(anatomy, "thalamus", "putamen", "brain stem")
    from_ventricle = anatomy.ventricle_mm.float().clamp(min=0)
    volume_ml = settings.volume_ml.draw_log(rng)
    is_large, is_small = volume_ml >= settings.large_ml, volume_ml <= settings.small_ml
    band = settings.band.draw(rng) * (settings.large_band_factor if is_large else 1)
    reach_mm = settings.reach_mm.draw(rng)
    reach_mm += settings.reach_mm_per_ml * volume_ml * settings.reach_part.draw(rng)
    lesion_mm = settings.lesion_mm.draw(rng) * (settings.small_lesion_factor if is_small else 1)
    risk = band * torch.exp(-from_ventricle / reach_mm)
    for strength, scale_mm in (
        (settings.region_noise, settings.region_mm),
        (settings.lesion_noise, lesion_mm),
        (settings.outline_noise, settings.outline_mm),
    ):
        risk += strength.draw(rng) * smooth_noise(risk.shape, scale_mm, generator)
    penalty = settings.cortex_penalty.draw(rng)
    risk -= penalty * torch.exp(-anatomy.cortex_mm.float() / settings.cortex_mm)
    candidates = risk[allowed]
    count = min(int(1000 * volume_ml), int(settings.largest_part * len(candidates)))
    threshold = torch.topk(candidates, max(count, 1)).values[-1]
    return _rounded(risk >= threshold) & allowed


def _sclerosis(
    anatomy: Anatomy, rng: np.random.Generator, generator: torch.Generator, common: LesionSettings
) -> Tensor:
    """Ovoids with irregular outlines at the sites of multiple sclerosis."""
    settings = common.sclerosis
    white = _is_any(anatomy, "white")
    from_ventricle = anatomy.ventricle_mm.float()
    below = _is_any(anatomy, "brain stem", "cerebellar white")
    deep_grey = _is_any(anatomy, "thalamus", "pallidum")
    middle = (anatomy.low[0] + anatomy.high[0]) / 2
    x = torch.arange(white.shape[0], device=white.device)[:, None, None]
    at_ventricle = from_ventricle < settings.periventricular_mm
    beside_midline = (x - middle).abs() < settings.callosal_midline_mm
    sites = {
        "periventricular": white & at_ventricle & (from_ventricle > 0),
        "juxtacortical": white & (anatomy.cortex_mm < settings.juxtacortical_mm),
        "callosal": white & (from_ventricle < settings.callosal_mm) & beside_midline,
        "infratentorial": below,
        "deep grey": deep_grey,
        "deep": white
        & (from_ventricle > settings.periventricular_mm)
        & (anatomy.cortex_mm > settings.juxtacortical_mm),
    }
    rough = common.outline_roughness * smooth_noise(white.shape, common.outline_mm, generator)
    place = white | below | deep_grey
    if rng.random() < settings.leukocortical_probability:
        place = place | _is_any(anatomy, "cortex")
    shares = rng.dirichlet([settings.sites[name] for name in sites])
    counts = rng.multinomial(1 + int(rng.exponential(settings.mean_count)), shares)
    median_mm = math.log(settings.median_radius_mm)
    size_mm = math.exp(rng.normal(median_mm, settings.image_radius_log_sd))
    lesions = torch.zeros_like(white)
    for (name, site), count in zip(sites.items(), counts, strict=True):
        voxels = site.nonzero()
        if count == 0 or len(voxels) == 0:
            continue
        for centre in voxels[rng.integers(len(voxels), size=count)].tolist():
            drawn_mm = size_mm * math.exp(rng.normal(0, settings.lesion_radius_log_sd))
            radius = float(np.clip(drawn_mm, *settings.radius_mm))
            axes = radius * np.exp(rng.normal(0, settings.axis_log_sd, size=3))
            frame = np.linalg.qr(rng.normal(size=(3, 3)))[0]
            beside = name in ("periventricular", "callosal")
            if beside and rng.random() < settings.finger_probability:
                frame = _outward_frame(from_ventricle, centre, frame)
                length, width = settings.finger_length.draw(rng), settings.finger_width
                axes = radius * np.array([length, width, width])
            _add_ovoid(lesions, rough, centre, frame, axes)
    return lesions & place


def _punctate(
    anatomy: Anatomy, rng: np.random.Generator, generator: torch.Generator, common: LesionSettings
) -> Tensor:
    """Small lesions in deep white matter, sometimes also in the brain stem and the cerebellum."""
    settings = common.punctate
    place = _is_any(anatomy, "white") & (anatomy.ventricle_mm > settings.ventricle_mm)
    if rng.random() < settings.infratentorial_probability:
        place = place | _is_any(anatomy, "brain stem", "cerebellar white")
    voxels = place.nonzero()
    lesions = torch.zeros_like(place)
    if not len(voxels):
        return lesions
    rough = common.outline_roughness * smooth_noise(place.shape, common.outline_mm, generator)
    count = 1 + int(rng.exponential(settings.mean_count))
    for centre in voxels[rng.integers(len(voxels), size=count)].tolist():
        axes = settings.radius_mm.draw(rng) * np.exp(rng.normal(0, settings.axis_log_sd, size=3))
        frame = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        _add_ovoid(lesions, rough, centre, frame, axes)
    return lesions & place


def _is_any(anatomy: Anatomy, *names: str) -> Tensor:
    """The voxels (X, Y, Z) of some structures, bool."""
    mask = torch.zeros_like(anatomy.lesions)
    for name in names:
        mask |= anatomy.structure == INDEX[name]
    return mask


def _rounded(lesions: Tensor) -> Tensor:
    """Lesions without specks and ragged edges, as readers draw them: the majority of 3 x 3 x 3."""
    return F.avg_pool3d(lesions.float()[None], 3, stride=1, padding=1)[0] >= 0.5


def _outward_frame(from_ventricle: Tensor, centre: Sequence[int], frame: np.ndarray) -> np.ndarray:
    """Orthonormal rows (3, 3), the first pointing away from the ventricle, or `frame`."""
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
    """Set an ovoid in `lesions`, in place; `rough` (X, Y, Z) shifts its outline, in radii."""
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
    lesions[box] |= distance + rough[box] < 1


def _transferred(
    anatomy: Anatomy, rng: np.random.Generator, atlas: Sequence[Tensor], settings: LesionSettings
) -> Tensor:
    """A mask of the atlas (MNI space), transferred by the bounding boxes of the two brains."""
    mask = atlas[int(rng.integers(len(atlas)))].to(anatomy.structure.device)
    if rng.random() < settings.transferred_flip_probability:
        mask = mask.flip(0)
    inside = _is_any(anatomy, "white", "brain stem", "cerebellar white", "thalamus")
    voxels = inside.nonzero()
    low, high = (torch.tensor(v, device=voxels.device) for v in (anatomy.low, anatomy.high))
    part = (voxels - low) / (high - low)
    box = torch.tensor(MNI_BRAIN, device=voxels.device)
    shift = rng.normal(0, settings.transferred_shift_sd_mm, size=3)
    there = box[0] + part * (box[1] - box[0]) + torch.as_tensor(shift, device=voxels.device)
    there = there.round().long()
    for axis, size in enumerate(mask.shape):
        there[:, axis].clamp_(0, size - 1)
    lesions = torch.zeros_like(inside)
    lesions[tuple(voxels.T)] = mask[tuple(there.T)]
    return lesions
