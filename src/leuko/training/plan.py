"""The plan of a training: its settings, subjects and initial weights.

A run is a folder: `start` creates it with the plan, `loop.fit` trains it.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from leuko.errors import LeukoError
from leuko.evaluation.labels import WMH
from leuko.io.files import read_json, staged, write_json
from leuko.io.provenance import versions
from leuko.model import imagenet, runtime
from leuko.model.card import CARD_FILE, ModelCard, load_card
from leuko.model.network import SpecialisedVGG
from leuko.model.onnx_export import read_network
from leuko.synthesis.anatomy import Anatomy, from_mni152, load_heads
from leuko.training import lineage, material, processes, storage
from leuko.training.batch_norm import normalised
from leuko.training.dataset import Subject, find_subjects, people, split, verify
from leuko.training.painted_lesions import SPOTS
from leuko.training.recipes import Recipe
from leuko.training.settings import NO_MODELS, Settings

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
CHECKPOINT_FILE = "checkpoint.ckpt"
GROUPS = ("train", "validation", "held_out")
COMPUTATION = ("device", "threads", "precision")  # keys of the record
VALIDATION_PART = 0.2  # of the training subjects, if the training may stop early


@dataclass(frozen=True)
class Plan:
    """The plan of a run, as stored in its folder."""

    settings: Settings
    card: ModelCard  # of the model to be trained
    groups: dict[str, list[Subject]]  # by role; empty for the recipe base (see `material`)
    device: runtime.Device
    threads: int  # of each process
    precision: processes.Precision
    record: dict[str, Any]  # the content of run.json

    @property
    def trained(self) -> list[Subject]:
        """All subjects for training and validation, sorted by name."""
        return sorted(self.groups["train"] + self.groups["validation"], key=lambda s: s.name)

    @property
    def origin(self) -> Path | None:
        """The folder of the initial model, or None."""
        return None if self.settings.init in NO_MODELS else Path(self.settings.init)

    def require_origin(self) -> None:
        """Raises LeukoError if the initial model is missing or has changed."""
        if self.origin is None:
            return
        begun = self.card.training["from"]["sha256"]
        there = (self.origin / CARD_FILE).is_file()
        if not there or load_card(self.origin).weights_sha256 != begun:
            raise LeukoError(
                f"{self.origin} is not the model that the run started from (SHA-256 "
                f"{begun[:12]}); restore it, then resume with leuko train --resume"
            )


def start(
    run: Path,
    settings: Settings,
    *,
    device: runtime.Device = "cpu",
    threads: int | None = None,
) -> None:
    """Create a run folder with the plan and the initial weights, for `loop.fit` to train.

    The plan includes the number of threads and the precision, since they affect the last bits.
    Raises LeukoError, and leaves no folder, if the folder is not empty, if the scans, the initial
    weights or the device are missing, or if settings are incompatible.
    """
    if run.is_dir() and any(run.iterdir()):
        raise LeukoError(
            f"{run} is not empty; to resume an interrupted run, use leuko train --resume {run}; to "
            "start a new one, choose another folder"
        )
    runtime.require_device(device)
    processes.require_shareable(settings.recipe)
    settings.require_sense()
    how = {
        "device": device,
        "threads": threads or max(1, runtime.available_cpus() // processes.count_here()),
        "precision": precision(settings.recipe, device),
    }
    if settings.recipe.mixture:
        _require_teachers(settings)
        found = material.find(settings)
        hashes = {"label_hashes": found.label_hashes}
        _make(run, settings, found.described(), how | hashes, {"data": found.credits})
        return
    data = Path(settings.data)
    groups = _held_out(find_subjects(data, settings.labelling), settings)
    _require_subjects(groups, settings)
    if settings.recipe.synthetic_part:
        anatomies(settings.heads, torch.device("cpu"))
    _make(run, settings, {name: lineage.described(groups[name], data) for name in GROUPS}, how)


def is_resumable(
    run: Path, settings: Settings, *, device: runtime.Device, threads: int | None
) -> bool:
    """Whether a folder contains an unfinished run with the same settings."""
    if not (run / RUN_FILE).is_file():
        return False
    then, record = read_settings(run)
    same = then == settings and record["device"] == device
    return same and threads in (None, record["threads"]) and not record["finished"]


def start_fold(run: Path, planned: Plan, measured: Collection[str]) -> None:
    """Create the run folder of a fold: it trains on the subjects of a plan except those to be
    measured.

    Raises LeukoError if the initial model is missing or has changed.
    """
    planned.require_origin()
    settings = replace(planned.settings, folds=0)
    groups = _grouped(
        [s for s in planned.trained if s.name not in measured],
        [s for s in planned.trained if s.name in measured],
        settings,
    )
    described = {s["name"]: s for group in planned.record["subjects"].values() for s in group}
    again = {name: [described[s.name] for s in groups[name]] for name in GROUPS}
    _make(run, settings, again, {key: planned.record[key] for key in COMPUTATION})


def read(run: Path) -> Plan:
    """The plan of the run in a folder.

    Raises LeukoError if the folder is not a run, or if scans are missing or have changed.
    """
    settings, record = read_settings(run)
    groups: dict[str, list[Subject]] = {}
    if not settings.recipe.mixture:
        groups = lineage.unchanged(record["subjects"], Path(settings.data))
    return Plan(
        settings=settings,
        card=ModelCard.from_json(record["card"], source=run / RUN_FILE),
        groups=groups,
        record=record,
        **{key: record[key] for key in COMPUTATION},
    )


def read_settings(run: Path) -> tuple[Settings, dict[str, Any]]:
    """The settings and the record of a run. Raises LeukoError if the folder is not a run."""
    record = read_json(run / RUN_FILE, what="run") if (run / RUN_FILE).is_file() else {}
    if record.get("command") != "train":
        raise LeukoError(f"{run} is not a training run; give a folder that leuko train made")
    lacking = {"settings", "card", "subjects", "finished", *COMPUTATION} - record.keys()
    try:
        if not lacking:
            return Settings.from_json(record["settings"]), record
    except (KeyError, TypeError, AttributeError):
        pass
    raise LeukoError(
        f"{run / RUN_FILE} is damaged or from another version of Leuko; start a new run"
    )


@cache
def anatomies(heads: str | None, device: torch.device) -> list[Anatomy]:
    """The anatomies of synthetic scans: label maps in a folder, or the MNI152 brain.

    Raises LeukoError if they are missing.
    """
    found = load_heads(Path(heads)) if heads else [from_mni152()]
    return [anatomy.to(device) for anatomy in found]


def _make(
    run: Path,
    settings: Settings,
    described: Mapping[str, Sequence[lineage.Described]],
    how: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder of a run; `training` is added to the training entry of its card.

    Raises LeukoError if the initial model was trained on a subject that is to be measured.
    """
    lineage.require_distinct(s for group in described.values() for s in group)
    card = _card(run.resolve().name, settings, described, training or {})
    measured = GROUPS if settings.folds else ("held_out",)
    lineage.require_unseen(card, [s for group in measured for s in described.get(group, ())])
    network = _initialised(settings)
    with staged(run) as scratch:
        torch.save({"model": network.state_dict(), "step": 0}, scratch / CHECKPOINT_FILE)
        record = {
            "command": "train",
            "finished": False,
            "versions": versions(),
            "settings": asdict(settings),
            **how,
            "subjects": described,
            "card": asdict(card),
        }
        write_json(scratch / RUN_FILE, record)


