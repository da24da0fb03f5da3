"""Results to look at, and masks that a reader corrects. Array axes run R, A, S.

The corrected mask is `wmh_edited.nii.gz` beside the automatic one, which never changes;
`wmh_edited.json` tells who saved it and when. Its numbers and its report are in `edited`.
"""

import csv
import io
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import numpy as np

from leuko.errors import LeukoError
from leuko.io import inputs, nifti
from leuko.io.files import (
    read_json,
    replace_text,
    require_folder,
    sha256,
    staged,
    write_json,
)
from leuko.io.outputs import (
    LESIONS_FILE,
    MASK_FILE,
    PROBABILITY_FILE,
    RECORD_FILE,
    REGIONS_FILE,
    RIMS_FILE,
    TISSUE_FILE,
)
from leuko.io.record import Edited, RunRecord
from leuko.lesions.location import Rule
from leuko.model.runtime import Model
from leuko.preprocessing.registration import Mode
from leuko.report.html import SAVED, VERDICTS, saved_with_verdict
from leuko.results import Segmentation
from leuko.segment import SegmentSettings, measure
from leuko.volume import Array, Volume, require_same_grid, resample_onto

EDITED_FILE, HISTORY_FILE, EDITED_FOLDER = "wmh_edited.nii.gz", "wmh_edited.json", "edited"
MAPS = {
    "probability": PROBABILITY_FILE,
    "lesions": LESIONS_FILE,
    "regions": REGIONS_FILE,
    "tissue": TISSUE_FILE,
    "rims": RIMS_FILE,
}


class ConflictError(LeukoError):
    """The mask was saved by someone else in the meantime."""


