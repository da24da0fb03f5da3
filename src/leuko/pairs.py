"""A table of subjects: which FLAIR, T1 and exclusion mask belong together, and to whom."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from leuko.errors import LeukoError

COLUMNS = ("id", "flair", "t1", "exclude")
# What else lies beside the folders of subjects, and what Windows keeps for itself.
TAKEN = ("logs", "verdicts", "verdicts.csv", "report.html", "wmh.tsv", "wmh.json")
DEVICE = re.compile(r"(con|nul|aux|prn|com\d|lpt\d)(\..*)?", re.IGNORECASE)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?<!\.)")  # of a folder, on any system


@dataclass(frozen=True)
class Row:
    """One subject."""

    name: str
    flair: Path
    t1: Path | None
    exclude: Path | None


def read_table(path: Path) -> list[Row]:
    """The subjects of a table with the columns id and flair, and t1 and exclude if there are some.

    Tab-separated, or by commas if its name ends in .csv; paths are relative to the table's folder;
    an empty cell or n/a is none. Raises LeukoError, with the line, for a row that cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LeukoError(f"table {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LeukoError(
            f"table {path} is not UTF-8 text; save it as tab-separated text"
        ) from error
    try:
        head, *lines = _cells(text, by_commas=path.suffix == ".csv") or [(1, [])]
    except csv.Error as error:
        raise LeukoError(f"table {path} cannot be read: {error}") from error
    columns = [cell.strip().lower() for cell in head[1]]
    if not {"id", "flair"} <= set(columns) <= set(COLUMNS) or len(set(columns)) < len(columns):
        raise LeukoError(
            f"{path} has the columns {', '.join(columns) or '(none)'}; expected id, flair, t1 and, "
            "if wanted, exclude, separated by tabs"
        )
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
            raise LeukoError(f"{path}, line {line}: {row.name} is there already")
        rows[row.name.lower()] = row
    if not rows:
        raise LeukoError(f"{path} names no subject; expected a line for each below the head")
    return list(rows.values())


def _cells(text: str, *, by_commas: bool) -> list[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers. In a TSV quotes are plain characters."""
    if by_commas:
        lines = csv.reader(text.splitlines(), strict=True)
    else:
        lines = csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [(lines.line_num, cells) for cells in lines if any(cell.strip() for cell in cells)]


def _row(cells: dict[str, str], path: Path, line: int) -> Row:
    found = {name: cells.get(name, "").strip() for name in COLUMNS}
    scans = {
        name: None if found[name] in ("", "n/a") else path.parent / found[name]
        for name in COLUMNS[1:]
    }
    name = found["id"]
    if not NAME.fullmatch(name) or name.lower() in TAKEN or DEVICE.fullmatch(name):
        raise LeukoError(
            f"{path}, line {line}: the id {found['id']!r} cannot name a folder; use letters, "
            "digits, and . _ - within"
        )
    if scans["flair"] is None:
        raise LeukoError(f"{path}, line {line}: {found['id']} has no flair")
    return Row(found["id"], scans["flair"], scans["t1"], scans["exclude"])
