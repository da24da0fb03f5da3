"""The challenge's measures: by hand, at their corners, and against the challenge's own library.

The oracle restates the meaning of the challenge's `evaluation.py` (Kuijf et al., IEEE TMI 2019)
with SimpleITK, which that script is defined by.
"""

import math

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk  # noqa: N813, the name in its own documentation
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from leuko.evaluation.metrics import (
    MEASURES,
    dice,
    hausdorff95,
    lesion_detection,
    log_volume_difference,
    measure,
    volume_difference,
    without_other_pathology,
)
from leuko.io import nifti

SHAPE = (12, 10, 6)
EMPTY = np.zeros(SHAPE, bool)


def mask(*voxels, shape=SHAPE):
    """True at the given voxels, each axis an index or a slice."""
    array = np.zeros(shape, bool)
    for voxel in voxels:
        array[voxel] = True
    return array


def h95(prediction, reference, spacing_mm=(1, 1, 1), through_plane_axis=2):
    return hausdorff95(
        prediction=prediction,
        reference=reference,
        affine=np.diag([*spacing_mm, 1.0]),
        through_plane_axis=through_plane_axis,
    )


def all_measures(prediction, reference):
    return measure(
        prediction=prediction, reference=reference, affine=np.eye(4), through_plane_axis=2
    )


BAR = mask(np.s_[2:6, 3, 3])  # 4 voxels
LONGER_BAR = mask(np.s_[4:10, 3, 3])  # 6 voxels, 2 of them shared


# --- numbers by hand ---


def test_dice_is_twice_the_shared_over_the_summed_voxels():
    assert dice(prediction=LONGER_BAR, reference=BAR) == 2 * 2 / (6 + 4)


def test_volume_difference_is_relative_to_the_reference():
    assert volume_difference(prediction=LONGER_BAR, reference=BAR) == 50  # |6 - 4| / 4
    assert volume_difference(prediction=BAR, reference=LONGER_BAR) == pytest.approx(100 / 3)


def test_log_volume_difference_treats_half_and_double_alike():
    half, double = mask(np.s_[2:4, 3, 3]), mask(np.s_[2:10, 3, 3])
    for prediction in (half, double):
        found = log_volume_difference(prediction=prediction, reference=BAR)
        assert found == pytest.approx(math.log(2))


@pytest.mark.parametrize(("axis", "expected_mm"), [(0, 3 * 0.5), (1, 3 * 2), (2, 3 * 3)])
def test_h95_is_the_distance_in_mm_between_two_voxels(axis, expected_mm):
    start, end = [4, 4, 2], [4, 4, 2]
    end[axis] += 3
    assert h95(mask(tuple(start)), mask(tuple(end)), (0.5, 2, 3)) == pytest.approx(expected_mm)


def test_h95_goes_by_the_whole_affine():
    affine = np.eye(4)
    affine[:3, :3] = [[1, 1, 0], [0, 2, 0], [0, 0, 5]]  # a sheared grid
    found = hausdorff95(
        prediction=mask((4, 4, 2)),
        reference=mask((5, 6, 2)),
        affine=affine,
        through_plane_axis=2,
    )
    assert found == pytest.approx(5)  # 1 * (1, 0) + 2 * (1, 2) = (3, 4) mm


def test_h95_is_the_worse_direction_and_not_the_pooled_distances():
    # Ten shared voxels and a predicted one 20 mm beyond the last. From the prediction: ten
    # distances of 0 and one of 20, whose 95th percentile lies half-way between ranks 9 and 10,
    # so 10. From the reference: all 0. Pooled, the percentile of 21 distances is rank 19: 0.
    shape = (32, 3, 3)
    reference = mask(np.s_[:10, 1, 1], shape=shape)
    prediction = reference | mask((29, 1, 1), shape=shape)
    assert h95(prediction, reference) == pytest.approx(10)
    assert h95(reference, prediction) == pytest.approx(10)


