"""A 3-D network as nnU-Net would configure it for these scans, and its training.

Isensee et al., Nature Methods 18:203 (2021), doi 10.1038/s41592-020-01008-z; the network and the
sliding window are MONAI's. PATCH, KERNELS and STRIDES are what nnU-Net's planner (version 2.8,
3d_fullres, 8 GB) gives for the median shape of the training subjects, cropped, at 1 x 1 x 3 mm.
What differs from nnU-Net: mirroring is the only augmentation, and scans are resampled linearly.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from monai.inferers.utils import sliding_window_inference
from monai.networks.nets.dynunet import DynUNet
from peer_data import read_pair
from peer_training import load, mixed_precision, train
from torch import Tensor, nn

from leuko.io import nifti
from leuko.training.dataset import Subject
from leuko.volume import Array, Orientation, Volume, resample_onto

# Axes: across the slices, left to right, back to front.
SPACING_MM = (3.0, 1.0, 1.0)
PATCH = (40, 224, 224)
KERNELS = ((1, 3, 3), *[(3, 3, 3)] * 5)
STRIDES = ((1, 1, 1), (1, 2, 2), *[(2, 2, 2)] * 3, (1, 2, 2))
WIDTHS = (32, 64, 128, 256, 320, 320)
SUPERVISED = 3  # outputs below the full resolution; the two coarsest are left out
IMAGES_PER_STEP = 2  # one of them holds a lesion for sure: a third, rounded up, as nnU-Net does
RATE, MOMENTUM, DECAY, POWER, LARGEST_GRADIENT = 1e-2, 0.99, 3e-5, 0.9, 12.0
OVERLAP = 0.5
SMOOTH = 1e-5
AXES = (2, 3, 4)


class Network(DynUNet):
    """Logits (N, 2, ...) of scans (N, 2, ...); while training, those of all supervised levels."""

    def __init__(self, widths: Sequence[int] = WIDTHS, *, supervised: bool) -> None:
        super().__init__(
            3,
            in_channels=2,
            out_channels=2,
            kernel_size=KERNELS,
            strides=STRIDES,
            upsample_kernel_size=STRIDES[1:],
            filters=widths,
            deep_supervision=supervised,
            deep_supr_num=SUPERVISED,
        )

    def get_upsamples(self) -> nn.ModuleList:
        """With the kernels of the way down on the same level, as nnU-Net has them; MONAI takes
        those of the level below, which triples the work at the full resolution."""
        below, self.kernel_size = self.kernel_size, (self.kernel_size[0], *self.kernel_size[:-1])
        made: nn.ModuleList = super().get_upsamples()
        self.kernel_size = below
        return made

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        logits = self.output_block(self.skip_layers(x))
        return [logits, *self.heads] if self.training else logits


@dataclass(frozen=True)
class Crop:
    """Where a prepared scan came from: the box of what is not 0 in a stack of slices."""

    box: tuple[slice, ...]
    whole: tuple[int, ...]  # the shape of the stack

    @classmethod
    def of(cls, shown: Array) -> "Crop":
        return cls(scipy.ndimage.find_objects(shown.astype(np.uint8))[0], shown.shape)

    def cut(self, stacks: Array) -> Array:
        within: tuple[EllipsisType | slice, ...] = (..., *self.box)
        return stacks[within]

    def undo(self, cropped: Array) -> Array:
        whole = np.zeros(self.whole, dtype=cropped.dtype)
        whole[self.box] = cropped
        return whole


def prepared(flair: Volume, t1: Volume) -> tuple[Tensor, Crop]:
    """A scan (2, Z, X, Y), float32, cropped, of SPACING_MM, mean 0 and deviation 1 a channel."""
    grid = flair.canonical()
    across = grid.through_plane_axis
    scans = (grid, resample_onto(t1.canonical(), grid))
    stacks = np.stack([stack(scan, across) for scan in scans]).astype(np.float32)
    crop = Crop.of((stacks != 0).any(axis=0))
    channels = torch.from_numpy(crop.cut(stacks))
    middle, spread = (f(channels, dim=(1, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    spacing_mm = stack_order(grid.spacing_mm, across)
    sizes = zip(channels.shape[1:], spacing_mm, SPACING_MM, strict=True)
    size = [round(count * old / new) for count, old, new in sizes]
    return resized((channels - middle) / spread, size), crop


def stack(scan: Volume, across: int) -> Array:
    return np.moveaxis(scan.data, across, 0)


def stack_order(values: Sequence[float], across: int) -> list[float]:
    return [values[across], *(v for axis, v in enumerate(values) if axis != across)]


def resized(channels: Tensor, size: Sequence[int]) -> Tensor:
    """Channels (C, Z, X, Y) interpolated to (C, *size); as they are where that is their size."""
    if channels.shape[1:] == tuple(size):
        return channels
    return F.interpolate(channels[None], list(size), mode="trilinear", align_corners=False)[0]


def probability(
    flair: Volume, t1: Volume, network: Network, *, mirrored: bool, one_pass: bool
) -> Array:
    """That of WMH (X, Y, Z) on the grid of the FLAIR, float32, by a sliding window of PATCH.

    `mirrored`: the mean over all mirrorings of each window. `one_pass`: one window, which is as
    large as the scan.
    """
    scan, crop = prepared(flair, t1)
    mirrorings = [axes for n in range(4) for axes in itertools.combinations(AXES, n)]

    def logits(patches: Tensor) -> Tensor:
        if not mirrored:
            found: Tensor = network(patches)
            return found
        flipped = (network(patches.flip(axes)).flip(axes) for axes in mirrorings)
        return sum(flipped, torch.zeros(())) / len(mirrorings)

    window = whole(scan.shape[1:]) if one_pass else PATCH
    with torch.inference_mode():
        found = sliding_window_inference(
            scan[None], window, 1, logits, overlap=OVERLAP, mode="gaussian"
        )
    size = [part.stop - part.start for part in crop.box]
    wmh = crop.undo(resized(found[0].float().softmax(dim=0)[1:], size)[0].numpy())
    across = flair.canonical().through_plane_axis
    return Orientation.of(flair.affine).undo(np.moveaxis(wmh, 0, across))


def whole(size: Sequence[int]) -> list[int]:
    """The smallest window that holds a scan and that all strides divide."""
    steps = np.prod(STRIDES, axis=0)
    return [math.ceil(n / step) * int(step) for n, step in zip(size, steps, strict=True)]


def read_network(path: Path) -> Network:
    """A trained network, ready to use."""
    network, trained = Network(supervised=False), load(path)["network"]
    network.load_state_dict({name: trained[name] for name in network.state_dict()})
    return network.eval()


def train_network(path: Path, subjects: Sequence[Subject], *, seconds: float) -> None:
    torch.manual_seed(0)
    network = Network(supervised=True)
    optimizer = torch.optim.SGD(
        network.parameters(), RATE, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY
    )
    scans = [training_scan(subject) for subject in subjects]

    def step(spent: float, rng: np.random.Generator) -> Tensor:
        optimizer.param_groups[0]["lr"] = RATE * (1 - spent) ** POWER
        images, labels = batch(scans, rng)
        with mixed_precision():
            outputs = network(images)
        return supervised_loss(outputs, labels)

    train(
        path,
        network,
        optimizer,
        step,
        seconds=seconds,
        seed=0,
        images_per_step=IMAGES_PER_STEP,
        largest_gradient=LARGEST_GRADIENT,
    )


def training_scan(subject: Subject) -> tuple[Tensor, Tensor]:
    """A prepared scan (2, Z, X, Y), float16, and its WMH (Z, X, Y), uint8, of SPACING_MM."""
    scan, crop = prepared(*read_pair(subject))
    truth = nifti.read_mask(subject.labels).canonical()
    wmh = crop.cut(stack(truth, truth.through_plane_axis))
    if wmh.shape != scan.shape[1:]:
        raise ValueError(f"{subject.name} is not of {SPACING_MM} mm: its labels would not fit")
    return scan.half(), torch.from_numpy(wmh.astype(np.uint8))


def batch(
    scans: Sequence[tuple[Tensor, Tensor]], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Patches (N, 2, *PATCH) and labels (N, 1, *PATCH), mirrored at random; the last shows WMH,
    if its scan does."""
    images, labels = [], []
    for number in range(IMAGES_PER_STEP):
        scan, wmh = scans[int(rng.integers(len(scans)))]
        lesions = wmh.nonzero() if number == IMAGES_PER_STEP - 1 else wmh.new_zeros(0, 3)
        middle = lesions[int(rng.integers(len(lesions)))].tolist() if len(lesions) else None
        corner = corner_of(wmh.shape, middle, rng)
        mirrored = [axis for axis in (1, 2, 3) if rng.random() < 0.5]
        images.append(patch(scan, corner).flip(mirrored).float())
        labels.append(patch(wmh[None], corner).flip(mirrored).float())
    return torch.stack(images), torch.stack(labels)


