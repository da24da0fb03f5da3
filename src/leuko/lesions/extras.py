"""Outputs that are made only if the settings ask for them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.outputs import FILLED_FILE, Tell, side_output
from leuko.io.provenance import Finding
from leuko.io.tissue import Tissue
from leuko.lesions.delineation import Delineation
from leuko.lesions.filling import fill_from_flair
from leuko.model.card import ModelCard
from leuko.preprocessing.registration import Alignment
from leuko.volume import Volume


@dataclass(frozen=True, eq=False)
class Extras:
    """Images beside the mask; None if they were not asked for or cannot be made."""

    filled: Volume | None = None  # the T1 on its own grid, lesions filled

    def write(self, folder: Path, tell: Tell) -> None:
        """Write the files; `tell` gets a finding for one that cannot be written."""
        for name, image in {FILLED_FILE: self.filled}.items():
            if image is not None:
                with side_output(folder, name, tell):
                    nifti.write(folder / name, image)


def attempted(make: Callable[[], Volume], code: str, tell: Tell) -> Volume | None:
    """What `make` makes; None, and a finding with that code, if it raises a LeukoError."""
    try:
        return make()
    except LeukoError as error:
        tell(Finding("warning", code, str(error)))
        return None


def filled_t1(t1: Volume, alignment: Alignment, drawn: Delineation, card: ModelCard) -> Volume:
    """The T1 with the lesions of a delineation filled. Raises LeukoError as `filling.fill`."""
    white = (drawn.anatomy.data == card.number(Tissue.WHITE)) & ~drawn.liberal
    if drawn.rims is not None:
        white &= ~drawn.rims
    mask, normal = (drawn.anatomy.with_data(voxels) for voxels in (drawn.mask, white))
    return fill_from_flair(t1, mask, normal, alignment.matrix)
