"""Lesions and regions of made brains whose answers are known by hand."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import scipy.ndimage

from leuko.io.tissue import Tissue
from leuko.lesions import mni
from leuko.lesions.location import REGIONS, SECTORS, Where, lateral_ventricles, locate
from leuko.lesions.measure import MaskedScan, analyse, numbered
from leuko.volume import Orientation, Volume

SHAPE, SPACING = (60, 60, 10), (1.0, 1.0, 5.0)


def slab(lesions=(), *, ventricle=True):
    """A flat piece of white matter: a ventricle at x 0 to 9, all y, and boxes of lesions.

    It is too small for the template, so that distances alone decide.
    """
    tissue = np.full(SHAPE, Tissue.WHITE, np.uint8)
    if ventricle:
        tissue[:10] = Tissue.VENTRICLE
    mask = np.zeros(SHAPE, bool)
    for box in lesions:
        mask[box] = True
    tissue[mask] = Tissue.WMH
    return a_case(Volume(tissue, np.diag([*SPACING, 1.0]), name="FLAIR"), mask)


def a_case(tissue, mask):
    flair = np.where(mask, 150.0, 100.0)
    t1 = np.where(mask, 70.0, 100.0)
    return MaskedScan(
        flair=tissue.with_data(flair),
        t1=t1,
        tissue=tissue,
        probability=np.where(mask, 0.75, 0.0),
        mask=mask,
        liberal=mask,
    )


def analysed(case, *, rule="voxel10", threads=1):
    """The analysis of a case at its own place in the template."""
    place = case.tissue and mni.Place.of(case.tissue)
    return analyse(case, place=place, rule=rule, threads=threads)


def brain(lesions=()):
    """The template as a scan, with lesions drawn as balls: ((x, y, z) in MNI, radius in mm)."""
    template = mni.read("tissue")
    grid = np.stack(np.meshgrid(*map(np.arange, template.data.shape), indexing="ij"), axis=-1)
    points = grid @ template.affine[:3, :3].T + template.affine[:3, 3]
    mask = np.zeros(template.data.shape, bool)
    for centre, radius_mm in lesions:
        mask |= np.linalg.norm(points - np.array(centre), axis=-1) <= radius_mm
    tissue = np.where(mask, Tissue.WMH, template.data).astype(np.uint8)
    return a_case(template.with_data(tissue), mask)


def box(x, y=slice(20, 24), z=slice(4, 6)):
    return slice(*x), y, z


def test_a_lesion_has_its_volume_place_and_contrast():
    found = analysed(slab([box((15, 20))]), rule="voxel10", threads=1)
    (lesion,) = found.lesions
    assert asdict(lesion) == {
        "id": 1,
        "voxels": 5 * 4 * 2,
        "volume_mm3": pytest.approx(200),
        "volume_ml": pytest.approx(0.2),
        "x_mm": 17,
        "y_mm": 21.5,
        "z_mm": 22.5,
        "flair_contrast": pytest.approx(0.5),
        "t1_contrast": pytest.approx(-0.3),
        "mean_probability": pytest.approx(0.75),
        "region": "periventricular",
        "side": "n/a",
        "lobe": "n/a",
        "ventricle_mm": pytest.approx(6),
        "cortex_mm": pytest.approx(math.nan, nan_ok=True),
    }
    assert found.intracranial_ml == pytest.approx(60 * 60 * 10 * 5 / 1000)


def test_lesions_are_numbered_the_largest_first():
    mask = np.zeros((9, 9, 9), bool)
    mask[0, 0, 0] = mask[4, 4, 4:7] = mask[8, 8, 7:9] = True
    numbers = numbered(mask)
    assert (numbers[0, 0, 0], numbers[4, 4, 4], numbers[8, 8, 8]) == (3, 1, 2)


@pytest.mark.parametrize(
    ("rule", "periventricular", "deep"),
    [
        # near: x 11-14 (2 to 5 mm off); touching: x 10-13; across: x 16-23; far: x 30-33
        ("voxel10", 4 + 4 + 4, 4 + 4),
        ("shiva2", 4 + 4, 8 + 4),
        ("contiguity", 4, 4 + 8 + 4),
    ],
)
def test_each_rule_divides_the_volume_as_it_says(rule, periventricular, deep):
    rows = [slice(y, y + 4) for y in (2, 12, 22, 32)]
    lesions = [
        box(x, y) for x, y in zip([(11, 15), (10, 14), (16, 24), (30, 34)], rows, strict=True)
    ]
    regions = analysed(slab(lesions), rule=rule, threads=1).regions
    per_column = 4 * 2 * 5 / 1000  # mL of one x of a box
    assert regions.periventricular_ml == pytest.approx(periventricular * per_column)
    assert regions.deep_ml == pytest.approx(deep * per_column)
    assert regions.infratentorial_ml == 0
    assert regions.left_ml is None


def test_a_lesion_at_the_cortex_is_juxtacortical_and_one_that_reaches_the_ventricle_is_not():
    # Lesions 1 at the cortex, 2 from ventricle to cortex, 3 between, 4 below the tentorium.
    lesion = np.array([1, 1, 2, 2, 3, 4])
    lobes = ["frontal"] * 5 + ["infratentorial"]
    where = Where(
        ventricle_mm=np.array([15.0, 18, 1, 20, 12, 40]),
        touches=np.zeros(6, bool),
        cortex_mm=np.array([5.0, 2, 20, 1, 2.1, 1]),
        touches_cortex=np.zeros(6, bool),
        lobe=np.array([mni.LOBES.index(name) for name in lobes]),
        is_left=np.ones(6, bool),
    )
    found = [REGIONS[k] for k in where.regions(lesion, "mcdonald2017")]
    expected = ["juxtacortical"] * 2 + ["periventricular"] * 2 + ["deep", "infratentorial"]
    assert found == expected
    for rule in ("voxel10", "shiva2", "contiguity"):
        assert REGIONS.index("juxtacortical") not in where.regions(lesion, rule)


def test_on_thick_slices_a_lesion_that_touches_is_near_whatever_the_distance_of_centres():
    # Lesions 1 at the ventricle and 2 at the cortex, each a slice of 6 mm away; 3 at neither.
    lesion = np.array([1, 2, 3])
    where = Where(
        ventricle_mm=np.array([6.5, 20.0, 6.5]),
        touches=np.array([True, False, False]),
        cortex_mm=np.array([20.0, 6.5, 6.5]),
        touches_cortex=np.array([False, True, False]),
        lobe=None,
        is_left=None,
    )
    found = [REGIONS[k] for k in where.regions(lesion, "mcdonald2017")]
    assert found == ["periventricular", "juxtacortical", "deep"]
    assert where.regions(lesion, "shiva2").tolist() == [1, 2, 2]


def test_the_four_regions_of_mcdonald_add_up_to_the_mask():
    case = brain([((28, 40, 10), 4), ((-22, -30, 26), 5), ((-40, -62, 40), 5), ((10, -60, -35), 4)])
    found = analysed(case, rule="mcdonald2017")
    parts = found.regions
    volumes = (
        parts.periventricular_ml, parts.deep_ml, parts.infratentorial_ml, parts.juxtacortical_ml
    )  # fmt: skip
    total = case.flair.ml(case.mask)
    assert sum(volumes) == pytest.approx(total)
    assert parts.juxtacortical_ml > 0
    counts = np.bincount(found.region_map.ravel(), minlength=5)[1:] * case.flair.voxel_mm3 / 1000
    np.testing.assert_allclose(counts, volumes, rtol=1e-6)
    by_lesion = {lesion.region for lesion in found.lesions}
    assert by_lesion <= set(REGIONS[1:])
    assert f"juxtacortical {parts.juxtacortical_ml:.2f} mL" in parts.as_text()
    assert analysed(case, rule="voxel10").regions.juxtacortical_ml is None


def test_without_a_cortex_nothing_is_juxtacortical():
    regions = analysed(slab([box((15, 20))]), rule="mcdonald2017").regions
    assert regions.juxtacortical_ml is None
    assert regions.deep_ml == pytest.approx(0.2)


def test_a_distance_across_thick_slices_is_in_millimetres():
    tissue = np.full((30, 30, 10), Tissue.WHITE, np.uint8)
    tissue[10:20, 10:20, 0] = Tissue.VENTRICLE
    mask = np.zeros(tissue.shape, bool)
    mask[15, 15, 2] = mask[15, 15, 3] = True  # 10 and 15 mm above
    where = locate(mask, Volume(tissue, np.diag([1, 1, 5.0, 1])), None, threads=1)
    np.testing.assert_allclose(where.ventricle_mm, [10, 15])
    assert where.regions(np.array([1, 1]), "voxel10").tolist() == [1, 2]


def test_a_lesion_from_the_ventricle_into_the_deep_is_confluent():
    case = slab([box((10, 40)), box((12, 16), slice(40, 44))])
    first, second = analysed(case, rule="voxel10", threads=1).lesions
    assert (first.region, second.region) == ("confluent", "periventricular")
    regions = analysed(case, rule="voxel10", threads=1).regions
    assert regions.confluent_ml == pytest.approx(first.volume_ml)
    total = sum(lesion.volume_ml for lesion in (first, second))
    assert regions.periventricular_ml + regions.deep_ml == pytest.approx(total)


def test_lobes_and_sides_come_from_the_template():
    case = brain([((28, 40, 10), 4), ((-28, 40, 10), 5), ((-25, -62, 40), 6), ((20, -60, -38), 7)])
    lesions = analysed(case, rule="voxel10", threads=2).lesions
    named = [(lesion.region, lesion.side, lesion.lobe) for lesion in lesions]
    assert named == [
        ("infratentorial", "right", "infratentorial"),
        ("deep", "left", "parietal"),
        ("deep", "left", "frontal"),
        ("deep", "right", "frontal"),
    ]


def test_the_parts_of_a_brain_add_up_to_its_lesions():
    case = brain([((28, 40, 10), 6), ((-20, -30, 25), 8), ((20, -60, -38), 5), ((15, 20, 12), 7)])
    found = analysed(case, rule="voxel10", threads=2)
    regions = found.regions
    total = sum(lesion.volume_ml for lesion in found.lesions)
    below = regions.infratentorial_ml
    assert below > 0.3
    assert regions.periventricular_ml + regions.deep_ml + below == pytest.approx(total)
    assert regions.left_ml + regions.right_ml == pytest.approx(total)
    assert np.sum(regions.bullseye_ml) == pytest.approx(total - below)
    counts = np.bincount(found.region_map.ravel(), minlength=4) * case.flair.voxel_mm3 / 1000
    np.testing.assert_allclose(
        counts[1:], [regions.periventricular_ml, regions.deep_ml, below], rtol=1e-6
    )


def test_the_bullseye_counts_quarters_of_the_way_by_lobe():
    lobes = [mni.LOBES.index(n) for n in ("frontal", "frontal", "occipital", "deep grey")]
    where = Where(
        ventricle_mm=np.array([1.0, 6, 20, 9]),
        touches=np.zeros(4, bool),
        cortex_mm=np.array([9.0, 4, 1, 9]),
        touches_cortex=np.zeros(4, bool),
        lobe=np.array(lobes),
        is_left=np.array([True, False, True, True]),
    )
    table = np.array(where.bullseye(voxel_mm3=1000))
    expected = np.zeros((4, 9))
    expected[0, SECTORS.index("left frontal")] = 1
    expected[2, SECTORS.index("right frontal")] = 1
    expected[3, SECTORS.index("left occipital")] = 1
    expected[2, SECTORS.index("deep grey")] = 1
    np.testing.assert_array_equal(table, expected)


def ventricle_distances(tissue):
    """Distances of fixed places of the brain from its lateral ventricles, mm."""
    case = brain([((28, 40, 10), 3), ((-30, -30, 30), 3), ((-25, -62, 40), 3)])
    scan = case.tissue.with_data(tissue)
    return locate(case.mask, scan, mni.Place.of(scan), threads=2).ventricle_mm


def test_slit_ventricles_are_where_the_template_has_them():
    template = mni.read("tissue").data
    closed = np.where(template == Tissue.VENTRICLE, Tissue.WHITE, template).astype(np.uint8)
    difference = ventricle_distances(closed) - ventricle_distances(template)
    assert np.abs(difference).max() < 3


def test_wide_ventricles_are_nearer():
    template = mni.read("tissue").data
    wide = scipy.ndimage.binary_dilation(template == Tissue.VENTRICLE, iterations=2)
    widened = np.where(wide & (template > 0), Tissue.VENTRICLE, template).astype(np.uint8)
    nearer = ventricle_distances(template) - ventricle_distances(widened)
    assert nearer.min() > 1
    assert nearer.max() < 8


def test_specks_of_ventricle_in_a_sulcus_are_none():
    template = mni.read("tissue")
    speckled = template.data.copy()
    speckled[20:24, 50:54, 45:49] = Tissue.VENTRICLE  # far from the template's
    voxel = np.linalg.inv(template.affine) @ (12, 42, 8, 1)  # before the frontal horn
    speckled[tuple(np.rint(voxel[:3]).astype(int))] = Tissue.VENTRICLE
    case = template.with_data(speckled)
    kept = lateral_ventricles(case, mni.Place.of(case))
    np.testing.assert_array_equal(kept, lateral_ventricles(template, mni.Place(np.eye(4))))


def test_mirrored_scans_swap_their_sides():
    case = brain([((28, 40, 10), 6), ((-20, -30, 25), 8)])
    mirror = np.diag([-1.0, 1, 1, 1])
    tissue = Volume(case.tissue.data, mirror @ case.tissue.affine, name="FLAIR").canonical()
    mirrored = a_case(tissue, case.mask[::-1])
    there, here = (analysed(c, rule="voxel10", threads=2).regions for c in (case, mirrored))
    assert here.left_ml == pytest.approx(there.right_ml, rel=0.02)
    assert here.deep_ml == pytest.approx(there.deep_ml, rel=0.1)


@pytest.mark.parametrize("kind", ["no lesion", "one voxel", "half the brain", "one slice", "empty"])
def test_odd_scans_are_analysed(kind):
    case = brain()
    mask = np.zeros(case.mask.shape, bool)
    tissue = case.tissue.data.copy()
    if kind == "one voxel":
        mask[60, 70, 50] = True
    elif kind == "half the brain":
        mask[: len(mask) // 2] = tissue[: len(mask) // 2] > Tissue.CSF
    elif kind == "one slice":
        tissue, mask = tissue[:, :, 48:49], mask[:, :, 48:49]
        mask[58:60, 60:64] = True
    elif kind == "empty":
        tissue[:] = 0
    tissue[mask] = Tissue.WMH
    found = analysed(a_case(Volume(tissue, case.flair.affine), mask), rule="voxel10", threads=2)
    total = mask.sum() * 8 / 1000
    assert sum(lesion.volume_ml for lesion in found.lesions) == pytest.approx(total)
    assert found.intracranial_ml == pytest.approx((tissue > 0).sum() * 8 / 1000)
    if kind == "empty":
        assert found.regions is None
    else:
        parts = found.regions
        assert parts.periventricular_ml + parts.deep_ml + parts.infratentorial_ml == (
            pytest.approx(total)
        )
        assert (parts.bullseye_ml is None) == (kind == "one slice")
    assert {lesion.region for lesion in found.lesions} <= {*REGIONS, "confluent", "n/a"}


def test_a_model_without_ventricles_gives_lesions_alone():
    found = analysed(
        replace(slab([box((15, 20))]), tissue=None, t1=None), rule="voxel10", threads=1
    )
    (lesion,) = found.lesions
    assert lesion.volume_ml == pytest.approx(0.2)
    assert lesion.region == "n/a"
    assert math.isnan(lesion.flair_contrast)
    assert (found.regions, found.intracranial_ml) == (None, None)


def test_the_template_needs_no_turning():
    assert Orientation.of(mni.read("tissue").affine) == Orientation((0, 1, 2), (False,) * 3)
