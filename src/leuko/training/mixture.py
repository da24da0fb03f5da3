"""Batches of a mixed training: labelled, synthetic and unlabelled slices.

The seed and the step number determine a batch completely.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from leuko.io.tissue import Tissue
from leuko.model import runtime
from leuko.model.weights import DEFAULT, find
from leuko.training import real_slices
from leuko.training.augmentation import augment
from leuko.training.batches import Batch
from leuko.training.material import Material, Origin
from leuko.training.painted_lesions import painted
from leuko.training.real_slices import PREPARATION, WMH, RealSlices, joined
from leuko.training.recipes import Mixture, Recipe
from leuko.training.synthetic_slices import Synthetic
from leuko.volume import Array


class Prepared(NamedTuple):
    """Slices of real scans, labelled ones by canvas."""

    real: dict[str, RealSlices]  # unchanged
    painted: dict[str, RealSlices]  # with painted lesions
    unlabelled: Array  # (N, H, W, 3), uint8, whole heads


def prepared(
    material: Material, path: Path, *, threads: int, doing: Callable[[str], None]
) -> Prepared:
    """The slices of the real scans; read from the file `path`, which is written if it is missing.

    `doing` receives a message for each step of the preparation. Raises LeukoError if a scan cannot
    be read or prepared.
    """
    if not path.is_file():
        parts: dict[str, list[RealSlices]] = {canvas: [] for canvas in real_slices.CANVAS}
        for item in material.labelled:
            doing(f"preparing {item.name}")
            canvas, slices = real_slices.labelled(item)
            parts[canvas].append(slices)
        real = {canvas: joined(some) for canvas, some in parts.items() if some}
        doing("painting lesions")
        # Lesions are painted into the white matter that this model segments.
        model = runtime.load(find(DEFAULT), threads=threads) if real else None
        spotted = {canvas: painted(slices, model) for canvas, slices in real.items() if model}
        unlabelled = [real_slices.unlabelled(item) for item in material.unlabelled]
        height, width = real_slices.CANVAS["head"]
        nothing = np.zeros((0, height, width, 3), dtype=np.uint8)
        arrays = real_slices.as_arrays(real, "real") | real_slices.as_arrays(spotted, "painted")
        part = path.with_suffix(".part.npz")
        arrays["unlabelled"] = np.concatenate([nothing, *unlabelled])
        np.savez_compressed(part, **arrays)  # type: ignore[arg-type]
        part.replace(path)
    with np.load(path) as file:
        real, spotted = (real_slices.stored(file, kind) for kind in ("real", "painted"))
        return Prepared(real, spotted, file["unlabelled"])


class RealSliceSampler:
    """Draws random slices of real scans, for a batch of one canvas size.

    Each source is drawn in proportion to its weight, which is 1 by default. The people of a source
    are drawn equally often, however many slices each has.
    """

    def __init__(
        self,
        slices: Prepared,
        origins: Mapping[str, Origin],
        recipe: Recipe,
        mixture: Mixture,
        device: torch.device,
    ) -> None:
        self._kinds = {"real": slices.real, "painted": slices.painted}
        self._unlabelled, self._device = slices.unlabelled, device
        self._recipe, self._mixture = recipe, mixture
        self._groups = {
            (kind, canvas): grouped(some, origins, rims_weight=mixture.rims_weight)
            for kind, by_canvas in self._kinds.items()
            for canvas, some in by_canvas.items()
            if len(some.images)
        }

    def count(self, canvas: str) -> int:
        """The number of labelled slices in a batch of a canvas.

        0 if there are none for the canvas, 1 if none of them shows WMH.
        """
        groups = self._groups.get(("real", canvas))
        if not groups:
            return 0
        shows = any(len(shown) for group in groups for _, shown in group.people)
        return round(self._mixture.labelled_part * self._recipe.images_per_step) if shows else 1

    def unlabelled_count(self, canvas: str) -> int:
        """The number of unlabelled slices in a batch of a canvas: 0 unless it is "head"."""
        there = len(self._unlabelled) and canvas == "head"
        return round(self._mixture.unlabelled_part * self._recipe.images_per_step) if there else 0

    def draw(self, canvas: str, count: int, rng: np.random.Generator) -> list[Tensor]:
        """Random labelled slices: images (N, H, W, 3) and labels (N, H, W), uint8; whether each is
        sagittal and whether its rims are known, (N,), bool."""
        rows = []
        for _ in range(count):
            paint = rng.random() < self._mixture.painted_part
            kind = "painted" if paint and ("painted", canvas) in self._groups else "real"
            groups = self._groups[kind, canvas]
            weights = np.array([group.weight for group in groups])
            people = groups[rng.choice(len(groups), p=weights / weights.sum())].people
            every, shown = people[rng.integers(len(people))]
            wanted = shown if len(shown) and rng.random() < self._recipe.lesion_part else every
            row = self._kinds[kind][canvas][rng.choice(wanted, size=1)]
            rows.append((row.images, row.labels, row.sagittal, row.rims_known))
        columns = zip(*rows, strict=True)
        return [torch.from_numpy(np.concatenate(c)).to(self._device) for c in columns]

    def draw_unlabelled(self, count: int, rng: np.random.Generator) -> Tensor:
        """Random unlabelled slices (N, H, W, 3), uint8."""
        images = self._unlabelled[rng.integers(len(self._unlabelled), size=count)]
        return torch.from_numpy(images).to(self._device)


class Group(NamedTuple):
    """The slices of one source with known rims, or those with unknown rims."""

    weight: float  # relative frequency with which the group is drawn
    # For each person: indices of all slices, and of those that show WMH (2 pixels or more).
    people: list[tuple[Array, Array]]


def grouped(
    slices: RealSlices, origins: Mapping[str, Origin], *, rims_weight: float
) -> list[Group]:
    """The slices grouped by source, and by whether rims are known.

    `rims_weight` multiplies the weight of groups with known rims.
    """
    shows = (slices.labels == WMH).sum(axis=(1, 2)) >= 2

    def key(number: int) -> tuple[str, bool, str]:
        origin = origins[str(slices.scan[number])]
        return origin.source, bool(slices.rims_known[number]), origin.person

    groups: dict[tuple[str, bool], Group] = {}
    for (source, rims, _), numbers in groupby(sorted(range(len(slices.scan)), key=key), key):
        own = np.array(list(numbers))
        weight = origins[str(slices.scan[own[0]])].weight * (rims_weight if rims else 1)
        group = groups.setdefault((source, rims), Group(weight, []))
        group.people.append((own, own[shows[own]]))
    return list(groups.values())


class MixedBatches:
    """The batches of a mixed training, on a device."""

    def __init__(
        self,
        real: RealSliceSampler,
        synthetic: Synthetic,
        recipe: Recipe,
        mixture: Mixture,
        *,
        seed: int,
    ) -> None:
        self._real, self._synthetic = real, synthetic
        self._recipe, self._mixture, self._seed = recipe, mixture, seed
        self._device = synthetic.device
        self._varied = partial(
            augment, augmentation=recipe.augmentation, channels=PREPARATION.channels
        )

    def draw(self, step: int) -> Batch:
        """The batch of a step. Call it with increasing steps."""
        self._synthetic.advance(step)
        rng = np.random.default_rng([self._seed, step])
        canvas = "head" if rng.random() < self._mixture.head_part else "brain"
        if canvas not in self._synthetic.canvases:
            (canvas,) = self._synthetic.canvases
        generator = torch.Generator(self._device).manual_seed(int(rng.integers(2**62)))
        counts = self._real.count(canvas), self._real.unlabelled_count(canvas)
        made = self._recipe.images_per_step - sum(counts)
        images, classes, sagittal = self._synthetic.draw(canvas, made, rng)
        crop = self._mixture.crop or classes.shape[1:]
        part, classes = cropped(
            *self._varied(images, classes, sagittal=sagittal, generator=generator), crop, rng
        )
        parts, labels = [part], classes[:0]
        rims_known = torch.zeros(0, dtype=torch.bool, device=self._device)
        if counts[0]:
            images, labels, sagittal, rims_known = self._real.draw(canvas, counts[0], rng)
            part, labels = self._varied(images, labels, sagittal=sagittal, generator=generator)
            part, labels = cropped(vary_acquisition(part, generator), labels, crop, rng)
            parts.insert(0, part)
        nothing = classes[:0]
        if counts[1]:
            images = self._real.draw_unlabelled(counts[1], rng)
            part, nothing = self._varied(
                images,
                torch.zeros_like(images[..., 0]),
                sagittal=torch.zeros(counts[1], dtype=torch.bool, device=self._device),
                generator=generator,
            )
            part, nothing = cropped(vary_acquisition(part, generator), nothing, crop, rng)
            parts.append(part)
        wmh = torch.cat([labels == WMH, classes == Tissue.WMH, nothing > 0])
        together = torch.cat(parts).contiguous(memory_format=torch.channels_last)
        return Batch(together, labels, classes, wmh, rims_known)

    def close(self) -> None:
        """Stop making synthetic slices."""
        self._synthetic.close()


def cropped(
    images: Tensor, labels: Tensor, size: tuple[int, ...], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and labels (N, H, W) cropped to the same random window of `size`.

    A canvas smaller than `size` along an axis is not cropped along it.
    """
    rows, columns = (
        slice(first, first + wanted)
        for have, wanted in zip(labels.shape[1:], size, strict=True)
        for first in [int(rng.integers(max(0, have - wanted) + 1))]
    )
    return images[..., rows, columns], labels[..., rows, columns]


def vary_acquisition(images: Tensor, generator: torch.Generator) -> Tensor:
    """Centred slices (N, 3, H, W) as from another acquisition.

    Each gets a random bias field. About 40 % are blurred and 33 % lose their T1.
    """

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
