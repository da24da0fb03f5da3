"""Training, told in order.

A run is a folder: its settings, the last checkpoint, and at the end a model and its measures.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import save

from leuko import imagenet, losses, nifti, runtime
from leuko.augment import augment
from leuko.channels import Preparation
from leuko.dataset import LABEL_VALUES, Subject, find_subjects, load, split
from leuko.errors import LeukoError
from leuko.evaluate import Row, compare, json_ready
from leuko.export import read_network
from leuko.files import read_json, sha256, staged, write_json
from leuko.network import SIDE_MAPS, VGG16, SpecialisedVGG, Stages
from leuko.predict import predict, to_mask
from leuko.recipes import MODERN, Augmentation, Phase, Recipe, phase_at
from leuko.record import Stopwatch, versions
from leuko.volume import Array
from leuko.weights import CARD_FILE, WEIGHTS_FILE, ModelCard, load_card, save_card

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its precision

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
CHECKPOINT_FILE = "checkpoint.ckpt"
CHECKPOINT_SECONDS = 60.0  # what a kill can cost; writing one takes about a second

CLASSES: tuple[str, ...] = ("background", "wmh")
LOSSES = {
    "summed-cross-entropy": losses.summed_cross_entropy,
    "cross-entropy-dice": losses.cross_entropy_dice,
}


@dataclass(frozen=True)
class Settings:
    """What decides the trained weights, besides the scans: kept in the run, and all that resuming
    needs."""

    data: str
    recipe: Recipe = MODERN
    preparation: Preparation = field(default_factory=Preparation)
    stages: Stages = VGG16
    side_maps: int = SIDE_MAPS
    classes: tuple[str, ...] = CLASSES  # more than two: those of the model to start from
    init: str = "imagenet"  # or "none", or a model folder
    imagenet_weights: str = imagenet.DEFAULT
    seed: int = 0
    held_out: float = 0.2  # part of the subjects that are measured on, not trained with

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Settings":
        recipe = content["recipe"]
        recipe = recipe | {
            "phases": tuple(Phase(**phase) for phase in recipe["phases"]),
            "augmentation": Augmentation(
                **recipe["augmentation"] | {"scale": tuple(recipe["augmentation"]["scale"])}
            ),
        }
        return cls(
            **content
            | {
                "recipe": Recipe(**recipe),
                "preparation": Preparation(**content["preparation"]),
                "stages": tuple(tuple(widths) for widths in content["stages"]),
                "classes": tuple(content["classes"]),
            }
        )


@dataclass(frozen=True)
class Progress:
    """Where a training is: `step` of `steps` done, the last step's loss and its speed."""

    step: int
    steps: int
    loss: float
    images_per_second: float


def start(
    run: Path,
    settings: Settings,
    *,
    device: runtime.Device = "cpu",
    threads: int | None = None,
) -> None:
    """Make a run folder that `fit` can fill: the network as it starts, and all that is decided.

    Number of threads and precision are kept too, since they decide the last bits. Raises
    LeukoError, and leaves no folder, if there is a run already, or if the scans, the weights to
    start from, or the device are missing.
    """
    if any((run / name).exists() for name in (RUN_FILE, CHECKPOINT_FILE, CARD_FILE, WEIGHTS_FILE)):
        raise LeukoError(
            f"{run} holds a run already; continue it with leuko train --resume {run}, "
            "delete it, or choose another folder"
        )
    runtime.require_device(device)
    subjects = find_subjects(Path(settings.data))
    lacking = [s.name for s in subjects if s.t1 is None]
    if lacking and settings.preparation.needs_t1:
        raise LeukoError(
            f"{settings.data}: {lacking[0]} has no T1.nii.gz, which the channels "
            f"{settings.preparation.channels} need; add it, or use --channels flair-3-slices"
        )
    train, measured = split(subjects, held_out=settings.held_out, seed=settings.seed)
    if settings.held_out and not measured:
        log.warning("%d subjects are too few to hold one out; none is measured", len(subjects))
    network = _initialised(settings)
    with staged(run) as scratch:
        torch.save({"model": network.state_dict(), "step": 0}, scratch / CHECKPOINT_FILE)
        write_json(
            scratch / RUN_FILE,
            {
                "command": "train",
                "finished": False,
                "versions": versions(),
                "settings": asdict(settings),
                "device": device,
                "threads": threads or runtime.available_cpus(),
                "precision": _precision(settings.recipe, device),
                "subjects": {"train": _described(train), "held_out": _described(measured)},
            },
        )


