"""Two scans become colour slices: grey values, area opening, channels, and the T1's place."""

import functools
import logging
from itertools import permutations

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from skimage.morphology import area_opening

from conftest import stored, to_stored
from leuko.errors import LeukoError
from leuko.preprocessing.slices import (
    Preparation,
    area_residue,
    centred,
    prepare,
    requantise,
    tissue_level,
)
from leuko.volume import Volume
from phantoms import make_phantom

SPACING_MM = (3.0, 3.0, 6.0)
COLOURS = Preparation(pixel_mm=3.0)
ORDERS = tuple(permutations(range(3)))
BALL_MM = np.array([22, -14, 9])  # off centre along every axis, so that any flip shows

law = settings(deadline=None, max_examples=30, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


@functools.cache
def head(seed=0):
    rng = np.random.default_rng(seed)
    return make_phantom(rng, shape=(54, 66, 23), spacing_mm=SPACING_MM, lesions=8)


def world_points(volume):
    indices = np.moveaxis(np.indices(volume.data.shape), 0, -1)
    return indices @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def radius(volume, centre_mm, axes_mm):
    """Distance of every voxel from a centre, in parts of an ellipsoid's axes."""
    return np.linalg.norm((world_points(volume) - centre_mm) / axes_mm, axis=-1)


def in_brain(volume):
    return radius(volume, (0, 0, 0), (58, 72, 50)) < 1


# --- grey values ---


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("scan", ["flair", "t1"])
@pytest.mark.parametrize("extracted", [False, True], ids=["whole head", "extracted brain"])
@pytest.mark.parametrize(
    ("scale", "number_type"),
    [(0.01, "f4"), (1, "f8"), (100, "f4"), (1, "i2"), (10, "i2"), (100, "i4")],
)
def test_tissue_gets_its_grey_value_on_every_intensity_scale(
    seed, scan, extracted, scale, number_type
):
    original = getattr(head(seed), scan)
    if extracted:
        original = original.with_data(original.data * in_brain(original))
    scaled = original.with_data((original.data.astype(float) * scale).astype(number_type))

    grey = requantise(scaled, 100)

    assert grey.dtype == np.uint8
    assert abs(np.median(grey[in_brain(scaled)]) - 100) < 8
    assert np.mean(abs(grey[in_brain(scaled)] - 100.0) < 35) > 0.75
    assert abs(grey - requantise(original, 100).astype(int)).max() <= 1
    assert tissue_level(scaled) == pytest.approx(scale * tissue_level(original), rel=1e-3)


def test_grey_values_follow_the_one_asked_for():
    flair = head().flair
    middle = [np.median(requantise(flair, tissue)[in_brain(flair)]) for tissue in (60, 120)]
    assert middle == pytest.approx([60, 120], rel=0.08)


def test_noisy_air_in_a_wide_field_of_view_is_no_tissue():
    flair = head().flair
    level = tissue_level(flair)
    wide = np.pad(flair.data, ((40, 40), (40, 40), (0, 0)))
    assert np.mean(wide > 0.3 * level) < 0.1  # of the voxels are head
    noise = np.random.default_rng(0).normal(scale=0.1 * level, size=(2, *wide.shape))
    noisy = Volume(np.hypot(wide + noise[0], noise[1]), flair.affine)
    assert tissue_level(noisy) == pytest.approx(level, rel=0.1)


def test_negative_voxels_become_zero_and_bright_ones_stop_at_255():
    flair = head().flair
    data = flair.data.astype(float)
    level = tissue_level(flair)
    data[0, 0, :3] = -5 * level, 0, 10 * level
    np.testing.assert_array_equal(requantise(flair.with_data(data), 100)[0, 0, :3], (0, 0, 255))


def test_grey_values_keep_the_order_of_intensities():
    flair = head().flair
    order = np.argsort(flair.data, axis=None)
    assert (np.diff(requantise(flair, 100).ravel()[order].astype(int)) >= 0).all()


def test_a_standardised_image_is_refused():
    flair = head().flair
    standardised = flair.with_data((flair.data - flair.data.mean()) / flair.data.std())
    with pytest.raises(LeukoError, match=r"FLAIR .*before standardisation"):
        requantise(standardised, 100)


def test_an_image_of_one_value_is_refused():
    flat = head().flair.with_data(np.full((54, 66, 23), 7))
    with pytest.raises(LeukoError, match="FLAIR"):
        requantise(flat, 100)


def test_the_network_sees_slices_around_zero():
    found = centred(np.array([0, 127, 255], np.uint8))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [-127, 0, 128])