def _held_out(subjects: Sequence[Subject], settings: Settings) -> dict[str, list[Subject]]:
    """The subjects by group; a random part of them is held out."""
    train, held_out = split(subjects, held_out=settings.held_out, seed=settings.seed)
    if settings.held_out and not held_out:
        log.warning("too few people to hold one out; no subject will be measured")
    if settings.folds and (count := len(people(train))) < 2:
        raise LeukoError(
            f"cross-validation needs labelled scans of 2 people or more, found {count}; label "
            "more, or use --folds 0, which measures nothing"
        )
    return _grouped(train, held_out, settings)


def _grouped(
    train: list[Subject], held_out: list[Subject], settings: Settings
) -> dict[str, list[Subject]]:
    """The subjects by group: for training, for validation, held out."""
    validation: list[Subject] = []
    if settings.patience:
        part = max(VALIDATION_PART, 1 / len(people(train)))
        train, validation = split(train, held_out=part, seed=settings.seed + 1)
        if not validation:
            raise LeukoError(
                "--patience needs training scans of 2 people or more, one for validation; add "
                "scans, or remove it"
            )
    return dict(zip(GROUPS, (train, validation, held_out), strict=True))


def _require_subjects(groups: Mapping[str, Sequence[Subject]], settings: Settings) -> None:
    """Raises LeukoError if the files of a subject cannot be used, or if a class is present in too
    few training subjects."""
    subjects = sorted((s for group in groups.values() for s in group), key=lambda s: s.name)
    labelling, shown = settings.labelling, {}
    for subject in subjects:
        if subject.t1 is None and settings.preparation.needs_t1:
            raise LeukoError(
                f"{settings.data}: {subject.name} has no T1.nii.gz, but the channels "
                f"{settings.preparation.channels} need one; add it, or use --channels "
                "flair-3-slices"
            )
        shown[subject.name] = verify(subject, settings.preparation, labelling)
    needed = 2 if settings.folds else 1
    for name in labelling.classes[1:]:
        called = "WMH" if name == WMH else name
        without = [subject.name for subject in subjects if name not in shown[subject.name]]
        if without:
            log.warning("subjects without %s in their labels: %s", called, ", ".join(without))
        trained = people(s for s in groups["train"] if name in shown[s.name])
        if len(trained) < needed:
            raise LeukoError(
                f"{settings.data}: {called} (label {labelling.names.index(name)}) is labelled in "
                f"{len(trained)} of the people for training, expected {needed} or more; label more"
            )


