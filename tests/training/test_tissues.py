"""Models of tissues: trained with label maps of several classes, measured, exported and used."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import SMALL, small_settings
from leuko.errors import LeukoError
from leuko.evaluation.evaluate import compare_classes
from leuko.evaluation.labels import IGNORED, tissue_labels
from leuko.io import nifti
from leuko.model import runtime
from leuko.model.card import load_card
from leuko.model.network import vgg16
from leuko.model.predict import predict, to_tissue
from leuko.preprocessing.slices import Preparation
from leuko.training import loop, plan
from leuko.training.dataset import Subject, find_subjects, load, read_classes
from leuko.training.losses import ALL_BUT_BACKGROUND, cross_entropy_dice
from phantoms import make_phantom

# Of the values AIR, FAT, SKULL, CSF, GREY, WHITE and LESION.
NAMES = ("background", "background", "background", "csf", "grey", "white", "white")
NAMES_WITH_WMH = (*NAMES[:-1], "wmh")


@pytest.fixture(scope="module")
def tissue_heads(tmp_path_factory) -> Path:
    """Four subjects with a label map of tissues each."""
    folder = tmp_path_factory.mktemp("tissue-heads")
    for number in range(4):
        phantom = make_phantom(np.random.default_rng(number), **SMALL)
        home = folder / f"head{number}"
        phantom.write(home)
        (home / "wmh.nii.gz").unlink()
        nifti.write(home / "tissue.nii.gz", phantom.tissue)
    return folder


def tissue_settings(data, names=NAMES, **changes):
    classes = tissue_labels(names).classes
    changes = {"steps": 2, "held_out": 0.25, "classes": classes, "label_names": names} | changes
    return small_settings(data, **changes)


@pytest.fixture(scope="module")
def tissue_model(tissue_heads, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("models") / "tissues"
    t1_slices = Preparation(channels="t1-3-slices", pixel_mm=3.0)
    settings = tissue_settings(tissue_heads, steps=120, preparation=t1_slices)
    plan.start(run, replace(settings, recipe=replace(settings.recipe, normalised=True)))
    loop.fit(run)
    return run


def test_values_of_one_name_are_one_class_and_wmh_is_the_last():
    labelling = tissue_labels(("background", "grey", "wmh", "grey", "csf", "unknown"))
    assert labelling.classes == ("background", "grey", "csf", "wmh")
    found = labelling.classified(np.array([[0, 1, 2], [3, 4, 5]]))
    assert found.tolist() == [[0, 1, 3], [1, 2, IGNORED]]


def test_tissues_are_learnt_from_three_slices_of_t1(tissue_model):
    assert load_card(tissue_model).classes == ("background", "csf", "grey", "white")
    (row,) = json.loads((tissue_model / "run.json").read_text())["measures"].values()
    for name, least in (("csf", 0.5), ("grey", 0.5), ("white", 0.85)):
        assert row[f"{name}_dsc"] > least
        assert row[f"{name}_h95_mm"] < 30
    assert not any("lesion" in key or "background" in key for key in row)


def test_the_measures_are_those_of_the_maps_that_are_kept(tissue_model, tissue_heads):
    ((name, kept),) = json.loads((tissue_model / "run.json").read_text())["measures"].items()
    found = nifti.read_labels(tissue_model / "masks" / name / "tissue.nii.gz", values=range(4))
    truth = nifti.read_labels(tissue_heads / name / "tissue.nii.gz", values=range(7))
    grey = (found.data == 2, truth.data == 4)
    assert kept["grey_dsc"] == pytest.approx(
        2 * (grey[0] & grey[1]).sum() / (grey[0].sum() + grey[1].sum())
    )
    assert kept["grey_reference_ml"] == pytest.approx(truth.ml(grey[1]))


def test_unknown_voxels_count_neither_in_the_loss_nor_in_the_measures(tissue_heads):
    names = ("background", "background", "background", "unknown", "grey", "white", "white")
    home = tissue_heads / "head0"
    subject = Subject("", home / "FLAIR.nii.gz", home / "T1.nii.gz", home / "tissue.nii.gz")
    labelling = tissue_labels(names)
    truth = read_classes(subject, labelling)
    slices = load([subject], Preparation(pixel_mm=3.0), labelling)
    tissue = nifti.read_labels(subject.labels, values=range(7)).data
    assert (slices.labels == IGNORED).sum() == (tissue == 3).sum() > 0
    for wrong in (0, 1, 2):  # whatever is found there
        found = truth.with_data(np.where(truth.data == IGNORED, wrong, truth.data))
        row = compare_classes(truth, found, labelling.classes)
        assert row["grey_dsc"] == row["white_dsc"] == 1


def test_each_pixel_has_the_class_that_fills_most_of_it(tissue_heads):
    labelling = tissue_labels(NAMES)
    subjects = find_subjects(tissue_heads, labelling)
    coarse, own = (load(subjects, Preparation(pixel_mm=mm), labelling).labels for mm in (4.0, 3.0))
    voxels = np.concatenate([read_classes(s, labelling).data.ravel() for s in subjects])
    for number in (1, 2, 3):
        assert (own == number).sum() == (voxels == number).sum()
        assert (coarse == number).sum() * 16 == pytest.approx((own == number).sum() * 9, rel=0.15)


def test_without_wmh_the_overlap_of_every_tissue_is_learnt():
    labels = torch.tensor([[[0, 1, 2, 2]]])
    sure = 50 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    missed = sure.clone()
    missed[0, :, 0, 1] = torch.tensor([50, -50, -50])  # class 1, found nowhere
    whole, part = (
        cross_entropy_dice(logits, labels, overlapping=ALL_BUT_BACKGROUND).item()
        - cross_entropy_dice(logits, labels).item()
        for logits in (sure, missed)
    )
    assert whole == pytest.approx(0, abs=1e-5)
    assert part == pytest.approx(0.25)  # one of two classes: 1 - (0 + 1) / (1 + 1), halved


def test_a_model_of_tissues_is_exported_and_predicts_the_same(leuko, tissue_model, tmp_path):
    out = tmp_path / "exported"
    code, printed, err = leuko("export", tissue_model, "-o", out)
    assert code == 0, err
    assert float(printed.split("Dice ")[1].split()[0]) > 0.97
    head = make_phantom(np.random.default_rng(9), **SMALL)
    maps = []
    for folder in (tissue_model, out):
        probabilities = predict(head.flair, head.t1, runtime.load(folder))
        assert probabilities.shape == (4, *head.flair.data.shape)
        maps.append(to_tissue(probabilities, head.flair).data)
    assert (maps[0] == maps[1]).mean() > 0.98
    assert (maps[0] == tissue_labels(NAMES).classified(head.tissue.data)).mean() > 0.8


def test_the_documented_python_gives_the_tissues_of_a_scan(
    tissue_model, tissue_heads, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("FLAIR.nii.gz", "T1.nii.gz"):
        (tmp_path / name).symlink_to(tissue_heads / "head1" / name)
    (tmp_path / "TISSUES").symlink_to(tissue_model)
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    exec(page.split("```python\n")[1].split("```")[0], {})  # noqa: S102
    nifti.read_labels(tmp_path / "tissue.nii.gz", values=range(4))


def test_a_model_without_wmh_segments_none_and_says_so(leuko, tissue_model, heads, tmp_path):
    flair, t1 = (heads / "head0" / f"{name}.nii.gz" for name in ("FLAIR", "T1"))
    (tmp_path / "pairs.tsv").write_text(f"id\tflair\tt1\na\t{flair}\t{t1}\n")
    for command in (
        ("segment", "--flair", flair, "--t1", t1),
        ("batch", tmp_path / "pairs.tsv"),
    ):
        code, _, err = leuko(*command, "--model", tissue_model, "-o", tmp_path / "out")
        assert code == 2
        assert "has no class wmh; its classes are background, csf, grey, white" in err
        assert not (tmp_path / "out").exists()


def test_tissues_with_wmh_and_four_stages_from_the_command_line(leuko, tissue_heads, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    code, printed, err = leuko(
        "train", tissue_heads, "-o", run, "--classes", ",".join(NAMES_WITH_WMH), "--init", "none",
        "--width", 0.1, "--stages", 4, "--steps", 2, "--held-out", 0.25,
    )  # fmt: skip
    assert code == 0, err
    card = load_card(run)
    assert card.classes == ("background", "csf", "grey", "white", "wmh")
    assert card.stages == vgg16(0.1)[:4]
    lines = printed.splitlines()
    shown = lines[lines.index("mean of 1 held-out subject:") + 1 :]
    assert [line for line in shown if not line.startswith(" ")] == ["csf", "grey", "white", "wmh"]
    assert sum("Dice (DSC)" in line for line in shown) == 4
    assert sum("lesion F1" in line for line in shown) == 1
    home = tissue_heads / "head0"
    code, _, err = leuko(
        "segment", "--flair", home / "FLAIR.nii.gz", "--t1", home / "T1.nii.gz",
        "--model", run, "-o", out,
    )  # fmt: skip
    assert code == 0, err
    nifti.read_labels(out / "tissue.nii.gz", values=range(5))


@pytest.mark.parametrize("wmh", [False, True])
def test_a_tissue_training_that_was_stopped_gives_the_same_bytes(tissue_heads, tmp_path, wmh):
    names = NAMES_WITH_WMH if wmh else NAMES
    settings = tissue_settings(tissue_heads, names, steps=4, stages=((4, 4), (8, 8)), held_out=0.0)
    for name in ("whole", "stopped"):
        plan.start(tmp_path / name, settings)
    loop.fit(tmp_path / "whole")

    def stop(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.fit(tmp_path / "stopped", on_step=stop, checkpoint_seconds=0)
    loop.fit(tmp_path / "stopped")
    hashes = [load_card(tmp_path / name).weights_sha256 for name in ("whole", "stopped")]
    assert hashes[0] == hashes[1]


def test_a_tissue_training_may_stop_early(tissue_heads, tmp_path):
    settings = tissue_settings(tissue_heads, steps=40, patience=1)
    recipe = replace(settings.recipe, validate_steps=1)
    plan.start(tmp_path / "run", replace(settings, recipe=recipe))
    assert loop.fit(tmp_path / "run")
    assert load_card(tmp_path / "run").training["steps"] < 40


@pytest.mark.parametrize(
    ("names", "changes", "said"),
    [
        (("csf", "grey"), {}, "expected background first"),
        (("background", "background"), {}, "and another class"),
        (("background", "csf", ""), {}, "an empty or unprintable name"),
        (NAMES, {"classes": ("background", "wmh")}, "has the classes background, wmh"),
        (NAMES, {"folds": 2}, "work only with WMH masks"),
        (NAMES[:-1], {}, "holds the label values 6"),
        ((*NAMES, "cyst"), {}, r"cyst \(label 7\) is labelled in 0 of .* expected 1"),
    ],
)
def test_label_maps_that_cannot_be_trained_with_are_refused(
    tissue_heads, tmp_path, names, changes, said
):
    with pytest.raises(LeukoError, match=said):
        plan.start(tmp_path / "run", tissue_settings(tissue_heads, names, **changes))
    assert not (tmp_path / "run").exists()


def test_labels_of_wmh_train_no_model_without_wmh(heads, tissue_model, tmp_path):
    card = load_card(tissue_model)
    settings = small_settings(
        heads, steps=1, init=str(tissue_model), classes=card.classes, preparation=card.preparation
    )
    with pytest.raises(LeukoError, match="cannot be trained on WMH masks"):
        plan.start(tmp_path / "run", settings)


def test_a_tissue_model_is_trained_further_with_the_same_classes(
    leuko, tissue_model, tissue_heads, tmp_path
):
    options = ("--init", tissue_model, "--steps", 1, "--held-out", 0)
    given = ("train", tissue_heads, "-o", tmp_path / "run", *options, "--classes")
    code, _, err = leuko(*given, ",".join(NAMES_WITH_WMH))
    assert code == 2
    assert "has the classes background, csf, grey, white; give those" in err
    code, _, err = leuko(*given, ",".join(NAMES))
    assert code == 0, err
    assert load_card(tmp_path / "run").classes == load_card(tissue_model).classes
