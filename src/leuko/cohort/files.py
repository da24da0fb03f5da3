"""The files of one result: of the automatic mask, and of the mask that a reader corrected.

A corrected mask is saved beside the automatic one, which never changes. Its numbers take the place
of the automatic ones as soon as they have been measured.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from leuko.cohort import derivatives
from leuko.errors import LeukoError
from leuko.io.files import read_json, sha256, sidecar
from leuko.io.outputs import MASK_FILE, RECORD_FILE
from leuko.io.record import RunRecord

EDITED_FILE, EDITED_FOLDER = "wmh_edited.nii.gz", "edited"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """The files of one result: of a folder, or BIDS derivatives, whose names have a prefix."""

    folder: Path
    prefix: str = ""

    @classmethod
    def of_record(cls, record: Path) -> "Files":
        """The files beside a record of BIDS derivatives."""
        return cls(record.parent, record.name.removesuffix(derivatives.RECORD))

    def __getitem__(self, name: str) -> Path:
        """A file of the corrected mask if that has been measured, else of the automatic one.

        Of files that do not depend on the mask there may be only those of the automatic one.
        """
        edited = self.edited(name)
        is_there = name in derivatives.OF_MASK or edited.is_file()
        return edited if self.is_corrected and is_there else self.automatic(name)

    def __str__(self) -> str:
        return str(self.automatic(RECORD_FILE) if self.prefix else self.folder)

    def automatic(self, name: str) -> Path:
        """A file of the automatic mask."""
        return derivatives.located(self.folder, self.prefix, name)

    def edited(self, name: str) -> Path:
        """A file of the corrected mask."""
        if self.prefix:
            return derivatives.located(self.folder, self.prefix, name, is_edited=True)
        return self.folder / (EDITED_FILE if name == MASK_FILE else Path(EDITED_FOLDER, name))

    @property
    def history(self) -> Path:
        """The file with the edits of the corrected mask."""
        return sidecar(self.edited(MASK_FILE))

    @property
    def edits(self) -> list[dict[str, object]]:
        """All edits in that file, the latest last."""
        return list(read_json(self.history, what="list of edits")["edits"])

    @property
    def is_edited(self) -> bool:
        """Whether there is a mask that corrects the present automatic one."""
        if not self.edited(MASK_FILE).is_file():
            return False
        return self.edits[0]["based_on_sha256"] == sha256(self.automatic(MASK_FILE))

    @property
    def is_measured(self) -> bool:
        """Whether the numbers of the corrected mask are there, by the present settings."""
        record = self.edited(RECORD_FILE)
        if not (self.is_edited and record.is_file()):
            return False
        measured, automatic = RunRecord.read(record), RunRecord.read(self.automatic(RECORD_FILE))
        if _method(measured) != _method(automatic):
            return False
        given = measured.inputs.mask
        return given is not None and given.sha256 == sha256(self.edited(MASK_FILE))

    @cached_property
    def is_corrected(self) -> bool:
        """Whether the corrected mask replaces the automatic one; a warning says why it does not."""
        mask = self.edited(MASK_FILE)
        if not mask.is_file():
            return False
        try:
            if self.is_measured:
                return True
            why = (
                "its numbers are missing or old; open it in leuko view, which measures it"
                if self.is_edited
                else "it corrects an earlier automatic mask; correct the present one in leuko view"
            )
        except (LeukoError, LookupError) as error:
            why = f"its files cannot be read ({error})"
        log.warning("the corrected mask %s is not used: %s", mask, why)
        return False


def _method(record: RunRecord) -> tuple[object, ...]:
    """What the numbers of a mask depend on, beside the mask."""
    settings, scans = record.settings, record.inputs
    return (
        scans.flair.sha256,
        scans.t1 and scans.t1.sha256,
        record.model.weights_sha256,
        settings.rule,
        settings.alignment,
        settings.bias_correction,
        settings.fill,
        settings.save_mni,
    )
