"""The background is 0 whatever a tool wrote there, and standardised images are refused."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage

from leuko.errors import LeukoError
from leuko.io.background import without_background
from leuko.preprocessing.registration import align
from leuko.preprocessing.slices import Preparation, prepare, requantise, tissue_level
from phantoms import make_phantom

COLOURS = Preparation(pixel_mm=3.0)
BACKGROUNDS = [-1, -1024, -32768, 0.25, 40, "smallest"]


@functools.cache
def head():
    return make_phantom(
        np.random.default_rng(0), shape=(54, 66, 23), spacing_mm=(3, 3, 6), lesions=8
    )


def brain():
    """Which voxels are brain, well inside the field of view."""
    indices = np.moveaxis(np.indices(head().flair.data.shape), 0, -1)
    points_mm = indices @ head().flair.affine[:3, :3].T + head().flair.affine[:3, 3]
    return np.linalg.norm(points_mm / (58, 72, 50), axis=-1) < 1


def extracted(scan, background=0.0):
    data = np.maximum(scan.data.astype(np.float32), 20)  # no voxel of the brain is that of air
    level = data[brain()].min() if background == "smallest" else background
    return scan.with_data(np.where(brain(), data, np.float32(level)))


def moved(scan):
    """Resliced by cubic splines, which ring in the whole background."""
    data = scipy.ndimage.shift(scan.data.astype(float), (0.4, 0.3, 0.2), order=3, mode="nearest")
    return scan.with_data(data.astype(np.float32))


@pytest.mark.parametrize("scan", ["flair", "t1"])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_the_background_of_an_extracted_brain_may_have_any_grey_value(scan, background):
    original = getattr(head(), scan)
    zero = extracted(original)
    other = extracted(original, background)
    grey, expected = (requantise(s, 100).astype(int) for s in (other, zero))
    assert not grey[~brain()].any()
    darkest = (
        abs(grey - expected) > 1 + 0.02 * expected
    )  # a positive background takes what is just above it along
    assert (expected[darkest] <= 0.35 * 100).all()
    assert np.mean(darkest) < 0.01
    assert tissue_level(other) == pytest.approx(tissue_level(zero), rel=0.01)


@pytest.mark.parametrize("background", [-1, -1024, "smallest"])
def test_the_network_sees_the_same_slices_and_the_same_box(background):
    zero, other = (
        prepare(*(extracted(s, b) for s in (head().flair, head().t1)), COLOURS)
        for b in (0, background)
    )
    assert other[1].rows == zero[1].rows
    assert other[1].columns == zero[1].columns
    assert np.mean(abs(other[0].astype(int) - zero[0]) > 1) < 0.01


@pytest.mark.parametrize("background", [0, -1, -1024, 40])
def test_the_ringing_of_splines_is_background(background):
    flair = moved(extracted(head().flair, background))
    grey = requantise(flair, 100)
    far = scipy.ndimage.distance_transform_edt(~brain()) > 3
    assert grey[far].max() <= 1
    level = tissue_level(extracted(head().flair))
    assert tissue_level(flair) == pytest.approx(level, rel=0.05)


def test_a_background_of_zero_and_noisy_air_stay_as_they_are():
    for scan in (head().flair, head().t1, extracted(head().flair)):
        assert without_background(scan) is scan


@pytest.mark.parametrize("scan", ["flair", "t1"])
@pytest.mark.parametrize("background", [1.0, 2.5, 10])
@pytest.mark.parametrize("splines", [False, True])
def test_a_background_as_bright_as_tissue_is_refused_with_the_reason(scan, background, splines):
    original = getattr(head(), scan)
    level = background * float(np.median(original.data[brain()]))
    bright = extracted(original, level)
    with pytest.raises(LeukoError, match=r"background \(.*\) as bright as .* to 0$"):
        requantise(moved(bright) if splines else bright, 100)


def test_a_background_brighter_than_noisy_air_is_darker_than_tissue():
    rng = np.random.default_rng(0)
    data = np.maximum(head().flair.data.astype(np.float32), 20)
    data = np.where(brain(), data, rng.uniform(1, 12, data.shape).astype(np.float32))
    data[:6] = data[-6:] = data[:, :4] = data[:, -4:] = 15  # outside the field of view
    cleaned = without_background(head().flair.with_data(data)).data
    np.testing.assert_array_equal(cleaned > 0, brain() & (data > 15))


def test_a_scan_with_a_background_of_zero_is_looked_at_no_further(monkeypatch):
    zero = extracted(head().flair)
    monkeypatch.setattr(np, "percentile", None)
    assert without_background(zero) is zero


def test_cleaning_twice_changes_nothing_more():
    once = without_background(extracted(head().flair, -1024))
    assert without_background(once) is once


def test_padding_below_zero_in_a_corner_is_no_standardisation():
    data = head().flair.data.astype(np.float32)
    data[:12] = -1024
    padded = head().flair.with_data(data)
    assert tissue_level(padded) == pytest.approx(tissue_level(head().flair), rel=0.02)


def standardised(data, inside, background):
    scores = (data - data[inside].mean()) / data[inside].std()
    return scores if background is None else np.where(inside, scores, background)


@pytest.mark.parametrize("background", [None, 0, -1, -5, "smallest", -1024])
@pytest.mark.parametrize("over", ["brain", "head", "brain and 0 around it"])
@pytest.mark.parametrize("splines", [False, True])
def test_a_standardised_image_is_refused_whatever_its_background(background, over, splines):
    data = head().flair.data.astype(float)
    inside = np.full(data.shape, True) if over != "brain" else brain()
    if over == "brain and 0 around it":
        data = extracted(head().flair).data.astype(float)
        background = None
    if background == "smallest":
        background = standardised(data, inside, None)[inside].min()
    scan = head().flair.with_data(standardised(data, inside, background).astype(np.float32))
    with pytest.raises(LeukoError, match=r"^FLAIR has .* standardised .*before standardisation$"):
        requantise(moved(scan) if splines else scan, 100)


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (7, 7), (0, 1.00000006), (-1, 1)])
def test_an_image_of_one_grey_value_is_no_scan(values):
    data = np.where(brain(), *values[::-1]).astype(np.float32)
    with pytest.raises(
        LeukoError, match=r"^FLAIR has at most one grey value .* check that it is not a mask"
    ):
        requantise(head().flair.with_data(data), 100)


def test_a_t1_that_fails_is_named():
    scores = (head().t1.data - head().t1.data.mean()) / head().t1.data.std()
    t1 = replace(head().t1, data=scores, name="my T1.nii")
    with pytest.raises(LeukoError, match=r"^my T1\.nii has"):
        align(head().flair, t1)
    with pytest.raises(LeukoError, match=r"^my T1\.nii has"):
        prepare(head().flair, t1, COLOURS)


@pytest.mark.parametrize("scale", [1, 2.5])
def test_the_same_image_is_refused_as_t1_though_it_was_stored_with_a_scale(scale):
    flair = extracted(head().flair)
    jitter = 1 + 1e-6 * np.random.default_rng(0).normal(size=flair.data.shape)
    with pytest.raises(LeukoError, match="hold the same image"):
        prepare(flair, flair.with_data(flair.data * scale * jitter), COLOURS)


def test_a_brain_of_hardly_any_voxels_in_a_background_below_zero_does_not_crash():
    data = np.full((60, 60, 20), -1, np.float32)
    data[28:32, 28:32, 9:11] = np.random.default_rng(0).uniform(300, 500, (4, 4, 2))
    cleaned = without_background(replace(head().flair, data=data)).data
    assert (cleaned >= 0).all()
    np.testing.assert_array_equal(cleaned[28:32, 28:32, 9:11], data[28:32, 28:32, 9:11])
