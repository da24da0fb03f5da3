"""The page of a cohort: volumes, failures, and every subject to review, worst first.

It is in the cohort's folder and links the reports there. Each picture is loaded when it comes into
view, so that the page stays usable with thousands of subjects.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

import numpy as np

from leuko.cohort.ratings import Verdict
from leuko.io.provenance import RIMS_ARE, RIMS_LIE
from leuko.io.record import RunRecord
from leuko.report.html import (
    ALERTS,
    REASONS,
    VERDICTS,
    alert,
    asset,
    document,
    drawing,
    facts,
    picture,
    saved_with_verdict,
    section,
    text,
)
from leuko.report.plots import volume_histogram

MOST_CARDS = 2000  # of a page; with more, browsers get slow


@dataclass(frozen=True)
class Entry:
    """A subject that was segmented; its paths are relative to the page."""

    name: str
    record: RunRecord
    report: str  # empty if there is none
    picture: str  # empty if there is none


@dataclass(frozen=True)
class Failure:
    """A subject that failed; `log` is relative to the page."""

    name: str
    reason: str
    log: str  # empty if there is none


def cohort_page(
    entries: Sequence[Entry],
    failures: Sequence[Failure],
    verdicts: Iterable[Verdict],
    heat: bytes = b"",
) -> str:
    """The page as HTML. `verdicts` are those that readers have saved so far; `heat` is the picture
    of the frequency map as JPEG, empty without one."""
    judged = defaultdict(list)
    for verdict in verdicts:
        judged[verdict["id"]].append(verdict)
    shown = sorted(entries, key=concern)[:MOST_CARDS]
    return document(
        title="White matter hyperintensities, a cohort",
        subtitle=f"Scans: {len(entries)} segmented, {len(failures)} failed; "
        f"{datetime.now(UTC):%Y-%m-%d}",
        main=[
            _mixture(entries),
            section("Findings", facts(_findings(entries, judged)), _pictures(entries)),
            section("Where WMH lie", picture(heat, "Slices of the frequency map")) if heat else "",
            _failures(failures),
            _review(shown, len(entries), judged),
        ],
        data={entry.name: saved_with_verdict(entry.record) for entry in shown},
        name="cohort",
        images="'self' file: data:",
    )


def concern(entry: Entry) -> tuple[bool, int, float, str]:
    """A key that sorts the worst first: results not to use, then most warnings, then no expected
    Dice or the lowest."""
    record = entry.record
    dice = record.quality.predicted_dice if record.quality else -1.0
    return record.is_usable, -record.warnings, dice, entry.name


def _findings(
    entries: Sequence[Entry], judged: Mapping[str, Sequence[Verdict]]
) -> Iterator[tuple[str, str, str]]:
    if not entries:
        return
    usable = [entry for entry in entries if entry.record.is_usable]
    if usable:
        volumes = [entry.record.volume_ml for entry in usable]
        low, median, high = np.percentile(volumes, [25, 50, 75])
        spread = f"quartiles {low:.2f}, {high:.2f}; range {min(volumes):.2f} to {max(volumes):.2f}"
        yield "Volume of WMH", f"{median:.2f} mL", f"median; {spread}"
        records = [entry.record for entry in usable]
        rims = [ml for record in records if (ml := record.rims_ml) is not None]
        if rims:
            where = {RIMS_LIE[record.rims] for record in records if record.rims_ml is not None}
            note = f"median; {where.pop()}" if len(where) == 1 else "median"
            yield "Caps and rims", f"{np.median(rims):.2f} mL", note
        parts = [p for entry in usable if (p := entry.record.volume_percent_icv) is not None]
        if parts:
            yield "Share of intracranial volume", f"{np.median(parts):.2f} %", "median"
        yield "Lesions", f"{np.median([entry.record.lesions for entry in usable]):.0f}", "median"
    warned = sum(entry.record.warnings > 0 for entry in entries)
    yield "With warnings", str(warned), f"of {len(entries)}"
    if len(usable) < len(entries):
        useless = str(len(entries) - len(usable))
        yield "Not to be used", useless, f"of {len(entries)}; not counted in the values above"
    current = [v for said in judged.values() for v in said if v["current"] == "yes"]
    if current:
        counts = Counter(verdict["verdict"] for verdict in current)
        told = ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name])
        yield "Readers' verdicts", str(len(current)), told


def _convention(entry: Entry) -> str:
    """How the mask treats caps and rims, in words."""
    return RIMS_ARE[entry.record.rims]


def _mixture(entries: Sequence[Entry]) -> str:
    """A warning if the masks do not all treat caps and rims alike."""
    counts = Counter(
        _convention(entry) for entry in entries if entry.record.mask_origin != "corrected"
    )
    if len(counts) < 2:
        return ""
    found = ", ".join(f"{text(where)} ({count})" for where, count in counts.most_common())
    said = (
        f"Caps and rims of the ventricles are treated differently (number of scans): {found}. "
        "Their volumes and lesions cannot be compared; segment all with the same model and --rims."
    )
    return alert([said], "Different conventions for caps and rims", "", name="warn")


def _pictures(entries: Sequence[Entry]) -> str:
    volumes = [entry.record.volume_ml for entry in entries if entry.record.is_usable]
    if not volumes:
        return ""
    plot = volume_histogram(volumes, what="WMH volume, mL", counted="scans", smallest_ml=0.1)
    return f'<div class="places">{drawing(plot, "Scans by volume", digits=0)}</div>'


def _failures(failures: Sequence[Failure]) -> str:
    if not failures:
        return '<p class="fine"><strong>No failures</strong> among the scans that were started.</p>'
    items = [
        f"<strong>{text(failure.name)}</strong> {text(failure.reason)}{_log(failure)}"
        for failure in failures
    ]
    return alert(items, "Failed: 1", "Failed: {}", name="warn")


def _log(failure: Failure) -> str:
    whose = f'<span class="unseen"> of {text(failure.name)}</span>'
    return f' (<a href="{quote(failure.log)}">log{whose}</a>)' if failure.log else ""


def _review(shown: Sequence[Entry], total: int, judged: Mapping[str, Sequence[Verdict]]) -> str:
    if not shown:
        return ""
    rest = f"Shown are the {len(shown)} worst; wmh.tsv lists all." if len(shown) < total else ""
    cards = "".join(_card(k, entry, judged[entry.name]) for k, entry in enumerate(shown))
    return (
        asset("review.html")
        .replace("@@REASONS@@", "".join(f"<option>{text(reason)}</option>" for reason in REASONS))
        .replace("@@REST@@", rest)
        .replace("@@CARDS@@", cards)
    )


def _card(number: int, entry: Entry, said: Sequence[Verdict]) -> str:
    name = text(entry.name)
    link = f"<a{_to_report(entry)}>{name}</a>" if entry.report else name
    found = "".join(
        f'<li class="{ALERTS[finding.level][2]}">{finding.level}: {text(finding.text)}</li>'
        for finding in entry.record.findings
    )
    verdicts = "; ".join(map(_said, said))
    serious = sum(finding.level != "note" for finding in entry.record.findings)
    judged = any(verdict["current"] == "yes" for verdict in said)
    choices = "".join(
        f'<label><input type="radio" name="verdict{number}" value="{verdict}"> {verdict}</label>'
        for verdict in VERDICTS
    )
    return (
        f'<li class="card{"" if entry.record.is_usable else " useless"}" data-name="{name}" '
        f'data-volume="{entry.record.volume_ml:.4f}" data-warnings="{serious}" '
        f'data-judged="{int(judged)}">'
        f"<h3>{link}</h3>{_look(entry)}"
        f"<p>{text('; '.join(_numbers(entry.record)))}</p>"
        f"{found and f'<ul>{found}</ul>'}"
        f"{verdicts and f'<p class=said>{text(verdicts)}</p>'}"
        f'<fieldset><legend class="unseen">Verdict on {name}</legend>{choices}</fieldset></li>'
    )


def _look(entry: Entry) -> str:
    """The picture of a card, a link to the report."""
    if not entry.picture:
        return "<p>no picture</p>"
    image = (
        f'<img loading="lazy" decoding="async" src="{quote(entry.picture)}" '
        f'alt="Slices of {text(entry.name)}">'
    )
    link = f'{_to_report(entry)} tabindex="-1"' if entry.report else ""
    return f'<a class="look"{link}>{image}</a>'


def _to_report(entry: Entry) -> str:
    path = quote(entry.report)
    return f' href="{path}" data-report="{path}"'


def _numbers(record: RunRecord) -> Iterator[str]:
    volume = f"{record.volume_ml:.2f} mL"
    if record.volume_interval_ml:
        low, high = record.volume_interval_ml
        volume += f" ({low:.2g} to {high:.2g})"
    yield f"{volume}, lesions: {record.lesions}"
    if record.mask_origin != "automatic":
        yield f"{record.mask_origin} mask"
    if record.rims_ml is not None:
        yield f"caps and rims {record.rims_ml:.2f} mL"
    if record.quality:
        yield f"expected Dice {record.quality.predicted_dice:.2f}"


def _said(verdict: Verdict) -> str:
    whose = ", ".join(verdict[key] for key in ("rater", "rated") if verdict[key])
    why = ": ".join(verdict[key] for key in ("verdict", "reasons") if verdict[key])
    older = ", on an older mask" if verdict["current"] == "no" else ""
    return f"{why} ({whose}{older})"
