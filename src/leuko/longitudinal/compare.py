"""Compare segmented visits of one brain: register them to their mean, follow each lesion."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from leuko.errors import LeukoError
from leuko.io import lookup_tables, nifti
from leuko.io.files import image_stem, staged
from leuko.io.lookup_tables import Label, coloured
from leuko.io.outputs import (
    LOOKUP_FOLDER,
    REPORT_FILE,
    refuse_foreign_files,
    side_output,
    write_table,
)
from leuko.io.provenance import (
    OUTPUT,
    Finding,
    Stopwatch,
    kept_findings,
    ranked,
    tell,
    versions,
)
from leuko.longitudinal.changes import BORDER_MM, Change, Changes, Course, Time, follow
from leuko.longitudinal.midspace import Midspace, meet
from leuko.longitudinal.record import (
    ComparisonRecord,
    Floor,
    IntervalRecord,
    MidspaceRecord,
    VisitRecord,
)
from leuko.longitudinal.report import KINDS, change_report
from leuko.longitudinal.visits import (
    Visit,
    differences,
    find_or_segment,
    read,
    require_used,
    twins,
)
from leuko.model.runtime import available_cpus
from leuko.preprocessing.slices import tissue_level
from leuko.volume import Volume

CHANGES_FILE, CHANGE_TABLE_FILE = "changes.nii.gz", "changes.tsv"
NUMBERS_FILE, VISITS_FILE = "change_lesions.nii.gz", "visits.tsv"
COMPARISON_FILE = "compare.json"
PAIR = ("baseline", "followup")
PAIR_TITLES = ("Baseline", "Follow-up")
# Of two visits; `files` tells those of more.
FILES = (
    CHANGES_FILE, CHANGE_TABLE_FILE, NUMBERS_FILE, *(f"flair_{name}.nii.gz" for name in PAIR),
    LOOKUP_FOLDER, REPORT_FILE, COMPARISON_FILE,
)  # fmt: skip
# Those of more visits that an earlier comparison may have left.
OLDER = re.compile(r"(flair|changes_visit\d+)_visit\d+\.(nii\.gz|tsv)")
BEYOND_VIEW = 0.02  # share of the WMH outside another scan's field of view; more: a warning

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Comparison:
    """The result of `compare`; `seconds` are by stage, in order."""

    visits: list[Visit]
    times: list[Time]  # the visits in the common space
    midspace: Midspace
    course: Course
    findings: list[Finding]  # including those of all runs
    seconds: dict[str, float]

    @property
    def changes(self) -> Changes:
        """The changes from the first visit to the last."""
        return self.course.overall


def files(visits: int) -> list[str]:
    """The files of a comparison of so many visits."""
    if visits == 2:
        return list(FILES)
    names = visit_names(visits)
    return [
        *(name for name in FILES if not name.startswith("flair_")),
        VISITS_FILE,
        *(f"flair_{name}.nii.gz" for name in names),
        *(f"{_interval(pair)}{end}" for pair in pairwise(names) for end in (".nii.gz", ".tsv")),
    ]


def visit_names(visits: int) -> Sequence[str]:
    """The names of the visits in files and tables."""
    return PAIR if visits == 2 else [f"visit{k}" for k in range(1, visits + 1)]


def compare(
    *visits_and_out: str | Path,
    flairs: Sequence[str | Path] = (),
    visit_labels: Sequence[str] = (),
    label: str | None = None,
    threads: int | None = None,
) -> Comparison:
    """Compare two or more visits of one brain, in order, and write the results into a folder.

    The visits come first, the folder for the results last. A visit is a folder that `segment` or
    `measure` wrote, a record of BIDS derivatives or the folder of its session, or a folder with
    FLAIR.nii.gz and perhaps T1.nii.gz, which is segmented into the folder of the results first.
    `flairs` are FLAIRs that were moved since; each is recognised by its SHA-256. `visit_labels`
    name the visits and `label` the person in the report. Raises LeukoError if a visit cannot be
    used or the scans cannot be registered; the folder then keeps its earlier files and the new
    segmentations.

    >>> import leuko
    >>> found = leuko.compare("BASELINE", "FOLLOWUP", "OUT")
    >>> [lesion.state for lesion in found.changes.lesions if lesion.state == "new"]
    []
    """
    *paths, out = map(Path, visits_and_out)
    if len(paths) < 2:
        raise LeukoError(
            f"got {'one visit' if paths else 'no visits'}, expected two or more; give the visits "
            "in order"
        )
    if visit_labels and len(set(visit_labels)) != len(paths):
        raise LeukoError(
            f"{len(paths)} visits need {len(paths)} different labels; got {', '.join(visit_labels)}"
        )
    names = visit_names(len(paths))
    written = files(len(paths))
    for path in paths:
        refuse_foreign_files(out, path, files=written, record=COMPARISON_FILE, command="compare")
    moved = [Path(flair) for flair in flairs]
    watch = Stopwatch()
    threads = threads or available_cpus()
    with watch.stage("segment"):
        found = [
            find_or_segment(path, out / name, threads=threads)
            for path, name in zip(paths, names, strict=True)
        ]
    with staged(out) as scratch, kept_findings() as findings:
        with watch.stage("read"):
            titles = visit_labels or _titles(len(paths))
            visits = [
                read(one, name, title, moved)
                for one, name, title in zip(found, names, titles, strict=True)
            ]
            require_used(moved, visits)
            findings.extend(_findings(visits))
            for text in (*twins(visits), *differences(visits)):
                log.warning("%s", text)
        with watch.stage("align"):
            midspace = _meet(visits, threads=threads)
        with watch.stage("resample"):
            times = _times(visits, midspace)
        with watch.stage("find changes"):
            smallest_mm3 = max(visit.smallest_mm3 for visit in visits)
            course = follow(times, midspace.grid, smallest_mm3=smallest_mm3)
        with watch.stage("write"):
            _write(scratch, course, times, midspace, names)
        result = Comparison(visits, times, midspace, course, findings, watch.seconds)
        record = _record(result, visit_labels, label=label)
        with (
            watch.stage("report"),
            side_output(scratch, REPORT_FILE, partial(tell, findings)),
        ):
            html = change_report(record, course, times, midspace.grid, titles)
            (scratch / REPORT_FILE).write_text(html, encoding="utf-8", errors="backslashreplace")
        # The report may have added a finding, and took time.
        record = replace(record, findings=ranked(findings), seconds=watch.seconds)
        record.write(scratch / COMPARISON_FILE)
        new = {path.name for path in scratch.iterdir()}
    for path in out.iterdir():
        is_ours = path.name in (*FILES, VISITS_FILE) or OLDER.fullmatch(path.name)
        if is_ours and path.name not in new:
            path.unlink()
    return result


def _titles(visits: int) -> Sequence[str]:
    return PAIR_TITLES if visits == 2 else [f"Visit {k}" for k in range(1, visits + 1)]


def _findings(visits: Sequence[Visit]) -> Iterator[Finding]:
    """What was said of each run, and whether the noise floor holds."""
    for visit in visits:
        for found in visit.record.findings:
            if found.code != OUTPUT:
                yield replace(found, text=f"{visit.name}: {found.text}")
    if any(visit.is_measured for visit in visits):
        text = (
            "masks were given: the noise floor is that of Leuko's masks; readers' masks vary more"
        )
        yield Finding("note", "given-masks", text)


def _meet(visits: Sequence[Visit], *, threads: int) -> Midspace:
    """Register in the order of the hashes, so that the order of the visits has no effect."""
    hashes = [visit.record.inputs.flair.sha256 for visit in visits]
    order = sorted(range(len(visits)), key=hashes.__getitem__)
    found = meet([visits[k].flair for k in order], threads=threads)
    return found.in_order([order.index(k) for k in range(len(visits))])


def _times(visits: Sequence[Visit], midspace: Midspace) -> list[Time]:
    seen = midspace.grid.data
    flairs = midspace.bring([_scaled(visit.flair) for visit in visits])
    probabilities = midspace.bring([visit.probability for visit in visits])
    times = []
    for visit, flair, probability in zip(visits, flairs, probabilities, strict=True):
        mask = probability >= visit.threshold
        unseen = float((~seen)[mask].mean()) if mask.any() else 0.0
        if unseen > BEYOND_VIEW:
            log.warning(
                "%.0f %% of the WMH of %s lie outside the field of view of %s scan and are "
                "not compared",
                100 * unseen,
                visit.files,
                "the other" if len(visits) == 2 else "another",
            )
        times.append(Time(mask & seen, probability, flair))
    return times


def _scaled(flair: Volume) -> Volume:
    """The FLAIR scaled to tissue at 100, float32."""
    return flair.with_data((flair.data * (100 / tissue_level(flair))).astype(np.float32))


def _interval(names: Sequence[str]) -> str:
    return "_".join(["changes", *names])


def _write(
    folder: Path, course: Course, times: Sequence[Time], midspace: Midspace, names: Sequence[str]
) -> None:
    grid = midspace.grid
    for name, time in zip(names, times, strict=True):
        nifti.write(folder / f"flair_{name}.nii.gz", grid.with_data(time.flair))
    nifti.write(folder / NUMBERS_FILE, grid.with_data(course.overall.numbers))
    labels = [Label(number, kind.name, kind.colour) for number, kind in KINDS.items()]
    overall = course.overall
    lesions = [
        (number, f"lesion {number}, {' and '.join(overall.states_of(number))}")
        for number in dict.fromkeys(lesion.id for lesion in overall.lesions)
    ]
    tables = {CHANGES_FILE: labels, NUMBERS_FILE: coloured(lesions)}
    for file, table in tables.items():
        lookup_tables.write(folder / LOOKUP_FOLDER, image_stem(Path(file)), table)
    found = {"changes": course.overall}
    if len(names) > 2:
        found |= dict(zip(map(_interval, pairwise(names)), course.intervals, strict=True))
        write_table(folder / VISITS_FILE, *_visits_table(course, names))
    for stem, changes in found.items():
        nifti.write(folder / f"{stem}.nii.gz", grid.with_data(changes.states))
        columns = [field.name for field in fields(Change)]
        rows = [[*astuple(lesion)[:-1], _joined(lesion.events, ", ")] for lesion in changes.lesions]
        write_table(folder / f"{stem}.tsv", columns, rows)


def _visits_table(course: Course, names: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: a lesion in each row, its volume at each visit, and its state and events in
    each interval."""
    intervals = ["_".join(pair) for pair in pairwise(names)]
    columns = [
        *("id", "x_mm", "y_mm", "z_mm"),
        *(f"{name}_ml" for name in names),
        *(f"{name}_state" for name in intervals),
        *(f"{name}_events" for name in intervals),
    ]
    rows = [
        [
            *(lesion.id, lesion.x_mm, lesion.y_mm, lesion.z_mm),
            *lesion.ml,
            *(", ".join(states) or "absent" for states in lesion.states),
            *(_joined(events, ", ") for events in lesion.events),
        ]
        for lesion in course.lesions
    ]
    return columns, rows


