"""Measures a model on held-out subjects and stores its masks in a folder."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from leuko.evaluation.evaluate import Row, compare, compare_classes
from leuko.evaluation.labels import LABEL_VALUES, Labelling
from leuko.io import nifti
from leuko.io.files import staged
from leuko.lesions import quality_checks
from leuko.lesions.delineation import tissue_map
from leuko.lesions.drawing import Drawing, draw
from leuko.model import runtime
from leuko.model.predict import predict, predicted, to_tissue
from leuko.preprocessing.slices import Pair
from leuko.training.dataset import Subject, read_classes, read_pair
from leuko.volume import Volume

log = logging.getLogger(__name__)

MASKS, MASK_FILE, DOUBT_FILE = "masks", "wmh.nii.gz", "doubt.txt"
TISSUE_FILE = "tissue.nii.gz"


def measures(
    subjects: Iterable[Subject],
    model: runtime.Model,
    masks: Path,
    *,
    check_flair: bool = False,
    doing: Callable[[str], None] = lambda _: None,
) -> dict[str, Row]:
    """The measures of a model by subject; its masks are written to `masks/SUBJECT/wmh.nii.gz`.

    `doing` is called with the name of each activity. If `check_flair`, warns of each FLAIR that
    does not look like one and stores the reason (`doubts`). Existing masks are assumed to be from
    the model, so that an interrupted measurement can be resumed.
    """
    rows = {}
    for subject in subjects:
        doing(f"measuring {subject.name}")
        path = mask_path(masks, subject.name)
        if not path.is_file():
            found, doubt = segment(subject, model, check_flair=check_flair)
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
    """The measures of each class by subject (`evaluate.compare_classes`).

    The label maps of the model, with the numbers of its classes, are written to
    `maps/SUBJECT/tissue.nii.gz`. Existing maps are assumed to be from the model, so that an
    interrupted measurement can be resumed.
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
    """The path of the mask of a subject."""
    return masks / name / MASK_FILE


def doubts(masks: Path) -> dict[str, str]:
    """Why a FLAIR, measured with `check_flair`, does not look like one; by subject."""
    return {
        path.parent.relative_to(masks).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(masks.rglob(DOUBT_FILE))
    }


def segment(
    subject: Subject, model: runtime.Model, *, check_flair: bool = False
) -> tuple[Volume, str | None]:
    """The mask of a subject, bool, and, if `check_flair`, why its FLAIR does not look like one."""
    flair, t1 = read_pair(subject, model.card.preparation)
    drawing = _drawing(flair, t1, model)
    doubt = quality_checks.wrong_scan(drawing.checked.findings) if check_flair else None
    return flair.with_canonical(drawing.masks.mask), doubt


def _drawing(flair: Volume, t1: Volume | None, model: runtime.Model) -> Drawing:
    pair = Pair.of(flair.canonical(), t1, model.card.preparation)
    return draw(predicted(pair, model), pair, model.card)


def _tissue(subject: Subject, model: runtime.Model) -> Volume:
    flair, t1 = read_pair(subject, model.card.preparation)
    if not model.card.knows_wmh:
        return to_tissue(predict(flair, t1, model), flair)
    masks = _drawing(flair, t1, model).masks
    tissue = tissue_map(masks.anatomy, masks.mask, masks.rims, model.card)
    return flair.with_canonical(tissue.data)
