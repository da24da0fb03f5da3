"""What a cross-validation says: measures by subject, before and after, and the verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from leuko.evaluate import Row, mean_with_interval
from leuko.frame import shown

DECIDES = "dsc"
# Dice that a model may lose on scans like those that it came from.
FORGOTTEN = 0.02
FEW = 6  # subjects: below, an interval says little

Verdict = Literal["better", "worse", "no clear difference"]


@dataclass(frozen=True)
class Change:
    """The means of a measure before and after, and the mean change, subject by subject, with its
    95 % interval."""

    before: float
    after: float
    change: float
    low: float
    high: float

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> "Change":
        """Where one of the two is undefined (nan), a subject does not count."""
        pairs = [(b, a) for b, a in zip(before, after, strict=True) if not math.isnan(b + a)]
        befores, afters = ([pair[k] for pair in pairs] for k in range(2))
        change = mean_with_interval([a - b for b, a in pairs])
        return cls(mean_with_interval(befores)[0], mean_with_interval(afters)[0], *change)


@dataclass(frozen=True)
class Validation:
    """Measures of subjects, by name: `after` of models that were trained without them, `before` of
    the model that the training started from, if there was one.

    `synthetic`: Dice on synthetic scans like those that model was trained on, of it and of the
    model that was trained with all subjects.
    """

    model: str
    origin: str  # empty without a `before`
    folds: Sequence[Sequence[str]]
    after: Mapping[str, Row]
    before: Mapping[str, Row]
    synthetic: Sequence[Sequence[float]] | None

    def change(self, key: str) -> Change:
        """That of a measure."""
        return Change.of(
            [row[key] for row in self.before.values()], [row[key] for row in self.after.values()]
        )

    @property
    def verdict(self) -> Verdict:
        """By the interval of the change of Dice."""
        change = self.change(DECIDES)
        if change.low > 0:
            return "better"
        return "worse" if change.high < 0 else "no clear difference"

    @property
    def kept(self) -> Change | None:
        """The change of Dice on synthetic scans."""
        return Change.of(*self.synthetic) if self.synthetic else None

    @property
    def has_forgotten(self) -> bool:
        """Whether the Dice on synthetic scans fell by more than `FORGOTTEN`."""
        return self.kept is not None and self.kept.change < -FORGOTTEN

    def sentences(self) -> list[str]:
        """The verdict in words, and what speaks against relying on it."""
        change, count = self.change(DECIDES), len(self.after)
        numbers = (
            f"Dice {shown(change.before, 2)} before, {shown(change.after, 2)} after, "
            f"{signed(change.change)} (95 % interval {signed(change.low)} to {signed(change.high)})"
        )
        said = [
            (
                f"{self.model} against {self.origin}, on {count} subjects that it had not seen: "
                f"{self.verdict}. {numbers}."
            )
        ]
        match self.verdict:
            case "better":
                said.append(f"Use {self.model} for scans like these.")
            case "worse":
                said.append(f"Keep {self.origin}.")
            case _:
                said.append(f"Keep {self.origin}, or label more subjects.")
        if count < FEW:
            said.append(f"{count} subjects are few: the interval says little.")
        if self.kept is not None:
            said.append(
                f"On synthetic scans like those that {self.origin} was trained on: Dice "
                f"{shown(self.kept.before, 2)} before, {shown(self.kept.after, 2)} after."
            )
        if self.has_forgotten:
            said.append(f"It has forgotten: for other scans keep {self.origin}.")
        return said


def signed(value: float, digits: int = 2) -> str:
    """A change with its sign; what is not known is n/a."""
    return "n/a" if math.isnan(value) else f"{value:+.{digits}f}"
