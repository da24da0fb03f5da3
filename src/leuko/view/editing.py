"""Results to look at, and masks that a reader corrects. Array axes run R, A, S.

The corrected mask is `wmh_edited.nii.gz` beside the automatic one, which never changes;
`wmh_edited.json` tells who saved it and when. Its numbers and its report are in `edited`. In a BIDS
derivative dataset these files are beside the mask, with the entity desc-edited.
"""

import csv
import io
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from leuko.cohort import derivatives
from leuko.cohort.files import EDITED_FOLDER, Files
from leuko.errors import LeukoError
from leuko.io import inputs, nifti
from leuko.io.files import (
    read_json,
    replace_text,
    require_writable,
    sha256,
    sidecar,
    staged,
    write_json,
)
from leuko.io.inputs import Scan
from leuko.io.outputs import (
    LESIONS_FILE,
    MASK_FILE,
    PROBABILITY_FILE,
    RECORD_FILE,
    REGIONS_FILE,
    RIMS_FILE,
    TISSUE_FILE,
)
from leuko.io.record import Edited, RunRecord, ScanRecord, SettingsRecord
from leuko.report.html import SAVED, VERDICTS, saved_with_verdict
from leuko.volume import Array, Volume, require_same_grid, resample_onto

if TYPE_CHECKING:  # they load libraries that the first picture does not need
    from leuko.lesions.location import Rule
    from leuko.model.runtime import Model
    from leuko.preprocessing.registration import Mode

MAPS = {
    "probability": PROBABILITY_FILE,
    "lesions": LESIONS_FILE,
    "regions": REGIONS_FILE,
    "tissue": TISSUE_FILE,
    "rims": RIMS_FILE,
}


log = logging.getLogger(__name__)


class ConflictError(LeukoError):
    """The mask was saved by someone else in the meantime."""


