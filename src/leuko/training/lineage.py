"""Which scans and which models a model comes from, over all generations."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.files import sha256
from leuko.model.weights import ModelCard
from leuko.training.dataset import Subject

Described = Mapping[str, Any]  # a subject: its name, its files from DATA on, and their hashes


def described(subjects: Iterable[Subject], data: Path) -> list[Described]:
    """The subjects of a folder as JSON."""
    return [
        {
            "name": s.name,
            "files": {
                kind: {"path": path.relative_to(data).as_posix(), "sha256": sha256(path)}
                for kind, path in (("flair", s.flair), ("t1", s.t1), ("labels", s.labels))
                if path
            },
            "scan": fingerprint(s.flair),
        }
        for s in subjects
    ]


def unchanged(recorded: Mapping[str, Sequence[Described]], data: Path) -> dict[str, list[Subject]]:
    """The subjects of a folder that were described, by group.

    Raises LeukoError if their files are not those of then, or the folder is gone.
    """
    if not data.is_dir():
        raise LeukoError(f"{data}, which the run was started with, is gone; put it back")
    return {
        group: [_found(entry, data) for entry in entries] for group, entries in recorded.items()
    }


def scan(subject: Described) -> str:
    """What tells a subject's FLAIR from all others, wherever it lies and however it is stored."""
    return str(subject["scan"])


def _found(entry: Described, data: Path) -> Subject:
    paths = {kind: data / file["path"] for kind, file in entry["files"].items()}
    for kind, file in entry["files"].items():
        if not paths[kind].is_file() or sha256(paths[kind]) != file["sha256"]:
            raise LeukoError(
                f"the scans of {entry['name']} in {data} are not those that the run started "
                "with; put them back, or start another run"
            )
    return Subject(entry["name"], **{"t1": None} | paths)


def fingerprint(path: Path) -> str:
    """Of the voxels of an image, its axes running R, A, S."""
    voxels = np.ascontiguousarray(nifti.read(path).canonical().data, dtype=np.float32)
    return hashlib.sha256(voxels.tobytes()).hexdigest()[:16]


def require_distinct(subjects: Iterable[Described]) -> None:
    """Raises LeukoError if two have one FLAIR: measured on the one, a model may have seen it as the
    other."""
    names: dict[str, str] = {}
    for subject in subjects:
        other = names.setdefault(scan(subject), subject["name"])
        if other != subject["name"]:
            raise LeukoError(
                f"{other} and {subject['name']} have the same FLAIR; take one of them out"
            )


def descended(card: ModelCard, origin: ModelCard) -> ModelCard:
    """The card of a model that starts from another.

    It takes how that one is used, but neither its calibration, which was measured with other
    weights, nor its licence: the scans have owners.
    """
    kept = {key: origin.training[key] for key in ("scans", "from") if key in origin.training}
    before = {"name": origin.name, "licence": origin.licence, "sha256": origin.weights_sha256}
    return replace(
        card,
        three_planes=card.three_planes or origin.three_planes,
        threshold=origin.threshold,
        lesion_threshold=origin.lesion_threshold,
        edges=origin.edges,
        smallest_lesion_mm3=origin.smallest_lesion_mm3,
        training={**card.training, "from": before | kept},
    )


def require_unseen(card: ModelCard, measured: Iterable[Described]) -> None:
    """Raises LeukoError if a model that this one comes from was trained with a subject to measure
    on."""
    seen = {key for training in _before(card) for key in training.get("scans", ())}
    known = [subject["name"] for subject in measured if scan(subject) in seen]
    if known:
        others = f" and {len(known) - 1} more" if known[1:] else ""
        raise LeukoError(
            f"{card.training['from']['name']}, or a model before it, was trained with {known[0]}"
            f"{others}: measured on these scans the new model would look better than it is. Start "
            "from a model that has not seen them, or measure none: --folds 0 --held-out 0"
        )


def _before(card: ModelCard) -> Iterator[Mapping[str, Any]]:
    """The trainings before a model's own, the last one first."""
    training: Mapping[str, Any] = card.training
    while "from" in training:
        training = training["from"]
        yield training
