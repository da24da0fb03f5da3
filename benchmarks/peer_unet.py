"""The 2-D U-Net that won the WMH Segmentation Challenge in 2017, and its training.

Li et al., NeuroImage 183:650 (2018), doi 10.1016/j.neuroimage.2018.07.005, team sysu_media: slices
of 200 x 200 pixels as they are, FLAIR and T1, one Gaussian normalisation a scan within a mask of
the head; two convolutions a level, the first two 5 x 5; maps are repeated on the way up and the
skipped ones cropped to fit. What differs is said where it does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from peer_data import read_pair
from peer_training import Step, load, mixed_precision, train
from torch import Tensor, nn

from leuko.io import nifti
from leuko.model.runtime import BATCH
from leuko.preprocessing.slices import HEAD_PART_OF_TISSUE, tissue_level
from leuko.training.dataset import Slices, Subject
from leuko.volume import Array, Orientation, Volume, resample_onto

SIDE = 200
WIDTHS = (64, 96, 128, 256, 512)
# 30 in the paper, drawn evenly: minutes on a CPU would be a handful of steps, many without lesion.
IMAGES_PER_STEP, LESION_PART = 6, 0.5
RATE = 2e-4
TURN_DEGREES, SHEAR, SCALE = 15.0, 0.1, (0.9, 1.1)
# Parts of the slices, at the top and at the bottom each: not trained with, and without WMH.
ENDS_TRAINED, ENDS_EMPTY = 5 / 48, 6 / 48


class UNet(nn.Module):
    """Logits (N, H, W) of slices (N, 2, H, W)."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        before = 2
        for level, width in enumerate(widths):
            self.down.append(convolutions(before, width, 3 if level else 5))
            before = width
        self.up = nn.ModuleList()
        for width in widths[-2::-1]:
            self.up.append(convolutions(before + width, width, 3))
            before = width
        self.last = nn.Conv2d(before, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        size, skipped = x.shape[-2:], []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skipped.append(x)
        for block, skip in zip(self.up, skipped[-2::-1], strict=True):
            x = F.interpolate(x, scale_factor=2.0)
            x = block(torch.cat([x, centred(skip, x.shape[-2:])], dim=1))
        logits: Tensor = self.last(centred(x, size))
        return logits[:, 0]  # (N, H, W)


def convolutions(before: int, width: int, kernel: int) -> nn.Module:
    """Two, each with ReLU."""
    return nn.Sequential(
        nn.Conv2d(before, width, kernel, padding="same"),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, kernel, padding="same"),
        nn.ReLU(inplace=True),
    )