def test_beyond_the_image_counts_as_mask():
    # Of a slab along the border only the inner face is surface: the column x = 2.
    assert h95(mask(np.s_[:3]), mask(np.s_[2])) == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_erosion_stays_within_slices(axis):
    # A full square in one slice has its rim as surface. Eroded across slices too, it would be
    # surface all through: 16 distances of 0, 8 of 1 and 1 of 2, whose percentile is 1.
    square = mask(np.s_[2:7, 2:7, 2], shape=(9, 9, 5))
    rim = square & ~mask(np.s_[3:6, 3:6, 2], shape=(9, 9, 5))
    square, rim = np.moveaxis(square, 2, axis), np.moveaxis(rim, 2, axis)
    assert h95(square, rim, through_plane_axis=axis) == 0
    assert h95(square, rim, through_plane_axis=(axis + 1) % 3) == 1


def test_lesions_are_counted_when_one_voxel_is_hit():
    reference = mask(np.s_[1:4, 1, 1], np.s_[1:4, 5, 1], (9, 1, 4))
    prediction = mask((3, 1, 1), np.s_[2:5, 5, 1], (9, 8, 1), (9, 8, 4), (5, 8, 4))
    recall, f1 = lesion_detection(prediction=prediction, reference=reference)
    assert recall == pytest.approx(2 / 3)
    precision = 2 / 5
    assert f1 == pytest.approx(2 * precision * recall / (precision + recall))


def test_a_prediction_over_two_lesions_finds_both():
    reference = mask((1, 1, 1), (5, 1, 1))
    found = lesion_detection(prediction=mask(np.s_[1:6, 1, 1]), reference=reference)
    assert found == (1, 1)


@pytest.mark.parametrize("neighbour", [(5, 4, 2), (5, 5, 2), (5, 5, 3), (3, 5, 1)])
def test_lesions_hang_together_by_a_face_an_edge_or_a_corner(neighbour):
    recall, _ = lesion_detection(prediction=mask((4, 4, 2)), reference=mask((4, 4, 2), neighbour))
    assert recall == 1


def test_lesions_two_voxels_apart_are_two():
    reference = mask((4, 4, 2), (6, 4, 2))
    assert lesion_detection(prediction=mask((4, 4, 2)), reference=reference)[0] == 0.5


# --- corner cases ---

NAN = math.nan


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        # No reference lesion: recall 1. No predicted lesion: precision 1. So F1 is 1.
        (EMPTY, EMPTY, {"dsc": NAN, "avd_percent": NAN, "lesion_recall": 1, "lesion_f1": 1}),
        # None found: recall 0. Precision 1 by convention. So F1 is 0.
        (EMPTY, BAR, {"dsc": 0, "avd_percent": 100, "lesion_recall": 0, "lesion_f1": 0}),
        # No reference lesion: recall 1. All predicted ones wrong: precision 0. So F1 is 0.
        (BAR, EMPTY, {"dsc": 0, "avd_percent": NAN, "lesion_recall": 1, "lesion_f1": 0}),
    ],
    ids=["both empty", "empty prediction", "empty reference"],
)
def test_empty_masks_have_defined_or_undefined_measures(prediction, reference, expected):
    found = all_measures(prediction, reference)
    assert found == pytest.approx(expected | {"h95_mm": NAN, "log_avd": NAN}, nan_ok=True)


def test_masks_that_do_not_meet_have_the_worst_overlap():
    row = all_measures(mask((1, 1, 1)), mask((9, 8, 4)))
    assert (row["dsc"], row["lesion_recall"], row["lesion_f1"]) == (0, 0, 0)


def test_a_mask_that_fills_the_image_has_no_surface():
    everything = ~EMPTY
    assert math.isnan(h95(everything, BAR))
    assert math.isnan(h95(BAR, everything))


def test_the_measures_have_the_keys_of_the_table():
    assert list(all_measures(BAR, LONGER_BAR)) == [m.key for m in MEASURES]


