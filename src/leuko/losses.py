"""The two losses, and how labels of lesions alone train a network that knows tissues.

Logits are (N, C, H, W), labels (N, H, W); pixels of the label `dataset.IGNORED` do not count.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from leuko.dataset import IGNORED


def wmh_or_not(logits: Tensor) -> Tensor:
    """Logits (N, 2, H, W) of not-WMH and WMH, from those of C classes of which WMH is the last.

    Exact: the softmax of the two gives WMH the probability that it had among the C, so the other
    classes keep their shares of the rest.
    """
    if logits.shape[1] == 2:
        return logits
    return torch.stack([logits[:, :-1].logsumexp(dim=1), logits[:, -1]], dim=1)


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Multinomial logistic loss summed over the pixels of an image, mean over images (Xu 2017)."""
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / len(logits)


def cross_entropy_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy plus the soft Dice loss of the last class, WMH, over the whole batch.

    Soft Dice: Milletari et al. 2016 (V-Net), 1 - 2 sum(p g) / (sum(p) + sum(g)), with one pixel
    added to both so that a batch without lesion has a loss too.
    """
    counted = labels != IGNORED
    # An image of ignored labels alone has no mean: its cross-entropy is 0, not nan.
    entropy = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    entropy = entropy / counted.sum().clamp(min=1)
    wmh = logits.softmax(dim=1)[:, -1] * counted
    truth = (labels == logits.shape[1] - 1).float()
    overlap = (2 * (wmh * truth).sum() + 1) / (wmh.sum() + truth.sum() + 1)
    return entropy + 1 - overlap
