"""leuko bids: what it makes of a dataset is a valid dataset, whole, and where it belongs."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from leuko.cohort.bids_names import Image
from leuko.cohort.derivatives import is_stripped
from leuko.io import nifti
from leuko.io.outputs import MASK_FILE, REPORT_FILE
from leuko.longitudinal.compare import files
from leuko.longitudinal.dataset import write_series_table
from leuko.view.editing import described, find_results
from phantoms import SMALL_MODEL, make_phantom

MODEL = "--model", SMALL_MODEL
SHAPE, SPACING = (64, 80, 18), (2.7, 2.6, 7.0)
VISITS = ("sub-01_ses-a", "sub-01_ses-b", "sub-02_run-1", "sub-02_acq-3d_rec-norm_run-2")
IMAGES = {
    "label-WMH_mask", "label-WMH_probseg", "label-WMH_desc-entropy_probseg", "label-brain_mask",
    "seg-tissue_dseg", "seg-WMHlesions_dseg", "seg-WMHpvdeep_dseg", "desc-preproc_T1w",
    "desc-rims_mask",
}  # fmt: skip
TABLES = {"seg-tissue_dseg", "seg-WMHlesions_dseg", "seg-WMHpvdeep_dseg"}
OTHERS = {
    "label-WMH_report.html", "label-WMH_stats.json", "from-T1w_to-FLAIR_mode-image_xfm.tfm"
}  # fmt: skip


def add(dataset: Path, stem: str, seed: int = 0, *, t1: bool = True, extra: str = "") -> None:
    """A made-up head as the scans of a visit."""
    entities = Image.of(Path(f"{stem}_FLAIR.nii.gz")).entities
    folder = dataset / f"sub-{entities['sub']}" / f"ses-{entities.get('ses', '')}".rstrip("-")
    folder = (folder if "ses" in entities else folder.parent) / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    head = make_phantom(np.random.default_rng(seed), shape=SHAPE, spacing_mm=SPACING)
    nifti.write(folder / f"{stem}{extra}_FLAIR.nii.gz", head.flair)
    if t1:
        nifti.write(folder / f"{stem}{extra}_T1w.nii.gz", head.t1)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A dataset of four pairs and a FLAIR without T1w."""
    dataset = tmp_path_factory.mktemp("raw")
    about = {"Name": "made up", "BIDSVersion": "1.10.0", "DatasetType": "raw", "License": "CC0"}
    (dataset / "dataset_description.json").write_text(json.dumps(about))
    (dataset / "README").write_text("made-up heads")
    for seed, visit in enumerate(VISITS):
        add(dataset, visit, seed)
    add(dataset, "sub-03", t1=False)
    return dataset


@pytest.fixture(scope="module")
def out(raw, tmp_path_factory) -> Path:
    """What the app made of it, with what it printed in `said`."""
    from leuko.cli import main

    folder = tmp_path_factory.mktemp("derivatives") / "leuko"
    codes = []
    for level in (("participant", *MODEL), ("group",)):
        with pytest.raises(SystemExit) as end:
            main(["bids", str(raw), str(folder), *map(str, level)])
        codes.append(end.value.code or 0)
    assert codes == [1, 0]  # one has no T1w
    return folder


def errors(dataset: Path) -> list[str]:
    validator = shutil.which("bids-validator-deno")
    assert validator, "the extra dev brings the validator"
    told = subprocess.run(
        [validator, str(dataset), "--format", "json", "--max-rows", "-1"],
        capture_output=True,
        text=True,
        check=False,
    )
    issues = json.loads(told.stdout)["issues"]["issues"]
    return [f"{i['code']} {i.get('location')}" for i in issues if i["severity"] == "error"]


def test_the_validator_finds_no_error(raw, out):
    assert errors(raw) == []
    assert errors(out) == []


def test_the_validator_would_find_errors(out, tmp_path):
    """Lest it looks at nothing."""
    shutil.copytree(out, tmp_path / "copy")
    (tmp_path / "copy" / ".bidsignore").unlink()
    assert errors(tmp_path / "copy")