def test_other_pathology_is_taken_from_the_prediction_alone():
    reference = np.zeros(SHAPE, np.uint8)
    reference[2:6, 3, 3] = 1
    reference[6:8, 3, 3] = 2
    prediction, expected = without_other_pathology(prediction=LONGER_BAR, reference=reference)
    np.testing.assert_array_equal(prediction, mask(np.s_[4:6, 3, 3], np.s_[8:10, 3, 3]))
    np.testing.assert_array_equal(expected, BAR)


def test_other_pathology_cuts_a_predicted_lesion_in_two():
    reference = np.zeros(SHAPE, np.uint8)
    reference[2, 3, 3], reference[5, 3, 3] = 1, 2
    prediction, expected = without_other_pathology(
        prediction=mask(np.s_[2:9, 3, 3]), reference=reference
    )
    # Whole, the prediction would be one lesion that is right; its far half is one that is wrong.
    recall, f1 = lesion_detection(prediction=prediction, reference=expected)
    assert (recall, f1) == (1, pytest.approx(2 * 0.5 * 1 / (0.5 + 1)))


@pytest.mark.parametrize("number_type", [np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_the_number_type_of_the_reference_changes_nothing(number_type):
    reference = (BAR + 2 * mask(np.s_[8:11, 3, 3])).astype(number_type)
    prediction, expected = without_other_pathology(prediction=LONGER_BAR, reference=reference)
    np.testing.assert_array_equal(prediction, mask(np.s_[4:8, 3, 3]))
    np.testing.assert_array_equal(expected, BAR)


@pytest.mark.parametrize(
    ("number_type", "counted", "not_counted"),
    [
        (np.uint8, (1, 2, 255), (0,)),
        (np.int16, (1, 1000), (-1, 0, 1001, 32767)),
        (np.uint16, (1, 1000), (0, 1001, 65535)),
        (np.float32, (0.5, 0.51, 1, 1000), (-1, 0, 0.49, 1000.5)),
        (np.float64, (0.5, 0.51, 1, 1000), (-1, 0, 0.49, 1000.5)),
    ],
)
def test_a_prediction_counts_from_its_types_threshold_to_1000(
    tmp_path, number_type, counted, not_counted
):
    values = np.zeros((3, 3, 3), number_type)
    values.flat[: len(counted)] = counted
    values.flat[-len(not_counted) :] = not_counted
    nib.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / "result.nii.gz")
    found = nifti.read_prediction(tmp_path / "result.nii.gz").data
    assert found.dtype == bool
    np.testing.assert_array_equal(np.flatnonzero(found), np.arange(len(counted)))


# --- the challenge's library as the oracle ---


def itk_image(array, spacing_mm, direction):
    """An array (X, Y, Z) as ITK has it; no affine of its own type changes hands."""
    image = sitk.GetImageFromArray(array.transpose())
    image.SetSpacing(spacing_mm)
    image.SetDirection(direction.ravel())
    return image


def itk_masks(reference, prediction):
    """Reference and prediction as the challenge thresholds them."""
    wmh = sitk.BinaryThreshold(reference, 0.5, 1.5, 1, 0)
    other = sitk.BinaryThreshold(reference, 1.5, 2.5, 1, 0)
    return wmh, sitk.Mask(prediction, other, maskingValue=1, outsideValue=0)


def itk_voxels(image):
    """(N, 3) indices of the voxels that are not zero, and their values, in ITK's axis order."""
    array = sitk.GetArrayFromImage(image)
    return np.argwhere(array)[:, ::-1], array[array > 0]


def itk_surface_mm(image):
    voxels, _ = itk_voxels(image - sitk.BinaryErode(image, (1, 1, 0)))
    return np.array([image.TransformIndexToPhysicalPoint(voxel.tolist()) for voxel in voxels])


def itk_hausdorff95(reference, prediction):
    surfaces = itk_surface_mm(reference), itk_surface_mm(prediction)
    return max(
        np.percentile(KDTree(to).query(of)[0], 95) for of, to in (surfaces, reversed(surfaces))
    )


def itk_touched_part(lesions_of, other):
    lesions = sitk.ConnectedComponent(lesions_of, True)
    touched = sitk.Mask(lesions, other)
    count = len(set(itk_voxels(lesions)[1]))
    return len(set(itk_voxels(touched)[1])) / count if count else 1.0


def itk_measures(reference, prediction):
    wmh, prediction = itk_masks(reference, prediction)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(wmh, prediction)
    volumes = [len(itk_voxels(image)[0]) for image in (wmh, prediction)]
    recall, precision = itk_touched_part(wmh, prediction), itk_touched_part(prediction, wmh)
    return {
        "dsc": overlap.GetDiceCoefficient(),
        "h95_mm": itk_hausdorff95(wmh, prediction),
        "avd_percent": 100 * abs(volumes[0] - volumes[1]) / volumes[0],
        "log_avd": abs(math.log(volumes[1] / volumes[0])),
        "lesion_recall": recall,
        "lesion_f1": 2 * precision * recall / (precision + recall) if recall + precision else 0.0,
    }


def blobs(rng, shape, *, part):
    smooth = scipy.ndimage.gaussian_filter(rng.normal(size=shape), (1.2, 1.2, 0.6))
    return smooth > np.quantile(smooth, 1 - part)


def random_case(seed):
    """Labels (0, 1, 2) as uint8, a mask that agrees with them in part, spacing, directions."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers((14, 14, 4), (28, 28, 12)))
    truth = blobs(rng, shape, part=0.08)
    labels = truth.astype(np.uint8)
    labels[blobs(rng, shape, part=0.03)] = 2
    prediction = np.where(blobs(rng, shape, part=0.5), truth, blobs(rng, shape, part=0.04))
    spacing_mm = (*rng.uniform(0.5, 1.5, size=2), rng.uniform(2, 6))
    return labels, prediction, spacing_mm, Rotation.random(random_state=seed).as_matrix()


@pytest.mark.parametrize("seed", range(40))
def test_the_measures_are_those_of_the_challenge(seed):
    labels, predicted, spacing_mm, direction = random_case(seed)
    expected = itk_measures(
        itk_image(labels.astype(np.float32), spacing_mm, direction),
        itk_image(predicted.astype(np.uint8), spacing_mm, direction),
    )

    affine = np.eye(4)
    affine[:3, :3] = direction * spacing_mm
    prediction, reference = without_other_pathology(prediction=predicted, reference=labels)
    found = measure(prediction=prediction, reference=reference, affine=affine, through_plane_axis=2)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_challenges_erosion_is_by_a_full_3x3_box(seed):
    # ITK's "ball" of radius (1, 1, 0) holds its corners: (1, 1) lies within an ellipse of
    # diameters 3 and 3. So the ball and the box that our definition states are one.
    truth = random_case(seed)[0] == 1
    image = itk_image(truth.astype(np.uint8), (1, 1, 1), np.eye(3))
    ball, box = (
        sitk.GetArrayFromImage(sitk.BinaryErode(image, (1, 1, 0), kernel)).transpose()
        for kernel in (sitk.sitkBall, sitk.sitkBox)
    )
    ours = scipy.ndimage.binary_erosion(truth, np.ones((3, 3, 1)), border_value=1)
    np.testing.assert_array_equal(ball, ours)
    np.testing.assert_array_equal(box, ours)


@pytest.mark.parametrize("number_type", [np.uint8, np.int16])
def test_the_challenges_thresholds_fail_on_an_integer_reference_and_ours_do_not(number_type):
    truth = mask(np.s_[2:4, 3, 3])
    labels = truth.astype(number_type)
    image = itk_image(labels, (1, 1, 1), np.eye(3))
    wmh, _ = itk_masks(image, sitk.Cast(image, sitk.sitkUInt8))
    wmh = sitk.GetArrayFromImage(wmh).transpose() == 1
    assert wmh.all()  # 0.5 to 1.5 has become 0 to 1, which background fulfils
    assert dice(prediction=truth, reference=wmh) < 0.02
    assert lesion_detection(prediction=truth, reference=wmh) == (1, 1)

    prediction, reference = without_other_pathology(prediction=truth, reference=labels)
    assert dice(prediction=prediction, reference=reference) == 1
