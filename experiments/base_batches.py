"""What a step of train_base.py sees: synthetic slices, real labelled and unlabelled ones."""

import argparse
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import real_slices
import torch
import torch.nn.functional as F
from real_slices import PREPARATION, SOURCES, WEIGHT_WITH_RIMS, WMH, Slices, person, source
from synthetic_slices import Synthetic
from torch import Tensor

from leuko.model import runtime
from leuko.model.weights import DEFAULT, find
from leuko.training.augmentation import augment
from leuko.training.recipes import Augmentation
from leuko.volume import Array

SEED = 7
HEAD_PART = 0.5  # of the steps; the others see extracted brains
REAL_PART, UNLABELLED_PART = 1 / 2, 1 / 6  # of the images of a step
LESION_PART = 0.7  # of the real ones shows WMH
CROP = (160, 176)  # on a CPU, pixels
AUGMENTATION = Augmentation(
    scale=(0.85, 1.2), rotation_degrees=12, flip=True, gain=0.1, gamma=0.15, noise_grey=3
)
varied = partial(augment, augmentation=AUGMENTATION, channels=PREPARATION.channels)


@dataclass(frozen=True, eq=False)
class Batch:
    """Images (N, 3, H, W) of a step, centred: synthetic ones, real ones, unlabelled ones.

    `classes` (S, H, W) are those of the synthetic ones, `labels` (R, H, W) those of
    `real_slices`; only where `rims_known` (R,) does a label 0 say that there is no rim.
    """

    images: Tensor
    classes: Tensor
    labels: Tensor
    rims_known: Tensor


