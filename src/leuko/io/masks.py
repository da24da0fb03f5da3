"""Interprets stored values as labels, a mask or probabilities.

Floating-point numbers are never compared exactly. Arrays are (X, Y, Z) and finite; `name`
identifies the image in messages.
"""

import logging
from collections.abc import Collection
from pathlib import Path

import numpy as np

from leuko.errors import LeukoError
from leuko.volume import Array

log = logging.getLogger(__name__)

# Labels stored as integers with a scale are read as 1.00000006 or 0.9999999998.
WHOLE, WHOLE_RELATIVE = 1e-3, 1e-6
WHITE = 255  # image editors write masks of 0 and 255; no label set has so many labels
FEW_LABELS = 16
# Fraction of neighbouring voxels with the same value, weighted by the value: at least 0.68 in
# coarse tissue maps of up to 8 labels; in scans at most 0.69 with 9 to 16 grey values, and about
# 0 with more.
SAME_NEIGHBOURS, SAME_NEIGHBOURS_OF_9_TO_16 = 0.5, 0.7
# Fraction of voxels above 0: larger in scans; smaller in sums of several raters' lesion masks.
SHOWN_PART = 0.05
# Fraction of voxels in this range: at least 15 % in a scan scaled to 0 to 1, 0.4 % in a probability
# map of WMH. Probability maps that fill the brain have most voxels above the range, scans none.
BETWEEN, BETWEEN_PART, BETWEEN_OF_SHOWN = (0.02, 0.9), 0.05, 0.8
RINGING = 0.25  # how far spline resampling takes a mask below 0 and above 1


def as_labels(data: Array, name: Path, *, values: Collection[int]) -> Array:
    """Labels, uint8: values within 1e-3 of a whole number are rounded to it. A mask of 0 and 255
    (or more) is read as 0 and 1, with a warning.

    Raises LeukoError for values that are not in `values`.
    """
    found = np.unique(data)
    whole = np.rint(found)
    strange = found[~(_are_whole(found) & np.isin(whole, list(values)))]
    highest = float(whole[-1])
    if 0 not in whole:
        log.warning("%s has no voxel of value 0; check that its background is 0", name)
    if not len(strange):
        return np.rint(data).astype(np.uint8)
    if highest >= WHITE and _is_one_value(data):
        log.warning("%s is a mask of 0 and %g; %g is read as 1", name, highest, highest)
        return (data > highest / 2).astype(np.uint8)
    expected = ", ".join(str(v) for v in sorted(values))
    if found[0] < 0:
        advice = "if values below 0 are background, replace them by 0"
    elif _is_one_value(data):
        lesion = min(v for v in values if v)
        advice = f"if {found[-1]:g} means {lesion}, replace it by {lesion}"
    elif _are_whole(found).all():
        advice = "check that this is the label file, or replace the other values"
    else:
        advice = "check that this is the label file, not a probability map"
    raise LeukoError(
        f"{name} holds the label values {_some(strange)}; expected only {expected}: {advice}"
    )


def as_numbers(data: Array, name: Path) -> Array:
    """Labels from 0 to 65535, uint16. Raises LeukoError for other values."""
    numbers = data.astype(np.uint16)
    if not np.array_equal(numbers, data):
        raise LeukoError(
            f"{name} holds values that are not whole numbers from 0 to 65535; expected labels, not "
            "probabilities"
        )
    return numbers


def as_probability(data: Array, name: Path) -> Array:
    """Probabilities, 0 to 1. Raises LeukoError for values outside by more than 1e-3."""
    if data.min() < -WHOLE or data.max() > 1 + WHOLE:
        raise LeukoError(
            f"{name} holds values from {data.min():g} to {data.max():g}; expected probabilities "
            "from 0 to 1: check that it is the probability map"
        )
    return np.clip(data, 0, 1)


def as_mask(data: Array, name: Path, *, labels: Collection[int] | None = None) -> Array:
    """A mask, bool: voxels above 0, for any number type. All zeros is a valid mask.

    `labels` are the values that count as lesion, by default all above 0; if it is empty, an image
    with several labels is refused. These are read with a warning: probabilities, as lesion from
    0.5; several labels, all as lesion; values below 0, as background. Raises LeukoError for grey
    values, for labels without background, and for negative values without positive ones.
    """
    if labels:
        return _of_labels(data, name, labels)
    whole = bool(_are_whole(data).all())
    if whole and data.dtype.kind == "f":
        data = np.rint(data)
    lowest, highest = float(data.min()), float(data.max())
    if lowest == highest == 0:
        return data.astype(bool)
    if highest <= 0 or (whole and 0 < lowest < highest):
        raise LeukoError(
            f"{name} holds values from {lowest:g} to {highest:g}; expected a mask, with 0 outside "
            "and one value above 0 inside"
        )
    if _is_one_value(data):
        return data > highest / 2
    found = np.unique(data[data > 0])
    if not whole and lowest >= -RINGING and highest <= 1 + RINGING and not _fills_a_head(data):
        log.warning("%s holds probabilities, not a mask; 0.5 or more counts as lesion", name)
        return data >= 0.5
    like_scan = _are_grey_values(data, len(found)) if whole else len(found) > FEW_LABELS
    if not whole or like_scan:
        like = ", as a scan does" if like_scan else ""
        raise LeukoError(
            f"{name} holds {len(found)} values above 0, up to {highest:g}{like}; expected a mask, "
            "with 0 outside and one value inside, or probabilities from 0 to 1"
        )
    if lowest < 0:
        log.warning("%s: values below 0 (from %g) are read as background", name, lowest)
    if len(found) > 1:
        _tell_of_labels(found, name, refused=labels is not None)
    return data > 0


