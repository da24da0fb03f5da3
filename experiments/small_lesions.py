"""Which loss finds small lesions: one trained network, trained further under each of several.

    python experiments/small_lesions.py HEADS RUN DATA [--atlas DIR] [--steps 250]

HEADS: those of `leuko train --recipe base`. RUN: a model with the same classes. DATA: the real
scans of accuracy.py. Every loss sees the same slices in the same order. The threshold is the one
with the best DSC + F1 on synthetic scans of the held-out heads. Prints DSC, lesion recall and
lesion F1 of each loss, means over scans.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from base_data import HELD_OUT
from synthetic_validation import held_out
from torch import Tensor

from leuko.evaluation.metrics import dice, lesion_detection
from leuko.io import nifti
from leuko.io.files import image_stem
from leuko.io.tissue import Tissue
from leuko.lesions.components import drop_small
from leuko.model import runtime
from leuko.model.card import WEIGHTS_FILE, load_card
from leuko.model.onnx_export import read_network
from leuko.model.predict import predict
from leuko.preprocessing.slices import Preparation
from leuko.synthesis.anatomy import load_head
from leuko.synthesis.images import synthesise
from leuko.training import losses
from leuko.training.augmentation import augment
from leuko.training.dataset import Slices, joined
from leuko.training.recipes import BASE
from leuko.training.storage import save_model
from leuko.volume import Array

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
SMALLEST_MM3 = 10.0
BATCH = 8
SCANS = 4  # of each held-out head
LEAST_ML = 0.5  # of WMH in a scan that counts
Case = tuple[Array, Array, float]  # probability, reference, mm3 of a voxel


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--atlas", type=Path)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--rate", type=float, default=1e-4)
    options = parser.parse_args()
    slices = training_slices(options)
    print("| loss | threshold | synthetic: DSC | recall | F1 | real: DSC | recall | F1 |")
    print("|---" * 8 + "|")
    for name, objective in LOSSES.items():
        with tempfile.TemporaryDirectory() as folder:
            go_on(slices, Path(folder), objective, options)
            model = runtime.load(Path(folder))
        cases = synthetic_cases(options.heads, model)
        synthetic = {t: scores(cases, t) for t in THRESHOLDS}
        threshold = max(THRESHOLDS, key=lambda t: synthetic[t][0] + synthetic[t][2])
        real = scores(real_cases(options.data, model), threshold)
        cells = [f"{value:.3f}" for value in (*synthetic[threshold], *real)]
        print("|", " | ".join([name, f"{threshold}", *cells]), "|", flush=True)


def training_slices(options: argparse.Namespace) -> Slices:
    """Slices of synthetic scans of the heads that are not held out, their labels as `CLASSES`."""
    paths = [p for p in sorted(options.heads.glob("*.nii.gz")) if image_stem(p) not in HELD_OUT]
    heads = [load_head(path) for path in paths]
    atlas = [
        torch.from_numpy(nifti.read_mask(path).canonical().data > 0)
        for path in (sorted(options.atlas.glob("*.nii.gz")) if options.atlas else [])
    ]
    parts = []
    for number in range(3 * options.steps // 100):
        scan = synthesise(heads[number % len(heads)], [99, number], atlas=atlas)
        images, classes = scan.slices(Preparation())
        parts.append(Slices(images, classes, np.full(len(images), scan.axis == 0), Tissue.WMH))
    return joined(parts)


def tversky(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy and the Tversky loss, a missed pixel 7/3 as dear as a false one.

    Salehi et al. 2017, alpha 0.3, beta 0.7.
    """
    wmh, truth = logits.softmax(dim=1)[:, Tissue.WMH], (labels == Tissue.WMH).float()
    hit, false, missed = (wmh * truth).sum(), (wmh * (1 - truth)).sum(), ((1 - wmh) * truth).sum()
    return F.cross_entropy(logits, labels) + 1 - (hit + 1) / (hit + 0.3 * false + 0.7 * missed + 1)