def centred(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (N, C, h, w) cropped, or padded with 0, to (N, C, *size) around their middle.

    Of an odd number of rows the last side has one more.
    """
    rows, columns = (new - old for new, old in zip(size, maps.shape[-2:], strict=True))
    top, left = int(rows / 2), int(columns / 2)
    return F.pad(maps, (left, columns - left, top, rows - top))


@dataclass(frozen=True)
class Window:
    """The square of SIDE x SIDE pixels on slices (N, H, W): its first row and column there."""

    row: int
    column: int

    @classmethod
    def around(cls, head: Array) -> "Window":
        """Around the middle of a head's mass; the paper's is fixed for each of its scanners."""
        middle = scipy.ndimage.center_of_mass(head)
        return cls(*(round(m + 0.5 - SIDE / 2) for m in middle[1:]))

    def cut(self, slices: Array, fill: float = 0) -> Array:
        """The square, `fill` where it reaches beyond the slices."""
        square = np.full((len(slices), SIDE, SIDE), fill, dtype=slices.dtype)
        on_slices, in_square = self._shared(slices.shape[1:])
        square[in_square] = slices[on_slices]
        return square

    def undo(self, square: Array, size: tuple[int, int]) -> Array:
        """Slices (N, *size) that hold the square (N, SIDE, SIDE), and 0 elsewhere."""
        slices = np.zeros((len(square), *size), dtype=square.dtype)
        on_slices, in_square = self._shared(size)
        slices[on_slices] = square[in_square]
        return slices

    def _shared(self, size: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        on_slices, in_square = [slice(None)], [slice(None)]
        for first, count in zip((self.row, self.column), size, strict=True):
            low, high = max(first, 0), min(first + SIDE, count)
            on_slices.append(slice(low, high))
            in_square.append(slice(low - first, high - first))
        return tuple(on_slices), tuple(in_square)


def prepared(flair: Volume, t1: Volume) -> tuple[Array, Window]:
    """Squares (N, 2, SIDE, SIDE), float32, of a pair, and where they lie on its slices."""
    grid = flair.canonical()
    heads, normal = [], []
    for scan in (grid, resample_onto(t1.canonical(), grid)):
        values = stack(scan, grid.through_plane_axis).astype(np.float32)
        heads.append(head_of(values, tissue_level(scan)))
        normal.append((values - values[heads[-1]].mean()) / values[heads[-1]].std())
    window = Window.around(heads[0])
    return np.stack([window.cut(n, fill=n.min()) for n in normal], axis=1), window


def head_of(slices: Array, tissue: float) -> Array:
    """What is brighter than a part of the tissue, its holes filled slice by slice.

    The paper's thresholds, 70 and 30, are in units of its scanners.
    """
    bright = slices > HEAD_PART_OF_TISSUE * tissue
    return np.stack([scipy.ndimage.binary_fill_holes(image) for image in bright])


def stack(scan: Volume, across: int) -> Array:
    return np.moveaxis(scan.data, across, 0)


def probability(flair: Volume, t1: Volume, networks: Sequence[UNet]) -> Array:
    """That of WMH (X, Y, Z) on the grid of the FLAIR, float32: the mean of the networks'.

    It is 0 on the first and last slices, which no network was trained with.
    """
    squares, window = prepared(flair, t1)
    images = torch.from_numpy(squares).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        means = [
            torch.stack([network(part).float().sigmoid() for network in networks]).mean(dim=0)
            for part in torch.split(images, BATCH)
        ]
    grid = flair.canonical()
    across = grid.through_plane_axis
    slices = window.undo(torch.cat(means).numpy(), stack(grid, across).shape[1:])
    ends = round(ENDS_EMPTY * len(slices))
    slices[:ends] = slices[len(slices) - ends :] = 0
    return Orientation.of(flair.affine).undo(np.moveaxis(slices, 0, across))


def read_network(path: Path) -> UNet:
    """A trained network, ready to use."""
    network = channels_last(UNet())
    network.load_state_dict(load(path)["network"])
    return network.eval()


def channels_last(network: UNet) -> UNet:
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def train_networks(seconds: Mapping[Path, float], subjects: Sequence[Subject]) -> None:
    """A network into each path, for its own time; they differ by their seed."""
    images, labels = training_slices(subjects)
    for seed, path in enumerate(seconds):
        torch.manual_seed(seed)
        network = channels_last(UNet())
        train(
            path,
            network,
            torch.optim.Adam(network.parameters(), lr=RATE),
            step_of(network, images, labels),
            seconds=seconds[path],
            seed=seed,
            images_per_step=IMAGES_PER_STEP,
            largest_gradient=math.inf,
        )


def training_slices(subjects: Sequence[Subject]) -> tuple[Tensor, Tensor]:
    """Squares (N, 2, SIDE, SIDE), float16, and WMH (N, SIDE, SIDE), of all subjects."""
    images, labels = [], []
    for subject in subjects:
        squares, window = prepared(*read_pair(subject))
        truth = nifti.read_mask(subject.labels).canonical()
        wmh = window.cut(stack(truth, truth.through_plane_axis))
        ends = round(ENDS_TRAINED * len(wmh))
        images.append(squares[ends : len(wmh) - ends].astype(np.float16))
        labels.append(wmh[ends : len(wmh) - ends])
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels))


def step_of(network: UNet, images: Tensor, labels: Tensor) -> Step:
    slices = Slices(images.numpy(), labels.numpy(), np.zeros(len(images), dtype=bool))

    def step(_: float, rng: np.random.Generator) -> Tensor:
        drawn = slices.draw(IMAGES_PER_STEP, lesion_part=LESION_PART, rng=rng)
        batch, truth = augmented(images[drawn].float(), labels[drawn].float(), rng)
        with mixed_precision():
            logits = network(batch)
        return loss_of(logits.float(), truth)

    return step


def augmented(images: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Half of the slices mirrored left to right, half of them turned, sheared and scaled."""
    moves = []
    for _ in images:
        turn, shear = math.radians(rng.uniform(-TURN_DEGREES, TURN_DEGREES)), rng.uniform(-1, 1)
        rotated = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        sheared = np.array([[1, -math.sin(SHEAR * shear)], [0, math.cos(SHEAR * shear)]])
        move = rotated @ sheared @ np.diag(rng.uniform(*SCALE, size=2))
        move = move if rng.random() < 0.5 else np.eye(2)
        # Rows run left to right, which is the y of affine_grid.
        moves.append(np.diag([1, -1 if rng.random() < 0.5 else 1]) @ move)
    matrices = torch.from_numpy(np.pad(moves, ((0, 0), (0, 0), (0, 1))).astype(np.float32))
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    truth = F.grid_sample(labels[:, None], grid, mode="nearest", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last), truth[:, 0]


def loss_of(logits: Tensor, truth: Tensor) -> Tensor:
    """The paper's, 1 - Dice over the whole batch, smoothed by 1, and the mean cross entropy.

    By Dice alone it learnt within a hundred steps to find nothing, and did not come back.
    """
    found = logits.sigmoid()
    dice = (2 * (found * truth).sum() + 1) / (found.sum() + truth.sum() + 1)
    return 1 - dice + F.binary_cross_entropy_with_logits(logits, truth)
