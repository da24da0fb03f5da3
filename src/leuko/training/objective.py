"""The batches and the losses of a training, for each recipe."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from leuko.evaluation.labels import WMH
from leuko.model.network import SpecialisedVGG
from leuko.training import losses, material, mixture, plan, storage
from leuko.training.batches import Batch, Batches
from leuko.training.dataset import Slices, load
from leuko.training.plan import Plan
from leuko.training.recipes import Mixture
from leuko.training.replay import Rehearsal
from leuko.training.settings import Settings
from leuko.training.synthetic_slices import Synthetic

MATERIAL = "material"  # folder in a run: slices of real and synthetic scans, kept while it trains


class Source(Protocol):
    """The batches of a training."""

    def draw(self, step: int) -> Batch:
        """The batch of a step, determined by the seed and the step number."""

    def close(self) -> None:
        """Stop making slices."""


# From logits (N, C, H, W) and a batch: losses by name, whose sum a step minimises.
Losses = Callable[[Tensor, Batch, losses.Total], Mapping[str, Tensor]]


def batches_and_losses(
    planned: Plan, run: Path, device: torch.device, doing: Callable[[str], None]
) -> tuple[Source, Losses]:
    """The batches of a run, on `device`, and their losses.

    `doing` receives a message for each step of the preparation.
    """
    settings = planned.settings
    if settings.recipe.mixture:
        return _mixed(planned, settings.recipe.mixture, run, device, doing)
    return _batches(planned, device), partial(labelled_losses, settings=settings)


def slices(planned: Plan, group: str) -> Slices:
    """The slices of a group of labelled subjects."""
    return load(
        planned.groups[group],
        planned.settings.preparation,
        planned.settings.labelling,
        three_planes=planned.card.three_planes,
    )


def _batches(planned: Plan, device: torch.device) -> Batches:
    settings, recipe = planned.settings, planned.settings.recipe
    train = slices(planned, "train")
    rehearsal = None
    if recipe.synthetic_images:
        # Synthesis computes in float64, which Apple's GPUs do not support.
        makes = device if device.type != "mps" else torch.device("cpu")
        rehearsal = Rehearsal(
            plan.anatomies(settings.heads, makes),
            settings.preparation,
            size=train.images.shape[1:3],
            seed=settings.seed,
            settings=settings.synthesis,
        )
    return Batches(
        train,
        recipe,
        channels=settings.preparation.channels,
        seed=settings.seed,
        device=device,
        rehearsal=rehearsal,
        classes=settings.classes,
    )


def labelled_losses(
    logits: Tensor, batch: Batch, total: losses.Total, *, settings: Settings
) -> dict[str, Tensor]:
    """The losses of a batch of labelled and synthetic slices, by name.

    Each is weighted by its share of the images. Synthetic slices have labels of all classes.
    """
    recipe, real = settings.recipe, len(batch.labels)
    loss = labelled_loss(logits[:real], batch.labels, settings, total)
    if not recipe.synthetic_images:
        return {"labelled": loss}
    part = recipe.synthetic_images / recipe.images_per_step
    synthetic = _loss_of(settings)(logits[real:], batch.classes, total)
    return {"labelled": (1 - part) * loss, "synthetic": part * synthetic}


def labelled_loss(
    logits: Tensor, labels: Tensor, settings: Settings, total: losses.Total = losses.alone
) -> Tensor:
    """The loss of labelled slices; their labels are all classes, or only WMH and not WMH."""
    known = logits if settings.label_names else losses.wmh_or_not(logits)
    return _loss_of(settings)(known, labels, total)


def _loss_of(settings: Settings) -> Callable[[Tensor, Tensor, losses.Total], Tensor]:
    if settings.recipe.loss == "summed-cross-entropy":
        return losses.summed_cross_entropy
    knows_wmh = settings.classes[-1] == WMH
    overlapping = losses.WMH_ALONE if knows_wmh else losses.ALL_BUT_BACKGROUND
    return partial(losses.cross_entropy_dice, overlapping=overlapping)


def _mixed(
    planned: Plan,
    mixed: Mixture,
    run: Path,
    device: torch.device,
    doing: Callable[[str], None],
) -> tuple[Source, Losses]:
    settings, folder = planned.settings, run / MATERIAL
    folder.mkdir(exist_ok=True)
    found = material.find(settings)
    found.require_unchanged(planned.record)
    teachers = [storage.network(name).to(device).eval() for name in settings.teachers]
    real = mixture.RealSliceSampler(
        mixture.prepared(found, folder / "slices.npz", threads=planned.threads, doing=doing),
        {item.name: item.origin for item in found.labelled},
        settings.recipe,
        mixed,
        device,
    )
    synthetic = Synthetic(
        [item.files["labels"] for item in found.heads],
        [item.files["labels"] for item in found.atlas],
        folder,
        device=device,
        processes=settings.processes,
        seed=settings.seed,
        kept=mixed.scans_kept,
        fresh=mixed.scans_per_step,
        settings=settings.synthesis,
    )
    torch.backends.cudnn.benchmark = True  # images have two sizes
    half = planned.precision == "bf16-mixed"
    return (
        mixture.MixedBatches(real, synthetic, settings.recipe, mixed, seed=settings.seed),
        partial(mixed_losses, mixed=mixed, teachers=teachers, half=half),
    )


def mixed_losses(
    logits: Tensor,
    batch: Batch,
    _: losses.Total = losses.alone,
    *,
    mixed: Mixture,
    teachers: Sequence[SpecialisedVGG] = (),
    half: bool = False,
) -> dict[str, Tensor]:
    """The losses of the synthetic, labelled and unlabelled slices of a batch, by name.

    With `half`, the teachers compute in bfloat16.
    """
    real, made = len(batch.labels), len(batch.classes)
    synthetic, others = logits[real : real + made], logits[real + made :]
    parts = {
        "synthetic": losses.synthetic_loss(synthetic, batch.classes, rim_weight=mixed.rim_weight)
    }
    if teachers:
        targets = teacher_targets(teachers, batch.images[real:], half=half)
        own = losses.distillation_loss(synthetic, targets[:made])
        parts["synthetic"] = torch.lerp(parts["synthetic"], own, mixed.teacher_part)
        if len(others):
            unlabelled = losses.distillation_loss(others, targets[made:])
            parts["unlabelled"] = mixed.unlabelled_weight * unlabelled
    if real and batch.rims_known is not None:
        parts["labelled"] = losses.partial_labels_loss(
            logits[:real], batch.labels, batch.rims_known
        )
    return parts


def teacher_targets(
    teachers: Sequence[SpecialisedVGG], images: Tensor, *, half: bool = False
) -> Tensor:
    """Class probabilities (N, C, H, W) of the teachers, as targets.

    The probability of WMH is the mean over the teachers. The other classes share the rest in the
    proportions of the first teacher. With `half`, the teachers compute in bfloat16.
    """
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        shares = [teacher(images).float().softmax(dim=1) for teacher in teachers]
    wmh = torch.stack([each[:, -1:] for each in shares]).mean(dim=0)
    others = shares[0][:, :-1]
    others = others / others.sum(dim=1, keepdim=True).clamp(min=1e-6)
    return torch.cat([others * (1 - wmh), wmh], dim=1)
