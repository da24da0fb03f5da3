"""From probabilities to masks: which lesions are kept, where they end, which rims are seen."""

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given
from hypothesis import strategies as st

from leuko.errors import LeukoError
from leuko.evaluation.metrics import dice
from leuko.io.tissue import CLASSES, CLASSES_WITHOUT_RIM, Tissue
from leuko.lesions.delineation import (
    EDGE,
    RIM_CONTRAST,
    delineate,
    lesions_of,
    seen,
    tissue_map,
    white_level,
    with_rims,
)
from leuko.model.calibration import TYPICAL_CONTRAST
from leuko.model.card import Limits, ModelCard
from leuko.model.predict import Prediction
from leuko.preprocessing.slices import Preparation
from leuko.volume import Volume

WHITE, RIM, WMH = Tissue.WHITE, Tissue.RIM, Tissue.WMH
SHAPE = (48, 48, 5)
AFFINE = np.diag([1.0, 1.0, 6.0, 1.0])


def card(classes=CLASSES, **settings):
    return ModelCard(
        name="model",
        classes=classes,
        preparation=Preparation(),
        stages=((4,),),
        side_maps=2,
        training={},
        **{"threshold": 0.5, "smallest_lesion_mm3": 0.0} | settings,
    )


def shares(**maps):
    """Probabilities of white matter but for the classes that are given."""
    p = np.zeros((len(CLASSES), *SHAPE), dtype=np.float32)
    for name, values in maps.items():
        p[CLASSES.index(name)] = values
    p[WHITE] = 1 - p.sum(axis=0)
    return p


def masks_of(p, flair, model_card):
    return delineate(Prediction.of(p, flair, model_card), flair, model_card)


def box(low, high):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[low:high, low:high, 2] = True
    return mask


def blurred_lesion(truth, *, white=100.0, height=100.0):
    """A FLAIR whose lesion has soft edges, half as bright at the edge of the truth."""
    soft = scipy.ndimage.gaussian_filter(truth.astype(float), (1.5, 1.5, 0))
    return Volume((white + height * soft).astype(np.float32), AFFINE, "FLAIR")


def test_a_lesion_needs_one_voxel_that_is_surer_than_its_edge():
    p = np.zeros(SHAPE, dtype=np.float32)
    p[box(5, 10)], p[7, 7, 2] = 0.4, 0.8
    p[box(20, 25)] = 0.6
    limits = Limits(0.3, 0.7, 0)
    assert (lesions_of(p, limits, voxel_mm3=6) == box(5, 10)).all()
    assert (lesions_of(p, Limits(0.3, 0.3, 0), voxel_mm3=6) == (p > 0)).all()
    assert not lesions_of(p, Limits(0.3, 0.7, 151), voxel_mm3=6).any()


@given(threshold=st.floats(0.05, 0.6), lesion=st.floats(0.6, 0.95), chosen=st.floats(0.02, 0.98))
def test_the_lesion_threshold_moves_with_the_threshold(threshold, lesion, chosen):
    limits = card(threshold=threshold, lesion_threshold=lesion).limits(chosen)
    assert limits.threshold == chosen
    assert limits.threshold <= limits.lesion_threshold < 1
    assert (limits.lesion_threshold > lesion) == (chosen > threshold) or chosen == threshold


def test_limits_of_a_card_are_its_own_and_wrong_ones_are_refused():
    assert card().limits() == Limits(0.5, 0.5, 0.0)
    assert card(lesion_threshold=0.8).limits(None, 7) == Limits(0.5, 0.8, 7)
    for wrong in ((0.0, None), (1.0, None), (None, -1.0), (None, float("inf"))):
        with pytest.raises(LeukoError):
            card().limits(*wrong)
    with pytest.raises(ValueError, match="lesion_threshold"):
        card(lesion_threshold=0.4)
    with pytest.raises(ValueError, match="classes"):
        card(classes=("background", "rim", "white", "wmh"))


@pytest.mark.parametrize("drawn", [(18, 30), (22, 26)], ids=["too wide", "too narrow"])
def test_the_flair_decides_where_a_lesion_ends(drawn):
    flair = blurred_lesion(box(20, 28))
    p = np.where(box(*drawn), 0.6, np.where(box(15, 33), 0.4, 0.01))
    plain = masks_of(shares(wmh=p), flair, card()).mask
    found = masks_of(shares(wmh=p), flair, card(edges=True))
    assert (plain == box(*drawn)).all()
    bright = np.percentile(flair.data[box(*drawn)], 90)
    readers = flair.data >= 100 + EDGE * (bright - 100)
    before, after = (dice(prediction=mask, reference=readers) for mask in (plain, found.mask))
    assert after > 0.85 > before
    assert (found.mask == (found.probability >= 0.5)).all()


def test_edges_change_nothing_where_there_is_no_lesion_nor_in_other_slices():
    flair = blurred_lesion(box(20, 28))
    empty = masks_of(shares(wmh=0.1), flair, card(edges=True))
    assert not empty.mask.any()
    np.testing.assert_array_equal(empty.probability, np.full(SHAPE, 0.1, np.float32))
    found = masks_of(shares(wmh=np.where(box(20, 28), 0.9, 0)), flair, card(edges=True))
    assert set(np.flatnonzero(found.mask.any(axis=(0, 1)))) == {2}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_scale_of_the_flair_does_not_matter(scale):
    flair = blurred_lesion(box(20, 28))
    scaled = flair.with_data(flair.data * np.float32(scale))
    p = shares(wmh=np.where(box(18, 30), 0.7, 0), rim=np.where(box(34, 40), 0.6, 0))
    one, other = (masks_of(p, scan, card(edges=True)) for scan in (flair, scaled))
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_array_equal(one.rims, other.rims)


