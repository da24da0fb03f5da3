"""The log of a training for TensorBoard: `tensorboard --logdir RUN` shows it.

The only module that imports tensorboard.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from leuko.training.batches import Batch

FOLDER = "tensorboard"
PICTURE = "slice, label, probability"
PICTURE_STEPS, PICTURES = 100, 4


class Board:
    """The log in a run folder; entries of an interrupted training after `step` are deleted."""

    def __init__(self, run: Path, step: int) -> None:
        self._writer = SummaryWriter(str(run / FOLDER), purge_step=step + 1)

    def log(self, step: int, numbers: Mapping[str, float], batch: Batch, logits: Tensor) -> None:
        """Log the numbers of a step by name and, every `PICTURE_STEPS` steps, slices of the batch.

        Each slice is shown beside its WMH label and the predicted probability; for a model without
        the class wmh, beside its labelled and its most probable class, with the last class white.
        """
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        if step % PICTURE_STEPS == 1:
            shown = ((batch.images[:PICTURES] + 127) / 255).clamp(0, 1).cpu()
            if batch.wmh is None:
                last = logits.shape[1] - 1
                parts = [(batch.labels / last).clamp(max=1), logits.argmax(dim=1) / last]
            else:
                parts = [batch.wmh, logits.softmax(dim=1)[:, -1]]
            others = [part[:PICTURES, None].float().cpu().expand_as(shown) for part in parts]
            rows = torch.cat([shown, *others], dim=3)  # (N, 3, H, 3W)
            self._writer.add_image(PICTURE, torch.cat(list(rows), dim=1), step)

    def close(self) -> None:
        """Write all pending entries and close the log."""
        self._writer.close()
