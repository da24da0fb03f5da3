"""Losses, also of a network with tissue classes that is trained on WMH labels alone.

Logits are (N, C, H, W), labels (N, H, W). Pixels with the label `labels.IGNORED` are ignored.
`total` adds sums over all processes, so that every process computes the same loss. The losses of a
mixed training run in one process, on logits of all `Tissue` classes.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from leuko.evaluation.labels import IGNORED
from leuko.io.tissue import Tissue
from leuko.training.real_slices import RIM, WMH

Total = Callable[[Tensor], Tensor]  # from the sums of this process to those of all processes
WMH_ALONE, ALL_BUT_BACKGROUND = slice(-1, None), slice(1, None)  # along the class axis


def wmh_or_not(logits: Tensor) -> Tensor:
    """Logits (N, 2, H, W) of not WMH and WMH, from logits of C classes, the last of which is WMH.

    Exact: the softmax of the two gives WMH the same probability as the softmax of all C classes.
    """
    if logits.shape[1] == 2:
        return logits
    return torch.stack([logits[:, :-1].logsumexp(dim=1), logits[:, -1]], dim=1)


def alone(own: Tensor) -> Tensor:
    """The total for a single process: its own sums."""
    return own


def summed_cross_entropy(logits: Tensor, labels: Tensor, total: Total = alone) -> Tensor:
    """Multinomial logistic loss, summed over the pixels of an image, averaged over images."""
    entropy = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    entropy, images = total(torch.stack([entropy, entropy.new_tensor(len(logits))])).unbind()
    return entropy / images


def cross_entropy_dice(
    logits: Tensor, labels: Tensor, total: Total = alone, *, overlapping: slice = WMH_ALONE
) -> Tensor:
    """Mean cross-entropy plus the soft Dice loss, averaged over the classes `overlapping`.

    Soft Dice loss: 1 - (2 sum(p g) + 1) / (sum(p) + sum(g) + 1) over the whole batch, after
    Milletari et al. 2016 (V-Net). The 1 defines the loss for a class missing from the batch.
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
    # If all labels are ignored, the cross-entropy is 0, not nan.
    return entropy / pixels.clamp(min=1) + 1 - dice.mean()


def synthetic_loss(logits: Tensor, classes: Tensor, *, rim_weight: float) -> Tensor:
    """Cross-entropy, plus the soft Dice loss of WMH, plus that of WMH and rims together.

    `rim_weight` multiplies the last term.
    """
    shares = logits.softmax(dim=1)
    return (
        F.cross_entropy(logits, classes)
        + dice_loss(shares[:, Tissue.WMH], (classes == Tissue.WMH).float())
        + rim_weight
        * dice_loss(shares[:, Tissue.RIM :].sum(dim=1), (classes >= Tissue.RIM).float())
    )


def partial_labels_loss(logits: Tensor, labels: Tensor, rims_known: Tensor) -> Tensor:
    """Cross-entropy of partial labels (see `real_slices`), plus the soft Dice loss of WMH.

    The label 0 stands for all tissues and, where `rims_known` (N,) is false, for rims too: the
    cross-entropy is that of the summed probabilities. If all labels are ignored, the loss is 0.
    """
    shares = logits.log_softmax(dim=1)
    wmh, rim = shares[:, Tissue.WMH], shares[:, Tissue.RIM]
    not_wmh = shares[:, : Tissue.WMH].logsumexp(dim=1)
    tissue = shares[:, : Tissue.RIM].logsumexp(dim=1)
    neither = torch.where(rims_known[:, None, None], tissue, not_wmh)
    likelihood = torch.where(labels == WMH, wmh, torch.where(labels == RIM, rim, neither))
    counted = labels != IGNORED
    entropy = -(likelihood * counted).sum() / counted.sum().clamp(min=1)
    return entropy + dice_loss(wmh.exp() * counted, (labels == WMH).float())


def distillation_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with a teacher's class probabilities (N, C, H, W), plus the soft Dice loss of
    WMH, with squared sums in its denominator."""
    shares = logits.log_softmax(dim=1)
    entropy = -(targets * shares).sum(dim=1).mean()
    found, lesion = shares[:, Tissue.WMH].exp(), targets[:, Tissue.WMH]
    sizes = found.square().sum() + lesion.square().sum()
    return entropy + 1 - (2 * (found * lesion).sum() + 1) / (sizes + 1)


def dice_loss(share: Tensor, truth: Tensor) -> Tensor:
    """Soft Dice loss 1 - (2 sum(p g) + 1) / (sum(p) + sum(g) + 1), as in `cross_entropy_dice`."""
    return 1 - (2 * (share * truth).sum() + 1) / (share.sum() + truth.sum() + 1)
