"""What train_base.py makes smaller: the losses of synthetic, real and unlabelled slices.

Logits are (N, C, H, W), of `anatomy.CLASSES`.
"""

import torch
import torch.nn.functional as F
from base_batches import Batch
from real_slices import RIM, WMH
from torch import Tensor

from leuko.evaluation.labels import IGNORED
from leuko.synthesis.anatomy import CLASSES

TEACHER_PART = 0.5  # of the loss of synthetic slices
UNLABELLED_WEIGHT, RIM_WEIGHT = 0.4, 0.3  # of their losses, beside 1


def losses(logits: Tensor, batch: Batch, wanted: Tensor | None) -> dict[str, Tensor]:
    """Those of the synthetic, the real and the unlabelled images.

    `wanted` are the probabilities that teachers give the synthetic and the unlabelled ones.
    """
    made, labelled = len(batch.classes), len(batch.labels)
    parts = {"synthetic": synthetic_loss(logits[:made], batch.classes)}
    if wanted is not None:
        own = parts["synthetic"]
        parts["synthetic"] = torch.lerp(
            own, taught_loss(logits[:made], wanted[:made]), TEACHER_PART
        )
        if len(wanted) > made:
            unlabelled = taught_loss(logits[made + labelled :], wanted[made:])
            parts["unlabelled"] = UNLABELLED_WEIGHT * unlabelled
    if labelled:
        real = logits[made : made + labelled]
        parts["real"] = real_loss(real, batch.labels, batch.rims_known)
    return parts


def synthetic_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy, and the soft Dice loss of WMH, and of WMH and rims together."""
    shares = logits.softmax(dim=1)
    rims = CLASSES.index("rim")
    return (
        F.cross_entropy(logits, classes)
        + dice_loss(shares[:, -1], (classes == len(CLASSES) - 1).float())
        + RIM_WEIGHT * dice_loss(shares[:, rims:].sum(dim=1), (classes >= rims).float())
    )


def real_loss(logits: Tensor, labels: Tensor, rims_known: Tensor) -> Tensor:
    """Cross-entropy of what the labels of real slices tell, and the soft Dice loss of WMH.

    What is not WMH may be a rim, unless it is known whether it is; tissues are never told.
    """
    shares = logits.log_softmax(dim=1)
    wmh, rim = shares[:, -1], shares[:, CLASSES.index("rim")]
    not_wmh = shares[:, :-1].logsumexp(dim=1)
    tissue = shares[:, : CLASSES.index("rim")].logsumexp(dim=1)
    neither = torch.where(rims_known[:, None, None], tissue, not_wmh)
    said = torch.where(labels == WMH, wmh, torch.where(labels == RIM, rim, neither))
    counted = labels != IGNORED
    entropy = -(said * counted).sum() / counted.sum().clamp(min=1)
    return entropy + dice_loss(wmh.exp() * counted, (labels == WMH).float())


def taught_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy with the probabilities of a teacher, and the soft Dice loss of its WMH."""
    shares = logits.log_softmax(dim=1)
    entropy = -(wanted * shares).sum(dim=1).mean()
    found, lesion = shares[:, -1].exp(), wanted[:, -1]
    sizes = found.square().sum() + lesion.square().sum()
    return entropy + 1 - (2 * (found * lesion).sum() + 1) / (sizes + 1)


def dice_loss(share: Tensor, truth: Tensor) -> Tensor:
    """Soft Dice (Milletari et al. 2016), with one pixel added to both."""
    return 1 - (2 * (share * truth).sum() + 1) / (share.sum() + truth.sum() + 1)
