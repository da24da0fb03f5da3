"""The report of a comparison: its numbers, both times side by side, and the change of each lesion.

The page does not name the patient. File names, which may contain a name, appear only in the
details.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime

import numpy as np

from leuko.io.provenance import RIMS_ARE, is_useless
from leuko.longitudinal.changes import STATES, Changes, Time
from leuko.longitudinal.record import ComparisonRecord
from leuko.report.html import Column, Kind, alerts, facts, page, plain, section, shown, table, text
from leuko.report.viewer import HEAD, Pane, lesion_slices
from leuko.volume import Array, Volume

# Okabe and Ito's colours, which colour-blind people tell apart.
KINDS = {
    1: Kind("new", "#d55e00"),
    2: Kind("gained (grown lesions)", "#e69f00"),
    3: Kind("unchanged", "#f0e442"),
    4: Kind("lost (shrunk lesions)", "#56b4e9"),
    5: Kind("resolved", "#0072b2"),
}
MOST_ROWS = 500  # of the table; more would make the page large
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


def change_report(
    record: ComparisonRecord, changes: Changes, times: Sequence[Time], grid: Volume
) -> str:
    """The report as HTML; all arrays are on `grid`."""
    panes = _panes(changes, times, grid)
    where = lesion_slices(replace(panes[0], ids=changes.numbers))
    rows = [
        {**asdict(lesion), "slice": where[lesion.id], "slice_number": where[lesion.id] + 1}
        for lesion in sorted(
            changes.lesions, key=lambda c: (c.state == "stable", STATES.index(c.state), c.id)
        )
    ]
    caption = f"{len(rows)} lesions, changed ones first; click a row to show it"
    return page(
        title="White matter hyperintensities at two times",
        subtitle=_subtitle(record),
        label=record.label,
        before=[
            alerts(record.findings, _checks(record)),
            section(
                "Change",
                facts(_findings(record, changes), useless=is_useless(record.findings)),
            ),
        ],
        panes=panes,
        kinds=KINDS,
        beside=table(COLUMNS, rows[:MOST_ROWS], caption=caption, with_all=True) if rows else "",
        after=[
            section("Details", _details(record), name="details"),
        ],
    )


def _checks(record: ComparisonRecord) -> list[str]:
    """The checks that were done; one that was done at both times is named once."""
    first, second = (f"{name}: " for name in vars(record.inputs))
    found = []
    for check in record.checks:
        name = check.removeprefix(first).removeprefix(second)
        both = {first + name, second + name} <= set(record.checks)
        found.append(f"{name} (both times)" if both else check)
    return list(dict.fromkeys(found))


def _panes(changes: Changes, times: Sequence[Time], grid: Volume) -> list[Pane]:
    """A pane for each time with the lesions of that time, cropped to one box."""
    images = [_in_8_bit(time.flair) for time in times]
    in_view = np.max(images, axis=0) > HEAD
    return [
        Pane(
            title=title,
            grid=grid,
            images={"FLAIR": image},
            ids=np.where(time.mask, changes.numbers, 0),
            kinds=np.where(time.mask, changes.states, 0).astype(np.uint8),
            in_view=in_view | (changes.numbers > 0),
        )
        for title, time, image in zip(("Baseline", "Follow-up"), times, images, strict=True)
    ]


def _in_8_bit(flair: Array) -> Array:
    return np.clip(np.rint(flair), 0, 255).astype(np.uint8)


def _subtitle(record: ComparisonRecord) -> str:
    runs = record.inputs.baseline, record.inputs.followup
    hashes = ", ".join(run.flair.sha256[:12] for run in runs)
    models = ", ".join(dict.fromkeys(run.model.name for run in runs))
    return (
        f"FLAIR {hashes}; model {models}, Leuko {record.versions['leuko']}; "
        f"{datetime.now(UTC):%Y-%m-%d}"
    )


def _findings(record: ComparisonRecord, changes: Changes) -> Iterator[tuple[str, str, str]]:
    yield "Baseline", f"{changes.baseline_ml:.2f} mL", ""
    yield "Follow-up", f"{changes.followup_ml:.2f} mL", ""
    side = "beyond" if changes.is_beyond_floor else "below"
    part = f"{changes.change_percent:+.1f} %; " if changes.baseline_ml else ""
    floor = f"{part}{side} the noise floor of {changes.floor_ml:.2f} mL"
    yield "Change", f"{changes.change_ml:+.2f} mL", floor
    for state, count in changes.counts.items():
        yield (
            f"{state.capitalize()} lesions",
            str(count),
            f"{changes.change_by_state[state]:+.2f} mL",
        )
    runs = record.inputs.baseline, record.inputs.followup
    if all(run.rims == "separate" for run in runs):
        rims_ml = " | ".join(f"{run.rims_ml:.2f}" for run in runs)
        yield "Caps and rims", f"{rims_ml} mL", "baseline | follow-up; not compared"
    moved_mm = record.alignment.moved_mm
    yield "Registration", f"{moved_mm:.1f} mm", "between the scans; each was moved by half of it"


def _details(record: ComparisonRecord) -> str:
    about: dict[str, object] = {}
    for name, run in vars(record.inputs).items():
        about[name] = run.path
        about[f"{name}, FLAIR"] = run.flair.path
        about[f"{name}, FLAIR, SHA-256"] = run.flair.sha256
        about[f"{name}, as segmented, mL"] = run.volume_ml
        about[f"{name}, caps and rims"] = RIMS_ARE[run.rims]
        about[f"{name}, caps and rims, mL"] = shown(run.rims_ml, 2)
        about[f"{name}, threshold"] = run.threshold
    about |= {f"version of {name}": version for name, version in record.versions.items()}
    seconds = {name: shown(s, 2) for name, s in record.seconds.items()}
    return (
        "<details><summary>Scans, settings, seconds</summary>"
        + plain("About this comparison", {name: text(value) for name, value in about.items()})
        + plain("Seconds by stage", seconds)
        + "</details>"
    )