def test_a_dataset_with_compared_sessions_is_valid(out, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    folder = copy / "sub-01" / "longitudinal" / "acq-3d"
    folder.mkdir(parents=True)
    for name in files(3):
        (folder / name).write_bytes(b"as compared")
    write_series_table(tmp_path / "none")
    for name in ("longitudinal.tsv", "longitudinal.json"):
        shutil.copy(tmp_path / "none" / name, copy)
    assert errors(copy) == []


def test_a_corrected_mask_lies_beside_the_automatic_one_in_a_valid_dataset(out, tmp_path, leuko):
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    results = find_results(copy)
    assert [result.name for result in results] == sorted(VISITS)
    result = results[0]
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    mask = result.mask
    mask[:3, 0, 0] = True
    result.save(mask, based_on=result.version, editor="A. Reader")
    result.measure()
    result.judge(copy / "verdicts", verdict="FAIL", rater="A. Reader")
    assert {path: path.read_bytes() for path in before} == before
    made = {path.name for path in copy.rglob("sub-*") if path.is_file() and path not in before}
    prefix, label = f"{VISITS[0]}_space-FLAIR_", "label-WMH_desc-edited"
    lesions, regions = "seg-WMHlesions_desc-edited_dseg", "seg-WMHpvdeep_desc-edited_dseg"
    images = {f"{label}_mask", lesions, regions, "desc-rimsEdited_mask"}
    pictures = {f"{label}_qc.png", f"{label}_keyslices.jpg"}
    files = {f"{image}{end}" for image in images for end in (".nii.gz", ".json")}
    files |= {f"{lesions}.tsv", f"{regions}.tsv", f"{label}_report.html", f"{label}_stats.json"}
    files |= pictures
    assert made == {prefix + name for name in files}
    np.testing.assert_array_equal(result.mask, mask)
    about = json.loads(result.files.history.read_text())
    assert about["edits"][0]["editor"] == "A. Reader"
    assert about["SpatialReference"].endswith("_FLAIR.nii.gz")
    assert described(result)["is_current"] is True
    assert result.latest(MASK_FILE).name.endswith("desc-edited_mask.nii.gz")
    assert "Mask corrected by</strong> A. Reader" in result.latest(REPORT_FILE).read_text()
    assert leuko("bids", tmp_path, copy, "group")[0] == 0
    assert errors(copy) == []
    with (copy / "wmh.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["status"] for row in rows].count("segmented") == len(VISITS)
    masks = [row["mask"] for row in rows if row["status"] == "segmented"]
    assert sorted(masks) == ["automatic"] * (len(VISITS) - 1) + ["corrected"]
    (row,) = (row for row in rows if row["mask"] == "corrected")
    assert float(row["volume_ml"]) == pytest.approx(result.automatic.ml(mask), abs=1e-3)
    assert (row["verdict"], row["raters"]) == ("FAIL", "1")
    page = (copy / "report.html").read_text()
    assert f"figures/{prefix}{label}_keyslices.jpg" in page
    assert f"{prefix}{label}_report.html" in page
    with (copy / "verdicts.csv").open() as file:
        assert [(row["id"], row["verdict"]) for row in csv.DictReader(file)] == [
            (VISITS[0], "FAIL")
        ]


@pytest.mark.parametrize("visit", VISITS)
def test_each_visit_has_all_its_derivatives_with_sidecars(out, visit):
    entities = dict(pair.split("-") for pair in visit.split("_"))
    folder = out / f"sub-{entities['sub']}"
    folder = folder / f"ses-{entities['ses']}" if "ses" in entities else folder
    prefix = f"{visit}_space-FLAIR_"
    names = {
        path.name.removeprefix(prefix)
        for path in (folder / "anat").iterdir()
        if path.name.startswith(prefix)
    }
    expected = {f"{image}{end}" for image in IMAGES for end in (".nii.gz", ".json")}
    assert names == expected | {f"{table}.tsv" for table in TABLES} | OTHERS
    for picture in ("qc.png", "keyslices.jpg"):
        assert (folder / "figures" / f"{prefix}label-WMH_{picture}").is_file()
    about = json.loads((folder / "anat" / f"{prefix}label-WMH_mask.json").read_text())
    assert about["Type"] == "Lesion"
    assert about["SpatialReference"].startswith("bids:raw:sub-")
    assert about["SpatialReference"].endswith("_FLAIR.nii.gz")
    assert [source.rsplit("_", 1)[1] for source in about["Sources"]] == [
        "FLAIR.nii.gz", "T1w.nii.gz"
    ]  # fmt: skip


def test_derivatives_are_on_the_grid_of_the_flair(raw, out):
    flair = nib.load(raw / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_FLAIR.nii.gz")
    for image in IMAGES:
        path = f"sub-01_ses-a_space-FLAIR_{image}.nii.gz"
        derivative = nib.load(out / "sub-01" / "ses-a" / "anat" / path)
        assert derivative.shape == flair.shape
        np.testing.assert_array_equal(derivative.affine, flair.affine)


def test_tables_name_what_images_hold(out):
    folder = out / "sub-01" / "ses-a" / "anat"
    for table in TABLES:
        stem = f"sub-01_ses-a_space-FLAIR_{table}"
        with (folder / f"{stem}.tsv").open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        held = set(np.unique(nifti.read(folder / f"{stem}.nii.gz").data).astype(int)) - {0}
        assert held <= {int(row["index"]) for row in rows}
        about = json.loads((folder / f"{stem}.json").read_text())
        if table == "seg-WMHlesions_dseg":
            assert held == {int(row["index"]) for row in rows}
            assert set(rows[0]) - {"index"} <= set(about)


def test_one_table_has_a_row_for_each_flair_and_those_of_bids_one_for_each_participant(out):
    def ids(path):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        return [tuple(row.values())[:4] for row in rows]

    assert ids(out / "wmh.tsv") == [
        ("sub-01", "ses-a", "n/a", "n/a"), ("sub-01", "ses-b", "n/a", "n/a"),
        ("sub-02", "n/a", "2", "acq-3d_rec-norm"), ("sub-02", "n/a", "1", "n/a"),
        ("sub-03", "n/a", "n/a", "n/a"),
    ]  # fmt: skip
    assert {path.name for path in (out / "phenotype").iterdir()} == {
        f"wmh{visit}{end}"
        for visit in ("", "_ses-a", "_ses-b", "_run-1", "_run-2_acq-3d_rec-norm")
        for end in (".tsv", ".json")
    }
    assert ids(out / "phenotype" / "wmh_run-1.tsv") == [("sub-02", "n/a", "1", "n/a")]


def test_the_page_of_the_group_links_reports_and_pictures(out):
    page = (out / "report.html").read_text()
    place = "sub-01/ses-a/anat/sub-01_ses-a_space-FLAIR_label-WMH_report.html"
    assert f'href="{place}"' in page
    assert 'src="sub-02/figures/sub-02_run-1_space-FLAIR_label-WMH_keyslices.jpg"' in page
    assert "sub-03_FLAIR.nii.gz has no T1w; pass --flair-alone to segment it without one" in page
    assert (out / place).is_file()


def test_a_flair_alone_is_segmented_where_that_is_wanted(leuko, raw, out, tmp_path):
    folder = shutil.copytree(out, tmp_path / "leuko")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*_mask.nii.gz")}
    arguments = (raw, folder, "participant", *MODEL, "--flair-alone")
    code, told, _ = leuko("bids", *arguments, "--participant_label", "03", "sub-01")
    assert (code, told.splitlines()[0]) == (0, "done        3, 2 of them by an earlier run")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    made = {path.name for path in (folder / "sub-03" / "anat").iterdir()}
    assert "sub-03_space-FLAIR_label-WMH_mask.nii.gz" in made
    assert not any("T1w" in name for name in made)
    assert leuko("bids", raw, folder, "group")[0] == 0
    assert errors(folder) == []


def test_one_participant_without_t1_is_a_failure_with_its_record(leuko, raw, tmp_path):
    """As an array of jobs runs them, one by one."""
    out = tmp_path / "out"
    code, told, _ = leuko("bids", raw, out, "participant", "--participant-label", "03")
    assert code == 1
    assert "sub-03_FLAIR.nii.gz has no T1w; pass --flair-alone" in told
    assert (out / "logs" / "sub-03.failed").is_file()


def test_a_dataset_without_t1w_is_refused_before_anything_is_made(leuko, raw, tmp_path):
    flairs = shutil.copytree(raw, tmp_path / "raw", ignore=shutil.ignore_patterns("*T1w*"))
    code, _, told = leuko("bids", flairs, tmp_path / "out", "participant")
    assert code == 2
    expected = "no FLAIR has a T1w; pass --flair-alone to segment without T1w"
    assert told.splitlines()[-1] == f"error: {expected}"
    assert not (tmp_path / "out").exists()


def test_what_is_made_again_replaces_what_was_made_and_nothing_else(leuko, raw, out, tmp_path):
    folder = shutil.copytree(out, tmp_path / "leuko")
    home = folder / "sub-01" / "ses-a" / "anat"
    edited = home / "sub-01_ses-a_space-FLAIR_label-WMH_desc-edited_mask.nii.gz"
    edited.touch()
    t1 = home / "sub-01_ses-a_space-FLAIR_desc-preproc_T1w.nii.gz"
    assert t1.is_file()
    shutil.copytree(raw, tmp_path / "raw")
    (tmp_path / "raw" / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_T1w.nii.gz").unlink()
    options = ("--participant-label", "01", "--session-label", "a", "--flair-alone")
    assert leuko("bids", tmp_path / "raw", folder, "participant", *MODEL, *options)[0] == 0
    assert edited.is_file()
    assert not t1.exists()
    assert not t1.with_name(t1.name.replace(".nii.gz", ".json")).exists()


def test_datasets_of_derivatives_are_inputs_too(leuko, tmp_path):
    """Aligned and extracted by another program, as its names say."""
    dataset = tmp_path / "other"
    add(dataset, "sub-01", 1, extra="_space-MNI152NLin6Asym_desc-brain")
    add(dataset, "sub-02", 2, extra="_space-MNI152NLin6Asym_desc-brain")
    out = tmp_path / "out"
    code, _, said = leuko("bids", dataset, out, "participant", *MODEL)
    assert code == 0, said
    assert leuko("bids", dataset, out, "group")[0] == 0
    assert errors(out) == []
    assert {path.name for path in (out / "phenotype").iterdir()} == {"wmh.tsv", "wmh.json"}


def test_what_is_asked_for_and_not_there_stops_before_anything_is_made(leuko, raw, tmp_path):
    out = tmp_path / "out"
    for arguments, reason in (
        (("--participant-label", "09"), "has no participant 09"),
        (("--bids-filter-file", tmp_path / "absent.json"), "absent.json cannot be read"),
        (("--model", "nope"), "nope is neither a model folder nor an installed model"),
        (("--participant-label",), "--participant-label"),
    ):
        code, told, said = leuko("bids", raw, out, "participant", *arguments)
        assert (code, told) == (2, "")
        assert reason in said
        assert not out.exists()


def test_flairs_that_cannot_be_segmented_are_named_and_the_exit_code_is_1(leuko, tmp_path):
    dataset, out = tmp_path / "raw", tmp_path / "out"
    add(dataset, "sub-01", 0)
    add(dataset, "sub-01_ses-2", 1)
    anat = dataset / "sub-01" / "anat"
    shutil.copy(anat / "sub-01_FLAIR.nii.gz", anat / "sub-01_FLAIR_corrected.nii.gz")
    anat.joinpath("sub-01_run-2_FLAIR.nii.gz").symlink_to("../../.git/annex/objects/x")
    anat.joinpath("sub-01_run-3_FLAIR.nii.gz").write_text("/annex/objects/MD5E-s1--0.nii.gz\n")
    code, told, said = leuko("bids", dataset, out, "participant", *MODEL, "--nthreads", 1)
    assert code == 1
    place = "sub-01/anat/sub-01_FLAIR_corrected.nii.gz"
    assert said.splitlines()[0].startswith(f"left out  {place}: its name is not a BIDS name")
    assert "left out    1; the reasons are printed above" in told
    lines = {line.split()[0]: line for line in told.splitlines() if line.startswith("  ")}
    assert set(lines) == {"sub-01_run-2", "sub-01_run-3"}
    assert "is a link to ../../.git/annex/objects/x, which does not exist" in lines["sub-01_run-2"]
    assert "holds only a pointer to its content; fetch it" in lines["sub-01_run-3"]
    assert {path.name for path in out.rglob("*_mask.nii.gz") if "WMH" in path.name} == {
        "sub-01_space-FLAIR_label-WMH_mask.nii.gz",
        "sub-01_ses-2_space-FLAIR_label-WMH_mask.nii.gz",
    }


def test_a_filter_chooses_among_copies_of_one_scan_and_the_run_is_complete(leuko, tmp_path):
    """As does the filter file of fMRIPrep, whatever else it speaks of."""
    dataset = tmp_path / "raw"
    add(dataset, "sub-01", 0, extra="_desc-a")
    add(dataset, "sub-01", 0, extra="_desc-b")
    wanted = {"bold": {"task": "rest"}, "flair": {"datatype": "anat", "desc": "b"}}
    (tmp_path / "filter.json").write_text(json.dumps(wanted))
    command = ("bids", dataset, tmp_path / "out", "participant", *MODEL, "--nthreads", 1)
    code, _, said = leuko(*command, "--bids-filter-file", tmp_path / "filter.json")
    assert (code, "left out" in said) == (0, False)
    code, _, said = leuko(*command)
    assert (code, "left out" in said) == (0, False)
    assert "sub-01/anat/sub-01_desc-b_FLAIR.nii.gz: sub-01_desc-a_FLAIR.nii.gz is used" in said


def test_stripped_images_are_told_from_whole_heads():
    head = make_phantom(np.random.default_rng(0), shape=SHAPE, spacing_mm=SPACING)
    brain = head.flair.with_data((head.flair.data > 60).astype(np.uint8))
    brain.data[:12], brain.data[-12:], brain.data[:, :14], brain.data[:, -14:] = 0, 0, 0, 0
    assert not is_stripped(head.t1.data, brain)
    assert is_stripped(np.where(brain.data > 0, head.t1.data, 0), brain)
    assert not is_stripped(head.t1.data, brain.with_data(np.zeros_like(brain.data)))
