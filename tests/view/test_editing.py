"""Corrected masks: what is saved, what is refused, and the numbers that are made again."""

import itertools
import json
import sys

import numpy as np
import pydicom
import pytest

from conftest import SMALL, assert_one_line_error, segmented
from dicom_series import T1, write_series
from leuko.cohort.files import EDITED_FILE, EDITED_FOLDER
from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.outputs import (
    ATLAS_TABLE_FILE,
    DICOM_FILE,
    FILLED_FILE,
    MASK_FILE,
    MNI_MASK_FILE,
    REPORT_FILE,
)
from leuko.io.record import RunRecord
from leuko.model.runtime import load_model
from leuko.segment import measure
from leuko.view.editing import (
    ConflictError,
    Result,
    described,
    find_results,
)
from leuko.volume import Volume
from phantoms import SMALL_MODEL, make_phantom

ORIENTATIONS = [
    (order, flips)
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


@pytest.fixture
def result(heads, model, tmp_path):
    head = heads / "head0"
    segmented(head / "FLAIR.nii.gz", head / "T1.nii.gz", tmp_path / "out", model=model)
    return find_results(tmp_path / "out")[0]


def edited(result, mask):
    return result.save(mask, based_on=result.version, editor="A. Reader")


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_a_corrected_mask_is_stored_as_the_automatic_one_in_any_orientation(tmp_path, order, flips):
    axes = np.zeros((4, 4))
    axes[3, 3] = 1
    for axis, (place, flip) in enumerate(zip(order, flips, strict=True)):
        axes[place, axis] = flip * (axis + 1.0)
    axes[:3, 3] = 7, -8, 9
    automatic = np.zeros((4, 5, 6), np.uint8)
    automatic[1, 2, 3] = 1
    nifti.write(tmp_path / MASK_FILE, Volume(automatic, axes))
    before = (tmp_path / MASK_FILE).read_bytes()
    result = Result("a", tmp_path)
    mask = result.mask.copy()
    corner = (0, 1, 2)
    mask[corner] = True
    edited(result, mask)
    saved = nifti.read(tmp_path / EDITED_FILE)
    np.testing.assert_array_equal(saved.affine, axes)
    np.testing.assert_array_equal(saved.canonical().data > 0, mask)
    world = saved.affine @ [*np.argwhere(saved.data != automatic)[0], 1]
    np.testing.assert_allclose(world, result.automatic.canonical().affine @ [*corner, 1])
    assert (tmp_path / MASK_FILE).read_bytes() == before
    np.testing.assert_array_equal(result.mask, mask)


def test_edits_are_listed_with_who_and_when_and_how_much(result):
    mask, ml = result.mask, result.automatic.voxel_mm3 / 1000
    first = mask.copy()
    first[:3, 0, 0] = True
    version = edited(result, first)
    second = first.copy()
    second[:2, 0, 0] = False
    edited(result, second)
    one, two = result.history()
    assert one["editor"] == "A. Reader"
    assert one["saved"].startswith("20")
    assert (one["added_ml"], one["removed_ml"]) == pytest.approx((3 * ml, 0), abs=1e-4)
    assert (two["added_ml"], two["removed_ml"]) == pytest.approx((0, 2 * ml), abs=1e-4)
    assert one["mask_sha256"] == two["based_on_sha256"] == version
    assert (result.folder / "run.json").is_file()


def test_a_mask_that_another_window_saved_is_not_overwritten(result):
    mask, version = result.mask, result.version
    mask[0, 0, 0] = True
    result.save(mask, based_on=version, editor="")
    saved = (result.folder / EDITED_FILE).read_bytes()
    with pytest.raises(ConflictError, match="another window"):
        result.save(~mask, based_on=version, editor="")
    assert (result.folder / EDITED_FILE).read_bytes() == saved


def test_a_mask_of_another_shape_is_refused(result):
    with pytest.raises(LeukoError, match="shape"):
        edited(result, np.zeros((2, 2, 2), bool))
    assert not (result.folder / EDITED_FILE).exists()


def test_the_numbers_of_an_unchanged_mask_are_those_of_the_automatic_one(result):
    record = result.record
    edited(result, result.mask)
    result.measure()
    again = RunRecord.read(result.folder / EDITED_FOLDER / "run.json")
    assert again.mask_sha256 == result.version
    assert again.volume_ml == record.volume_ml
    assert again.lesions == record.lesions
    assert again.command == "measure"
    table = [result.folder / name / "lesions.tsv" for name in ("", EDITED_FOLDER)]
    rows = [[line.split("\t") for line in path.read_text().splitlines()] for path in table]
    measures = ("id", "voxels", "x_mm", "y_mm", "z_mm", "flair_contrast")
    for name in measures:
        column = rows[0][0].index(name)
        assert [row[column] for row in rows[0]] == [row[column] for row in rows[1]]


def test_a_corrected_mask_gets_the_extra_outputs_of_the_automatic_one(heads, tmp_path, caplog):
    head, atlas = heads / "head0", tmp_path / "blocks.nii.gz"
    affine = np.diag([8.0, 8, 8, 1])
    affine[:3, 3] = -92, -128, -74
    block = np.zeros((24, 28, 24), np.uint8)
    block[8:16, 12:18, 10:14] = 1
    nifti.write(atlas, Volume(block, affine))
    asked = {"fill": True, "save_mni": True, "atlas": atlas}
    model = str(SMALL_MODEL)
    segmented(head / "FLAIR.nii.gz", head / "T1.nii.gz", tmp_path / "out", model=model, **asked)
    (result,) = find_results(tmp_path / "out")
    mask = result.mask.copy()
    mask[tuple(np.argwhere(mask)[0])] = False
    edited(result, mask)
    result.measure()
    folder = result.folder / EDITED_FOLDER
    record, automatic = RunRecord.read(folder / "run.json"), result.record
    assert (record.settings.fill, record.settings.save_mni) == (True, True)
    assert record.settings.atlas == automatic.settings.atlas
    made = {path.name for path in result.folder.iterdir()}
    for name in (FILLED_FILE, MNI_MASK_FILE, ATLAS_TABLE_FILE):
        assert (folder / name).is_file() == (name in made)
    before, after = (nifti.read(path / FILLED_FILE).data for path in (result.folder, folder))
    assert np.count_nonzero(before != after) > 0
    atlas.unlink()
    result.measure()
    assert RunRecord.read(folder / "run.json").settings.atlas is None
    assert "blocks.nii.gz is missing or has changed" in caplog.text


def test_a_correction_of_an_earlier_mask_is_not_shown_and_a_new_one_replaces_it(
    heads, result, model
):
    mask = result.mask.copy()
    mask[:4, :4, 0] = True
    edited(result, mask)
    head = heads / "head0"
    segmented(head / "FLAIR.nii.gz", head / "T1.nii.gz", result.folder, model=model, threshold=0.3)
    (again,) = find_results(result.folder)
    assert not again.is_edited
    np.testing.assert_array_equal(again.mask, again.automatic.canonical().data > 0)
    about = described(again)
    assert about["is_current"] is True
    assert "corrects an earlier automatic mask" in about["note"]
    edited(again, mask)
    assert again.is_edited
    assert len(again.history()) == 1
    assert described(again)["note"] is None


def test_the_report_is_made_again_and_says_who_corrected_the_mask(result):
    mask = result.mask.copy()
    mask[:4, :4, 0] = True
    edited(result, mask)
    assert described(result)["is_current"] is False
    result.measure()
    about = described(result)
    assert about["is_current"] is True
    assert about["volume_ml"] == pytest.approx(result.automatic.ml(mask), abs=1e-3)
    page = (result.folder / EDITED_FOLDER / REPORT_FILE).read_text()
    assert "Mask corrected by</strong> A. Reader" in page
    record = json.loads((result.folder / EDITED_FOLDER / "run.json").read_text())
    assert record["edited"]["automatic_ml"] == result.record.volume_ml
    assert record["edited"]["added_ml"] == pytest.approx(
        16 * result.automatic.voxel_mm3 / 1000, abs=1e-3
    )


def test_all_images_are_on_the_grid_of_the_mask(result):
    grid = result.automatic.canonical()
    shown = {name: make() for name, make in result.images().items()}
    assert {"flair", "t1", "probability", "lesions"} <= set(shown)
    for name, image in shown.items():
        assert image.shares_grid_with(grid), name


def test_a_scan_that_was_moved_can_be_given(heads, model, tmp_path):
    for name in ("FLAIR", "T1"):
        (tmp_path / f"{name}.nii.gz").write_bytes((heads / "head0" / f"{name}.nii.gz").read_bytes())
    flair, t1 = tmp_path / "FLAIR.nii.gz", tmp_path / "T1.nii.gz"
    segmented(flair, t1, tmp_path / "out", model=model)
    moved = flair.rename(tmp_path / "moved.nii.gz")
    result = find_results(tmp_path / "out")[0]
    with pytest.raises(LeukoError, match="--flair"):
        result.images()["flair"]()
    result = find_results(tmp_path / "out", flair=moved)[0]
    assert result.images()["flair"]().data.shape == result.mask.shape


def test_all_lesions_can_be_erased_and_drawn_again(result):
    mask = result.mask
    edited(result, np.zeros_like(mask))
    result.measure()
    assert not result.mask.any()
    assert described(result)["lesions"] == 0
    assert not result.images()["lesions"]().data.any()
    edited(result, mask)
    np.testing.assert_array_equal(result.mask, mask)


@pytest.fixture
def from_dicom(model, leuko, tmp_path):
    """The result of a study of two series."""
    head = make_phantom(np.random.default_rng(99), **SMALL)
    write_series(tmp_path / "study" / "flair", head.flair)
    write_series(tmp_path / "study" / "t1", head.t1, uid="1.2.3.5", number=3, **T1)
    given = ["--study", tmp_path / "study", "-o", tmp_path / "out", "--model", model]
    assert leuko("segment", *given)[0] == 0
    return find_results(tmp_path / "out")[0]


def test_scans_are_found_in_their_dicom_study_again(from_dicom):
    grid = from_dicom.automatic.canonical()
    flair, t1 = (from_dicom.images()[name]() for name in ("flair", "t1"))
    assert flair.shares_grid_with(grid)
    assert t1.shares_grid_with(grid)
    assert from_dicom.scan("flair").sha256() == from_dicom.record.inputs.flair.sha256
    assert from_dicom.scan("t1").sha256() == from_dicom.record.inputs.t1.sha256
    edited(from_dicom, from_dicom.mask)
    from_dicom.measure()
    assert described(from_dicom)["volume_ml"] == from_dicom.record.volume_ml
    written = pydicom.dcmread(from_dicom.folder / EDITED_FOLDER / DICOM_FILE)
    assert written.SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert written.ContentCreatorName == "A. Reader"


def test_the_record_says_which_mask_was_corrected(result, heads, model, tmp_path):
    scans = [heads / "head0" / f"{name}.nii.gz" for name in ("FLAIR", "T1")]
    loaded = load_model(model, threads=1)
    measure(result.folder / MASK_FILE, *scans, model=loaded).save(tmp_path / "given")
    (given,) = find_results(tmp_path / "given")
    for corrected, what in ((result, "automatic"), (given, "given")):
        edited(corrected, corrected.mask)
        corrected.measure(loaded)
        record = RunRecord.read(corrected.folder / EDITED_FOLDER / "run.json")
        assert record.edited.corrects == what


def test_without_the_extra_a_dicom_study_says_what_to_install(from_dicom, leuko, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    answer = leuko("view", from_dicom.folder, "--no-browser")
    assert_one_line_error(answer, 'pip install "leuko[dicom]"')


def test_another_scan_than_that_of_the_result_is_refused(result, tmp_path):
    flair = result.scan("flair").volume
    moved = Volume(flair.data, flair.moved(np.diag([1.0, 1, 2, 1])).affine)
    nifti.write(tmp_path / "other.nii.gz", moved)
    other = find_results(result.folder, flair=tmp_path / "other.nii.gz")[0]
    with pytest.raises(LeukoError, match=r"is not the scan that .* was made from"):
        other.images()["flair"]()


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(LeukoError, match="holds no result"):
        find_results(tmp_path)


def test_a_cohort_is_opened_by_the_names_of_its_subjects(cohort, tmp_path):
    out = cohort(b={}, a={})
    assert [result.name for result in find_results(out)] == ["a", "b"]
    with pytest.raises(LeukoError, match="one scan"):
        find_results(out, flair=tmp_path / "x.nii.gz")
