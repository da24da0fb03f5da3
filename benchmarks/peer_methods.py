"""The methods of `peers.py`, each from a pair of scans in memory to a mask on the FLAIR's grid.

As a program it does one pair once, so that its memory can be measured:

    python benchmarks/peer_methods.py METHOD OUT SUBJECT

torch is imported for the methods that need it.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import scipy.ndimage

from leuko.evaluation.metrics import dice
from leuko.io import nifti
from leuko.io.files import read_json
from leuko.lesions.components import drop_small, find_lesions
from leuko.lesions.delineation import delineate
from leuko.model import predict, runtime, weights
from leuko.model.card import ModelCard, load_card
from leuko.preprocessing.slices import requantise
from leuko.volume import Array, Volume

# The smallest lesion of a card that says nothing else, in mm3, and its threshold: for all alike.
SMALLEST_MM3, THRESHOLD = ModelCard.smallest_lesion_mm3, ModelCard.threshold

TISSUE_GREY = 100
BRIGHT_AS_TISSUE = 50  # in the same units
THINNER_THAN_BRAIN_MM, LEFT_OUT_MM = 6.0, 1.0  # scalp and eyes; the rim of the brain
LEVELS = range(105, 255, 5)
SMALLEST_CHOICES_MM3 = (5.0, 10.0, 20.0, 50.0, 100.0)
UNETS = 3  # of the ensemble


@dataclass(frozen=True)
class Pair:
    """A FLAIR and its T1."""

    flair: Volume
    t1: Volume

    @classmethod
    def read(cls, folder: Path) -> "Pair":
        return cls(nifti.read(folder / "FLAIR.nii.gz"), nifti.read(folder / "T1.nii.gz"))


Method = Callable[[Pair], Array]  # to a mask, bool, on the grid of the FLAIR

NAMES = {
    "leuko": "Leuko, 8 bits (onnxruntime)",
    "leuko-half": "Leuko at half width, 8 bits (onnxruntime)",
    "leuko-float": "Leuko, float32 (torch)",
    "leuko-base": "leuko-base, as bundled",
    "unet": "2-D U-Net, one",
    "unet-ensemble": "2-D U-Net, ensemble of 3",
    "unet-ensemble-bf16": "2-D U-Net, ensemble of 3, bfloat16",
    "dynunet-one-pass": "3-D DynUNet, the scan as one window",
    "dynunet": "3-D DynUNet, sliding window",
    "dynunet-bf16": "3-D DynUNet, sliding window, bfloat16",
    "dynunet-mirrored": "3-D DynUNet, sliding window, 8 mirrorings",
    "threshold": "FLAIR above a threshold",
}


def load(name: str, out: Path) -> Method:
    """The method of that name, as trained in `out`."""
    match name:
        case "leuko" | "leuko-half":
            return of_leuko(out / f"{name}-int8")
        case "leuko-float":
            return of_leuko(out / "leuko")
        case "leuko-base":
            return of_leuko(weights.find(weights.DEFAULT))
        case "threshold":
            chosen = read_json(out / "threshold.json", what="threshold")
            return lambda pair: brighter(pair.flair, chosen["level"], chosen["smallest_mm3"])
    return of_torch(name, out)


def of_torch(name: str, out: Path) -> Method:
    """One of the peers' networks."""
    import torch

    torch.set_num_threads(runtime.available_cpus())
    network, *how = name.split("-")
    if network == "unet":
        import peer_unet

        paths = ensemble_paths(out) if "ensemble" in how else [out / "unet.pt"]
        probability = partial(
            peer_unet.probability, networks=[peer_unet.read_network(path) for path in paths]
        )
    else:
        import peer_dynunet

        probability = partial(
            peer_dynunet.probability,
            network=peer_dynunet.read_network(out / "dynunet.pt"),
            mirrored="mirrored" in how,
            one_pass="one" in how,
        )

    def method(pair: Pair) -> Array:
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in how):
            found = probability(pair.flair, pair.t1)
        return drop_small(
            found >= THRESHOLD, voxel_mm3=pair.flair.voxel_mm3, smallest_mm3=SMALLEST_MM3
        )

    return method


def of_leuko(folder: Path) -> Method:
    """A model of Leuko with the limits on its card."""
    model, card = runtime.load(folder), load_card(folder)

    def method(pair: Pair) -> Array:
        shares = predict.predict(pair.flair, pair.t1, model)
        prediction = predict.Prediction.of(shares, pair.flair, card)
        return delineate(prediction, pair.flair, card).mask

    return method


def ensemble_paths(out: Path) -> list[Path]:
    """Of the networks of the ensemble, trained or not."""
    return [out / f"unet-{number + 1}.pt" for number in range(UNETS)]


def brighter(flair: Volume, level: float, smallest_mm3: float) -> Array:
    """Voxels of the brain brighter than `level`, the tissue being 100, without small lesions."""
    grey = requantise(flair, TISSUE_GREY)
    bright = (grey >= level) & brain(grey, flair.spacing_mm)
    return drop_small(bright, voxel_mm3=flair.voxel_mm3, smallest_mm3=smallest_mm3)


def brain(grey: Array, spacing_mm: Sequence[float]) -> Array:
    """The largest piece of tissue that an opening leaves, a little smaller, its holes filled."""
    depth_mm = scipy.ndimage.distance_transform_edt(grey > BRIGHT_AS_TISSUE, spacing_mm)
    pieces, _ = find_lesions(depth_mm > THINNER_THAN_BRAIN_MM)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    largest = pieces == sizes.argmax()
    away_mm = scipy.ndimage.distance_transform_edt(~largest, spacing_mm)
    return away_mm <= THINNER_THAN_BRAIN_MM - LEFT_OUT_MM


def choose_threshold(pairs: Sequence[tuple[Volume, Array]]) -> dict[str, float]:
    """The level and the smallest lesion of the highest mean Dice over FLAIRs and their WMH."""
    scores = np.full((len(pairs), len(LEVELS), len(SMALLEST_CHOICES_MM3)), np.nan)
    for scores_of_one, (flair, truth) in zip(scores, pairs, strict=True):
        grey = requantise(flair, TISSUE_GREY)
        inside = brain(grey, flair.spacing_mm)
        for row, level in zip(scores_of_one, LEVELS, strict=True):
            bright = (grey >= level) & inside
            for k, smallest in enumerate(SMALLEST_CHOICES_MM3):
                found = drop_small(bright, voxel_mm3=flair.voxel_mm3, smallest_mm3=smallest)
                row[k] = dice(prediction=found, reference=truth)
    means = np.nanmean(scores, axis=0)
    level, smallest = np.unravel_index(means.argmax(), means.shape)
    return {
        "level": LEVELS[level],
        "smallest_mm3": SMALLEST_CHOICES_MM3[smallest],
        "dice": float(means.max()),
    }


if __name__ == "__main__":
    method, models, subject = sys.argv[1:]
    load(method, Path(models))(Pair.read(Path(subject)))
