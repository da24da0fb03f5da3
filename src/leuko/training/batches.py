"""What a step of a training sees: slices of the subjects, and synthetic ones, each as a random
variant.

All about a step follows from the seed and its number, however many processes share it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from leuko.evaluation.labels import WMH_LABELS
from leuko.io.tissue import Tissue, numbers_in
from leuko.preprocessing.slices import Channels
from leuko.training.augmentation import augment
from leuko.training.dataset import Slices
from leuko.training.recipes import Recipe
from leuko.training.replay import Rehearsal


@dataclass(frozen=True, eq=False)
class Batch:
    """Images (N, 3, H, W), centred, and what is known of each pixel, int64.

    The first images are the subjects': `labels` (R, H, W) hold the classes of their labels and
    IGNORED. The next are synthetic: `classes` (S, H, W) hold the model's classes. Others have no
    labels. `wmh` (N, H, W), bool; None where the labels do not tell it. `rims_known` (R,), bool: in
    a mixed training a label 0 says that there is no rim either.
    """

    images: Tensor
    labels: Tensor
    classes: Tensor
    wmh: Tensor | None
    rims_known: Tensor | None = None

    def share(self, rank: int, count: int) -> "Batch":
        """Every `count`-th image, from that of a process's rank on."""
        first = (rank - len(self.labels)) % count
        return Batch(
            self.images[rank::count],
            self.labels[rank::count],
            self.classes[first::count],
            None if self.wmh is None else self.wmh[rank::count],
            None if self.rims_known is None else self.rims_known[rank::count],
        )


class Batches:
    """Those of all steps of a training, on a device."""

    def __init__(
        self,
        slices: Slices,
        recipe: Recipe,
        *,
        channels: Channels,
        seed: int,
        device: torch.device,
        rehearsal: Rehearsal | None = None,
        classes: Sequence[str] = WMH_LABELS.classes,
    ) -> None:
        """`classes` are the model's; synthetic slices come with values of `Tissue`."""
        self._slices, self._recipe, self._channels = slices, recipe, channels
        self._seed, self._device = seed, device
        self._rehearsal = rehearsal
        self._numbers = torch.tensor(numbers_in(classes), device=device)
        self._images, self._labels, self._sagittal = (
            torch.from_numpy(array).to(device)
            for array in (slices.images, slices.labels, slices.sagittal)
        )

    def draw(self, step: int) -> Batch:
        """What a step sees."""
        recipe = self._recipe
        rng = np.random.default_rng([self._seed, step])
        real = recipe.images_per_step - recipe.synthetic_images
        drawn = self._slices.draw(real, lesion_part=recipe.lesion_part, rng=rng)
        indices = torch.from_numpy(drawn).to(self._device)
        images, labels, sagittal = (
            tensor[indices] for tensor in (self._images, self._labels, self._sagittal)
        )
        if self._rehearsal:
            others = self._rehearsal.draw(
                step, recipe.synthetic_images, lesion_part=recipe.lesion_part, rng=rng
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
        labels, synthetic = moved[:real], moved[real:]
        wmh = None
        if self._slices.wmh is not None:
            wmh = torch.cat([labels == self._slices.wmh, synthetic == Tissue.WMH])
        return Batch(varied, labels, self._numbers[synthetic], wmh)

    def close(self) -> None:
        """Make no more synthetic slices."""
        if self._rehearsal:
            self._rehearsal.close()
