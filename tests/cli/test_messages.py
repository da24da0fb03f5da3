"""What commands say if they are called in another way than they expect."""

import logging
import signal
import sys

import numpy as np
import pytest

from conftest import assert_one_line_error
from leuko.cli.app import EXAMPLES
from leuko.cli.streams import stages_shown
from leuko.io import nifti
from leuko.io.provenance import Stopwatch, stderr_handler
from phantoms import SMALL_MODEL, make_phantom


@pytest.fixture
def without_extras(monkeypatch):
    monkeypatch.setattr("leuko.errors.find_spec", lambda _: None)


def test_a_folder_in_place_of_a_table_leads_to_bids(leuko, tmp_path):
    answer = leuko("batch", tmp_path, "-o", tmp_path / "out")
    assert_one_line_error(answer, "is a folder", "the columns id, flair", "t1", "leuko bids")


def test_a_folder_that_is_no_bids_dataset_leads_to_a_table(leuko, tmp_path):
    answer = leuko("bids", tmp_path, tmp_path / "out", "participant")
    assert_one_line_error(answer, "holds no sub-* folder", "table for leuko batch")


def test_a_scan_as_an_argument_leads_to_the_option(leuko, tmp_path):
    code, _, said = leuko("segment", "FLAIR.nii.gz", "T1.nii.gz", "-o", tmp_path / "out")
    assert code == 2
    assert "unexpected FLAIR.nii.gz T1.nii.gz; give the FLAIR with --flair" in said


@pytest.mark.usefixtures("without_extras")
def test_what_does_not_exist_is_named_before_an_extra(leuko, tmp_path):
    absent, out = tmp_path / "absent", tmp_path / "out"
    assert_one_line_error(leuko("batch", absent, "-o", out), "absent cannot be read")
    assert_one_line_error(leuko("bids", absent, out, "participant"), "absent does not exist")
    assert_one_line_error(leuko("segment", "--study", absent, "-o", out), "absent does not exist")
    (tmp_path / "table.tsv").write_text("id\tflair\na\tFLAIR.nii.gz\n")
    answer = leuko("batch", tmp_path / "table.tsv", "-o", out)
    assert_one_line_error(answer, 'pip install "leuko[cohort]"')


@pytest.mark.parametrize("command", ["batch", "bids", "challenge-score"])
def test_the_help_names_the_extra(leuko, command):
    assert command in EXAMPLES
    assert 'the extra cohort: pip install "leuko[cohort]"' in leuko(command, "-h")[1]


def test_an_empty_file_is_called_empty(leuko, tmp_path):
    (tmp_path / "FLAIR.nii.gz").touch()
    answer = leuko("segment", "--flair", tmp_path / "FLAIR.nii.gz", "-o", tmp_path / "out")
    assert_one_line_error(answer, "FLAIR.nii.gz is empty")


def test_a_sha256_of_another_form_is_refused_before_anything_is_fetched(leuko, monkeypatch):
    monkeypatch.setattr("leuko.model.weights.pull", None)
    answer = leuko("models", "pull", "model.zip", "--sha256", "abc")
    assert_one_line_error(answer, "abc is not a SHA-256; expected 64 hexadecimal digits")


def test_options_without_effect_at_a_level_are_named(leuko, tmp_path):
    arguments = "--fill", "--model", "x", "--participant-label", "01"
    _, _, said = leuko("bids", tmp_path, tmp_path / "out", "longitudinal", *arguments)
    assert said.splitlines()[0] == "without effect at the level longitudinal: --model, --fill"
    _, _, said = leuko("bids", tmp_path, tmp_path / "out", "group", *arguments)
    expected = "without effect at the level group: --participant-label, --model, --fill"
    assert said.splitlines()[0] == expected


def test_commas_may_separate_labels_and_the_validator_may_be_skipped(leuko, tmp_path):
    (tmp_path / "sub-01").mkdir()
    arguments = "--participant-label", "sub-02,03", "04", "--skip_bids_validator"
    answer = leuko("bids", tmp_path, tmp_path / "out", "participant", *arguments)
    assert_one_line_error(answer, "has no participant 02, 03, 04")
    answer = leuko("bids", tmp_path, tmp_path / "out", "participant", "--skip-bids-validator")
    assert_one_line_error(answer, "holds no FLAIR")


def test_stages_are_shown_on_a_terminal_alone(capsys, monkeypatch):
    logger = logging.getLogger("leuko")
    monkeypatch.setattr(logger, "handlers", [stderr_handler()])
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda shown=is_terminal: shown)
        with stages_shown(), Stopwatch().stage("predict"):
            logger.warning("careful")
        cleared = f"\r{'':24}\r"
        shown = f"\r{'predict ...':24}{cleared}warning: careful\n{cleared}"
        assert capsys.readouterr().err == (shown if is_terminal else "warning: careful\n")
    assert logger.level == logging.INFO


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        ("leuko.segment", ("segment", "--flair", "x"), "interrupted; nothing was written\n"),
        ("leuko.measure", ("measure", "x", "--flair", "x"), "interrupted; nothing was written\n"),
        (
            "leuko.longitudinal.compare.compare",
            ("compare", "x", "y"),
            "interrupted; the comparison was not written\n",
        ),
        ("leuko.cli.app.main", ("evaluate", "x", "y"), ""),
    ],
)
def test_an_interrupt_ends_with_its_exit_code_and_what_was_written(
    leuko, tmp_path, monkeypatch, function, arguments, expected
):
    ignored = []
    monkeypatch.setattr("signal.signal", lambda *which: ignored.append(which))
    monkeypatch.setattr(function, interrupted)
    assert leuko(*arguments, "-o", tmp_path / "out") == (130, "", expected)
    assert ignored == [(signal.SIGINT, signal.SIG_IGN)]  # by a second Ctrl-C


def test_a_reason_not_to_use_a_result_is_printed_once(leuko, tmp_path):
    head = make_phantom(np.random.default_rng(0), shape=(64, 80, 18), spacing_mm=(2.7, 2.6, 7.0))
    head.write(tmp_path)
    mask = nifti.read_mask(tmp_path / "wmh.nii.gz")
    nifti.write(tmp_path / "turned.nii.gz", mask.with_data(mask.data[:, ::-1].astype(np.uint8)))
    scans = "--flair", tmp_path / "FLAIR.nii.gz", "--t1", tmp_path / "T1.nii.gz"
    arguments = tmp_path / "turned.nii.gz", *scans, "--model", SMALL_MODEL, "-o", tmp_path / "out"
    code, told, said = leuko("measure", *arguments)
    (reason,) = (line for line in said.splitlines() if line.startswith("do not use: "))
    assert code == 3
    assert told.count("do not use") == 1
    assert told.splitlines()[0].endswith("; do not use")
    assert reason.removeprefix("do not use: ") not in told
