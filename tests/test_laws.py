"""What must hold of any scan: however it is stored, whatever its spacing, wherever it lies."""

import math
from itertools import permutations, product

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation
from scipy.spatial.transform import Rotation

from conftest import stored, to_stored
from leuko.evaluation.evaluate import compare
from leuko.preprocessing.slices import Preparation, place, prepare
from leuko.volume import Orientation, Volume, coverage, require_same_grid, resample_onto
from phantoms import make_phantom

STORAGES = tuple(product(permutations(range(3)), product((1, -1), repeat=3)))
FIELD_OF_VIEW_MM = np.array([150, 190, 130])
BEST = {"dsc": 1, "h95_mm": 0, "avd_percent": 0, "log_avd": 0, "lesion_recall": 1, "lesion_f1": 1}

seeds = st.integers(0, 2**32 - 1)
storages = st.sampled_from(STORAGES)


def law(examples):
    # Derandomised: a suite that fails now and then says nothing about the change at hand.
    return settings(deadline=None, max_examples=examples, derandomize=True)


@st.composite
def spacings(draw, low=0.5, high=4.0, *, stretch=1.2, thickest=4.0):
    """In mm: nearly isotropic, or with slices 1.6 to `thickest` times as thick across any axis."""
    spacing = draw(st.floats(low, high)) * np.array(
        [1, draw(st.floats(1, stretch)), draw(st.just(1) | st.floats(1.6, thickest))]
    )
    return tuple(map(float, np.roll(spacing, draw(st.integers(0, 2)))))


@st.composite
def grids(draw, *, degrees=20.0, stretch=1.2):
    """Voxel-to-world affines: tilted, shifted, axes close to R, A, S."""
    tilt = draw(st.tuples(*[st.floats(-degrees / 2, degrees / 2)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(tilt, degrees=True).as_matrix()
    affine[:3, :3] *= draw(spacings(stretch=stretch))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-100, 100)] * 3))
    return affine


def head(seed, spacing_mm):
    shape = tuple(math.ceil(n) for n in FIELD_OF_VIEW_MM / spacing_mm)
    rng = np.random.default_rng(seed)
    return make_phantom(rng, shape=shape, spacing_mm=spacing_mm, lesions=8)


def world_points(volume, indices):
    return np.asarray(indices) @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def all_indices(shape):
    return np.moveaxis(np.indices(shape), 0, -1)


def blobs(rng, shape, width=1.5):
    smooth = scipy.ndimage.gaussian_filter(rng.normal(size=shape), width)
    return smooth > np.quantile(smooth, 0.85)


def placed(volume, pixel_mm):
    return place(volume, np.ones(volume.canonical().data.shape, bool), pixel_mm)


def pixel_voxels(placement):
    """The canonical voxel coordinates (N, H, W, 3) of the pixels' centres."""
    count = placement.scan.canonical().data.shape[placement.across]
    lines = [
        line.start + line.step * np.arange(line.pixels)
        for line in (placement.rows, placement.columns)
    ]
    parts = np.meshgrid(np.arange(count), *lines, indexing="ij")
    in_plane = [axis for axis in range(3) if axis != placement.across]
    return np.stack([parts[[placement.across, *in_plane].index(k)] for k in range(3)], axis=-1)


def inside(voxels, shape, margin):
    return ((voxels >= margin) & (voxels <= np.array(shape) - 1 - margin)).all(axis=-1)


def in_box(placement, shape):
    """The canonical voxels that the slices cover, as a mask."""
    pixels, voxels = pixel_voxels(placement).reshape(-1, 3), all_indices(shape)
    return ((voxels >= pixels.min(axis=0)) & (voxels <= pixels.max(axis=0))).all(axis=-1)


# --- slices and the way back ---


@law(4)
@given(seeds, spacings(3, 5, thickest=2.5), st.floats(0.8, 1.3))
def test_slices_are_the_same_in_all_48_storage_orders(seed, spacing_mm, zoom):
    phantom = head(seed, spacing_mm)
    preparation = Preparation(pixel_mm=zoom * min(spacing_mm))
    expected, _ = prepare(phantom.flair, phantom.t1, preparation)
    assert expected.any()
    for storage, other in zip(STORAGES, reversed(STORAGES), strict=True):
        flair, t1 = stored(phantom.flair, *storage), stored(phantom.t1, *other)
        np.testing.assert_array_equal(prepare(flair, t1, preparation)[0], expected)


