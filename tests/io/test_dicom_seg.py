"""A DICOM segmentation marks what the mask marks, whatever the header of its series says."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from dicom_series import SHAPE, grid, lopsided, marked, write_enhanced, write_series  # noqa: E402
from leuko.errors import LeukoError  # noqa: E402
from leuko.io import dicom  # noqa: E402, after the check that its libraries are there
from leuko.io.dicom_seg import write_segmentation  # noqa: E402
from leuko.io.record import Edited  # noqa: E402
from leuko.volume import Volume  # noqa: E402

ORIENTATIONS = Rotation.create_group("O").as_matrix().round()
ORDERS = {
    "upwards": list(range(12)),
    "downwards": list(range(11, -1, -1)),
    "interleaved": [*range(0, 12, 2), *range(1, 12, 2)],
    "shuffled": [7, 2, 11, 0, 5, 9, 1, 10, 3, 8, 6, 4],
}


def turned(orientation):
    affine = grid()
    affine[:3, :3] = orientation @ affine[:3, :3]
    return affine


def segmented(folder, mask=None):
    """The scan, its mask and the segmentation that was written of it."""
    series = dicom.the_series(folder)
    volume = dicom.read_series(series)
    if mask is None:
        mask = volume.data > 150
    path = folder.with_suffix(".seg.dcm")
    write_segmentation(path, volume.with_data(mask.astype(np.uint8)), series)
    return volume, mask, pydicom.dcmread(path)


# --- in place ---


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=range(24))
def test_of_an_enhanced_series_it_marks_the_mask_in_every_order_of_frames(
    tmp_path, orientation, order
):
    made = lopsided(turned(orientation))
    volume, mask, written = segmented(write_enhanced(tmp_path / "flair", made, order=order))
    assert np.array_equal(volume.data, made.data[:, :, :: volume_step(volume, made)])
    assert np.array_equal(marked(written, volume), mask)


def volume_step(volume, made):
    """-1 where the normal of the slices runs against the third axis of `made`."""
    return round(float(np.sign(volume.affine[:3, 2] @ made.affine[:3, 2])))


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=range(24))
def test_of_a_classic_series_it_marks_the_mask(tmp_path, orientation):
    folder = write_series(tmp_path / "flair", lopsided(turned(orientation)))
    volume, mask, written = segmented(folder)
    assert np.array_equal(marked(written, volume), mask)


def test_of_a_series_in_two_enhanced_files_it_marks_the_mask(tmp_path):
    made = lopsided(grid((-8, 5, 12)))
    for part, uid in ((range(0, 12, 2), "1.2.3.4.1"), (range(1, 12, 2), "1.2.3.4.2")):
        same = {"SeriesInstanceUID": "1.2.3.4"}
        write_enhanced(tmp_path / "flair", made, order=list(part), uid=uid, **same)
    volume, mask, written = segmented(tmp_path / "flair")
    assert np.array_equal(marked(written, volume), mask)
    assert len(written.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 2


def test_other_software_reads_it_as_a_volume_in_place(tmp_path):
    made = lopsided(grid((-8, 5, 12)))
    folder = write_enhanced(tmp_path / "flair", made, order=ORDERS["shuffled"])
    volume, mask, _ = segmented(folder)
    read = highdicom.seg.segread(folder.with_suffix(".seg.dcm")).get_volume(combine_segments=True)
    centres = np.argwhere(read.array) @ read.affine[:3, :3].T + read.affine[:3, 3]
    back = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine)
    voxels = np.rint(centres @ back[:3, :3].T + back[:3, 3]).astype(int)
    assert sorted(map(tuple, voxels)) == sorted(map(tuple, np.argwhere(mask)))


@pytest.mark.parametrize("write", [write_series, write_enhanced])
def test_each_frame_names_the_image_at_its_place(tmp_path, write):
    folder = write(tmp_path / "flair", lopsided(grid((-8, 5, 12))))
    places = {}
    for path in folder.iterdir():
        image = pydicom.dcmread(path)
        frames = image.get("PerFrameFunctionalGroupsSequence")
        for k, item in enumerate(frames or [None], start=1):
            place = item.PlanePositionSequence[0] if frames else image
            key = image.SOPInstanceUID, image.SOPClassUID, k if frames else None
            places[key] = np.array(place.ImagePositionPatient, float)
    _, _, written = segmented(folder)
    for item in written.PerFrameFunctionalGroupsSequence:
        (named,) = item.DerivationImageSequence[0].SourceImageSequence
        key = (named.ReferencedSOPInstanceUID, named.ReferencedSOPClassUID,
               named.get("ReferencedFrameNumber"))  # fmt: skip
        position = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        assert np.allclose(position, places[key], atol=1e-6)


@pytest.mark.parametrize("write", [write_series, write_enhanced])
@pytest.mark.parametrize("slices", [(), (0,), (11,), (3, 8)])
def test_few_marked_slices_and_none_are_marked_as_they_are(tmp_path, write, slices):
    folder = write(tmp_path / "flair", lopsided(grid()))
    mask = np.zeros(SHAPE, bool)
    mask[4, 7, list(slices)] = True
    volume, _, written = segmented(folder, mask)
    assert np.array_equal(marked(written, volume), mask)


@pytest.mark.parametrize("off", [(0, 0, 1), (1, 0, 0)])
def test_a_mask_on_another_grid_is_refused_and_nothing_is_written(tmp_path, off):
    folder = write_series(tmp_path / "flair", lopsided(grid()))
    series = dicom.the_series(folder)
    volume = dicom.read_series(series)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ off
    mask = Volume((volume.data > 150).astype(np.uint8), affine)
    with pytest.raises(LeukoError, match="segmentation"):
        write_segmentation(tmp_path / "seg.dcm", mask, series)
    assert not (tmp_path / "seg.dcm").exists()


def test_a_series_that_has_lost_a_file_since_is_refused(tmp_path):
    folder = write_series(tmp_path / "flair", lopsided(grid()))
    series = dicom.the_series(folder)
    mask = dicom.read_series(series)
    series.paths[3].unlink()
    with pytest.raises(LeukoError, match=r"series 2 .* cannot be read"):
        write_segmentation(tmp_path / "seg.dcm", mask, series)


# --- who made it ---

EDITED = Edited(
    editor="Reader^Anna", saved="2026-11-29", automatic_ml=1.0, added_ml=0.5, removed_ml=0.0
)


@pytest.mark.parametrize(
    ("is_given", "edited", "kind", "said"),
    [
        (False, None, "AUTOMATIC", r"WMH \(Leuko [\w.+]+\)"),
        (False, EDITED, "SEMIAUTOMATIC", r"WMH \(Leuko [\w.+]+, corrected by a reader\)"),
        (True, None, "MANUAL", r"WMH \(given mask\)"),
        (True, EDITED, "MANUAL", r"WMH \(given mask, corrected by a reader\)"),
    ],
)
def test_it_says_who_made_the_mask(tmp_path, is_given, edited, kind, said):
    series = dicom.the_series(write_series(tmp_path / "flair", lopsided(grid())))
    mask = dicom.read_series(series)
    write_segmentation(tmp_path / "seg.dcm", mask, series, is_given=is_given, edited=edited)
    written = pydicom.dcmread(tmp_path / "seg.dcm")
    segment = written.SegmentSequence[0]
    assert segment.SegmentAlgorithmType == kind
    assert segment.get("SegmentAlgorithmName") == (None if is_given else "Leuko")
    assert ("SegmentationAlgorithmIdentificationSequence" in segment) == (not is_given)
    assert re.fullmatch(said, written.SeriesDescription)
    assert written.get("ContentCreatorName", "") == ("Reader^Anna" if edited else "")


@pytest.mark.parametrize("name", ["", "a\\b", "x" * 90, "tab\there", "a=b=c=d"])
def test_a_reader_whose_name_dicom_does_not_allow_is_not_named(tmp_path, name):
    series = dicom.the_series(write_series(tmp_path / "flair", lopsided(grid())))
    mask, path = dicom.read_series(series), tmp_path / "seg.dcm"
    write_segmentation(path, mask, series, edited=replace(EDITED, editor=name))
    assert "ContentCreatorName" not in pydicom.dcmread(path)


# --- headers ---

NO = object()  # the element is deleted
ODD = {
    "no birth date": {"PatientBirthDate": NO},
    "a year of birth": {"PatientBirthDate": "1950"},
    "a day that does not exist": {"PatientBirthDate": "20230231"},
    "a span of birth dates": {"PatientBirthDate": "19500101-19510101"},
    "a word as birth date": {"PatientBirthDate": "anonymous"},
    "a word as sex": {"PatientSex": "male"},
    "two sexes": {"PatientSex": ["M", "F"]},
    "no name": {"PatientName": NO},
    "a name too long": {"PatientName": "x" * 90},
    "a name of four groups": {"PatientName": "a=b=c=d"},
    "no ID": {"PatientID": NO},
    "an ID too long": {"PatientID": "x" * 90},
    "two IDs": {"PatientID": ["p", "q"]},
    "no study": dict.fromkeys(("StudyID", "StudyDate", "StudyTime", "AccessionNumber"), NO),
    "an odd study": {"StudyID": "x" * 40, "StudyDate": "01/02/2020", "StudyTime": "25:61",
                     "AccessionNumber": "x" * 40},
    "no referring physician": {"ReferringPhysicianName": NO},
    "an age in words": {"PatientAge": "old"},
    "no frame of reference": {"FrameOfReferenceUID": NO, "PositionReferenceIndicator": NO},
    "an empty frame of reference": {"FrameOfReferenceUID": ""},
    "a frame of reference that is no UID": {"FrameOfReferenceUID": "scanner"},
    "no study UID": {"StudyInstanceUID": NO},
    "an invalid study UID": {"StudyInstanceUID": "1.2.03.x"},
    "no series UID": {"SeriesInstanceUID": NO},
    "no image UIDs": {"SOPInstanceUID": NO},
    "empty image UIDs": {"SOPInstanceUID": ""},
    "one image UID": {"SOPInstanceUID": "1.2.3.99"},
    "image UIDs too long": {"SOPInstanceUID": "1." + "2" * 70},
    "no class": {"SOPClassUID": NO},
    "a class of its own": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
    "a class that is no UID": {"SOPClassUID": "MR"},
    "no thickness": {"SliceThickness": NO},
    "a thickness of zero": {"SliceThickness": 0},
    "no modality": {"Modality": NO},
    "a modality in words": {"Modality": "magnetic resonance"},
    "no series number": {"SeriesNumber": NO},
    "a negative series number": {"SeriesNumber": -5},
    "a description too long": {"SeriesDescription": "flair " * 40},
    "no manufacturer": {"Manufacturer": NO},
    "lossy in words": {"LossyImageCompression": "yes"},
    "an empty slope": {"RescaleSlope": "", "RescaleIntercept": ""},
    "no samples": {"SamplesPerPixel": NO, "PhotometricInterpretation": NO},
}  # fmt: skip
CHARACTER_SETS = {
    "Japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    "Korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "Latin 1 with extensions": ("ISO 2022 IR 100", "Müller^Jörg"),
    "Cyrillic": ("ISO_IR 144", "Иванов^Иван"),
    "Greek": ("ISO_IR 126", "Διονυσιος"),
    "Chinese": ("GB18030", "Wang^XiaoDong=王^小东"),
    "UTF-8": ("ISO_IR 192", "Wang^XiaoDong=王^小東"),
}


@pytest.fixture
def _any_header():
    """Lets pydicom write what the standard does not allow."""
    mode = pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    with warnings.catch_warnings(action="ignore"):
        yield
    pydicom.config.settings.writing_validation_mode = mode


def change(elements):
    def changed(ds, _):
        for name, value in elements.items():
            if value is NO:
                del ds[name]
            else:
                setattr(ds, name, value)

    return changed


TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
UIDS = "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"


def require_valid(written, monkeypatch):
    """Every value is one that its representation allows, and what must be there is there."""
    monkeypatch.setattr(pydicom.config.settings, "_reading_validation_mode", pydicom.config.RAISE)
    fresh = pydicom.dcmread(written.filename)
    assert len(list(fresh.iterall())) > 50  # to iterate is to convert, which raises
    assert all(name in fresh for name in TYPE_2)
    assert fresh.PatientSex in {None, "", "M", "F", "O"}
    assert all(fresh[name].value.is_valid for name in UIDS)
    measures = fresh.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness > 0


@pytest.mark.usefixtures("_any_header")
@pytest.mark.parametrize("write", [write_series, write_enhanced])
@pytest.mark.parametrize("case", ODD)
def test_an_odd_header_keeps_neither_the_scan_nor_its_segmentation(
    tmp_path, case, write, monkeypatch
):
    made = lopsided(grid())
    volume, mask, written = segmented(write(tmp_path / "flair", made, change=change(ODD[case])))
    assert np.array_equal(volume.data, made.data)
    assert np.array_equal(marked(written, volume), mask)
    require_valid(written, monkeypatch)


@pytest.mark.parametrize("name", ["SliceThickness", "SeriesNumber", "EchoTime", "InversionTime"])
@pytest.mark.parametrize("words", [b"three", b"3a", b"", b"1\\2", b"\xff\xfe", b"nan"])
def test_words_in_place_of_a_number_are_no_obstacle(tmp_path, name, words, monkeypatch):
    made = lopsided(grid())
    folder = write_series(tmp_path / "flair", made, **{name: 987654})
    for path in folder.iterdir():
        content = path.read_bytes()
        assert content.count(b"987654") == 1
        path.write_bytes(content.replace(b"987654", words.ljust(6)))
    volume, mask, written = segmented(folder)
    assert np.array_equal(volume.data, made.data)
    assert np.array_equal(marked(written, volume), mask)
    require_valid(written, monkeypatch)


@pytest.mark.usefixtures("_any_header")
@pytest.mark.parametrize("case", CHARACTER_SETS)
def test_a_name_in_any_script_is_kept(tmp_path, case, monkeypatch):
    encoding, name = CHARACTER_SETS[case]
    elements = {"SpecificCharacterSet": encoding, "PatientName": name}
    _, _, written = segmented(
        write_series(tmp_path / "flair", lopsided(grid()), change=change(elements))
    )
    assert str(written.PatientName) == name
    require_valid(written, monkeypatch)


@pytest.mark.usefixtures("_any_header")
@pytest.mark.parametrize("encoding", ["ISO_IR 999", "utf8", "ISO 2022 IR 149", ["", ""], ""])
def test_an_unknown_character_set_is_no_obstacle(tmp_path, encoding, monkeypatch):
    folder = write_series(tmp_path / "flair", lopsided(grid()))
    for path in folder.iterdir():
        image = pydicom.dcmread(path)
        image.add_new("PatientName", "UN", "Müller".encode("latin-1"))
        image.add_new("SpecificCharacterSet", "CS", encoding)
        image.save_as(path)
    volume, mask, written = segmented(folder)
    assert np.array_equal(marked(written, volume), mask)
    require_valid(written, monkeypatch)


@pytest.mark.usefixtures("_any_header")
def test_identifiers_that_had_to_be_made_are_named(tmp_path, caplog):
    elements = {"StudyInstanceUID": NO, "FrameOfReferenceUID": NO}
    folder = write_series(tmp_path / "flair", lopsided(grid()), change=change(elements))
    _, _, written = segmented(folder)
    assert "has no valid StudyInstanceUID and no valid FrameOfReferenceUID" in caplog.text
    assert "SourceImageSequence" not in written
