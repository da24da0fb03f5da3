"""Lesions outside the brain are told from those inside it, and leave every result."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage

from leuko.io.tissue import Tissue
from leuko.lesions import mni
from leuko.lesions.brain import brain_mask, deep_rims, find_outside, within_brain
from leuko.lesions.delineation import Delineation
from leuko.volume import Orientation, Volume


def ball(grid, centre_mm, radius_mm):
    points = np.moveaxis(np.indices(grid.data.shape), 0, -1) @ grid.affine[:3, :3].T
    points = points + grid.affine[:3, 3]
    return np.linalg.norm(points - np.array(centre_mm), axis=-1) <= radius_mm


def a_head(spacing_mm=(2.0, 2.0, 4.0)):
    """A ball of a brain of 50 mm; a rod of 6 mm joins it to a ball of 20 mm below."""
    shape = tuple(round(200 / mm) for mm in spacing_mm)
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -100
    grid = Volume(np.zeros(shape, np.uint8), affine)
    rod = [ball(grid, (0, 0, z), 3) for z in range(-70, -40)]
    neck = np.any([*rod, ball(grid, (0, 0, -75), 20)], axis=0)
    brain = ball(grid, (0, 0, 20), 50)
    return grid.with_data(np.where(brain | neck, Tissue.WHITE, 0).astype(np.uint8)), brain


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 4.0), (2.0, 2.0, 4.0), (2.5, 2.5, 2.5)])
def test_the_brain_mask_is_the_largest_piece_without_what_a_thin_bridge_joins(spacing_mm):
    tissue, brain = a_head(spacing_mm)
    found = brain_mask(tissue)
    assert (found & brain).sum() > 0.98 * brain.sum()
    assert (found & ~brain).sum() < 0.02 * brain.sum()


def test_holes_within_slices_belong_to_the_brain():
    tissue, brain = a_head()
    hole = ball(tissue, (0, 0, 20), 12)
    found = brain_mask(tissue.with_data(np.where(hole, 0, tissue.data)))
    assert found[hole].all()
    assert (found & brain).sum() > 0.98 * brain.sum()


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 4.0), (2.5, 2.5, 2.5)])
def test_beyond_a_black_slice_there_is_brain_too(spacing_mm):
    """A slice that was not taken, or lost its signal."""
    tissue, brain = a_head(spacing_mm)
    black = tissue.data.copy()
    black[:, :, round(130 / spacing_mm[2])] = 0  # 30 mm up, 10 mm above the middle
    found = brain_mask(tissue.with_data(black))
    assert (found & brain).sum() > 0.9 * brain.sum()


def test_what_the_template_has_deep_in_the_brain_is_never_outside():
    template = mni.read("tissue")
    deep, shallow = ball(template, (28, 10, 24), 4), ball(template, (0, -18, 74), 2)
    nowhere, place = np.zeros(template.data.shape, bool), mni.Place(np.eye(4))
    found = find_outside(deep | shallow, nowhere, place, template)
    np.testing.assert_array_equal(found.voxels, shallow)
    assert find_outside(deep | shallow, nowhere, None, template).lesions == 2


def test_a_mask_loses_what_is_outside():
    tissue, _ = a_head()
    inside, outside = ball(tissue, (20, 0, 20), 5), ball(tissue, (0, 0, -75), 6)
    mask = inside | outside
    drawn = Delineation(mask, mask, mask, rims=None, anatomy=tissue, level=None)
    kept, removed = within_brain(drawn, brain_mask(tissue), None)
    np.testing.assert_array_equal(kept.mask, inside)
    np.testing.assert_array_equal(removed.voxels, outside)


def test_no_tissue_is_no_brain():
    tissue, _ = a_head()
    assert not brain_mask(tissue.with_data(np.zeros_like(tissue.data))).any()


def test_a_lesion_is_outside_if_at_most_half_of_it_is_in_the_brain():
    tissue, _ = a_head()
    brain = brain_mask(tissue)
    inside = ball(tissue, (20, 0, 20), 5)
    at_the_edge = ball(tissue, (46, 0, 20), 6)
    outside = ball(tissue, (0, 0, -75), 6)
    found = find_outside(inside | at_the_edge | outside, brain, None, tissue)
    assert found.lesions == 1
    np.testing.assert_array_equal(found.voxels, outside)


def test_rims_lie_deep_in_the_brain_where_all_ventricles_are():
    template, place = mni.read("tissue"), mni.Place(np.eye(4))
    everywhere = np.ones(template.data.shape, bool)
    ventricle = template.data == Tissue.VENTRICLE
    horns = scipy.ndimage.binary_dilation(ventricle, iterations=3) & ~ventricle
    fourth, vertex = ball(template, (0, -44, -32), 4), ball(template, (0, -18, 74), 4)
    rims = horns | fourth | vertex
    kept = deep_rims(rims, everywhere, place, template)
    np.testing.assert_array_equal(kept, rims & ~vertex)
    assert not deep_rims(rims, ~everywhere, place, template).any()
    np.testing.assert_array_equal(deep_rims(rims, everywhere, None, template), rims)
    assert not deep_rims(np.zeros_like(rims), everywhere, place, template).any()


def test_no_lesion_is_none_outside():
    tissue, _ = a_head()
    found = find_outside(np.zeros(tissue.data.shape, bool), brain_mask(tissue), None, tissue)
    assert (found.lesions, found.voxels.any()) == (0, False)


def test_a_lesion_beyond_the_template_is_outside_though_the_tissues_reach_there():
    template = mni.read("tissue")
    place = mni.Place(np.eye(4))
    everywhere = np.ones(template.data.shape, bool)
    deep, pituitary = ball(template, (28, 10, 24), 4), ball(template, (0, 4, -32), 3)
    found = find_outside(deep | pituitary, everywhere, place, template)
    assert found.lesions == 1
    np.testing.assert_array_equal(found.voxels, pituitary)
    assert find_outside(deep | pituitary, everywhere, None, template).lesions == 0


def test_juxtacortical_lesions_are_inside():
    """A ball that touches the template's cortex, moved by as much as a registration may be off."""
    template = mni.read("tissue")
    everywhere = np.ones(template.data.shape, bool)
    for way in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0), (0, -1, 0)):
        place = mni.Place(np.eye(4))
        line = np.array([np.array([0, -18, 20]) + mm * np.array(way) for mm in range(120)], float)
        edge = line[place.beyond_brain_mm(line) < 0][-1]
        lesion = ball(template, edge - 7 * np.array(way), 3)
        off = np.eye(4)
        off[:3, 3] = 3 * np.array(way)
        assert find_outside(lesion, everywhere, replace(place, to_mni=off), template).lesions == 0


@pytest.mark.real
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_lesions_of_patients_lie_in_the_template(real, order):
    """In MNI space, by their readers; stored in any order."""
    from leuko.io import nifti

    paths = sorted((real / "lesions_mni").glob("*.nii.gz"))[:: 1 if order == (0, 1, 2) else 9]
    for path in paths:
        grid = nifti.read_mask(path)
        mask = grid.data > 0
        turned = Volume(mask.transpose(order), grid.affine[:, [*order, 3]])
        everywhere = np.ones(turned.data.shape, bool)
        found = find_outside(turned.data, everywhere, mni.Place(np.eye(4)), turned)
        assert found.lesions == 0, path
        assert Orientation.of(turned.affine).order == tuple(np.argsort(order))
