"""A file that cannot be written never takes the mask with it."""

import json

import numpy as np
import pytest

from conftest import segmented
from leuko import results
from leuko.cohort import gather
from leuko.io import nifti, outputs
from leuko.io.outputs import MASK_FILE, RECORD_FILE
from leuko.io.provenance import OUTPUT
from leuko.longitudinal import compare

SIDE = set(outputs.FILES) - {MASK_FILE, RECORD_FILE}


@pytest.fixture
def run(heads, model, tmp_path):
    """Segment a made head into a folder; the paths of its files by name."""

    def run_(**changes):
        head = heads / "head0"
        out = tmp_path / "out"
        result = segmented(head / "FLAIR.nii.gz", head / "T1.nii.gz", out, model=model, **changes)
        return result, {path.name for path in out.iterdir()}, out

    return run_


def broken(*_, **__):
    raise RuntimeError("the disk is full\nsecond line")


def scans(head):
    return ["segment", "--flair", head / "FLAIR.nii.gz", "--t1", head / "T1.nii.gz"]


def missing(result):
    """The files that the findings name as not written."""
    texts = [found.text for found in result.findings if found.code == OUTPUT]
    assert all("(the disk is full" in text for text in texts)
    return {name for name in SIDE if any(name in text for text in texts)}


IMAGES = ("wmh_prob.nii.gz", "wmh_entropy.nii.gz", "wmh_lesions.nii.gz", "t1_aligned.nii.gz")


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_cannot_be_written_is_named_and_the_rest_is_there(run, monkeypatch, name):
    write = nifti.write

    def half_written(path, volume):
        if path.name == name:
            path.write_bytes(b"half")
            broken()
        write(path, volume)

    whole = run(save_intermediate=True)[1]
    monkeypatch.setattr(nifti, "write", half_written)
    result, names, out = run(save_intermediate=True)
    assert missing(result) == {name}
    assert names == whole - {name}
    assert json.loads((out / RECORD_FILE).read_text())["findings"][0]["code"] == OUTPUT


def test_without_its_tables_a_result_is_whole_but_for_them(run, monkeypatch):
    monkeypatch.setattr(results, "write_table", broken)
    result, names, _ = run()
    assert missing(result) == {"lesions.tsv"}
    assert {MASK_FILE, "report.html"} <= names


def test_what_fails_in_the_report_is_in_the_record(run, monkeypatch):
    monkeypatch.setattr(results, "report", broken)
    result, names, out = run()
    assert missing(result) == {"report.html"}
    assert {"qc.png", MASK_FILE} <= names
    assert "report.html" in json.loads((out / RECORD_FILE).read_text())["findings"][0]["text"]


def test_a_report_can_do_without_the_picture(run, monkeypatch):
    monkeypatch.setattr(results, "sheet", broken)
    result, names, _ = run()
    assert missing(result) == {"qc.png"}
    assert "report.html" in names


def test_the_mask_itself_must_be_written(run, monkeypatch):
    monkeypatch.setattr(nifti, "write", broken)
    with pytest.raises(RuntimeError, match="the disk is full"):
        run()


def test_a_dicom_segmentation_that_fails_leaves_the_mask(run, monkeypatch):
    monkeypatch.setattr(results.inputs, "write_dicom", broken)
    result, names, _ = run()
    assert missing(result) == {"wmh.dcm"}
    assert MASK_FILE in names


def test_a_command_that_lacks_a_file_ends_with_its_own_code(
    heads, model, tmp_path, leuko, monkeypatch
):
    head = heads / "head0"
    arguments = [*scans(head), "--model", model]
    assert leuko(*arguments, "-o", tmp_path / "whole")[0] == 0
    monkeypatch.setattr(results, "report", broken)
    code, _, err = leuko(*arguments, "-o", tmp_path / "lacking")
    assert code == 3
    assert "warning: report.html could not be written (the disk is full" in err


def test_a_comparison_survives_its_page(heads, model, tmp_path, monkeypatch):
    folders = []
    for name in ("first", "second"):
        head = heads / "head0"
        segmented(head / "FLAIR.nii.gz", head / "T1.nii.gz", tmp_path / name, model=model)
        folders.append(tmp_path / name)
    monkeypatch.setattr(compare, "change_report", broken)
    monkeypatch.setattr(compare, "_meet", _same)  # phantoms are too small to register
    result = compare.compare(*folders, tmp_path / "out")
    assert [found.code for found in result.findings][1:] == [OUTPUT]  # after: the same scan twice
    assert (tmp_path / "out" / compare.CHANGES_FILE).is_file()
    assert not (tmp_path / "out" / compare.REPORT_FILE).exists()


def _same(visits, **_):
    from leuko.longitudinal.midspace import Midspace
    from leuko.preprocessing.registration import Alignment

    still = Alignment(np.eye(4), 0.0, 0.0, 1.0, 1.0, 1.0)
    grid = visits[0].flair.canonical()
    return Midspace(grid.with_data(grid.data > 0), (np.eye(4), np.eye(4)), (None, still))


def test_a_cohorts_table_survives_its_page(cohort, monkeypatch, caplog):
    monkeypatch.setattr("leuko.cohort.report.volume_histogram", broken)
    out = cohort(a={}, b={})
    (out / "report.html").write_text("of an earlier run")
    written = gather.write_batch(out)
    assert set(written) == {"table"}
    assert len((out / "wmh.tsv").read_text().splitlines()) == 3
    assert not (out / "report.html").exists()
    assert "report.html could not be written (the disk is full" in caplog.text
