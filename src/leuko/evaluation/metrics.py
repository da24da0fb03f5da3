"""The measures of the WMH Segmentation Challenge, in plain numpy and scipy.

The definition is the challenge's own `evaluation.py` (Kuijf et al., IEEE TMI 2019,
doi 10.1109/TMI.2019.2905770); results are equal, corner cases included, but nan where that script
crashes. Masks are boolean arrays (X, Y, Z) on one grid.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import scipy.spatial

from leuko.lesions.components import find_lesions
from leuko.volume import Array

OTHER_PATHOLOGY = 2  # the challenge's label for lesions other than WMH


@dataclass(frozen=True)
class Measure:
    """A measure for display: key, name, unit, and whether higher or lower is better."""

    key: str
    name: str
    unit: str
    better: str


MEASURES = (
    Measure("dsc", "Dice (DSC)", "", "higher"),
    Measure("h95_mm", "Hausdorff 95 (H95)", "mm", "lower"),
    Measure("avd_percent", "volume difference (AVD)", "%", "lower"),
    Measure("log_avd", "log volume difference", "", "lower"),
    Measure("lesion_recall", "lesion recall", "", "higher"),
    Measure("lesion_f1", "lesion F1", "", "higher"),
)


def without_other_pathology(*, prediction: Array, reference: Array) -> tuple[Array, Array]:
    """Prediction and reference masks, from a predicted mask and a reference of labels 0, 1, 2.

    Voxels of other pathology are removed from the prediction before its lesions are found, which
    can split a predicted lesion. The reference may have any number type: its values are rounded.
    The challenge's script selects values from 0.5 to 1.5; in an integer image these limits become 0
    and 1, and background would count as lesion.
    """
    label = np.rint(reference)
    return prediction & (label != OTHER_PATHOLOGY), label == 1


def measure(
    *, prediction: Array, reference: Array, affine: Array, through_plane_axis: int
) -> dict[str, float]:
    """All measures of a predicted against a reference mask, by the keys of `MEASURES`."""
    recall, f1 = lesion_detection(prediction=prediction, reference=reference)
    return {
        "dsc": dice(prediction=prediction, reference=reference),
        "h95_mm": hausdorff95(
            prediction=prediction,
            reference=reference,
            affine=affine,
            through_plane_axis=through_plane_axis,
        ),
        "avd_percent": volume_difference(prediction=prediction, reference=reference),
        "log_avd": log_volume_difference(prediction=prediction, reference=reference),
        "lesion_recall": recall,
        "lesion_f1": f1,
    }


def dice(*, prediction: Array, reference: Array) -> float:
    """Overlap of two masks, 2|P & R| / (|P| + |R|), in [0, 1]. Two empty masks: nan."""
    both = int(prediction.sum()) + int(reference.sum())
    return 2 * int((prediction & reference).sum()) / both if both else math.nan


def hausdorff95(
    *, prediction: Array, reference: Array, affine: Array, through_plane_axis: int
) -> float:
    """95 % Hausdorff distance, mm: the larger 95th percentile of the two surface distances.

    The surface is the mask minus its erosion by a 3x3 box within each slice; outside the image
    counts as mask. A mask without a surface (empty or filling the image): nan.
    """
    box = np.ones((3, 3, 3), dtype=bool)
    outside = [i for i in range(3) if i != 1]
    box[tuple(outside if axis == through_plane_axis else slice(None) for axis in range(3))] = False

    def surface_mm(mask: Array) -> Array:
        eroded = scipy.ndimage.binary_erosion(mask, box, border_value=1)
        points: Array = np.argwhere(mask & ~eroded) @ affine[:3, :3].T
        return points

    predicted, expected = surface_mm(prediction), surface_mm(reference)
    if not (len(predicted) and len(expected)):
        return math.nan
    to_expected = scipy.spatial.KDTree(expected).query(predicted)[0]
    to_predicted = scipy.spatial.KDTree(predicted).query(expected)[0]
    return max(float(np.percentile(to_expected, 95)), float(np.percentile(to_predicted, 95)))


def volume_difference(*, prediction: Array, reference: Array) -> float:
    """Absolute volume difference (AVD), |P - R| / R in %. Empty reference: nan."""
    predicted, expected = int(prediction.sum()), int(reference.sum())
    return 100 * abs(predicted - expected) / expected if expected else math.nan


def log_volume_difference(*, prediction: Array, reference: Array) -> float:
    """Absolute log-transformed volume difference, |ln(P / R)|. An empty mask: nan.

    One of the measures in Kuijf et al. 2019; unlike the AVD it is equal for half and double the
    volume.
    """
    predicted, expected = int(prediction.sum()), int(reference.sum())
    return abs(math.log(predicted / expected)) if predicted and expected else math.nan


def lesion_detection(*, prediction: Array, reference: Array) -> tuple[float, float]:
    """Lesion recall and lesion F1, each in [0, 1].

    Recall: fraction of reference lesions with a predicted voxel (no reference lesion: 1).
    Precision: fraction of predicted lesions with a reference voxel (no predicted lesion: 1).
    F1: harmonic mean of the two; 0 if both are 0.
    """
    recall = _touched_part(prediction, lesions_of=reference)
    precision = _touched_part(reference, lesions_of=prediction)
    both = precision + recall
    return recall, 2 * precision * recall / both if both else 0.0


def _touched_part(mask: Array, *, lesions_of: Array) -> float:
    labels, count = find_lesions(lesions_of)
    return len(np.unique(labels[mask & lesions_of])) / count if count else 1.0
