"""Measures of a mask: each lesion, and volumes by region.

Array axes run R, A, S. See `location` for the rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage

from leuko.io.lookup_tables import Label, coloured
from leuko.io.record import Bullseye, RegionsRecord
from leuko.io.tissue import Tissue
from leuko.lesions import mni
from leuko.lesions.components import TOUCHING, find_lesions
from leuko.lesions.location import REGIONS, RULES, SECTORS, SHELLS, Rule, Where, locate
from leuko.lesions.mni import LOBES
from leuko.volume import Array, Volume, world

RIM = 2  # voxels around lesions that do not count as normal white matter
UNKNOWN = float("nan")


@dataclass(frozen=True, eq=False)
class MaskedScan:
    """A segmented scan. Masks are bool, mask <= liberal."""

    flair: Volume
    t1: Array | None  # on the grid of the FLAIR, any scale
    tissue: Volume | None  # values of `Tissue`
    probability: Array  # of WMH, 0 to 1
    mask: Array
    liberal: Array  # at a lower threshold
    intracranial: Array | None = None  # brain and CSF; None: all tissues


@dataclass(frozen=True)
class Lesion:
    """One lesion, 26-connected. Unknown values are nan, or "n/a"."""

    id: int  # from 1, the largest first
    voxels: int
    volume_mm3: float
    volume_ml: float
    x_mm: float  # of the centroid, in world coordinates: right, anterior, superior
    y_mm: float
    z_mm: float
    flair_contrast: float  # mean of (lesion - white) / white; white: median of white matter
    t1_contrast: float
    mean_probability: float
    region: str  # one of `REGIONS` by the rule; or, but for mcdonald2017, confluent
    side: str  # left or right, where most of it lies
    lobe: str
    ventricle_mm: float  # from its nearest voxel to the lateral ventricles
    cortex_mm: float


@dataclass(frozen=True)
class Regions:
    """Lesion volumes in mL by place; those of the regions add up to all."""

    rule: Rule
    periventricular_ml: float
    deep_ml: float
    infratentorial_ml: float
    juxtacortical_ml: float | None  # None by rules without it, and if the cortex is unknown
    confluent_ml: float  # lesions from the ventricles to beyond 10 mm; also in the regions above
    left_ml: float | None
    right_ml: float | None
    bullseye_ml: list[list[float]] | None  # by SHELLS and SECTORS

    def as_text(self) -> str:
        """The volumes of the regions, in words."""
        volumes = {
            "periventricular": self.periventricular_ml,
            "deep": self.deep_ml,
            "infratentorial": self.infratentorial_ml,
            "juxtacortical": self.juxtacortical_ml,
        }
        known = [f"{name} {ml:.2f}" for name, ml in volumes.items() if ml is not None]
        return f"{', '.join(known)} mL"

    def as_record(self) -> RegionsRecord:
        """For the record of a run: rounded, with the rule in words."""
        bullseye = None
        if self.bullseye_ml is not None:
            ml = tuple(tuple(round(ml, 4) for ml in row) for row in self.bullseye_ml)
            bullseye = Bullseye(shells=SHELLS, sectors=SECTORS, ml=ml)
        return RegionsRecord(
            rule=self.rule,
            rule_text=RULES[self.rule],
            periventricular_ml=round(self.periventricular_ml, 4),
            deep_ml=round(self.deep_ml, 4),
            infratentorial_ml=round(self.infratentorial_ml, 4),
            juxtacortical_ml=None
            if self.juxtacortical_ml is None
            else round(self.juxtacortical_ml, 4),
            confluent_ml=round(self.confluent_ml, 4),
            left_ml=None if self.left_ml is None else round(self.left_ml, 4),
            right_ml=None if self.right_ml is None else round(self.right_ml, 4),
            bullseye=bullseye,
        )


@dataclass(frozen=True, eq=False)
class Analysis:
    """Measures of one scan. Values that need the ventricles are None if these are unknown."""

    lesions: list[Lesion]
    numbers: Array  # (X, Y, Z) lesion ids, as `numbered` returns them
    region_map: Array | None  # (X, Y, Z) uint8, indices into `location.REGIONS`
    regions: Regions | None
    intracranial_ml: float | None  # brain and CSF


def analyse(case: MaskedScan, *, place: mni.Place | None, rule: Rule, threads: int) -> Analysis:
    """Measure a segmented scan; `place` is its brain's place in the template, if known."""
    numbers = numbered(case.mask)
    lesion = numbers[case.mask].astype(np.intp)
    intracranial_ml, where = None, None
    if case.tissue is not None:
        inside = case.tissue.data if case.intracranial is None else case.intracranial
        intracranial_ml = case.tissue.ml(inside)
        where = locate(case.mask, case.tissue, place, threads=threads)
    if where is None:
        lesions = _lesions(case, lesion, None, None)
        return Analysis(lesions, numbers, None, None, intracranial_ml)
    region = where.regions(lesion, rule)
    region_map = np.zeros(case.mask.shape, dtype=np.uint8)
    region_map[case.mask] = region
    return Analysis(
        lesions=_lesions(case, lesion, where, region, names_confluent=rule != "mcdonald2017"),
        numbers=numbers,
        region_map=region_map,
        regions=_regions(case.flair.voxel_mm3 / 1000, lesion, where, rule),
        intracranial_ml=intracranial_ml,
    )


