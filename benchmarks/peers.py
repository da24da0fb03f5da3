"""Leuko beside its peers, in one run: the same subjects, the same minutes of training, one clock.

    python benchmarks/peers.py HEADS OUT [--atlas MASKS] [--real DATA] [--minutes 30] [--part PART]

HEADS: whole heads as FreeSurfer label maps. --atlas: lesion masks in MNI space. --real: labelled
scans that are measured on and never trained with. Parts: data, train, accuracy, speed; what OUT
holds already is not made again. Needs Leuko with its extras `train`, `dev` and `peers`. The tables
come to stdout, all numbers to OUT/peers.json.

- data: 60 synthetic subjects to train with, and 18 of other heads to test on.
- train: each network from scratch for the same time on one core. The clock is that of the
  processor, so that other programs do not slow it; preparing scans is not counted.
- accuracy: the challenge's measures, and what Leuko is better or worse by, subject by subject.
- speed: one pair in memory to its mask. The methods take turns; the memory is a process's own.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import peer_data
import peer_dynunet
import peer_methods
import peer_tables
import peer_unet
import torch
from peer_methods import Method, Pair
from peer_training import Clock, multiplies_in_bfloat16, processor_seconds
from speed import run_python, timed
from torch import nn

from leuko.evaluation.evaluate import Row, compare, json_ready
from leuko.evaluation.labels import LABEL_VALUES
from leuko.io import nifti
from leuko.io.files import read_json, staged, write_json
from leuko.model import runtime, weights
from leuko.model.card import load_card
from leuko.model.network import VGG16, SpecialisedVGG, Stages, vgg16
from leuko.model.onnx_export import export
from leuko.training.dataset import Subject, find_subjects
from leuko.training.loop import Progress, fit, training_slices
from leuko.training.plan import start
from leuko.training.recipes import FROM_NOTHING
from leuko.training.settings import CLASSES, Settings

RESULTS = "peers.json"
PARTS = ("data", "train", "accuracy", "speed")
MEASURED_STEPS, FIRST_STEPS = 16, 4  # to know Leuko's speed; the first set things up
MEASURED = (
    "leuko",
    "leuko-half",
    "unet",
    "unet-ensemble",
    "dynunet",
    "threshold",
    "leuko-base",
)
TIMED = (
    "leuko",
    "leuko-half",
    "leuko-float",
    "leuko-base",
    "threshold",
    "unet",
    "unet-ensemble",
    "unet-ensemble-bf16",
    "dynunet-one-pass",
    "dynunet",
    "dynunet-bf16",
    "dynunet-mirrored",
)
ONCE = ("dynunet-mirrored",)  # many minutes each; the memory is that without mirroring
BESIDE = ("leuko", "leuko-half", "leuko-float")  # what the others' seconds are divided by
LEUKOS = {"leuko": VGG16, "leuko-half": vgg16(0.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("heads", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--atlas", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=PARTS)
    options = parser.parse_args()
    out = options.out
    parts = (options.part,) if options.part else PARTS
    if "data" in parts:
        for home in peer_data.make_subjects(out / "data", options.heads, options.atlas):
            print("made", home, flush=True)
    if "train" in parts:
        minutes = results(out).get("minutes of training", options.minutes)
        if minutes != options.minutes:
            raise SystemExit(f"{out} was trained for {minutes} minutes: choose another folder")
        keep(out, {"minutes of training": minutes})
        train(out, 60 * minutes)
        keep(out, {"machine": machine(), "training": accounts(out)})
    if "accuracy" in parts:
        folders = (out / "data" / "test", *([options.real] if options.real else []))
        for name, folder in itertools.product(MEASURED, folders):
            key = f"accuracy-{folder.name}"
            keep(out, {key: results(out).get(key, {}) | {name: accuracy(out, name, folder)}})
    if "speed" in parts:
        keep(out, {"speed": speed(out, options.rounds)})
    print(peer_tables.as_text(results(out)))


def results(out: Path) -> dict[str, Any]:
    path = out / RESULTS
    return read_json(path, what="results") if path.is_file() else {}


def keep(out: Path, found: dict[str, Any]) -> None:
    """Add to the results that OUT holds already."""
    write_json(out / RESULTS, results(out) | found)


def machine() -> dict[str, Any]:
    return {
        "cores": runtime.available_cpus(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "training in bfloat16": multiplies_in_bfloat16(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def accounts(out: Path) -> dict[str, Any]:
    """What each training has spent and seen."""
    unets = (path.stem for path in peer_methods.ensemble_paths(out))
    names = [*LEUKOS, "unet", *unets, "dynunet"]
    return {name: read_json(out / f"{name}.json", what="account") for name in names}


def train(out: Path, seconds: float) -> None:
    """Every method on the training subjects; what is finished stays."""
    torch.set_num_threads(1)
    data = out / "data" / "train"
    subjects = find_subjects(data)
    for name, stages in LEUKOS.items():
        train_leuko(out / name, data, seconds, stages)
    members = dict.fromkeys(peer_methods.ensemble_paths(out), seconds / peer_methods.UNETS)
    peer_unet.train_networks({out / "unet.pt": seconds} | members, subjects)
    peer_dynunet.train_network(out / "dynunet.pt", subjects, seconds=seconds)
    if not (out / "threshold.json").is_file():
        pairs = [(nifti.read(s.flair), nifti.read_mask(s.labels).data) for s in subjects]
        write_json(out / "threshold.json", peer_methods.choose_threshold(pairs))


def train_leuko(run: Path, data: Path, seconds: float, stages: Stages) -> None:
    """From scratch, with the recipe's shape over the steps that fit the time."""
    exported = run.with_name(f"{run.name}-int8")
    if not run.is_dir():
        settings = Settings(
            data=str(data), recipe=FROM_NOTHING, init="none", held_out=0.0, stages=stages
        )
        each = seconds_of_a_step(settings)
        steps = max(1, round(seconds / each))
        print(run.name, json.dumps({"seconds_of_a_step": round(each, 3), "steps": steps}))
        start(run, replace(settings, recipe=replace(FROM_NOTHING, steps=steps)), threads=1)
    if not read_json(run / "run.json", what="run")["finished"]:
        fit(run, on_step=Account(run.with_name(f"{run.name}.json")))
    if not exported.is_dir():
        export(run, exported, training_slices(run))


