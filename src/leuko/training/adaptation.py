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

DECIDES = "dsc"
# Largest accepted loss of Dice on synthetic scans.
FORGOTTEN = 0.02
# Largest accepted increase of the volume found, on average, in subjects without WMH.
INVENTED_ML = 0.1
FEW = 6  # people: with fewer the interval is unreliable

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
    model that the training started from, if any.

    `synthetic`: Dice on synthetic scans like those used in training, of that model and of the one
    trained with all subjects. `doubts`: by subject, why its scans may be wrong.
    """

    model: str
    origin: str  # empty without a `before`
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
        """By the interval of the change of Dice; a model that `invents` WMH is not better."""
        change = self.change(DECIDES)
        if change.low > 0 and not self.invents:
            return "better"
        return "worse" if change.high < 0 else "no clear difference"

    @property
    def healthy(self) -> Change:
        """The change of the volume found, in mL, in subjects without WMH (no Dice there)."""
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
    def invents(self) -> bool:
        """Whether the volume found in subjects without WMH rose by more than `INVENTED_ML`."""
        return self.healthy.change > INVENTED_ML

    @property
    def kept(self) -> Change | None:
        """The change of Dice on synthetic scans, without those that both models miss."""
        if self.synthetic is None:
            return None
        scans = enumerate(zip(*self.synthetic, strict=True))
        found = {str(k): pair for k, pair in scans if any(pair)}
        return Change.of(*({k: pair[side] for k, pair in found.items()} for side in (0, 1)))

    @property
    def has_forgotten(self) -> bool:
        """Whether the Dice on synthetic scans fell by more than `FORGOTTEN`."""
        return self.kept is not None and self.kept.change < -FORGOTTEN

    def sentences(self) -> list[str]:
        """The verdict in sentences, with its limitations."""
        change, healthy = self.change(DECIDES), self.healthy
        numbers = (
            f"Dice {shown(change.before, 3)} before, {shown(change.after, 3)} after, "
            f"{signed(change.change)} (95 % interval {signed(change.low)} to {signed(change.high)})"
        )
        said = [
            (
                f"{self.model} compared with {self.origin}, on {change.people} people not used in "
                f"training: {self.verdict}. {numbers}."
            )
        ]
        match self.verdict:
            case "better":
                said.append(f"Use {self.model} for scans like these.")
            case "worse":
                said.append(f"Keep {self.origin}.")
            case _:
                said.append(f"Keep {self.origin}, or label more people's scans.")
        if change.people < FEW:
            said.append(f"With {change.people} people, below {FEW}, the interval is unreliable.")
        if healthy.people:
            said.append(
                f"In {healthy.people} people without WMH it finds {shown(healthy.after, 2)} mL on "
                f"average, {self.origin} {shown(healthy.before, 2)} mL."
            )
        if self.invents:
            said.append("It finds more WMH than before in people without WMH, so it is not better.")
        if self.kept is not None:
            said.append(
                f"On {self.kept.people} synthetic scans: Dice {shown(self.kept.before, 3)} before, "
                f"{shown(self.kept.after, 3)} after. They are hard on purpose; only the change "
                "matters."
            )
        if self.has_forgotten:
            said.append(f"It has become worse on other scans: keep {self.origin} for them.")
        said += (f"Check the scans of {name}: {doubt}" for name, doubt in self.doubts.items())
        return said


def signed(value: float, digits: int = 3) -> str:
    """A change with its sign; n/a if it is unknown."""
    return "n/a" if math.isnan(value) else f"{value:+.{digits}f}"