@dataclass(frozen=True)
class Result:
    """The output folder of `leuko segment` or `leuko.measure` of one scan."""

    name: str
    folder: Path
    flair_path: Path | None = None  # if the scans were moved after segmentation
    t1_path: Path | None = None

    @cached_property
    def record(self) -> RunRecord:
        return RunRecord.read(self.folder / RECORD_FILE)

    @cached_property
    def automatic(self) -> Volume:
        """The mask as Leuko wrote it, uint8, axes as stored."""
        return nifti.read(self.folder / MASK_FILE)

    @property
    def mask_path(self) -> Path:
        """The corrected mask if there is one, else the automatic one."""
        edited = self.folder / EDITED_FILE
        return edited if edited.is_file() else self.folder / MASK_FILE

    def latest(self, name: str) -> Path:
        """A file of the corrected mask once it is measured, else that of the automatic one."""
        edited = self.folder / EDITED_FOLDER / name
        is_edited = self.mask_path.name == EDITED_FILE and edited.is_file()
        return edited if is_edited else self.folder / name

    @property
    def mask(self) -> Array:
        """The mask in `mask_path`, bool (X, Y, Z). Raises LeukoError if it has another grid."""
        mask = nifti.read(self.mask_path)
        require_same_grid(mask, self.automatic)
        found: Array = mask.canonical().data > 0
        return found

    @property
    def version(self) -> str:
        """What tells one state of the mask from another."""
        return sha256(self.mask_path)

    @property
    def flair(self) -> Path:
        """Raises LeukoError if the FLAIR is not where it was."""
        return self._scan(self.flair_path, self.record.inputs.flair.path, "flair")

    @property
    def t1(self) -> Path | None:
        """Raises LeukoError if the T1 is not where it was; None if there was none."""
        given = self.record.inputs.t1
        return None if given is None else self._scan(self.t1_path, given.path, "t1")

    def images(self) -> dict[str, Callable[[], Volume]]:
        """What can be shown, by name; all on the grid of the mask."""
        found: dict[str, Callable[[], Volume]] = {"flair": self._flair}
        if self.record.inputs.t1 is not None:
            found["t1"] = self._t1
        for name, file in MAPS.items():
            if (self.folder / file).is_file():
                found[name] = partial(_read, self.folder / file)
        return found

    def save(self, mask: Array, *, based_on: str, editor: str) -> str:
        """Save a corrected mask (X, Y, Z), bool; returns its version.

        `based_on` is the version that was corrected. Raises ConflictError if another one was saved
        since then, LeukoError if the mask has another shape or cannot be written.
        """
        if self.version != based_on:
            raise ConflictError(
                f"the mask of {self.name} was saved in another window since this one opened it; "
                "reload the page"
            )
        before = self.mask
        if mask.shape != before.shape:
            raise LeukoError(f"the mask has shape {mask.shape}, expected {before.shape}")
        history = self.history()
        data = self.automatic.with_canonical(mask.astype(np.uint8))
        with staged(self.folder, record=HISTORY_FILE) as scratch:
            nifti.write(scratch / EDITED_FILE, data)
            version = sha256(scratch / EDITED_FILE)
            edit = {
                "editor": editor,
                "saved": datetime.now(UTC).isoformat(timespec="seconds"),
                "based_on_sha256": based_on,
                "mask_sha256": version,
                "added_ml": round(self.automatic.ml(mask & ~before), 4),
                "removed_ml": round(self.automatic.ml(before & ~mask), 4),
            }
            write_json(scratch / HISTORY_FILE, {"edits": [*history, edit]})
        return version

    def history(self) -> list[dict[str, object]]:
        """All edits, the latest last."""
        path = self.folder / HISTORY_FILE
        if not path.is_file():
            return []
        edits: list[dict[str, object]] = read_json(path, what="list of edits")["edits"]
        return edits

    def measure(self, model: Model | None = None) -> Segmentation:
        """Measure the corrected mask and write its numbers and report into `edited`."""
        record, latest = self.record, self.history()[-1]
        settings = SegmentSettings(
            model=record.model.path or record.model.name,
            alignment=cast("Mode", record.settings.alignment),
            rule=cast("Rule", record.settings.rule),
            bias_correction=record.settings.bias_correction,
        )
        edited_mask = self.folder / EDITED_FILE
        found = measure(edited_mask, self.flair, self.t1, model=model, settings=settings)
        mask, automatic = self.mask, self.automatic.canonical().data > 0
        edited = Edited(
            editor=str(latest["editor"]),
            saved=str(latest["saved"]),
            automatic_ml=record.volume_ml,
            added_ml=round(self.automatic.ml(mask & ~automatic), 4),
            removed_ml=round(self.automatic.ml(automatic & ~mask), 4),
        )
        found.save(self.folder / EDITED_FOLDER, label=record.label, edited=edited)
        return found

    def judge(self, folder: Path, *, verdict: str, rater: str) -> None:
        """Add a reader's verdict on the mask to the CSV of the rater in `folder`.

        The cohort's page collects these files. Raises LeukoError for an unknown verdict.
        """
        if verdict not in VERDICTS:
            raise LeukoError(f"{verdict} is no verdict; give one of {', '.join(VERDICTS)}")
        row = {
            "subject": self.name,
            "verdict": verdict,
            "rater": rater,
            "rated": f"{datetime.now(UTC):%Y-%m-%d}",
        }
        row |= saved_with_verdict(self.record) | {"mask_sha256": self.version}
        require_folder(folder)
        folder.mkdir(exist_ok=True)
        named = re.sub(r"[^\w.-]", "_", rater)
        path = folder / (f"view_{named}.csv" if named else "view.csv")
        written = io.StringIO()
        table = csv.DictWriter(written, SAVED, restval="")
        if not path.is_file():
            table.writeheader()
        table.writerow({name: _cell(value) for name, value in row.items()})
        earlier = path.read_text(encoding="utf-8") if path.is_file() else ""
        replace_text(path, earlier + written.getvalue())

    def _flair(self) -> Volume:
        return inputs.read(self.flair).volume.canonical()

    def _t1(self) -> Volume:
        path, grid = self.t1, self.automatic.canonical()
        if path is None:
            raise LeukoError(f"{self.name} has no T1")
        t1, alignment = inputs.read(path).volume, self.record.alignment
        if alignment is not None:
            moved = np.linalg.inv(np.array(alignment.flair_to_t1)) @ t1.affine
            t1 = replace(t1, affine=moved)
        return resample_onto(t1, grid)

    def _scan(self, given: Path | None, recorded: str | None, name: str) -> Path:
        path = given or (Path(recorded) if recorded else None)
        if path is None or not path.exists():
            raise LeukoError(
                f"the scan {path or 'of ' + self.name} is not there any more; give it with --{name}"
            )
        return path


def find_results(path: Path, *, flair: Path | None = None, t1: Path | None = None) -> list[Result]:
    """The results in the output folder of `leuko segment` or `leuko batch`, by name.

    `flair` and `t1` are the scans of a single result if they were moved. Raises LeukoError if there
    is no result.
    """
    if (path / RECORD_FILE).is_file():
        return [Result(path.resolve().name, path, flair, t1)]
    folders = sorted(record.parent for record in path.glob(f"[!.]*/{RECORD_FILE}"))
    if not folders:
        raise LeukoError(
            f"{path} holds no result of leuko segment; give a folder that leuko segment or leuko "
            "batch wrote"
        )
    if flair or t1:
        raise LeukoError("--flair and --t1 need the folder of one scan")
    return [Result(folder.name, folder) for folder in folders]


def described(result: Result) -> dict[str, object]:
    """The numbers of the mask that is shown: those of the corrected one once it is measured."""
    record = RunRecord.read(result.latest(RECORD_FILE))
    measured = record.inputs.mask.sha256 if record.edited and record.inputs.mask else None
    is_current = result.mask_path.name == MASK_FILE or measured == result.version
    return {
        "name": result.name,
        "volume_ml": record.volume_ml,
        "lesions": record.lesions,
        "is_current": is_current,
        "edited": None if record.edited is None else asdict(record.edited),
    }


def _cell(value: object) -> object:
    """The value; a text that a spreadsheet would run as a formula gets an apostrophe."""
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def _read(path: Path) -> Volume:
    return nifti.read(path).canonical()