def built(settings: Settings) -> SpecialisedVGG:
    """The network, before its weights are set."""
    network = SpecialisedVGG(len(settings.classes), settings.stages, settings.side_maps)
    return normalised(network) if settings.recipe.normalised else network


def _initialised(settings: Settings) -> SpecialisedVGG:
    """The network with its initial weights."""
    torch.manual_seed(settings.seed)
    network = built(settings)
    if settings.init == "imagenet":
        imagenet.transfer(
            network,
            settings.imagenet_weights,
            kind=settings.imagenet_kind,
            feature_scale=settings.recipe.feature_scale,
        )
    elif settings.recipe.mixture and settings.init != "none":
        network.load_state_dict(storage.with_rims(storage.read_weights(settings.init).state))
    elif settings.init != "none":
        network = _started(Path(settings.init), settings)
    return network


def _started(folder: Path, settings: Settings) -> SpecialisedVGG:
    """The network of the initial model, which must have the same stages and classes."""
    card = load_card(folder)
    shape = (card.classes, card.stages, card.side_maps)
    if shape != (settings.classes, settings.stages, settings.side_maps):
        raise LeukoError(
            f"the network in {folder} has other stages or classes than the one to train; start "
            "from a model with the same"
        )
    return read_network(folder, card)


def _require_teachers(settings: Settings) -> None:
    """Raises LeukoError if a teacher is not a model, or if the first one lacks a class."""
    for number, teacher in enumerate(settings.teachers):
        classes = storage.read_weights(teacher).classes
        if number == 0 and classes != len(settings.classes):
            raise LeukoError(
                f"the first --teacher {teacher} has {classes} classes, expected the "
                f"{len(settings.classes)} of the model to train; give a model with these first"
            )


def _card(
    name: str,
    settings: Settings,
    described: Mapping[str, Sequence[lineage.Described]],
    training: Mapping[str, Any],
) -> ModelCard:
    """The card of the model to be trained."""
    seen = [s for group, subjects in described.items() if group != "held_out" for s in subjects]
    recipe = settings.recipe
    if recipe.mixture:
        training = {
            "images_per_step": recipe.images_per_step,
            "teachers": [Path(teacher).name for teacher in settings.teachers],
            "left_out": list(settings.leave),
            "painted_lesions": asdict(SPOTS),
            **training,
        }
    if recipe.mixture or recipe.synthetic_part:
        training = {**training, "synthesis": asdict(settings.synthesis)}
    card = ModelCard(
        name=name,
        classes=settings.classes,
        preparation=settings.preparation,
        stages=settings.stages,
        side_maps=settings.side_maps,
        three_planes=bool(recipe.mixture),
        training={
            "recipe": recipe.name,
            "steps": recipe.steps,
            "init": Path(settings.init).name,
            "seed": settings.seed,
            "subjects": [subject["name"] for subject in described["train"]],
            "scans": [lineage.scan(subject) for subject in seen],
            **training,
        },
        leuko_version=versions()["leuko"],
    )
    if settings.init in NO_MODELS or storage.is_file(settings.init):
        return card
    return lineage.descended(card, load_card(Path(settings.init)))


def precision(recipe: Recipe, device: runtime.Device) -> processes.Precision:
    """bfloat16 if the recipe allows it and the device supports it natively; emulation is slow."""
    match device:
        case "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu":
            capabilities = torch.cpu.get_capabilities()
            native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
        case "mps":
            native = False
    return "bf16-mixed" if recipe.mixed_precision and native else "32-true"
