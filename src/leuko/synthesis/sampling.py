"""The slices of a synthetic scan: their pose in an anatomy, and the anatomy at their samples.

Pixels are 1 mm. Several samples, `Choice.parts`, make up the thickness of a slice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from leuko.io.tissue import Tissue
from leuko.synthesis.anatomy import STRUCTURES, Anatomy
from leuko.synthesis.random_fields import smooth_noise
from leuko.synthesis.ranges import Range
from leuko.volume import Array


@dataclass(frozen=True)
class SamplingSettings:
    """Slices, pose and shape of the brain, and whether scans have a skull, a face and a T1.

    Where no other reason is given, a range was chosen to cover clinical scans.
    """

    axis_probabilities: tuple[float, ...] = (0.15, 0.15, 0.7)  # sagittal, coronal, axial
    isotropic_probability: float = 0.45  # of slices 1 mm thick, as 3-D sequences have
    thickness_mm: Range = Range(1.5, 8.0)  # of other slices
    gapless_probability: float = 0.6
    spacing_per_thickness: Range = Range(1.0, 1.3)  # of slices with gaps
    longest_sample_mm: float = 1.6  # through the thickness of a slice
    margin_mm: float = 24  # of the stack, both ends together
    head_probability: float = 0.5  # of scans with skull and scalp, if the anatomy has them
    neck_mm: float = 36  # below the brain, on axial slices of whole heads
    t1_probability: float = 0.7
    t1_misaligned_probability: float = 0.5  # registration leaves an error
    t1_misaligned_sd_mm: float = 0.6  # along each axis
    defaced_probability: float = 0.15  # of whole heads
    # A pixel is blanked if forward > limit + slope * upward: its mm in front of the foremost point
    # of the brain, and above its lowest.
    face_limit_mm: float = -22
    face_slope: float = 0.6
    ventricle_widening_sd_mm: float = 1.2
    ventricle_widening_mm: Range = Range(-1.5, 3)  # limits
    sulcal_filling_mm: Range = Range(-1.0, 1.6)  # by cortex; below 0: none
    offset_mm: Range = Range(-2, 2)  # of the stack, across the slices
    shift_mm: Range = Range(-12, 12)  # of the head, within the slices
    rotation_sd_degrees: float = 6  # about each axis
    scale_log_sd: float = 0.06  # along each axis
    shear_sd: float = 0.03
    flip_probability: float = 0.5  # left to right
    bend_mm: Range = Range(0, 2.5)  # of a smooth deformation
    bend_scale_mm: float = 24.0  # it varies over so many mm


@dataclass(frozen=True)
class Choice:
    """Decisions about one synthetic scan, made before its pixels."""

    axis: int
    slices: int
    thickness_mm: float
    spacing_mm: float
    parts: int  # samples through the thickness of a slice
    head: bool  # with skull and scalp, as the scanner saw it
    with_t1: bool
    ventricle_widening_mm: float
    sulcal_filling_mm: float  # by cortex


class Samples(NamedTuple):
    """The anatomy at the samples of a scan, all (N * parts, H, W)."""

    structure: Tensor  # int64, indices into STRUCTURES
    ventricle_mm: Tensor  # distance from the lateral ventricles, negative inside
    cavity_mm: Tensor  # distance from the nearest ventricle of all
    lesion: Tensor  # 0 or 1
    damage: Tensor  # noise: above about 1 a lesion has lost its tissue
    back: Tensor  # 0 at the front of the brain, 1 at its back


def choose(
    anatomy: Anatomy,
    rng: np.random.Generator,
    *,
    every_mm: float = 4.0,
    settings: SamplingSettings = SamplingSettings(),
) -> Choice:
    """A random choice of slice direction and thickness, whole head or brain, with T1 or without.

    Slices are at least `every_mm` apart: neighbouring thin slices are nearly alike.
    """
    axis = int(rng.choice(3, p=settings.axis_probabilities))
    thickness, spacing_per_thickness = 1.0, 1.0
    if rng.random() >= settings.isotropic_probability:
        thickness = float(settings.thickness_mm.draw(rng))
    if rng.random() >= settings.gapless_probability:
        spacing_per_thickness = float(settings.spacing_per_thickness.draw(rng))
    head = anatomy.has_skull and bool(rng.random() < settings.head_probability)
    extent = anatomy.high[axis] - anatomy.low[axis] + settings.margin_mm
    if head and axis == 2:
        extent += settings.neck_mm
    stride = max(thickness * spacing_per_thickness, every_mm)
    low_mm, high_mm = settings.ventricle_widening_mm
    return Choice(
        axis=axis,
        slices=int(extent / stride),
        thickness_mm=thickness,
        spacing_mm=stride,
        parts=math.ceil(thickness / settings.longest_sample_mm),
        head=head,
        with_t1=bool(rng.random() < settings.t1_probability),
        ventricle_widening_mm=float(
            np.clip(rng.normal(0, settings.ventricle_widening_sd_mm), low_mm, high_mm)
        ),
        sulcal_filling_mm=float(max(0, settings.sulcal_filling_mm.draw(rng))),
    )


def sample_points(
    anatomy: Anatomy,
    choice: Choice,
    size: tuple[int, int],
    rng: np.random.Generator,
    generator: torch.Generator,
    *,
    settings: SamplingSettings,
) -> Tensor:
    """The samples of all slices: voxels of the anatomy (N * parts, H, W, 3)."""
    device = anatomy.structure.device
    across = choice.spacing_mm * (torch.arange(choice.slices, device=device) - choice.slices / 2)
    within = choice.thickness_mm * (
        (torch.arange(choice.parts, device=device) + 0.5) / choice.parts - 0.5
    )
    across = (across[:, None] + within).flatten() + settings.offset_mm.draw(rng)
    if choice.head and choice.axis == 2:
        across = across - settings.neck_mm / 2
    rows, columns = (
        torch.arange(n, device=device) - (n - 1) / 2 + settings.shift_mm.draw(rng) for n in size
    )
    grid = torch.meshgrid(across, rows, columns, indexing="ij")
    order = {0: (0, 1, 2), 1: (1, 0, 2), 2: (1, 2, 0)}[choice.axis]
    points = torch.stack([grid[k] for k in order], dim=-1)  # (F, H, W, 3), mm around the brain
    centre = torch.tensor(anatomy.low, device=device) + torch.tensor(anatomy.high, device=device)

    matrix = _random_affine(rng, settings)
    points = points @ torch.as_tensor(matrix.T, dtype=torch.float32, device=device)
    bend, scale = settings.bend_mm.draw(rng), settings.bend_scale_mm
    scales = (scale / choice.spacing_mm * choice.parts, scale, scale)
    for axis in range(3):
        points[..., axis] += bend * smooth_noise(points.shape[:3], scales, generator)
    return points + centre / 2


def _random_affine(rng: np.random.Generator, settings: SamplingSettings) -> Array:
    """A rotation, scaling, shear and perhaps a flip (3, 3)."""
    turn = np.radians(rng.normal(0, settings.rotation_sd_degrees, size=3))
    matrix = np.eye(3)
    for axis, angle in enumerate(turn):
        a, b = (k for k in range(3) if k != axis)
        rotation = np.eye(3)
        rotation[[a, a, b, b], [a, b, a, b]] = np.array([1, -1, 1, 1]) * [
            np.cos(angle), np.sin(angle), np.sin(angle), np.cos(angle)
        ]  # fmt: skip
        matrix = matrix @ rotation
    matrix = matrix @ np.diag(np.exp(rng.normal(0, settings.scale_log_sd, size=3)))
    matrix += np.triu(rng.normal(0, settings.shear_sd, size=(3, 3)), 1)
    if rng.random() < settings.flip_probability:
        matrix[0] *= -1
    affine: Array = matrix
    return affine


def sample(anatomy: Anatomy, damage: Tensor, points: Tensor) -> Samples:
    """The anatomy, and the noise `damage` on its grid, at the nearest voxels to points (..., 3)."""
    sizes = torch.tensor(anatomy.structure.shape, device=points.device)
    nearest = points.round().long()
    inside = ((nearest >= 0) & (nearest < sizes)).all(dim=-1)
    nearest = torch.minimum(nearest.clamp_(min=0), sizes - 1)
    index = (nearest[..., 0] * sizes[1] + nearest[..., 1]) * sizes[2] + nearest[..., 2]
    structure = torch.where(inside, anatomy.structure.flatten()[index], 0).long()
    solid = value_of([s.tissue > Tissue.VENTRICLE for s in STRUCTURES], structure)
    front, length = anatomy.high[1], anatomy.high[1] - anatomy.low[1]
    ventricle_mm = anatomy.ventricle_mm.flatten()[index].float()
    others_mm = anatomy.other_ventricles_mm.flatten()[index].float()
    return Samples(
        structure,
        ventricle_mm,
        torch.minimum(ventricle_mm.clamp(min=0), others_mm),
        (anatomy.lesions.flatten()[index] & solid).float(),
        damage.flatten()[index],
        (front - points[..., 1]) / length,
    )


def slabs(fine: Tensor, choice: Choice) -> Tensor:
    """The mean through the thickness of each slice: (N * parts, H, W) to (N, H, W)."""
    return fine.view(choice.slices, choice.parts, *fine.shape[1:]).mean(dim=1)


def in_face(
    anatomy: Anatomy,
    points: Tensor,
    choice: Choice,
    settings: SamplingSettings,
) -> Tensor:
    """Pixels (N, H, W) that a defacing tool would blank: in front of and below the brain."""
    middle = points.view(choice.slices, choice.parts, *points.shape[1:])[:, choice.parts // 2]
    forward = middle[..., 1] - anatomy.high[1]
    upward = middle[..., 2] - anatomy.low[2]
    return forward - settings.face_slope * upward > settings.face_limit_mm


def value_of(values: Sequence[float] | Array, structure: Tensor) -> Tensor:
    """The value of each structure in `structure` (indices into STRUCTURES); floats are float32."""
    table = torch.as_tensor(np.asarray(values), device=structure.device)
    return (table.float() if table.is_floating_point() else table)[structure]
