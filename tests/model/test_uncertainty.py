"""How sure a segmentation is: laws of calibration, entropy, expected Dice and intervals."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reliability import reliability_figure

from leuko.errors import LeukoError
from leuko.model.calibration import (
    Calibration,
    DiceLine,
    Seen,
    calibrated,
    entropy,
    interval_text,
    judge,
)
from leuko.model.card import CARD_FILE, ModelCard, load_card
from leuko.model.weights import find

CALIBRATION = Calibration(
    temperature=3.0, volume_width=0.2, dice=DiceLine(0.9, -0.2, 0.1), measured_on="nothing"
)
SEEN = Seen(found_ml=4.0, conservative_ml=3.0, liberal_ml=6.0, contrast=1.4)
PROBABILITIES = arrays(np.float32, (3, 4, 2), elements=st.floats(0, 1, width=32))
TEMPERATURES = st.floats(0.2, 20)


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


ML = st.floats(0, 300)


@st.composite
def what_is_seen(draw):
    conservative, found, liberal = sorted(draw(st.tuples(ML, ML, ML)))
    return Seen(found, conservative, liberal, draw(st.floats(0.5, 3)))


@given(what_is_seen())
def test_intervals_hold_what_was_found_and_stay_possible(seen):
    judgement = judge(CALIBRATION, seen)
    low_ml, high_ml = judgement.volume_interval_ml
    assert 0 <= low_ml <= seen.found_ml + 1e-9
    assert seen.found_ml <= high_ml + 1e-9
    if seen.found_ml:
        low, high = judgement.dice_interval
        assert 0 <= low <= judgement.predicted_dice <= high <= 1


def intervals(seen, name, more):
    """The intervals of the volume before and after one thing that is seen has become more."""
    changed = replace(seen, **{name: getattr(seen, name) + more})
    return [judge(CALIBRATION, each).volume_interval_ml for each in (seen, changed)]


@given(what_is_seen(), st.floats(0.01, 100))
def test_the_interval_of_a_larger_volume_lies_higher(seen, more_ml):
    before, after = intervals(seen, "found_ml", more_ml)
    assert before[0] <= after[0]
    assert before[1] < after[1]


@given(what_is_seen(), st.floats(0.01, 100))
def test_intervals_are_wider_where_thresholds_matter_more(seen, more_ml):
    before, after = (
        judge(CALIBRATION, replace(seen, liberal_ml=ml))
        for ml in (seen.liberal_ml, seen.liberal_ml + more_ml)
    )
    assert after.volume_interval_ml[0] <= before.volume_interval_ml[0]
    assert before.volume_interval_ml[1] < after.volume_interval_ml[1]
    if seen.found_ml:
        assert after.predicted_dice <= before.predicted_dice


@given(what_is_seen(), st.floats(0.01, 1))
def test_the_interval_of_a_volume_is_no_wider_where_lesions_are_brighter(seen, more):
    faint, bright = intervals(seen, "contrast", more)
    assert faint[0] <= bright[0]
    assert bright[1] <= faint[1]


def test_the_intervals_are_those_of_the_calibration():
    spread = np.log(6.1 / 3.1)
    factor = np.exp(0.2 * (1 + spread) / 0.4)
    judgement = judge(CALIBRATION, SEEN)
    assert judgement.volume_interval_ml == pytest.approx((4.1 / factor - 0.1, 4.1 * factor - 0.1))
    expected, width = 0.9 - 0.2 * spread, 0.1 * (1 + spread)
    assert judgement.predicted_dice == pytest.approx(expected)
    assert judgement.dice_interval == pytest.approx((expected - width, expected + width))


def test_an_empty_mask_has_an_interval_from_0_and_no_dice_to_expect():
    judgement = judge(CALIBRATION, Seen(0.0, 0.0, 0.3, contrast=1.0))
    assert judgement.predicted_dice is None
    assert judgement.dice_interval is None
    low_ml, high_ml = judgement.volume_interval_ml
    assert low_ml == 0 < high_ml


def test_a_number_that_was_not_good_enough_is_not_told():
    without_volume = judge(replace(CALIBRATION, volume_width=None), SEEN)
    assert without_volume.volume_interval_ml is None
    assert without_volume.dice_interval is not None
    without_dice = judge(replace(CALIBRATION, dice=None), SEEN)
    assert without_dice.volume_interval_ml is not None
    assert without_dice.predicted_dice is without_dice.dice_interval is None


@pytest.mark.parametrize("change", [{}, {"volume_width": None}, {"dice": None}], ids=str)
def test_a_calibration_comes_back_from_json(change):
    calibration = replace(CALIBRATION, **change)
    assert Calibration.from_json(json.loads(json.dumps(asdict(calibration)))) == calibration


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0},
        {"temperature": "warm"},
        {"volume_width": -0.2},
        {"volume_width": float("nan")},
        {"volume_width": [1.0]},
        {"dice": 0.5},
        {"dice": {"at_zero": 1.0}},
        {"dice": {"at_zero": "high", "slope": 0.0, "width": 0.1}},
        {"dice": {"at_zero": 1.0, "slope": 0.0, "width": 0.0}},
    ],
    ids=str,
)
def test_a_card_with_a_broken_calibration_is_refused(tmp_path, change):
    content = asdict(load_card(find("leuko-base"))) | {"calibration": asdict(CALIBRATION) | change}
    with pytest.raises(LeukoError, match=r"card\.json is not a valid model card"):
        ModelCard.from_json(content, source=tmp_path / CARD_FILE)


@pytest.mark.parametrize("calibration", [{}, [], "none", 3], ids=str)
def test_a_card_with_something_else_for_a_calibration_is_refused(tmp_path, calibration):
    content = asdict(load_card(find("leuko-base"))) | {"calibration": calibration}
    with pytest.raises(LeukoError, match=r"card\.json is not a valid model card"):
        ModelCard.from_json(content, source=tmp_path / CARD_FILE)


def test_a_calibration_of_another_form_is_named_with_the_form_that_is_expected(tmp_path):
    other = {"temperature": 3.0, "volume_low": [0.0, 0.0], "measured_on": "heads"}
    content = asdict(load_card(find("leuko-base"))) | {"calibration": other}
    with pytest.raises(LeukoError, match=r"has temperature, volume_low,.*expected temp"):
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
    assert 0.5 < calibration.temperature < 6
    assert "without their source" in calibration.measured_on
    if calibration.volume_width is not None:  # common lesions on thick slices: a factor of 4
        low_ml, high_ml = judge(calibration, Seen(20, 15, 30, contrast=1.4)).volume_interval_ml
        assert 1.2 * low_ml < high_ml < 5 * low_ml
    if calibration.dice is not None:
        sure, unsure = (
            judge(calibration, Seen(20, 20 - gap, 20 + gap, 1.4)).predicted_dice for gap in (1, 10)
        )
        assert 0 <= unsure < sure <= 1


def test_the_reliability_figure_shows_each_kind_before_and_after_and_the_intervals():
    odds = np.linspace(-8, 8, 17)
    bins = {"heads": (odds, 1 / (1 + np.exp(-odds / 3)), np.full(17, 1000))}
    scans = {"heads": np.array([(3.0, 0.5, 0.2, 0.8), (40.0, -0.5, 1.0, np.nan)])}
    left, middle, right = reliability_figure(bins, scans, CALIBRATION).axes
    before, after = left.get_lines()[-2:]
    assert after.get_xdata() == pytest.approx(after.get_ydata())  # calibrated: on the diagonal
    assert before.get_xdata() != pytest.approx(before.get_ydata(), abs=0.05)
    assert middle.get_lines()[-1].get_xdata() == pytest.approx([3, 15])
    assert middle.get_lines()[-1].get_ydata() == pytest.approx(np.exp([0.5, -0.5]))
    assert right.get_lines()[-1].get_ydata()[0] == 0.8
    broad = replace(CALIBRATION, volume_width=0.3)
    assert _height(reliability_figure(bins, scans, broad)) > _height(middle.figure)
    bare = reliability_figure(bins, scans, replace(CALIBRATION, volume_width=None, dice=None))
    assert not [band for axes in bare.axes[1:] for band in axes.collections]


def _height(figure):
    """How high the interval of the volumes reaches."""
    return figure.axes[1].collections[0].get_paths()[0].vertices[:, 1].max()
