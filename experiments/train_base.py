"""Train the bundled model on synthetic slices, real labelled and real unlabelled ones.

    python experiments/train_base.py HEADS RUN [--atlas DIR] [--real FOLDER] [--unlabelled FOLDER]
        [--leave SOURCE ...] [--start MODEL ...] [--teacher MODEL ...] [--steps 450] [--minutes 9]
        [--device cuda]

HEADS: whole heads as FreeSurfer label maps. --atlas: lesion masks in MNI space. --real: labelled
scans and --unlabelled: pairs of FLAIR and T1, as real_slices.py takes them. --leave: sources,
or scans, that take no part, to be measured on. --start: models or weights, whose mean it starts
from; by default it starts from nothing. --teacher: models whose mean probability of WMH synthetic
and unlabelled slices are to have too; the first knows all classes. A model is a folder, a name, or
a file of weights (.safetensors, 8 bits with `.scale` beside each will do).

It runs on a GPU or a CPU, for so many --minutes: the same command again resumes it, until --steps
are done. RUN is a model folder all the while: the moving average of the weights, in half precision.
"""

import argparse
import gzip
import json
import math
import shutil
import subprocess
import time
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from base_batches import SEED, Batch, Real, draw
from base_losses import losses
from real_slices import PREPARATION, SOURCES, scan_folders, source
from synthetic_slices import Synthetic
from torch import Tensor

from leuko.io.files import staged
from leuko.io.provenance import versions
from leuko.model.card import WEIGHTS_FILE, ModelCard, load_card, save_card
from leuko.model.network import SIDE_MAPS, SpecialisedVGG, Stages, vgg16
from leuko.model.onnx_export import read_network
from leuko.model.weights import find
from leuko.synthesis.anatomy import CLASSES

LICENCE = "Apache-2.0"
HEADS_CREDIT = "SynthSeg, Billot et al., Apache-2.0"
ATLAS_CREDIT = UNLABELLED_CREDIT = "Lesjak et al. 2017, CC BY"
WARM_PART, CONSTANT_PART, LAST_RATE = 0.05, 0.4, 0.05  # of the steps; of the rate
AVERAGED_PART = 0.2  # of the steps, over which weights are averaged
SAVE_SECONDS, SHOW_STEPS = 240, 20


def main() -> None:
    options = parsed()
    end = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    device = torch.device(options.device)
    options.run.mkdir(parents=True, exist_ok=True)
    training = Training(options, device)
    teachers = [as_teacher(name, device) for name in options.teacher]
    real = Real(options, device)
    synthetic = Synthetic(
        options.heads,
        options.atlas,
        options.run / "synthetic",
        device=device,
        processes=options.processes,
        kept=options.kept,
        fresh=options.fresh,
    )
    first = training.step
    begun = saved_at = time.monotonic()
    shown: list[dict[str, Tensor]] = []
    while training.step < options.steps and time.monotonic() < end:
        synthetic.advance(training.step)
        batch = draw(training.step, synthetic, real, options, device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = training.network(batch.images)
        parts = losses(logits.float(), batch, taught(teachers, batch))
        training.learn(sum(parts.values(), torch.zeros(())))
        shown.append({name: part.detach() for name, part in parts.items()})
        if training.step % SHOW_STEPS == 0 or training.step == options.steps:
            seconds = time.monotonic() - begun
            pace = {
                "steps_per_second": round((training.step - first) / seconds, 2),
                "waited_part": round(synthetic.seconds_waited / seconds, 2),
            }
            print(json.dumps({"step": training.step} | means(shown) | pace), flush=True)
            shown = []
        if time.monotonic() - saved_at > SAVE_SECONDS:
            training.save()
            saved_at = time.monotonic()
    if training.step > first:
        training.save()
        card = describe(training, options, real, synthetic)
        save_weights(options.run, training.average.state_dict(), card)
    synthetic.close()
    print(f"{training.step} of {options.steps} steps", flush=True)


def means(parts: list[dict[str, Tensor]]) -> dict[str, float]:
    """The mean of each loss over the steps that have it."""
    names = sorted({name for step in parts for name in step})
    return {
        name: round(float(torch.stack([s[name] for s in parts if name in s]).mean()), 4)
        for name in names
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--atlas", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--unlabelled", type=Path)
    parser.add_argument("--leave", nargs="*", default=[])
    parser.add_argument("--start", nargs="*", default=[])
    parser.add_argument("--teacher", nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, help="that make synthetic scans")
    parser.add_argument("--batch", type=int, help="images of a step; on a GPU 32, else 6")
    parser.add_argument("--kept", type=int, help="synthetic scans that are drawn from at a time")
    parser.add_argument("--fresh", type=float, help="synthetic scans made anew for each step")
    parser.add_argument("--painted", type=float, default=0.25, help="part of the real slices")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--width", type=float, default=1.0, help="of a network from nothing")
    options = parser.parse_args()
    # A GPU takes some 40 steps a second, and 8 processes make some 20 scans for it.
    usual = {"processes": 8, "batch": 32, "kept": 96, "fresh": 0.3}
    if options.device == "cpu":
        usual = {"processes": 1, "batch": 6, "kept": 24, "fresh": 0.1}
    for name, value in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.unlabelled and not (options.real and options.teacher):
        parser.error("--unlabelled goes with --real and --teacher")
    if options.teacher and read_weights(options.teacher[0])[0] != len(CLASSES):
        parser.error(f"{options.teacher[0]} does not know rims; name a teacher that does first")
    return options


def taught(teachers: list[SpecialisedVGG], batch: Batch) -> Tensor | None:
    """What the teachers say of the images that have no reader's labels: the mean of their
    probabilities of WMH, the other classes in the proportions of the first."""
    if not teachers:
        return None
    made = len(batch.classes)
    images = torch.cat([batch.images[:made], batch.images[made + len(batch.labels) :]])
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16):
        said = [teacher(images).float().softmax(dim=1) for teacher in teachers]
    wmh = torch.stack([shares[:, -1:] for shares in said]).mean(dim=0)
    others = said[0][:, :-1]
    others = others / others.sum(dim=1, keepdim=True).clamp(min=1e-6)
    return torch.cat([others * (1 - wmh), wmh], dim=1)


