"""Ranges from which settings of the synthesis are drawn, and weights of smooth noise.

All are tuples of numbers, so that settings can be written as JSON.
"""

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor


class Range(NamedTuple):
    """The lowest and the highest value of a random number."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """A number from a uniform distribution."""
        return rng.uniform(self.low, self.high)

    def draw_log(self, rng: np.random.Generator) -> float:
        """A number whose logarithm has a uniform distribution."""
        return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))


class Unevenness(NamedTuple):
    """Weights of coarse and fine noise in a factor that varies around 1."""

    coarse: float
    fine: float = 0.0

    def factor(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return 1 + self.coarse * coarse + self.fine * fine


class Patches(NamedTuple):
    """Weights of coarse and fine noise in patches: what exceeds a threshold, up to a maximum."""

    coarse: float
    fine: float
    threshold: float = 0.0
    highest: float | None = None

    def of(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return (self.coarse * coarse + self.fine * fine - self.threshold).clamp(0, self.highest)
