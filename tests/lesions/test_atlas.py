"""WMH by the regions of a given atlas: volumes known by hand, and files that cannot be used."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from leuko.cohort import gather
from leuko.cohort.job import Wanted
from leuko.cohort.run import portable
from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.inputs import file_record
from leuko.io.record import AtlasRecord, AtlasRegion
from leuko.lesions import atlas, mni
from leuko.lesions.components import find_lesions
from leuko.lesions.mni import Place
from leuko.segment import SegmentSettings, segment
from leuko.volume import Volume, world
from phantoms import SMALL_MODEL
from reports import a_head, a_record, a_report

# Two blocks of white matter in MNI152 space, mm: corner and edges. 20 x 24 x 16 mm is 7.68 mL.
BLOCKS = {5: ((-40, -30, 16), (20, 24, 16)), 300: ((20, -30, 16), (20, 24, 16))}
NAMES = "index\tname\tcolour\n5\tleft block\tred\n300\tright block\tblue\n7\tnot drawn\t\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An atlas of the two blocks at 1 mm, stored with its first axis to the left, and its names."""
    folder = tmp_path_factory.mktemp("atlas")
    grid = Volume(np.zeros((121, 101, 91), np.uint16), np.eye(4))
    grid.affine[:3, 3] = -60, -60, -20
    points = world(grid, np.argwhere(np.ones(grid.data.shape, bool)))
    labels = np.zeros(len(points), np.uint16)
    for number, (corner, edges) in BLOCKS.items():
        labels[within(points, corner, edges)] = number
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = grid.data.shape[0] - 1
    stored = Volume(labels.reshape(grid.data.shape)[::-1].copy(), grid.affine @ flip)
    nifti.write(folder / "blocks.nii.gz", stored)
    (folder / "blocks.tsv").write_text(NAMES)
    return folder / "blocks.nii.gz", folder / "blocks.tsv"


def within(points, corner, edges):
    return ((points >= corner) & (points < np.add(corner, edges))).all(axis=1)


def a_scan_of(place, spacing_mm):
    """The grid of a scan of the template's brain at a place."""
    to_scan = np.linalg.inv(place.to_mni)
    affine = to_scan @ np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = (to_scan @ [-98, -134, -72, 1])[:3]
    shape = np.ceil(np.array([196, 232, 188]) / spacing_mm).astype(int)
    return Volume(np.zeros(shape, np.uint8), affine, name="FLAIR")


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.0, 1.0, 6.0)])
def test_volumes_by_region_are_those_of_the_blocks(files, spacing_mm):
    to_mni = np.eye(4)
    to_mni[:3, :3] = Rotation.from_euler("xyz", (4, -3, 5), degrees=True).as_matrix() * 1.1
    to_mni[:3, 3] = 5, -8, 3
    place = Place(to_mni)
    grid = a_scan_of(place, spacing_mm)
    # One lesion fills the left block and 20 mm in front of it, another the right half of the right.
    points = place.apply(world(grid, np.argwhere(np.ones(grid.data.shape, bool))))
    first = within(points, (-40.5, -30.5, 15.5), (20, 44, 16)).reshape(grid.data.shape)
    second = within(points, (29.5, -30.5, 15.5), (10, 24, 16)).reshape(grid.data.shape)
    numbers = np.where(first, 1, np.where(second, 2, 0)).astype(np.uint16)
    found = atlas.measure(atlas.read(*files), numbers, grid, place)
    growth = 1.1**3
    outside, left, right = found.regions
    assert [r.name for r in found.regions] == ["outside the atlas", "left block", "right block"]
    assert left.region_ml == right.region_ml == pytest.approx(7.68 / growth, rel=1e-3)
    # Slices of 6 mm cover 18 mm, the blocks 16: the rest of the mask is outside.
    near = 0.02 if spacing_mm[2] == 1 else 0.07
    assert left.wmh_ml == pytest.approx(7.68 / growth, rel=near)
    assert right.wmh_ml == pytest.approx(3.84 / growth, rel=near)
    total = grid.ml(numbers)
    assert outside.wmh_ml == pytest.approx(total - 11.52 / growth, rel=near)
    assert sum(r.wmh_ml for r in found.regions) == pytest.approx(total, rel=1e-3)
    assert sum(ml for *_, ml in found.lesion_ml) == pytest.approx(total, rel=1e-3)
    assert (left.lesions, right.lesions) == (1, 1)
    assert left.wmh_percent == pytest.approx(100 * left.wmh_ml / left.region_ml, rel=1e-3)
    assert next((lesion, k) for lesion, k, _ in found.lesion_ml) == (1, 5)
    assert found.labels.data.shape == grid.data.shape
    assert set(np.unique(found.labels.data)) == {0, 5, 300}


