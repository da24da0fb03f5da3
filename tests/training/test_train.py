"""The training loop: what it learns, what it keeps, and that stopping it changes nothing."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import small_settings
from leuko.errors import LeukoError
from leuko.evaluation.evaluate import evaluate_folders
from leuko.io import nifti
from leuko.io.files import sha256
from leuko.model.card import WEIGHTS_FILE, load_card
from leuko.model.network import SpecialisedVGG
from leuko.preprocessing.slices import Preparation
from leuko.training import holdout, loop, plan
from leuko.training.recipes import MODERN, XU2017, Phase
from leuko.training.tensorboard_log import FOLDER, PICTURE, PICTURES

NARROW = ((4, 4), (8, 8))
# The paper's recipe on features from scratch, whose scale is one.
SHORT_XU2017 = replace(
    XU2017,
    steps=8,
    images_per_step=3,
    phases=(Phase(0.5, 1e-6, 1e-6, momentum=0.99), Phase(0.5, 1e-7, 1e-7, momentum=0.999)),
)


class StoppedError(Exception):
    """Stands for whatever ends a training early."""


def stop_after(step):
    def on_step(progress):
        if progress.step == step:
            raise StoppedError

    return on_step


def weights(run):
    return sha256(run / WEIGHTS_FILE)


def test_training_learns_a_phantom(model):
    record = json.loads((model / "run.json").read_text())
    (measures,) = record["measures"].values()
    assert measures["dsc"] > 0.8
    assert measures["lesion_f1"] > 0.8


def test_the_run_records_what_it_did(model, heads):
    record = json.loads((model / "run.json").read_text())
    assert record["finished"]
    assert record["settings"]["recipe"]["steps"] == 300
    assert record["versions"]["torch"] == torch.__version__
    assert list(record["seconds"]) == ["prepare", "train", "measure"]
    train_names = {s["name"] for s in record["subjects"]["train"]}
    held_out = {s["name"] for s in record["subjects"]["held_out"]}
    assert len(train_names) == 5
    assert len(held_out) == 1
    assert set(record["measures"]) == held_out
    for subject in record["subjects"]["train"]:
        assert set(subject["files"]) == {"flair", "t1", "labels"}
        for file in subject["files"].values():
            assert sha256(heads / file["path"]) == file["sha256"]
    card = load_card(model)
    assert set(card.training["subjects"]) == train_names
    assert card.weights_sha256 == weights(model)


@pytest.mark.parametrize("kind", ["modern", "xu2017"])
def test_a_resumed_run_gives_the_same_bytes(heads, tmp_path, kind):
    settings = small_settings(heads, steps=8, stages=NARROW, held_out=0.0)
    if kind == "xu2017":
        settings = replace(settings, recipe=SHORT_XU2017)
    for name in ("whole", "stopped"):
        plan.start(tmp_path / name, settings)
    loop.fit(tmp_path / "whole")
    for step in (3, 5):  # the second stop lies in the second phase
        with pytest.raises(StoppedError):
            loop.fit(tmp_path / "stopped", on_step=stop_after(step), checkpoint_seconds=0)
    loop.fit(tmp_path / "stopped")
    assert weights(tmp_path / "whole") == weights(tmp_path / "stopped")


@pytest.mark.linux
def test_a_killed_run_gives_the_same_bytes(heads, tmp_path):
    settings = small_settings(heads, steps=100, stages=NARROW, held_out=0.0)
    for name in ("whole", "killed"):
        plan.start(tmp_path / name, settings)
    loop.fit(tmp_path / "whole")
    code = (
        "import sys; from pathlib import Path; from leuko.training import loop;"
        "loop.fit(Path(sys.argv[1]), checkpoint_seconds=0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "killed")])
    while torch.load(tmp_path / "killed" / plan.CHECKPOINT_FILE)["step"] < 5:
        time.sleep(0.05)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / WEIGHTS_FILE).exists()
    assert torch.load(tmp_path / "killed" / plan.CHECKPOINT_FILE)["step"] < 100
    loop.fit(tmp_path / "killed")
    assert weights(tmp_path / "whole") == weights(tmp_path / "killed")


def test_the_seed_decides_the_weights(heads, tmp_path):
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        settings = small_settings(heads, steps=2, stages=NARROW, held_out=0.0, seed=seed)
        plan.start(tmp_path / name, settings)
        loop.fit(tmp_path / name)
        digests.append(weights(tmp_path / name))
    assert digests[0] == digests[1] != digests[2]


def test_frozen_stages_stay_as_they_are_for_a_while(heads, model, tmp_path):
    run = tmp_path / "run"
    settings = small_settings(heads, steps=6, init=str(model), held_out=0.0)
    recipe = replace(settings.recipe, frozen_stages=2, frozen_part=0.5)
    plan.start(run, replace(settings, recipe=recipe))
    begun = state(run)
    with pytest.raises(StoppedError):
        loop.fit(run, on_step=stop_after(3), checkpoint_seconds=0)
    changed = {name for name, value in state(run).items() if not torch.equal(value, begun[name])}
    assert any(name.startswith("stages.2") for name in changed)
    assert any(name.startswith("sides.0") for name in changed)
    assert not any(name.startswith(("stages.0", "stages.1")) for name in changed)
    loop.fit(run)
    trained = load_file(run / WEIGHTS_FILE)
    assert not torch.equal(trained["stages.0.0.weight"], begun["stages.0.0.weight"])


def state(run):
    return torch.load(run / plan.CHECKPOINT_FILE)["model"]


def test_the_model_is_the_moving_average_of_the_weights(heads, tmp_path):
    settings = small_settings(heads, steps=20, stages=NARROW, held_out=0.0)
    recipe = replace(settings.recipe, averaged_part=0.5, phases=(Phase(1, 3e-3, 3e-3),))
    plan.start(tmp_path / "run", replace(settings, recipe=recipe))
    mean, last, spans = state(tmp_path / "run"), {}, []

    def on_step(_):
        # The checkpoint is written before a step is told.
        now, spans_done = state(tmp_path / "run"), len(spans) + 1
        span = max(1.0, min(10.0, 1 + spans_done / 10))
        spans.append(span)
        last.update(now)
        for name, value in mean.items():
            value.lerp_(now[name], 1 / span)

    loop.fit(tmp_path / "run", on_step=on_step, checkpoint_seconds=0)
    found = load_file(tmp_path / "run" / WEIGHTS_FILE)
    assert not torch.equal(found["fusion.weight"], last["fusion.weight"])
    for name, value in mean.items():
        torch.testing.assert_close(found[name], value)


def test_a_part_of_the_start_stays_in_the_model(heads, model, tmp_path):
    begun = load_file(model / WEIGHTS_FILE)
    settings = small_settings(heads, steps=4, init=str(model), held_out=0.0)
    for name, part in (("whole", 0.0), ("half", 0.5), ("none", 1.0)):
        recipe = replace(settings.recipe, start_part=part)
        plan.start(tmp_path / name, replace(settings, recipe=recipe))
        with pytest.raises(StoppedError):
            loop.fit(tmp_path / name, on_step=stop_after(2), checkpoint_seconds=0)
        loop.fit(tmp_path / name)
    whole, half, none = (load_file(tmp_path / n / WEIGHTS_FILE) for n in ("whole", "half", "none"))
    for name, value in begun.items():
        torch.testing.assert_close(half[name], (whole[name] + value) / 2)
        assert torch.equal(none[name], value)


def validated(data, **changes):
    """Settings that look at a validation subject every two steps."""
    settings = small_settings(data, steps=40, stages=NARROW, held_out=0.2, patience=2)
    phases = (Phase(1, 0.0, 0.0),)
    recipe = replace(settings.recipe, validate_steps=2, phases=phases)
    return replace(settings, recipe=replace(recipe, **changes))


def test_a_training_that_gains_nothing_stops_early(heads, tmp_path):
    plan.start(tmp_path / "run", validated(heads))
    steps = []
    loop.fit(tmp_path / "run", on_step=lambda progress: steps.append(progress.step))
    assert steps[-1] == 6  # the first look, at step 2, cannot be bettered; two more
    assert load_card(tmp_path / "run").training["steps"] == 2
    record = json.loads((tmp_path / "run" / plan.RUN_FILE).read_text())
    sizes = {group: len(subjects) for group, subjects in record["subjects"].items()}
    assert sizes == {"train": 4, "validation": 1, "held_out": 1}
    assert record["finished"]


def test_the_weights_of_the_best_look_are_kept(heads, tmp_path):
    run = tmp_path / "run"
    phases = (Phase(0.1, 1e-3, 1e-3), Phase(0.9, 3.0, 3.0))  # from step 4 on it goes astray
    plan.start(run, validated(heads, phases=phases))
    kept = {}
    loop.fit(run, on_step=lambda at: kept.update({at.step: state(run)}), checkpoint_seconds=0)
    best = load_card(run).training["steps"]
    assert best == 4
    assert max(kept) == 8
    for name, value in load_file(run / WEIGHTS_FILE).items():
        torch.testing.assert_close(value, kept[best][name])


def test_a_training_that_stops_early_can_be_stopped(heads, tmp_path):
    for name in ("whole", "stopped"):
        plan.start(tmp_path / name, validated(heads, phases=(Phase(1, 1e-3, 0.0),), steps=10))
    loop.fit(tmp_path / "whole")
    with pytest.raises(StoppedError):
        loop.fit(tmp_path / "stopped", on_step=stop_after(6), checkpoint_seconds=0)
    loop.fit(tmp_path / "stopped")
    assert weights(tmp_path / "whole") == weights(tmp_path / "stopped")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 4}, "4 steps are too few for --patience 2, .* use --steps 5 or more"),
        ({"start_part": 0.4}, "--patience does not work with the recipe modern"),
    ],
)
def test_a_patience_that_would_never_end_is_refused(heads, tmp_path, changes, said):
    with pytest.raises(LeukoError, match=said):
        plan.start(tmp_path / "run", validated(heads, **changes))
    assert not (tmp_path / "run").exists()


def test_stopping_early_needs_a_subject_to_stop_by(heads, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "anna").symlink_to(heads / "head0")
    with pytest.raises(LeukoError, match="2 people or more, one for validation"):
        plan.start(tmp_path / "run", validated(tmp_path / "data"))


def test_curves_and_pictures_are_logged(heads, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    recipe = {"phases": (Phase(1, 1e-3, 1e-3),), "steps": 6}
    plan.start(run, validated(heads, **recipe))
    losses = []
    with pytest.raises(StoppedError):
        loop.fit(run, on_step=stop_after(4), checkpoint_seconds=0)
    loop.fit(run, on_step=lambda progress: losses.append(progress.loss))
    logged = EventAccumulator(str(run / FOLDER))
    logged.Reload()
    assert {"loss", "rate", "images_per_second", "validation_loss"} <= set(logged.Tags()["scalars"])
    found = [event.value for event in logged.Scalars("loss")]
    assert len(found) == 6  # those of the steps that were done twice are gone
    assert found[-len(losses) :] == pytest.approx(losses)
    assert len(logged.Scalars("validation_loss")) == 3
    (picture,) = logged.Images(PICTURE)
    assert picture.width % 3 == picture.height % PICTURES == 0
    assert picture.encoded_image_string.startswith(b"\x89PNG")


def test_sgd_moves_as_caffe_does_when_the_rate_changes():
    phases = [Phase(1, 0.1, 0.1, momentum=0.9)] * 3 + [Phase(1, 0.01, 0.01, momentum=0.99)] * 3
    weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], weight_decay=0.5)
    caffe, velocity = 1.0, 0.0
    for step, phase in enumerate(phases):
        loop._set_rate(optimizer, phase, phase.rate_to)
        gradient = math.sin(step)
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        velocity = phase.momentum * velocity + phase.rate_to * (gradient + 0.5 * caffe)
        caffe -= velocity
        assert weight.item() == pytest.approx(caffe, rel=1e-12)


def test_biases_and_fusion_have_the_rates_and_the_decay_of_the_recipe():
    network = SpecialisedVGG(2, NARROW)
    recipe = replace(XU2017, weight_decay=0.5)
    optimizer = loop._optimizer(recipe, network)
    loop._set_rate(optimizer, Phase(1, 0.1, 0.1, momentum=0.9), 0.1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        rate = 0.1 * (2 if name.endswith("bias") else 1) * (0.01 if "fusion" in name else 1)
        decay = 0 if name.endswith("bias") else 0.5
        expected = before[name] - rate * (1 + decay * before[name])
        torch.testing.assert_close(parameter.data, expected)


def test_a_recipe_without_factors_has_one_group_of_parameters():
    network = SpecialisedVGG(2, NARROW)
    (group,) = loop._optimizer(MODERN, network).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in network.parameters()]
    assert group["weight_decay"] == MODERN.weight_decay


def test_a_training_starts_from_a_trained_model(heads, model, tmp_path):
    settings = small_settings(heads, steps=1, init=str(model), held_out=0.0)
    first = []
    plan.start(tmp_path / "run", settings)
    loop.fit(tmp_path / "run", on_step=lambda progress: first.append(progress.loss))
    plan.start(tmp_path / "scratch", replace(settings, init="none"))
    loop.fit(tmp_path / "scratch", on_step=lambda progress: first.append(progress.loss))
    assert first[0] < 0.5 < first[1]


def test_resuming_needs_the_start_no_more(heads, model, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    for path in filter(Path.is_file, model.iterdir()):
        (start / path.name).write_bytes(path.read_bytes())
    plan.start(tmp_path / "run", small_settings(heads, steps=2, init=str(start), held_out=0.0))
    for path in start.iterdir():
        path.unlink()
    loop.fit(tmp_path / "run")
    assert load_card(tmp_path / "run").training["init"] == "start"


def test_a_model_of_another_shape_is_no_start(heads, model, tmp_path):
    settings = small_settings(heads, steps=1, init=str(model), stages=NARROW, held_out=0.0)
    with pytest.raises(LeukoError, match="has other stages or classes"):
        plan.start(tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("channels", ["flair-3-slices", "t1-3-slices"])
def test_the_other_channel_recipes_train(heads, tmp_path, channels):
    preparation = Preparation(channels=channels, pixel_mm=3.0)
    settings = small_settings(heads, steps=2, stages=NARROW, preparation=preparation)
    plan.start(tmp_path / "run", settings)
    assert loop.fit(tmp_path / "run")
    assert load_card(tmp_path / "run").preparation.channels == channels


def test_threads_and_precision_are_those_of_the_start(heads, tmp_path):
    plan.start(tmp_path / "run", small_settings(heads, steps=1), threads=1)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["device"], record["threads"]) == ("cpu", 1)
    assert record["precision"] in ("bf16-mixed", "32-true")
    loop.fit(tmp_path / "run")
    assert torch.get_num_threads() == 1


def test_seconds_add_up_over_interruptions(heads, tmp_path):
    run = tmp_path / "run"
    plan.start(run, small_settings(heads, steps=4, stages=NARROW, held_out=0.0))
    with pytest.raises(StoppedError):
        loop.fit(run, on_step=stop_after(3), checkpoint_seconds=0)
    spent = torch.load(run / plan.CHECKPOINT_FILE)["seconds"]
    loop.fit(run)
    assert json.loads((run / "run.json").read_text())["seconds"]["train"] > spent > 0


def test_a_damaged_checkpoint_is_named(heads, tmp_path):
    run = tmp_path / "run"
    plan.start(run, small_settings(heads, steps=4, stages=NARROW))
    (run / plan.CHECKPOINT_FILE).write_bytes(b"damaged")
    with pytest.raises(LeukoError, match=r"checkpoint.ckpt is damaged or missing"):
        loop.fit(run)


def test_a_run_without_its_record_is_not_started_over(heads, tmp_path):
    run = tmp_path / "run"
    plan.start(run, small_settings(heads, steps=1, stages=NARROW))
    (run / "run.json").unlink()
    with pytest.raises(LeukoError, match="is not empty"):
        plan.start(run, small_settings(heads, steps=1, stages=NARROW, seed=9))


def test_a_segmentation_is_no_run(tmp_path):
    (tmp_path / "run.json").write_text('{"command": "segment"}')
    with pytest.raises(LeukoError, match="is not a training run"):
        loop.fit(tmp_path)


def test_flair_alone_trains_where_the_channels_need_no_t1(heads, tmp_path):
    data = tmp_path / "data"
    for subject in ("head0", "head1"):
        (data / subject).mkdir(parents=True)
        for name in ("FLAIR.nii.gz", "wmh.nii.gz"):
            (data / subject / name).symlink_to(heads / subject / name)
    settings = small_settings(data, steps=1, stages=NARROW, held_out=0.5)
    with pytest.raises(LeukoError, match=r"head0 has no T1.nii.gz, but the channels"):
        plan.start(tmp_path / "run", settings)
    flair_alone = Preparation(channels="flair-3-slices", pixel_mm=3.0)
    plan.start(tmp_path / "run", replace(settings, preparation=flair_alone))
    assert len(loop.fit(tmp_path / "run")) == 1


def test_a_run_folder_is_not_overwritten(heads, model):
    with pytest.raises(
        LeukoError, match="is not empty; to resume an interrupted run, use leuko train --resume"
    ):
        plan.start(model, small_settings(heads, steps=1))


def test_changed_scans_are_not_resumed_with(heads, tmp_path):
    data = tmp_path / "data"
    for subject in ("head0", "head1"):
        (data / subject).mkdir(parents=True)
        for file in (heads / subject).iterdir():
            (data / subject / file.name).write_bytes(file.read_bytes())
    plan.start(tmp_path / "run", small_settings(data, steps=1))
    labels = nifti.read(data / "head1" / "wmh.nii.gz")
    nifti.write(data / "head1" / "wmh.nii.gz", labels.with_data(np.roll(labels.data, 1, axis=0)))
    with pytest.raises(LeukoError, match=r"scans of head1 in .* have changed"):
        loop.fit(tmp_path / "run")


def test_a_scan_that_cannot_be_measured_is_found_before_the_training(heads, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(heads, data)
    labels = nifti.read(data / "head3" / "wmh.nii.gz")
    cut = labels.with_data(labels.data)
    nifti.write(data / "head3" / "wmh.nii.gz", replace(cut, data=cut.data[1:]))
    with pytest.raises(LeukoError, match="head3"):
        plan.start(tmp_path / "run", small_settings(data, steps=1))
    assert not (tmp_path / "run").exists()


def test_a_t1_of_another_head_is_warned_of_before_the_training(heads, tmp_path, caplog):
    data = tmp_path / "data"
    shutil.copytree(heads, data)
    shutil.copy(heads / "head1" / "T1.nii.gz", data / "head3" / "T1.nii.gz")
    plan.start(tmp_path / "run", small_settings(data, steps=1))
    (record,) = caplog.records
    assert record.getMessage().startswith("head3: the T1 may not be registered to the FLAIR (")


def test_a_t1_that_is_not_looked_at_may_be_damaged(heads, tmp_path, caplog):
    data = tmp_path / "data"
    shutil.copytree(heads, data)
    for home in data.iterdir():
        (home / "T1.nii.gz").write_bytes(b"damaged")
    settings = small_settings(data, steps=1)
    with pytest.raises(LeukoError, match=r"head0: .*T1.nii.gz"):
        plan.start(tmp_path / "run", settings)
    flair_alone = replace(settings.preparation, channels="flair-3-slices")
    plan.start(tmp_path / "run", replace(settings, preparation=flair_alone))
    loop.fit(tmp_path / "run")
    assert not caplog.records


def test_a_t1_that_is_its_flair_is_found_before_the_training(heads, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(heads, data)
    shutil.copy(data / "head3" / "FLAIR.nii.gz", data / "head3" / "T1.nii.gz")
    with pytest.raises(LeukoError, match=r"head3: .* hold the same image"):
        plan.start(tmp_path / "run", small_settings(data, steps=1))


@pytest.mark.parametrize(
    ("with_wmh", "folds", "said"),
    [
        (0, 0, "in 0 of the people .* expected 1"),
        (1, 2, "in 1 of the people .* expected 2"),
        (2, 2, None),
    ],
)
def test_people_with_wmh_are_needed_to_train_with(heads, tmp_path, with_wmh, folds, said):
    data = tmp_path / "data"
    shutil.copytree(heads, data)
    for path in sorted(data.glob("*/wmh.nii.gz"))[with_wmh:]:
        labels = nifti.read_labels(path, values=(0, 1))
        nifti.write(path, labels.with_data(np.zeros_like(labels.data)))
    settings = small_settings(data, steps=1, held_out=0, folds=folds)
    if said:
        with pytest.raises(LeukoError, match=said):
            plan.start(tmp_path / "run", settings)
    else:
        plan.start(tmp_path / "run", settings)


def test_what_lies_in_a_folder_is_not_taken_for_a_runs_own(heads, tmp_path):
    shutil.copytree(heads / "head0", tmp_path / "run" / "masks" / "head0")
    with pytest.raises(LeukoError, match="is not empty"):
        plan.start(tmp_path / "run", small_settings(heads, steps=1))


def test_a_training_that_stopped_early_is_measured_with_the_same_weights(
    heads, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    recipe = replace(small_settings(heads, steps=40).recipe, validate_steps=1)
    plan.start(run, small_settings(heads, steps=40, recipe=recipe, patience=1))
    steps = []

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(holdout, "measures", stopped)
        with pytest.raises(KeyboardInterrupt):
            loop.fit(run, on_step=lambda at: steps.append(at.step))
    assert steps[-1] < 40
    loop.fit(run, on_step=steps.append)
    assert len(steps) == steps[-1]


def test_what_is_done_besides_the_steps_is_told(heads, tmp_path):
    plan.start(tmp_path / "run", small_settings(heads, steps=1))
    told = []
    measures = loop.fit(tmp_path / "run", doing=told.append)
    assert told == ["preparing", *(f"measuring {name}" for name in measures)]


def test_masks_of_held_out_subjects_are_kept(heads, tmp_path):
    plan.start(tmp_path / "run", small_settings(heads, steps=40, held_out=0.5))
    measures = loop.fit(tmp_path / "run")
    assert len(measures) == 3
    again = evaluate_folders(heads, tmp_path / "run" / holdout.MASKS)
    assert json.dumps(again) == json.dumps(measures)


def test_a_measuring_that_was_stopped_goes_on(heads, tmp_path, monkeypatch):
    plan.start(tmp_path / "run", small_settings(heads, steps=2, held_out=0.5))
    segment, segmented = holdout.segment, []

    def stopping(subject, model, **options):
        if len(segmented) == 2:
            segmented.append("stopped")
            raise KeyboardInterrupt
        segmented.append(subject.name)
        return segment(subject, model, **options)

    monkeypatch.setattr(holdout, "segment", stopping)
    with pytest.raises(KeyboardInterrupt):
        loop.fit(tmp_path / "run")
    measures = loop.fit(tmp_path / "run")
    assert [name for name in segmented if name != "stopped"] == list(measures)


@pytest.mark.parametrize("lacking", ["settings", "precision", "subjects"])
def test_a_record_of_another_version_is_named(heads, tmp_path, lacking):
    run = tmp_path / "run"
    plan.start(run, small_settings(heads, steps=1, stages=NARROW))
    record = json.loads((run / "run.json").read_text())
    del record[lacking]
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(LeukoError, match=r"run.json is damaged or from another version of Leuko"):
        loop.fit(run)


def test_a_setting_of_another_version_is_named(heads, tmp_path):
    run = tmp_path / "run"
    plan.start(run, small_settings(heads, steps=1, stages=NARROW))
    record = json.loads((run / "run.json").read_text())
    record["settings"]["recipe"]["images_at_once"] = 4
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(LeukoError, match=r"run.json is damaged or from another version of Leuko"):
        loop.fit(run)


def test_a_diverging_loss_stops_the_training(heads, tmp_path):
    settings = small_settings(heads, steps=50, stages=NARROW, held_out=0.0)
    recipe = replace(SHORT_XU2017, steps=50, phases=(Phase(1, 1e9, 1e9, momentum=0.9),))
    plan.start(tmp_path / "run", replace(settings, recipe=recipe))
    with pytest.raises(LeukoError, match="the training diverged"):
        loop.fit(tmp_path / "run")
    assert not (tmp_path / "run" / WEIGHTS_FILE).exists()


def test_settings_survive_their_json(heads):
    settings = small_settings(heads, steps=3)
    content = json.loads(json.dumps(asdict(settings)))
    assert plan.Settings.from_json(content) == settings


def test_the_checkpoint_can_run_no_code(heads, tmp_path):
    plan.start(tmp_path / "run", small_settings(heads, steps=3, stages=NARROW))
    with pytest.raises(StoppedError):
        loop.fit(tmp_path / "run", on_step=stop_after(2), checkpoint_seconds=0)
    saved = torch.load(tmp_path / "run" / plan.CHECKPOINT_FILE, weights_only=True)
    SpecialisedVGG(2, NARROW).load_state_dict(saved["model"])
    assert saved["step"] == 2


def test_a_finished_run_keeps_no_checkpoint_and_is_not_done_again(model):
    assert not (model / plan.CHECKPOINT_FILE).exists()
    with pytest.raises(LeukoError, match="is finished; its measures are in"):
        loop.fit(model)


def test_colleagues_can_read_the_model(model):
    assert (model / WEIGHTS_FILE).stat().st_mode == (model / "card.json").stat().st_mode


def test_too_few_subjects_to_hold_one_out_are_said(heads, tmp_path, caplog):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "anna").symlink_to(heads / "head0")
    plan.start(tmp_path / "run", small_settings(tmp_path / "data", steps=1, stages=NARROW))
    assert "too few people to hold one out" in caplog.text