@law(6)
@given(seeds, grids(), st.floats(0.5, 2))
def test_results_come_back_in_the_storage_order_of_the_scan(seed, affine, zoom):
    rng = np.random.default_rng(seed)
    scan = Volume(rng.normal(size=(21, 25, 11)), affine)
    placement = placed(scan, zoom * min(scan.spacing_mm))
    slices = placement.slices(scan.data)
    expected = Volume(to_stored(placement, slices), affine)
    assert expected.data.shape == scan.data.shape
    for storage in STORAGES:
        other = stored(scan, *storage)
        restored = to_stored(placed(other, zoom * min(scan.spacing_mm)), slices)
        np.testing.assert_array_equal(restored, stored(expected, *storage).data)


@law(40)
@given(seeds, grids(stretch=1), storages, st.floats(0.996, 1.004))
def test_restoring_is_exact_where_the_pixels_are_those_of_the_scan(seed, affine, storage, zoom):
    rng = np.random.default_rng(seed)
    canonical = Volume(rng.normal(size=(41, 45, 47)).astype(np.float32), affine)
    scan = stored(canonical, *storage)
    brain = np.zeros(canonical.data.shape, bool)
    low = rng.integers(2, 14, size=3)
    brain[tuple(slice(n, n + 15) for n in low)] = True

    placement = place(scan, brain, zoom * min(scan.spacing_mm))
    restored = Volume(to_stored(placement, placement.slices(canonical.data)), scan.affine)

    box = in_box(placement, brain.shape)
    assert brain[box].sum() == brain.sum()
    expected = stored(canonical.with_data(np.where(box, canonical.data, 0)), *storage)
    assert 0 < box.sum() < box.size
    np.testing.assert_array_equal(restored.data, expected.data)


@law(40)
@given(seeds, grids(), st.floats(0.4, 2.5), storages)
def test_a_ramp_through_the_world_is_seen_and_comes_back_unshifted(seed, affine, zoom, storage):
    canonical = Volume(np.zeros((36, 36, 36)), affine)
    placement = placed(stored(canonical, *storage), zoom * min(canonical.spacing_mm))
    direction = np.random.default_rng(seed).normal(size=3)
    direction /= np.linalg.norm(direction)
    ramp = world_points(canonical, all_indices(canonical.data.shape)) @ direction

    margin = 2 * max(1, zoom) + 1
    tolerance_mm = 0.15 * min(canonical.spacing_mm)
    voxels = pixel_voxels(placement)
    seen, expected = placement.slices(ramp), world_points(canonical, voxels) @ direction
    inner = inside(voxels, canonical.data.shape, margin)
    np.testing.assert_allclose(seen[inner], expected[inner], atol=tolerance_mm)

    restored = Volume(to_stored(placement, seen), placement.scan.affine).canonical()
    inner = inside(all_indices(ramp.shape), ramp.shape, margin)
    np.testing.assert_allclose(restored.data[inner], ramp[inner], atol=tolerance_mm)


@law(25)
@given(seeds, grids(), st.floats(0.5, 1.5), storages)
def test_smooth_masks_survive_the_way_there_and_back(seed, affine, zoom, storage):
    mask = blobs(np.random.default_rng(seed), (36, 36, 36), width=4)
    mask &= inside(all_indices(mask.shape), mask.shape, 3)  # no lesion touches the image's border
    scan = stored(Volume(mask.astype(np.float32), affine), *storage)
    placement = placed(scan, zoom * min(scan.spacing_mm))
    restored = to_stored(placement, placement.slices(scan.canonical().data)) > 0.5
    row = compare(scan, Volume(restored, scan.affine))
    assert row["dsc"] > 0.9


@law(40)
@given(grids(), st.floats(0.3, 3), storages)
def test_no_voxel_is_skipped_on_the_way_there_and_no_pixel_on_the_way_back(affine, zoom, storage):
    scan = stored(Volume(np.zeros((20, 21, 22)), affine), *storage)
    placement = placed(scan, zoom * min(scan.spacing_mm))
    for line in (placement.rows, placement.columns):
        assert (line.to_model(np.eye(line.voxels), 0).sum(axis=0) > 0).all()
        pixel = line.start + line.step * np.arange(line.pixels)
        in_scan = (pixel >= 0) & (pixel <= line.voxels - 1)
        assert (line.to_scan(np.eye(line.pixels), 0).sum(axis=0)[in_scan] > 0).all()


@law(15)
@given(seeds, grids(), st.floats(0.5, 2))
def test_slices_of_whole_numbers_are_rounded(seed, affine, zoom):
    grey = np.random.default_rng(seed).integers(0, 256, size=(20, 21, 22)).astype(np.uint8)
    placement = placed(Volume(grey, affine), zoom * min(Volume(grey, affine).spacing_mm))
    slices = placement.slices(grey)
    assert slices.dtype == np.uint8
    np.testing.assert_array_equal(slices, np.rint(placement.slices(grey.astype(np.float32))))


