"""Random augmentation of slices: scaling, rotation, flips, gamma, gain and noise."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from leuko.preprocessing.slices import Channels
from leuko.training.recipes import Augmentation


def augment(
    images: Tensor,
    labels: Tensor,
    augmentation: Augmentation,
    *,
    channels: Channels,
    sagittal: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Augmented slices, in the form the network expects.

    `images` (N, H, W, 3), uint8, and `labels` (N, H, W), uint8, become centred images (N, 3, H, W),
    float32, and labels (N, H, W), int64. Sagittal slices (`sagittal` (N,), bool) are not flipped,
    since the front and back of a head differ. All tensors and `generator` are on one device.
    """
    moves = _random_moves(images.shape[1:3], augmentation, sagittal, generator)
    grid = F.affine_grid(moves, [len(images), 3, *images.shape[1:3]], align_corners=False)
    colours = images.permute(0, 3, 1, 2).float()
    colours = F.grid_sample(colours, grid, mode="bilinear", align_corners=False)
    moved = F.grid_sample(labels[:, None].float(), grid, mode="nearest", align_corners=False)
    colours = _recolour(colours, augmentation, channels, generator)
    colours = colours.contiguous(memory_format=torch.channels_last)
    return colours - 127, moved[:, 0].round().long()


def _random_moves(
    size: torch.Size, augmentation: Augmentation, sagittal: Tensor, generator: torch.Generator
) -> Tensor:
    """Affine matrices (N, 2, 3) from output to input coordinates, -1..1 as in affine_grid."""
    count, (height, width) = len(sagittal), size
    low, high = (math.log(s) for s in augmentation.scale)
    zoom = torch.exp(-_uniform(count, low, high, generator))
    turn = math.radians(augmentation.rotation_degrees)
    angle = _uniform(count, -turn, turn, generator)
    flip = torch.ones_like(zoom)
    if augmentation.flip:
        flipped = (_uniform(count, 0, 1, generator) < 0.5) & ~sagittal
        flip = torch.where(flipped, -flip, flip)
    cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
    zero = torch.zeros_like(zoom)
    # Left-right is the H axis of axial slices, which is y in affine_grid.
    across = torch.stack([cos, -sin * flip * height / width, zero], dim=1)
    along = torch.stack([sin * width / height, cos * flip, zero], dim=1)
    return torch.stack([across, along], dim=1)


def _recolour(
    colours: Tensor, augmentation: Augmentation, channels: Channels, generator: torch.Generator
) -> Tensor:
    """Images (N, 3, H, W) with random gamma, gain and noise, in [0, 255]."""
    count = len(colours)
    # Index of the random value of each channel: residue and FLAIR come from one scan.
    modality = [0, 0, 1] if channels == "flair-t1-residue" else [0, 0, 0]
    if augmentation.gamma:
        exponent = torch.exp(
            _uniform((count, 2), -augmentation.gamma, augmentation.gamma, generator)
        )[:, modality, None, None]
        if channels == "flair-t1-residue":  # no gamma: the residue is a difference of grey values
            exponent[:, 0] = 1
        colours = 100 * (colours / 100) ** exponent  # grey level 100, that of tissue, is kept
    if augmentation.gain:
        gain = _uniform((count, 2), 1 - augmentation.gain, 1 + augmentation.gain, generator)
        colours = colours * gain[:, modality, None, None]
    if augmentation.noise_grey:
        spread = _uniform((count, 1, 1, 1), 0, augmentation.noise_grey, generator)
        noise = torch.randn(colours.shape, generator=generator, device=colours.device)
        colours = colours + spread * noise * (colours > 0)  # air of extracted brains stays at 0
    return colours.clamp(0, 255)


def _uniform(
    shape: int | tuple[int, ...], low: float, high: float, generator: torch.Generator
) -> Tensor:
    size = (shape,) if isinstance(shape, int) else shape
    unit = torch.rand(size, generator=generator, device=generator.device)
    return low + (high - low) * unit