def _joined(words: Sequence[str], by: str) -> str:
    return by.join(words) or "n/a"


def _record(
    result: Comparison, visit_labels: Sequence[str], *, label: str | None
) -> ComparisonRecord:
    course, midspace, visits = result.course, result.midspace, result.visits
    names = [visit.name for visit in visits]
    others = {n: a for n, a in zip(names, midspace.alignments, strict=True) if a is not None}
    return ComparisonRecord(
        versions=versions(),
        inputs={
            visit.name: _visit_record(visit, visit.title if visit_labels else None)
            for visit in visits
        },
        findings=ranked(result.findings),
        checks=(
            *_checks(visits),
            f"registration of the {'two ' if len(visits) == 2 else ''}scans",
            "same model and settings",
        ),
        **_change(course.overall),
        intervals=tuple(
            IntervalRecord(visits=pair, **_change(changes))
            for pair, changes in zip(pairwise(names), course.intervals, strict=True)
        ),
        alignment=MidspaceRecord(
            registered_to=next(name for name in names if name not in others),
            moved_mm={name: round(found.moved_mm, 3) for name, found in others.items()},
            sharpness={name: round(found.sharpness, 4) for name, found in others.items()},
            to_midspace={
                name: tuple(map(tuple, way.round(6).tolist()))
                for name, way in zip(names, midspace.ways, strict=True)
            },
        ),
        seconds=dict(result.seconds),
        label=label,
    )