def lesion_labels(lesions: Sequence[Lesion]) -> list[Label]:
    """The labels of a map of lesion ids: number and place of each lesion."""
    named = []
    for lesion in lesions:
        place = " ".join(part for part in (lesion.side, lesion.lobe) if part != "n/a")
        parts = [f"lesion {lesion.id}", lesion.region, place]
        named.append((lesion.id, ", ".join(part for part in parts if part not in ("", "n/a"))))
    return coloured(named)


def numbered(mask: Array) -> Array:
    """Lesion ids, from 1 for the largest; uint16, or uint32 from 65536 lesions on."""
    found, count = find_lesions(mask)
    sizes = np.bincount(found.ravel(), minlength=count + 1)[1:]
    rank = np.zeros(count + 1, dtype=np.uint16 if count < 1 << 16 else np.uint32)
    rank[1 + np.argsort(-sizes, kind="stable")] = np.arange(1, count + 1)
    numbers: Array = rank[found]
    return numbers


def _lesions(
    case: MaskedScan,
    lesion: Array,
    where: Where | None,
    region: Array | None,
    *,
    names_confluent: bool = True,
) -> list[Lesion]:
    """One row per lesion; `lesion` (N,) is the id of each mask voxel, `region` (N,) its region."""
    if not len(lesion):
        return []
    count = int(lesion.max())
    voxels = np.bincount(lesion)

    def mean(values: Array) -> Array:
        return np.bincount(lesion, weights=values) / np.maximum(voxels, 1)

    def nearest(distance_mm: Array) -> Array:
        least = np.full(count + 1, UNKNOWN)
        np.fmin.at(least, lesion, distance_mm)
        return least

    centroids = [mean(way) for way in world(case.flair, np.argwhere(case.mask)).T]
    unknown, nowhere = np.full(count + 1, UNKNOWN), np.full(count + 1, "n/a")
    regions, sides, lobes, ventricle_mm, cortex_mm = nowhere, nowhere, nowhere, unknown, unknown
    if where is not None and region is not None:
        ventricle_mm, cortex_mm = nearest(where.ventricle_mm), nearest(where.cortex_mm)
        names = np.array(REGIONS)[_commonest(lesion, region, len(REGIONS))]
        regions = np.where(where.confluent(lesion) & names_confluent, "confluent", names)
        if where.lobe is not None and where.is_left is not None:
            lobes = np.array(LOBES)[_commonest(lesion, where.lobe, len(LOBES))]
            sides = np.where(mean(where.is_left) >= 0.5, "left", "right")
    white = _normal_white(case)
    flair_contrast = mean(_contrast(case.flair.data, case.mask, white))
    t1_contrast = unknown if case.t1 is None else mean(_contrast(case.t1, case.mask, white))
    probability = mean(case.probability[case.mask])
    volume_mm3 = voxels * case.flair.voxel_mm3
    return [
        Lesion(
            id=k,
            voxels=int(voxels[k]),
            volume_mm3=float(volume_mm3[k]),
            volume_ml=float(volume_mm3[k] / 1000),
            x_mm=float(centroids[0][k]),
            y_mm=float(centroids[1][k]),
            z_mm=float(centroids[2][k]),
            flair_contrast=float(flair_contrast[k]),
            t1_contrast=float(t1_contrast[k]),
            mean_probability=float(probability[k]),
            region=str(regions[k]),
            side=str(sides[k]),
            lobe=str(lobes[k]),
            ventricle_mm=float(ventricle_mm[k]),
            cortex_mm=float(cortex_mm[k]),
        )
        for k in range(1, count + 1)
    ]


def _commonest(lesion: Array, kind: Array, kinds: int) -> Array:
    """The most frequent kind among the voxels of each lesion, by id from 0."""
    counts = np.bincount(lesion * kinds + kind, minlength=(lesion.max() + 1) * kinds)
    commonest: Array = counts.reshape(-1, kinds).argmax(axis=1)
    return commonest


def _normal_white(case: MaskedScan) -> Array | None:
    """White matter at least `RIM` voxels from lesions, bool; None without tissues."""
    if case.tissue is None:
        return None
    rim = scipy.ndimage.binary_dilation(case.liberal, TOUCHING, iterations=RIM)
    white: Array = (case.tissue.data == Tissue.WHITE) & ~rim
    return white


def _contrast(image: Array, mask: Array, white: Array | None) -> Array:
    """(value - white) / white of each voxel of the mask (N,), white the median of white matter."""
    values = image[mask].astype(float)
    level = 0.0 if white is None or not white.any() else float(np.median(image[white]))
    return values / level - 1 if level > 0 else np.full(len(values), UNKNOWN)


def _regions(voxel_ml: float, lesion: Array, where: Where, rule: Rule) -> Regions:
    counts = np.bincount(where.regions(lesion, rule), minlength=len(REGIONS))
    left = None if where.is_left is None else int(np.count_nonzero(where.is_left))
    bullseye = where.bullseye(voxel_ml * 1000)
    knows_cortex = rule == "mcdonald2017" and not np.isnan(where.cortex_mm).any()
    return Regions(
        rule=rule,
        periventricular_ml=float(counts[1] * voxel_ml),
        deep_ml=float(counts[2] * voxel_ml),
        infratentorial_ml=float(counts[3] * voxel_ml),
        juxtacortical_ml=float(counts[4] * voxel_ml) if knows_cortex else None,
        confluent_ml=float(np.count_nonzero(where.confluent(lesion)[lesion]) * voxel_ml),
        left_ml=None if left is None else left * voxel_ml,
        right_ml=None if left is None else (len(lesion) - left) * voxel_ml,
        bullseye_ml=None if bullseye is None else bullseye.tolist(),
    )
