"""A table of subjects: the FLAIR, T1, exclusion mask and given mask of each."""

import csv
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from leuko.errors import LeukoError
from leuko.io.files import DEVICE

COLUMNS = ("id", "flair", "t1", "exclude", "mask")
# Names of other files beside the folders of subjects.
TAKEN = (
    "logs", "verdicts", "verdicts.csv", "report.html", "wmh.tsv", "wmh.json",
    "wmh_frequency.nii.gz", "wmh_frequency.json", "wmh_frequency.jpg",
    "wmh_atlas.tsv", "wmh_atlas.json",
)  # fmt: skip
SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?<!\.)")  # a valid folder name on any system

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """The files of one subject."""

    name: str
    flair: Path
    t1: Path | None
    exclude: Path | None
    mask: Path | None  # to be measured; None: the scan is segmented


def read_table(path: Path) -> list[Row]:
    """The subjects of a table with the columns id, flair and optionally t1, exclude and mask;
    other columns are ignored with a warning.

    Cells are separated by tabs, or by commas or semicolons if the name ends in .csv. Paths are
    relative to the table's folder; an empty cell or n/a means no file. Raises LeukoError, with the
    line number, for a row that cannot be used.
    """
    text = _text(path)
    separator = _separator(path, text)
    try:
        head, *lines = _cells(text, separator) or [(1, [])]
    except csv.Error as error:
        raise LeukoError(f"table {path} cannot be read: {error}") from error
    columns = [cell.strip().lower() for cell in head[1]]
    if not {"id", "flair"} <= set(columns) or len(set(columns)) < len(columns):
        raise LeukoError(
            f"{path} has the columns {' | '.join(head[1]) or '(none)'}; expected id, flair and "
            f"optionally t1, exclude, mask, each once, separated by {SEPARATORS[separator]}"
        )
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown:
        log.warning("%s: columns not used: %s", path, ", ".join(unknown))
    rows: dict[str, Row] = {}
    for line, cells in lines:
        if len(cells) > len(columns):
            raise LeukoError(
                f"{path}, line {line}: {len(cells)} cells, expected {len(columns)}; in a .csv "
                "put a cell that contains a comma in quotes"
            )
        row = _row(dict(zip(columns, cells, strict=False)), path, line)
        # Some file systems ignore case.
        if row.name.lower() in rows:
            raise LeukoError(f"{path}, line {line}: the id {row.name} is not unique")
        rows[row.name.lower()] = row
    if not rows:
        raise LeukoError(f"{path} lists no subject; expected a row for each below the header")
    return list(rows.values())


def _text(path: Path) -> str:
    if path.is_dir():
        raise LeukoError(
            f"{path} is a folder; expected a table with the columns id, flair and optionally t1. "
            "For a BIDS dataset, use leuko bids"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LeukoError(f"table {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LeukoError(
            f"table {path} is not UTF-8 text; save it as tab-separated text"
        ) from error


def _separator(path: Path, text: str) -> str:
    if path.suffix.lower() != ".csv":
        return "\t"
    head = text.split("\n", 1)[0]
    # Spreadsheets write semicolons in countries where the comma is the decimal sign.
    return ";" if ";" in head and "," not in head else ","


def _cells(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """The non-empty lines with their numbers. In a TSV quotes are plain characters."""
    if separator == "\t":
        lines = csv.reader(text.splitlines(), delimiter=separator, quoting=csv.QUOTE_NONE)
    else:
        lines = csv.reader(text.splitlines(), delimiter=separator, strict=True)
    return [(lines.line_num, cells) for cells in lines if any(cell.strip() for cell in cells)]


def _row(cells: dict[str, str], path: Path, line: int) -> Row:
    found = {name: cells.get(name, "").strip() for name in COLUMNS}
    name = found.pop("id")
    scans = {
        scan: None if cell in ("", "n/a") else path.parent / cell for scan, cell in found.items()
    }
    if name.lower() in TAKEN or DEVICE.fullmatch(name):
        raise LeukoError(f"{path}, line {line}: the id {name!r} is reserved; use another")
    if not NAME.fullmatch(name):
        raise LeukoError(
            f"{path}, line {line}: the id {name!r} cannot be the name of a folder; start "
            "with a letter or digit, then use letters, digits and . _ -"
        )
    if scans["flair"] is None:
        raise LeukoError(f"{path}, line {line}: {name} has no FLAIR; give its path")
    if scans["exclude"] and scans["mask"]:
        raise LeukoError(
            f"{path}, line {line}: {name} has exclude and mask; a given mask is measured as it is, "
            "so leave exclude empty"
        )
    return Row(name, scans["flair"], scans["t1"], scans["exclude"], scans["mask"])