def as_prediction(data: Array, name: Path) -> Array:
    """A predicted mask, bool, by the rule of the WMH challenge: integers count from 1 to 1000,
    floating-point numbers from 0.5 to 1000. Warns if the values are not 0 and one positive value
    in that range."""
    lowest = 1 if np.issubdtype(data.dtype, np.integer) else 0.5
    counted: Array = (data >= lowest) & (data <= 1000)
    if data.any() and not (_is_one_value(data) and counted.any()):
        log.warning("%s is not a mask of 0 and 1; %g to 1000 counts as WMH", name, lowest)
    return counted


def _tell_of_labels(found: Array, name: Path, *, refused: bool) -> None:
    """Warn of several labels, or raise LeukoError if they are `refused`."""
    if refused:
        raise LeukoError(
            f"{name} holds {len(found)} labels: {_some(found)}; say which of them are WMH "
            "(--lesion-label)"
        )
    log.warning("%s holds %d labels above 0; all count as lesion", name, len(found))


def _of_labels(data: Array, name: Path, labels: Collection[int]) -> Array:
    """The voxels with one of `labels`, bool. Raises LeukoError for values that are not whole."""
    if not _are_whole(data).all():
        raise LeukoError(f"{name} holds values that are not whole numbers; expected labels")
    whole = np.rint(data)
    chosen: Array = np.isin(whole, list(labels))
    if not chosen.any():
        given = ", ".join(str(label) for label in labels)
        log.warning(
            "%s has no voxel of label %s; it holds %s", name, given, _some(np.unique(whole))
        )
    return chosen


def _some(values: Array) -> str:
    """The first values as text."""
    return ", ".join(f"{v:g}" for v in values[:5]) + (", ..." if len(values) > 5 else "")


def _are_whole(data: Array, *, within: float = WHOLE) -> Array:
    """Which values are whole numbers, within rounding; bool."""
    if data.dtype.kind != "f":
        return np.ones(data.shape, dtype=bool)
    whole: Array = np.isclose(data, np.rint(data), rtol=WHOLE_RELATIVE, atol=within)
    return whole


def _is_one_value(data: Array) -> bool:
    """Whether all voxels are 0 or one positive value, within rounding."""
    highest = float(data.max())
    if highest <= 0 or data.min() < -WHOLE * highest:
        return False
    if data.dtype.kind != "f":
        return bool(((data == 0) | (data == highest)).all())
    return bool(_are_whole(data / highest, within=WHOLE_RELATIVE).all())


def _fills_a_head(data: Array) -> bool:
    """Whether grey values of 0 to 1 are those of a scan, not probabilities."""
    low, high = BETWEEN
    between = (data > low) & (data < high)
    shown = np.count_nonzero(data > low)
    return bool(
        between.mean() > BETWEEN_PART and np.count_nonzero(between) > BETWEEN_OF_SHOWN * shown
    )


def _are_grey_values(data: Array, count: int) -> bool:
    """Whether the `count` whole numbers above 0 are a scan's grey values, not labels."""
    if count == 1 or (count <= FEW_LABELS and np.mean(data > 0) < SHOWN_PART):
        return False
    least = SAME_NEIGHBOURS_OF_9_TO_16 if 8 < count <= FEW_LABELS else SAME_NEIGHBOURS
    return _same_neighbours(data) < least


def _same_neighbours(data: Array) -> float:
    """Fraction of neighbouring positive voxels with equal values, each pair weighted by its lower
    value; 1 if there is no such pair."""
    alike = total = 0.0
    for axis in range(3):
        ahead, behind = np.moveaxis(data, axis, 0)[1:], np.moveaxis(data, axis, 0)[:-1]
        weight = np.minimum(ahead, behind).clip(0).astype(float)
        total += float(weight.sum())
        alike += float(weight.sum(where=ahead == behind))
    return alike / total if total else 1.0