class Real:
    """Real slices on a device, by canvas and kind; none without --real."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self._device, self.scans, self.seen = device, [], []
        self._painted_part = options.painted
        self._kinds: dict[str, dict[str, Slices]] = {"real": {}, "painted": {}}
        self._unlabelled: Array | None = None
        if not options.real:
            return
        path = options.run / "real.npz"
        if not path.is_file():
            model = runtime.load(find(DEFAULT), threads=options.threads)
            real_slices.prepare(options.real, options.unlabelled, path, model, leave=options.leave)
        with np.load(path) as file:
            self._kinds = {kind: real_slices.stored(file, kind) for kind in self._kinds}
            self._unlabelled = file.get("unlabelled")
            self.seen = file["seen"].tolist()
        every = [slices.scan for slices in self._kinds["real"].values()]
        self.scans = sorted(set(np.concatenate(every).tolist()))
        self._groups = {
            (kind, canvas): grouped(slices)
            for kind, by_canvas in self._kinds.items()
            for canvas, slices in by_canvas.items()
            if len(slices.images)
        }

    def count(self, canvas: str, batch: int) -> int:
        """How many labelled slices of a canvas a step sees; one at most where none shows WMH."""
        groups = self._groups.get(("real", canvas)) if self.scans else None
        if not groups:
            return 0
        shows = any(len(shown) for group in groups.values() for _, shown in group)
        return round(REAL_PART * batch) if shows else 1

    def unlabelled_count(self, canvas: str, batch: int) -> int:
        there = self._unlabelled is not None and canvas == "head"
        return round(UNLABELLED_PART * batch) if there else 0

    def draw(self, canvas: str, count: int, rng: np.random.Generator) -> list[Tensor]:
        """Images, labels, which are sagittal, and where rims are known: sources alike, and the
        people of a source."""
        rows = []
        for _ in range(count):
            painted = rng.random() < self._painted_part and ("painted", canvas) in self._groups
            kind = "painted" if painted else "real"
            groups = self._groups[kind, canvas]
            weights = np.array([weight(name) for name in groups])
            people = list(groups.values())[rng.choice(len(groups), p=weights / weights.sum())]
            every, shown = people[rng.integers(len(people))]
            wanted = shown if len(shown) and rng.random() < LESION_PART else every
            row = self._kinds[kind][canvas][rng.choice(wanted, size=1)]
            rows.append((row.images, row.labels, row.sagittal, row.rims_known))
        columns = zip(*rows, strict=True)
        return [torch.from_numpy(np.concatenate(c)).to(self._device) for c in columns]

    def draw_unlabelled(self, count: int, rng: np.random.Generator) -> list[Tensor]:
        """As `draw`, of nothing known."""
        assert self._unlabelled is not None
        images = self._unlabelled[rng.integers(len(self._unlabelled), size=count)]
        nothing = np.zeros(count, dtype=bool)
        columns = (images, np.zeros(images.shape[:3], np.uint8), nothing, nothing)
        return [torch.from_numpy(column).to(self._device) for column in columns]


def grouped(slices: Slices) -> dict[str, list[tuple[Array, Array]]]:
    """By source, those whose rims are known apart: for each person the numbers of the slices, and
    of those that show WMH."""
    shows = (slices.labels == WMH).sum(axis=(1, 2)) >= 2
    groups: dict[str, list[tuple[Array, Array]]] = {}

    def key(number: int) -> tuple[str, str]:
        name = str(slices.scan[number])
        return source(name) + (" with rims" if slices.rims_known[number] else ""), person(name)

    for (group, _), numbers in groupby(sorted(range(len(slices.scan)), key=key), key):
        own = np.array(list(numbers))
        groups.setdefault(group, []).append((own, own[shows[own]]))
    return groups


def weight(group: str) -> float:
    """How often a group is drawn, beside others."""
    name, _, rims = group.partition(" ")
    return WEIGHT_WITH_RIMS if rims else SOURCES[name].weight


def draw(
    step: int,
    synthetic: Synthetic,
    real: Real,
    options: argparse.Namespace,
    device: torch.device,
) -> Batch:
    """The batch of a step: all follows from its number."""
    rng = np.random.default_rng([SEED, step])
    generator = torch.Generator(device).manual_seed(100_000 * SEED + step)
    canvas = "head" if rng.random() < HEAD_PART else "brain"
    if canvas not in synthetic.canvases:
        (canvas,) = synthetic.canvases
    labelled = real.count(canvas, options.batch)
    unlabelled = real.unlabelled_count(canvas, options.batch)
    images, classes, sagittal = synthetic.draw(canvas, options.batch - labelled - unlabelled, rng)
    crop = CROP if device.type == "cpu" else classes.shape[1:]
    part, classes = cropped(
        *varied(images, classes, sagittal=sagittal, generator=generator), crop, rng
    )
    parts, labels, rims_known = [part], classes[:0], torch.zeros(0, dtype=torch.bool, device=device)
    if labelled:
        images, labels, sagittal, rims_known = real.draw(canvas, labelled, rng)
        part, labels = varied(images, labels, sagittal=sagittal, generator=generator)
        part, labels = cropped(reacquired(part, generator), labels, crop, rng)
        parts.append(part)
    if unlabelled:
        images, nothing, sagittal, _ = real.draw_unlabelled(unlabelled, rng)
        part, nothing = varied(images, nothing, sagittal=sagittal, generator=generator)
        parts.append(cropped(reacquired(part, generator), nothing, crop, rng)[0])
    joined = torch.cat(parts).contiguous(memory_format=torch.channels_last)
    return Batch(joined, classes, labels, rims_known)


def cropped(
    images: Tensor, labels: Tensor, size: tuple[int, ...], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """The same random window of images and labels."""
    rows, columns = (
        slice(first, first + wanted)
        for have, wanted in zip(labels.shape[1:], size, strict=True)
        for first in [int(rng.integers(max(0, have - wanted) + 1))]
    )
    return images[..., rows, columns], labels[..., rows, columns]


def reacquired(images: Tensor, generator: torch.Generator) -> Tensor:
    """Centred slices (N, 3, H, W) with another bias field, some blurred, a third without T1."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=images.device)

    count, _, height, width = images.shape
    noise = torch.randn(count, 2, 4, 4, generator=generator, device=images.device)
    field = F.interpolate(noise, (height, width), mode="bicubic", align_corners=True)
    grey = (images + 127) * torch.exp(0.25 * uniform(count, 1, 1, 1) * field)[:, [0, 0, 1]]
    blurs = uniform(count, 1, 1, 1) < 0.4
    soft = F.avg_pool2d(grey, 3, stride=1, padding=1)
    grey = torch.lerp(grey, soft, 0.6 * uniform(count, 1, 1, 1) * blurs)
    with_t1 = uniform(count, 1, 1, 1) < 0.67
    grey = torch.cat([grey[:, :2], grey[:, 2:] * with_t1], dim=1)
    return grey.clamp(0, 255) - 127