# --- area opening ---


def smooth_slices(seed, shape=(3, 40, 33)):
    rng = np.random.default_rng(seed)
    noise = scipy.ndimage.gaussian_filter(rng.normal(size=shape), (0, *rng.uniform(0, 4, size=2)))
    return np.rint(np.clip(100 + 60 * noise / noise.std(), 0, 255)).astype(np.uint8)


def discs(*radii, height=80, ground=60):
    """One slice with bright discs in a row, as (1, H, W)."""
    rows, columns = np.indices((64, 64 * len(radii)))
    image = np.full(rows.shape, ground, np.uint8)
    for k, size in enumerate(radii):
        image[np.hypot(rows - 32, columns - 64 * k - 32) <= size] = ground + height
    return image[None]


@law
@given(seeds, st.integers(1, 40 * 33))
def test_the_residue_is_what_scikit_image_opens_away(seed, pixels):
    slices = smooth_slices(seed)
    opened = np.stack([area_opening(image, pixels, connectivity=2) for image in slices])
    np.testing.assert_array_equal(area_residue(slices, pixels), slices - opened)


@law
@given(seeds, st.integers(1, 400))
def test_opening_only_darkens_and_has_no_more_to_take_the_second_time(seed, pixels):
    slices = smooth_slices(seed)
    residue = area_residue(slices, pixels)
    assert residue.dtype == np.uint8
    assert (residue <= slices).all()
    assert not area_residue(slices - residue, pixels).any()


@law
@given(seeds, st.integers(1, 300), st.integers(0, 300))
def test_a_larger_area_leaves_no_less_in_the_residue(seed, pixels, more):
    slices = smooth_slices(seed)
    assert (area_residue(slices, pixels) <= area_residue(slices, pixels + more)).all()


@law
@given(seeds, st.integers(1, 200), st.integers(0, 50))
def test_the_residue_does_not_depend_on_the_ground(seed, pixels, ground):
    slices = np.minimum(smooth_slices(seed), 200)
    np.testing.assert_array_equal(
        area_residue(slices + np.uint8(ground), pixels), area_residue(slices, pixels)
    )


def test_each_slice_is_opened_by_itself():
    slices = smooth_slices(0)
    one_by_one = np.concatenate([area_residue(image[None], 50) for image in slices])
    np.testing.assert_array_equal(area_residue(slices, 50), one_by_one)


def test_small_discs_stay_in_the_residue_at_their_height_and_large_ones_vanish():
    image = discs(3, 12)  # about 28 and 452 pixels
    small = discs(3, -1) == 140
    np.testing.assert_array_equal(area_residue(image, 200), np.where(small, 80, 0))


def test_structures_that_are_all_large_leave_no_residue():
    assert not area_residue(discs(9, 12, 20), 200).any()


def test_a_structure_of_just_the_area_is_none_of_the_small():
    image = np.zeros((1, 16, 16), np.uint8)
    image[0, 4:8, 4:9] = 200  # 20 pixels
    assert not area_residue(image, 20).any()
    np.testing.assert_array_equal(area_residue(image, 21), image)


def test_pixels_that_touch_by_a_corner_are_one_structure():
    image = np.zeros((1, 16, 16), np.uint8)
    image[0, range(3, 9), range(3, 9)] = 200
    assert not area_residue(image, 6).any()


