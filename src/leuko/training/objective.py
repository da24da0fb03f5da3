"""What the steps of a training draw, and the losses that they lower, by its recipe."""

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

MATERIAL = "material"  # folder of a run: slices that are made while it is trained


class Source(Protocol):
    """The batches of a training."""

    def draw(self, step: int) -> Batch:
        """The batch of a step: it follows from the seed and the step's number."""

    def close(self) -> None:
        """Stop making slices."""


# Named losses of a batch, whose sum a step lowers, from the logits (N, C, H, W).
Losses = Callable[[Tensor, Batch, losses.Total], Mapping[str, Tensor]]


def of(
    planned: Plan, run: Path, device: torch.device, doing: Callable[[str], None]
) -> tuple[Source, Losses]:
    """The batches and the losses of a run, on a device; `doing` is told what is prepared."""
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
        # Synthesis reckons in float64, which Apple's GPUs lack.
        makes = device if device.type != "mps" else torch.device("cpu")
        rehearsal = Rehearsal(
            plan.anatomies(settings.heads, makes),
            settings.preparation,
            size=train.images.shape[1:3],
            seed=settings.seed,
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
    """Those of the subjects' slices and of the synthetic ones, which know all classes."""
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
    """That of slices whose labels know all classes, or only WMH and not WMH."""
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
    found.require_unchanged(planned.record["subjects"])
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
    """Those of the synthetic, the labelled and the unlabelled slices. `half`: teachers compute in
    bfloat16."""
    real, made = len(batch.labels), len(batch.classes)
    synthetic, others = logits[real : real + made], logits[real + made :]
    parts = {
        "synthetic": losses.synthetic_loss(synthetic, batch.classes, rim_weight=mixed.rim_weight)
    }
    if teachers:
        wanted = taught(teachers, batch.images[real:], half=half)
        own = losses.taught_loss(synthetic, wanted[:made])
        parts["synthetic"] = torch.lerp(parts["synthetic"], own, mixed.teacher_part)
        if len(others):
            unlabelled = losses.taught_loss(others, wanted[made:])
            parts["unlabelled"] = mixed.unlabelled_weight * unlabelled
    if real and batch.rims_known is not None:
        parts["labelled"] = losses.partial_labels_loss(
            logits[:real], batch.labels, batch.rims_known
        )
    return parts


def taught(teachers: Sequence[SpecialisedVGG], images: Tensor, *, half: bool = False) -> Tensor:
    """The mean of the teachers' probabilities of WMH, the other classes in the proportions of the
    first teacher, (N, C, H, W)."""
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        shares = [teacher(images).float().softmax(dim=1) for teacher in teachers]
    wmh = torch.stack([each[:, -1:] for each in shares]).mean(dim=0)
    others = shares[0][:, :-1]
    others = others / others.sum(dim=1, keepdim=True).clamp(min=1e-6)
    return torch.cat([others * (1 - wmh), wmh], dim=1)