def test_a_narrow_end_of_the_head_is_in_the_box_and_a_speck_of_noise_is_not():
    # Rows 20 to 51 hold the head and rows 52 to 67 a twentieth of its width.
    brain = np.zeros((100, 60, 30), bool)
    brain[20:52, 10:50, :20] = True
    brain[52:68, 10:12, :20] = True
    brain[90, 20, 5] = True
    rows = place(Volume(np.zeros(brain.shape), np.eye(4)), brain, 1.0).rows
    assert (rows.start, rows.pixels) == (20, 48)


@law(20)
@given(seeds, spacings(3, 5, thickest=2.5), st.floats(0.8, 1.3))
def test_slices_fit_the_poolings_of_the_network(seed, spacing_mm, zoom):
    flair = head(seed, spacing_mm).flair
    slices, placement = prepare(
        flair, None, Preparation("flair-3-slices", pixel_mm=zoom * min(spacing_mm))
    )
    count, height, width, colours = slices.shape
    assert (height % 16, width % 16, colours) == (0, 0, 3)
    assert count == flair.data.shape[placement.across]


# --- orientation ---


@law(60)
@given(seeds, grids(degrees=60), storages)
def test_undo_inverts_apply(seed, affine, storage):
    data = np.random.default_rng(seed).normal(size=(3, 4, 5))
    volume = stored(Volume(data, affine), *storage)
    orientation = Orientation.of(volume.affine)
    np.testing.assert_array_equal(orientation.undo(orientation.apply(volume.data)), volume.data)
    turned = apply_orientation(data, np.column_stack(storage))
    np.testing.assert_array_equal(orientation.apply(orientation.undo(turned)), turned)


@law(60)
@given(grids(degrees=60), storages)
def test_canonical_keeps_every_value_at_its_place_in_the_world(affine, storage):
    volume = stored(Volume(np.arange(60).reshape(3, 4, 5), affine), *storage)
    canonical = volume.canonical()

    def by_value(image):
        points = world_points(image, all_indices(image.data.shape)).reshape(-1, 3)
        return points[np.argsort(image.data.ravel())]

    np.testing.assert_allclose(by_value(canonical), by_value(volume), atol=1e-9)
    assert canonical.voxel_mm3 == pytest.approx(volume.voxel_mm3)


@law(60)
@given(grids(), storages)
def test_canonical_axes_run_right_anterior_superior(affine, storage):
    data = np.arange(60).reshape(3, 4, 5)
    canonical = stored(Volume(data, affine), *storage).canonical()
    np.testing.assert_array_equal(canonical.data, data)
    np.testing.assert_allclose(canonical.affine, affine, atol=1e-9)


@law(60)
@given(grids(), storages)
def test_the_slices_of_a_scan_do_not_depend_on_its_storage(affine, storage):
    canonical = Volume(np.zeros((3, 4, 5)), affine)
    other = stored(canonical, *storage)
    assert other.through_plane_axis == storage[0][canonical.through_plane_axis]


# --- measures ---


@law(40)
@given(seeds, grids(), storages)
def test_a_mask_overlaps_itself_completely(seed, affine, storage):
    mask = Volume(blobs(np.random.default_rng(seed), (14, 12, 10)), affine)
    row = compare(mask.with_data(mask.data.astype(np.uint8)), stored(mask, *storage))
    assert {key: row[key] for key in BEST} == BEST


@law(60)
@given(seeds, grids(), storages, storages)
def test_flips_and_permutations_change_no_measure(seed, affine, order_of_truth, order_of_mask):
    rng = np.random.default_rng(seed)
    shape = (14, 12, 10)
    truth = Volume(blobs(rng, shape) + 2 * blobs(rng, shape, width=2).clip(max=1), affine)
    truth = truth.with_data(truth.data.clip(max=2).astype(np.uint8))
    mask = truth.with_data(np.roll(truth.data > 0, 1, axis=0) ^ (rng.random(shape) < 0.01))
    turned = compare(stored(truth, *order_of_truth), stored(mask, *order_of_mask))
    assert turned == pytest.approx(compare(truth, mask), rel=1e-9, abs=1e-9)


@law(40)
@given(seeds, grids(), storages)
def test_one_grid_is_known_in_any_storage_order(seed, affine, storage):
    shift = 0.05 * np.random.default_rng(seed).dirichlet([1, 1, 1])
    volume = Volume(np.zeros((6, 7, 8)), affine)
    near = affine.copy()
    near[:3, 3] += shift * min(volume.spacing_mm)
    require_same_grid(volume, stored(Volume(volume.data, near), *storage))


