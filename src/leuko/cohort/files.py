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
from leuko.io.files import sha256
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
        """A file of the corrected mask if that has been measured, else of the automatic one."""
        edited = self.edited(name)
        return edited if self.is_corrected and edited.is_file() else self.automatic(name)

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

    @cached_property
    def is_corrected(self) -> bool:
        """Whether a reader has corrected the mask and its numbers are there.

        A warning names a corrected mask that has not been measured.
        """
        mask = self.edited(MASK_FILE)
        if not mask.is_file():
            return False
        try:
            measured = RunRecord.read(self.edited(RECORD_FILE)).inputs.mask
            if measured is not None and measured.sha256 == sha256(mask):
                return True
        except LeukoError:
            pass
        log.warning(
            "%s is not used: it has not been measured; open it in leuko view and save it again",
            mask,
        )
        return False
