"""Where the samples of a synthetic scan lie in an anatomy, and what lies there.

A scan is slices of 1 mm pixels; several samples, `Choice.parts`, make up the thickness of a slice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from leuko.synthesis.anatomy import TISSUES, VENTRICLE, Anatomy
from leuko.synthesis.random_fields import smooth_noise
from leuko.volume import Array

NECK_MM = 36  # below the brain, on axial slices of whole heads
LONGEST_SAMPLE_MM = 1.6  # through the thickness of a slice


@dataclass(frozen=True)
class Choice:
    """What is decided about one synthetic scan before its pixels are made."""

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
    """What lies at the points of a scan, all (N * parts, H, W)."""

    tissue: Tensor  # int64, indices into TISSUES
    ventricle_mm: Tensor  # distance from the lateral ventricles, negative inside
    cavity_mm: Tensor  # distance from the nearest ventricle of all
    lesion: Tensor  # 0 or 1
    damage: Tensor  # noise: above about 1 a lesion has lost its tissue
    back: Tensor  # 0 at the front of the brain, 1 at its back


def choose(anatomy: Anatomy, rng: np.random.Generator, *, every_mm: float = 4.0) -> Choice:
    """Slice direction and thickness, whole head or brain, T1 or none.

    Slices stand at least `every_mm` apart: neighbours of thin slices teach nothing new.
    """
    axis = int(rng.choice(3, p=[0.15, 0.15, 0.7]))
    thickness = 1.0 if rng.random() < 0.45 else float(rng.uniform(1.5, 8.0))
    spacing = thickness if rng.random() < 0.6 else thickness * float(rng.uniform(1.0, 1.3))
    head = anatomy.has_skull and bool(rng.random() < 0.5)
    extent = anatomy.high[axis] - anatomy.low[axis] + 24
    if head and axis == 2:
        extent += NECK_MM
    stride = max(spacing, every_mm)
    return Choice(
        axis=axis,
        slices=int(extent / stride),
        thickness_mm=thickness,
        spacing_mm=stride,
        parts=math.ceil(thickness / LONGEST_SAMPLE_MM),
        head=head,
        with_t1=bool(rng.random() < 0.7),
        ventricle_widening_mm=float(np.clip(rng.normal(0, 1.2), -1.5, 3)),
        sulcal_filling_mm=float(max(0, rng.uniform(-1.0, 1.6))),
    )


def sample_points(
    anatomy: Anatomy,
    choice: Choice,
    size: tuple[int, int],
    rng: np.random.Generator,
    generator: torch.Generator,
) -> Tensor:
    """Where the samples of all slices lie: voxels of the anatomy (N * parts, H, W, 3)."""
    device = anatomy.tissue.device
    across = choice.spacing_mm * (torch.arange(choice.slices, device=device) - choice.slices / 2)
    within = choice.thickness_mm * (
        (torch.arange(choice.parts, device=device) + 0.5) / choice.parts - 0.5
    )
    across = (across[:, None] + within).flatten() + rng.uniform(-2, 2)
    if choice.head and choice.axis == 2:
        across = across - NECK_MM / 2
    rows, columns = (
        torch.arange(n, device=device) - (n - 1) / 2 + rng.uniform(-12, 12) for n in size
    )
    grid = torch.meshgrid(across, rows, columns, indexing="ij")
    order = {0: (0, 1, 2), 1: (1, 0, 2), 2: (1, 2, 0)}[choice.axis]
    points = torch.stack([grid[k] for k in order], dim=-1)  # (F, H, W, 3), mm around the brain
    centre = torch.tensor(anatomy.low, device=device) + torch.tensor(anatomy.high, device=device)

    turn = np.radians(rng.normal(0, 6, size=3))
    matrix = np.eye(3)
    for axis, angle in enumerate(turn):
        a, b = (k for k in range(3) if k != axis)
        rotation = np.eye(3)
        rotation[[a, a, b, b], [a, b, a, b]] = np.array([1, -1, 1, 1]) * [
            np.cos(angle), np.sin(angle), np.sin(angle), np.cos(angle)
        ]  # fmt: skip
        matrix = matrix @ rotation
    matrix = matrix @ np.diag(np.exp(rng.normal(0, 0.06, size=3)))
    matrix += np.triu(rng.normal(0, 0.03, size=(3, 3)), 1)
    if rng.random() < 0.5:
        matrix[0] *= -1
    points = points @ torch.as_tensor(matrix.T, dtype=torch.float32, device=device)
    bend = rng.uniform(0, 2.5)
    scales = (24 / choice.spacing_mm * choice.parts, 24.0, 24.0)
    for axis in range(3):
        points[..., axis] += bend * smooth_noise(points.shape[:3], scales, generator)
    return points + centre / 2


def sample(anatomy: Anatomy, damage: Tensor, points: Tensor) -> Samples:
    sizes = torch.tensor(anatomy.tissue.shape, device=points.device)
    nearest = points.round().long()
    inside = ((nearest >= 0) & (nearest < sizes)).all(dim=-1)
    nearest = torch.minimum(nearest.clamp_(min=0), sizes - 1)
    index = (nearest[..., 0] * sizes[1] + nearest[..., 1]) * sizes[2] + nearest[..., 2]
    tissue = torch.where(inside, anatomy.tissue.flatten()[index], 0).long()
    solid = table([k.truth > VENTRICLE for k in TISSUES], tissue.device)[tissue]
    front, length = anatomy.high[1], anatomy.high[1] - anatomy.low[1]
    ventricle_mm = anatomy.ventricle_mm.flatten()[index].float()
    others_mm = anatomy.other_ventricles_mm.flatten()[index].float()
    return Samples(
        tissue,
        ventricle_mm,
        torch.minimum(ventricle_mm.clamp(min=0), others_mm),
        (anatomy.lesions.flatten()[index] & solid).float(),
        damage.flatten()[index],
        (front - points[..., 1]) / length,
    )


def slabs(fine: Tensor, choice: Choice) -> Tensor:
    """The mean through the thickness of each slice: (N * parts, H, W) to (N, H, W)."""
    return fine.view(choice.slices, choice.parts, *fine.shape[1:]).mean(dim=1)


def in_face(anatomy: Anatomy, points: Tensor, choice: Choice) -> Tensor:
    """Pixels (N, H, W) that a defacing tool would blank: in front of and below the brain."""
    middle = points.view(choice.slices, choice.parts, *points.shape[1:])[:, choice.parts // 2]
    forward = middle[..., 1] - anatomy.high[1]
    upward = middle[..., 2] - anatomy.low[2]
    return forward - 0.6 * upward > -22


def table(values: Sequence[float] | Array, device: torch.device) -> Tensor:
    table = torch.as_tensor(np.asarray(values), device=device)
    return table.float() if table.is_floating_point() else table
