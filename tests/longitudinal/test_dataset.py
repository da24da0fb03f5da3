"""leuko bids ... longitudinal: the sessions of each participant, compared and resumed."""

import csv
import json
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cohorts import command
from conftest import SMALL, assert_one_line_error
from leuko.cohort.derivatives import arrange
from leuko.cohort.worker import Limits
from leuko.errors import LeukoError
from leuko.io.outputs import RECORD_FILE
from leuko.io.record import RunRecord
from leuko.longitudinal.compare import COMPARISON_FILE, files
from leuko.longitudinal.dataset import COLUMNS, Series, find_series
from leuko.model.runtime import load
from leuko.view.editing import find_results
from phantoms import SMALL_MODEL, make_phantom
from visits import HERE, THERE, motion, run_of, spot

BRAIN = make_phantom(np.random.default_rng(3), **SMALL | {"lesions": 0}).flair
LIMITS = Limits(4.0, 600.0, 1)


def derive(root, subject, sessions, entities=""):
    """Results of sessions of one participant; a second lesion is there from the second one on."""
    for k, session in enumerate(sessions):
        stem = f"sub-{subject}_ses-{session}{entities}"
        raw = root / "raw" / f"sub-{subject}" / f"ses-{session}" / "anat"
        mask = spot(BRAIN, HERE, 11) | (spot(BRAIN, THERE, 11) if k else False)
        scan = replace(BRAIN, affine=motion((0, 0, 0), (0.4 * k, 0, 0)) @ BRAIN.affine)
        raw.mkdir(parents=True, exist_ok=True)
        run = run_of(root / "runs" / stem, scan, mask)
        flair = raw / f"{stem}_FLAIR.nii.gz"
        shutil.move(run / "flair.nii.gz", flair)
        record = RunRecord.read(run / "run.json")
        was = replace(record.inputs.flair, path=str(flair))
        replace(record, inputs=replace(record.inputs, flair=was)).write(run / "run.json")
        anat = root / "out" / f"sub-{subject}" / f"ses-{session}" / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        source = f"bids:raw:{flair.relative_to(root / 'raw').as_posix()}"
        arrange(run, anat, f"{stem}_space-FLAIR_", [source])


