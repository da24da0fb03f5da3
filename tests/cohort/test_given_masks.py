"""Masks made elsewhere, measured for every subject of a cohort."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from leuko.cohort.given_masks import with_mask
from leuko.cohort.job import Job
from leuko.cohort.run import STRICT
from leuko.cohort.subject_table import read_table
from leuko.cohort.worker import Limits
from leuko.errors import LeukoError
from leuko.io import nifti
from phantoms import SMALL_MODEL, make_phantom

MODEL = "--model", SMALL_MODEL
SHAPE, SPACING = (64, 80, 18), (2.7, 2.6, 7.0)


@pytest.fixture
def job(tmp_path) -> Job:
    scan, out = tmp_path / "FLAIR.nii.gz", tmp_path / "out"
    return Job("a", scan, None, out / "a", out, out, STRICT, Limits(1, 60, threads=1))


def test_a_pattern_names_one_mask(job, tmp_path):
    for name in ("a/x_mask.nii.gz", "b/x_mask.nii.gz", "b/y_mask.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pattern = f"{tmp_path}/{{id}}/*_mask.nii.gz"
    assert with_mask(job, pattern, id="a").given == tmp_path / "a" / "x_mask.nii.gz"
    assert "2 masks match" in with_mask(job, pattern, id="b").problem
    assert "no mask matches" in with_mask(job, pattern, id="c").problem
    with pytest.raises(LeukoError, match=r"expected only the fields \{id\}"):
        with_mask(job, "{name}.nii.gz", id="a")


@pytest.mark.parametrize("pattern", ["b/y_mask.nii.gz", "*/{{id}}_mask.nii.gz"])
def test_a_pattern_of_one_mask_for_all_subjects_is_refused(job, pattern):
    with pytest.raises(LeukoError, match=r"one mask for all subjects; put \{id\} or \{visit\}"):
        with_mask(job, pattern, id="a", visit="sub-a")


def test_a_job_with_a_given_mask_survives_json(job, tmp_path):
    (tmp_path / "a.nii.gz").touch()
    given = with_mask(job, f"{tmp_path}/{{id}}.nii.gz", id="a")
    assert given.given is not None
    assert Job.from_json(given.to_json()) == given


def test_a_row_has_a_given_mask_or_an_exclusion_mask(tmp_path):
    table = tmp_path / "cohort.tsv"
    table.write_text("id\tflair\texclude\tmask\na\tf.nii.gz\te.nii.gz\tm.nii.gz\n")
    with pytest.raises(LeukoError, match="line 2: a has exclude and mask"):
        read_table(table)


@pytest.mark.slow
def test_the_masks_of_a_table_or_of_a_pattern_are_measured(leuko, tmp_path):
    for seed, name in enumerate("ab"):
        head = make_phantom(np.random.default_rng(seed), shape=SHAPE, spacing_mm=SPACING)
        head.write(tmp_path / name)
    masks = {name: tmp_path / name / "wmh.nii.gz" for name in "ab"}
    rows = [f"{name}\t{name}/FLAIR.nii.gz\t{masks[name] if name == 'a' else ''}" for name in "ab"]
    table, out = tmp_path / "cohort.tsv", tmp_path / "out"
    table.write_text("\n".join(["id\tflair\tmask", *rows]) + "\n")
    code, told, _ = leuko("batch", table, *MODEL, "--lenient", "-o", out)
    assert code in (0, 3), told
    records = {name: json.loads((out / name / "run.json").read_text()) for name in "ab"}
    assert {name: record["command"] for name, record in records.items()} == {
        "a": "measure",
        "b": "segment",
    }
    with (out / "wmh.tsv").open() as file:
        by_id = {row["id"]: row for row in csv.DictReader(file, delimiter="\t")}
    mask = nifti.read_mask(masks["a"])
    assert float(by_id["a"]["volume_ml"]) == pytest.approx(mask.ml(mask.data), abs=1e-3)

    table.write_text("id\tflair\na\ta/FLAIR.nii.gz\nb\tb/FLAIR.nii.gz\n")
    shutil.rmtree(out / "b")
    pattern = f"{tmp_path}/{{id}}/wmh.nii.gz"
    code, told, _ = leuko("batch", table, *MODEL, "--lenient", "-o", out, "--masks", pattern)
    assert told.startswith("done        2, 1 of them by an earlier run\n"), told
    assert json.loads((out / "b" / "run.json").read_text())["command"] == "measure"


@pytest.mark.slow
def test_the_masks_of_a_bids_dataset_are_measured(leuko, tmp_path):
    anat = tmp_path / "raw" / "sub-01" / "anat"
    anat.mkdir(parents=True)
    about = {"Name": "made up", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (tmp_path / "raw" / "dataset_description.json").write_text(json.dumps(about))
    head = make_phantom(np.random.default_rng(0), shape=SHAPE, spacing_mm=SPACING)
    head.write(tmp_path / "head")
    shutil.copy(tmp_path / "head" / "FLAIR.nii.gz", anat / "sub-01_FLAIR.nii.gz")
    shutil.copy(tmp_path / "head" / "wmh.nii.gz", tmp_path / "sub-01_lst.nii.gz")
    arguments = ["bids", tmp_path / "raw", tmp_path / "out", "participant", "--flair-alone"]
    pattern = f"{tmp_path}/{{id}}_lst.nii.gz"
    code, told, _ = leuko(*arguments, *MODEL, "--lenient", "--masks", pattern)
    assert code in (0, 3), told
    made = Path(tmp_path, "out", "sub-01", "anat", "sub-01_space-FLAIR_label-WMH_mask.nii.gz")
    given = nifti.read_mask(tmp_path / "sub-01_lst.nii.gz")
    np.testing.assert_array_equal(nifti.read_mask(made).data, given.data)
    sidecar = json.loads(made.with_name(made.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["Description"].startswith("A given mask of white matter hyperintensities")
    assert "Threshold" not in sidecar
