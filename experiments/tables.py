"""How the tables of these scripts show a mean."""

import math
from collections.abc import Sequence

from leuko.evaluation.evaluate import mean_with_interval


def interval(values: Sequence[float], digits: int, *, signed: bool = False) -> str:
    """Mean and its 95 % interval, of one value none; the count where some are undefined (nan)."""
    numbers = mean_with_interval(values)
    mean, low, high = (f"{number:{'+' if signed else ''}.{digits}f}" for number in numbers)
    told = mean if math.isnan(numbers[1]) else f"{mean} ({low} to {high})"
    known = sum(not math.isnan(value) for value in values)
    return told if known == len(values) else f"{told}, of {known}"