def table(out):
    with (out / "longitudinal.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def written(out):
    return {path.parent.parent.name: path.stat().st_mtime_ns for path in out.rglob(COMPARISON_FILE)}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    derive(root, "01", ["1", "10", "2"])
    derive(root, "02", ["1", "2"])
    derive(root, "03", ["1"])
    return root


@pytest.fixture(scope="module")
def compared(cohort):
    """The cohort after the level longitudinal, and what it printed."""
    arguments = command("bids", cohort / "raw", cohort / "out", "longitudinal", "--nthreads", 1)
    return cohort, subprocess.run(arguments, capture_output=True, text=True, check=False)


def test_the_sessions_of_each_participant_are_compared_in_order(compared):
    cohort, ended = compared
    assert ended.returncode == 0, ended.stderr
    rows = {(row["participant_id"], row["baseline_session"]): row for row in table(cohort / "out")}
    assert list(rows) == [("sub-01", "ses-1"), ("sub-01", "ses-2"), ("sub-02", "ses-1")]
    assert rows["sub-02", "ses-1"]["new"] == "1"
    assert rows["sub-02", "ses-1"]["is_beyond_floor"] == "yes"
    folder = cohort / "out" / "sub-01" / "longitudinal"
    assert {path.name for path in folder.iterdir()} == set(files(3))
    record = json.loads((folder / "compare.json").read_text())
    assert [visit["label"] for visit in record["inputs"].values()] == ["ses-1", "ses-2", "ses-10"]
    assert (cohort / "out" / rows["sub-01", "ses-1"]["report"]).is_file()
    assert "done        2" in ended.stdout
    assert "sub-03 is left out: it has results of fewer than two sessions" in ended.stderr


def test_each_column_of_the_table_is_explained(compared):
    cohort, _ = compared
    about = json.loads((cohort / "out" / "longitudinal.json").read_text())
    assert list(about) == list(table(cohort / "out")[0]) == list(COLUMNS)
    assert about["floor_ml"]["Units"] == "mL"


def test_what_is_done_stays_and_what_changed_is_compared_again(compared, leuko):
    cohort, _ = compared
    out, before = cohort / "out", written(cohort / "out")
    arguments = ("bids", cohort / "raw", out, "longitudinal")
    code, said, err = leuko(*arguments)
    assert code == 0, err
    assert "done        2, 2 of them by an earlier run" in said
    assert written(out) == before
    (path,) = (out / "sub-02" / "ses-2" / "anat").glob("*_stats.json")
    record = RunRecord.read(path)
    replace(record, mask_sha256="12" * 32).write(path)
    assert "done        2, 1 of them by an earlier run" in leuko(*arguments)[1]
    after = written(out)
    assert after["sub-01"] == before["sub-01"]
    assert after["sub-02"] > before["sub-02"]


def test_a_corrected_mask_is_compared_in_place_of_the_automatic_one(tmp_path, leuko):
    derive(tmp_path, "01", ["1", "2"])
    raw, out = tmp_path / "raw", tmp_path / "out"
    assert leuko("bids", raw, out, "longitudinal")[0] == 0
    before = table(out)[0]
    assert before["new"] == "1"
    second = find_results(out)[1]
    mask = spot(BRAIN, HERE, 11)  # the reader erases the second lesion
    second.save(mask, based_on=second.version, editor="A. Reader")
    second.measure(load(SMALL_MODEL))
    path = second.files.automatic(RECORD_FILE)  # as if the same model had segmented it
    made = RunRecord.read(path)
    measured = RunRecord.read(second.files.edited(RECORD_FILE))
    replace(made, model=measured.model, settings=measured.settings).write(path)
    code, said, err = leuko("bids", raw, out, "longitudinal")
    assert code == 0, err
    assert "0 of them before" in said or "before" not in said
    assert table(out)[0]["new"] == "0"
    record = json.loads((out / "sub-01" / "longitudinal" / COMPARISON_FILE).read_text())
    assert any("differ in masks (by Leuko, given)" in f["text"] for f in record["findings"])


def test_given_sessions_are_compared_in_the_given_order(compared):
    cohort, _ = compared
    found, _ = find_series(cohort / "out", cohort / "raw", LIMITS, sessions=["ses-10", "1"])
    assert [series.sessions for series in found] == [("ses-10", "ses-1")]


def test_a_session_whose_segmentation_failed_is_left_out_and_named(tmp_path, leuko):
    derive(tmp_path, "01", ["1", "2", "3"])
    logs = tmp_path / "out" / "logs"
    logs.mkdir(parents=True)
    for name in ("sub-01_ses-2", "sub-02_ses-1"):
        (logs / f"{name}.failed").write_text("damaged")
    code, _, err = leuko("bids", tmp_path / "raw", tmp_path / "out", "longitudinal")
    assert code == 0
    assert "sub-01_ses-2 is left out: its segmentation failed" in err
    assert "sub-02_ses-1 is left out" in err
    (row,) = table(tmp_path / "out")
    assert (row["baseline_session"], row["followup_session"]) == ("ses-1", "ses-3")
    found, without = find_series(tmp_path / "out", tmp_path / "raw", LIMITS, participants=["01"])
    assert found[0].sessions == ("ses-1", "ses-3")
    assert len(without) == 1


def test_labels_without_results_are_refused(compared, tmp_path):
    cohort, _ = compared
    for given in ({"participants": ["09"]}, {"sessions": ["9"]}):
        with pytest.raises(LeukoError, match=r"has no results of .*9; check the labels"):
            find_series(cohort / "out", cohort / "raw", LIMITS, **given)
    with pytest.raises(LeukoError, match="run the level participant first"):
        find_series(tmp_path, tmp_path, LIMITS)


def test_several_scans_of_a_session_make_several_series(tmp_path):
    for entities in ("_acq-2d", "_acq-3d"):
        derive(tmp_path, "01", ["a", "b"], entities)
    found, _ = find_series(tmp_path / "out", tmp_path / "raw", LIMITS)
    assert [series.name for series in found] == ["sub-01_acq-2d", "sub-01_acq-3d"]
    assert found[0].folder == tmp_path / "out" / "sub-01" / "longitudinal" / "acq-2d"
    assert Series.from_json(found[0].to_json()) == found[0]


def test_a_failure_is_told_and_the_others_are_compared(tmp_path, leuko):
    for subject in ("01", "02"):
        derive(tmp_path, subject, ["1", "2"])
    (flair,) = (tmp_path / "raw" / "sub-01" / "ses-1" / "anat").iterdir()
    flair.write_bytes(b"damaged")
    earlier = tmp_path / "out" / "sub-01" / "longitudinal"
    earlier.mkdir()
    (earlier / COMPARISON_FILE).write_text('{"command": "compare", "record_version": 1}')
    code, said, err = leuko("bids", tmp_path / "raw", tmp_path / "out", "longitudinal")
    assert code == 1
    assert "failed      1" in said
    assert f"sub-01: {flair}" in err
    reason = tmp_path / "out" / "logs" / "longitudinal" / "sub-01.failed"
    assert flair.name in reason.read_text()
    first, second = table(tmp_path / "out")
    assert (first["participant_id"], first["status"]) == ("sub-01", "failed")
    assert flair.name in first["reason"]
    assert first["change_ml"] == "n/a"
    assert (second["participant_id"], second["status"]) == ("sub-02", "compared")


def test_an_output_that_cannot_be_written_stops_all_before_it_starts(tmp_path, leuko):
    derive(tmp_path, "01", ["1", "2"])
    (tmp_path / "out" / "logs").touch()  # a file where a folder is needed stops root, too
    answer = leuko("bids", tmp_path / "raw", tmp_path / "out", "longitudinal")
    assert_one_line_error(answer, "cannot write into", "logs", "choose another output folder")


def test_scans_that_were_moved_with_their_dataset_are_found(tmp_path, leuko):
    derive(tmp_path, "01", ["1", "2"])
    (tmp_path / "raw").rename(tmp_path / "moved")
    code, _, err = leuko("bids", tmp_path / "raw", tmp_path / "out", "longitudinal")
    assert code == 1
    assert "is not at" in err
    code, _, err = leuko("bids", tmp_path / "moved", tmp_path / "out", "longitudinal")
    assert code == 0, err
    assert not (tmp_path / "out" / "logs" / "longitudinal" / "sub-01.failed").exists()


@pytest.mark.linux
@pytest.mark.slow
def test_after_a_kill_the_rest_is_compared_and_nothing_twice(tmp_path, leuko):
    for subject in ("01", "02", "03"):
        derive(tmp_path, subject, ["1", "2", "3"])
    out = tmp_path / "out"
    arguments = ("bids", tmp_path / "raw", out, "longitudinal", "--nthreads", 1)
    running = subprocess.Popen(command(*arguments))
    while not written(out):
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    time.sleep(1)  # its child ends with it
    before = written(out)
    assert 0 < len(before) < 3
    code, said, err = leuko(*arguments)
    assert code == 0, err
    assert f"{len(before)} of them by an earlier run" in said
    after = written(out)
    assert before.items() <= after.items()
    assert len(after) == 3
    assert not [path for path in out.rglob(".leuko-*") if Path(path).is_dir()]
