"""DICOM files as archives, anonymisers and scanners leave them: read whole, or named."""

import warnings
from io import BytesIO

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from pydicom.encaps import encapsulate  # noqa: E402, after the check that it is there
from pydicom.filebase import DicomBytesIO  # noqa: E402
from pydicom.filewriter import write_dataset  # noqa: E402

from dicom_series import (  # noqa: E402
    SHAPE,
    T1,
    grid,
    lopsided,
    series_in,
    write_enhanced,
    write_series,
)
from leuko.errors import LeukoError, in_one_line  # noqa: E402
from leuko.io import dicom, dicom_slices  # noqa: E402

MADE = lopsided(grid())


def rewritten(folder, rewrite):
    """Every file of a folder replaced by what `rewrite(data set)` gives, bytes."""
    for path in folder.iterdir():
        path.write_bytes(rewrite(pydicom.dcmread(path)))
    return folder


# --- identifiers ---


@pytest.mark.parametrize("uid", ["1.2.3.99", "", None])
def test_slices_without_a_uid_of_their_own_are_all_kept_and_it_is_said(tmp_path, caplog, uid):
    def change(ds, _):
        ds.SOPInstanceUID = uid
        if uid is None:
            del ds.SOPInstanceUID

    folder = write_series(tmp_path / "flair", MADE, change=change)
    assert np.array_equal(series_in(folder).data, MADE.data)
    assert "12 of 12 slices have no unique SOPInstanceUID; all are kept" in caplog.text


@pytest.mark.parametrize("uid", ["same UIDs", "other UIDs"])
def test_copies_are_left_out_and_counted(tmp_path, caplog, uid):
    write_series(tmp_path / "flair" / "a", MADE)
    other = {} if uid == "same UIDs" else {"uid": "1.2.9", "SeriesInstanceUID": "1.2.3.4"}
    write_series(tmp_path / "flair" / "b", MADE, **other)
    assert np.array_equal(series_in(tmp_path / "flair").data, MADE.data)
    assert "12 images are copies of others (same position and pixels)" in caplog.text
    assert "SOPInstanceUID" not in caplog.text


def test_two_images_of_one_uid_at_one_place_are_no_copies(tmp_path):
    write_series(tmp_path / "flair" / "a", MADE)
    write_series(tmp_path / "flair" / "b", MADE.with_data(MADE.data + 1))
    with pytest.raises(LeukoError, match="several images at one position"):
        series_in(tmp_path / "flair")


def test_two_times_in_one_enhanced_file_are_refused(tmp_path):
    order = [*range(12), *range(12)]
    folder = write_enhanced(tmp_path / "flair", MADE, order=order)
    image = pydicom.dcmread(next(folder.iterdir()))
    half = len(image.PixelData) // 2
    image.PixelData = image.PixelData[:half] + bytes(half)
    image.save_as(image.filename)
    with pytest.raises(LeukoError, match="several images at one position"):
        series_in(folder)


@pytest.mark.parametrize("uid", ["1.2.3.4", "", None])
def test_two_series_of_one_uid_or_none_are_two_series(tmp_path, uid):
    write_series(tmp_path / "a", MADE, SeriesInstanceUID=uid)
    write_series(tmp_path / "b", MADE, uid="1.2.5", number=3, **T1 | {"SeriesInstanceUID": uid})
    flair, t1 = dicom.find_pair(tmp_path)
    assert (flair.number, t1.number) == (2, 3)
    assert len(flair.paths) == len(t1.paths) == 12


@pytest.mark.parametrize("number", [None, "", 0, 1])
@pytest.mark.parametrize("uid", ["1.2.3.4", ""])
def test_series_of_one_uid_and_one_number_are_told_by_their_descriptions(tmp_path, uid, number):
    elements = {"SeriesInstanceUID": uid, "SeriesNumber": number}
    write_series(tmp_path, MADE, **elements)
    write_series(tmp_path, MADE, uid="1.2.5", **T1 | elements)
    flair, t1 = dicom.find_pair(tmp_path)
    assert (flair.description, t1.description) == ("t2_flair_tra", "t1_mprage_sag")
    assert len(flair.paths) == len(t1.paths) == 12


def test_of_two_series_with_one_number_the_kind_decides(tmp_path):
    write_series(tmp_path / "a", MADE)
    write_series(tmp_path / "b", MADE, uid="1.2.5", **T1)
    flair, t1 = dicom.find_pair(tmp_path, flair=2, t1=2)
    assert (flair.description, t1.description) == ("t2_flair_tra", "t1_mprage_sag")


# --- files ---