@dataclass(frozen=True)
class Result:
    """The files of `leuko segment` or `leuko.measure` of one scan.

    With a `prefix` they are BIDS derivatives.
    """

    name: str
    folder: Path
    prefix: str = ""
    flair_path: Path | None = None  # if the scans were moved after segmentation
    t1_path: Path | None = None

    @cached_property
    def record(self) -> RunRecord:
        return RunRecord.read(self.files.automatic(RECORD_FILE))

    @cached_property
    def automatic(self) -> Volume:
        """The mask as Leuko wrote it, uint8, axes as stored."""
        return nifti.read_map(self.files.automatic(MASK_FILE))

    @cached_property
    def files(self) -> Files:
        return Files(self.folder, self.prefix)

    @property
    def is_edited(self) -> bool:
        """Whether there is a mask that corrects the present automatic one."""
        return self.files.is_edited

    def latest(self, file: str) -> Path:
        """A file of the corrected mask once it is measured, else that of the automatic one."""
        edited = self.files.edited(file)
        return edited if self.is_edited and edited.is_file() else self.files.automatic(file)

    @property
    def mask_path(self) -> Path:
        """The corrected mask if there is one, else the automatic one."""
        return self.latest(MASK_FILE)

    @property
    def mask(self) -> Array:
        """The mask in `mask_path`, bool (X, Y, Z). Raises LeukoError if it has another grid."""
        mask = nifti.read_map(self.mask_path)
        require_same_grid(mask, self.automatic)
        found: Array = mask.canonical().data > 0
        return found

    @property
    def version(self) -> str:
        """What tells one state of the mask from another."""
        return sha256(self.mask_path)

    def scan(self, name: Literal["flair", "t1"]) -> Scan | None:
        """The FLAIR or the T1; None if there was none.

        Raises LeukoError if it is not where it was, and as `inputs.read` does.
        """
        given = {"flair": self.flair_path, "t1": self.t1_path}[name]
        was = {"flair": self.record.inputs.flair, "t1": self.record.inputs.t1}[name]
        if was is None:
            return None
        path = given or (Path(was.path) if was.path else None)
        if path is None or not path.exists():
            raise LeukoError(
                f"the scan {path or 'of ' + self.name} does not exist; give its path with --{name}"
            )
        return _opened(path, was, self.name, name)

    def images(self) -> dict[str, Callable[[], Volume]]:
        """What can be shown, by name; all on the grid of the mask."""
        found: dict[str, Callable[[], Volume]] = {"flair": self._flair}
        if self.record.inputs.t1 is not None:
            found["t1"] = self._t1
        for name, file in MAPS.items():
            if self.latest(file).is_file():
                found[name] = partial(_read, self.latest(file))
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
        written, record = self.files.edited(MASK_FILE).name, self.files.history.name
        with staged(self.folder, record=record) as scratch:
            nifti.write(scratch / written, data)
            version = sha256(scratch / written)
            edit = {
                "editor": editor,
                "saved": datetime.now(UTC).isoformat(timespec="seconds"),
                "based_on_sha256": based_on,
                "mask_sha256": version,
                "added_ml": round(self.automatic.ml(mask & ~before), 4),
                "removed_ml": round(self.automatic.ml(before & ~mask), 4),
            }
            write_json(scratch / record, {**self._sidecar(), "edits": [*history, edit]})
        return version

    def history(self) -> list[dict[str, object]]:
        """All edits of the present automatic mask, the latest last."""
        return self.files.edits if self.is_edited else []

    def measure(self, model: "Model | None" = None) -> None:
        """Measure the corrected mask and write its numbers and its report."""
        from leuko.segment import SegmentSettings, measure

        record, latest = self.record, self.history()[-1]
        used = record.settings
        atlas, names = _atlas_of(used)
        settings = SegmentSettings(
            model=record.model.path or record.model.name,
            alignment=cast("Mode", used.alignment),
            rule=cast("Rule", used.rule),
            bias_correction=used.bias_correction,
            fill=bool(used.fill),
            save_mni=bool(used.save_mni),
            atlas=atlas,
            atlas_names=names,
        )
        flair, t1 = self._flair_scan(), self.scan("t1")
        edited_mask = self.files.edited(MASK_FILE)
        found = measure(edited_mask, flair, t1, model=model, settings=settings)
        mask, automatic = self.mask, self.automatic.canonical().data > 0
        edited = Edited(
            editor=str(latest["editor"]),
            saved=str(latest["saved"]),
            corrects="automatic" if record.inputs.mask is None else "given",
            automatic_ml=record.volume_ml,
            added_ml=round(self.automatic.ml(mask & ~automatic), 4),
            removed_ml=round(self.automatic.ml(automatic & ~mask), 4),
        )
        if not self.prefix:
            found.save(self.folder / EDITED_FOLDER, label=record.label, edited=edited)
            return
        with staged(self.folder, record=self.files.edited(RECORD_FILE).name) as scratch:
            native = scratch / "native"
            found.save(native, label=record.label, edited=edited)
            sources = self._sidecar()["Sources"]
            derivatives.arrange(native, scratch, self.prefix, sources, is_edited=True)
            shutil.rmtree(native)
            pictures = (self.prefix + derivatives.edited(name) for name in derivatives.PICTURES)
            derivatives.move_pictures(scratch, self.folder, pictures)

    def judge(self, folder: Path, *, verdict: str, rater: str) -> None:
        """Add a reader's verdict on the mask to the CSV of the rater in `folder`.

        The cohort's page collects these files. Raises LeukoError for an unknown verdict, and if the
        folder cannot be written.
        """
        if verdict not in VERDICTS:
            raise LeukoError(f"{verdict!r} is not a verdict; give one of {', '.join(VERDICTS)}")
        row = {
            "subject": self.name,
            "verdict": verdict,
            "rater": rater,
            "rated": f"{datetime.now(UTC):%Y-%m-%d}",
        }
        measured = RunRecord.read(self.latest(RECORD_FILE))
        row |= saved_with_verdict(measured) | {"mask_sha256": self.version}
        require_writable(folder)
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

    def _sidecar(self) -> dict[str, Any]:
        """What the sidecar of a corrected BIDS mask says beside its edits."""
        if not self.prefix:
            return {}
        about = read_json(sidecar(self.files.automatic(MASK_FILE)), what="sidecar")
        shared = {name: about[name] for name in ("Type", "SpatialReference", "Sources")}
        return {"Description": "White matter hyperintensities, corrected by a reader", **shared}

    def _flair_scan(self) -> Scan:
        flair = self.scan("flair")
        if flair is None:
            raise ValueError("every result has a FLAIR")
        return flair

    def _flair(self) -> Volume:
        return self._flair_scan().volume.canonical()

    def _t1(self) -> Volume:
        scan, alignment = self.scan("t1"), self.record.alignment
        if scan is None:
            raise LeukoError(f"{self.name} has no T1")
        t1 = scan.volume
        if alignment is not None:
            t1 = t1.moved(np.array(alignment.flair_to_t1))
        return resample_onto(t1, self.automatic.canonical())


