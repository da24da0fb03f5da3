"""Processes that share a training: the same losses as one, and stopping them changes nothing."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from conftest import small_settings
from leuko.errors import LeukoError
from leuko.io.files import sha256
from leuko.model.card import WEIGHTS_FILE, load_card, save_card
from leuko.training import loop, plan, processes
from leuko.training.recipes import BASE, MODERN, Phase

STEPS = 12
# Trains the run in a folder and writes its losses; ends without a word after some steps.
SCRIPT = """
import json, os, sys
from pathlib import Path
from leuko.training import loop, processes
run, last = Path(sys.argv[1]), int(sys.argv[2])
losses = []
def on_step(progress):
    losses.append(progress.loss)
    if progress.step == last:
        os._exit(0)
measures = loop.fit(run, on_step=on_step, checkpoint_seconds=0)
name = "losses.json" if processes.is_first() else "losses-of-the-other.json"
(run / name).write_text(json.dumps([losses, list(measures)]))
"""


def shared(data):
    """Few rounds at a rate that lets errors grow slowly."""
    settings = small_settings(data, steps=STEPS, stages=((4, 4), (8, 8)), patience=2)
    recipe = replace(
        settings.recipe,
        phases=(Phase(1, 1e-3, 1e-3),),
        frozen_stages=1,
        frozen_part=0.5,
        validate_steps=4,
        normalised=True,
        mixed_precision=False,
    )
    return replace(settings, recipe=recipe)


def by_torchrun(*command):
    """What two processes print."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    return subprocess.run(
        [sys.executable, *launcher, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def fit_by_two(run, last=STEPS + 1):
    script = run.parent / "fit.py"
    script.write_text(SCRIPT)
    process = by_torchrun(script, run, last)
    assert process.returncode == 0, process.stderr


def losses(run, name="losses.json"):
    return json.loads((run / name).read_text())[0]


@pytest.fixture(scope="module")
def by_two(heads, tmp_path_factory):
    """A run that two processes shared."""
    run = tmp_path_factory.mktemp("shared") / "run"
    plan.start(run, shared(heads), threads=1)
    fit_by_two(run)
    return run


def test_two_processes_have_the_losses_of_one(heads, by_two, tmp_path):
    plan.start(tmp_path / "one", shared(heads), threads=1)
    alone = []
    loop.fit(tmp_path / "one", on_step=lambda progress: alone.append(progress.loss))
    assert losses(by_two) == pytest.approx(alone, rel=1e-4)
    assert losses(by_two) == losses(by_two, "losses-of-the-other.json")
    assert len(alone) == STEPS


@pytest.mark.slow
def test_a_shared_run_that_was_stopped_gives_the_same_bytes(heads, by_two, tmp_path):
    plan.start(tmp_path / "stopped", shared(heads), threads=1)
    fit_by_two(tmp_path / "stopped", last=3)
    assert not (tmp_path / "stopped" / WEIGHTS_FILE).exists()
    fit_by_two(tmp_path / "stopped", last=7)
    fit_by_two(tmp_path / "stopped")
    assert sha256(tmp_path / "stopped" / WEIGHTS_FILE) == sha256(by_two / WEIGHTS_FILE)


def test_the_first_process_writes_and_measures(by_two):
    record = json.loads((by_two / plan.RUN_FILE).read_text())
    assert record["finished"]
    (row,) = record["measures"].values()
    assert not math.isnan(row["dsc"] or 0)
    assert json.loads((by_two / "losses.json").read_text())[1] == list(record["measures"])
    assert json.loads((by_two / "losses-of-the-other.json").read_text())[1] == []


def as_if(monkeypatch, *, processes, rank=0):
    for name, value in {
        "TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
        "RANK": rank,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))


def test_a_step_is_shared_evenly_or_not_at_all(heads, tmp_path, monkeypatch):
    plan.start(tmp_path / "run", shared(heads))
    as_if(monkeypatch, processes=4)
    processes.require_shareable(MODERN)
    as_if(monkeypatch, processes=3)
    with pytest.raises(LeukoError, match="8 images per step cannot be shared evenly by 3"):
        processes.require_shareable(MODERN)
    with pytest.raises(LeukoError, match="cannot be shared evenly by 3"):
        loop.fit(tmp_path / "run")
    with pytest.raises(LeukoError, match="cannot be shared evenly by 3"):
        plan.start(tmp_path / "other", shared(heads))
    with pytest.raises(LeukoError, match="the recipe base trains in one process"):
        processes.require_shareable(BASE)


def test_the_total_is_the_sum_whose_gradient_is_the_own_parts():
    class Two:
        world_size = 2

        def all_reduce(self, value, reduce_op):
            assert reduce_op == "sum"
            return value + 3.1

    own = torch.tensor([0.3, 0.7], requires_grad=True)
    total = processes.total(Two(), own)
    assert torch.equal(total, own.detach() + 3.1)
    total.square().sum().backward()
    assert own.grad.tolist() == pytest.approx([2 * 3.4, 2 * 3.8])


def test_a_variable_of_other_tools_does_not_make_a_shared_training(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert processes.count() == processes.count_here() == 1
    assert processes.is_first()


@pytest.mark.slow
def test_the_command_trains_and_cross_validates_by_two(leuko, heads, tmp_path):
    start = tmp_path / "start"
    plan.start(start, shared(heads))
    loop.fit(start)
    card = load_card(start)
    save_card(start, replace(card, training={**card.training, "scans": []}))
    run, alone = tmp_path / "run", tmp_path / "alone"
    command = ("-m", "leuko.cli", "train", heads, "-o", run, "--init", start, "--threads", 1)
    process = by_torchrun(*command, "--steps", 4, "--folds", 2)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("model   ") == process.stdout.count("report  ") == 1
    assert process.stderr.count("step 12/12") == 1
    assert load_card(run).training["subjects"] == sorted(path.name for path in heads.iterdir())
    # By one process the same command gives the same model, up to the order of sums.
    options = ("--init", start, "--threads", 1, "--steps", 4, "--folds", 2)
    assert leuko("train", heads, "-o", alone, *options)[0] == 0
    found, expected = (load_file(folder / WEIGHTS_FILE) for folder in (run, alone))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    again = by_torchrun(*command)
    assert again.returncode != 0
    assert "is not empty" in again.stderr


def test_one_process_goes_on_with_what_two_began(heads, tmp_path, by_two):
    run = tmp_path / "run"
    plan.start(run, shared(heads), threads=1)
    fit_by_two(run, last=6)
    loop.fit(run)
    found, expected = (load_file(folder / WEIGHTS_FILE) for folder in (run, by_two))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
