"""Collect the results of a cohort: a table with its data dictionary, and a page."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from leuko.cohort import derivatives, frequency, ratings, summary, worker
from leuko.cohort.bids_names import Image
from leuko.cohort.files import Files
from leuko.cohort.report import Entry, Failure, cohort_page
from leuko.cohort.worker import LOGS
from leuko.errors import LeukoError
from leuko.io import outputs
from leuko.io.files import staged, write_json
from leuko.io.outputs import side_output, write_table
from leuko.io.provenance import Finding
from leuko.io.record import RunRecord

Ids = dict[str, Any]  # the columns that identify a row

TABLE, PAGE = "wmh.tsv", "report.html"
ABOUT: Ids = {
    "Description": "White matter hyperintensities, by Leuko; a row for each FLAIR, also for those "
    "that could not be segmented"
}
ID = {"id": {"Description": "The subject, as in the table that was segmented"}}
BIDS_IDS = {
    "participant_id": {"Description": "The participant"},
    "session_id": {"Description": "The session; n/a if there is none"},
    "run": {"Description": "The run of the FLAIR; n/a if there is none"},
    "other_entities": {"Description": "Other entities, such as acq-3d; n/a if there are none"},
}

ATLAS_TABLE, ATLAS_ABOUT = "wmh_atlas.tsv", "wmh_atlas.json"
ATLAS_COLUMNS: Ids = {
    "index": {"Description": "Label of the region in the atlas; 0: outside the atlas"},
    "name": {"Description": "Name of the region"},
    "region_ml": {"Description": "Volume of the region", "Units": "mL"},
    "wmh_ml": {"Description": "Volume of WMH in the region", "Units": "mL"},
    "wmh_percent": {"Description": "WMH in % of the region", "Units": "%"},
    "lesions": {"Description": "Number of lesions that reach into the region"},
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """Paths of one subject's results, relative to the cohort's folder."""

    name: str
    record: Path
    report: Path
    picture: Path
    mni_mask: Path


def write_batch(out: Path) -> dict[str, Path]:
    """Collect the results of `leuko batch` in `out`: wmh.tsv, wmh.json and report.html, and
    verdicts.csv if readers have saved verdicts into the folder `verdicts`.

    Returns the written files by kind. Raises LeukoError if there is no result and no failure.
    """
    _name_incomplete(out.glob(f"[!.]*/{outputs.MASK_FILE}"), outputs.MASK_FILE, outputs.RECORD_FILE)
    names = sorted(path.parent.name for path in out.glob(f"[!.]*/{outputs.RECORD_FILE}"))
    segmented = [_result(name, Files(out / name), out) for name in names]
    return _write(out, segmented, ID, lambda name: (name,))[0]


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
            segmented.append(_result(image.name, Files.of_record(path), out))
    written, rows = _write(out, segmented, BIDS_IDS, _bids_ids)
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


def _result(name: str, files: Files, out: Path) -> Result:
    record, report, picture, mni_mask = (
        files[file].relative_to(out)
        for file in (
            outputs.RECORD_FILE,
            outputs.REPORT_FILE,
            outputs.KEY_SLICES_FILE,
            outputs.MNI_MASK_FILE,
        )
    )
    return Result(name, record, report, picture, mni_mask)


def _bids_ids(name: str) -> tuple[str, ...]:
    """The columns `BIDS_IDS` of a scan, from the entities in its name."""
    labels = dict(entity.split("-", 1) for entity in name.split("_"))
    participant, session, run = (labels.pop(entity, "n/a") for entity in ("sub", "ses", "run"))
    return (
        f"sub-{participant}",
        session if session == "n/a" else f"ses-{session}",
        run,
        "_".join(f"{entity}-{label}" for entity, label in labels.items()) or "n/a",
    )


def _name_incomplete(masks: Iterable[Path], mask: str, record: str) -> None:
    """Warn of masks without a record."""
    for path in sorted(masks):
        other = path.with_name(path.name.removesuffix(mask) + record)
        if not other.is_file():
            log.warning("%s is not used: its record %s is missing", path, other.name)


def _write(
    out: Path,
    segmented: Sequence[Result],
    ids: Ids,
    ids_of: Callable[[str], tuple[str, ...]],
) -> tuple[dict[str, Path], list[list[Any]]]:
    """The written files by kind, and the rows of the table. `ids_of` gives the columns `ids` of a
    scan's name."""
    failures = list(_failures(out))
    failed = {failure.name for failure in failures}
    # Files of a subject that failed are from an older run with other scans or settings.
    found = [_entry(out, result) for result in segmented if result.name not in failed]
    entries = [entry for entry in found if entry is not None]
    if not entries and not failures:
        raise LeukoError(f"{out} holds no results; run the segmentation first")
    by_name = {entry.name: summary.row(entry.record) for entry in entries}
    judged = ratings.gather(out / ratings.FOLDER, by_name)
    verdicts = defaultdict(list)
    for verdict in judged:
        if verdict["current"] == "yes":
            verdicts[verdict["id"]].append(verdict["verdict"])
    by_name = {name: summary.judged(row, verdicts[name]) for name, row in by_name.items()}
    by_name |= {failure.name: summary.failed_row(failure.reason) for failure in failures}
    rows = [[*ids_of(name), *by_name[name].values()] for name in sorted(by_name)]
    written = {"table": out / TABLE}
    with staged(out) as scratch:
        _save(scratch / TABLE, rows, ids)
        heat = b""
        usable = {entry.name for entry in entries if entry.record.is_usable}
        in_mni = [out / r.mni_mask for r in segmented if r.name in usable]
        with side_output(scratch, frequency.IMAGE, warn):
            present = [path for path in in_mni if path.is_file()]
            heat = frequency.write(scratch, present, scans=len(in_mni))
        if heat:
            written["frequency"] = out / frequency.IMAGE
        with side_output(scratch, PAGE, warn):
            page = cohort_page(entries, failures, judged, heat)
            (scratch / PAGE).write_text(page, encoding="utf-8", errors="backslashreplace")
            written["report"] = out / PAGE
        by_region = [
            [*ids_of(entry.name), *astuple(region)]
            for entry in entries
            for region in (entry.record.atlas.regions if entry.record.atlas else ())
        ]
        if by_region:
            written["atlas"] = out / ATLAS_TABLE
            write_table(scratch / ATLAS_TABLE, [*ids, *ATLAS_COLUMNS], by_region)
            write_json(scratch / ATLAS_ABOUT, ids | ATLAS_COLUMNS)
        if judged:
            ratings.write(scratch / ratings.TABLE, judged)
            written["verdicts"] = out / ratings.TABLE
    optional = {"report": [PAGE], "verdicts": [ratings.TABLE], "frequency": frequency.FILES}
    optional["atlas"] = [ATLAS_TABLE, ATLAS_ABOUT]
    for kind, names in optional.items():
        for name in names if kind not in written else ():
            (out / name).unlink(missing_ok=True)
    return written, rows


def warn(finding: Finding) -> None:
    """Log a finding on a file of the cohort."""
    log.warning("%s", finding.text)


def _save(path: Path, rows: Sequence[Sequence[Any]], ids: Ids) -> None:
    """Write a table and its data dictionary."""
    write_table(path, [*ids, *summary.COLUMNS], rows)
    write_json(path.with_suffix(".json"), ABOUT | ids | summary.dictionary())


def _entry(out: Path, result: Result) -> Entry | None:
    """The entry of a result; None, with a warning, if its record cannot be read."""
    try:
        record = RunRecord.read(out / result.record)
    except LeukoError as error:
        log.warning("a result is not used: %s", error)
        return None
    report, picture = (
        path.as_posix() if (out / path).is_file() else ""
        for path in (result.report, result.picture)
    )
    return Entry(result.name, record, report, picture)


def _failures(out: Path) -> Iterator[Failure]:
    for name, reason in worker.failures(out / LOGS).items():
        log = f"{LOGS}/{name}.log"
        yield Failure(name, reason, log if (out / log).is_file() else "")
