"""Collect the results of a cohort: a table with its data dictionary, and a page."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leuko.cohort import derivatives, ratings, summary
from leuko.cohort.bids_names import OWN, Image
from leuko.cohort.report import Entry, Failure, cohort_page
from leuko.cohort.worker import LOGS
from leuko.errors import LeukoError
from leuko.io import outputs
from leuko.io.files import staged, write_json
from leuko.io.outputs import side_output, write_table
from leuko.io.record import RunRecord

Ids = dict[str, Any]  # the columns that identify a row

TABLE, PAGE = "wmh.tsv", "report.html"
ABOUT: Ids = {"Description": "White matter hyperintensities, by Leuko; a row for each FLAIR"}
ID = {"id": {"Description": "The subject, as in the table that was segmented"}}
BIDS_IDS = {
    "participant_id": {"Description": "The participant"},
    "session_id": {"Description": "The session; n/a if there is none"},
    "run": {"Description": "The run of the FLAIR; n/a if there is none"},
    "other_entities": {"Description": "Other entities, such as acq-3d; n/a if there are none"},
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """Paths of one subject's results, relative to the cohort's folder."""

    name: str
    ids: tuple[str, ...]
    record: Path
    report: Path
    picture: Path


def write_batch(out: Path) -> dict[str, Path]:
    """Collect the results of `leuko batch` in `out`: wmh.tsv, wmh.json and report.html, and
    verdicts.csv if readers have saved verdicts into the folder `verdicts`.

    Returns the written files by kind. Raises LeukoError if there is no result and no failure.
    """
    _name_incomplete(out.glob(f"[!.]*/{outputs.MASK_FILE}"), outputs.MASK_FILE, outputs.RECORD_FILE)
    names = sorted(path.parent.name for path in out.glob(f"[!.]*/{outputs.RECORD_FILE}"))
    segmented = [
        Result(
            name,
            (name,),
            record=Path(name, outputs.RECORD_FILE),
            report=Path(name, outputs.REPORT_FILE),
            picture=Path(name, outputs.KEY_SLICES_FILE),
        )
        for name in names
    ]
    return _write(out, segmented, ID)[0]


def write_dataset(out: Path) -> dict[str, Path]:
    """Collect a derivative dataset as `write_batch` does, and also write its table for BIDS.

    BIDS allows one row per participant in phenotype/wmh.tsv; with several visits or runs each visit
    and run has a file of its own, such as phenotype/wmh_ses-b_run-2.tsv.
    """
    masks = derivatives.find(out, derivatives.MASK)
    _name_incomplete(masks, derivatives.MASK, derivatives.RECORD)
    segmented = []
    for path in derivatives.find(out, derivatives.RECORD):
        image = Image.of(path)
        if image is None or path.parent != out / image.place:
            log.warning("%s is not used: its name requires another folder", path)
        else:
            segmented.append(_derivatives(image, out))
    written, rows = _write(out, segmented, BIDS_IDS)
    of_visit = defaultdict(list)
    for row in rows:
        _, session, run, others = row[: len(BIDS_IDS)]
        named = [session, f"run-{run}" if run != "n/a" else run, others]
        of_visit["_".join(["wmh", *(name for name in named if name != "n/a")])].append(row)
    once = len({row[0] for row in rows}) == len(rows)
    folder = out / "phenotype"
    with staged(folder) as scratch:
        for stem, chosen in {"wmh": rows}.items() if once else of_visit.items():
            _save(scratch / f"{stem}.tsv", chosen, BIDS_IDS)
        now = {path.name for path in scratch.iterdir()}
    for older in {*folder.glob("wmh.*"), *folder.glob("wmh_*")}:
        if older.name not in now:
            older.unlink()
    return written | {"phenotype": folder}


def _derivatives(record: Image, out: Path) -> Result:
    labels = {name: label for name, label in record.entities.items() if name not in OWN}
    name = "_".join(f"{entity}-{label}" for entity, label in labels.items())
    participant, session, run = (labels.pop(entity, "n/a") for entity in ("sub", "ses", "run"))
    others = "_".join(f"{entity}-{label}" for entity, label in labels.items())
    stem = record.path.name.removesuffix(derivatives.RECORD)
    path = record.path.relative_to(out)
    return Result(
        name,
        (
            f"sub-{participant}",
            session if session == "n/a" else f"ses-{session}",
            run,
            others or "n/a",
        ),
        path,
        path.with_name(stem + derivatives.REPORT),
        path.parent.parent / "figures" / (stem + derivatives.KEY_SLICES),
    )


def _name_incomplete(masks: Iterable[Path], mask: str, record: str) -> None:
    """Warn of masks without a record."""
    for path in sorted(masks):
        other = path.with_name(path.name.removesuffix(mask) + record)
        if not other.is_file():
            log.warning("%s is not used: %s is missing beside it", path, other.name)


def _write(
    out: Path, segmented: Sequence[Result], ids: Ids
) -> tuple[dict[str, Path], list[list[Any]]]:
    """The written files by kind, and the rows of the table."""
    failures = list(_failures(out))
    failed = {failure.name for failure in failures}
    # Files of a subject that failed are from an older run with other scans or settings.
    found = [(r.ids, _entry(out, r)) for r in segmented if r.name not in failed]
    done = [(ids, entry, summary.row(entry.record)) for ids, entry in found if entry is not None]
    if not done and not failures:
        raise LeukoError(f"{out} holds no results; run the segmentation first")
    rows = [[*ids, *row.values()] for ids, _, row in done]
    entries = [entry for _, entry, _ in done]
    judged = ratings.gather(out / ratings.FOLDER, {entry.name: row for _, entry, row in done})
    written = {"table": out / TABLE}
    with staged(out) as scratch:
        _save(scratch / TABLE, rows, ids)
        with side_output(scratch, PAGE, lambda finding: log.warning("%s", finding.text)):
            page = cohort_page(entries, failures, judged)
            (scratch / PAGE).write_text(page, encoding="utf-8", errors="backslashreplace")
            written["report"] = out / PAGE
        if judged:
            ratings.write(scratch / ratings.TABLE, judged)
            written["verdicts"] = out / ratings.TABLE
    for kind, name in {"report": PAGE, "verdicts": ratings.TABLE}.items():
        if kind not in written:
            (out / name).unlink(missing_ok=True)
    return written, rows


def _save(path: Path, rows: Sequence[Sequence[Any]], ids: Ids) -> None:
    """Write a table and its data dictionary."""
    write_table(path, [*ids, *summary.COLUMNS], rows)
    write_json(path.with_suffix(".json"), ABOUT | ids | summary.dictionary())


def _entry(out: Path, result: Result) -> Entry | None:
    """The entry of a result; None, with a warning, if its record cannot be read."""
    try:
        record = RunRecord.read(out / result.record)
    except LeukoError as error:
        log.warning("not used: %s", error)
        return None
    report, picture = (
        path.as_posix() if (out / path).is_file() else ""
        for path in (result.report, result.picture)
    )
    return Entry(result.name, record, report, picture)


def _failures(out: Path) -> Iterator[Failure]:
    for path in sorted((out / LOGS).glob("*.failed")):
        with suppress(FileNotFoundError):  # another run may have segmented it just now
            log = f"{LOGS}/{path.stem}.log"
            reason = path.read_text(encoding="utf-8").strip()
            yield Failure(path.stem, reason, log if (out / log).is_file() else "")
