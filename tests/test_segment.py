"""Segmentation as a user gets it: files, their grid, their record, and errors that lose nothing."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from conftest import segmented
from leuko.errors import LeukoError
from leuko.evaluation.evaluate import evaluate
from leuko.io import nifti
from leuko.io.files import sha256
from leuko.io.provenance import Finding
from leuko.lesions.delineation import lesions_of
from leuko.model import runtime
from leuko.model.calibration import TYPICAL_CONTRAST, Calibration, DiceLine, calibrated, entropy
from leuko.model.card import CARD_FILE, WEIGHTS_FILE, Limits, load_card, save_card
from leuko.preprocessing.simpleitk import without_bias
from leuko.preprocessing.slices import prepare
from leuko.volume import Volume
from phantoms import SMALL_MODEL


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    """A head that the model was not trained with."""
    from conftest import SMALL
    from phantoms import make_phantom

    folder = tmp_path_factory.mktemp("unseen")
    make_phantom(np.random.default_rng(99), **SMALL).write(folder)
    return folder


@pytest.fixture(scope="module")
def result(unseen, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("result")
    segmented(unseen / "FLAIR.nii.gz", unseen / "T1.nii.gz", out, model=model)
    return out


def run(unseen, model, out, **changes):
    return segmented(unseen / "FLAIR.nii.gz", unseen / "T1.nii.gz", out, model=model, **changes)


def test_lesions_of_an_unseen_head_are_found(unseen, result):
    row = evaluate(unseen / "wmh.nii.gz", result / "wmh.nii.gz")
    assert row["dsc"] > 0.75
    assert row["lesion_f1"] > 0.75


def test_mask_and_map_are_on_the_grid_of_the_flair(unseen, result):
    flair = nib.load(unseen / "FLAIR.nii.gz")
    mask, probability = (nib.load(result / name) for name in ("wmh.nii.gz", "wmh_prob.nii.gz"))
    assert mask.get_data_dtype() == np.uint8
    assert probability.get_data_dtype() == np.float32
    for image in (mask, probability):
        assert image.shape == flair.shape
        for field in ("qform_code", "sform_code", "pixdim", "xyzt_units", "srow_x", "quatern_b"):
            np.testing.assert_array_equal(image.header[field], flair.header[field])
    values = np.asarray(probability.dataobj)
    assert values.min() >= 0
    assert values.max() <= 1
    assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1}


def test_the_record_says_what_was_done(unseen, model, result):
    record = json.loads((result / "run.json").read_text())
    assert record["inputs"]["flair"]["sha256"] == sha256(unseen / "FLAIR.nii.gz")
    assert record["inputs"]["t1"]["sha256"] == sha256(unseen / "T1.nii.gz")
    assert record["model"]["weights_sha256"] == sha256(model / WEIGHTS_FILE)
    assert list(record["seconds"]) == [
        "load model",
        "read",
        "align",
        "prepare",
        "predict",
        "restore",
        "delineate",
        "check",
        "analyse",
        "write",
        "report",
    ]
    mask = nib.load(result / "wmh.nii.gz")
    voxel_ml = abs(np.linalg.det(mask.affine[:3, :3])) / 1000
    assert record["volume_ml"] == pytest.approx(np.asarray(mask.dataobj).sum() * voxel_ml, abs=1e-3)
    assert record["lesions"] > 0


def test_the_same_input_gives_the_same_bytes(unseen, model, result, tmp_path):
    run(unseen, model, tmp_path)
    for name in ("wmh.nii.gz", "wmh_prob.nii.gz"):
        assert (tmp_path / name).read_bytes() == (result / name).read_bytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_the_mask(unseen, model, result, tmp_path, threads):
    run(unseen, model, tmp_path, threads=threads)
    assert (tmp_path / "wmh.nii.gz").read_bytes() == (result / "wmh.nii.gz").read_bytes()


def test_storage_order_does_not_change_the_answer(unseen, model, result, tmp_path):
    expected = nib.load(result / "wmh.nii.gz")
    for name in ("FLAIR", "T1"):
        image = nib.load(unseen / f"{name}.nii.gz")
        turned = image.as_reoriented([[1, -1], [2, 1], [0, -1]])
        nib.save(turned, tmp_path / f"{name}.nii.gz")
    out = tmp_path / "out"
    run(tmp_path, model, out)
    found = nib.as_closest_canonical(nib.load(out / "wmh.nii.gz"))
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))


def test_a_higher_threshold_finds_less(unseen, model, tmp_path):
    volumes = [
        run(unseen, model, tmp_path / str(t), threshold=t).volume_ml for t in (0.1, 0.5, 0.95)
    ]
    assert volumes[0] > volumes[1] > volumes[2]


def test_small_lesions_are_dropped_by_volume():
    probability = np.zeros((8, 8, 8), dtype=np.float32)
    probability[1, 1, 1] = 0.9  # one voxel of 2 mm3
    probability[5, 5, 5] = probability[6, 6, 6] = 0.5  # two voxels that touch by a corner
    mask = lesions_of(probability, Limits(0.5, 0.5, 4), voxel_mm3=2.0)
    assert np.argwhere(mask).tolist() == [[5, 5, 5], [6, 6, 6]]
    assert lesions_of(probability, Limits(0.5, 0.5, 0), voxel_mm3=2.0).sum() == 3
    assert not lesions_of(probability, Limits(0.6, 0.6, 4), voxel_mm3=2.0).any()


def test_probabilities_do_not_depend_on_the_other_slices(unseen, model):
    flair, t1 = (nifti.read(unseen / f"{name}.nii.gz") for name in ("FLAIR", "T1"))
    loaded = runtime.load(model)
    slices, _ = prepare(flair, t1, loaded.card.preparation)
    together = loaded.predict(slices)
    np.testing.assert_allclose(loaded.predict(slices[5:6]), together[5:6], atol=1e-5)
    for batch in (1, 3, 16):
        found = loaded.predict(slices, batch=batch)
        np.testing.assert_array_equal(found[:, -1] >= 0.5, together[:, -1] >= 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 0.0}, "threshold is 0; give a number between 0 and 1"),
        ({"threshold": 1.5}, "threshold is 1.5; give a number between 0 and 1"),
        ({"smallest_lesion_mm3": -1.0}, "smallest lesion is -1 mm3; give a finite volume"),
        ({"smallest_lesion_mm3": float("nan")}, "smallest lesion is nan mm3; give a finite volume"),
        ({"device": "cuda"}, "no cuda device was found; use --device with one of: cpu"),
    ],
)
def test_settings_that_cannot_be_are_errors(unseen, model, tmp_path, changes, message):
    if changes.get("device") == "cuda" and runtime.torch_devices()["cuda"]:
        pytest.skip("this machine has CUDA")
    with pytest.raises(LeukoError, match=message):
        run(unseen, model, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def copy_of(model, folder):
    folder.mkdir()
    for name in (CARD_FILE, WEIGHTS_FILE):
        (folder / name).write_bytes((model / name).read_bytes())
    return folder


def test_a_model_without_card_is_refused(unseen, model, tmp_path):
    copy = copy_of(model, tmp_path / "copy")
    (copy / CARD_FILE).unlink()
    with pytest.raises(LeukoError, match=r"copy has no card.json: give a folder written by"):
        run(unseen, copy, tmp_path / "out")
    (copy / "run.json").write_text("{}")
    with pytest.raises(LeukoError, match=r"not finished; run leuko train --resume"):
        run(unseen, copy, tmp_path / "out")


def test_weights_that_are_not_the_cards_are_refused(unseen, model, tmp_path):
    copy = copy_of(model, tmp_path / "copy")
    weights = bytearray((copy / WEIGHTS_FILE).read_bytes())
    weights[-1] ^= 1
    (copy / WEIGHTS_FILE).write_bytes(weights)
    with pytest.raises(LeukoError, match="its card expects"):
        run(unseen, copy, tmp_path / "out")
    (copy / WEIGHTS_FILE).unlink()
    with pytest.raises(LeukoError, match=r"a card but no model\.safetensors"):
        run(unseen, copy, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "reads up to 1: update"),
        ({"preparation": {"pixel": 1}}, "is not a valid model card"),
        ({"preparation": {"channels": "bogus"}}, "is not a valid model card .invalid preparation"),
        ({"preparation": {"pixel_mm": 0}}, "is not a valid model card"),
        ({"preparation": {"pixel_mm": "1"}}, "is not a valid model card"),
        ({"threshold": "0.5"}, "is not a valid model card"),
        ({"threshold": 2}, "is not a valid model card"),
        ({"side_maps": None}, "is not a valid model card"),
        ({"weights_sha256": None}, "invalid weights_sha256"),
        ({"classes": ["wmh", "background"]}, "invalid classes"),
        ({"classes": [1, "wmh"]}, "invalid classes"),
        ({"stages": []}, "invalid stages"),
        ({"stages": [[8], []]}, "invalid stages"),
        ({"stages": [[8, -1]]}, "invalid maps"),
        ({"side_maps": 2.5}, "invalid maps"),
        ({"three_planes": "false"}, "invalid three_planes"),
        ({"licence": "free\u001b[2J"}, "invalid licence"),
        ({"training": None}, "invalid training"),
        ({"smallest_lesion_mm3": float("inf")}, "invalid smallest_lesion_mm3"),
        ({"format": "new"}, "is not a valid model card"),
        ({"stages": [[8, 8]]}, "do not fit its card"),
    ],
)
def test_a_card_that_cannot_be_used_is_refused(unseen, model, tmp_path, change, message):
    copy = copy_of(model, tmp_path / "copy")
    card = json.loads((copy / CARD_FILE).read_text()) | change
    (copy / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(LeukoError, match=message):
        run(unseen, copy, tmp_path / "out")


def test_a_card_that_is_no_json_is_refused(unseen, model, tmp_path):
    copy = copy_of(model, tmp_path / "copy")
    for content in ("{", "[]"):
        (copy / CARD_FILE).write_text(content)
        with pytest.raises(LeukoError, match="JSON"):
            run(unseen, copy, tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_an_error(unseen, model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LeukoError, match=r"cannot write into .*file[/\\]out: .*choose another"):
        run(unseen, model, tmp_path / "file" / "out")


def test_a_mask_that_cannot_be_written_leaves_earlier_results_whole(
    unseen, model, tmp_path, monkeypatch
):
    run(unseen, model, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nifti, "write", full_disk)
    with pytest.raises(LeukoError, match="No space left on device"):
        run(unseen, model, tmp_path, threshold=0.9)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(LeukoError, match="No space left on device"):
        run(unseen, model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_experts_labels_are_not_overwritten(unseen, model):
    before = (unseen / "wmh.nii.gz").read_bytes()
    with pytest.raises(LeukoError, match=r"wmh.nii.gz exists and was not written by"):
        run(unseen, model, unseen)
    assert (unseen / "wmh.nii.gz").read_bytes() == before


def test_a_run_is_not_overwritten(unseen, model):
    with pytest.raises(LeukoError, match=r"run.json exists and was not written by leuko segment"):
        run(unseen, model, model)


def test_parents_that_were_made_go_when_it_fails(unseen, model, tmp_path):
    with pytest.raises(LeukoError):
        run(unseen, model, tmp_path / "a" / "b", threshold=7)
    assert not (tmp_path / "a").exists()


@pytest.mark.linux
def test_a_name_that_is_no_utf8_is_no_obstacle(unseen, model, tmp_path):
    flair = tmp_path / os.fsdecode(b"FLAIR_\xfc.nii.gz")
    flair.write_bytes((unseen / "FLAIR.nii.gz").read_bytes())
    segmented(flair, unseen / "T1.nii.gz", tmp_path / "out", model=model)
    assert "FLAIR_" in (tmp_path / "out" / "run.json").read_text()


def test_the_tissues_of_another_model_do_not_stay(unseen, model, tmp_path):
    run(unseen, SMALL_MODEL, tmp_path)
    assert (tmp_path / "tissue.nii.gz").is_file()
    run(unseen, model, tmp_path)
    assert not (tmp_path / "tissue.nii.gz").exists()


@pytest.mark.parametrize("name", ["FLAIR.nii.gz", "T1.nii.gz"])
def test_a_scan_given_as_exclusion_mask_is_refused(unseen, model, tmp_path, name):
    with pytest.raises(LeukoError, match=rf"{name} holds \d+ values above 0, .* as a scan does"):
        run(unseen, model, tmp_path / "out", exclude=unseen / name)
    assert not (tmp_path / "out").exists()


def test_what_is_excluded_is_no_wmh_and_is_reported_apart(unseen, model, result, tmp_path):
    flair = nifti.read(unseen / "FLAIR.nii.gz")
    found = nifti.read_mask(result / "wmh.nii.gz").data
    exclude = np.zeros(found.shape, np.uint8)
    exclude[: found.shape[0] // 2] = 1
    nifti.write(tmp_path / "infarct.nii.gz", flair.with_data(exclude))
    answer = run(unseen, model, tmp_path / "out", exclude=tmp_path / "infarct.nii.gz")
    assert not (answer.maps.mask.data[exclude > 0]).any()
    inside, outside = found[exclude > 0].sum(), found[exclude == 0].sum()
    assert answer.maps.mask.data.sum() == outside
    ml = flair.voxel_mm3 / 1000
    assert answer.excluded.volume_ml == pytest.approx(exclude.sum() * ml)
    assert answer.excluded.wmh_ml == pytest.approx(inside * ml)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["excluded_ml"]["volume_ml"] == answer.excluded.volume_ml
    assert record["settings"]["exclude"]["sha256"] == sha256(tmp_path / "infarct.nii.gz")


def test_an_exclusion_mask_that_is_empty_is_named(unseen, model, tmp_path):
    flair = nifti.read(unseen / "FLAIR.nii.gz")
    nifti.write(tmp_path / "none.nii.gz", flair.with_data(np.zeros(flair.data.shape, np.uint8)))
    answer = run(unseen, model, tmp_path / "out", exclude=tmp_path / "none.nii.gz")
    assert any("excludes nothing" in found.text for found in answer.findings)


def test_an_exclusion_mask_on_another_grid_is_refused(unseen, model, tmp_path):
    flair = nifti.read(unseen / "FLAIR.nii.gz")
    mask = Volume(np.ones((5, 5, 5), np.uint8), flair.affine)
    nifti.write(tmp_path / "infarct.nii.gz", mask)
    with pytest.raises(LeukoError, match="not on the same voxel grid"):
        run(unseen, model, tmp_path / "out", exclude=tmp_path / "infarct.nii.gz")
    assert not (tmp_path / "out").exists()


def test_a_bias_field_is_taken_out(unseen, model, tmp_path):
    flair = nifti.read(unseen / "FLAIR.nii.gz")
    ramp = np.linspace(0.7, 1.3, flair.data.shape[0])[:, None, None]
    biased = flair.with_data((flair.data * ramp).astype(np.float32))
    corrected = without_bias(biased, threads=2)
    head = flair.data > np.percentile(flair.data, 60)

    def unevenness(scan):
        ratio = (scan.data / np.maximum(flair.data, 1))[head]
        return ratio.std() / ratio.mean()

    assert unevenness(corrected) < 0.6 * unevenness(biased)
    for name, scan in (("FLAIR", biased), ("T1", nifti.read(unseen / "T1.nii.gz"))):
        nifti.write(tmp_path / f"{name}.nii.gz", scan)
    run(tmp_path, model, tmp_path / "out", bias_correction=True)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["settings"]["bias_correction"] is True
    assert "correct bias" in record["seconds"]


def test_findings_are_kept_in_the_record(unseen, model, tmp_path):
    image = nib.load(unseen / "FLAIR.nii.gz")
    for name in ("FLAIR", "T1"):
        scan = nib.load(unseen / f"{name}.nii.gz")
        scan.set_sform(None, code=0)
        scan.set_qform(None, code=0)
        nib.save(nib.Nifti1Image(np.asarray(scan.dataobj), None, scan.header),
                 tmp_path / f"{name}.nii.gz")  # fmt: skip
    answer = run(tmp_path, model, tmp_path / "out")
    assert image.shape == answer.maps.mask.data.shape
    assert any("neither sform nor qform" in found.text for found in answer.findings)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [Finding(**found) for found in record["findings"]] == answer.findings


# Saves a result into folders of a root. The first run counts its changes to the file system; each
# other one is killed before the change that its folder is named by. Prints the change that renames.
KILLED = """
import os, signal, sys
from pathlib import Path
from leuko.segment import SegmentSettings, segment

