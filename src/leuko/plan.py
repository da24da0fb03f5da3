"""What a training is to do, decided before it begins: its settings, its subjects, its start.

A run is a folder: `start` makes it, `train.fit` fills it.
"""

import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from leuko import imagenet, parallel, runtime
from leuko.anatomy import Anatomy, from_mni152, load_heads
from leuko.channels import Preparation
from leuko.dataset import Subject, find_subjects, split
from leuko.errors import LeukoError
from leuko.export import read_network
from leuko.files import read_json, sha256, staged, write_json
from leuko.network import SIDE_MAPS, VGG16, SpecialisedVGG, Stages
from leuko.recipes import MODERN, Augmentation, Phase, Recipe
from leuko.record import versions
from leuko.weights import CARD_FILE, WEIGHTS_FILE, ModelCard, load_card

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
CHECKPOINT_FILE = "checkpoint.ckpt"
CLASSES: tuple[str, ...] = ("background", "wmh")
GROUPS = ("train", "validation", "held_out")
VALIDATION_PART = 0.2  # of the training subjects, where the training may stop early
SYNTHETIC = Preparation()  # what synthetic slices look like
NO_MODELS = ("imagenet", "none")  # to start from


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
    folds: int = 0  # parts of the subjects, each measured by a model trained without it; 0: none
    patience: int = 0  # validations in a row without gain that end the training; 0: none is made
    heads: str | None = None  # label maps that synthetic images are made of; None: the MNI152 brain
    compiled: bool = False  # by torch.compile

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
class Plan:
    """A run's settings and how they are to be computed, as its folder keeps them."""

    settings: Settings
    card: ModelCard  # of the model that it will be
    groups: dict[str, list[Subject]]
    device: runtime.Device
    threads: int  # of each process
    precision: parallel.Precision
    record: dict[str, Any]  # all of the file

    @property
    def origin(self) -> Path | None:
        """The model that it starts from."""
        return None if self.settings.init in NO_MODELS else Path(self.settings.init)


def start(
    run: Path,
    settings: Settings,
    *,
    device: runtime.Device = "cpu",
    threads: int | None = None,
    measured: Collection[str] | None = None,
) -> None:
    """Make a run folder that `train.fit` can fill: the network as it starts, and all that is
    decided.

    `measured` names the subjects to hold out, in place of a random part of them. Number of threads
    and precision are kept too, since they decide the last bits, and how many images are computed at
    once, so that any number of processes can go on. Raises LeukoError, and leaves no folder, if
    there is a run already, or if the scans, the weights to start from, or the device are missing.
    """
    if any((run / name).exists() for name in (RUN_FILE, CHECKPOINT_FILE, CARD_FILE, WEIGHTS_FILE)):
        raise LeukoError(
            f"{run} holds a run already; continue it with leuko train --resume {run}, "
            "delete it, or choose another folder"
        )
    runtime.require_device(device)
    groups = _grouped(settings, measured)
    recipe = settings.recipe
    at_once = parallel.at_once(recipe.images_per_step, recipe.images_at_once)
    settings = replace(settings, recipe=replace(recipe, images_at_once=at_once))
    if recipe.synthetic_part:
        _require_synthesis(settings)
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
                "processes": parallel.count(),
                "threads": threads or max(1, runtime.available_cpus() // parallel.count_here()),
                "precision": _precision(recipe, device),
                "subjects": {name: _described(groups[name]) for name in GROUPS},
                "card": asdict(_card(run.resolve().name, settings, groups["train"])),
            },
        )


def read(run: Path) -> Plan:
    """What was decided for the run in a folder; its scans unchanged since.

    Raises LeukoError if the folder is no run, or scans are gone or others.
    """
    record = read_json(run / RUN_FILE, what="run") if (run / RUN_FILE).is_file() else {}
    if record.get("command") != "train":
        raise LeukoError(f"{run} is no training run; give a folder that leuko train made")
    settings = Settings.from_json(record["settings"])
    return Plan(
        settings=settings,
        card=ModelCard.from_json(record["card"], source=run / RUN_FILE),
        groups=_recorded_subjects(record, settings),
        device=record["device"],
        threads=record["threads"],
        precision=record["precision"],
        record=record,
    )