def seconds_of_a_step(settings: Settings) -> float:
    """Of work, by a short training that is thrown away."""
    clocks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        recipe = replace(settings.recipe, steps=MEASURED_STEPS)
        start(run, replace(settings, recipe=recipe), threads=1)
        fit(run, on_step=lambda _: clocks.append(processor_seconds()))
    return (clocks[-1] - clocks[FIRST_STEPS - 1]) / (MEASURED_STEPS - FIRST_STEPS)


class Account:
    """Writes down what a training of Leuko has spent since its first step, as the peers' do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = read_json(path, what="account")["seconds"] if path.is_file() else 0.0
        self.clock: Clock | None = None

    def __call__(self, at: Progress) -> None:
        self.clock = self.clock or Clock(self.before)
        if at.step % 20 == 0 or at.step == at.steps:
            account = {
                "steps": at.step,
                "images": at.step * FROM_NOTHING.images_per_step,
                "seconds": round(self.clock.seconds, 1),
                "loss": round(at.loss, 4),
            }
            print(self.path.stem, json.dumps(account), flush=True)
            write_json(self.path, account)


def accuracy(out: Path, name: str, folder: Path) -> dict[str, dict[str, float | None]]:
    """A method's measures by subject; masks that OUT holds are taken as they are."""
    subjects = find_subjects(folder)
    masks = {s.name: out / "masks" / folder.name / name / f"{s.name}.nii.gz" for s in subjects}
    if not all(path.is_file() for path in masks.values()):
        segment(peer_methods.load(name, out), subjects, masks)
    return {s.name: json_ready(measured(s, masks[s.name])) for s in subjects}


def segment(method: Method, subjects: Sequence[Subject], masks: Mapping[str, Path]) -> None:
    """Write the masks that are not there yet."""
    for subject in subjects:
        path = masks[subject.name]
        if not path.is_file():
            pair = Pair.read(subject.flair.parent)
            with staged(path.parent) as scratch:
                mask = method(pair).astype(np.uint8)
                nifti.write(scratch / path.name, pair.flair.with_data(mask))
            print("segmented", path, flush=True)


def measured(subject: Subject, mask: Path) -> Row:
    row = compare(nifti.read_labels(subject.labels, values=LABEL_VALUES), nifti.read_mask(mask))
    return {column: row[column] for column in peer_tables.COLUMNS}


def speed(out: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Median seconds of the methods, which take turns, and how many times those of `BESIDE` in the
    same turn; processors that each got; peak memory of a process that does it once; parameters."""
    torch.set_num_threads(runtime.available_cpus())
    subject = whole_head(find_subjects(out / "data" / "test"))
    pair = Pair.read(subject)
    methods = {name: peer_methods.load(name, out) for name in TIMED}
    turns: dict[str, list[float]] = {name: [] for name in TIMED}
    cores: dict[str, list[float]] = {name: [] for name in TIMED}
    for turn in range(rounds + 1):
        for name, method in methods.items():
            if name in ONCE and turn != 1:
                continue
            worked = time.process_time()
            seconds = timed(partial(method, pair))
            if turn:  # the first sets things up
                turns[name].append(seconds)
                cores[name].append((time.process_time() - worked) / seconds)
            print(name, round(seconds, 2), file=sys.stderr, flush=True)
    counts, script = parameters(), Path(peer_methods.__file__)
    rows = {}
    for name in TIMED:
        times = {
            other: median(
                own / theirs for own, theirs in zip(turns[name], turns[other], strict=False)
            )
            for other in BESIDE
        }
        peak = None if name in ONCE else run_python(script, name, out, subject)[1]
        rows[name] = {
            "parameters": counts[name],
            "seconds": median(turns[name]),
            "times": times,
            "cores": median(cores[name]),
            "peak_mb": peak,
            "turns": turns[name],
        }
    return rows


def parameters() -> dict[str, int]:
    """Numbers that each method has learnt."""
    card = load_card(weights.find(weights.DEFAULT))
    base = SpecialisedVGG(len(card.classes), card.stages, card.side_maps)
    networks: dict[str, nn.Module] = {
        name: SpecialisedVGG(len(CLASSES), stages) for name, stages in LEUKOS.items()
    }
    networks |= {"leuko-base": base, "unet": peer_unet.UNet()}
    networks["dynunet"] = peer_dynunet.Network(supervised=False)
    counts = {
        name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()
    }
    counts["unet-ensemble"] = peer_methods.UNETS * counts["unet"]
    counts["threshold"] = 2
    return {name: counts[max(filter(name.startswith, counts), key=len)] for name in TIMED}


def whole_head(subjects: Sequence[Subject]) -> Path:
    """The folder of a subject with skull and air, as scanners give them: that of most signal."""
    return max(
        (subject.flair for subject in subjects),
        key=lambda path: np.count_nonzero(nifti.read(path).data),
    ).parent


if __name__ == "__main__":
    main()