# --- other grids ---


@law(25)
@given(seeds, grids())
def test_resampling_onto_the_same_grid_is_exact(seed, affine):
    data = np.random.default_rng(seed).normal(size=(6, 7, 8))
    resampled = resample_onto(Volume(data, affine), Volume(np.zeros((6, 7, 8)), affine))
    np.testing.assert_array_equal(resampled.data, data)


@law(25)
@given(seeds, grids(), storages)
def test_resampling_undoes_any_storage_order(seed, affine, storage):
    volume = Volume(np.random.default_rng(seed).normal(size=(6, 7, 8)).astype("f4"), affine)
    resampled = resample_onto(stored(volume, *storage), volume)
    np.testing.assert_allclose(resampled.data, volume.data, atol=1e-3)


@law(25)
@given(seeds, storages)
def test_a_blob_stays_at_its_place_in_the_world_on_an_oblique_grid(seed, storage):
    rng = np.random.default_rng(seed)
    blob_mm = rng.uniform(-8, 8, size=3)

    def grid(spacing_mm, rotation):
        affine = np.eye(4)
        affine[:3, :3] = rotation.as_matrix() * spacing_mm
        affine[:3, 3] = -affine[:3, :3] @ ((np.array([40, 40, 40]) - 1) / 2)
        return stored(Volume(np.zeros((40, 40, 40)), affine), *storage)

    moving = grid((1.5, 2, 2.5), Rotation.identity())
    fixed = grid((2, 1.5, 2.5), Rotation.from_rotvec(rng.uniform(-25, 25, size=3), degrees=True))
    distance_mm = np.linalg.norm(
        world_points(moving, all_indices(moving.data.shape)) - blob_mm, axis=-1
    )
    resampled = resample_onto(moving.with_data(np.exp(-((distance_mm / 5) ** 2))), fixed)

    points = world_points(resampled, all_indices(resampled.data.shape))
    centre_mm = np.average(points.reshape(-1, 3), axis=0, weights=resampled.data.ravel())
    np.testing.assert_allclose(centre_mm, blob_mm, atol=0.05)
    assert resampled.shares_grid_with(fixed)


@law(25)
@given(seeds, grids())
def test_resampling_keeps_the_outermost_slices(seed, affine):
    fine = affine @ np.diag([0.5, 0.5, 1, 1])
    fixed = Volume(np.zeros((6, 7, 5)), affine)
    moving = Volume(np.random.default_rng(seed).uniform(1, 2, size=(12, 14, 5)), fine)
    resampled = resample_onto(moving, fixed)
    np.testing.assert_allclose(resampled.data, moving.data[::2, ::2], rtol=1e-4)


@law(25)
@given(seeds, grids())
def test_resampling_fills_the_field_of_view_that_coverage_counts(seed, affine):
    fixed = Volume(np.ones((12, 14, 10)), affine)
    thick = affine @ np.diag([1, 1, 2.5, 1])  # four thick slices over the ten thin ones
    thick[:3, 3] += affine[:3, 2] * 0.75 + affine[:3, :2] @ np.full(2, 0.4)
    moving = Volume(np.random.default_rng(seed).uniform(1, 2, size=(12, 14, 4)), thick)
    assert coverage(fixed, moving) == 1
    assert resample_onto(moving, fixed).data.min() > 0.99


@law(25)
@given(grids(), storages)
def test_coverage_is_complete_inside_a_larger_field_of_view(affine, storage):
    fixed = Volume(np.ones((6, 7, 8)), affine)
    wider = affine.copy()
    wider[:3, 3] -= affine[:3, :3] @ [2, 2, 2]
    assert coverage(fixed, stored(Volume(np.ones((10, 11, 12)), wider), *storage)) == 1


@law(25)
@given(grids(), storages)
def test_coverage_is_nothing_far_away(affine, storage):
    fixed = Volume(np.ones((6, 7, 8)), affine)
    far = affine.copy()
    far[:3, 3] += 1000
    assert coverage(fixed, stored(Volume(np.ones((6, 7, 8)), far), *storage)) == 0


def test_coverage_counts_only_voxels_that_are_not_zero():
    fixed = Volume(np.zeros((10, 4, 4)), np.eye(4))
    narrow = Volume(np.ones((5, 4, 4)), np.eye(4))
    assert math.isnan(coverage(fixed, narrow))
    fixed.data[3:7, 1, 1] = 1  # voxels 3 and 4 lie in the narrow image, 5 and 6 beyond
    assert coverage(fixed, narrow) == 0.5
