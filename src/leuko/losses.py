"""The two losses, and how labels of lesions alone train a network that knows tissues.

Logits are (N, C, H, W), labels (N, H, W); pixels of the label `dataset.IGNORED` do not count. What
is summed over images goes through `total`, so that processes that share them have one loss.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from leuko.dataset import IGNORED

Total = Callable[[Tensor], Tensor]  # own sums become those of all processes


def wmh_or_not(logits: Tensor) -> Tensor:
    """Logits (N, 2, H, W) of not-WMH and WMH, from those of C classes of which WMH is the last.

    Exact: the softmax of the two gives WMH the probability that it had among the C, so the other
    classes keep their shares of the rest.
    """
    if logits.shape[1] == 2:
        return logits
    return torch.stack([logits[:, :-1].logsumexp(dim=1), logits[:, -1]], dim=1)


def _alone(own: Tensor) -> Tensor:
    return own


def summed_cross_entropy(logits: Tensor, labels: Tensor, total: Total = _alone) -> Tensor:
    """Multinomial logistic loss summed over the pixels of an image, mean over images (Xu 2017)."""
    entropy = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    entropy, images = total(torch.stack([entropy, entropy.new_tensor(len(logits))])).unbind()
    return entropy / images


def cross_entropy_dice(logits: Tensor, labels: Tensor, total: Total = _alone) -> Tensor:
    """Mean cross-entropy plus the soft Dice loss of the last class, WMH, over the whole batch.

    Soft Dice: Milletari et al. 2016 (V-Net), 1 - 2 sum(p g) / (sum(p) + sum(g)), with one pixel
    added to both so that a batch without lesion has a loss too.
    """
    counted = labels != IGNORED
    entropy = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    wmh = logits.softmax(dim=1)[:, -1] * counted
    truth = (labels == logits.shape[1] - 1).float()
    sums = [entropy, counted.sum().float(), (wmh * truth).sum(), wmh.sum() + truth.sum()]
    entropy, pixels, shared, both = total(torch.stack(sums)).unbind()
    # Images of ignored labels alone have no mean: their cross-entropy is 0, not nan.
    return entropy / pixels.clamp(min=1) + 1 - (2 * shared + 1) / (both + 1)
