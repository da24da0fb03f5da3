"""Truth of a synthetic scan: soft edges of lesions, caps and rims, and the labels of slices."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from leuko.io.tissue import Tissue
from leuko.synthesis.anatomy import STRUCTURES
from leuko.synthesis.random_fields import Noise, blurred
from leuko.synthesis.ranges import Range, Unevenness
from leuko.synthesis.sampling import Choice, Samples, slabs, value_of

# Lesions and rims are labelled where their brightness is at least this part of its maximum, after
# soft edges and slice thickness. Readers draw edges at 0.39 to 0.46 (experiments/edges.py).
LABELLED_PART = 0.4


@dataclass(frozen=True)
class RimSettings:
    """Normal caps and rims of the ventricles, chosen to be mostly 1 to 3 mm wide."""

    missing_probability: float = 0.25  # they are not seen in every scan
    body_mm: Range = Range(0.4, 2.6)  # width along the body; drawn on a logarithmic scale
    horn_mm: Range = Range(0, 3)  # added at the horns: caps
    front: float = 0.34  # the frontal horns, as part of the brain's length from its front
    behind: float = 0.62  # the occipital horns begin
    horn_softness: float = 0.03  # of the step between body and horn, as part of the brain's length
    width_unevenness: Unevenness = Unevenness(0.45, 0.2)
    widest_mm: float = 4.0
    edge_mm: Range = Range(0.5, 1.2)
    fainter_probability: float = 0.5  # that rims of the third and fourth ventricle are fainter
    fainter_part: Range = Range(0, 1)  # of their brightness
    excess: Range = Range(0.05, 0.75)  # over white matter
    excess_unevenness: Unevenness = Unevenness(0.4, 0.2)


@dataclass(frozen=True)
class LabelSettings:
    """Soft edges of lesions, and the limits above which lesions and rims are labelled."""

    edge_px: Range = Range(0.3, 1.1)  # standard deviation of the blur of a lesion's edge
    edge_gain: Range = Range(1.0, 1.4)  # restores the full brightness of small lesions
    labelled_part: float = LABELLED_PART
    least_rim: float = 0.12  # excess of a labelled rim over white matter; fainter ones are not seen
    rims: RimSettings = RimSettings()


class Labelled(NamedTuple):
    """Lesions and rims with soft edges, before slices have their thickness, all
    (N * parts, H, W)."""

    lesion: Tensor  # part of its full brightness, 0 to 1
    rim: Tensor  # likewise
    rim_excess: Tensor  # what rims add to a FLAIR whose white matter is 1


def label(
    samples: Samples, rng: np.random.Generator, noise: Noise, settings: LabelSettings
) -> Labelled:
    """The lesions with soft edges, and random caps and rims."""
    lesion = blurred(samples.lesion, settings.edge_px.draw(rng)) * settings.edge_gain.draw(rng)
    return Labelled(lesion.clamp(max=1), *_rims(samples, rng, noise, settings.rims))


def _rims(
    samples: Samples, rng: np.random.Generator, noise: Noise, settings: RimSettings
) -> tuple[Tensor, Tensor]:
    """The normal caps and rims of the ventricles, `rim` and `rim_excess` of `Labelled`: smooth, and
    wider at the horns of the lateral ventricles. All 0 in scans that do not show them.
    """
    if rng.random() < settings.missing_probability:
        return torch.zeros_like(samples.lesion), torch.zeros_like(samples.lesion)
    solid = value_of([s.tissue >= Tissue.GREY for s in STRUCTURES], samples.structure)
    coarse, fine = noise()
    front = torch.sigmoid((settings.front - samples.back) / settings.horn_softness)
    behind = torch.sigmoid((samples.back - settings.behind) / settings.horn_softness)
    width_mm = settings.body_mm.draw_log(rng) + settings.horn_mm.draw(rng) * (front + behind)
    width_mm = width_mm * settings.width_unevenness.factor(coarse, fine)
    width_mm = width_mm.clamp(max=settings.widest_mm)
    edge_mm = settings.edge_mm.draw(rng)
    part = solid * ((width_mm - samples.cavity_mm) / edge_mm + 0.5).clamp(0, 1)
    if rng.random() < settings.fainter_probability:
        lateral = samples.ventricle_mm <= samples.cavity_mm + 0.1
        part = torch.where(lateral, part, settings.fainter_part.draw(rng) * part)
    uneven = settings.excess_unevenness.factor(coarse, fine).clamp(min=0)
    return part, part * (settings.excess.draw(rng) * uneven)


def truth(
    structure: Tensor, labelled: Labelled, choice: Choice, settings: LabelSettings
) -> tuple[Tensor, Tensor]:
    """`Tissue` values (N, H, W), the commonest through each slice's thickness, and the part of
    each pixel that is brain.

    Where a lesion extends into a rim, the label is lesion.
    """
    tissue = value_of([s.tissue for s in STRUCTURES], structure)
    parts = torch.stack([slabs((tissue == k).float(), choice) for k in range(Tissue.WMH)])
    commonest = parts.argmax(dim=0)
    lesion = slabs(labelled.lesion, choice) >= settings.labelled_part
    rim = (slabs(labelled.rim, choice) >= settings.labelled_part) & (commonest >= Tissue.GREY)
    rim = rim & (slabs(labelled.rim_excess, choice) >= settings.least_rim)
    tissue = torch.where(rim, Tissue.RIM, commonest)
    return torch.where(lesion, Tissue.WMH, tissue), parts[Tissue.VENTRICLE :].sum(dim=0)