def fit(
    run: Path,
    *,
    on_step: Callable[[Progress], None] = lambda _: None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> dict[str, Row]:
    """Train the run in a folder that `start` made, from its last checkpoint.

    Leaves the model and its card in the folder and returns the measures of the held-out subjects,
    by subject. Every random choice follows from the seed and the number of the step, so that a
    run that was stopped and resumed gives the same weights, bit for bit on CPUs of one kind.

    Raises LeukoError when the scans have changed, the checkpoint is damaged, the device is missing,
    or the loss diverges.
    """
    record = read_json(run / RUN_FILE, what="run") if (run / RUN_FILE).is_file() else {}
    if record.get("command") != "train":
        raise LeukoError(f"{run} is no training run; give a folder that leuko train made")
    device, threads = record["device"], record["threads"]
    settings = Settings.from_json(record["settings"])
    recipe = settings.recipe
    watch = Stopwatch()
    runtime.require_device(device)
    torch.set_num_threads(threads)

    train, measured = _recorded_subjects(record, settings)
    with watch.stage("prepare"):
        slices = load(train, settings.preparation)
        images, labels = torch.from_numpy(slices.images), torch.from_numpy(slices.labels)

    fabric = Fabric(accelerator=device, devices=1, precision=record["precision"])
    network = SpecialisedVGG(len(settings.classes), settings.stages, settings.side_maps)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer: torch.optim.Optimizer
    if recipe.optimiser == "sgd":
        optimizer = torch.optim.SGD(network.parameters(), weight_decay=recipe.weight_decay)
    else:
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=recipe.weight_decay)
    model, optimizer = fabric.setup(network, optimizer)
    loss_of = LOSSES[recipe.loss]

    try:
        checkpoint = fabric.load(run / CHECKPOINT_FILE, weights_only=True)
        network.load_state_dict(checkpoint["model"])
        if checkpoint["step"]:
            optimizer.load_state_dict(checkpoint["optimizer"])
    except Exception as error:  # torch raises whatever a damaged file provokes
        raise LeukoError(
            f"{run / CHECKPOINT_FILE} is damaged or missing; delete {run} and start again"
        ) from error

    with watch.stage("train", before=checkpoint.get("seconds", 0.0)):
        begun_training = saved = time.monotonic()
        for step in range(checkpoint["step"], recipe.steps):
            begun = time.monotonic()
            _set_rate(optimizer, *phase_at(recipe, step, recipe.steps))
            rng = np.random.default_rng([settings.seed, step])
            drawn = slices.draw(recipe.images_per_step, lesion_part=recipe.lesion_part, rng=rng)
            generator = torch.Generator(fabric.device).manual_seed(int(rng.integers(2**62)))
            step_loss = 0.0
            for part in torch.split(torch.from_numpy(drawn), recipe.images_at_once):
                batch, truth = augment(
                    images[part].to(fabric.device),
                    labels[part].to(fabric.device),
                    recipe.augmentation,
                    channels=settings.preparation.channels,
                    generator=generator,
                )
                logits = losses.wmh_or_not(model(batch).float())
                loss = loss_of(logits, truth) * len(part) / recipe.images_per_step
                fabric.backward(loss)
                step_loss += loss.item()
            if not np.isfinite(step_loss):
                raise LeukoError(
                    f"the loss is {step_loss} at step {step + 1}: the training diverged; "
                    "check the scans, or use another recipe or start"
                )
            optimizer.step()
            optimizer.zero_grad()
            seconds = time.monotonic() - begun
            on_step(Progress(step + 1, recipe.steps, step_loss, recipe.images_per_step / seconds))
            if time.monotonic() - saved >= checkpoint_seconds or step + 1 == recipe.steps:
                spent = checkpoint.get("seconds", 0.0) + time.monotonic() - begun_training
                state = {
                    "model": model,
                    "optimizer": optimizer,
                    "step": step + 1,
                    "seconds": spent,
                }
                fabric.save(run / f"{CHECKPOINT_FILE}.part", state)
                (run / f"{CHECKPOINT_FILE}.part").replace(run / CHECKPOINT_FILE)
                saved = time.monotonic()

    card = ModelCard(
        name=run.resolve().name,
        classes=settings.classes,
        preparation=settings.preparation,
        stages=settings.stages,
        side_maps=settings.side_maps,
        training={
            "recipe": recipe.name,
            "steps": recipe.steps,
            "init": settings.init,
            "seed": settings.seed,
            "subjects": [subject.name for subject in train],
        },
        leuko_version=versions()["leuko"],
    )
    with staged(run) as scratch:
        tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        (scratch / WEIGHTS_FILE).write_bytes(save(tensors))  # save_file hides it from colleagues
        save_card(scratch, card)

    with watch.stage("measure"):
        trained = runtime.load(run, device=device, threads=threads)
        measures = {subject.name: _measured(subject, trained) for subject in measured}
    with staged(run) as scratch:
        finished = {"finished": True, "seconds": watch.seconds}
        shown = {name: json_ready(row) for name, row in measures.items()}
        write_json(scratch / RUN_FILE, record | finished | {"measures": shown})
    return measures