def _checks(visits: Sequence[Visit]) -> list[str]:
    """The checks of all visits, each once; one that was not done at every visit names those."""
    done = {visit.name: visit.record.checks for visit in visits}
    found = []
    for check in dict.fromkeys(chain.from_iterable(done.values())):
        names = [name for name, checks in done.items() if check in checks]
        found.append(check if len(names) == len(visits) else f"{check} ({', '.join(names)})")
    return found


def _change(changes: Changes) -> dict[str, Any]:
    """The fields of `ChangeRecord`, rounded."""
    return {
        "baseline_ml": round(changes.baseline_ml, 4),
        "followup_ml": round(changes.followup_ml, 4),
        "change_ml": round(changes.change_ml, 4),
        "change_percent": round(changes.change_percent, 3) if changes.baseline_ml else None,
        "floor_ml": round(changes.floor_ml, 4),
        "is_beyond_floor": changes.is_beyond_floor,
        "floor": Floor(border_mm=BORDER_MM, surface_mm2=round(changes.surface_mm2, 1)),
        "lesions": changes.counts,
        "lesion_change_ml": {s: round(ml, 4) for s, ml in changes.change_by_state.items()},
        "events": changes.event_counts,
    }


def _visit_record(visit: Visit, label: str | None) -> VisitRecord:
    record = visit.record
    return VisitRecord(
        path=str(visit.files),
        mask_sha256=record.mask_sha256,
        volume_ml=record.volume_ml,
        rims=record.rims,
        wmh_ml=record.wmh_ml,
        rims_ml=record.rims_ml,
        wmh_and_rims_ml=record.wmh_and_rims_ml,
        model=record.model,
        threshold=visit.threshold,
        flair=record.inputs.flair,
        label=label,
    )
