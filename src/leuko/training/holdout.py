"""Subjects that a model is measured on: its masks, kept in a folder, and their measures."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from leuko.evaluation.evaluate import Row, compare, compare_classes
from leuko.evaluation.labels import LABEL_VALUES, Labelling
from leuko.io import nifti
from leuko.io.files import staged
from leuko.io.provenance import Stopwatch
from leuko.lesions import quality_checks
from leuko.lesions.brain import without_outside
from leuko.lesions.delineation import Delineation, delineate, tissue_map
from leuko.model import runtime
from leuko.model.predict import predict, predict_pair, to_tissue
from leuko.preprocessing.slices import Pair
from leuko.training.dataset import Subject, read_classes, read_pair
from leuko.volume import Array, Volume

log = logging.getLogger(__name__)

MASKS, MASK_FILE, DOUBT_FILE = "masks", "wmh.nii.gz", "doubt.txt"
TISSUE_FILE = "tissue.nii.gz"


def measures(
    subjects: Iterable[Subject],
    model: runtime.Model,
    masks: Path,
    *,
    guarded: bool = False,
    doing: Callable[[str], None] = lambda _: None,
) -> dict[str, Row]:
    """The measures of a model by subject, its masks in `masks/SUBJECT/wmh.nii.gz`; `doing` is told
    which is measured, and if `guarded`, a FLAIR that looks like none is warned of (`doubts`).

    Masks that are there already are taken for the model's, so that measuring can be interrupted.
    """
    rows = {}
    for subject in subjects:
        doing(f"measuring {subject.name}")
        path = mask_path(masks, subject.name)
        if not path.is_file():
            found, doubt = segment(subject, model, guarded=guarded)
            with staged(path.parent) as scratch:
                nifti.write(scratch / path.name, found.with_data(found.data.astype(np.uint8)))
                if doubt:
                    log.warning("%s: %s", subject.name, doubt)
                    (scratch / DOUBT_FILE).write_text(
                        doubt, encoding="utf-8", errors="backslashreplace"
                    )
        truth = nifti.read_labels(subject.labels, values=LABEL_VALUES)
        rows[subject.name] = compare(truth, nifti.read_mask(path))
    return rows


def class_measures(
    subjects: Iterable[Subject],
    model: runtime.Model,
    labelling: Labelling,
    maps: Path,
    *,
    doing: Callable[[str], None] = lambda _: None,
) -> dict[str, Row]:
    """The measures of each class by subject (`evaluate.compare_classes`), what the model found in
    `maps/SUBJECT/tissue.nii.gz`, numbered as its classes.

    Maps that are there already are taken for the model's, so that measuring can be interrupted.
    """
    rows = {}
    for subject in subjects:
        doing(f"measuring {subject.name}")
        path = maps / subject.name / TISSUE_FILE
        if not path.is_file():
            with staged(path.parent) as scratch:
                nifti.write(scratch / path.name, _tissue(subject, model))
        found = nifti.read_labels(path, values=range(len(model.card.classes)))
        truth = read_classes(subject, labelling)
        rows[subject.name] = compare_classes(truth, found, model.card.classes)
    return rows


def mask_path(masks: Path, name: str) -> Path:
    """Where the mask of a subject lies."""
    return masks / name / MASK_FILE


def doubts(masks: Path) -> dict[str, str]:
    """Why the FLAIR of a subject, measured with `guarded`, does not look like one; by subject."""
    return {
        path.parent.relative_to(masks).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(masks.rglob(DOUBT_FILE))
    }


def segment(
    subject: Subject, model: runtime.Model, *, guarded: bool = False
) -> tuple[Volume, str | None]:
    """What a model finds in a subject, as bool; if `guarded`, why its FLAIR looks like none."""
    flair, t1 = read_pair(subject, model.card.preparation)
    pair = Pair.of(flair, t1, model.card.preparation)
    drawn = delineate(predict_pair(pair, model, Stopwatch()), flair, model.card)
    mask = within_brain(drawn, model, threads=1)
    doubt = None
    if guarded and model.card.tissues == quality_checks.TISSUES:
        tissue = quality_checks.with_wmh(drawn.anatomy, mask).canonical().data
        case = quality_checks.CheckedScan(flair.canonical(), pair.given_t1, tissue)
        doubt = quality_checks.wrong_scan(case)
    return flair.with_data(mask), doubt


def within_brain(drawn: Delineation, model: runtime.Model, *, threads: int) -> Array:
    """The mask as `leuko segment` draws it: without lesions outside the brain, if the tissues can
    tell."""
    if model.card.tissues != quality_checks.TISSUES:
        return drawn.mask
    return without_outside(drawn, threads=threads).mask


def _tissue(subject: Subject, model: runtime.Model) -> Volume:
    flair, t1 = read_pair(subject, model.card.preparation)
    probabilities = predict(flair, t1, model)
    if not model.card.knows_wmh:
        return to_tissue(probabilities, flair)
    drawn = delineate(probabilities, flair, model.card)
    mask = within_brain(drawn, model, threads=1)
    return tissue_map(drawn.anatomy, mask, drawn.rims, model.card)
