"""Readers' verdicts, saved from the pages as CSV: collected and matched to subjects."""

import csv
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leuko.io.outputs import VERDICTS_FOLDER
from leuko.report.html import SAVED

FOLDER, TABLE = VERDICTS_FOLDER, "verdicts.csv"
COLUMNS = ("id", "current", *SAVED)

Verdict = Mapping[str, str]  # by COLUMNS

log = logging.getLogger(__name__)


def gather(folder: Path, subjects: Mapping[str, Mapping[str, Any]]) -> list[Verdict]:
    """The verdicts in the CSV files of a folder, ordered by subject, then by date.

    `subjects` are the rows of the cohort's table by name. A verdict belongs to the subject with the
    same FLAIR, whatever name was typed; it is `current` (yes, no) if the subject's mask is still
    the judged one. If a rater judged a mask several times, the latest verdict counts. A warning
    names files without verdicts.
    """
    by_flair = defaultdict(list)
    for name, row in subjects.items():
        by_flair[row["flair_sha256"]].append(name)
    found: dict[tuple[str, ...], Verdict] = {}
    for path in sorted(folder.glob("*.csv"), key=lambda path: path.stat().st_mtime_ns):
        for saved in _read(path):
            names = by_flair[saved["flair_sha256"]]
            typed = saved["subject"]
            name = typed if typed in names else next(iter(names), "n/a")
            current = names and subjects[name]["mask_sha256"] == saved["mask_sha256"]
            key = name, saved["rater"], saved["flair_sha256"], saved["mask_sha256"]
            if key not in found or found[key]["rated"] <= saved["rated"]:
                found[key] = {"id": name, "current": "yes" if current else "no", **saved}
    order = {name: k for k, name in enumerate(subjects)}
    return sorted(found.values(), key=lambda v: (order.get(v["id"], len(order)), v["rated"]))


def write(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write `verdicts.csv`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(verdicts)


def _read(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows = [{name: row.get(name) or "" for name in SAVED} for row in table]
            known = set(table.fieldnames or ()) >= {"verdict", "flair_sha256", "mask_sha256"}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        log.warning("%s cannot be read (%s); its verdicts are not used", path, error)
        return []
    if not known:
        log.warning("%s lacks the columns of verdicts saved from a report; it is not used", path)
        return []
    return rows