def without_meta(implicit, little):
    def rewrite(ds):
        raw = DicomBytesIO()
        raw.is_implicit_VR, raw.is_little_endian = implicit, little
        if not little:
            ds.PixelData = np.frombuffer(ds.PixelData, "<i2").astype(">i2").tobytes()
        del ds.file_meta
        ds = pydicom.Dataset(ds)
        write_dataset(raw, ds)
        return raw.getvalue()

    return rewrite


def without_preamble(ds):
    whole = BytesIO()
    ds.save_as(whole, enforce_file_format=True)
    return whole.getvalue()[132:]


def without_meta_after_preamble(ds):
    return bytes(128) + b"DICM" + without_meta(implicit=True, little=True)(ds)


def deflated(ds):
    ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    whole = BytesIO()
    ds.save_as(whole, enforce_file_format=True)
    return whole.getvalue()


FORMS = {
    "no meta, implicit": without_meta(implicit=True, little=True),
    "no meta, explicit": without_meta(implicit=False, little=True),
    "no meta, big endian": without_meta(implicit=False, little=False),
    "no preamble": without_preamble,
    "preamble without meta": without_meta_after_preamble,
    "deflated": deflated,
}


@pytest.mark.parametrize("ending", [".dcm", ""])
@pytest.mark.parametrize("form", FORMS)
def test_files_in_every_form_of_dicom_are_read(tmp_path, form, ending, caplog):
    folder = rewritten(write_series(tmp_path / "flair", MADE), FORMS[form])
    for path in list(folder.iterdir()):
        path.rename(path.with_suffix("").with_name(path.stem + ending))
    assert np.array_equal(series_in(folder).data, MADE.data)
    assert not caplog.records