def rate_at(done: float) -> float:
    """The learning rate, the highest being 1: a warm start, constant, then a half cosine."""
    fall = max(0.0, (done - CONSTANT_PART) / (1 - CONSTANT_PART))
    cosine = 0.5 * (1 + math.cos(math.pi * fall))
    return min(1.0, (done + 1e-3) / WARM_PART) * (LAST_RATE + (1 - LAST_RATE) * cosine)


# Models that it starts from, and that teach


def build(stages: Stages, device: torch.device) -> SpecialisedVGG:
    network = SpecialisedVGG(len(CLASSES), stages)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def as_teacher(name: str, device: torch.device) -> SpecialisedVGG:
    classes, stages, weights = read_weights(name)
    network = SpecialisedVGG(classes, stages)
    network.load_state_dict(weights)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval()


def read_weights(name: str) -> tuple[int, Stages, dict[str, Tensor]]:
    """Number of classes, stages and weights of a model, or of a file of weights."""
    path = Path(name)
    if path.is_file():
        data = path.read_bytes()
        stored = safetensors.torch.load(gzip.decompress(data) if path.suffix == ".gz" else data)
        weights = {
            key: value.float() * stored.get(f"{key}.scale", torch.ones(())).float()
            for key, value in stored.items()
            if not key.endswith(".scale")
        }
    else:
        folder = find(name)
        weights = read_network(folder, load_card(folder)).state_dict()
    maps: dict[str, list[int]] = {}
    for key, value in sorted(weights.items()):
        if key.startswith("stages") and key.endswith("weight"):
            maps.setdefault(key.split(".")[1], []).append(len(value))
    return len(weights["fusion.bias"]), tuple(map(tuple, maps.values())), weights


