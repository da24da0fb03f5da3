"""Predicts probabilities on the FLAIR's grid from a FLAIR and an aligned T1."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from leuko.io.provenance import Stopwatch
from leuko.io.tissue import Tissue
from leuko.model.card import ModelCard
from leuko.model.runtime import BATCH, Model
from leuko.preprocessing.slices import Pair
from leuko.volume import Array, Orientation, Volume


@dataclass(frozen=True, eq=False)
class Prediction:
    """What masks are drawn from, on the grid of the FLAIR; smaller than all probabilities."""

    wmh: Array  # probability of WMH, float32 (X, Y, Z)
    rims: Array | None  # probability of caps and rims; None if the model lacks the class
    anatomy: Volume  # most probable tissue apart from WMH, caps and rims, uint8

    @classmethod
    def of(cls, probabilities: Array, flair: Volume, card: ModelCard) -> Self:
        """From probabilities (C, X, Y, Z); caps and rims are white matter in the anatomy."""
        highest = probabilities[0].copy()
        anatomy = np.zeros_like(highest, dtype=np.uint8)
        # Takes a quarter of the time of `argmax` across the classes.
        for number, tissue in enumerate(probabilities[1 : len(card.tissues) - 1], start=1):
            anatomy[tissue > highest] = number
            np.maximum(highest, tissue, out=highest)
        rims = None
        white = card.number(Tissue.WHITE)
        if card.knows_rims and white is not None:
            rims = probabilities[-2].copy()
            anatomy[probabilities[white] + rims > highest] = white
        return cls(probabilities[-1].copy(), rims, flair.with_data(anatomy))


def predict(flair: Volume, t1: Volume | None, model: Model) -> Array:
    """Probabilities (C, X, Y, Z) of the model's classes on the grid of the FLAIR, float32 in
    [0, 1]; WMH is the last class, if the model has it. All are 0 outside the slices that the model
    saw. The T1 must be aligned.

    A three-plane model predicts a nearly isotropic scan along each axis; the mean is returned.
    """
    return predict_pair(Pair.of(flair, t1, model.card.preparation), model, Stopwatch())


def predict_pair(pair: Pair, model: Model, watch: Stopwatch) -> Array:
    """As `predict`, for scans already in 8 bit; times the stages."""
    all_planes = model.card.three_planes and pair.scan.is_nearly_isotropic
    axes = range(3) if all_planes else (None,)
    # Slices of most scans are contiguous in this order.
    shape = *pair.scan.data.shape, len(model.card.classes)
    mean = np.moveaxis(np.zeros(shape, dtype=np.float32, order="F"), -1, 0)
    canonical = [Orientation.of(pair.scan.affine).apply(share) for share in mean]
    for axis in axes:
        with watch.stage("prepare"):
            slices, placement = pair.slices(axis)
        stacks = [np.moveaxis(share, placement.across, 0) for share in canonical]
        for start in range(0, len(slices), BATCH):  # the probabilities of all slices are large
            part = slice(start, start + BATCH)
            with watch.stage("predict"):
                probabilities = model.predict(slices[part])
            with watch.stage("restore"):
                restored = placement.to_scan(probabilities) / len(axes)
                for k, stack in enumerate(stacks):
                    stack[part] += restored[:, k]
    model.release()
    return np.clip(mean, 0, 1, out=mean)


def predicted(pair: Pair, model: Model, watch: Stopwatch | None = None) -> Prediction:
    """What masks of a pair are drawn from; times the stages if there is a watch."""
    probabilities = predict_pair(pair, model, watch or Stopwatch())
    return Prediction.of(probabilities, pair.scan, model.card)


def to_tissue(probabilities: Array, flair: Volume) -> Volume:
    """The most probable class of each voxel, uint8."""
    return flair.with_data(probabilities.argmax(axis=0).astype(np.uint8))
