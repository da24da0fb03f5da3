"""The lineage of a model: the scans and models that it was trained from, over all generations."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.files import sha256
from leuko.model.card import ModelCard
from leuko.training.dataset import Subject

Described = Mapping[str, Any]  # a subject: name, paths of its files relative to DATA, and hashes


def described(subjects: Iterable[Subject], data: Path) -> list[Described]:
    """The subjects of a folder as JSON, with the hashes of their files."""
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
    """The subjects of a folder that `described` recorded, by group.

    Raises LeukoError if the folder is missing or their files have changed.
    """
    if not data.is_dir():
        raise LeukoError(f"the data folder of the run, {data}, does not exist; restore it")
    return {
        group: [_found(entry, data) for entry in entries] for group, entries in recorded.items()
    }


def scan(subject: Described) -> str:
    """The fingerprint of a subject's FLAIR, independent of its path and file format."""
    return str(subject["scan"])


def _found(entry: Described, data: Path) -> Subject:
    paths = {kind: data / file["path"] for kind, file in entry["files"].items()}
    for kind, file in entry["files"].items():
        if not paths[kind].is_file() or sha256(paths[kind]) != file["sha256"]:
            raise LeukoError(
                f"the scans of {entry['name']} in {data} have changed since the run started; "
                "restore them, or start a new run"
            )
    return Subject(entry["name"], **{"t1": None} | paths)


def fingerprint(path: Path) -> str:
    """The first 16 digits of the SHA-256 of the voxels of an image in RAS order."""
    voxels = np.ascontiguousarray(nifti.read(path).canonical().data, dtype=np.float32)
    return hashlib.sha256(voxels.tobytes()).hexdigest()[:16]


def require_distinct(subjects: Iterable[Described]) -> None:
    """Raises LeukoError if two subjects have the same FLAIR: a model trained on one could be
    measured on the other."""
    names: dict[str, str] = {}
    for subject in subjects:
        other = names.setdefault(scan(subject), subject["name"])
        if other != subject["name"]:
            raise LeukoError(
                f"{other} and {subject['name']} have the same FLAIR; remove one of them"
            )


def descended(card: ModelCard, origin: ModelCard) -> ModelCard:
    """The card of a model whose training starts from the model `origin`.

    It inherits the settings for segmentation, but not the calibration, which is valid only for the
    weights of `origin`, nor the licence, which depends on the new scans.
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
    """Raises LeukoError if an earlier model in the lineage was trained on a subject that is to be
    measured."""
    seen = {key for training in _before(card) for key in training.get("scans", ())}
    known = [subject["name"] for subject in measured if scan(subject) in seen]
    if known:
        others = f" and {len(known) - 1} more" if known[1:] else ""
        raise LeukoError(
            f"{card.training['from']['name']}, or a model before it, was trained on {known[0]}"
            f"{others}, so measures on these scans would be too good; start from a model that was "
            "not trained on them, or do not measure: --folds 0 --held-out 0"
        )


def _before(card: ModelCard) -> Iterator[Mapping[str, Any]]:
    """The trainings of the earlier models, latest first."""
    training: Mapping[str, Any] = card.training
    while "from" in training:
        training = training["from"]
        yield training