def per_lesion(logits: Tensor, labels: Tensor) -> Tensor:
    """The usual loss, and the mean over lesions (of a slice) of what is missed of each."""
    missed = 1 - logits.softmax(dim=1)[:, Tissue.WMH]
    box = np.zeros((3, 3, 3), dtype=bool)
    box[1] = True
    found, count = scipy.ndimage.label((labels == Tissue.WMH).numpy(), box)
    shares = torch.zeros(count + 1).scatter_reduce(
        0, torch.from_numpy(found).long().flatten(), missed.flatten(), "mean", include_self=False
    )
    return losses.cross_entropy_dice(logits, labels) + shares[1:].sum() / max(count, 1)


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal cross-entropy (Lin et al. 2017, gamma 2) and Dice."""
    entropy = F.cross_entropy(logits, labels, reduction="none")
    overlap = losses.cross_entropy_dice(logits, labels) - entropy.mean()
    return ((1 - torch.exp(-entropy)) ** 2 * entropy).mean() + overlap


Loss = Callable[[Tensor, Tensor], Tensor]  # of logits and labels
LOSSES: dict[str, Loss] = {
    "cross-entropy and Dice": losses.cross_entropy_dice,
    "cross-entropy and Tversky": tversky,
    "and the mean over lesions": per_lesion,
    "focal and Dice": focal,
}


def go_on(slices: Slices, out: Path, objective: Loss, options: argparse.Namespace) -> None:
    """Write the model of a run, trained further with a loss."""
    card = load_card(options.run)
    network = read_network(options.run, card)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.rate, weight_decay=0.01)
    for step in range(options.steps):
        optimizer.param_groups[0]["lr"] = options.rate * (1 - step / options.steps)
        drawn = slices.draw(BATCH, lesion_part=0.5, rng=np.random.default_rng([7, step]))
        images, labels, sagittal = (
            torch.from_numpy(array[drawn])
            for array in (slices.images, slices.labels, slices.sagittal)
        )
        generator = torch.Generator().manual_seed(step)
        batch, truth = augment(
            images,
            labels,
            BASE.augmentation,
            channels=card.preparation.channels,
            sagittal=sagittal,
            generator=generator,
        )
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(batch)
        objective(logits.float(), truth).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    save_model(out, network.state_dict(), replace(card, weights=WEIGHTS_FILE))


def synthetic_cases(heads: Path, model: runtime.Model) -> list[Case]:
    cases = []
    for number, anatomy in enumerate(held_out(heads)):
        for scan in range(SCANS):
            made = synthesise(anatomy, [88, number, scan])
            slices, truth = made.slices(Preparation())
            if (truth == Tissue.WMH).sum() * made.spacing_mm >= 1000 * LEAST_ML:
                cases.append(
                    (model.predict(slices)[:, Tissue.WMH], truth == Tissue.WMH, made.spacing_mm)
                )
    return cases


def real_cases(data: Path, model: runtime.Model) -> list[Case]:
    cases = []
    for folder in sorted(path for path in data.iterdir() if path.is_dir()):
        flair, t1 = (nifti.read(folder / f"{name}.nii.gz") for name in ("FLAIR", "T1"))
        truth = nifti.read_labels(folder / "lesions.nii.gz", values=(0, 1, 2)).data == 1
        cases.append((predict(flair, t1, model)[-1], truth, flair.voxel_mm3))
    return cases


def scores(cases: list[Case], threshold: float) -> Array:
    """Mean DSC, lesion recall and lesion F1."""
    rows = []
    for probability, truth, voxel_mm3 in cases:
        mask = drop_small(probability >= threshold, voxel_mm3=voxel_mm3, smallest_mm3=SMALLEST_MM3)
        recall, f1 = lesion_detection(prediction=mask, reference=truth)
        rows.append([dice(prediction=mask, reference=truth), recall, f1])
    mean: Array = np.mean(rows, axis=0)
    return mean


if __name__ == "__main__":
    main()