flair, t1, model, root = map(Path, sys.argv[1:])
found = segment(flair, t1, settings=SegmentSettings(model=str(model), threads=1))
CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
count = renamed = 0

def watch(event, args, last):
    global count, renamed
    if event not in CHANGES or str(root) not in str(args[0]):
        return
    count += event != "open" or bool(args[2] & (os.O_WRONLY | os.O_RDWR))
    if event == "os.rename":
        renamed = count
    if count == last:
        os.kill(os.getpid(), signal.SIGKILL)

def run(name, last=None):
    readable, writable = os.pipe()
    if os.fork() == 0:
        try:
            sys.addaudithook(lambda event, args: watch(event, args, last))
            found.save(root / name)
            os.write(writable, f"{count} {renamed}".encode())
        finally:
            os._exit(0)
    os.close(writable)
    assert os.wait()[1] == (0 if last is None else signal.SIGKILL)
    return os.read(readable, 99)

changes, renamed = map(int, run("whole").split())
for last in {1, renamed // 2, renamed, renamed + 1, changes}:
    run(str(last), last)
print(renamed)
"""


@pytest.mark.linux
def test_a_run_that_is_killed_leaves_no_folder_or_a_whole_one(unseen, tmp_path):
    scans = unseen / "FLAIR.nii.gz", unseen / "T1.nii.gz"
    command = [sys.executable, "-c", KILLED, *map(str, (*scans, SMALL_MODEL, tmp_path))]
    renamed = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert renamed > len(names)  # all were written before
    numbers = [path.name for path in tmp_path.iterdir() if path.name.isdigit()]
    assert numbers
    for number in numbers:
        assert int(number) > renamed
        assert {path.name for path in (tmp_path / number).iterdir()} == names


def test_two_runs_into_one_folder_leave_one_whole_result(unseen, model, tmp_path):
    command = [
        sys.executable, "-m", "leuko.cli", "segment", "--flair", unseen / "FLAIR.nii.gz",
        "--t1", unseen / "T1.nii.gz", "--model", model, "-o", tmp_path / "out", "--threshold",
    ]  # fmt: skip
    processes = [subprocess.Popen([*map(str, command), t]) for t in ("0.2", "0.9")]
    assert [process.wait() for process in processes] == [0, 0]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    mask = nifti.read_mask(tmp_path / "out" / "wmh.nii.gz")
    probability = nifti.read(tmp_path / "out" / "wmh_prob.nii.gz").data
    assert not (mask.data & (probability < record["settings"]["threshold"])).any()
    assert mask.data.sum() * mask.voxel_mm3 / 1000 == pytest.approx(record["volume_ml"], abs=1e-3)
    assert not list(tmp_path.rglob(".leuko-*"))


@pytest.fixture
def calibrated_model(model, tmp_path):
    """The phantoms' model with a made-up calibration."""
    folder = tmp_path / "calibrated"
    folder.mkdir()
    for file in (WEIGHTS_FILE, CARD_FILE):
        (folder / file).write_bytes((model / file).read_bytes())
    calibration = Calibration(2.0, 0.01, DiceLine(0.5, 0.0, 0.1), "nothing")
    save_card(folder, replace(load_card(folder), calibration=calibration))
    return folder


def test_a_calibrated_model_says_how_sure_it_is(unseen, calibrated_model, tmp_path):
    out = tmp_path / "out"
    result = run(unseen, calibrated_model, out)
    record = json.loads((out / "run.json").read_text())
    low, high = record["volume_interval_ml"]
    assert low < record["volume_ml"] < high
    factor = (high + 0.1) / (result.volume_ml + 0.1)
    assert factor == pytest.approx((result.volume_ml + 0.1) / (low + 0.1), abs=1e-2)
    assert record["quality"]["predicted_dice"] == 0.5
    low, high = record["quality"]["interval"]
    assert low == pytest.approx(1 - high)
    scale = (0.5 - low) / 0.1 / (TYPICAL_CONTRAST - 1)  # it knows no white matter
    assert factor == pytest.approx(np.exp(0.01 * scale), abs=1e-2)
    bits = nifti.read(out / "wmh_entropy.nii.gz").data
    np.testing.assert_allclose(
        bits, entropy(calibrated(result.maps.probability.data, 2.0)), atol=1.1e-3
    )


def test_maps_are_rounded_down_and_draw_the_same_mask(unseen, model, tmp_path):
    for threshold in (0.4, 0.9, 0.1234):
        result = run(unseen, model, tmp_path / "out", threshold=threshold, smallest_lesion_mm3=0)
        stored = nifti.read(tmp_path / "out" / "wmh_prob.nii.gz").data
        lost = result.maps.probability.data - stored
        assert lost.min() > -1.1e-7
        assert lost.max() < 1.01e-4
        np.testing.assert_array_equal(stored >= threshold, result.maps.mask.data > 0)


def test_another_threshold_than_the_models_own_has_no_interval(unseen, calibrated_model, tmp_path):
    out = tmp_path / "out"
    run(unseen, calibrated_model, out, threshold=0.6)
    record = json.loads((out / "run.json").read_text())
    assert record["volume_interval_ml"] is None
    assert record["quality"] is None


def test_the_table_the_map_and_the_mask_tell_of_the_same_lesions(unseen, model, tmp_path):
    out = tmp_path / "out"
    result = run(unseen, model, out)
    with (out / "lesions.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    numbers = nifti.read(out / "wmh_lesions.nii.gz")
    mask = nifti.read_mask(out / "wmh.nii.gz")
    np.testing.assert_array_equal(numbers.data > 0, mask.data)
    for row in rows:
        own = numbers.data == int(row["id"])
        assert own.sum() == int(row["voxels"])
        centre = np.argwhere(own).mean(axis=0) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
        told = [float(row[f"{axis}_mm"]) for axis in "xyz"]
        np.testing.assert_allclose(told, centre, rtol=1e-4, atol=1e-2)
    assert sum(float(row["volume_ml"]) for row in rows) == pytest.approx(result.volume_ml, rel=1e-4)
    assert len(rows) == len(result.analysis.lesions)


def test_the_report_and_its_picture_are_written(unseen, model, tmp_path):
    out = tmp_path / "out"
    result = run(unseen, model, out)
    page = (out / "report.html").read_text()
    assert f"{result.volume_ml:.2f} mL" in page
    assert (out / "qc.png").read_bytes().startswith(b"\x89PNG")
    assert "report" in json.loads((out / "run.json").read_text())["seconds"]