@lru_cache(maxsize=2)  # the command reads the FLAIR before the page asks for it
def _opened(path: Path, was: ScanRecord, of: str, option: str) -> Scan:
    return inputs.read_again(path, was, what="scan", of=of, option=option)


def find_results(path: Path, *, flair: Path | None = None, t1: Path | None = None) -> list[Result]:
    """The results in the output folder of `leuko segment`, `leuko batch` or `leuko bids`, by name.

    `flair` and `t1` are the scans of a single result if they were moved. Raises LeukoError if there
    is no result.
    """
    if (path / RECORD_FILE).is_file():
        return [Result(path.resolve().name, path, flair_path=flair, t1_path=t1)]
    folders = sorted(record.parent for record in path.glob(f"[!.]*/{RECORD_FILE}"))
    found = [Result(folder.name, folder) for folder in folders]
    for record in derivatives.find(path, derivatives.RECORD):
        prefix = record.name.removesuffix(derivatives.RECORD)
        found.append(Result(prefix.removesuffix("_space-FLAIR_"), record.parent, prefix))
    if not found:
        raise LeukoError(
            f"{path} holds no result of leuko segment; give a folder that leuko segment, leuko "
            "batch or leuko bids wrote"
        )
    if flair or t1:
        raise LeukoError("--flair and --t1 work only with the folder of one scan")
    return found


def described(result: Result) -> dict[str, object]:
    """The numbers of the mask that is shown: those of the corrected one once it is measured."""
    record, files = RunRecord.read(result.latest(RECORD_FILE)), result.files
    saved, is_edited = files.edited(MASK_FILE), files.is_edited
    return {
        "name": result.name,
        "volume_ml": record.volume_ml,
        "lesions": record.lesions,
        "is_current": not is_edited or files.is_measured,
        "note": (
            f"{saved.name} corrects an earlier automatic mask and is not shown; saving replaces it"
            if saved.is_file() and not is_edited
            else None
        ),
        "edited": None if record.edited is None else asdict(record.edited),
    }


def _cell(value: object) -> object:
    """The value; a text that a spreadsheet would run as a formula gets an apostrophe."""
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def _atlas_of(used: SettingsRecord) -> tuple[Path | None, Path | None]:
    """The atlas of a run and its names; neither, with a warning, if one is missing or changed."""
    paths = []
    for file in (used.atlas, used.atlas_names):
        path = Path(file.path) if file and file.path else None
        if file and path and not (path.is_file() and sha256(path) == file.sha256):
            log.warning("the atlas is not used again: %s is missing or has changed", path)
            return None, None
        paths.append(path)
    return paths[0], paths[1]


def _read(path: Path) -> Volume:
    return nifti.read_map(path).canonical()