def test_white_matter_is_measured_near_by():
    ramp = np.linspace(80, 160, SHAPE[0])[:, None, None] * np.ones(SHAPE)
    flair = Volume(ramp.astype(np.float32), AFFINE, "FLAIR")
    white = ~box(15, 33)
    level = white_level(flair, white)
    inner = (slice(8, -8), slice(8, -8))
    np.testing.assert_allclose(level[inner], ramp[inner], rtol=0.1)
    nowhere = white_level(flair, np.zeros(SHAPE, dtype=bool))
    assert np.isfinite(nowhere).all()


def rims_and_a_lesion():
    """Two rims, one of which is not bright, and a lesion."""
    flair = blurred_lesion(box(20, 28))
    bright = box(34, 40)
    flair.data[bright] = 100 * (RIM_CONTRAST + 0.1)
    rim = np.where(bright | box(4, 9), 0.8, 0)
    return flair, shares(rim=rim, wmh=np.where(box(20, 28), 0.9, 0)), bright


def test_rims_are_those_that_are_bright_and_no_wmh():
    flair, p, bright = rims_and_a_lesion()
    drawn = masks_of(p, flair, card())
    np.testing.assert_array_equal(drawn.rims, bright)
    np.testing.assert_array_equal(drawn.mask, box(20, 28))
    assert (drawn.mask <= drawn.liberal).all()
    assert set(np.unique(drawn.anatomy.data)) == {WHITE}
    tissue = tissue_map(drawn.anatomy, drawn.mask, drawn.rims, card()).data
    assert (tissue[bright] == RIM).all()
    assert (tissue[drawn.mask] == WMH).all()


def test_rims_are_added_to_the_masks_of_wmh():
    flair, p, bright = rims_and_a_lesion()
    separate = masks_of(p, flair, card())
    both = with_rims(separate, Prediction.of(p, flair, card()))
    np.testing.assert_array_equal(both.mask, separate.mask | bright)
    assert (both.mask == (both.probability >= 0.5)).all()
    assert (both.mask <= both.liberal).all()
    assert both.rims is None


def test_a_model_without_rims_draws_none():
    flair, p, _ = rims_and_a_lesion()
    merged = np.concatenate([p[:WHITE], p[WHITE:RIM] + p[RIM:WMH], p[WMH:]])
    drawn = masks_of(merged, flair, card(classes=CLASSES_WITHOUT_RIM))
    assert drawn.rims is None
    np.testing.assert_array_equal(drawn.mask, box(20, 28))


def test_what_is_seen_is_the_volume_between_those_at_other_thresholds_and_the_contrast():
    truth, unsure = box(10, 20), box(30, 40)
    flair = blurred_lesion(truth | unsure, height=50.0)
    p = shares(wmh=0.99 * truth + 0.9 * unsure + 0.2 * box(2, 6))
    drawn = masks_of(p, flair, card())
    sign = seen(p[WMH], drawn, drawn.mask, flair, card())
    assert sign.conservative_ml == pytest.approx(flair.ml(truth))
    assert sign.found_ml == pytest.approx(flair.ml(truth | unsure))
    assert sign.liberal_ml == pytest.approx(flair.ml(truth | unsure | box(2, 6)))
    assert 1.3 < sign.contrast < 1.5


def test_lesions_that_were_removed_or_are_not_allowed_are_in_no_volume():
    kept, removed, forbidden = box(10, 20), box(30, 40), box(2, 6)
    flair = blurred_lesion(kept | removed)
    p = shares(wmh=0.99 * kept + 0.99 * removed + 0.2 * forbidden)
    drawn = masks_of(p, flair, card())
    sign = seen(p[WMH], drawn, kept, flair, card(), allowed=~forbidden)
    assert sign.conservative_ml == sign.found_ml == sign.liberal_ml == flair.ml(kept)
    assert sign.spread == 0


def test_the_volumes_that_are_seen_follow_edges_as_the_mask_does():
    truth = box(16, 32)
    flair = blurred_lesion(truth)
    p = shares(wmh=np.where(truth, 0.97, 0.02))
    edged = card(edges=True)
    drawn = masks_of(p, flair, edged)
    sign = seen(p[WMH], drawn, drawn.mask, flair, edged)
    assert 0 < sign.conservative_ml <= sign.found_ml <= sign.liberal_ml < 2 * sign.found_ml


def test_of_an_empty_mask_nothing_is_seen():
    flair = blurred_lesion(box(0, 0))
    p = shares()
    sign = seen(p[WMH], masks_of(p, flair, card()), box(0, 0), flair, card())
    assert (sign.found_ml, sign.conservative_ml, sign.liberal_ml) == (0, 0, 0)
    assert sign.contrast == TYPICAL_CONTRAST


def test_without_white_matter_to_compare_with_the_contrast_is_the_typical_one():
    flair = blurred_lesion(box(10, 20))
    p = shares(wmh=np.where(box(10, 20), 0.99, 0.3))
    drawn = masks_of(p, flair, card())
    assert seen(p[WMH], drawn, drawn.mask, flair, card()).contrast == TYPICAL_CONTRAST
