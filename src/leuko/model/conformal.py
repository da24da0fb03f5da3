"""Weighted conformal prediction (Tibshirani et al. 2019): interval widths with known coverage.

Synthetic scans are weighted by their likeness to real ones.
"""

import numpy as np
import scipy.optimize

from leuko.volume import Array

COVERED = 0.9


def conformal_width(scores: Array, weights: Array, *, covered: float = COVERED) -> float:
    """The smallest of the scores (N,) at which the cumulative weight reaches `covered`.

    The new value has the largest of the weights and an infinite score. Raises ValueError if there
    are too few values.
    """
    order = np.argsort(scores)
    reached = np.cumsum(weights[order]) / (weights.sum() + weights.max())
    enough = np.flatnonzero(reached >= covered - 1e-12)
    if not enough.size:
        raise ValueError(f"too few values for an interval with {covered:.0%} coverage")
    return float(scores[order[enough[0]]])


def likeness(synthetic: Array, real: Array, real_weights: Array, *, widths: Array) -> Array:
    """Likeness of synthetic scans (S, F) to real ones (R, F), (S,), 0 to 1.

    It is the ratio of their Gaussian kernel densities, with kernel `widths` (F,), clipped at 1.
    """

    def density(scans: Array, weights: Array) -> Array:
        steps = (synthetic[:, None] - scans) / widths
        mean: Array = np.exp(-0.5 * (steps**2).sum(axis=2)) @ weights / weights.sum()
        return mean

    ratio = density(real, real_weights) / density(synthetic, np.ones(len(synthetic)))
    return np.minimum(ratio, 1)


def median_line(x: Array, y: Array, weights: Array) -> tuple[float, float]:
    """Intercept and slope of the weighted median regression of y (N,) on x (N,) (Koenker and
    Bassett 1978), solved by linear programming."""
    n = len(x)
    cost = np.concatenate([np.zeros(2), weights, weights])
    design = np.column_stack([np.ones(n), x, np.eye(n), -np.eye(n)])
    bounds = [(None, None)] * 2 + [(0, None)] * (2 * n)
    best = scipy.optimize.linprog(cost, A_eq=design, b_eq=y, bounds=bounds).x
    if best is None:
        raise ValueError("median regression did not converge")
    return float(best[0]), float(best[1])
