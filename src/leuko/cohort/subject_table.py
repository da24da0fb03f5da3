"""A table of subjects: which FLAIR, T1 and exclusion mask belong together, and to whom."""

import csv
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from leuko.errors import LeukoError

COLUMNS = ("id", "flair", "t1", "exclude")
# What else lies beside the folders of subjects, and what Windows keeps for itself.
TAKEN = ("logs", "verdicts", "verdicts.csv", "report.html", "wmh.tsv", "wmh.json")
SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons"}
DEVICE = re.compile(r"(con|nul|aux|prn|com\d|lpt\d)(\..*)?", re.IGNORECASE)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?<!\.)")  # of a folder, on any system

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One subject."""

    name: str
    flair: Path
    t1: Path | None
    exclude: Path | None


def read_table(path: Path) -> list[Row]:
    """The subjects of a table with the columns id and flair, and t1 and exclude if there are some;
    others are left alone, with a warning.

    Tab-separated, or by commas or semicolons if its name ends in .csv; paths are relative to the
    table's folder; an empty cell or n/a is none. Raises LeukoError, with the line, for a row that
    cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LeukoError(f"table {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LeukoError(
            f"table {path} is not UTF-8 text; save it as tab-separated text"
        ) from error
    separator = _separator(path, text)
    try:
        head, *lines = _cells(text, separator) or [(1, [])]
    except csv.Error as error:
        raise LeukoError(f"table {path} cannot be read: {error}") from error
    columns = [cell.strip().lower() for cell in head[1]]
    if not {"id", "flair"} <= set(columns) or len(set(columns)) < len(columns):
        raise LeukoError(
            f"{path} has the columns {' | '.join(head[1]) or '(none)'}; expected id, flair and, if "
            f"wanted, t1, exclude, each once, separated by {SEPARATORS[separator]}"
        )
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown:
        log.warning("%s: not used: the columns %s", path, ", ".join(unknown))
    rows: dict[str, Row] = {}
    for line, cells in lines:
        if len(cells) > len(columns):
            raise LeukoError(
                f"{path}, line {line}: {len(cells)} cells below {len(columns)} columns; in a .csv "
                "a cell with a comma needs quotes"
            )
        row = _row(dict(zip(columns, cells, strict=False)), path, line)
        # Some file systems do not tell capitals from small letters.
        if row.name.lower() in rows:
            raise LeukoError(f"{path}, line {line}: the id {row.name} is there already")
        rows[row.name.lower()] = row
    if not rows:
        raise LeukoError(f"{path} names no subject; expected a line for each below the head")
    return list(rows.values())


def _separator(path: Path, text: str) -> str:
    if path.suffix.lower() != ".csv":
        return "\t"
    head = text.split("\n", 1)[0]
    return ";" if ";" in head and "," not in head else ","  # as spreadsheets of many countries


def _cells(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers. In a TSV quotes are plain characters."""
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
            f"{path}, line {line}: the id {name!r} cannot name a folder; use letters, "
            "digits, and . _ - within"
        )
    if scans["flair"] is None:
        raise LeukoError(f"{path}, line {line}: {name} has no flair")
    return Row(name, scans["flair"], scans["t1"], scans["exclude"])
