"""Uncertainty of a segmentation: calibrated probabilities, volume interval, expected Dice.

A model's `Calibration` is measured on real scans of sources that it was not trained on, and on
synthetic ones (`experiments/calibrate.py`), and is part of its card. docs/methods.md explains the
numbers and their limits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import scipy.special

from leuko.io.record import Quality
from leuko.volume import Array, Volume

DROP_ML = 0.1  # added to volumes before taking the logarithm, so that 0 mL stays finite
# Lower limit of probabilities. It is not higher because lesions still get rarer below 1e-6
# ("probabilities clipped at 1e-6" of experiments/calibrate.py).
LEAST = 1e-17
FAINTEST, BRIGHTEST = 1.1, 1.5  # contrasts are clipped to this range: few others were measured
TYPICAL_CONTRAST = 1.3  # used if the contrast is unknown: no lesion or no white matter was found


@dataclass(frozen=True)
class Seen:
    """Features of a segmentation that predict its error, known without a reference."""

    found_ml: float
    conservative_ml: float  # at higher thresholds
    liberal_ml: float  # at lower thresholds
    contrast: float  # median FLAIR of the lesions / median FLAIR of surrounding white matter

    @property
    def spread(self) -> float:
        """ln((liberal mL + 0.1) / (conservative mL + 0.1)), at least 0."""
        return max(0.0, math.log((self.liberal_ml + DROP_ML) / (self.conservative_ml + DROP_ML)))

    @property
    def volume_scale(self) -> float:
        """Scale of the error of the log volume: larger for faint lesions and a wide spread."""
        return self.dice_scale / (min(max(self.contrast, FAINTEST), BRIGHTEST) - 1)

    @property
    def dice_scale(self) -> float:
        """Scale of the error of the expected Dice: 1 + spread."""
        return 1 + self.spread


@dataclass(frozen=True)
class DiceLine:
    """The expected Dice, `at_zero + slope * spread`, plus or minus `width * dice_scale`."""

    at_zero: float
    slope: float
    width: float


@dataclass(frozen=True)
class Calibration:
    """Calibration of a model's probabilities and volumes, at the thresholds of its card.

    Intervals have 90 % coverage. `volume_width` or `dice` is None if it was too inaccurate to show.
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
            raise ValueError(f"calibration out of range: {', '.join(wrong)}")

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """A calibration from its JSON object. Raises TypeError or ValueError if it is not valid."""
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
    """Uncertainty of a segmentation, with intervals of 90 % nominal coverage."""

    volume_interval_ml: tuple[float, float] | None
    predicted_dice: float | None  # None also if no lesion was found
    dice_interval: tuple[float, float] | None

    def quality_as_record(self) -> Quality | None:
        """The expected Dice for the record of a run, rounded; None if it is not known."""
        if self.predicted_dice is None or self.dice_interval is None:
            return None
        low, high = self.dice_interval
        return Quality(
            predicted_dice=round(self.predicted_dice, 6), interval=(round(low, 6), round(high, 6))
        )


def judge(calibration: Calibration, seen: Seen) -> Judgement:
    """The uncertainty of a segmentation, from its features.

    The volume interval contains the found volume. If no lesion was found it starts at 0, and the
    expected Dice is None.
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
    """A volume interval for display: two digits, whole millilitres from 10 mL."""
    low, high = (f"{ml:.2g}" if ml < 9.95 else f"{ml:.0f}" for ml in interval_ml)
    return f"{low} to {high} mL"


def calibrated(probability: Array, temperature: float) -> Array:
    """The probability with its log odds divided by the temperature (Guo et al. 2017), float32.

    0 stays 0, since the model did not see those voxels; 1 stays 1.
    """
    p = np.clip(probability.astype(np.float32), LEAST, 1)
    with np.errstate(over="ignore"):  # overflow at low temperatures correctly gives 0
        odds_against = (1 / p - 1) ** np.float32(1 / temperature)
    warm: Array = np.where(probability > 0, 1 / (1 + odds_against), 0).astype(np.float32)
    return warm


def entropy(probability: Array) -> Array:
    """Binary entropy of each voxel, in bits, 0 (certain) to 1 (probability 0.5), float32."""
    p = probability.astype(np.float32)
    nats = scipy.special.entr(p) + scipy.special.entr(1 - p)
    bits: Array = np.clip(nats / np.float32(math.log(2)), 0, 1)
    return bits


def doubtful(entropy: Volume) -> tuple[int, ...]:
    """Up to two slices, from 1, with the most entropy, at least a tenth of all slices apart; none
    if the entropy is 0. Array axes run R, A, S."""
    across = entropy.through_plane_axis
    doubt = entropy.data.sum(axis=tuple(k for k in range(3) if k != across), dtype=float)
    found: list[int] = []
    for k in np.argsort(-doubt, kind="stable")[: np.count_nonzero(doubt)]:
        if all(abs(k - other) >= len(doubt) / 10 for other in found) and len(found) < 2:
            found.append(int(k))
    return tuple(k + 1 for k in sorted(found))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
