"""What a scanner, and the preparation of a study, do to an image."""

import math

import numpy as np
import torch
from torch import Tensor

from leuko.synthesis.random_fields import blurred, smooth_noise


def acquired(image: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """What the scanner adds: blur, bias field, the fall-off of a surface coil, ghosts, Rician
    noise, gamma, a clipped top."""
    image = blurred(image, rng.uniform(0.4, 1.0))
    shape = image.shape
    bias = smooth_noise(shape, (max(4.0, shape[0] / 2.5), 70, 70), generator)
    strength = rng.uniform(0, 0.2) if rng.random() < 0.75 else rng.uniform(0.2, 0.45)
    image = image * torch.exp(strength * (rng.random() < 0.8) * bias)
    if rng.random() < 0.1:  # one surface coil, nearest to a random side
        image = image * torch.exp(-rng.uniform(0.3, 1.2) * _across(image, rng.uniform(0, math.tau)))
    if rng.random() < 0.1:
        shift, axis = int(rng.integers(20, shape[1] // 2)), int(rng.integers(1, 3))
        image = image + rng.uniform(0.01, 0.06) * torch.roll(image, shift, axis)
    sigma = rng.uniform(0.0, 0.03) if rng.random() < 0.7 else rng.uniform(0.03, 0.07)
    noise = torch.randn(2, *shape, generator=generator, device=image.device)
    if rng.random() < 0.4:  # interpolated after the acquisition
        width = rng.uniform(0.4, 0.8)
        noise = blurred(noise, width) * (1 + 2 * width)
    image = torch.hypot(image + sigma * noise[0], sigma * noise[1])
    image = image ** float(np.exp(rng.normal(0, 0.14)))
    if rng.random() < 0.15:
        image = image.clamp(max=rng.uniform(1.5, 3.0))
    return image


def _across(image: Tensor, angle: float) -> Tensor:
    """How far each pixel of (N, H, W) lies along a direction in plane, about -0.5 to 0.5 (H, W)."""
    rows, columns = (torch.linspace(-0.5, 0.5, n, device=image.device) for n in image.shape[1:])
    return math.cos(angle) * rows[:, None] + math.sin(angle) * columns


def extracted(brain: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """An imperfect brain mask (N, H, W) around the share of brain in each pixel."""
    rough = 1 + rng.uniform(0, 0.35) * smooth_noise(brain.shape, (3, 12, 12), generator)
    rough = rough.clamp(min=0.6)  # no holes
    return blurred(brain, rng.uniform(1.5, 4)) * rough > rng.uniform(0.12, 0.5)
