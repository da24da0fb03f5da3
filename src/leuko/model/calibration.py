"""How sure a segmentation is: calibrated probabilities, an interval of the volume, expected Dice.

A model's `Calibration` is measured with it, on real scans of sources that it was trained without
and on synthetic ones (`experiments/calibrate.py`), and stands in its card. See docs/methods.md for
what the numbers mean and how far they hold.
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
# still get rarer ("probabilities clipped at 1e-6" of experiments/calibrate.py).
LEAST = 1e-17
FAINTEST, BRIGHTEST = 1.1, 1.5  # contrasts beyond count as these: few were measured
TYPICAL_CONTRAST = 1.3  # counts where it is unknown: nothing was found, or no white matter


@dataclass(frozen=True)
class Seen:
    """What a segmentation shows of how sure it is, without a reader."""

    found_ml: float
    conservative_ml: float  # at higher thresholds
    liberal_ml: float  # at lower thresholds
    contrast: float  # median of FLAIR in lesions by that of white matter around them

    @property
    def spread(self) -> float:
        """ln((liberal mL + 0.1) / (conservative mL + 0.1)), at least 0."""
        return max(0.0, math.log((self.liberal_ml + DROP_ML) / (self.conservative_ml + DROP_ML)))

    @property
    def volume_scale(self) -> float:
        """What errors of a log volume grow with: faint lesions, and thresholds that matter."""
        return self.dice_scale / (min(max(self.contrast, FAINTEST), BRIGHTEST) - 1)

    @property
    def dice_scale(self) -> float:
        """What errors of an expected Dice grow with."""
        return 1 + self.spread


@dataclass(frozen=True)
class DiceLine:
    """The Dice to expect: `at_zero + slope * spread`, give or take `width * dice_scale`."""

    at_zero: float
    slope: float
    width: float


@dataclass(frozen=True)
class Calibration:
    """What a model's probabilities and volumes are worth, at the card's limits.

    Intervals hold nine values in ten. A part is None where it was not good enough to be shown.
    """

    temperature: float  # log odds are divided by it
    # |ln((true mL + 0.1) / (found mL + 0.1))| is at most `volume_width * Seen.volume_scale`.
    volume_width: float | None
    dice: DiceLine | None
    measured_on: str

    def __post_init__(self) -> None:
        positive = {"temperature": self.temperature}
        if self.volume_width is not None:
            positive["volume_width"] = self.volume_width
        if self.dice is not None:
            positive["width of the Dice"] = self.dice.width
        wrong = [name for name, value in positive.items() if not (_is_number(value) and value > 0)]
        if self.dice is not None and not all(map(_is_number, (self.dice.at_zero, self.dice.slope))):
            wrong.append("line of the Dice")
        if wrong:
            raise ValueError(f"wrong calibration: {', '.join(wrong)}")

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Raises TypeError or ValueError for what is no calibration."""
        known = [f.name for f in fields(cls)]
        if set(content) != set(known):
            raise ValueError(
                f"its calibration has {', '.join(map(str, content)) or 'nothing'}; "
                f"expected {', '.join(known)}"
            )
        dice = content["dice"]
        return cls(**dict(content) | {"dice": None if dice is None else DiceLine(**dice)})


@dataclass(frozen=True)
class Judgement:
    """How sure a segmentation is. Intervals are to hold the truth nine times in ten."""

    volume_interval_ml: tuple[float, float] | None
    predicted_dice: float | None  # None also where nothing was found
    dice_interval: tuple[float, float] | None


def judge(calibration: Calibration, seen: Seen) -> Judgement:
    """Judge a segmentation by what is seen of it.

    The interval of a volume holds the volume. Where no lesion was found it starts at 0, and there
    is no Dice to expect.
    """
    interval_ml = None
    if calibration.volume_width is not None:
        factor = math.exp(calibration.volume_width * seen.volume_scale)
        found = seen.found_ml + DROP_ML
        interval_ml = max(0.0, found / factor - DROP_ML), found * factor - DROP_ML
    line = calibration.dice
    if line is None or not seen.found_ml:
        return Judgement(interval_ml, None, None)
    expected = line.at_zero + line.slope * seen.spread
    width = line.width * seen.dice_scale
    predicted, low, high = (
        min(1.0, max(0.0, dice)) for dice in (expected, expected - width, expected + width)
    )
    return Judgement(interval_ml, predicted, (low, high))


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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