def test_no_wmh_is_in_no_region(files):
    place = Place(np.eye(4))
    grid = a_scan_of(place, (2.0, 2.0, 4.0))
    found = atlas.measure(atlas.read(*files), np.zeros(grid.data.shape, np.uint16), grid, place)
    assert [(r.wmh_ml, r.lesions) for r in found.regions] == [(0, 0)] * 3
    assert found.lesion_ml == []


def test_without_names_labels_are_named_by_number(files):
    assert [label.name for label in atlas.read(files[0]).named] == ["label 5", "label 300"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("index\tname\n5\tleft\n", "no name for 1 of the 2 labels in .*: 300; add a row for each"),
        ("index,name\n5,left\n", r"has the columns index,name; expected index and name, separated"),
        ("", r"has the columns \(none\); expected index and name"),
        ("index\tname\nfive\tleft\n", "line 2: the index is 'five'; expected a whole number"),
        ("index\tname\n5\t\n", "line 2: label 5 has no name"),
        ("index\tname\n5\ta\n5\tb\n", "line 3: label 5 has two names"),
    ],
)
def test_names_that_cannot_be_used_are_refused(files, tmp_path, text, said):
    (tmp_path / "names.tsv").write_text(text)
    with pytest.raises(LeukoError, match=said):
        atlas.read(files[0], tmp_path / "names.tsv")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data, affine: (data, affine + np.array([[0, 0, 0, 60]] + [[0] * 4] * 3)), "MNI152"),
        (lambda data, affine: (data * 0, affine), "is empty; expected labels above 0"),
        (lambda data, affine: (data / np.float32(400), affine), "labels, not probabilities"),
        (lambda data, affine: (np.stack([data, data], -1), affine), "expected one 3-D image"),
    ],
)
def test_an_image_that_is_no_atlas_in_mni_space_is_refused(files, tmp_path, change, said):
    image = nib.load(files[0])
    data, affine = change(np.asarray(image.dataobj), image.affine)
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "atlas.nii.gz")
    with pytest.raises(LeukoError, match=said):
        atlas.read(tmp_path / "atlas.nii.gz")


def test_names_without_an_atlas_are_refused_before_anything_is_read(files):
    settings = SegmentSettings(atlas_names=files[1])
    with pytest.raises(LeukoError, match="--atlas-names needs --atlas"):
        portable(settings)


def test_a_cohort_is_told_of_a_bad_atlas_before_it_starts_and_keeps_absolute_paths(
    files, monkeypatch
):
    monkeypatch.chdir(files[0].parent)
    settings = portable(SegmentSettings(atlas="blocks.nii.gz", atlas_names="blocks.tsv"))
    assert (settings.atlas, settings.atlas_names) == (str(files[0]), str(files[1]))
    with pytest.raises(LeukoError, match="does not exist"):
        portable(SegmentSettings(atlas="other.nii.gz"))


def test_a_subject_is_done_only_with_the_wanted_atlas(files):
    flair, mask = a_head()
    record = a_record(flair, mask)
    settings = SegmentSettings(model=str(SMALL_MODEL), threshold=0.4, atlas=files[0])
    wanted = Wanted.of(settings)
    used = {**vars(record.settings), "threshold": 0.4, "strict": True}
    used |= {"lesion_threshold": wanted.limits.lesion_threshold}
    used |= {"smallest_lesion_mm3": wanted.limits.smallest_mm3}
    made = {**vars(record)}
    made["model"] = type(record.model)(name="x", path=None, weights_sha256=wanted.weights_sha256)

    def fits(**more):
        made["settings"] = type(record.settings)(**used | more)
        return wanted.fits(type(record)(**made))

    assert not fits()
    assert fits(atlas=file_record(files[0]))
    assert not fits(atlas=file_record(files[1]))


