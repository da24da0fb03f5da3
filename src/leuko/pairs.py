"""A table of subjects: which FLAIR, T1 and exclusion mask belong together, and to whom."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from leuko.errors import LeukoError

COLUMNS = ("id", "flair", "t1", "exclude")
TAKEN = ("logs", "verdicts")  # folders beside those of subjects
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of a folder, on any system


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
    lines = csv.reader(text.splitlines(), delimiter="," if path.suffix == ".csv" else "\t")
    head = [cell.strip().lower() for cell in next(lines, [])]
    if not {"id", "flair"} <= set(head) <= set(COLUMNS) or len(set(head)) < len(head):
        raise LeukoError(
            f"{path} has the columns {', '.join(head) or '(none)'}; expected id, flair, t1 and, "
            "if wanted, exclude, separated by tabs"
        )
    rows: dict[str, Row] = {}
    for cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        row = _row(dict(zip(head, cells, strict=False)), path, lines.line_num)
        # Some file systems do not tell capitals from small letters.
        if row.name.lower() in rows:
            raise LeukoError(f"{path}, line {lines.line_num}: {row.name} is there already")
        rows[row.name.lower()] = row
    if not rows:
        raise LeukoError(f"{path} names no subject; expected a line for each below the head")
    return list(rows.values())


def _row(cells: dict[str, str], path: Path, line: int) -> Row:
    found = {name: cells.get(name, "").strip() for name in COLUMNS}
    scans = {
        name: None if found[name] in ("", "n/a") else path.parent / found[name]
        for name in COLUMNS[1:]
    }
    if not NAME.fullmatch(found["id"]) or found["id"].lower() in TAKEN:
        raise LeukoError(
            f"{path}, line {line}: the id {found['id']!r} cannot name a folder; use letters, "
            "digits, and . _ - within"
        )
    if scans["flair"] is None:
        raise LeukoError(f"{path}, line {line}: {found['id']} has no flair")
    return Row(found["id"], scans["flair"], scans["t1"], scans["exclude"])
