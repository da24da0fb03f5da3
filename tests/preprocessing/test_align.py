"""A T1 comes to lie on its FLAIR, or it is said that it does not."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813, the name in its own documentation
from scipy.spatial.transform import Rotation

from conftest import segmented
from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.preprocessing.registration import Alignment, align, rough_brain
from leuko.volume import Volume, resample_onto
from phantoms import make_phantom


@pytest.fixture(scope="module")
def pair():
    phantom = make_phantom(np.random.default_rng(3), shape=(96, 116, 30), spacing_mm=(1.8, 1.8, 5))
    return phantom.flair, phantom.t1


def motion(degrees=(0, 0, 0), mm=(0, 0, 0)):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = mm
    return matrix


def moved(volume, matrix):
    return replace(volume, affine=matrix @ volume.affine)


def error_mm(found, matrix, flair):
    voxels = np.argwhere(flair.data > 100)[::97]
    points = np.c_[voxels, np.ones(len(voxels))] @ flair.affine.T
    return np.linalg.norm((points @ (found.matrix - matrix).T)[:, :3], axis=1).mean()


def test_what_is_aligned_stays_where_it_is(pair):
    found = align(*pair)
    assert found.moved_mm == 0
    np.testing.assert_array_equal(found.matrix, np.eye(4))
    assert found.off_mm < 0.6
    assert found.is_sure
    np.testing.assert_array_equal(found.apply(pair[1]).affine, pair[1].affine)


def test_a_registration_is_the_same_to_the_last_digit_whatever_the_threads(pair):
    flair, t1 = pair
    turned = moved(t1, motion((4, -6, 8), (9, -12, 7)))
    first, *others = (align(flair, turned, threads=threads).matrix for threads in (1, 2, 2, 3))
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize(
    ("degrees", "mm"), [((0, 0, 0), (0, 3, 0)), ((4, -6, 8), (9, -12, 7)), ((0, 15, 0), (25, 0, 0))]
)
def test_what_was_moved_comes_back(pair, degrees, mm):
    flair, t1 = pair
    matrix = motion(degrees, mm)
    found = align(flair, moved(t1, matrix))
    assert error_mm(found, matrix, flair) < 1
    assert found.is_sure
    assert found.information > found.information_before
    assert found.moved_mm > 1
    back = found.apply(moved(t1, matrix))
    assert np.abs(back.affine - t1.affine).max() < 2


def test_never_takes_the_header_at_its_word_and_always_does_not(pair):
    flair, t1 = pair
    off = moved(t1, motion(mm=(0, 8, 0)))
    found = align(flair, off, mode="never")
    assert found.moved_mm == 0
    assert not found.is_sure
    again = align(flair, t1, mode="always")
    assert error_mm(again, np.eye(4), flair) < 0.7


def test_storage_does_not_matter(pair):
    """Flips and swaps of axes give the very same alignment."""
    flair, t1 = pair
    off = moved(t1, motion((3, 0, 5), (4, 4, 4)))
    turned = Volume(off.data.transpose(2, 0, 1)[::-1], off.affine @ swap(off.data.shape))
    first, second = align(flair, off, threads=1), align(flair, turned, threads=1)
    np.testing.assert_allclose(first.matrix, second.matrix, atol=1e-6)


def swap(shape):
    """From indices of `data.transpose(2, 0, 1)[::-1]` to those of `data`."""
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[2, 3] = -1, shape[2] - 1
    matrix[0, 1] = matrix[1, 2] = matrix[3, 3] = 1
    return matrix


def test_noise_is_not_sure(pair):
    flair, t1 = pair
    noise = np.abs(np.random.default_rng(0).normal(300, 100, t1.data.shape)).astype(np.float32)
    found = align(flair, t1.with_data(noise))
    assert not found.is_sure
    assert found.sharpness < 0.3


def test_a_t1_far_away_is_brought_by_its_brain(pair):
    flair, t1 = pair
    matrix = motion((5, 5, 5), (300, -200, 150))
    found = align(flair, moved(t1, matrix))
    assert error_mm(found, matrix, flair) < 1


def test_the_transform_is_itks(pair, tmp_path):
    """SimpleITK, reading the file, resamples as the affine does."""
    flair, t1 = pair
    matrix = motion((4, -6, 8), (9, -12, 7))
    found = Alignment(matrix, 1.0, 0.0, 0.1, 0.5, 0.5)
    off = moved(t1, matrix)
    found.write(tmp_path / "t1_to_flair.tfm")
    for name, volume in (("flair", flair), ("t1", off)):
        nifti.write(tmp_path / f"{name}.nii.gz", volume)
    images = [sitk.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in ("flair", "t1")]
    transform = sitk.ReadTransform(str(tmp_path / "t1_to_flair.tfm"))
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(images[1], images[0], transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    ).transpose(2, 1, 0)
    ours = resample_onto(found.apply(off), flair).data
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(ours[inner], theirs[inner], rtol=0.02, atol=5)


def test_the_rough_brain_leaves_scalp_and_air_out(pair):
    grey = pair[0].with_data((pair[0].data * (100 / 175)).astype(np.float32))
    brain = rough_brain(grey).data > 0
    middle = tuple(n // 2 for n in brain.shape)
    assert brain[middle]
    assert not brain[0].any()
    assert 0.05 < brain.mean() < 0.5


def test_segmenting_brings_the_t1_and_says_so(model, tmp_path, pair):
    flair, t1 = pair
    matrix = motion((4, -6, 8), (9, -12, 7))
    for name, volume in (("flair", flair), ("t1", t1), ("off", moved(t1, matrix))):
        nifti.write(tmp_path / f"{name}.nii.gz", volume)
    paths = {name: tmp_path / f"{name}.nii.gz" for name in ("flair", "t1", "off")}
    straight = segmented(paths["flair"], paths["t1"], tmp_path / "a", model=model)
    brought = segmented(
        paths["flair"], paths["off"], tmp_path / "b", model=model, save_intermediate=True
    )
    assert straight.alignment.moved_mm == 0
    assert brought.alignment.moved_mm > 5
    assert brought.volume_ml == pytest.approx(straight.volume_ml, rel=0.1)
    kept = nifti.read(tmp_path / "b" / "t1_aligned.nii.gz")
    assert kept.shares_grid_with(flair)
    assert (tmp_path / "b" / "t1_to_flair.tfm").is_file()
    segmented(paths["flair"], paths["t1"], tmp_path / "b", model=model)
    assert not (tmp_path / "b" / "t1_aligned.nii.gz").exists()  # of the run before


def test_a_t1_that_does_not_fit_is_an_error_and_nothing_is_written(model, tmp_path, pair):
    flair, t1 = pair
    noise = np.abs(np.random.default_rng(0).normal(300, 100, t1.data.shape)).astype(np.float32)
    nifti.write(tmp_path / "flair.nii.gz", flair)
    nifti.write(tmp_path / "t1.nii.gz", t1.with_data(noise))
    refused = r"t1.nii.gz could not be registered to flair.nii.gz: .*--align never"
    with pytest.raises(LeukoError, match=refused):
        segmented(tmp_path / "flair.nii.gz", tmp_path / "t1.nii.gz", tmp_path / "out", model=model)
    assert not (tmp_path / "out").exists()
    result = segmented(
        tmp_path / "flair.nii.gz", tmp_path / "t1.nii.gz", tmp_path / "out", model=model,
        alignment="never",
    )  # fmt: skip
    assert [f.level for f in result.findings if "is not registered to" in f.text] == ["do not use"]
