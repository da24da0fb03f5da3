"""The two losses, and how labels of lesions alone train a network that knows tissues.

Logits are (N, C, H, W), labels (N, H, W); pixels of the label `labels.IGNORED` do not count. What
is summed over images goes through `total`, so that processes that share them have one loss.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from leuko.evaluation.labels import IGNORED

Total = Callable[[Tensor], Tensor]  # own sums become those of all processes
WMH_ALONE, ALL_BUT_BACKGROUND = slice(-1, None), slice(1, None)  # of the classes


def wmh_or_not(logits: Tensor) -> Tensor:
    """Logits (N, 2, H, W) of not-WMH and WMH, from those of C classes of which WMH is the last.

    Exact: the softmax of the two gives WMH the probability that it had among the C, so the other
    classes keep their shares of the rest.
    """
    if logits.shape[1] == 2:
        return logits
    return torch.stack([logits[:, :-1].logsumexp(dim=1), logits[:, -1]], dim=1)


def alone(own: Tensor) -> Tensor:
    return own


def summed_cross_entropy(logits: Tensor, labels: Tensor, total: Total = alone) -> Tensor:
    """Multinomial logistic loss summed over the pixels of an image, mean over images."""
    entropy = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    entropy, images = total(torch.stack([entropy, entropy.new_tensor(len(logits))])).unbind()
    return entropy / images


def cross_entropy_dice(
    logits: Tensor, labels: Tensor, total: Total = alone, *, overlapping: slice = WMH_ALONE
) -> Tensor:
    """Mean cross-entropy plus the soft Dice loss, the mean over the classes `overlapping`, of the
    whole batch.

    Soft Dice: Milletari et al. 2016 (V-Net), 1 - 2 sum(p g) / (sum(p) + sum(g)), with one pixel
    added to both so that a batch without a class has a loss too.
    """
    counted = labels != IGNORED
    entropy = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    shares = logits.softmax(dim=1)[:, overlapping] * counted[:, None]  # (N, D, H, W)
    numbers = torch.arange(logits.shape[1], device=labels.device)[overlapping]
    truth = (labels[:, None] == numbers.view(1, -1, 1, 1)).float()
    shared, both = (part.sum(dim=(0, 2, 3)) for part in (shares * truth, shares + truth))
    sums = total(torch.cat([torch.stack([entropy, counted.sum().float()]), shared, both]))
    entropy, pixels = sums[:2].unbind()
    shared, both = sums[2:].chunk(2)
    dice: Tensor = (2 * shared + 1) / (both + 1)
    # Images of ignored labels alone have no mean: their cross-entropy is 0, not nan.
    return entropy / pixels.clamp(min=1) + 1 - dice.mean()
