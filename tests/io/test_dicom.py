"""DICOM folders in and segmentations out, on a phantom whose six sides all differ."""

import json

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from conftest import SMALL, segmented  # noqa: E402, after the check for the extra
from dicom_series import (  # noqa: E402
    SHAPE,
    STUDY,
    T1,
    grid,
    lopsided,
    marked,
    series_in,
    write_series,
)
from leuko.errors import LeukoError  # noqa: E402
from leuko.io import dicom, inputs, nifti  # noqa: E402
from leuko.io.dicom_seg import write_segmentation  # noqa: E402
from leuko.results import require_free  # noqa: E402
from phantoms import make_phantom  # noqa: E402

# --- in ---


@pytest.mark.parametrize("turned", [(0, 0, 0), (90, 0, 0), (0, 90, 10), (-8, 5, 12)])
def test_every_voxel_of_a_series_is_where_it_was(tmp_path, turned):
    made = lopsided(grid(turned))
    volume = series_in(write_series(tmp_path / "flair", made))
    world = np.random.default_rng(0).integers(0, SHAPE, size=(50, 3))
    places = world @ made.affine[:3, :3].T + made.affine[:3, 3]
    back = np.linalg.inv(volume.affine)
    found = np.rint(places @ back[:3, :3].T + back[:3, 3]).astype(int)
    assert np.array_equal(volume.data[tuple(found.T)], made.data[tuple(world.T)])
    assert sorted(volume.spacing_mm) == pytest.approx([0.9, 1.1, 3.0], abs=1e-4)


def test_grey_values_are_rescaled(tmp_path):
    made = lopsided(grid())
    folder = write_series(tmp_path / "flair", made, RescaleSlope=2, RescaleIntercept=-10)
    assert series_in(folder).data.max() == 2 * made.data.max() - 10


def shift(ds, axis, mm):
    position = list(ds.ImagePositionPatient)
    position[axis] += mm
    ds.ImagePositionPatient = position


def tilt(ds, k):
    shift(ds, 1, 0.4 * k)


def turn(ds, k):
    if k == 3:
        ds.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def enlarge(ds, k):
    if k == 3:
        ds.PixelSpacing = [2, 2]


def twice(ds, k):
    if k == 5:
        shift(ds, 2, -3)
        ds.PixelData = bytes(len(ds.PixelData))


def scramble(ds, k):
    if k == 5:
        ds.PixelData = ds.PixelData[:-40]


def colour(ds, _):
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = bytes(3 * ds.Rows * ds.Columns)


def unplaced(ds, k):
    if k == 2:
        del ds.ImageOrientationPatient