def anatomies(settings: Settings, device: torch.device) -> list[Anatomy]:
    """What synthetic scans are made of. Raises LeukoError if it is not there."""
    found = load_heads(Path(settings.heads)) if settings.heads else [from_mni152()]
    return [anatomy.to(device) for anatomy in found]


def _grouped(settings: Settings, measured: Collection[str] | None) -> dict[str, list[Subject]]:
    """The subjects to train with, to stop by, and to measure on."""
    subjects = find_subjects(Path(settings.data))
    lacking = [s.name for s in subjects if s.t1 is None]
    if lacking and settings.preparation.needs_t1:
        raise LeukoError(
            f"{settings.data}: {lacking[0]} has no T1.nii.gz, which the channels "
            f"{settings.preparation.channels} need; add it, or use --channels flair-3-slices"
        )
    if measured is None:
        train, held_out = split(subjects, held_out=settings.held_out, seed=settings.seed)
        if settings.held_out and not held_out:
            log.warning("%d subjects are too few to hold one out; none is measured", len(subjects))
    else:
        train = [s for s in subjects if s.name not in measured]
        held_out = [s for s in subjects if s.name in measured]
    if settings.folds == 1:
        raise LeukoError("one fold leaves no subject to train with; give --folds 2 or more, or 0")
    if settings.folds and len(train) < 2:
        raise LeukoError(
            "cross-validation takes two labelled subjects or more; "
            "label another, or use --folds 0, which measures nothing"
        )
    validation: list[Subject] = []
    if settings.patience:
        part = max(VALIDATION_PART, 1 / len(train))
        train, validation = split(train, held_out=part, seed=settings.seed + 1)
        if not validation:
            raise LeukoError("stopping early takes two training subjects or more: one to stop by")
    return dict(zip(GROUPS, (train, validation, held_out), strict=True))


def _require_synthesis(settings: Settings) -> None:
    preparation = settings.preparation
    shown = (preparation.channels, preparation.pixel_mm)
    if shown != (SYNTHETIC.channels, SYNTHETIC.pixel_mm):
        raise LeukoError(
            f"the recipe {settings.recipe.name} mixes in synthetic images, which are made for the "
            f"channels {SYNTHETIC.channels} at {SYNTHETIC.pixel_mm:g} mm; this model has "
            f"{preparation.channels} at {preparation.pixel_mm:g} mm: use --recipe modern"
        )
    anatomies(settings, torch.device("cpu"))


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


def _card(name: str, settings: Settings, train: list[Subject]) -> ModelCard:
    """Of the model to come. From a model it takes how that one is used, but neither its
    calibration, which was measured with other weights, nor its licence: the scans have owners."""
    recipe = settings.recipe
    card = ModelCard(
        name=name,
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
    if settings.init in NO_MODELS:
        return card
    before = load_card(Path(settings.init))
    origin = {"name": before.name, "licence": before.licence, "sha256": before.weights_sha256}
    return replace(
        card,
        three_planes=before.three_planes,
        threshold=before.threshold,
        smallest_lesion_mm3=before.smallest_lesion_mm3,
        training={**card.training, "from": origin},
    )


def _precision(recipe: Recipe, device: runtime.Device) -> parallel.Precision:
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


def _recorded_subjects(record: dict[str, Any], settings: Settings) -> dict[str, list[Subject]]:
    """The run's subjects, their files unchanged since `start`."""
    found = {s.name: s for s in find_subjects(Path(settings.data))}
    groups = {}
    for group in GROUPS:
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
        groups[group] = subjects
    return groups
