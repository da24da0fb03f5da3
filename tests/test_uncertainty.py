"""How sure a segmentation is: laws of calibration, entropy, expected Dice and intervals."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leuko.errors import LeukoError
from leuko.figures import reliability_figure
from leuko.metrics import dice
from leuko.uncertainty import (
    Calibration,
    calibrated,
    entropy,
    interval_text,
    judge,
    soft_dice,
)
from leuko.weights import CARD_FILE, ModelCard, find, load_card

CALIBRATION = Calibration(
    temperature=3.0,
    volume_low=(-1.5, 0.2),
    volume_high=(1.5, -0.2),
    dice=(0.0, 1.0),
    dice_low=(-0.2, 1.0),
    dice_high=(0.2, 1.0),
    measured_on="nothing",
)
PROBABILITIES = arrays(np.float32, (3, 4, 2), elements=st.floats(0, 1, width=32))
TEMPERATURES = st.floats(0.2, 20)


def some(count, *, of=100):
    """A mask with `count` voxels."""
    mask = np.zeros(of, dtype=bool)
    mask[:count] = True
    return mask


@given(PROBABILITIES)
def test_temperature_1_changes_nothing(p):
    assert calibrated(p, 1.0) == pytest.approx(p, abs=1e-6)


@given(PROBABILITIES, TEMPERATURES)
def test_calibration_keeps_order_and_range_and_what_is_certain(p, temperature):
    warm = calibrated(p, temperature)
    assert warm.dtype == np.float32
    assert (np.diff(warm.ravel()[p.ravel().argsort()]) >= 0).all()
    assert 0 <= warm.min() <= warm.max() <= 1
    assert (warm[p == 0] == 0).all()
    assert (warm[p == 1] == 1).all()


@given(PROBABILITIES, st.floats(1, 20))
def test_a_temperature_above_1_brings_probabilities_nearer_to_a_half(p, temperature):
    seen = p > 0
    warm = calibrated(p, temperature)[seen]
    assert (abs(warm - 0.5) <= abs(p[seen] - 0.5) + 1e-6).all()


def test_a_temperature_divides_the_log_odds():
    assert calibrated(np.array([0.2, 0.5, 0.8]), 2.0) == pytest.approx([1 / 3, 0.5, 2 / 3])


def test_entropy_is_1_bit_for_a_half_and_0_for_what_is_certain():
    assert entropy(np.array([0, 0.5, 1])).tolist() == [0, 1, 0]


@given(PROBABILITIES)
def test_entropy_is_the_same_for_lesion_and_no_lesion_and_within_a_bit(p):
    bits = entropy(p)
    assert bits == pytest.approx(entropy(1 - p), abs=1e-5)
    assert 0 <= bits.min() <= bits.max() <= 1


@given(PROBABILITIES)
def test_entropy_rises_up_to_a_half(p):
    order = abs(p - 0.5).ravel().argsort()
    assert (np.diff(entropy(p).ravel()[order]) <= 1e-6).all()


@given(arrays(bool, (3, 4, 2)).filter(np.any))
def test_certain_masks_expect_a_dice_of_1(mask):
    assert soft_dice(mask.astype(np.float32), mask) == pytest.approx(1)


@given(arrays(bool, (3, 4, 2)).filter(np.any), arrays(bool, (3, 4, 2)))
def test_where_probabilities_are_the_truth_the_expected_dice_is_the_dice(mask, truth):
    expected = soft_dice(truth.astype(np.float32), mask)
    assert expected == pytest.approx(dice(prediction=mask, reference=truth))


def test_an_empty_mask_has_no_dice_to_expect():
    assert soft_dice(np.full(100, 0.1), some(0)) is None
    judgement = judge(CALIBRATION, np.full(100, 0.1), some(0), voxel_ml=0.01)
    assert judgement.predicted_dice is None
    assert judgement.dice_interval is None
    low_ml, high_ml = judgement.volume_interval_ml
    assert low_ml == 0 < high_ml


@given(st.integers(0, 100), st.floats(1e-4, 1), PROBABILITIES)
def test_intervals_hold_what_was_found_and_stay_possible(count, voxel_ml, p):
    mask = some(count).reshape(10, 10)
    probability = np.resize(p, mask.shape)
    judgement = judge(CALIBRATION, probability, mask, voxel_ml=voxel_ml)
    low_ml, high_ml = judgement.volume_interval_ml
    assert 0 <= low_ml <= count * voxel_ml <= high_ml
    if count:
        low, high = judgement.dice_interval
        assert 0 <= low <= judgement.predicted_dice <= high <= 1


def test_the_interval_of_a_volume_follows_its_lines():
    judgement = judge(CALIBRATION, some(40), some(40), voxel_ml=0.1)  # 4 mL
    spread = 4.1 ** (1 - 0.2) * np.exp(1.5) - 0.1
    assert judgement.volume_interval_ml[1] == pytest.approx(spread)
    assert judgement.volume_interval_ml[0] == pytest.approx(4.1**1.2 * np.exp(-1.5) - 0.1)


def test_a_calibration_comes_back_from_json():
    again = Calibration.from_json(json.loads(json.dumps(asdict(CALIBRATION))))
    assert again == CALIBRATION


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0},
        {"temperature": "warm"},
        {"volume_low": [1.0]},
        {"volume_high": [0.0, float("nan")]},
        {"dice": 0.5},
        {"dice_low": None},
    ],
    ids=str,
)
def test_a_card_with_a_broken_calibration_is_refused(tmp_path, change):
    content = asdict(load_card(find("leuko-base"))) | {"calibration": asdict(CALIBRATION) | change}
    with pytest.raises(LeukoError, match=r"card\.json is no model card"):
        ModelCard.from_json(content, source=tmp_path / CARD_FILE)


@pytest.mark.parametrize("calibration", [{}, [], "none", 3], ids=str)
def test_a_card_with_something_else_for_a_calibration_is_refused(tmp_path, calibration):
    content = asdict(load_card(find("leuko-base"))) | {"calibration": calibration}
    with pytest.raises(LeukoError, match=r"card\.json is no model card"):
        ModelCard.from_json(content, source=tmp_path / CARD_FILE)


def test_a_card_without_calibration_is_read(tmp_path):
    content = asdict(load_card(find("leuko-base")))
    del content["calibration"]
    assert ModelCard.from_json(content, source=tmp_path / CARD_FILE).calibration is None


def test_intervals_are_written_as_people_read_them():
    assert interval_text([0.0431, 9.96]) == "0.043 to 10 mL"
    assert interval_text([84.6, 1634]) == "85 to 1634 mL"


def test_the_bundled_model_is_calibrated():
    calibration = load_card(find("leuko-base")).calibration
    assert 1 < calibration.temperature < 6
    assert "held-out heads" in calibration.measured_on
    for found_ml in (5, 50):
        mask = some(10 * found_ml, of=10_000)
        judgement = judge(calibration, mask.astype(float), mask, voxel_ml=0.1)
        low_ml, high_ml = judgement.volume_interval_ml
        assert found_ml / 20 < low_ml < found_ml < high_ml < 20 * found_ml
    sure, unsure = (
        judge(calibration, level * mask, mask, voxel_ml=0.1).predicted_dice for level in (1.0, 0.6)
    )
    assert 0 <= unsure < sure <= 1


def test_the_reliability_figure_shows_each_kind_before_and_after_and_the_band():
    odds = np.linspace(-8, 8, 17)
    bins = {"heads": (odds, 1 / (1 + np.exp(-odds / 3)), np.full(17, 1000))}
    volumes = {"heads": [(1.0, 2.0), (3.0, 2.0)]}
    left, right = reliability_figure(bins, volumes, CALIBRATION).axes
    before, after = left.get_lines()[-2:]
    assert after.get_xdata() == pytest.approx(after.get_ydata())  # calibrated: on the diagonal
    assert before.get_xdata() != pytest.approx(before.get_ydata(), abs=0.05)
    assert right.get_lines()[-1].get_xdata() == pytest.approx([1.1, 3.1])
    broad = replace(CALIBRATION, volume_high=(3.0, -0.2))
    assert _height(reliability_figure(bins, volumes, broad)) > _height(
        reliability_figure(bins, volumes, CALIBRATION)
    )


def _height(figure):
    """How high the band of the volumes reaches."""
    return figure.axes[1].collections[0].get_paths()[0].vertices[:, 1].max()
