"""The report of a comparison: its numbers, the visits side by side, and the course of each lesion.

The page does not name the patient. File names, which may contain a name, appear only in the
details.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np

from leuko.io.lookup_tables import BLUE, ORANGE, SKY, VERMILION, YELLOW
from leuko.io.provenance import RIMS_ARE, is_useless
from leuko.longitudinal.changes import (
    EVENTS,
    GROWN,
    NEW,
    RESOLVED,
    SHRUNK,
    STABLE,
    STATES,
    WHY_STABLE,
    Course,
    Followed,
    Time,
)
from leuko.longitudinal.record import ChangeRecord, ComparisonRecord
from leuko.report.html import (
    Column,
    Kind,
    alerts,
    drawing,
    facts,
    page,
    plain,
    section,
    shown,
    table,
    text,
)
from leuko.report.plots import volume_course
from leuko.report.viewer import HEAD, Pane, lesion_slices
from leuko.volume import Array, Volume

KINDS = {
    NEW: Kind("new", VERMILION),
    GROWN: Kind("gained (grown lesions)", ORANGE),
    STABLE: Kind("unchanged", YELLOW),
    SHRUNK: Kind("lost (shrunk lesions)", SKY),
    RESOLVED: Kind("resolved", BLUE),
}
MOST_ROWS = 500  # of the table; more would make the page large
MOST_PANES = 6  # of more visits the first, the last and some between are shown
COLUMNS = (
    Column("id", "No.", 0),
    Column("state", "State"),
    Column("baseline_ml", "Baseline, mL", 3),
    Column("followup_ml", "Follow-up, mL", 3),
    Column("change_ml", "Change, mL", 3),
    Column("floor_ml", "Noise floor, mL", 3, is_detail=True),
    Column("slice_number", "Slice", 0),
    Column("flair_change", "FLAIR change, %", 0, is_detail=True),
    Column("baseline_probability", "Probability, baseline", 2, is_detail=True),
    Column("followup_probability", "Probability, follow-up", 2, is_detail=True),
)
INTERVAL_COLUMNS = (
    Column("interval", "Interval"),
    Column("change_ml", "Change, mL", 2),
    Column("change_percent", "Change, %", 1),
    Column("floor_ml", "Noise floor, mL", 2),
    Column("verdict", "Verdict"),
    *(Column(name, name.capitalize(), 0) for name in (*STATES[1:], *EVENTS)),
)
WHY = (
    "All volumes here are measured in the common space of the scans, where each is resampled once, "
    "and only where every scan shows the brain; the separate segmentations gave "
)


def change_report(
    record: ComparisonRecord,
    course: Course,
    times: Sequence[Time],
    grid: Volume,
    titles: Sequence[str],
) -> str:
    """The report as HTML; all arrays are on `grid`, `titles` name the visits."""
    panes = _panes(course, times, grid, titles)
    where = lesion_slices(replace(panes[0], ids=course.overall.numbers))
    of_pair = len(times) == 2
    rows = [
        {**row, "slice": where[row["id"]], "slice_number": where[row["id"]] + 1}
        for row in (_pair_rows(course) if of_pair else _course_rows(course))
    ]
    columns = COLUMNS if of_pair else _course_columns(titles)
    order = "changed ones first" if of_pair else "mL by visit, changed ones first"
    caption = f"{len(rows)} lesions, {order}; click a row to show it"
    answer = facts(
        _change_facts(record, titles) if of_pair else _course_facts(record, course, titles),
        useless=is_useless(record.findings),
    )
    why = f'<p class="hint">{text(WHY + as_segmented(record))}.</p>'
    many = [] if of_pair else [_course_section(record, course, titles)]
    number = "two times" if of_pair else f"{len(times)} visits"
    return page(
        title=f"White matter hyperintensities at {number}",
        subtitle=_subtitle(record),
        label=record.label,
        before=[
            alerts(record.findings, record.checks),
            section("Change", answer, why),
            *many,
        ],
        panes=panes,
        kinds=KINDS,
        beside=table(columns, rows[:MOST_ROWS], caption=caption, with_all=of_pair) if rows else "",
        after=[
            section("Details", _details(record), name="details"),
        ],
    )


def as_segmented(record: ComparisonRecord) -> str:
    """The volumes of the scans by themselves."""
    return f"{', '.join(f'{visit.volume_ml:.2f}' for visit in record.inputs.values())} mL"


def _pair_rows(course: Course) -> list[dict[str, Any]]:
    rows = [
        asdict(lesion) | {"state": _words(lesion.state, lesion.events), "rank": lesion.state}
        for lesion in course.overall.lesions
    ]
    return sorted(rows, key=lambda row: (*_rank(row["rank"]), row["id"]))


def _course_rows(course: Course) -> list[dict[str, Any]]:
    def changes_first(lesion: Followed) -> tuple[bool, int, int]:
        ranks = (_rank(state) for states in lesion.states for state in states or ("",))
        return *min(ranks), lesion.id

    return [
        {
            "id": lesion.id,
            "states": ", ".join(
                _words(" and ".join(states), events)
                for states, events in zip(lesion.states, lesion.events, strict=True)
            ),
            **{f"ml{k}": ml for k, ml in enumerate(lesion.ml)},
        }
        for lesion in sorted(course.lesions, key=changes_first)
    ]


def _course_columns(titles: Sequence[str]) -> tuple[Column, ...]:
    return (
        Column("id", "No.", 0),
        *(Column(f"ml{k}", title, 2) for k, title in enumerate(titles)),
        Column("states", "Since the visit before"),
    )


def _rank(state: str) -> tuple[bool, int]:
    """Changed lesions come first, absent ones last."""
    return state in ("stable", ""), STATES.index(state) or len(STATES)


def _words(state: str, events: Sequence[str]) -> str:
    return (state or "absent") + (f" ({', '.join(events)})" if events else "")


def _panes(
    course: Course, times: Sequence[Time], grid: Volume, titles: Sequence[str]
) -> list[Pane]:
    """A pane for each visit with the lesions of that visit, cropped to one box."""
    numbers = course.overall.numbers
    images = [_in_8_bit(time.flair) for time in times]
    in_view = np.max(images, axis=0) > HEAD
    return [
        Pane(
            title=titles[k],
            grid=grid,
            images={"FLAIR": images[k]},
            ids=np.where(times[k].mask, numbers, 0),
            kinds=np.where(times[k].mask, _kinds(course, k), 0).astype(np.uint8),
            in_view=in_view | (numbers > 0),
        )
        for k in _shown_visits(len(times))
    ]


def _shown_visits(count: int) -> list[int]:
    """At most `MOST_PANES` visits, evenly, with the first and the last."""
    return sorted({round(k) for k in np.linspace(0, count - 1, min(count, MOST_PANES)).tolist()})


def _kinds(course: Course, visit: int) -> Array:
    """What became of each voxel of a visit: gained since the visit before, else lost until the
    next, else unchanged."""
    kinds = np.where(course.overall.numbers > 0, STABLE, 0)
    if visit < len(course.intervals):
        after = course.intervals[visit].states
        kinds = np.where(after >= SHRUNK, after, kinds)
    if visit > 0:
        before = course.intervals[visit - 1].states
        kinds = np.where((before == NEW) | (before == GROWN), before, kinds)
    return kinds


def _in_8_bit(flair: Array) -> Array:
    return np.clip(np.rint(flair), 0, 255).astype(np.uint8)


def _subtitle(record: ComparisonRecord) -> str:
    runs = record.inputs.values()
    hashes = ", ".join(run.flair.sha256[:12] for run in runs)
    models = ", ".join(dict.fromkeys(run.model.name for run in runs))
    return (
        f"FLAIR {hashes}; model {models}, Leuko {record.versions['leuko']}; "
        f"{datetime.now(UTC):%Y-%m-%d}"
    )


def _change_facts(
    record: ComparisonRecord, titles: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    yield titles[0], f"{record.baseline_ml:.2f} mL", ""
    yield titles[1], f"{record.followup_ml:.2f} mL", ""
    yield "Change", f"{record.change_ml:+.2f} mL", _beside_floor(record)
    for state, count in record.lesions.items():
        yield (
            f"{state.capitalize()} lesions",
            str(count),
            f"{record.lesion_change_ml[state]:+.2f} mL"
            + f" ({WHY_STABLE})" * (state == "stable" and count > 0),
        )
    for event, count in record.events.items():
        if count:
            yield f"{event.capitalize()} lesions", str(count), ""
    runs = record.inputs.values()
    if all(run.rims == "separate" for run in runs):
        rims_ml = " | ".join(f"{run.rims_ml:.2f}" for run in runs)
        yield "Caps and rims", f"{rims_ml} mL", "baseline | follow-up; not compared"
    (moved_mm,) = record.alignment.moved_mm.values()
    yield (
        "Registration",
        f"{moved_mm:.1f} mm",
        "distance between the scans; each was moved by half of it",
    )


def _course_facts(
    record: ComparisonRecord, course: Course, titles: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    first, *others = zip(titles, course.ml, strict=True)
    yield first[0], f"{first[1]:.2f} mL", ""
    for (title, ml), before, interval in zip(others, titles[:-1], record.intervals, strict=True):
        since = f"{interval.change_ml:+.2f} mL since {before}; {_side(interval)} the noise floor"
        yield title, f"{ml:.2f} mL", since
    yield "First to last", f"{record.change_ml:+.2f} mL", _beside_floor(record)
    moved_mm = max(record.alignment.moved_mm.values())
    yield (
        "Registration",
        f"up to {moved_mm:.1f} mm",
        "distance between scans; each was moved to their mean",
    )


def _side(change: ChangeRecord) -> str:
    return "beyond" if change.is_beyond_floor else "below"


def _beside_floor(record: ComparisonRecord) -> str:
    part = "" if record.change_percent is None else f"{record.change_percent:+.1f} %; "
    return f"{part}{_side(record)} the noise floor of {record.floor_ml:.2f} mL"


def _course_section(record: ComparisonRecord, course: Course, titles: Sequence[str]) -> str:
    """The curve of the total volume, and a table of the intervals."""
    curve = volume_course(
        dict(zip(titles, course.ml, strict=True)),
        [course.floor_ml(0, k) if k else 0.0 for k in range(len(titles))],
    )
    rows = [
        {
            "interval": " to ".join(pair),
            "change_ml": change.change_ml,
            "change_percent": change.change_percent,
            "floor_ml": change.floor_ml,
            "verdict": f"{_side(change)} floor",
            **change.lesions,
            **change.events,
        }
        for pair, change in zip(
            [*pairwise(titles), (titles[0], titles[-1])], [*record.intervals, record], strict=True
        )
    ]
    return section(
        "Course",
        drawing(curve, "Volume of all lesions by visit"),
        table(INTERVAL_COLUMNS, rows, caption="Change and number of lesions by interval"),
    )


def _details(record: ComparisonRecord) -> str:
    about: dict[str, object] = {}
    for name, run in record.inputs.items():
        about[name] = run.path
        about[f"{name}, FLAIR"] = run.flair.path
        about[f"{name}, FLAIR, SHA-256"] = run.flair.sha256
        about[f"{name}, as segmented, mL"] = run.volume_ml
        about[f"{name}, caps and rims"] = RIMS_ARE[run.rims]
        about[f"{name}, caps and rims, mL"] = shown(run.rims_ml, 2)
        about[f"{name}, threshold"] = run.threshold
    about |= {f"version of {name}": version for name, version in record.versions.items()}
    return (
        "<details><summary>Scans, settings, seconds</summary>"
        + plain("About this comparison", ((name, text(value)) for name, value in about.items()))
        + plain("Seconds by stage", ((name, shown(s, 2)) for name, s in record.seconds.items()))
        + "</details>"
    )