@pytest.mark.parametrize("pixel_mm", [1.0, 2.0])
@pytest.mark.parametrize("spacing_mm", [1.0, 2.0])
@pytest.mark.parametrize(("opening_mm2", "height"), [(900, 0), (1600, 100)])
def test_the_opening_area_is_in_square_millimetres(pixel_mm, spacing_mm, opening_mm2, height):
    # A disc of 20 mm radius, 1257 mm2, twice as bright as its surround.
    count = round(160 / spacing_mm)
    affine = np.diag([spacing_mm, spacing_mm, 5.0, 1])
    affine[:3, 3] = -80, -80, -5
    flair = Volume(np.zeros((count, count, 3)), affine, name="FLAIR")
    across_mm = np.linalg.norm(world_points(flair)[..., :2], axis=-1)
    flair = flair.with_data(np.where(across_mm <= 20, 600.0, 300.0) * (across_mm <= 70))

    slices, placement = prepare(
        flair, at_other_contrast(flair), Preparation(pixel_mm=pixel_mm, opening_mm2=opening_mm2)
    )

    assert placement.pixel_mm == pytest.approx((pixel_mm, pixel_mm), rel=0.01)
    _, rows, columns, _ = slices.shape
    residue, grey, _ = slices[1, rows // 2, columns // 2]
    assert grey == pytest.approx(200, abs=3)
    assert residue == pytest.approx(height, abs=3)


# --- channels ---


def at_other_contrast(flair):
    return Volume(np.sqrt(flair.data), flair.affine, name="T1")


def expected_channels(phantom, placement):
    return (placement.slices(requantise(scan, 100)) for scan in (phantom.flair, phantom.t1))


def test_red_is_the_residue_green_the_flair_and_blue_the_t1():
    phantom = head()
    slices, placement = prepare(phantom.flair, phantom.t1, COLOURS)
    flair, t1 = expected_channels(phantom, placement)
    assert slices.dtype == np.uint8
    np.testing.assert_array_equal(slices[..., 0], area_residue(flair, round(1000 / 9)))
    np.testing.assert_array_equal(slices[..., 1], flair)
    np.testing.assert_array_equal(slices[..., 2], t1)
    assert all(slices[..., channel].any() for channel in range(3))


@pytest.mark.parametrize(("channels", "scan"), [("flair-3-slices", 0), ("t1-3-slices", 1)])
def test_neighbouring_slices_are_colours_and_the_ends_are_repeated(channels, scan):
    phantom = head()
    slices, placement = prepare(phantom.flair, phantom.t1, Preparation(channels, pixel_mm=3.0))
    grey = list(expected_channels(phantom, placement))[scan]
    np.testing.assert_array_equal(slices[..., 0], [grey[0], *grey[:-1]])
    np.testing.assert_array_equal(slices[..., 1], grey)
    np.testing.assert_array_equal(slices[..., 2], [*grey[1:], grey[-1]])


@pytest.mark.parametrize("channels", ["flair-t1-residue", "t1-3-slices"])
def test_channels_that_show_the_t1_need_one(channels):
    with pytest.raises(LeukoError, match=f"needs a T1 .its channels are {channels}"):
        prepare(head().flair, None, Preparation(channels, pixel_mm=3.0))


def test_channels_of_the_flair_alone_need_no_t1():
    phantom = head()
    preparation = Preparation("flair-3-slices", pixel_mm=3.0)
    slices, _ = prepare(phantom.flair, None, preparation)
    np.testing.assert_array_equal(slices, prepare(phantom.flair, phantom.t1, preparation)[0])


def test_the_whole_head_is_in_the_slices():
    phantom = head()
    _, placement = prepare(phantom.flair, phantom.t1, COLOURS)
    bright = requantise(phantom.flair, 100) > 60
    seen = to_stored(placement, placement.slices(bright.astype(np.float32)))
    assert seen.sum() > 0.995 * bright.sum()


# --- slices of any direction ---


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("thick", [0, 1, 2])
def test_slices_lie_across_the_thick_axis_wherever_it_is_stored(order, thick):
    spacing_mm = np.array([1.0, 1.1, 0.9])
    spacing_mm[thick] = 3
    volume = stored(Volume(np.zeros((4, 5, 6)), np.diag([*spacing_mm, 1])), order)
    assert volume.spacing_mm[volume.through_plane_axis] == 3


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (1.2, 1, 1), (1, 1.4, 1)])
def test_slices_of_a_nearly_isotropic_scan_are_axial(order, spacing_mm):
    volume = stored(Volume(np.zeros((4, 5, 6)), np.diag([*spacing_mm, 1])), order)
    to_superior = volume.affine[2, :3]
    assert abs(to_superior[volume.through_plane_axis]) == 1
    assert volume.data.shape[volume.through_plane_axis] == 6


# --- a T1 on a grid of its own ---


