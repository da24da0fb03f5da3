"""Subjects that a model is measured on: its masks, kept in a folder, and their measures."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from leuko import nifti, runtime
from leuko.dataset import LABEL_VALUES, Subject, read_pair
from leuko.evaluate import Row, compare
from leuko.files import staged
from leuko.predict import predict, to_mask
from leuko.volume import Volume

MASKS, MASK_FILE = "masks", "wmh.nii.gz"


def measures(
    subjects: Iterable[Subject],
    model: runtime.Model,
    masks: Path,
    *,
    doing: Callable[[str], None] = lambda _: None,
) -> dict[str, Row]:
    """The measures of a model by subject, its masks in `masks/SUBJECT/wmh.nii.gz`; `doing` is told
    which is measured.

    Masks that are there already are taken for the model's, so that measuring can be interrupted.
    """
    rows = {}
    for subject in subjects:
        doing(f"measuring {subject.name}")
        path = mask_path(masks, subject.name)
        if not path.is_file():
            found = segment(subject, model)
            with staged(path.parent) as scratch:
                nifti.write(scratch / path.name, found.with_data(found.data.astype(np.uint8)))
        truth = nifti.read_labels(subject.labels, values=LABEL_VALUES)
        rows[subject.name] = compare(truth, nifti.read_mask(path))
    return rows


def mask_path(masks: Path, name: str) -> Path:
    """Where the mask of a subject lies."""
    return masks / name / MASK_FILE


def segment(subject: Subject, model: runtime.Model) -> Volume:
    """What a model finds in a subject, as bool."""
    flair, t1 = read_pair(subject, model.card.preparation)
    probability = predict(flair, t1, model)[-1]
    mask = to_mask(
        probability,
        model.card.threshold,
        smallest_mm3=model.card.smallest_lesion_mm3,
        voxel_mm3=flair.voxel_mm3,
    )
    return flair.with_data(mask)
