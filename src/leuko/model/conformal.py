"""Conformal widths: how far intervals must reach to hold a new value, from values that are known.

Synthetic scans count as much as they look like real ones (weighted conformal prediction,
Tibshirani et al. 2019).
"""

import numpy as np
import scipy.optimize

from leuko.volume import Array

COVERED = 0.9


def conformal_width(scores: Array, weights: Array, *, covered: float = COVERED) -> float:
    """The least of the scores (N,) that, with all below, has the part `covered` of the weight.

    The value to come has the greatest of the weights, and no score yet: it counts as infinite.
    Raises ValueError where the values are too few.
    """
    order = np.argsort(scores)
    reached = np.cumsum(weights[order]) / (weights.sum() + weights.max())
    enough = np.flatnonzero(reached >= covered - 1e-12)
    if not enough.size:
        raise ValueError(f"too few values for an interval that holds {covered:.0%} of them")
    return float(scores[order[enough[0]]])


def likeness(synthetic: Array, real: Array, real_weights: Array, *, widths: Array) -> Array:
    """How much synthetic scans (S, F) look like real ones (R, F), 0 to 1.

    The ratio of the two densities, means of Gaussian kernels of the `widths` (F,); more than 1
    counts as 1.
    """

    def density(scans: Array, weights: Array) -> Array:
        steps = (synthetic[:, None] - scans) / widths
        mean: Array = np.exp(-0.5 * (steps**2).sum(axis=2)) @ weights / weights.sum()
        return mean

    ratio = density(real, real_weights) / density(synthetic, np.ones(len(synthetic)))
    return np.minimum(ratio, 1)


def median_line(x: Array, y: Array, weights: Array) -> tuple[float, float]:
    """Value at 0 and slope of the line over x (N,) with the least weighted sum of absolute
    distances from y (N,) (Koenker and Bassett 1978), as a linear programme."""
    n = len(x)
    cost = np.concatenate([np.zeros(2), weights, weights])
    design = np.column_stack([np.ones(n), x, np.eye(n), -np.eye(n)])
    bounds = [(None, None)] * 2 + [(0, None)] * (2 * n)
    best = scipy.optimize.linprog(cost, A_eq=design, b_eq=y, bounds=bounds).x
    if best is None:
        raise ValueError("no line can be fitted")
    return float(best[0]), float(best[1])
