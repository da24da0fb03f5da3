"""Losses, and how labels of lesions alone train a network that knows tissues.

Logits are (N, C, H, W), labels (N, H, W); pixels of the label `labels.IGNORED` do not count. Sums
over images go through `total`, so that processes that share them have one loss. Those of a mixed
training, which one process computes, are for all classes of `Tissue`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from leuko.evaluation.labels import IGNORED
from leuko.io.tissue import Tissue
from leuko.training.real_slices import RIM, WMH

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


def synthetic_loss(logits: Tensor, classes: Tensor, *, rim_weight: float) -> Tensor:
    """Cross-entropy, and the soft Dice loss of WMH, and of WMH and rims together."""
    shares = logits.softmax(dim=1)
    return (
        F.cross_entropy(logits, classes)
        + dice_loss(shares[:, Tissue.WMH], (classes == Tissue.WMH).float())
        + rim_weight
        * dice_loss(shares[:, Tissue.RIM :].sum(dim=1), (classes >= Tissue.RIM).float())
    )


def partial_labels_loss(logits: Tensor, labels: Tensor, rims_known: Tensor) -> Tensor:
    """Cross-entropy of partial labels (`real_slices`), and the soft Dice loss of WMH.

    A pixel that is not WMH may be a rim, unless `rims_known` (N,); labels do not tell tissues.
    """
    shares = logits.log_softmax(dim=1)
    wmh, rim = shares[:, Tissue.WMH], shares[:, Tissue.RIM]
    not_wmh = shares[:, : Tissue.WMH].logsumexp(dim=1)
    tissue = shares[:, : Tissue.RIM].logsumexp(dim=1)
    neither = torch.where(rims_known[:, None, None], tissue, not_wmh)
    told = torch.where(labels == WMH, wmh, torch.where(labels == RIM, rim, neither))
    counted = labels != IGNORED
    entropy = -(told * counted).sum() / counted.sum().clamp(min=1)
    return entropy + dice_loss(wmh.exp() * counted, (labels == WMH).float())


def taught_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy with the probabilities of a teacher, and the soft Dice loss of its WMH."""
    shares = logits.log_softmax(dim=1)
    entropy = -(wanted * shares).sum(dim=1).mean()
    found, lesion = shares[:, Tissue.WMH].exp(), wanted[:, Tissue.WMH]
    sizes = found.square().sum() + lesion.square().sum()
    return entropy + 1 - (2 * (found * lesion).sum() + 1) / (sizes + 1)


def dice_loss(share: Tensor, truth: Tensor) -> Tensor:
    """Soft Dice (Milletari et al. 2016), with one pixel added to both."""
    return 1 - (2 * (share * truth).sum() + 1) / (share.sum() + truth.sum() + 1)