def test_a_deflated_file_that_unpacks_beyond_measure_is_left_out(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(dicom_slices, "LARGEST_BYTES", 1 << 20)
    folder = write_series(tmp_path / "flair", MADE)
    bomb = pydicom.dcmread(min(folder.iterdir()))
    bomb.TextValue = "x" * (2 << 20)
    min(folder.iterdir()).write_bytes(deflated(bomb))
    assert series_in(folder).data.shape[2] == SHAPE[2] - 1
    assert "unpacks to over 1 MB" in caplog.text


def test_files_that_only_look_like_dicom_are_named(tmp_path, caplog):
    folder = write_series(tmp_path / "flair", MADE)
    (folder / "note.dcm").write_text("no image")
    (folder / "empty.dcm").touch()
    (folder / "note.txt").write_text("no image")
    assert series_in(folder).data.shape == SHAPE
    assert [record.getMessage().split(" is skipped")[0] for record in caplog.records] == [
        str(folder / "empty.dcm"),
        str(folder / "note.dcm"),
    ]


def test_dicom_without_a_position_is_called_so(tmp_path, caplog):
    def unplaced(ds, k):
        if k > 9:
            del ds.ImagePositionPatient

    folder = write_series(tmp_path / "some", MADE, change=unplaced)
    assert series_in(folder).data.shape[2] == 10
    assert "2 more files have no image position and are skipped" in caplog.text
    folder = write_series(tmp_path / "all", MADE, ImagePositionPatient=None)
    with pytest.raises(LeukoError, match="holds 12 DICOM files without an image position"):
        series_in(folder)


def test_a_series_wholly_without_positions_is_named_beside_others(tmp_path, caplog):
    write_series(tmp_path / "flair", MADE, ImagePositionPatient=None)
    write_series(tmp_path / "t1", MADE, uid="1.2.5", number=3, **T1)
    with pytest.raises(LeukoError, match="no series that is clearly a FLAIR"):
        dicom.find_pair(tmp_path)
    (record,) = caplog.records
    assert record.getMessage() == (
        "series 2 (t2_flair_tra, 12 files): its files have no image position; it is skipped"
    )


# --- links ---


def test_linked_folders_and_files_are_read_once(tmp_path, caplog):
    folder = write_series(tmp_path / "archive" / "flair", MADE)
    study = tmp_path / "study"
    study.mkdir()
    (study / "series").symlink_to(folder)
    (study / "again").symlink_to(folder)
    (study / "loop").symlink_to(study)
    (folder / "up").symlink_to(tmp_path)
    (study / "slice.dcm").symlink_to(min(folder.glob("*.dcm")))
    assert np.array_equal(series_in(study).data, MADE.data)
    assert not caplog.records


@pytest.mark.parametrize("target", ["missing", "itself"])
def test_links_without_a_target_are_counted(tmp_path, caplog, target):
    """As git-annex leaves files that were not fetched: the stack without its end looks whole."""
    folder = write_series(tmp_path / "flair", MADE)
    files = sorted(folder.iterdir())
    for path in files[:3]:
        path.unlink()
        path.symlink_to(path.name if target == "itself" else "../.git/annex/objects/x")
    assert series_in(folder).data.shape[2] == SHAPE[2] - 3
    (record,) = caplog.records
    assert f"holds 3 links without a target, the first is {files[0].name}" in record.getMessage()


# --- numbers as text ---


@pytest.mark.parametrize("element", ["PixelSpacing", "ImageOrientationPatient"])
def test_a_sixth_digit_makes_no_other_size_or_direction(tmp_path, element):
    def round_off(ds, k):
        numbers = [float(number) for number in ds[element].value]
        setattr(ds, element, [f"{number + 1e-6 * (k % 2):.6f}" for number in numbers])

    folder = write_series(tmp_path / "flair", lopsided(grid((-8, 5, 12))), change=round_off)
    assert series_in(folder).data.shape == SHAPE


def test_directions_that_are_not_at_right_angles_are_refused(tmp_path):
    folder = write_series(tmp_path / "flair", MADE, ImageOrientationPatient=[1, 0, 0, 0.1, 1, 0])
    with pytest.raises(LeukoError, match="does not hold perpendicular unit vectors"):
        series_in(folder)


# --- what a series is ---

GE = "BRAIN FLAIR ROUTINE", "BRAIN WITH DIFFUSION", "BRAIN T1 + C", "MRA HEAD AND FLAIR"
NO_TIMES = {"EchoTime": None, "InversionTime": None}


@pytest.mark.parametrize("protocol", GE)
def test_the_name_of_a_whole_examination_tells_nothing_about_a_series(tmp_path, protocol):
    named = {
        2: {"SeriesDescription": "Ax T2 FLAIR"},
        3: {"SeriesDescription": "Ax T2 FRFSE", "EchoTime": 100, "InversionTime": None},
        4: {"SeriesDescription": "Sag CUBE", "EchoTime": 90, "InversionTime": None},
        5: {"SeriesDescription": "Sag BRAVO", "EchoTime": 3, "InversionTime": 450},
        6: {"SeriesDescription": "Ax SWAN", "EchoTime": 24, "InversionTime": None},
    }
    for number, elements in named.items():
        write_series(tmp_path / str(number), MADE, uid=f"1.2.3.{number}", number=number,
                     ProtocolName=protocol, **elements)  # fmt: skip
    flair, t1 = dicom.find_pair(tmp_path)
    assert (flair.number, t1.number) == (2, 5)


@pytest.mark.parametrize(
    ("elements", "kind"),
    [
        ({"SeriesDescription": "Ax T2 FRFSE", "ProtocolName": "BRAIN FLAIR"}, "other"),
        ({"SeriesDescription": "", "ProtocolName": "t2_flair"}, "flair"),
        ({"SeriesDescription": "AX", "ProtocolName": "t2_flair"}, "flair"),
        ({"SeriesDescription": "AX", "SequenceName": "*tfl3d1"}, "t1"),
        ({"SeriesDescription": "", "ProtocolName": "DIFFUSION"}, "other"),
    ],
)
def test_the_description_decides_and_the_protocol_where_it_says_nothing(tmp_path, elements, kind):
    (series,) = dicom.find_series(write_series(tmp_path, MADE, **NO_TIMES | elements))
    assert series.kind == kind


OF_OTHER_KINDS = """
    3-plane loc; 3PLANE_LOC; t1_fl2d_loc; Loc; LOC_TRA; loca_3plans; localizer; Localisers; T1
    LOCALIZER; PlaneLoc; AAHead_Scout; AAHScout; scout; SmartSurvey; SURVEY_MST; AX_DWI; AxDWI;
    DWI_b1000; dwi3d; isoDWI; DWIBS; ep2d_diff_3scan_trace_p2; ep2d_diff_mddw_20_ADC;
    ep2d_diff_TRACEW; DIFFUSION; diffusion-weighted; Diffusie; difusion; ADC; eADC; dADC (10^-6
    mm2/s); ADCmap; ADC (mm2/s); Trace; SWI; SWIp; t2_swi_tra; SWI3D; mIP_Images(SW); MIP;
    MinIP; tof_MIPs; phase; Phase_Images; multiphase; PWI; ep2d_perf_p2; Perfusion; ASL; pCASL;
    3DASL; tgse_pasl; bold; ep2d_bold; fMRI; rsfMRI; rfMRI_REST; TOF; 3DTOF; tof_fl3d; TOF3D;
    angio; MRAngiography; MRA; CE-MRA; 3D MRA
"""


@pytest.mark.parametrize("name", [name.strip() for name in OF_OTHER_KINDS.split(";")])
def test_names_of_other_sequences_are_known_in_their_usual_forms(tmp_path, name):
    """Though echo and inversion times are those of a FLAIR."""
    (series,) = dicom.find_series(write_series(tmp_path, MADE, SeriesDescription=name))
    assert series.kind == "other"


@pytest.mark.parametrize(
    "name",
    [
        "3D FLAIR bloc A", "FLAIR different TE", "FLAIR diffuse glioma", "FLAIR difficult",
        "FLAIR swirl", "FLAIR Swiss", "FLAIR performed twice", "superfast FLAIR", "FLAIR traced",
        "FLAIR after tracer", "FLAIR block 2", "FLAIR location 3", "FLAIR local shim",
        "FLAIR stereotactic localization", "FLAIR phased array", "FLAIR phase enc RL",
        "FLAIR headcoil", "FLAIR autofocus", "FLAIR hemangioma", "FLAIR angioma", "FLAIR bolder",
        "FLAIR kobold", "FLAIR Maslow", "t2_space_dark-fluid_sag_iso", "FLAIR sandwich",
        "FLAIR velocity", "FLAIR Umrah", "FLAIR mipped",
    ],
)  # fmt: skip
def test_a_flair_whose_name_holds_such_letters_within_other_words_is_a_flair(tmp_path, name):
    (series,) = dicom.find_series(write_series(tmp_path, MADE, SeriesDescription=name))
    assert series.kind == "flair"


@pytest.mark.parametrize(
    ("elements", "kind"),
    [
        ({"EchoTime": 300, "InversionTime": 2200}, "flair"),
        ({"EchoTime": 300, "InversionTime": [2200, 1]}, "flair"),
        ({"EchoTime": 90, "InversionTime": None}, "other"),
        (
            {"EchoTime": 90, "InversionTime": None, "AcquisitionContrast": "FLUID_ATTENUATED"},
            "flair",
        ),
        ({"EchoTime": 3, "InversionTime": 900, "PulseSequenceName": "*tfl3d1_16ns"}, "t1"),
        ({"EchoTime": 3, "InversionTime": 900, "AcquisitionContrast": "T1"}, "t1"),
    ],
)
def test_an_enhanced_header_tells_what_a_series_is(tmp_path, elements, kind):
    named = {"SeriesDescription": "3D_Brain_VIEW", **elements}
    (series,) = dicom.find_series(write_enhanced(tmp_path, MADE, **named))
    assert series.kind == kind


# --- compressed ---


def test_without_a_decoder_the_message_says_in_full_what_to_install(tmp_path, monkeypatch):
    def squeezed(ds):
        ds.PixelData = encapsulate([b"\xff\xd8\xff\xc3" + bytes(200)])
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
        whole = BytesIO()
        ds.save_as(whole, enforce_file_format=True)
        return whole.getvalue()

    def no_decoder(_):
        raise NotImplementedError

    monkeypatch.setattr(dicom_slices, "get_decoder", no_decoder)
    folder = rewritten(write_series(tmp_path / "flair", MADE), squeezed)
    with pytest.raises(LeukoError, match=r"JPEG Lossless.*pip install .*python-gdcm.*--raw$"):
        series_in(folder)


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless"])
def test_compressed_pixels_are_decoded(tmp_path, syntax):
    pytest.importorskip("highdicom")

    def compressed(ds):
        ds.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)
        whole = BytesIO()
        ds.save_as(whole, enforce_file_format=True)
        return whole.getvalue()

    folder = rewritten(write_series(tmp_path / "flair", MADE), compressed)
    assert np.array_equal(series_in(folder).data, MADE.data)


@pytest.mark.parametrize(
    "syntax", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEG2000Lossless"]
)
def test_the_usual_compressions_of_archives_are_decoded(tmp_path, syntax):
    with warnings.catch_warnings(action="ignore"):  # of swig, at its import
        gdcm = pytest.importorskip("gdcm")
    folder = write_series(tmp_path / "flair", MADE)
    for path in folder.iterdir():
        reader, change, writer = (
            gdcm.ImageReader(),
            gdcm.ImageChangeTransferSyntax(),
            gdcm.ImageWriter(),
        )
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed
    assert np.array_equal(series_in(folder).data, MADE.data)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            "all plugins fail:\n\tgdcm - is missing\n\n\tpylibjpeg - too",
            "all plugins fail: gdcm - is missing; pylibjpeg - too",
        ),
        ("one line", "one line"),
        ("", "ValueError"),
        ("\n", "ValueError"),
    ],
)
def test_what_a_library_says_is_told_in_one_line_and_in_full(said, line):
    assert in_one_line(ValueError(said)) == line