def grid(shape, spacing_mm, centre_mm=(0, 0, 0), degrees=(0, 0, 0)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(degrees, degrees=True).as_matrix() * spacing_mm
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Volume(np.zeros(shape, np.float32), affine)


def smooth_step(radius_mm):
    """1 inside, 0 outside, in between over some 6 mm: nothing that interpolation would blur."""
    return 1 / (1 + np.exp(np.clip(radius_mm / 1.5, -50, 50)))


def ball_in_head(volume, name, *, grey, ball_grey):
    """A uniform head with a ball at BALL_MM, on the grid of `volume`."""
    brain = smooth_step(60 * (radius(volume, (0, 0, 0), (60, 72, 50)) - 1))
    ball = smooth_step(radius(volume, BALL_MM, 1) - 14)
    return Volume(grey * brain + (ball_grey - grey) * ball, volume.affine, name=name)


def t1_on(volume):
    return ball_in_head(volume, "T1", grey=400, ball_grey=800)


def blue_of(t1, flair):
    """The T1 channel, taken back to the grid of the FLAIR."""
    slices, placement = prepare(flair, t1, COLOURS)
    return Volume(to_stored(placement, slices[..., 2]), flair.affine)


FLAIR_GRID = grid((54, 66, 23), SPACING_MM)
FLAIR = ball_in_head(FLAIR_GRID, "FLAIR", grey=300, ball_grey=200)
T1_GRIDS = {
    "the same": FLAIR_GRID,
    "the same, stored otherwise": stored(FLAIR_GRID, (2, 0, 1), (-1, 1, -1)),
    "finer": grid((80, 96, 70), (2, 2, 2)),
    "sagittal slices": stored(grid((30, 90, 80), (5, 2, 2)), (2, 1, 0), (1, -1, 1)),
    "larger and off centre": grid((90, 90, 60), (2.5, 2.5, 3), (18, -11, 7)),
    "oblique": grid((90, 100, 80), (2.2, 2, 2.4), (3, -4, 5), (12, -9, 17)),
    "oblique, stored otherwise": stored(
        grid((90, 100, 80), (2.2, 2, 2.4), (3, -4, 5), (12, -9, 17)), (1, 2, 0), (1, -1, -1)
    ),
}


@pytest.mark.parametrize("name", T1_GRIDS)
def test_a_t1_on_any_grid_is_seen_at_its_place_in_the_world(name):
    t1 = t1_on(T1_GRIDS[name])

    seen = blue_of(t1, FLAIR)

    ball = np.clip(seen.data - 110, 0, None)
    centre_mm = np.average(world_points(seen).reshape(-1, 3), axis=0, weights=ball.ravel())
    np.testing.assert_allclose(centre_mm, BALL_MM, atol=0.3)
    same_grid = blue_of(t1_on(FLAIR_GRID), FLAIR)
    inside = radius(FLAIR, (0, 0, 0), (56, 68, 46)) < 1
    assert np.abs(seen.data - same_grid.data)[inside].mean() < 3


def test_a_t1_elsewhere_is_refused_with_its_coverage():
    t1 = t1_on(FLAIR_GRID)
    far = t1.affine.copy()
    far[:3, 3] += 500
    with pytest.raises(LeukoError, match="T1 covers 0% of the head in FLAIR"):
        prepare(FLAIR, Volume(t1.data, far, name="T1"), COLOURS)


def lower_part(volume, slices):
    return Volume(volume.data[:, :, :slices], volume.affine, name=volume.name)


def test_a_t1_of_less_than_half_the_head_is_refused():
    t1 = t1_on(FLAIR_GRID)
    with pytest.raises(LeukoError, match=r"T1 covers [1-4]\d% of the head in FLAIR"):
        prepare(FLAIR, lower_part(t1, 10), COLOURS)


def test_a_t1_of_most_of_the_head_is_used_with_a_warning(caplog):
    t1 = t1_on(FLAIR_GRID)
    slices, _ = prepare(FLAIR, lower_part(t1, 15), COLOURS)
    ((_, level, message),) = caplog.record_tuples
    assert level == logging.WARNING
    assert message.startswith("T1 covers only")
    assert slices[:15, ..., 2].any()
    assert not slices[15:, ..., 2].any()


def test_a_t1_of_the_whole_head_brings_no_warning(caplog):
    prepare(FLAIR, t1_on(T1_GRIDS["finer"]), COLOURS)
    assert not caplog.records


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("number_type", [np.int16, np.float32])
def test_the_same_image_twice_is_refused(order, number_type):
    flair = head().flair
    twin = stored(flair.with_data(flair.data.astype(number_type)), order, (-1, 1, -1))
    with pytest.raises(LeukoError, match="hold the same image"):
        prepare(flair, twin, COLOURS)


def test_a_grid_beyond_any_head_is_refused(phantom):
    flat = Volume(phantom.flair.data, np.diag([40.0, 35, 0.05, 1]), name="flat")
    with pytest.raises(LeukoError, match=r"flat needs .* million pixels of 0\.02 mm"):
        prepare(flat, None, Preparation(channels="flair-3-slices", pixel_mm=0.02))
