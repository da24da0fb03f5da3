"""What a step of a training sees: slices of the subjects, and synthetic ones, each as a random
variant.

A step has parts, what a process computes at once. All about a part follows from the seed and the
numbers of step and part, whichever process computes it.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from leuko.anatomy import WMH
from leuko.augment import augment
from leuko.channels import Channels
from leuko.dataset import Slices
from leuko.recipes import Recipe
from leuko.rehearsal import Rehearsal
from leuko.volume import Array


@dataclass(frozen=True, eq=False)
class Batch:
    """Images (N, 3, H, W), centred, and what is known of each pixel, int64.

    The first images are the subjects': `labels` (R, H, W) hold 0, 1 (WMH) and IGNORED. The others
    are synthetic: `classes` (N - R, H, W) hold the model's classes. `wmh` (N, H, W), bool.
    """

    images: Tensor
    labels: Tensor
    classes: Tensor
    wmh: Tensor


class Batches:
    """The parts of all steps of a training, on a device."""

    def __init__(
        self,
        slices: Slices,
        recipe: Recipe,
        *,
        channels: Channels,
        seed: int,
        device: torch.device,
        rehearsal: Rehearsal | None = None,
        tissues: bool = False,
    ) -> None:
        """`tissues`: the model's classes are `anatomy.CLASSES`, not only background and WMH."""
        self._slices, self._recipe, self._channels = slices, recipe, channels
        self._seed, self._device = seed, device
        self._rehearsal, self._tissues = rehearsal, tissues
        self._images, self._labels, self._sagittal = (
            torch.from_numpy(array).to(device)
            for array in (slices.images, slices.labels, slices.sagittal)
        )

    @property
    def parts(self) -> int:
        """How many parts a step has."""
        return math.ceil(self._recipe.images_per_step / self._recipe.images_at_once)

    def part(self, step: int, part: int) -> Batch:
        """What a part of a step sees."""
        recipe = self._recipe
        rng = np.random.default_rng([self._seed, step])
        drawn = self._slices.draw(recipe.images_per_step, lesion_part=recipe.lesion_part, rng=rng)
        first = part * recipe.images_at_once
        synthetic = _is_synthetic(recipe)[first : first + recipe.images_at_once]
        mine = torch.from_numpy(drawn[first : first + recipe.images_at_once][~synthetic])
        rng = np.random.default_rng([self._seed, step, part])
        images, labels, sagittal = (
            tensor[mine.to(self._device)] for tensor in (self._images, self._labels, self._sagittal)
        )
        if self._rehearsal and synthetic.any():
            others = self._rehearsal.draw(
                step, part, int(synthetic.sum()), lesion_part=recipe.lesion_part, rng=rng
            )
            images, labels, sagittal = (
                torch.cat([own, torch.from_numpy(other).to(self._device)])
                for own, other in zip((images, labels, sagittal), others, strict=True)
            )
        varied, moved = augment(
            images,
            labels,
            recipe.augmentation,
            channels=self._channels,
            sagittal=sagittal,
            generator=torch.Generator(self._device).manual_seed(int(rng.integers(2**62))),
        )
        labels, classes = moved[: len(mine)], moved[len(mine) :]
        wmh = torch.cat([labels == 1, classes == WMH])
        if not self._tissues:
            classes = (classes == WMH).long()
        return Batch(varied, labels, classes, wmh)


def _is_synthetic(recipe: Recipe) -> Array:
    """Which images of a step are, spread evenly over it."""
    places = np.arange(recipe.images_per_step + 1) * recipe.synthetic_part
    drawn: Array = np.diff(np.floor(places + 1e-9)) > 0
    return drawn