def training_slices(run: Path, data: Path | None = None) -> Array:
    """The colour slices (N, H, W, 3), uint8, of the subjects that a run trained with, or of those
    in `data`. Raises LeukoError if the scans are gone or changed."""
    if data is not None:
        return load(find_subjects(data), load_card(run).preparation).images
    record = read_json(run / RUN_FILE, what="run") if (run / RUN_FILE).is_file() else {}
    if record.get("command") != "train":
        raise LeukoError(f"{run} does not say what it was trained with; give scans with --data")
    settings = Settings.from_json(record["settings"])
    return load(_recorded_subjects(record, settings)[0], settings.preparation).images


def _initialised(settings: Settings) -> SpecialisedVGG:
    """The network as its training starts."""
    torch.manual_seed(settings.seed)
    network = SpecialisedVGG(len(settings.classes), settings.stages, settings.side_maps)
    if settings.init == "imagenet":
        imagenet.transfer(
            network, settings.imagenet_weights, feature_scale=settings.recipe.feature_scale
        )
    elif settings.init != "none":
        network = _started(Path(settings.init), settings)
    return network


def _started(folder: Path, settings: Settings) -> SpecialisedVGG:
    """The trained network in a folder, which must be of the shape that is to be trained."""
    card = load_card(folder)
    shape = (card.classes, card.stages, card.side_maps)
    if shape != (settings.classes, settings.stages, settings.side_maps):
        raise LeukoError(
            f"{folder} is a network of another shape than the one to train; "
            "start from a model of the same stages and classes"
        )
    return read_network(folder, card)


def _set_rate(optimizer: torch.optim.Optimizer, phase: Phase, rate: float) -> None:
    """Set learning rate and momentum, keeping Caffe's velocity when the rate changes.

    Caffe, which the paper used, folds the rate into the velocity (v = m v + rate g; w -= v),
    PyTorch does not (u = m u + g; w -= rate u). The same weights follow if u = v / rate is
    rescaled whenever the rate changes.
    """
    for group in optimizer.param_groups:
        if "momentum" in group:
            group["momentum"] = phase.momentum
            for parameter in group["params"]:
                velocity = optimizer.state[parameter].get("momentum_buffer")
                if velocity is not None and group["lr"] != rate:
                    velocity *= group["lr"] / rate
        group["lr"] = rate


def _precision(recipe: Recipe, device: runtime.Device) -> Literal["bf16-mixed", "32-true"]:
    """bfloat16 where the recipe allows it and the device multiplies in it: emulated, it is slow."""
    match device:
        case "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu":
            capabilities = torch.cpu.get_capabilities()
            native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
        case "mps":
            native = False
    return "bf16-mixed" if recipe.mixed_precision and native else "32-true"


def _described(subjects: list[Subject]) -> list[dict[str, Any]]:
    return [
        {"name": s.name, "files": {str(path): sha256(path) for path in s.files}} for s in subjects
    ]


def _recorded_subjects(
    record: dict[str, Any], settings: Settings
) -> tuple[list[Subject], list[Subject]]:
    """The run's subjects to train with and to measure on, their files unchanged since `start`."""
    found = {s.name: s for s in find_subjects(Path(settings.data))}
    groups = []
    for group in ("train", "held_out"):
        subjects = []
        for entry in record["subjects"][group]:
            subject = found.get(entry["name"])
            hashes = list(entry["files"].values())
            if subject is None or [sha256(path) for path in subject.files] != hashes:
                raise LeukoError(
                    f"the scans of {entry['name']} in {settings.data} are not those that the run "
                    "started with; put them back, or start another run"
                )
            subjects.append(subject)
        groups.append(subjects)
    return groups[0], groups[1]


def _measured(subject: Subject, model: runtime.Model) -> Row:
    """The measures of a trained model on one labelled subject."""
    flair = nifti.read(subject.flair)
    probability = predict(flair, nifti.read(subject.t1) if subject.t1 else None, model)[-1]
    mask = to_mask(
        probability,
        model.card.threshold,
        smallest_mm3=model.card.smallest_lesion_mm3,
        voxel_mm3=flair.voxel_mm3,
    )
    truth = nifti.read_labels(subject.labels, values=LABEL_VALUES)
    return compare(truth, flair.with_data(mask))
