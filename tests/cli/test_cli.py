"""What the commands print, write and answer."""

import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import nibabel as nib
import numpy as np
import pytest
import torch

from cohorts import awaited
from conftest import assert_one_line_error
from leuko.io import nifti
from leuko.model.card import load_card
from leuko.training.tensorboard_log import FOLDER
from phantoms import SMALL_MODEL, make_phantom


def test_help_names_the_commands(leuko):
    code, out, _ = leuko("--help")
    assert code == 0
    for command in ("segment", "compare", "evaluate", "train", "demo", "synth", "export", "models"):
        assert f"\n  {command} " in out


COMMANDS = (
    "segment", "batch", "bids", "compare", "evaluate", "demo", "models list", "models path",
    "models verify", "models pull", "train", "export", "synth", "challenge", "challenge-score",
    "info",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns_and_ends_with_an_example(leuko, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    code, out, _ = leuko(*command.split(), "--help")
    lines = out.rstrip().splitlines()
    assert code == 0
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith(f"  Example: leuko {command}")
    options = {word for word in lines[-1].split() if word.startswith("-")}
    assert all(any(option in line for line in lines[:-1]) for option in options)


def test_the_version_is_printed(leuko):
    assert leuko("--version") == (0, "leuko 0.1.0\n", "")


def test_segment_prints_the_volume_and_writes_the_files(leuko, heads, model, tmp_path):
    subject = heads / "head0"
    code, out, err = leuko(
        "segment", "--flair", subject / "FLAIR.nii.gz", "--t1", subject / "T1.nii.gz",
        "--model", model, "-o", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert f"WMH volume  {record['volume_ml']:.2f} mL in {record['lesions']} lesions" in out
    for name in ("wmh.nii.gz", "report.html"):
        assert str(tmp_path / "out" / name) in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "key_slices.jpg", "lesions.tsv", "lookup_tables", "qc.png", "report.html", "run.json",
        "wmh.nii.gz", "wmh_entropy.nii.gz", "wmh_lesions.nii.gz", "wmh_prob.nii.gz",
    ]  # fmt: skip
    assert "done in" in err


def test_measure_prints_the_volume_of_a_given_mask(leuko, heads, model, tmp_path):
    subject, out = heads / "head0", tmp_path / "out"
    arguments = [subject / "wmh.nii.gz", "--flair", subject / "FLAIR.nii.gz", "--model", model]
    # The reference also holds 2, other pathology.
    arguments += ["--t1", subject / "T1.nii.gz", "--lesion-label", 1]
    code, told, err = leuko("measure", *arguments, "-o", out)
    assert code == 0, err
    mask = nifti.read_mask(subject / "wmh.nii.gz", labels=(1,))
    assert f"WMH volume  {mask.ml(mask.data):.2f} mL in " in told
    assert str(out / "report.html") in told
    np.testing.assert_array_equal(nifti.read_mask(out / "wmh.nii.gz").data, mask.data)
    code, _, err = leuko("measure", *arguments, "-o", subject)
    assert code == 2
    assert "was not written by leuko measure" in err


def test_evaluate_prints_every_measure_with_unit_and_direction(leuko, heads):
    labels = heads / "head0" / "wmh.nii.gz"
    code, out, _ = leuko("evaluate", labels, labels)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["Dice", "(DSC)", "1", "higher", "is", "better"]
    assert lines[1].split() == ["Hausdorff", "95", "(H95)", "0", "mm", "lower", "is", "better"]
    assert lines[2].split()[3:5] == ["0", "%"]
    assert len(lines) == 8
    assert "mL in" in lines[-1]


def test_evaluate_speaks_json(leuko, heads, tmp_path):
    labels = heads / "head0" / "wmh.nii.gz"
    empty = nifti.read(labels)
    nifti.write(tmp_path / "empty.nii.gz", empty.with_data(np.zeros_like(empty.data)))
    row = json.loads(leuko("evaluate", labels, tmp_path / "empty.nii.gz", "--json")[1])
    assert row["dsc"] == 0
    assert row["h95_mm"] is None
    table = json.loads(leuko("evaluate", heads, heads, "--json")[1])
    assert table["head3"]["dsc"] == table["mean"]["dsc"] == 1


def test_evaluate_writes_a_table_of_folders(leuko, heads, tmp_path):
    code, out, _ = leuko("evaluate", heads, heads, "-o", tmp_path / "table.tsv")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "subject", *(f"head{n}" for n in range(6)), "mean", "ci95_low", "ci95_high"
    ]  # fmt: skip
    assert len((tmp_path / "table.tsv").read_text().splitlines()) == 10


def test_evaluate_refuses_a_table_that_cannot_be_written_before_it_measures(
    leuko, heads, tmp_path, monkeypatch
):
    monkeypatch.setattr("leuko.evaluation.evaluate.evaluate", None)
    (tmp_path / "file").touch()
    answer = leuko("evaluate", heads, heads, "-o", tmp_path / "file" / "folder" / "table.tsv")
    assert_one_line_error(answer, "cannot write into", "file/folder: Not a directory")


def test_evaluate_refuses_a_file_against_a_folder(leuko, heads, tmp_path):
    assert_one_line_error(
        leuko("evaluate", heads / "head0" / "wmh.nii.gz", heads), "two files or two folders"
    )
    labels = heads / "head0" / "wmh.nii.gz"
    assert_one_line_error(leuko("evaluate", labels, labels, "-o", tmp_path / "t"), "two folders")


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """A full-width VGG-16 weight file, as a user might have it."""
    from leuko.model.imagenet import _indices
    from leuko.model.network import SpecialisedVGG

    torch.manual_seed(0)
    network = SpecialisedVGG(2)
    state = {}
    for index, convolution in zip(_indices(network), network.convolutions, strict=True):
        state[f"features.{index}.weight"] = convolution.weight.data
        state[f"features.{index}.bias"] = convolution.bias.data
    path = tmp_path_factory.mktemp("imagenet") / "vgg.pth"
    torch.save(state, path)
    return path


def test_train_and_segment_with_the_full_network(leuko, heads, vgg_file, tmp_path):
    run = tmp_path / "run"
    code, out, err = leuko(
        "train", heads, "-o", run, "--steps", 2, "--imagenet-weights", vgg_file,
        "--channels", "flair-3-slices", "--seed", 7,
    )  # fmt: skip
    assert code == 0, err
    assert f"model   {run}" in out
    assert "mean of 1 held-out subject:" in out
    assert "Dice (DSC)" in out
    assert "step 2/2  loss" in err
    card = load_card(run)
    assert card.preparation.channels == "flair-3-slices"
    assert card.training["seed"] == 7
    flair = heads / "head0" / "FLAIR.nii.gz"
    code, out, err = leuko("segment", "--flair", flair, "--model", run, "-o", tmp_path / "out")
    assert code == 0, err  # three slices of FLAIR need no T1


def test_the_papers_recipe_runs(leuko, heads, tmp_path):
    code, _, err = leuko(
        "train", heads, "-o", tmp_path / "run", "--recipe", "xu2017", "--init", "none",
        "--steps", 1, "--held-out", 0,
    )  # fmt: skip
    assert code == 0, err
    card = load_card(tmp_path / "run")
    assert card.training["recipe"] == "xu2017"
    assert card.preparation.opening_mm2 == 100
    recipe = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["recipe"]
    assert (recipe["bias_rate"], recipe["bias_decay"], recipe["fusion_rate"]) == (2, 0, 0.01)


def test_training_from_a_model_keeps_its_settings(leuko, heads, foreign_model, tmp_path):
    code, _, err = leuko(
        "train", heads, "-o", tmp_path / "run", "--init", foreign_model, "--steps", 1
    )
    assert code == 0, err
    card = load_card(tmp_path / "run")
    assert card.preparation == load_card(foreign_model).preparation
    assert card.stages == load_card(foreign_model).stages


def test_a_training_from_nothing_may_be_narrow(leuko, heads, tmp_path):
    code, _, err = leuko(
        "train", heads, "-o", tmp_path / "run", "--init", "none", "--width", 0.25, "--steps", 1
    )
    assert code == 0, err
    assert [stage[0] for stage in load_card(tmp_path / "run").stages] == [16, 32, 64, 128, 128]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--recipe", "adapt", "--init", "none"], "needs a trained model, but --init is none"),
        (["--folds", 3, "--held-out", 0.5], "--held-out does not work with cross-validation"),
        (["--init", "none", "--folds", 1], "with --folds 1 no subject is left for training"),
        (
            ["--recipe", "adapt", "--channels", "flair-3-slices"],
            "--channels flair-3-slices does not work with leuko-base",
        ),
        (["--recipe", "adapt", "--patience", 2], "--patience does not work with the recipe adapt"),
        (["--init", "none", "--heads", "nowhere"], "--heads does not work with the recipe modern"),
        (
            ["--init", "none", "--imagenet-weights", "f"],
            "--imagenet-weights does not work with --init none",
        ),
        (["--recipe", "adapt", "--heads", "nowhere"], "nowhere cannot be read: No such file"),
        (["--width", 0.5], "--width does not work with --init imagenet"),
        (["--recipe", "adapt", "--stages", 4], "remove it, or use --init imagenet or none"),
        (["--imagenet-kind", "IMAGENET1K_V1"], "remove it, or give --imagenet-weights FILE"),
        (["--init", "none", "--classes", ""], "expected background first"),
        (
            ["--init", "none", "--classes", "background,csf,WMH"],
            "--classes contains WMH; write wmh,",
        ),
        (
            ["--init", "none", "--classes", "background,a,Unknown"],
            "contains Unknown; write unknown,",
        ),
        (
            ["--init", "none", "--classes", "Background,csf"],
            "contains Background; write background,",
        ),
        (["--init", "none", "--classes", "background,wmh"], "holds no labelled subject"),
    ],
)
def test_trainings_that_cannot_be_are_refused(leuko, heads, tmp_path, options, said):
    code, out, err = leuko("train", heads, "-o", tmp_path / "run", *options)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_cross_validation_is_told(leuko, heads, foreign_model, tmp_path):
    run = tmp_path / "ours"
    options = ("--init", foreign_model, "--steps", 2, "--folds", 2)
    code, out, err = leuko("train", heads, "-o", run, *options)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "data    6 scans of 6 people, cross-validated in 2 folds"
    said = err.splitlines()
    assert [f"measuring head{k}" for k in range(6)] == said[:6]
    assert "step 6/6" in said[-1]
    assert lines[1] == "steps   3 trainings of 2"
    assert lines[2:4] == [f"model   {run}", f"report  {run / 'report.html'}"]
    assert lines[4].split() == ["before", "after", "change", "95", "%", "interval"]
    assert lines[5].startswith("Dice (DSC)")
    assert any(line.startswith("ours compared with phantom-model, on 6 people") for line in lines)


