"""Artefacts of the scanner, and brain extraction."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from leuko.synthesis.random_fields import blurred, smooth_noise
from leuko.synthesis.ranges import Range


@dataclass(frozen=True)
class AcquisitionSettings:
    """Artefacts of a scanner, drawn for each image; grey values are relative to white matter.

    Where no other reason is given, a range was chosen to cover clinical scans.
    """

    blur_px: Range = Range(0.4, 1.0)  # standard deviation, in plane
    # Bias field: its exponent is noise of this strength, smooth over these distances.
    bias_probability: float = 0.8
    weak_bias_probability: float = 0.75
    weak_bias: Range = Range(0, 0.2)
    strong_bias: Range = Range(0.2, 0.45)
    bias_px: float = 70
    bias_stack_part: float = 2.5  # distance across slices: number of slices divided by this
    bias_least_slices: float = 4.0  # smallest distance across slices
    # A surface coil: the exponent of the fall-off from one side of the image to the other.
    coil_probability: float = 0.1
    coil: Range = Range(0.3, 1.2)
    # A ghost: a faint copy of the image, shifted in plane.
    ghost_probability: float = 0.1
    ghost: Range = Range(0.01, 0.06)
    ghost_least_px: int = 20  # shift; at most half of the image
    # Rician noise: its standard deviation.
    low_noise_probability: float = 0.7
    low_noise: Range = Range(0.0, 0.03)
    high_noise: Range = Range(0.03, 0.07)
    # Noise of images that were interpolated after the acquisition is smooth.
    interpolation_probability: float = 0.4
    interpolation_px: Range = Range(0.4, 0.8)
    interpolation_gain: float = 2.0  # per pixel of smoothing, which lowers the noise
    gamma_log_sd: float = 0.14  # of the exponent that changes the contrast
    clipping_probability: float = 0.15
    clipped_at: Range = Range(1.5, 3.0)


@dataclass(frozen=True)
class ExtractionSettings:
    """Errors of brain extraction: too much or too little, with an uneven edge.

    The ranges were chosen to cover masks from too tight to too loose.
    """

    roughness: Range = Range(0, 0.35)
    rough_px: float = 12  # the edge varies over so many pixels in plane,
    rough_slices: float = 3  # and so many slices
    least: float = 0.6  # a rougher mask would have holes
    blur_px: Range = Range(1.5, 4)
    threshold: Range = Range(0.12, 0.5)  # a low one leaves a margin around the brain


def acquired(
    image: Tensor,
    rng: np.random.Generator,
    generator: torch.Generator,
    settings: AcquisitionSettings,
) -> Tensor:
    """The image (N, H, W) with blur, bias field, fall-off of a surface coil, ghost, Rician noise,
    gamma and clipping."""
    image = blurred(image, settings.blur_px.draw(rng))
    shape = image.shape
    across = max(settings.bias_least_slices, shape[0] / settings.bias_stack_part)
    bias = smooth_noise(shape, (across, settings.bias_px, settings.bias_px), generator)
    is_weak = rng.random() < settings.weak_bias_probability
    strength = (settings.weak_bias if is_weak else settings.strong_bias).draw(rng)
    image = image * torch.exp(strength * (rng.random() < settings.bias_probability) * bias)
    if rng.random() < settings.coil_probability:
        fall_off = settings.coil.draw(rng)
        image = image * torch.exp(-fall_off * _across(image, rng.uniform(0, math.tau)))
    if rng.random() < settings.ghost_probability:
        shift = int(rng.integers(settings.ghost_least_px, shape[1] // 2))
        axis = int(rng.integers(1, 3))
        image = image + settings.ghost.draw(rng) * torch.roll(image, shift, axis)
    is_low = rng.random() < settings.low_noise_probability
    sigma = (settings.low_noise if is_low else settings.high_noise).draw(rng)
    noise = torch.randn(2, *shape, generator=generator, device=image.device)
    if rng.random() < settings.interpolation_probability:
        width = settings.interpolation_px.draw(rng)
        noise = blurred(noise, width) * (1 + settings.interpolation_gain * width)
    image = torch.hypot(image + sigma * noise[0], sigma * noise[1])
    image = image ** float(np.exp(rng.normal(0, settings.gamma_log_sd)))
    if rng.random() < settings.clipping_probability:
        image = image.clamp(max=settings.clipped_at.draw(rng))
    return image


def _across(image: Tensor, angle: float) -> Tensor:
    """Position of each pixel of (N, H, W) along a direction in plane, about -0.5 to 0.5 (H, W)."""
    rows, columns = (torch.linspace(-0.5, 0.5, n, device=image.device) for n in image.shape[1:])
    return math.cos(angle) * rows[:, None] + math.sin(angle) * columns


def extracted(
    brain: Tensor,
    rng: np.random.Generator,
    generator: torch.Generator,
    settings: ExtractionSettings,
) -> Tensor:
    """An imperfect brain mask (N, H, W), from the part of each pixel that is brain."""
    scales = (settings.rough_slices, settings.rough_px, settings.rough_px)
    roughness = settings.roughness.draw(rng)
    rough = 1 + roughness * smooth_noise(brain.shape, scales, generator)
    rough = rough.clamp(min=settings.least)
    smooth = blurred(brain, settings.blur_px.draw(rng))
    return smooth * rough > settings.threshold.draw(rng)
