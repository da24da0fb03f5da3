"""How sure a segmentation is: calibrated probabilities, an interval of the volume, expected Dice.

A model's `Calibration` is measured with it, on synthetic scans (`runs/calibrate.py`), and stands in
its card. See docs/methods.md for what the numbers mean and how far they hold.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import scipy.special

from leuko.volume import Array

DROP_ML = 0.1  # added to volumes before their logarithm: none found is no infinity
# Smaller probabilities count as this one. Not larger: below 1e-6 lesions
# still get rarer ("probabilities clipped at 1e-6" of runs/calibrate.py).
LEAST = 1e-17

Line = tuple[float, float]  # value at 0, slope


@dataclass(frozen=True)
class Calibration:
    """What a model's probabilities and volumes are worth, at the card's threshold.

    The lines of the volume run over ln(found mL + 0.1) and give the 5 % and 95 % quantiles of
    ln((true mL + 0.1) / (found mL + 0.1)); those of Dice run over the soft Dice of calibrated
    probabilities and give its median, 5 % and 95 % quantiles.
    """

    temperature: float  # log odds are divided by it
    volume_low: Line
    volume_high: Line
    dice: Line
    dice_low: Line
    dice_high: Line
    measured_on: str

    def __post_init__(self) -> None:
        lines = [getattr(self, f.name) for f in fields(self) if f.type is Line]
        numbers = [self.temperature, *(value for line in lines for value in line)]
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise ValueError("wrong calibration: not all its values are numbers")
        if self.temperature <= 0 or any(len(line) != 2 for line in lines):
            raise ValueError("wrong calibration")

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Raises TypeError, KeyError or ValueError for what is no calibration."""
        lines = {f.name: tuple(content[f.name]) for f in fields(cls) if f.type is Line}
        return cls(
            temperature=content["temperature"], measured_on=str(content["measured_on"]), **lines
        )


@dataclass(frozen=True)
class Judgement:
    """How sure a segmentation is. Intervals are to hold the truth nine times in ten."""

    volume_interval_ml: tuple[float, float]
    predicted_dice: float | None  # None where nothing was found
    dice_interval: tuple[float, float] | None


def judge(
    calibration: Calibration, probability: Array, mask: Array, *, voxel_ml: float
) -> Judgement:
    """Judge a mask (X, Y, Z) by its probability, calibrated, on a grid of `voxel_ml`.

    The interval of a volume always holds the volume. Where no lesion was found it starts at 0,
    and there is no Dice to expect.
    """
    found_ml = float(np.count_nonzero(mask)) * voxel_ml
    at = math.log(found_ml + DROP_ML)
    low_ml, high_ml = (
        max(0.0, (found_ml + DROP_ML) * math.exp(_at(line, at)) - DROP_ML)
        for line in (calibration.volume_low, calibration.volume_high)
    )
    interval_ml = min(low_ml, found_ml), max(high_ml, found_ml)
    soft = soft_dice(probability, mask)
    if soft is None:
        return Judgement(interval_ml, None, None)
    expected, low, high = (
        min(1.0, max(0.0, _at(line, soft)))
        for line in (calibration.dice, calibration.dice_low, calibration.dice_high)
    )
    return Judgement(interval_ml, expected, (min(low, expected), max(high, expected)))


def interval_text(interval_ml: Sequence[float]) -> str:
    """An interval of volumes as people read it: two digits, whole millilitres from 10 mL on."""
    low, high = (f"{ml:.2g}" if ml < 9.95 else f"{ml:.0f}" for ml in interval_ml)
    return f"{low} to {high} mL"


def calibrated(probability: Array, temperature: float) -> Array:
    """The probability with its log odds divided by the temperature (Guo et al. 2017), float32.

    0 stays 0: there the model saw nothing. 1 stays 1.
    """
    p = np.clip(probability.astype(np.float32), LEAST, 1)
    with np.errstate(over="ignore"):  # of a low temperature: then the answer is 0
        odds_against = (1 / p - 1) ** np.float32(1 / temperature)
    warm: Array = np.where(probability > 0, 1 / (1 + odds_against), 0).astype(np.float32)
    return warm


def entropy(probability: Array) -> Array:
    """Of each voxel, in bits: 0 where it is sure, 1 where both answers are as likely. float32."""
    p = probability.astype(np.float32)
    nats = scipy.special.entr(p) + scipy.special.entr(1 - p)
    bits: Array = np.clip(nats / np.float32(math.log(2)), 0, 1)
    return bits


def soft_dice(probability: Array, mask: Array) -> float | None:
    """The Dice to expect if each voxel were lesion by chance, with its probability: 2 sum of p in
    the mask / (voxels of the mask + sum of p). None for an empty mask."""
    count = int(np.count_nonzero(mask))
    if not count:
        return None
    everywhere = float(probability.sum(dtype=np.float64))
    within = float(probability[mask > 0].sum(dtype=np.float64))
    return 2 * within / (count + everywhere)


def _at(line: Line, x: float) -> float:
    return line[0] + line[1] * x
