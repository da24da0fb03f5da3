"""Evaluates predicted masks against references: one pair, or folders as a table with intervals."""

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from leuko.errors import LeukoError
from leuko.evaluation.labels import IGNORED, LABEL_NAMES, LABEL_VALUES, WMH
from leuko.evaluation.metrics import MEASURES, measure, without_other_pathology
from leuko.io import nifti
from leuko.io.files import find_images, image_stem, staged
from leuko.lesions.components import find_lesions
from leuko.volume import Volume, require_same_grid

log = logging.getLogger(__name__)

PREDICTION_NAMES = ("wmh", "result")  # as `leuko segment` and the WMH challenge name them
RESAMPLES = 10_000

COLUMNS = (
    *(m.key for m in MEASURES),
    "reference_ml",
    "prediction_ml",
    "reference_lesions",
    "prediction_lesions",
)

Row = dict[str, float]


def evaluate(reference: str | Path, prediction: str | Path) -> Row:
    """All measures, volumes and lesion counts of one predicted mask, by `COLUMNS`.

    The reference holds 0, 1 and 2 (other pathology, not counted); `nifti.read_mask` reads the
    prediction. Their axis orders may differ. Raises LeukoError if their grids differ.

    >>> import leuko
    >>> measures = leuko.evaluate("reference.nii.gz", "wmh.nii.gz")
    >>> measures["dsc"], measures["lesion_f1"]
    (1.0, 1.0)
    """
    truth = nifti.read_labels(Path(reference), values=LABEL_VALUES)
    return compare(truth, nifti.read_mask(Path(prediction)))


def compare(truth: Volume, mask: Volume) -> Row:
    """As `evaluate`, for labels (0, 1, 2) and a boolean mask in memory."""
    require_same_grid(truth, mask)
    canonical = truth.canonical()
    predicted, expected = without_other_pathology(
        prediction=mask.canonical().data, reference=canonical.data
    )
    measures = measure(
        prediction=predicted,
        reference=expected,
        affine=canonical.affine,
        through_plane_axis=canonical.through_plane_axis,
    )
    voxel_ml = canonical.voxel_mm3 / 1000
    return measures | {
        "reference_ml": float(expected.sum()) * voxel_ml,
        "prediction_ml": float(predicted.sum()) * voxel_ml,
        "reference_lesions": float(find_lesions(expected)[1]),
        "prediction_lesions": float(find_lesions(predicted)[1]),
    }


def compare_classes(truth: Volume, found: Volume, classes: Sequence[str]) -> Row:
    """Measures and volumes of each class except the first, background; lesions only of `wmh`.

    Keys are such as `csf_dsc`. `truth` and `found` hold class numbers; voxels where the truth is
    `IGNORED` are not counted.
    """
    require_same_grid(truth, found)
    canonical = truth.canonical()
    known = canonical.data != IGNORED
    row: Row = {}
    for number, name in list(enumerate(classes))[1:]:
        labels = canonical.with_data((canonical.data == number).astype(np.uint8))
        mask = canonical.with_data((found.canonical().data == number) & known)
        measures = compare(labels, mask)
        row |= {
            f"{name}_{key}": value
            for key, value in measures.items()
            if name == WMH or "lesion" not in key
        }
    return row


def evaluate_folders(references: Path, predictions: Path) -> dict[str, Row]:
    """One row for each subject in both folders, by subject; see `match_folders`."""
    matched, _ = match_folders(references, predictions)
    return {subject: evaluate(*masks) for subject, masks in matched.items()}


def match_folders(
    references: Path, predictions: Path
) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """Reference and prediction of each subject in both folders; subjects without a prediction.

    A subject is a subfolder with a mask (`wmh`, `lesions`; predictions: `wmh`, `result`), named by
    its path, or a file directly in the folder, named by its stem. Subjects in only one folder and
    folders of images without a mask are listed in warnings. Raises LeukoError if the folders share
    no subject.
    """
    truths = _find_masks(references, LABEL_NAMES)
    masks = _find_masks(predictions, PREDICTION_NAMES)
    shared = sorted(truths.keys() & masks.keys())
    if not shared:
        raise LeukoError(
            f"{references} ({_some(truths)}) and {predictions} ({_some(masks)}) share no subject; "
            "give the subject folders or files the same names in both"
        )
    lacking = sorted(truths.keys() - masks.keys())
    for folder, missing in (
        (predictions, lacking),
        (references, sorted(masks.keys() - truths.keys())),
    ):
        if missing:
            subjects = "1 subject" if len(missing) == 1 else f"{len(missing)} subjects"
            log.warning("%s has no mask of %s: %s", folder, subjects, ", ".join(missing))
    return {subject: (truths[subject], masks[subject]) for subject in shared}, lacking


def mean_with_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean and limits of its 95 % percentile-bootstrap interval (Efron 1979).

    nan values are omitted. No value: three nans. One value: the limits are nan.
    """
    known = np.array([v for v in values if not math.isnan(v)])
    if not len(known):
        return math.nan, math.nan, math.nan
    if len(known) == 1:
        return float(known[0]), math.nan, math.nan
    draws = np.random.default_rng(seed).integers(len(known), size=(RESAMPLES, len(known)))
    low, high = np.percentile(known[draws].mean(axis=1), [2.5, 97.5])
    return float(known.mean()), float(low), float(high)


def summarise(rows: Mapping[str, Row]) -> dict[str, Row]:
    """The rows `mean`, `ci95_low` and `ci95_high` of a table: mean and 95 % interval."""
    by_column = {c: mean_with_interval([row[c] for row in rows.values()]) for c in COLUMNS}
    return {
        name: {column: triple[k] for column, triple in by_column.items()}
        for k, name in enumerate(("mean", "ci95_low", "ci95_high"))
    }


def write_table(path: Path, rows: Mapping[str, Row]) -> None:
    """Write a tab-separated table, one row per subject, then mean and interval; nan is n/a."""
    with (
        staged(path.parent) as scratch,
        (scratch / path.name).open(
            "w", newline="", encoding="utf-8", errors="backslashreplace"
        ) as file,
    ):
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["subject", *COLUMNS])
        for name, row in {**rows, **summarise(rows)}.items():
            table.writerow([name, *(_cell(row[column]) for column in COLUMNS)])


def json_ready(row: Row) -> dict[str, float | None]:
    """The row with None for nan, which JSON does not have."""
    return {key: None if math.isnan(value) else value for key, value in row.items()}


def from_json(row: Mapping[str, float | None]) -> Row:
    """The inverse of `json_ready`."""
    return {key: math.nan if value is None else value for key, value in row.items()}


def _cell(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.6g}"


def _find_masks(folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    masks: dict[str, Path] = {}
    others: set[Path] = set()  # folders of images with other names
    for path in find_images(folder):
        stem = image_stem(path)
        if path.parent == folder and stem not in names:
            subject = stem
        elif stem in names:
            subject = path.parent.relative_to(folder).as_posix()
        else:
            others.add(path.parent)
            continue
        if subject in masks:
            raise LeukoError(f"{masks[subject]} and {path} are both masks of {subject}; keep one")
        masks[subject] = path
    for other in sorted(others):
        places = (other.relative_to(folder), *other.relative_to(folder).parents)
        if not any(place.as_posix() in masks for place in places):
            log.warning("%s holds no mask named %s; it is skipped", other, " or ".join(names))
    return masks


def _some(names: Sequence[str] | Mapping[str, Path] | set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (", ..." if len(names) > 3 else "") if shown else "no mask"