def with_rims(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model without the class of rims with one between white matter and WMH."""
    weights = dict(weights)
    if len(weights["fusion.bias"]) == len(CLASSES):
        return weights
    rim = CLASSES.index("rim")
    for name, shift in (("fusion.weight", 0.0), ("fusion.bias", -0.5)):
        value = weights[name]
        between = value[rim - 1 : rim + 1].mean(dim=0, keepdim=True) + shift
        weights[name] = torch.cat([value[:rim], between, value[rim:]])
    return weights


# A run's folder


class Training:
    """The network that is trained, its moving average, and the checkpoint they resume from."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self._options, self._path = options, options.run / "checkpoint.pt"
        state = load_state(self._path, options)
        self.step, self.stages, self._settings = state["step"], state["stages"], state["settings"]
        self.network, self.average = (build(self.stages, device) for _ in range(2))
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self._parameters: list[Tensor] = list(self.network.parameters())
        self._averaged: list[Tensor] = list(self.average.parameters())
        self._optimizer = torch.optim.AdamW(self._parameters, weight_decay=0.01)
        if "optimizer" in state:
            self._optimizer.load_state_dict(state["optimizer"])

    def learn(self, loss: Tensor) -> None:
        """One step down a loss."""
        done, steps = self.step / self._options.steps, self._options.steps
        self._optimizer.param_groups[0]["lr"] = self._options.rate * rate_at(done)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0, foreach=True)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        span = max(1.0, min(self.step / 10, AVERAGED_PART * steps))
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, self._parameters, 1 / span)

    def save(self) -> None:
        """Write the checkpoint."""
        content = {
            "settings": self._settings,
            "stages": self.stages,
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        part = self._path.with_suffix(".part")
        torch.save(content, part)
        part.replace(self._path)


def load_state(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Where the run of a checkpoint is, or how it begins."""
    names = ("leave", "start", "teacher", "steps", "batch", "kept", "fresh", "painted", "rate")
    settings = {name: getattr(options, name) for name in names}
    if path.is_file():
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["settings"] != settings:
            raise SystemExit(f"{path.parent} was begun with {state['settings']}; repeat these")
        return state
    starts = [read_weights(name) for name in options.start]
    if len({stages for _, stages, _ in starts}) > 1:
        raise SystemExit("the models to start from have different stages; their mean is none")
    if starts:
        stages, every = starts[0][1], [with_rims(weights) for _, _, weights in starts]
        mean = {key: torch.stack([w[key] for w in every]).mean(dim=0) for key in every[0]}
    else:
        torch.manual_seed(SEED)
        stages = vgg16(options.width)
        mean = build(stages, torch.device("cpu")).state_dict()
    return {"settings": settings, "step": 0, "stages": stages, "network": mean, "average": mean}


def describe(
    training: Training, options: argparse.Namespace, real: Real, synthetic: Synthetic
) -> ModelCard:
    """The card, with the credits of all that it has seen."""
    data = [f"synthetic slices of {synthetic.heads} label maps of heads ({HEADS_CREDIT})"]
    if synthetic.masks:
        data.append(f"with lesion masks of {len(synthetic.masks)} patients ({ATLAS_CREDIT})")
    for name, scans in groupby(real.scans, source):
        data.append(f"{len(list(scans))} labelled scans of {name} ({SOURCES[name].credit})")
    unlabelled = len(scan_folders(options.unlabelled)) if options.unlabelled else 0
    if unlabelled:
        data.append(f"{unlabelled} unlabelled scans ({UNLABELLED_CREDIT})")
    before = [load_card(find(name)) for name in options.start if not Path(name).is_file()]
    seen = {key for card in before for key in card.training.get("scans", ())} | set(real.seen)
    return ModelCard(
        name="leuko-base",
        classes=CLASSES,
        preparation=PREPARATION,
        stages=training.stages,
        side_maps=SIDE_MAPS,
        three_planes=True,
        training={
            "script": "experiments/train_base.py",
            "init": ", ".join(Path(name).name for name in options.start) or "none",
            "teachers": [Path(name).name for name in options.teacher],
            "steps": training.step,
            "slices": training.step * options.batch,
            "data": "; ".join(data),
            "left_out": options.leave,
            "scans": sorted(seen),
            "synthesis_commit": commit(),
        },
        licence=LICENCE,
        leuko_version=versions()["leuko"],
    )


def commit() -> str:
    """The commit of this repository, "-dirty" behind it where files differ from it."""
    git = shutil.which("git") or "git"
    described = subprocess.run(
        [git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def save_weights(run: Path, weights: Mapping[str, Tensor], card: ModelCard) -> None:
    """A model folder, in half precision."""
    tensors = {k: v.half().contiguous().cpu() for k, v in weights.items()}
    with staged(run) as scratch:
        (scratch / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors))
        save_card(scratch, card)


if __name__ == "__main__":
    main()
