"""The challenge: its container's manners, its table, its ranking."""

import csv
import shutil

import numpy as np
import pytest

from leuko.cohort.challenge import (
    ALL,
    OFFICIAL,
    Scan,
    by_site,
    find_scans,
    missing,
    ranks,
    read_teams,
    score,
)
from leuko.errors import LeukoError
from leuko.evaluation.evaluate import evaluate
from leuko.evaluation.metrics import MEASURES
from leuko.io import nifti
from phantoms import SMALL_MODEL, make_phantom

MODEL = "--model", SMALL_MODEL
HEAD = {"shape": (64, 80, 18), "spacing_mm": (2.7, 2.6, 7.0)}
PETMR = "Amsterdam/Philips_VU .PETMR_01."


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The challenge's data in small: three sites of the test set, one scan each."""
    folder = tmp_path_factory.mktemp("challenge")
    for number, place in enumerate(("Utrecht/3", "Amsterdam/GE3T/101", f"{PETMR}/160")):
        home = folder / "test" / place
        head = make_phantom(np.random.default_rng(number), **HEAD)
        head.write(home / "pre")
        labels = head.labels.data.copy()
        labels[:2] = 2  # other pathology
        nifti.write(home / "wmh.nii.gz", head.labels.with_data(labels))
        (home / "pre" / "wmh.nii.gz").unlink()
    shutil.copytree(folder / "test" / "Utrecht" / "3", folder / "training" / "Utrecht" / "0")
    return folder


def test_the_container_writes_one_file_on_the_grid_of_the_flair(leuko, data, tmp_path):
    scan = data / "test" / "Utrecht" / "3"
    (tmp_path / "output").mkdir()
    code, told, _ = leuko("challenge", "--input", scan, "--output", tmp_path / "output", *MODEL)
    assert code == 0
    assert told.startswith(f"mask        {tmp_path}/output/result.nii.gz\nWMH volume")
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["result.nii.gz"]
    mask, flair = (
        nifti.read(path) for path in (tmp_path / "output/result.nii.gz", scan / "pre/FLAIR.nii.gz")
    )
    np.testing.assert_array_equal(mask.affine, flair.affine)
    assert mask.data.dtype == np.uint8
    assert set(np.unique(mask.data)) == {0, 1}


def test_the_container_reads_the_originals_where_nothing_is_prepared(leuko, data, tmp_path):
    shutil.copytree(data / "test" / "Utrecht" / "3" / "pre", tmp_path / "input" / "orig")
    arguments = ("--input", tmp_path / "input", "--output", tmp_path / "output", *MODEL)
    assert leuko("challenge", *arguments)[0] == 0
    assert (tmp_path / "output" / "result.nii.gz").is_file()


def test_an_input_of_another_layout_is_refused(leuko, tmp_path):
    code, told, said = leuko("challenge", "--input", tmp_path, "--output", tmp_path / "output")
    assert (code, told) == (2, "")
    assert "holds neither pre/FLAIR.nii.gz nor orig/FLAIR.nii.gz" in said
    assert not (tmp_path / "output").exists()


def test_scans_are_found_by_site(data):
    scans = find_scans(data, "test")
    assert [(scan.site, scan.number) for scan in scans] == [
        ("Utrecht", "3"), ("Amsterdam/GE3T", "101"), (PETMR, "160")
    ]  # fmt: skip
    assert scans[2].name == "Amsterdam_Philips_VU_PETMR_01_160"
    assert [scan.number for scan in find_scans(data, "training")] == ["0"]
    assert missing(scans, "test") == [
        "Utrecht: 1 of 30", "Singapore: 0 of 30", "Amsterdam/GE3T: 1 of 30",
        "Amsterdam/GE1T5: 0 of 10", f"{PETMR}: 1 of 10",
    ]  # fmt: skip


def test_a_scanner_whose_name_a_system_cannot_keep_is_still_known(data, tmp_path):
    home = data / "test" / PETMR / "160"
    shutil.copytree(home, tmp_path / "test" / "Amsterdam" / "Philips_VU_.PETMR_01" / "160")
    (scan,) = find_scans(tmp_path, "test")
    assert scan.site == PETMR


def test_the_official_sets_have_60_and_110_scans():
    assert sum(OFFICIAL["training"].values()) == 60
    assert sum(OFFICIAL["test"].values()) == 110


def test_a_scan_without_reference_is_named(leuko, data, tmp_path):
    copied = shutil.copytree(data, tmp_path / "data")
    (scan, *others) = find_scans(copied, "test")
    results = tmp_path / "tool"
    for other in others:
        home = results / other.folder.relative_to(copied)
        home.mkdir(parents=True)
        labels = nifti.read(other.reference)
        nifti.write(home / "result.nii.gz", labels.with_data((labels.data == 1).astype(np.uint8)))
    scan.reference.unlink()
    score = ("challenge-score", copied, "-o", tmp_path / "out", "--results", results)
    code, _, said = leuko(*score)
    assert code == 1
    assert f"{scan.folder} holds no wmh.nii.gz; the scan is left out" in said


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (
            "test/Paris/1/wmh.nii.gz",
            "not belong to any site of the test set; expected one of Utrecht",
        ),
        ("test/Utrecht/readme.txt", "holds no scan; expected test/Utrecht/NUMBER/wmh.nii.gz"),
        ("data/Utrecht/1/wmh.nii.gz", "holds no folder test; expected the challenge's data"),
    ],
)
def test_data_of_another_layout_are_refused(tmp_path, place, reason):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).touch()
    with pytest.raises(LeukoError) as told:
        find_scans(tmp_path, "test")
    assert reason in str(told.value)