REFUSED = {
    "colours": (colour, "expected a grey-value image"),
    "no direction": (unplaced, "no valid position: ImageOrientationPatient"),
    "gantry tilt": (tilt, "tilted gantry (7.6 degrees)"),
    "a missing slice": (lambda _, k: k != 4, "has missing slices: 1, the first after slice 4"),
    "two missing slices": (
        lambda _, k: k not in {4, 7},
        "has missing slices: 2, the first after slice 4",
    ),
    "uneven slices": (lambda ds, k: shift(ds, 2, 1.0 * (k > 5)), "uneven distances"),
    "two images at one place": (twice, "several images at one position"),
    "several directions": (turn, "several orientations"),
    "several sizes": (enlarge, "several sizes"),
    "damaged pixels": (scramble, "cannot be read"),
    "few slices": (lambda _, k: k < 4, "has 4 slices"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_stack_that_is_no_regular_grid_is_refused_with_the_reason(tmp_path, case):
    change, words = REFUSED[case]
    folder = write_series(tmp_path / "flair", lopsided(grid()), change=change)
    with pytest.raises(LeukoError, match=words.replace("(", r"\(").replace(")", r"\)")) as caught:
        series_in(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_gaps_between_slices_are_named(tmp_path, caplog):
    made = lopsided(grid())
    series_in(write_series(tmp_path / "usual", made, SliceThickness=2.5))
    assert not caplog.records
    series_in(write_series(tmp_path / "wide", made, SliceThickness=2))
    assert "slices of 2 mm thickness are 3 mm apart" in caplog.text


def test_a_series_that_declares_more_than_a_head_is_refused_before_it_is_decoded(tmp_path):
    folder = write_series(tmp_path / "flair", lopsided(grid()), Rows=30000, Columns=30000)
    with pytest.raises(LeukoError, match=r"declares \d+ MB \(limit \d+ MB\); give one 3-D image"):
        series_in(folder)


def test_a_damaged_file_is_left_out_with_a_warning(tmp_path, caplog):
    folder = write_series(tmp_path / "flair", lopsided(grid()))
    first, last = (sorted(folder.iterdir())[k] for k in (0, -1))
    first.write_bytes(b"no DICOM")
    last.write_bytes(last.read_bytes()[:200])
    assert series_in(folder).data.shape[2] == SHAPE[2] - 2
    assert f"{first} is skipped: it is not a DICOM file" in caplog.text
    assert f"{last} is skipped" in caplog.text


def test_copies_of_a_slice_are_one_slice(tmp_path):
    folder = write_series(tmp_path / "flair", lopsided(grid()))
    first = min(folder.iterdir())
    (folder / "copy of it.dcm").write_bytes(first.read_bytes())
    assert series_in(folder).data.shape == SHAPE


def test_one_slice_and_a_mixed_folder_ask_for_a_folder_of_dicom(tmp_path):
    folder = write_series(tmp_path / "flair", lopsided(grid()))
    with pytest.raises(LeukoError, match=r"is a single DICOM file; give the folder"):
        inputs.read(min(folder.iterdir()))
    nifti.write(folder / "mask.nii.gz", lopsided(grid()))
    with pytest.raises(
        LeukoError, match=r"holds mask.nii.gz; give the image file, or a folder of DICOM"
    ):
        inputs.read(folder)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "note.txt").write_text("no image")
    with pytest.raises(LeukoError, match="no DICOM images"):
        series_in(tmp_path)


def test_a_folder_of_two_series_is_refused_by_name(tmp_path):
    write_series(tmp_path, lopsided(grid()))
    write_series(tmp_path, lopsided(grid()), uid="1.2.3.5", number=3, SeriesDescription="other")
    with pytest.raises(LeukoError, match=r"2 series: 2 \(t2_flair_tra, 12 files\); 3 \(other"):
        series_in(tmp_path)


# --- a study ---


def study(folder, *others):
    write_series(folder / "a", lopsided(grid()))
    write_series(folder / "b", lopsided(grid()), uid="1.2.3.5", number=3, **T1)
    for k, other in enumerate(others):
        write_series(folder / f"c{k}", lopsided(grid()), uid=f"1.2.3.6{k}", number=10 + k, **other)
    return folder


def test_flair_and_t1_are_found_in_a_study(tmp_path):
    study(
        tmp_path,
        {"SeriesDescription": "ep2d_diff_ADC", "EchoTime": 90, "InversionTime": 0},
        {"SeriesDescription": "localizer", "EchoTime": 5, "InversionTime": 0},
        {"SeriesDescription": "t2_tse_tra", "EchoTime": 100, "InversionTime": 0},
        {**T1, "SeriesDescription": "t1_mprage_sag +C", "ContrastBolusAgent": "Gd"},
    )
    flair, t1 = dicom.find_pair(tmp_path)
    assert (flair.number, t1.number) == (2, 3)


def test_a_t1_by_name_with_an_inversion_is_no_t2_flair(tmp_path):
    write_series(
        tmp_path, lopsided(grid()), SeriesDescription="T1 FLAIR", EchoTime=9, InversionTime=900
    )
    assert [s.kind for s in dicom.find_series(tmp_path)] == ["t1"]


def test_an_ambiguous_study_asks_and_takes_the_answer(tmp_path):
    study(tmp_path, {"SeriesDescription": "flair_cor"})
    with pytest.raises(LeukoError, match=r"2 series that could be the FLAIR.*--flair-series"):
        dicom.find_pair(tmp_path)
    flair, t1 = dicom.find_pair(tmp_path, flair=10)
    assert (flair.number, t1.number) == (10, 3)
    with pytest.raises(
        LeukoError, match=r"has no series 99: 2 \(t2_flair_tra, 12 files\) in .*; give the folder"
    ):
        dicom.find_pair(tmp_path, flair=99)


def test_a_study_without_a_flair_lists_what_it_has(tmp_path):
    write_series(tmp_path, lopsided(grid()), **T1)
    with pytest.raises(LeukoError, match=r"no series that is clearly a FLAIR: 2 \(t1_mprage_sag"):
        dicom.find_pair(tmp_path)


def test_series_of_one_number_from_two_studies_are_told_by_their_folders(tmp_path):
    study(tmp_path)
    write_series(tmp_path / "second", lopsided(grid()), uid="1.2.3.9", number=2)
    with pytest.raises(
        LeukoError, match=r"has 2 series 2: .* in .*[/\\]a; .* in .*[/\\]second; give the"
    ):
        dicom.find_pair(tmp_path, flair=2)


def test_a_study_without_a_t1_says_what_was_left_out(tmp_path, caplog):
    write_series(tmp_path / "a", lopsided(grid()))
    write_series(tmp_path / "b", lopsided(grid()), uid="1.2.3.5", number=4, SeriesDescription="ax",
                 EchoTime=15, InversionTime=0)  # fmt: skip
    assert dicom.find_pair(tmp_path)[1] is None
    assert "no T1 was found" in caplog.text
    assert "other series: 4 (ax, 12 files)" in caplog.text


def pair_in(tmp_path, **t1):
    folders = (
        write_series(tmp_path / "a", lopsided(grid())),
        write_series(tmp_path / "b", lopsided(grid()), uid="1.2.3.5", number=3, **T1 | t1),
    )
    return [inputs.read(folder) for folder in folders]


def test_two_patients_are_told_by_their_headers(tmp_path):
    with pytest.raises(LeukoError, match="different patient IDs"):
        inputs.require_pair(*pair_in(tmp_path, PatientID="q"))


def test_two_visits_are_told_by_their_headers(tmp_path, caplog):
    inputs.require_pair(*pair_in(tmp_path))
    assert not caplog.records
    inputs.require_pair(*pair_in(tmp_path, StudyInstanceUID="1.2.4", StudyDate="20250101"))
    assert "are of different studies (no date, 20250101)" in caplog.text


def test_a_t1_in_place_of_the_flair_is_told_by_its_header(tmp_path):
    flair, t1 = pair_in(tmp_path)
    with pytest.raises(LeukoError, match=r"series 3 .* is a T1 by its headers.* not swapped"):
        inputs.require_pair(t1, flair)


def test_results_do_not_go_into_the_folder_of_a_series(tmp_path):
    folder = write_series(tmp_path / "flair", lopsided(grid()))
    with pytest.raises(LeukoError, match="holds the scans; choose another folder"):
        require_free(folder, folder)


# --- out ---


@pytest.mark.parametrize("turned", [(0, 0, 0), (90, 0, 0), (-8, 5, 12)])
@pytest.mark.parametrize("empty", [False, True])
def test_a_segmentation_marks_the_right_the_front_and_the_top(tmp_path, turned, empty):
    made = lopsided(grid(turned))
    (series,) = dicom.find_series(write_series(tmp_path / "flair", made))
    volume = dicom.read_series(series)
    mask = volume.with_data((volume.data > (999 if empty else 150)).astype(np.uint8))
    path = tmp_path / "wmh.dcm"
    write_segmentation(path, mask, series)

    written = pydicom.dcmread(path)
    segment = written.SegmentSequence[0]
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "110702"
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert segment.AnatomicRegionSequence[0].CodeValue == "68523003"
    assert written.StudyInstanceUID == STUDY
    assert written.SeriesDescription.startswith("WMH (Leuko")
    assert np.array_equal(marked(written, volume), mask.data)


# --- from end to end ---


@pytest.mark.parametrize("how", ["a study", "two folders"])
def test_a_mask_comes_back_on_the_series_that_it_is_of(leuko, model, tmp_path, how):
    head = make_phantom(np.random.default_rng(99), **SMALL)
    write_series(tmp_path / "study" / "flair", head.flair)
    write_series(tmp_path / "study" / "t1", head.t1, uid="1.2.3.5", number=3, **T1)
    given = {
        "a study": ["--study", tmp_path / "study"],
        "two folders": ["--flair", tmp_path / "study/flair", "--t1", tmp_path / "study/t1"],
    }[how]
    code, printed, err = leuko("segment", *given, "-o", tmp_path / "out", "--model", model)
    assert code == 0, err
    assert ("FLAIR       series 2 (t2_flair_tra, 12 files)" in printed) == (how == "a study")

    segmented(
        write(head.flair, tmp_path), write(head.t1, tmp_path), tmp_path / "known", model=model
    )
    known, found = (
        nifti.read_mask(tmp_path / name / "wmh.nii.gz").canonical() for name in ("known", "out")
    )
    assert known.data.sum() > 50
    assert found.shares_grid_with(known)
    assert np.array_equal(found.data, known.data)
    flair = series_in(tmp_path / "study" / "flair")
    segmentation = pydicom.dcmread(tmp_path / "out" / "wmh.dcm")
    assert np.array_equal(flair.with_data(marked(segmentation, flair)).canonical().data, known.data)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["inputs"]["t1"]["series"] == "3 (t1_mprage_sag, 12 files)"


def write(volume, folder):
    nifti.write(folder / f"{volume.name}.nii.gz", volume)
    return folder / f"{volume.name}.nii.gz"
