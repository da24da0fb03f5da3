"""A brain's place in the template: moved brains are found, other objects are not."""

import numpy as np
import pytest
import scipy.ndimage
from scipy.spatial.transform import Rotation

from leuko.io.tissue import Tissue
from leuko.lesions import mni
from leuko.volume import Volume


def moved(matrix):
    """The template as a scan that stands elsewhere: world of the template to world of the scan."""
    template = mni.read("tissue")
    return Volume(template.data, matrix @ template.affine, name="moved")


def some_points(count=500):
    template = mni.read("tissue")
    voxels = np.argwhere(template.data >= Tissue.GREY)
    chosen = np.random.default_rng(0).choice(len(voxels), count)
    return voxels[chosen] @ template.affine[:3, :3].T + template.affine[:3, 3]


@pytest.mark.parametrize(
    ("turn", "scale", "shift_mm"),
    [
        ((0, 0, 0), (1, 1, 1), (0, 0, 0)),
        ((12, -8, 10), (0.92, 1.05, 0.95), (14, -30, 22)),
        ((-15, 5, -12), (1.12, 0.9, 1.08), (-60, 10, 45)),
        ((30, -25, 20), (0.9, 1.1, 1.0), (40, 60, -20)),
    ],
)
def test_a_moved_template_is_found_within_a_tenth_of_a_millimetre(turn, scale, shift_mm):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.diag(scale)
    matrix[:3, 3] = shift_mm
    place = mni.Place.of(moved(matrix))
    points = some_points()
    there = points @ matrix[:3, :3].T + matrix[:3, 3]
    off_mm = np.linalg.norm(place.apply(there) - points, axis=1)
    assert off_mm.max() < 0.1
    beside = np.abs(points[:, 0]) > 1  # the midplane itself is neither left nor right
    np.testing.assert_array_equal(place.is_left(there)[beside], points[beside, 0] < 0)


def test_a_slab_of_a_brain_has_no_place():
    template = mni.read("tissue")
    slab = np.zeros_like(template.data)
    slab[:, :, 40:50] = template.data[:, :, 40:50]
    assert mni.Place.of(template.with_data(slab)) is None
    assert mni.Place.of(template.with_data(np.zeros_like(slab))) is None


def test_a_brain_cut_off_at_its_top_is_still_found():
    template = mni.read("tissue")
    shown = template.data.copy()
    shown[:, :, 62:] = 0  # of about 20 to 75
    place = mni.Place.of(template.with_data(shown))
    points = some_points()
    assert np.linalg.norm(place.apply(points) - points, axis=1).mean() < 6


def test_what_is_no_brain_has_no_place():
    x, y, z = np.ogrid[-60:60, -60:60, -60:60]
    bar = np.where((abs(x) < 55) & (abs(y) < 32) & (abs(z) < 31), Tissue.WHITE, 0).astype(np.uint8)
    assert mni.Place.of(Volume(bar, np.diag([3.0, 1, 1, 1]))) is None


def test_a_head_without_brain_tissue_has_no_place():
    template = mni.read("tissue")
    fluid = template.with_data(np.minimum(template.data, Tissue.CSF))
    assert mni.Place.of(fluid) is None


def test_a_registration_that_collapses_is_no_place(monkeypatch):
    flat = np.diag([1.0, 1.0, 0.0, 1.0])
    monkeypatch.setattr("leuko.lesions.mni._registered", lambda *_: flat)
    assert mni.Place.of(mni.read("tissue")) is None


def test_the_atlas_knows_its_lobes():
    lobes = mni.Place(np.eye(4)).lobes(
        np.array([[30, 45, 10], [30, -55, 45], [-50, -20, -20], [10, -90, 5], [0, -60, -35.0]])
    )
    named = [mni.LOBES[lobe] for lobe in lobes]
    assert named == ["frontal", "parietal", "temporal", "occipital", "infratentorial"]
    assert mni.LOBES[mni.Place(np.eye(4)).lobes(np.array([[-26.0, 4, 0]]))[0]] == "deep grey"


def test_the_atlas_has_two_equal_sides():
    template, lobes = mni.read("tissue"), mni.read("lobes")
    assert template.shares_grid_with(lobes)
    x_mm = template.affine[0, 0] * np.arange(template.data.shape[0]) + template.affine[0, 3]
    ventricles = (template.data == Tissue.VENTRICLE).sum(axis=(1, 2))
    left, right = ventricles[x_mm < 0].sum(), ventricles[x_mm > 0].sum()
    assert abs(left - right) < 0.05 * right
    assert scipy.ndimage.label(template.data == Tissue.VENTRICLE, np.ones((3, 3, 3)))[1] <= 4
