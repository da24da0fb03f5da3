"""Subjects that a model is measured on: its masks, kept in a folder, and their measures."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from leuko import guards, nifti, runtime
from leuko.channels import Pair
from leuko.dataset import LABEL_VALUES, Subject, read_pair
from leuko.evaluate import Row, compare
from leuko.files import staged
from leuko.predict import predict_pair, to_mask, to_tissue
from leuko.record import Stopwatch
from leuko.volume import Volume

log = logging.getLogger(__name__)

MASKS, MASK_FILE, DOUBT_FILE = "masks", "wmh.nii.gz", "doubt.txt"


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
    probabilities = predict_pair(pair, model, Stopwatch())
    mask = to_mask(
        probabilities[-1],
        model.card.threshold,
        smallest_mm3=model.card.smallest_lesion_mm3,
        voxel_mm3=flair.voxel_mm3,
    )
    doubt = None
    if guarded and model.card.classes == guards.TISSUES:
        tissue = to_tissue(probabilities, mask, flair).canonical().data
        case = guards.Case(flair.canonical(), pair.t1 if pair.t1.any() else None, tissue)
        doubt = guards.wrong_scan(case)
    return flair.with_data(mask), doubt
