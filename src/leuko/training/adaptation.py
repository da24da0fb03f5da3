"""The result of a cross-validation: measures by subject, before and after, and the verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.stats

from leuko.evaluation.evaluate import Row
from leuko.report.html import shown
from leuko.training.dataset import person

DECISIVE_MEASURE = "dsc"
LARGEST_DICE_LOSS = 0.02  # on synthetic scans
LARGEST_RISE_ML = 0.1  # of the mean segmented volume in people without WMH
FEWEST_PEOPLE = 6  # with fewer the interval is unreliable

Verdict = Literal["better", "worse", "no clear difference"]


@dataclass(frozen=True)
class Change:
    """The means of a measure before and after, and the mean change with its 95 % interval.

    Student's t interval of the mean paired difference over `people`; several scans of one person
    count as one, by their mean.
    """

    before: float
    after: float
    change: float
    low: float
    high: float
    people: int

    @classmethod
    def of(cls, before: Mapping[str, float], after: Mapping[str, float]) -> "Change":
        """The change of values by subject. Scans with an undefined value (nan) do not count."""
        by_person: dict[str, list[tuple[float, float]]] = {}
        for name, value in before.items():
            if not math.isnan(value + after[name]):
                by_person.setdefault(person(name), []).append((value, after[name]))
        count = len(by_person)
        if not count:
            return cls(math.nan, math.nan, math.nan, math.nan, math.nan, people=0)
        pairs = np.array([np.mean(scans, axis=0) for scans in by_person.values()])
        before_mean, after_mean = map(float, pairs.mean(axis=0))
        changes = pairs[:, 1] - pairs[:, 0]
        change, half = float(changes.mean()), math.nan
        if count > 1:
            error = changes.std(ddof=1) / math.sqrt(count)
            half = float(scipy.stats.t.ppf(0.975, count - 1) * error)
        return cls(before_mean, after_mean, change, change - half, change + half, people=count)


@dataclass(frozen=True)
class Validation:
    """Measures by subject: `after` from models trained without the subject, `before` from the
    initial model, if there is one.

    `synthetic`: Dice of the initial model and of the final one on new synthetic scans of the same
    kind as in training. `doubts`: why the scans of a subject may be wrong, by subject.
    """

    model: str
    origin: str  # name of the initial model; empty without `before`
    folds: Sequence[Sequence[str]]
    after: Mapping[str, Row]
    before: Mapping[str, Row]
    synthetic: Sequence[Sequence[float]] | None
    doubts: Mapping[str, str]

    def change(self, key: str) -> Change:
        """The change of a measure."""
        return Change.of(
            {name: row[key] for name, row in self.before.items()},
            {name: row[key] for name, row in self.after.items()},
        )

    @property
    def verdict(self) -> Verdict:
        """The verdict from the interval of the change of Dice.

        A model that finds more WMH in people without WMH is not better.
        """
        change = self.change(DECISIVE_MEASURE)
        if change.low > 0 and not self.finds_more_in_healthy:
            return "better"
        return "worse" if change.high < 0 else "no clear difference"

    @property
    def healthy(self) -> Change:
        """The change of the segmented volume, in mL, in people without WMH (Dice is undefined)."""
        found = [
            {
                name: row["prediction_ml"]
                for name, row in rows.items()
                if self.after[name]["reference_ml"] == 0
            }
            for rows in (self.before, self.after)
        ]
        return Change.of(*found)

    @property
    def finds_more_in_healthy(self) -> bool:
        """Whether the volume in people without WMH rose by more than `LARGEST_RISE_ML`."""
        return self.healthy.change > LARGEST_RISE_ML

    @property
    def synthetic_change(self) -> Change | None:
        """The change of Dice on synthetic scans, without scans where both models have Dice 0."""
        if self.synthetic is None:
            return None
        scans = enumerate(zip(*self.synthetic, strict=True))
        found = {str(k): pair for k, pair in scans if any(pair)}
        return Change.of(*({k: pair[side] for k, pair in found.items()} for side in (0, 1)))

    @property
    def is_worse_on_synthetic(self) -> bool:
        """Whether the Dice on synthetic scans fell by more than `LARGEST_DICE_LOSS`."""
        change = self.synthetic_change
        return change is not None and change.change < -LARGEST_DICE_LOSS

    def sentences(self) -> list[str]:
        """The verdict in sentences, with its limitations."""
        change, healthy = self.change(DECISIVE_MEASURE), self.healthy
        synthetic = self.synthetic_change
        numbers = (
            f"Dice {shown(change.before, 3)} before, {shown(change.after, 3)} after, "
            f"{signed(change.change)} (95 % interval {signed(change.low)} to {signed(change.high)})"
        )
        said = [
            (
                f"{self.model} compared with {self.origin}, on {people_text(change.people)} not "
                f"used in training: {self.verdict}. {numbers}."
            )
        ]
        match self.verdict:
            case "better":
                said.append(f"Use {self.model} for scans like these.")
            case "worse":
                said.append(f"Keep {self.origin}.")
            case _:
                said.append(f"Keep {self.origin}, or label more people's scans.")
        if change.people < FEWEST_PEOPLE:
            said.append(
                f"With {people_text(change.people)}, below {FEWEST_PEOPLE}, the interval is "
                "unreliable."
            )
        if healthy.people:
            said.append(
                f"In {people_text(healthy.people)} without WMH it finds {shown(healthy.after, 2)} "
                f"mL on average, {self.origin} {shown(healthy.before, 2)} mL."
            )
        if self.finds_more_in_healthy:
            said.append("It finds more WMH than before in people without WMH, so it is not better.")
        if synthetic is not None:
            said.append(
                f"On {synthetic.people} synthetic scans: Dice {shown(synthetic.before, 3)} before, "
                f"{shown(synthetic.after, 3)} after. They are difficult by design; only the change "
                "matters."
            )
        if self.is_worse_on_synthetic:
            said.append(f"It has become worse on other scans: keep {self.origin} for them.")
        said += (f"Check the scans of {name}: {doubt}" for name, doubt in self.doubts.items())
        return said


def people_text(count: int) -> str:
    return "1 person" if count == 1 else f"{count} people"


def signed(value: float, digits: int = 3) -> str:
    """A change with its sign; n/a if it is unknown."""
    return "n/a" if math.isnan(value) else f"{value:+.{digits}f}"