def test_segmenting_writes_tables_and_image_or_says_why_not(heads, files, tmp_path):
    scans = heads / "head0" / "FLAIR.nii.gz", heads / "head0" / "T1.nii.gz"
    settings = SegmentSettings(model=str(SMALL_MODEL), atlas=files[0], atlas_names=files[1])
    out = tmp_path / "out"
    segment(*scans, settings=settings).save(out)
    record = json.loads((out / "run.json").read_text())
    assert record["settings"]["atlas"]["sha256"] == file_record(files[0]).sha256
    told = [finding for finding in record["findings"] if finding["code"] == "template"]
    assert (out / "atlas.tsv").is_file() == ("atlas" in record) == (not told)
    if "atlas" in record:
        with (out / "atlas.tsv").open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert [row["name"] for row in rows] == ["outside the atlas", "left block", "right block"]
        total = sum(float(row["wmh_ml"]) for row in rows)
        assert total == pytest.approx(record["volume_ml"], rel=1e-3)
        assert (out / "lookup_tables" / "atlas.lut").is_file()
        held = np.unique(nifti.read_numbers(out / "atlas.nii.gz").data)
        assert set(held) <= {0, 5, 300}
        assert "Regions of the atlas" in (out / "report.html").read_text()


def test_the_report_lists_regions_of_equal_names_each(tmp_path):
    flair, mask = a_head()
    regions = tuple(
        AtlasRegion(index=k, name=name, region_ml=8.0, wmh_ml=k / 8, wmh_percent=k, lesions=1)
        for k, name in enumerate(["outside the atlas", "thalamus", "thalamus"])
    )
    page = a_report(tmp_path, flair, mask, atlas=AtlasRecord(regions=regions))
    assert page.count('<th scope="row">thalamus</th>') == 2
    assert "0.125 mL" in page
    assert "0.250 mL" in page


def test_a_cohort_has_a_table_of_regions(cohort):
    regions = (
        AtlasRegion(index=0, name="outside the atlas", region_ml=None, wmh_ml=1.5,
                    wmh_percent=None, lesions=3),
        AtlasRegion(index=5, name="left block", region_ml=8.0, wmh_ml=2.0, wmh_percent=25.0,
                    lesions=1),
    )  # fmt: skip
    out = cohort(a={"atlas": AtlasRecord(regions=regions)}, b={})
    assert gather.write_batch(out)["atlas"] == out / "wmh_atlas.tsv"
    with (out / "wmh_atlas.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["id"], row["name"], row["wmh_ml"]) for row in rows] == [
        ("a", "outside the atlas", "1.5"), ("a", "left block", "2")
    ]  # fmt: skip
    assert rows[0]["region_ml"] == rows[0]["wmh_percent"] == "n/a"
    assert list(json.loads((out / "wmh_atlas.json").read_text())) == list(rows[0])


def test_regions_of_the_template_itself_are_exact():
    """Lobes as an atlas, lesions in the template: volumes by counting voxels of 2 mm."""
    template, lobes = mni.read("tissue"), mni.read("lobes")
    inside = template.data > 0
    labels = lobes.with_data(np.where(inside, lobes.data + 1, 0).astype(np.uint16))
    named = atlas.lookup_tables.coloured((k + 1, name) for k, name in enumerate(mni.LOBES))
    white = np.argwhere(template.data == 4)
    mask = np.zeros(inside.shape, bool)
    for centre in np.random.default_rng(3).permutation(white)[:60]:
        low = np.maximum(centre - 2, 0)
        mask[tuple(slice(a, a + 5) for a in low)] = True
    mask &= inside
    numbers, _ = find_lesions(mask)
    place = Place(np.eye(4))
    grid = template.with_data(template.data)
    found = atlas.measure(atlas.Atlas(labels, named), numbers, grid, place)
    for region in found.regions[1:]:
        known = grid.ml(mask & (labels.data == region.index))
        if known > 1:
            assert region.wmh_ml == pytest.approx(known, rel=0.02)
