"""Outputs that are made only if the settings ask for them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.outputs import (
    FILLED_FILE,
    MNI_FLAIR_FILE,
    MNI_MASK_FILE,
    MNI_PROBABILITY_FILE,
    Tell,
    side_output,
)
from leuko.io.provenance import Finding
from leuko.io.record import TemplateRecord
from leuko.io.tissue import Tissue
from leuko.lesions.brain import brain_mask
from leuko.lesions.delineation import Delineation
from leuko.lesions.filling import fill_from_flair
from leuko.lesions.mni import SPACE, Place, Residual, bring
from leuko.model.card import ModelCard
from leuko.preprocessing.registration import Alignment
from leuko.volume import Volume, labels_onto, rounded_down

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

    filled: Volume | None = None  # the T1 on its own grid, lesions filled
    template: Template | None = None  # the brain in MNI152 space
    in_mni: Mapping[str, Volume] = field(default_factory=dict)  # by the names of their files

    def as_record(self) -> TemplateRecord | None:
        """The registration to the template, for the record of a run."""
        return None if self.template is None else self.template.as_record()

    def as_lines(self) -> dict[str, str]:
        """What a person should read of them, by title."""
        if self.template is None:
            return {}
        off = self.template.residual
        return {
            "MNI": f"registered to {SPACE} (affine); surfaces are {off.brain_mm:.1f} mm apart at "
            f"the brain, {off.ventricles_mm:.1f} mm at the ventricles"
        }

    def write(self, folder: Path, tell: Tell) -> None:
        """Write the files; `tell` gets a finding for one that cannot be written."""
        images = dict(self.in_mni)
        if self.filled is not None:
            images[FILLED_FILE] = self.filled
        for name, image in images.items():
            with side_output(folder, name, tell):
                nifti.write(folder / name, image)


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
            "the brain could not be registered to MNI152 space, which needs a model that knows "
            "tissues and most of the brain in the image: no image or volume in that space"
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


def filled_t1(t1: Volume, alignment: Alignment, drawn: Delineation, card: ModelCard) -> Volume:
    """The T1 with the lesions of a delineation filled. Raises LeukoError as `filling.fill`."""
    white = (drawn.anatomy.data == card.number(Tissue.WHITE)) & ~drawn.liberal
    if drawn.rims is not None:
        white &= ~drawn.rims
    mask, normal = (drawn.anatomy.with_data(voxels) for voxels in (drawn.mask, white))
    return fill_from_flair(t1, mask, normal, alignment.matrix)