@pytest.fixture
def interruptible():
    """A process in the background of a shell ignores interrupts, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.linux
@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_training_says_how_to_go_on(heads, foreign_model, tmp_path):
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "leuko.cli",
        "train",
        heads,
        "-o",
        run,
        "--init",
        foreign_model,
    ]
    process = subprocess.Popen(
        [str(part) for part in [*command, "--steps", 5000]], stderr=subprocess.PIPE, text=True
    )
    awaited(lambda: list((run / FOLDER).glob("*")))  # it trains
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"stopped; resume with leuko train --resume {run}" in err
    assert "Traceback" not in err


def test_a_start_that_fails_leaves_no_run(leuko, heads, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    answer = leuko("train", heads, "-o", tmp_path / "run")
    assert_one_line_error(answer, "could not be downloaded", "--imagenet-weights FILE")
    assert not (tmp_path / "run").exists()


def test_a_run_is_resumed_from_anywhere(leuko, heads, foreign_model, tmp_path, monkeypatch):
    from leuko.training import loop

    monkeypatch.chdir(heads)
    monkeypatch.setattr(loop, "fit", lambda *_, **__: {})
    assert (
        leuko("train", ".", "-o", tmp_path / "run", "--init", foreign_model, "--steps", 1)[0] == 0
    )
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, out, err = leuko("train", "--resume", "run")
    assert code == 0, err
    assert "model   run" in out


def test_resume_finishes_a_run(leuko, heads, foreign_model, tmp_path):
    from conftest import small_settings
    from leuko.training import plan

    run = tmp_path / "run"
    plan.start(run, small_settings(heads, steps=3, init=str(foreign_model)))
    code, out, err = leuko("train", "--resume", run)
    assert code == 0, err
    assert f"model   {run}" in out
    load_card(run)


def test_a_log_has_the_last_step(capsys):
    from leuko.cli.text import progress_bar
    from leuko.training.loop import Progress

    with progress_bar() as (on_step, doing):
        doing("preparing")
        for step in range(1, 26):
            on_step(Progress(step, 25, 0.5, 3.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["preparing", "step 2/25  loss 0.5  3.0 images/s"]
    assert lines[-1] == "step 25/25  loss 0.5  3.0 images/s"


def test_resume_needs_the_scans(leuko, heads, foreign_model, tmp_path):
    from conftest import small_settings
    from leuko.training import plan

    data = tmp_path / "data"
    shutil.copytree(heads, data)
    plan.start(tmp_path / "run", small_settings(data, steps=1, init=str(foreign_model)))
    data.rename(tmp_path / "moved")
    answer = leuko("train", "--resume", tmp_path / "run")
    assert_one_line_error(answer, data, "does not exist; restore it")


def test_resume_stands_alone(leuko, heads, tmp_path):
    assert_one_line_error(leuko("train", heads, "--resume", tmp_path), "the run; remove DATA")
    for option in (("--steps", 9), ("-o", tmp_path), ("--compile",)):
        answer = leuko("train", "--resume", tmp_path, *option)
        whole = option[0].replace("-o", "--out")
        assert_one_line_error(answer, f"uses the settings of the run; remove {whole}")
    assert_one_line_error(leuko("train"), "give DATA and -o RUN")
    assert_one_line_error(leuko("train", "--resume", tmp_path), "is not a training run")


# Bad input: what every segmentation refuses, in one line, with exit code 2, leaving nothing.


def stretched(path):
    """A file whose header declares a voxel size of 0, which nibabel alone would mend silently."""
    raw = bytearray(nib.load(path).to_bytes())
    raw[80:84] = np.float32(0).tobytes()  # pixdim[2]
    path.write_bytes(gzip.compress(raw))


def singular(path):
    image = nib.load(path)
    image.header["srow_z"] = image.header["srow_y"]
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)


def with_voxels(change):
    """A file spoilt by a change of its voxels."""

    def spoil(path):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(change(image.get_fdata()), image.affine), path)

    return spoil


SPOILT = {
    "does not exist": lambda path: path.unlink(),
    "cannot be read as an image": lambda path: path.write_text("This is no image."),
    "damaged or truncated": lambda path: path.write_bytes(path.read_bytes()[:-2000]),
    "has shape 48x56x12x2; expected one 3-D image": with_voxels(lambda v: np.stack([v, v], -1)),
    "has shape 48x56; expected one 3-D image": with_voxels(lambda v: v[..., 5]),
    "2 NaN or infinite": with_voxels(
        lambda v: np.where(np.arange(v.size).reshape(v.shape) < 2, np.nan, v)
    ),
    "1 NaN or infinite": with_voxels(lambda v: np.where(v == v.max(), np.inf, v)),
    "all zeros": with_voxels(lambda v: 0 * v),
    "singular": singular,
    "voxel sizes": stretched,
}


@pytest.mark.parametrize("message", SPOILT)
@pytest.mark.parametrize("scan", ["FLAIR", "T1"])
def test_bad_scans_are_refused(leuko, phantom, model, tmp_path, message, scan):
    phantom.write(tmp_path)
    SPOILT[message](tmp_path / f"{scan}.nii.gz")
    answer = leuko(
        "segment", "--flair", tmp_path / "FLAIR.nii.gz", "--t1", tmp_path / "T1.nii.gz",
        "--model", model, "-o", tmp_path / "out",
    )  # fmt: skip
    assert_one_line_error(answer, message, f"{scan}.nii.gz")
    assert not (tmp_path / "out").exists()


def test_scans_that_are_no_pair_are_refused(leuko, phantom, model, tmp_path):
    phantom.write(tmp_path)
    flair, t1 = tmp_path / "FLAIR.nii.gz", tmp_path / "T1.nii.gz"
    common = ["segment", "--flair", flair, "--model", model, "-o", tmp_path / "out"]
    assert_one_line_error(leuko(*common, "--t1", flair), "hold the same image")
    elsewhere = nib.load(t1)
    elsewhere.affine[:3, 3] += 500
    nib.save(nib.Nifti1Image(np.asarray(elsewhere.dataobj), elsewhere.affine), t1)
    code, _, err = leuko(*common, "--t1", t1, "--align", "never")
    assert code == 2
    assert "T1.nii.gz covers 0% of the head" in err
    assert not (tmp_path / "out").exists()


def test_segment_refuses_a_folder_that_cannot_be_written_before_it_reads(leuko, tmp_path):
    (tmp_path / "file").touch()
    answer = leuko("segment", "--flair", tmp_path / "absent.nii", "-o", tmp_path / "file" / "out")
    assert_one_line_error(answer, "cannot write into", "choose another output folder")


def test_an_image_as_output_folder_is_refused(leuko, phantom, model, tmp_path):
    phantom.write(tmp_path)
    flair, out = tmp_path / "FLAIR.nii.gz", tmp_path / "mask.nii.gz"
    answer = leuko("segment", "--flair", flair, "--model", model, "-o", out)
    assert_one_line_error(answer, "mask.nii.gz is the name of an image; give a folder with -o")
    assert not out.exists()


def test_a_missing_t1_is_named(leuko, heads, model, tmp_path):
    flair = heads / "head0" / "FLAIR.nii.gz"
    answer = leuko("segment", "--flair", flair, "--model", model, "-o", tmp_path / "out")
    assert_one_line_error(answer, "needs a T1", "--t1")


def test_a_label_file_with_other_values_is_refused(leuko, phantom, tmp_path):
    phantom.write(tmp_path / "data" / "anna")
    wrong = phantom.labels.with_data(phantom.labels.data * 3)
    nifti.write(tmp_path / "data" / "anna" / "wmh.nii.gz", wrong)
    answer = leuko(
        "train", tmp_path / "data", "-o", tmp_path / "run", "--init", "none", "--held-out", 0
    )
    assert_one_line_error(answer, "label values 3; expected only 0, 1, 2")


def test_an_empty_training_folder_is_refused(leuko, tmp_path):
    (tmp_path / "data").mkdir()
    answer = leuko("train", tmp_path / "data", "-o", tmp_path / "run", "--init", "none")
    assert_one_line_error(answer, "holds no labelled subject", "wmh.nii.gz")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_that_is_absent_is_refused(leuko, heads, model, tmp_path):
    answer = leuko("train", heads, "-o", tmp_path / "run", "--device", "cuda")
    assert_one_line_error(answer, "no cuda device was found; use --device with one of: cpu")
    assert not (tmp_path / "run").exists()
    flair = heads / "head0" / "FLAIR.nii.gz"
    answer = leuko(
        "segment", "--flair", flair, "--model", model, "-o", tmp_path, "--device", "cuda"
    )
    assert_one_line_error(answer, "no cuda device")


def test_a_warning_goes_to_stderr(leuko, phantom, model, tmp_path):
    phantom.write(tmp_path)
    image = nib.load(tmp_path / "FLAIR.nii.gz")
    moved = image.affine.copy()
    moved[0, 3] += 5
    image.set_qform(moved, code=1)
    nib.save(image, tmp_path / "conflict.nii.gz")
    code, out, err = leuko(
        "segment", "--flair", tmp_path / "conflict.nii.gz", "--t1", tmp_path / "T1.nii.gz",
        "--model", model, "-o", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    assert "sform" not in out
    assert err.startswith("warning: ")
    assert "used the sform" in err


def test_synthetic_subjects_are_written_and_can_be_segmented(leuko, tmp_path):
    code, out, err = leuko("synth", "-o", tmp_path / "synth", "-n", "2", "--seed", "3")
    assert code == 0, err
    folders = [Path(line.split("  ")[0]) for line in out.splitlines()]
    assert folders == [tmp_path / "synth" / f"sub-0{n}" for n in (1, 2)]
    for name in ("FLAIR", "T1", "wmh", "tissue"):
        assert (folders[0] / f"{name}.nii.gz").is_file()
    flair = folders[0] / "FLAIR.nii.gz"
    code, out, err = leuko(
        "segment", "--flair", flair, "--model", SMALL_MODEL, "-o", tmp_path / "o"
    )
    assert code == 0, err
    assert "WMH volume" in out
    assert_one_line_error(leuko("synth", "-o", tmp_path / "synth"), "exists already")


def test_a_trained_model_is_exported(leuko, model, heads, tmp_path):
    code, out, err = leuko("export", model, "-o", tmp_path / "small")
    assert code == 0, err
    assert re.search(r"model   .*small  0\.\d MB", out)
    assert_one_line_error(leuko("export", tmp_path, "-o", tmp_path / "x"), "has no card.json")
    code, out, err = leuko(
        "segment", "--flair", heads / "head1" / "FLAIR.nii.gz", "-o", tmp_path / "out",
        "--model", tmp_path / "small",
    )  # fmt: skip
    assert code == 2
    assert "needs a T1" in err


def test_models_are_listed_found_and_checked(leuko, tmp_path, monkeypatch, model):
    monkeypatch.setenv("LEUKO_CACHE", str(tmp_path))
    code, out, _ = leuko("models", "list")
    assert code == 0
    assert out.startswith("leuko-base  ")
    assert "  licence " in out
    code, out, _ = leuko("models", "path", "leuko-base")
    assert (Path(out.strip()) / "card.json").is_file()
    code, out, _ = leuko("models", "verify")
    assert out.startswith("leuko-base  good  sha256 ")
    assert_one_line_error(leuko("models", "verify", "nobody"), "neither a model folder nor")
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", model)
    code, out, _ = leuko("models", "pull", archive)
    assert code == 0
    assert out.startswith("phantom-model  ")
    weights = tmp_path / "models" / "phantom-model" / load_card(model).weights
    weights.write_bytes(b"damaged")
    answer = leuko("models", "verify", "phantom-model")
    assert_one_line_error(answer, "delete it and run leuko models pull again")


def test_the_number_of_a_series_chooses_from_a_study_alone(leuko, heads, tmp_path):
    result = leuko(
        "segment", "--flair", heads / "head0/FLAIR.nii.gz", "--t1-series", "3", "-o", tmp_path / "o"
    )
    assert_one_line_error(result, "need --study")


def test_one_file_given_twice_is_an_error(leuko, phantom, tmp_path):
    phantom.write(tmp_path)
    flair = tmp_path / "FLAIR.nii.gz"
    result = leuko("segment", "--flair", flair, "--t1", flair, "-o", tmp_path / "out")
    assert_one_line_error(result, "hold the same image; give a FLAIR and a T1")


def test_the_bundled_model_runs_without_torch(heads, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from leuko.cli import main\n"
        f"head = {str(heads / 'head0')!r}\n"
        f"main(['segment', '--flair', f'{{head}}/FLAIR.nii.gz', '-o', {str(tmp_path)!r}])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert (tmp_path / "tissue.nii.gz").is_file()


def test_a_made_up_head_is_the_same_every_time():
    first, second = (make_phantom(np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.flair.data, second.flair.data)
    assert 0 < first.labels.data.mean() < 0.05