def corner_of(
    size: Sequence[int], middle: Sequence[int] | None, rng: np.random.Generator
) -> list[int]:
    """The first voxel of a patch around a voxel, or anywhere; a smaller scan lies in its midst."""
    corner = []
    for axis, (voxels, part) in enumerate(zip(size, PATCH, strict=True)):
        room = voxels - part
        if room <= 0:
            corner.append(room // 2)
        elif middle is None:
            corner.append(int(rng.integers(room + 1)))
        else:
            corner.append(min(max(middle[axis] - part // 2, 0), room))
    return corner


def patch(channels: Tensor, corner: Sequence[int]) -> Tensor:
    """Channels (C, *PATCH) from a corner on, 0 beyond the scan."""
    margins: list[int] = []
    for low, part, voxels in zip(corner, PATCH, channels.shape[1:], strict=True):
        margins = [-low, low + part - voxels, *margins]  # the last axis comes first
    return F.pad(channels, margins)


def supervised_loss(outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Dice and cross entropy of the outputs of all levels, each of half the weight of the last."""
    weights = [0.5**level for level in range(len(outputs))]
    losses = [
        weight * dice_and_cross_entropy(out.float(), smaller(labels, out.shape[2:])[:, 0])
        for weight, out in zip(weights, outputs, strict=True)
    ]
    return sum(losses, start=torch.zeros(())) / sum(weights)


def smaller(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels (N, 1, ...) of the nearest voxels."""
    return F.interpolate(labels, list(size), mode="nearest-exact")


def dice_and_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of logits (N, 2, ...) and labels (N, ...) of 0 and 1: cross entropy minus the soft Dice."""
    wmh = logits.softmax(dim=1)[:, 1].flatten(1)
    truth = labels.flatten(1)
    shared, both = (wmh * truth).sum(dim=1), wmh.sum(dim=1) + truth.sum(dim=1)
    dice = (2 * shared + SMOOTH) / (both + SMOOTH)
    return F.cross_entropy(logits, labels.long()) - dice.mean()
