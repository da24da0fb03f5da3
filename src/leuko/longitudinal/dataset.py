"""The sessions of each subject of a BIDS derivative dataset, compared in a process of its own.

That process is `python -m leuko.longitudinal.dataset`, which gets a `Series` as JSON. Results of
`leuko bids ... participant` are read; nothing is segmented again.
"""

import json
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from leuko.cohort import derivatives, worker
from leuko.cohort.bids_names import OWN, Image, label
from leuko.cohort.files import Files
from leuko.cohort.run import Progress, carry_out, share
from leuko.cohort.worker import LOGS, Limits, Outcome
from leuko.errors import LeukoError
from leuko.io.files import read_json, sidecar, staged, write_json
from leuko.io.outputs import MASK_FILE, RECORD_FILE, REPORT_FILE, unquoted, write_table
from leuko.io.provenance import OUTPUT, Finding, exit_code, stderr_handler
from leuko.io.record import RunRecord
from leuko.longitudinal.changes import EVENTS, STATES
from leuko.longitudinal.compare import COMPARISON_FILE, compare
from leuko.longitudinal.record import VERSION

FOLDER = "longitudinal"  # in the folder of a subject, and in that of the logs
TABLE, DICTIONARY = "longitudinal.tsv", "longitudinal.json"
MEASURES = ("baseline_ml", "followup_ml", "change_ml", "change_percent", "floor_ml")
COLUMNS = {
    "participant_id": "The participant",
    "other_entities": "Entities that tell several series of a participant apart; n/a if it has one",
    "baseline_session": "The earlier session of the interval",
    "followup_session": "The later session of the interval",
    "status": "compared or failed",
    "reason": "Why the comparison failed",
    "baseline_ml": "Volume of WMH at the earlier session, in the common space of all sessions",
    "followup_ml": "Volume of WMH at the later session, in the common space of all sessions",
    "change_ml": "Change of the volume",
    "change_percent": "Change in % of the earlier volume; n/a if that is 0",
    "floor_ml": "Noise floor: the change that measurement error alone may cause",
    "is_beyond_floor": "Whether the change exceeds the noise floor: yes or no",
    **{state: f"Number of {state} lesions" for state in STATES[1:]},
    **{event: f"Number of lesions that {event}" for event in EVENTS},
    "warnings": "Number of warnings on the comparison, including those on each session",
    "report": "Path of the report of the comparison, from the root of the dataset",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Series:
    """The sessions of one subject, in order, and where their comparison goes."""

    name: str  # of its log: unique, and a valid file name
    others: str  # entities that tell it from other series of the subject
    records: tuple[Path, ...]
    sessions: tuple[str, ...]
    root: Path  # of the derivative dataset
    dataset: Path  # of the scans
    limits: Limits

    @property
    def subject(self) -> str:
        return self.name.split("_", 1)[0]

    @property
    def folder(self) -> Path:
        return self.root / self.subject / FOLDER / self.others

    @property
    def log(self) -> Path:
        return self.root / LOGS / FOLDER / f"{self.name}.log"

    @property
    def failure(self) -> Path:
        """The file with the reason of a failure."""
        return self.log.with_suffix(".failed")

    @property
    def findings(self) -> list[Finding]:
        """The findings on its comparison."""
        found = read_json(self.folder / COMPARISON_FILE, what="record")["findings"]
        return [Finding(**finding) for finding in found]

    def to_json(self) -> str:
        """The series as one line of JSON."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        content = json.loads(text)
        content["records"] = tuple(map(Path, content["records"]))
        content["sessions"] = tuple(content["sessions"])
        content |= {name: Path(content[name]) for name in ("root", "dataset")}
        return cls(**content | {"limits": Limits(**content["limits"])})


@dataclass(frozen=True)
class SeriesRun:
    """The outcome of `compare_series`."""

    jobs: Sequence[Series]
    failed: Mapping[str, str]  # the reason, by name
    earlier: int  # series that an earlier run had compared

    @property
    def done(self) -> list[Series]:
        """The series that are compared."""
        return [series for series in self.jobs if series.name not in self.failed]


def find_series(
    out: Path,
    dataset: Path,
    limits: Limits,
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
) -> tuple[list[Series], list[str]]:
    """The series of sessions in a derivative dataset, and why other subjects have none.

    The order of the sessions is that of `sessions` if they are given, else that of their labels,
    with numbers by value. If a session has several results, results whose other entities are the
    same make a series. Raises LeukoError if there are no results or a label does not exist.
    """
    by_subject = defaultdict(list)
    failed = worker.failures(out / LOGS)
    for record in derivatives.find(out, derivatives.RECORD):
        image = Image.of(record)
        if image is not None and image.name not in failed:  # else it is of an older run
            by_subject[image.entities["sub"]].append(image)
    if not by_subject:
        raise LeukoError(f"{out} holds no results; run the level participant first")
    wanted = [label(text, "sub") for text in participants] or list(by_subject)
    order = [label(text, "ses") for text in sessions]
    known = {image.entities.get("ses") for images in by_subject.values() for image in images}
    absent = [f"sub-{text}" for text in wanted if text not in by_subject]
    absent += [f"ses-{text}" for text in order if text not in known]
    if absent:
        raise LeukoError(f"{out} has no results of {', '.join(absent)}; check the labels")
    found = []
    without = [
        f"{name} is left out: its segmentation failed, see {LOGS}/{name}.failed"
        for name in failed
        if not participants or name.split("_")[0].removeprefix("sub-") in wanted
    ]
    for subject in wanted:
        images = [
            image
            for image in by_subject[subject]
            if "ses" in image.entities and (not order or image.entities["ses"] in order)
        ]
        groups = {
            others: sorted(same, key=lambda image: _rank(image.entities["ses"], order))
            for others, same in _groups(images).items()
        }
        followed = {others: same for others, same in groups.items() if len(same) > 1}
        if not followed:
            without.append(f"sub-{subject} is left out: it has results of fewer than two sessions")
        for others, same in followed.items():
            found.append(
                Series(
                    name="_".join(filter(None, [f"sub-{subject}", others])),
                    others=others,
                    records=tuple(image.path for image in same),
                    sessions=tuple(f"ses-{image.entities['ses']}" for image in same),
                    root=out,
                    dataset=dataset,
                    limits=limits,
                )
            )
    return found, without


def compare_series(
    all_series: Sequence[Series],
    *,
    processors: int | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> SeriesRun:
    """Compare the series that are not compared yet. Raises LeukoError if no scheduler answers."""
    left = [series for series in all_series if not is_done(series)]
    failed: dict[str, str] = {}
    if left:
        workers, limits = share(left[0].limits, processors, scheduler, len(left))
        left = [replace(series, limits=limits) for series in left]
        failed = carry_out(perform, left, workers=workers, scheduler=scheduler, progress=progress)
    return SeriesRun(all_series, failed, len(all_series) - len(left))


def is_done(series: Series) -> bool:
    """Whether a series has a complete comparison of the present results of its sessions."""
    try:
        record = read_json(series.folder / COMPARISON_FILE, what="record")
        if record.get("record_version") != VERSION:
            return False
        compared = [
            (visit["label"], visit["mask_sha256"], visit["flair"]["sha256"])
            for visit in record["inputs"].values()
        ]
        runs = [RunRecord.read(Files.of_record(path)[RECORD_FILE]) for path in series.records]
        now = [
            (session, run.mask_sha256, run.inputs.flair.sha256)
            for session, run in zip(series.sessions, runs, strict=True)
        ]
        return compared == now and not any(found.code == OUTPUT for found in series.findings)
    except (LeukoError, LookupError, TypeError):
        return False


def serious_findings(series: Series) -> list[Finding]:
    """Serious findings on a comparison: a file is missing, or it should not be used."""
    return [finding for finding in series.findings if exit_code([finding])]


def perform(series: Series) -> Outcome:
    """Compare a series in a process of its own."""
    arguments = ["-m", "leuko.longitudinal.dataset"]
    try:
        series.log.parent.mkdir(parents=True, exist_ok=True)
        return worker.run(arguments, series.to_json(), series.log, series.limits)
    except OSError as error:
        return Outcome(str(error), 0.0, 0.0)


def write_series_table(out: Path) -> Path:
    """Write longitudinal.tsv, a row for each interval of each comparison in a derivative dataset
    and for each comparison that failed, and its data dictionary. Returns the table."""
    rows: list[list[Any]] = []
    failed = worker.failures(out / LOGS / FOLDER)
    for path in sorted(out.glob(f"sub-*/{FOLDER}/**/{COMPARISON_FILE}")):
        record = read_json(path, what="record")
        subject, _, *others = path.parent.relative_to(out).parts
        if "_".join([subject, *others]) in failed:
            continue  # it compares older results
        if record.get("record_version") != VERSION:
            log.warning("%s is not used: another version of Leuko wrote it", path)
            continue
        titles = {name: visit["label"] for name, visit in record["inputs"].items()}
        warnings = sum(finding["level"] == "warning" for finding in record["findings"])
        for pair, change in zip(pairwise(titles), record["intervals"], strict=True):
            measures = [change[name] for name in MEASURES]
            rows.append(
                [
                    subject,
                    "_".join(others) or "n/a",
                    *(titles[name] for name in pair),
                    "compared",
                    "n/a",
                    *("n/a" if value is None else float(value) for value in measures),
                    "yes" if change["is_beyond_floor"] else "no",
                    *(change["lesions"][state] for state in STATES[1:]),
                    *(change["events"][event] for event in EVENTS),
                    warnings,
                    (path.parent / REPORT_FILE).relative_to(out).as_posix(),
                ]
            )
    for name, reason in failed.items():
        subject, *others = name.split("_")
        row = dict.fromkeys(COLUMNS, "n/a") | {"participant_id": subject, "status": "failed"}
        row |= {"other_entities": "_".join(others) or "n/a", "reason": unquoted(reason)}
        rows.append(list(row.values()))
    with staged(out) as scratch:
        write_table(scratch / TABLE, list(COLUMNS), sorted(rows, key=lambda row: (row[0], row[1])))
        units = {"ml": "mL", "percent": "%"}
        about = {
            name: {"Description": text}
            | ({"Units": units[end]} if (end := name.rsplit("_", 1)[-1]) in units else {})
            for name, text in COLUMNS.items()
        }
        write_json(scratch / DICTIONARY, about)
    return out / TABLE


def _groups(images: Sequence[Image]) -> dict[str, list[Image]]:
    """Results by the entities that tell series apart; those of one session each need none."""
    sessions = [image.entities["ses"] for image in images]
    if len(set(sessions)) == len(sessions):
        return {"": list(images)}
    groups = defaultdict(list)
    for image in images:
        own = (*OWN, "sub", "ses")
        others = [f"{name}-{text}" for name, text in image.entities.items() if name not in own]
        groups["_".join(others)].append(image)
    return groups


def _rank(session: str, order: Sequence[str]) -> tuple[int, list[tuple[int, str]]]:
    """Place of a session: in the given order, else by its label, with numbers by value."""
    parts = re.findall(r"\d+|\D+", session)
    key = [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
    return (order.index(session) if order else 0), key


def _moved_flairs(series: Series) -> Iterator[Path]:
    """FLAIRs that are not where they were, at their place in the dataset of the scans."""
    for path in series.records:
        was = RunRecord.read(path).inputs.flair.path
        if was is None or Path(was).exists():
            continue
        about = read_json(sidecar(Files.of_record(path).automatic(MASK_FILE)), what="sidecar")
        source = about["Sources"][0]
        here = series.dataset / str(source).removeprefix("bids:raw:")
        if here.is_file():
            yield here


def main() -> None:
    """Run in that process: read a `Series` and compare its sessions."""
    series = Series.from_json(worker.receive())
    logging.basicConfig(handlers=[stderr_handler()], force=True)
    try:
        compare(
            *series.records,
            series.folder,
            flairs=list(_moved_flairs(series)),
            visit_labels=series.sessions,
            label=series.name,
            threads=series.limits.threads,
        )
    except LeukoError as error:
        sys.exit(f"error: {error}")
    except MemoryError:
        sys.exit("error: not enough memory")


if __name__ == "__main__":
    main()
