"""Outputs that are made only if the settings ask for them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.files import write_packed
from leuko.io.inputs import Scan
from leuko.io.outputs import (
    FILLED_FILE,
    MNI_FLAIR_FILE,
    MNI_MASK_FILE,
    MNI_PROBABILITY_FILE,
    Tell,
    side_output,
)
from leuko.io.provenance import Finding, Stopwatch
from leuko.io.record import TemplateRecord
from leuko.io.tissue import Tissue
from leuko.lesions.atlas import OUTSIDE, Atlas, AtlasVolumes, measure
from leuko.lesions.brain import brain_mask
from leuko.lesions.delineation import Delineation
from leuko.lesions.filling import filling_from_flair
from leuko.lesions.mni import SPACE, Place, Residual, bring
from leuko.model.card import ModelCard
from leuko.preprocessing.registration import Alignment
from leuko.volume import Array, Volume, labels_onto, rounded_down

T = TypeVar("T")


PROBABILITY_STEP = 1e-3  # noise in further digits would make the file many times larger


@dataclass(frozen=True, eq=False)
class Template:
    """A brain's place in MNI152 space and how exact it is."""

    place: Place
    residual: Residual

    def as_record(self) -> TemplateRecord:
        """For the record of a run, rounded."""
        ventricles_mm = self.residual.ventricles_mm
        return TemplateRecord(
            space=SPACE,
            to_mni=tuple(map(tuple, self.place.to_mni.round(6).tolist())),
            brain_mm=round(self.residual.brain_mm, 3),
            ventricles_mm=None if math.isnan(ventricles_mm) else round(ventricles_mm, 3),
        )


@dataclass(frozen=True, eq=False)
class Extras:
    """Images beside the mask; None if they were not asked for or cannot be made."""

    filled: bytes | None = None  # the T1 with lesions filled, the content of a NIfTI file
    template: Template | None = None  # the brain in MNI152 space
    in_mni: Mapping[str, Volume] = field(default_factory=dict)  # by the names of their files
    atlas: AtlasVolumes | None = None

    def as_record(self) -> dict[str, Any]:
        """Their fields in the record of a run."""
        made = {"template": self.template, "atlas": self.atlas}
        return {name: part.as_record() for name, part in made.items() if part is not None}

    def as_lines(self) -> dict[str, str]:
        """What a person should read of them, by title."""
        lines = {}
        if self.template is not None:
            off = self.template.residual
            lines["MNI"] = (
                f"registered to {SPACE} (affine); mean distance of the surfaces: brain "
                f"{off.brain_mm:.1f} mm, ventricles {off.ventricles_mm:.1f} mm"
            )
        if self.atlas is not None:
            outside, *regions = self.atlas.regions
            hit = sum(region.wmh_ml > 0 for region in regions)
            lines["atlas"] = (
                f"WMH in {hit} of {len(regions)} regions, {outside.wmh_ml:.2f} mL {OUTSIDE}"
            )
        return lines

    def write(self, folder: Path, grid: Volume, tell: Tell) -> None:
        """Write the files; `grid` is that of the FLAIR as stored, and `tell` gets a finding for a
        file that cannot be written."""
        if self.atlas is not None:
            self.atlas.write(folder, grid, tell)
        for name, image in self.in_mni.items():
            with side_output(folder, name, tell):
                nifti.write(folder / name, image)
        if self.filled is not None:
            with side_output(folder, FILLED_FILE, tell):
                write_packed(folder / FILLED_FILE, self.filled)


@dataclass(frozen=True, eq=False)
class Asked:
    """The outputs that the settings ask for."""

    fill: bool
    save_mni: bool
    atlas: Atlas | None


@dataclass(frozen=True, eq=False)
class Brain:
    """A segmented brain; arrays are on the grid of its FLAIR, axes in RAS order."""

    flair: Volume
    tissue: Volume | None  # values of `Tissue`
    place: Place | None
    drawn: Delineation
    numbers: Array  # ids of lesions


def make_extras(
    asked: Asked,
    brain: Brain,
    card: ModelCard,
    *,
    t1: Scan | None,
    alignment: Alignment | None,
    tell: Tell,
    watch: Stopwatch,
) -> Extras:
    """What is asked for; `tell` gets a finding for what cannot be made.

    `alignment` is the registration of the T1 to the FLAIR.
    """
    filled, template, in_mni, volumes = None, None, {}, None
    if asked.fill and t1 is not None and alignment is not None:
        with watch.stage("fill"):
            filled = attempted(lambda: filled_t1(t1, alignment, brain.drawn, card), "fill", tell)
    if asked.save_mni or asked.atlas is not None:
        with watch.stage("to MNI"):
            template = attempted(lambda: placed(brain.tissue, brain.place), "template", tell)
            if template is not None and asked.save_mni:
                in_mni = images_in_mni(brain.flair, brain.drawn, template.place)
            if template is not None and asked.atlas is not None:
                volumes = measure(asked.atlas, brain.numbers, brain.flair, template.place)
    return Extras(filled, template, in_mni, volumes)


def attempted(make: Callable[[], T], code: str, tell: Tell) -> T | None:
    """What `make` makes; None, and a finding with that code, if it raises a LeukoError."""
    try:
        return make()
    except LeukoError as error:
        tell(Finding("warning", code, str(error)))
        return None


def placed(tissue: Volume | None, place: Place | None) -> Template:
    """A brain in the template, by a map of `Tissue` values. Raises LeukoError without a place."""
    if tissue is None or place is None:
        raise LeukoError(
            "the brain could not be registered to MNI152 space, so outputs in that space are "
            "missing; use a model with tissue classes and a scan that shows most of the brain"
        )
    inside = tissue.with_data(tissue.data * brain_mask(tissue))
    return Template(place, Residual.of(inside, place))


def images_in_mni(flair: Volume, drawn: Delineation, place: Place) -> dict[str, Volume]:
    """Mask, probability and FLAIR in MNI152 space, by the names of their files."""
    grid = drawn.anatomy
    mask = bring(grid.with_data(drawn.mask.astype(np.uint8)), place, labels_onto)
    probability = bring(grid.with_data(drawn.probability), place)
    seen = bring(flair, place)
    if flair.data.dtype.kind in "iu":
        seen = seen.with_data(np.rint(seen.data).astype(flair.data.dtype))
    return {
        MNI_MASK_FILE: mask,
        MNI_PROBABILITY_FILE: rounded_down(probability, PROBABILITY_STEP),
        MNI_FLAIR_FILE: seen,
    }


def filled_t1(t1: Scan, alignment: Alignment, drawn: Delineation, card: ModelCard) -> bytes:
    """The T1 as it is stored with the lesions of a delineation filled, the content of a NIfTI file.

    Raises LeukoError as `filling.filling` and `Scan.stored` do.
    """
    white = (drawn.anatomy.data == card.number(Tissue.WHITE)) & ~drawn.liberal
    if drawn.rims is not None:
        white &= ~drawn.rims
    mask, normal = (drawn.anatomy.with_data(voxels) for voxels in (drawn.mask, white))
    on_t1, values = filling_from_flair(t1.volume, mask, normal, alignment.matrix)
    return nifti.replaced(t1.stored(), on_t1, values)
