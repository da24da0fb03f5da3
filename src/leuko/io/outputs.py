"""Result folders: file names, protection of other files, optional outputs and tables."""

import csv
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leuko.errors import LeukoError, in_one_line
from leuko.io.files import delete, require_writable
from leuko.io.inputs import Scan
from leuko.io.provenance import OUTPUT, Finding
from leuko.io.record import writer

MASK_FILE, RIMS_FILE = "wmh.nii.gz", "wmh_rims.nii.gz"
PROBABILITY_FILE, ENTROPY_FILE = "wmh_prob.nii.gz", "wmh_entropy.nii.gz"
TISSUE_FILE = "tissue.nii.gz"
LESIONS_FILE, LESION_TABLE_FILE = "wmh_lesions.nii.gz", "lesions.tsv"
REGIONS_FILE, REGION_NAMES_FILE = "wmh_regions.nii.gz", "wmh_regions.tsv"
DICOM_FILE = "wmh.dcm"
T1_FILE, TRANSFORM_FILE = "t1_aligned.nii.gz", "t1_to_flair.tfm"
FILLED_FILE = "t1_filled.nii.gz"
MNI_MASK_FILE, MNI_PROBABILITY_FILE = "wmh_mni.nii.gz", "wmh_prob_mni.nii.gz"
MNI_FLAIR_FILE = "flair_mni.nii.gz"
ATLAS_FILE, ATLAS_TABLE_FILE = "atlas.nii.gz", "atlas.tsv"
ATLAS_LESIONS_FILE = "atlas_lesions.tsv"
REPORT_FILE, PICTURE_FILE = "report.html", "qc.png"
KEY_SLICES_FILE = "key_slices.jpg"
LOOKUP_FOLDER = "lookup_tables"  # of the label images, for viewers
RECORD_FILE = "run.json"
VERDICTS_FOLDER = "verdicts"  # of readers, as CSV
FILES = (
    MASK_FILE, RIMS_FILE, PROBABILITY_FILE, ENTROPY_FILE, TISSUE_FILE, LESIONS_FILE,
    LESION_TABLE_FILE, REGIONS_FILE, REGION_NAMES_FILE, REPORT_FILE, PICTURE_FILE, KEY_SLICES_FILE,
    DICOM_FILE, T1_FILE, TRANSFORM_FILE, FILLED_FILE, MNI_MASK_FILE,
    MNI_PROBABILITY_FILE, MNI_FLAIR_FILE, ATLAS_FILE, ATLAS_TABLE_FILE, ATLAS_LESIONS_FILE,
    LOOKUP_FOLDER, RECORD_FILE,
)  # fmt: skip

Tell = Callable[[Finding], None]

log = logging.getLogger(__name__)


@contextmanager
def side_output(folder: Path, name: str, tell: Tell) -> Iterator[None]:
    """Write an optional file or folder of a result; if that fails, delete it and `tell` a
    warning."""
    try:
        yield
    except Exception as error:  # any error of a library: the mask must still be saved
        delete(folder / name)
        log.debug("%s", name, exc_info=error)
        tell(Finding("warning", OUTPUT, f"{name} could not be written ({in_one_line(error)})"))


def refuse_foreign_files(
    out: Path,
    *scans: Path | Scan | None,
    files: Sequence[str],
    record: str,
    command: str,
) -> None:
    """Raises LeukoError if `out` is the name of an image, cannot be written, holds the scans, or
    holds any of `files` without a `record` of `command`: they may be an expert's labels or a
    training run."""
    if out.name.endswith((".nii", ".nii.gz")):
        raise LeukoError(
            f"{out} is the name of an image; give a folder with -o, the mask is written into it"
        )
    paths = [scan.path if isinstance(scan, Scan) else scan for scan in scans]
    if any(folder.is_dir() and folder.resolve() == out.resolve() for folder in paths if folder):
        raise LeukoError(f"{out} holds the scans; choose another folder with -o")
    about = out / record
    ours = about.is_file() and writer(about) == command
    there = [name for name in files if (out / name).exists()]
    if there and not ours:
        raise LeukoError(
            f"{out / there[0]} exists and was not written by leuko {command}; "
            "choose another folder with -o"
        )
    require_writable(out)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows under their columns, tab-separated; n/a where a number is not known."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(columns)
        table.writerows([_cell(value) for value in row] for row in rows)


def unquoted(text: str) -> str:
    """A text on one line that needs no quotes in a table."""
    return " ".join(text.split()).replace('"', "'")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "n/a"
    return "n/a" if value is None else str(value)
