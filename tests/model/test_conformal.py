"""Conformal widths: laws of coverage, weights and lines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leuko.model.conformal import conformal_width, likeness, median_line

SCORES = arrays(float, 30, elements=st.floats(0, 10))
WEIGHTS = arrays(float, 30, elements=st.floats(0.1, 1))


@pytest.mark.parametrize("number", [10, 30, 100])
@pytest.mark.parametrize("covered", [0.8, 0.9])
def test_a_width_holds_at_least_the_nominal_part_of_new_values(number, covered):
    rng = np.random.default_rng(3)
    held = [
        rng.lognormal()
        <= conformal_width(rng.lognormal(size=number), np.ones(number), covered=covered)
        for _ in range(4000)
    ]
    assert covered - 0.015 < np.mean(held) < covered + 1 / (number + 1) + 0.015


def test_weights_make_a_width_hold_for_scans_that_look_different():
    """Synthetic errors grow with x, and real scans have a greater x than most synthetic ones."""
    rng = np.random.default_rng(4)
    held = {"weighted": [], "alike": []}
    for _ in range(400):
        x = rng.uniform(0, 4, 300)
        real = rng.normal(3.5, 0.2, 20)
        scores = abs(rng.normal(size=300)) * (0.2 + x)
        weights = likeness(x[:, None], real[:, None], np.ones(20), widths=np.array([0.3]))
        new = abs(rng.normal()) * (0.2 + rng.normal(3.5, 0.2))
        held["weighted"].append(new <= conformal_width(scores, weights))
        held["alike"].append(new <= conformal_width(scores, np.ones(300)))
    assert np.mean(held["weighted"]) > 0.88
    assert np.mean(held["alike"]) < 0.8


@given(SCORES, WEIGHTS)
def test_a_width_is_a_score_and_grows_with_what_it_has_to_cover(scores, weights):
    narrow, wide = (conformal_width(scores, weights, covered=part) for part in (0.5, 0.7))
    assert narrow <= wide
    assert {narrow, wide} <= set(scores)


def test_too_few_values_for_an_interval_are_refused():
    with pytest.raises(ValueError, match="too few values"):
        conformal_width(np.arange(8.0), np.ones(8), covered=0.9)
    assert conformal_width(np.arange(9.0), np.ones(9), covered=0.9) == 8


def test_a_synthetic_scan_among_real_ones_counts_more_than_one_apart():
    synthetic = np.array([[0.0, 0.0], [5.0, 5.0], [5.2, 5.0]])
    near, far, farther = likeness(
        synthetic, np.array([[0.1, 0.0]]), np.ones(1), widths=np.array([1.0, 1.0])
    )
    assert near == 1
    assert max(far, farther) < 1e-3


def test_a_median_line_passes_through_points_on_a_line_whatever_one_in_five_is():
    x = np.linspace(0, 1, 10)
    y = 2 - 3 * x
    y[[2, 7]] += 100
    assert median_line(x, y, np.ones(10)) == pytest.approx((2, -3), abs=1e-6)
