"""Smooth noise and blur for synthetic images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Noise = Callable[[], tuple[Tensor, Tensor]]  # draws `coarse_and_fine` noise of a scan


@dataclass(frozen=True)
class NoiseSettings:
    """Distances over which properties of tissue vary."""

    coarse_mm: float = 20  # from region to region
    fine_mm: float = 6  # within a region
    damage_mm: float = 9  # loss of tissue in lesions


def smooth_noise(
    shape: Sequence[int], scale: float | Sequence[float], generator: torch.Generator
) -> Tensor:
    """Noise (D, H, W) that varies over `scale` voxels; its standard deviation is about 0.75."""
    scales = [scale] * 3 if isinstance(scale, float | int) else scale
    coarse = [max(2, math.ceil(n / s) + 1) for n, s in zip(shape, scales, strict=True)]
    noise = torch.randn(1, 1, *coarse, generator=generator, device=generator.device)
    # Linear interpolation averages, most of all between the coarse points.
    return 1.4 * F.interpolate(noise, tuple(shape), mode="trilinear", align_corners=True)[0, 0]


def coarse_and_fine(
    shape: Sequence[int], step_mm: float, generator: torch.Generator, settings: NoiseSettings
) -> tuple[Tensor, Tensor]:
    """Coarse and fine noise (D, H, W) on pixels of 1 mm, `step_mm` apart along the first axis."""
    coarse, fine = settings.coarse_mm, settings.fine_mm
    return (
        smooth_noise(shape, (coarse / step_mm, coarse, coarse), generator),
        smooth_noise(shape, (max(1, fine / step_mm), fine, fine), generator),
    )


def blurred(stack: Tensor, sigma: float) -> Tensor:
    """In-plane Gaussian blur of (N, H, W), sigma in pixels."""
    along, across = (_gaussian(n, sigma, stack.device) for n in stack.shape[-2:])
    return along @ stack @ across.T


def _gaussian(pixels: int, sigma: float, device: torch.device) -> Tensor:
    """The matrix (pixels, pixels) that blurs a line; its rows sum to 1."""
    at = torch.arange(pixels, device=device)
    weights = torch.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)