def test_scores_keep_to_the_challenges_rule_and_evaluate_takes_what_is_not_0(data, tmp_path):
    (scan,) = find_scans(data, "training")
    truth = nifti.read_labels(scan.reference, values=(0, 1, 2))
    bright = tmp_path / "result.nii.gz"
    nifti.write(bright, truth.with_data((truth.data == 1).astype(np.int16) * 2000))
    assert score({scan: bright}, tmp_path / "out")["all"]["dsc"] == 0
    assert evaluate(scan.reference, bright)["dsc"] == 1


def test_a_folder_that_cannot_be_written_is_refused_before_scans_are_scored(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LeukoError, match="cannot write into"):
        score({Scan("Utrecht", "1", tmp_path): tmp_path / "absent.nii"}, tmp_path / "file" / "out")


def test_the_table_is_that_of_single_evaluations(leuko, data, tmp_path):
    out = tmp_path / "out"
    teams = tmp_path / "teams.tsv"
    teams.write_text(
        "team\tdsc\th95_mm\tavd_percent\tlesion_recall\tlesion_f1\n"
        "perfect\t1\t0\t0\t1\t1\nhopeless\t0\t200\t900\t0\t0\n"
    )
    code, told, said = leuko("challenge-score", data, "-o", out, "--teams", teams, *MODEL)
    assert code == 0, said
    assert "warning: Utrecht: 1 of 30 scans found" in said
    lines = told.splitlines()
    (head,) = [k for k, line in enumerate(lines) if line.startswith("site ")]
    assert lines[head].split() == [
        "site",
        "scans",
        "DSC",
        "H95,",
        "mm",
        "AVD,",
        "%",
        "recall",
        "F1",
    ]
    single = [
        evaluate(scan.reference, out / scan.name / "wmh.nii.gz")
        for scan in find_scans(data, "test")
    ]
    with (out / "sites.tsv").open(newline="") as file:
        table = {row["site"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert list(table) == ["Utrecht", "Amsterdam/GE3T", PETMR, ALL]
    for measure in MEASURES:
        mean = np.mean([row[measure.key] for row in single])
        assert float(table[ALL][measure.key]) == pytest.approx(mean, rel=1e-5)
        assert float(table["Utrecht"][measure.key]) == pytest.approx(
            single[0][measure.key], rel=1e-5
        )
    assert float(table[ALL]["scans"]) == 3
    with (out / "scores.tsv").open(newline="") as file:
        assert (
            len(list(csv.reader(file, delimiter="\t"))) == 1 + 3 + 3
        )  # head, scans, mean and ends
    where = [line.split() for line in lines].index(["team", "rank"])
    assert [line.split()[0] for line in lines[where + 1 : where + 4]] == [
        "perfect", SMALL_MODEL.name, "hopeless"
    ]  # fmt: skip


def test_masks_of_another_tool_are_scored_as_they_are(leuko, data, tmp_path):
    results = tmp_path / "tool"
    for scan in find_scans(data, "test")[:2]:
        home = results / scan.folder.relative_to(data)
        home.mkdir(parents=True)
        labels = nifti.read(scan.reference)
        wmh = labels.with_data((labels.data == 1).astype(np.uint8))
        nifti.write(home / "result.nii.gz", wmh)
    shutil.copytree(home, results / "test" / "Utrecht" / "99")
    code, told, said = leuko("challenge-score", data, "-o", tmp_path / "out", "--results", results)
    assert code == 1
    assert f"test/Utrecht/99/result.nii.gz does not belong to any scan in {data}; it is not" in said
    assert "1 scan has no result: Amsterdam_Philips_VU_PETMR_01_160" in said
    (line,) = [line for line in told.splitlines() if line.startswith(ALL)]
    assert line.split() == [ALL, "2", "1", "0", "0", "1", "1"]


def row(dsc, h95_mm, avd_percent, lesion_recall, lesion_f1):
    return {
        "dsc": dsc, "h95_mm": h95_mm, "avd_percent": avd_percent, "lesion_recall": lesion_recall,
        "lesion_f1": lesion_f1,
    }  # fmt: skip


def test_ranks_are_places_between_the_best_and_the_worst_team():
    teams = {
        "worst": row(0.4, 20, 80, 0.2, 0.1),
        "best": row(0.8, 5, 20, 0.8, 0.7),
        "half": row(0.6, 12.5, 50, 0.5, 0.4),
        "mixed": row(0.8, 20, 20, 0.2, 0.7),
    }
    found = ranks(teams)
    assert list(found) == ["best", "mixed", "half", "worst"]
    assert found == pytest.approx({"best": 0, "mixed": 0.4, "half": 0.5, "worst": 1})


def test_an_undefined_measure_ranks_last_and_one_team_alone_first():
    teams = {"a": row(0.5, np.nan, 10, 0.5, 0.5), "b": row(0.5, 9.0, 10, 0.5, 0.5)}
    assert ranks(teams) == pytest.approx({"b": 0, "a": 0.2})
    assert ranks({"alone": row(0.5, 9.0, 10, 0.5, 0.5)}) == {"alone": 0}


def test_undefined_measures_are_left_out_of_means(tmp_path):
    rows = {
        Scan("Utrecht", str(k), tmp_path): dict.fromkeys((m.key for m in MEASURES), value)
        for k, value in enumerate((1.0, np.nan, 2.0))
    }
    means = by_site(rows)[ALL]
    assert means["dsc"] == 1.5
    assert means["scans"] == 3


@pytest.mark.parametrize("content", ["team\tdsc\na\t0.5\n", "a,b\n1,2\n", "team\tdsc\th95_mm\n"])
def test_a_table_of_teams_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "teams.tsv").write_text(content)
    with pytest.raises(LeukoError, match=r"is not a table of teams|lists no team"):
        read_teams(tmp_path / "teams.tsv")
