"""The page of a cohort: volumes, failures, and every subject to review, worst first.

It lies in the cohort's folder, links the reports there and loads each picture only when it comes
into view, so that the page stays usable with thousands of subjects.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import numpy as np

from leuko.cohort.ratings import Verdict
from leuko.io.provenance import RIMS_ARE, Finding
from leuko.report.html import (
    ALERTS,
    POLICY,
    REASONS,
    VERDICTS,
    alert,
    asset,
    document,
    drawing,
    facts,
    section,
    text,
)

MOST_CARDS = 2000  # of a page; with more, browsers get slow
# Columns that are saved with a verdict, besides the reader's entries.
KEPT = ("volume_ml", "lesions", "flair_sha256", "mask_sha256", "model", "leuko_version")


@dataclass(frozen=True)
class Entry:
    """A subject that was segmented; its paths are relative to the page."""

    name: str
    row: Mapping[str, Any]  # of the cohort's table
    findings: Sequence[Finding]
    report: str  # empty if there is none
    picture: str  # empty if there is none

    @property
    def is_usable(self) -> bool:
        """Whether no check found that the result should not be used."""
        return bool(self.row["do_not_use"] == "no")


@dataclass(frozen=True)
class Failure:
    """A subject that failed; `log` is relative to the page."""

    name: str
    reason: str
    log: str  # empty if there is none


def cohort_page(
    entries: Sequence[Entry], failures: Sequence[Failure], verdicts: Iterable[Verdict]
) -> str:
    """The page as HTML. `verdicts` are those that readers have saved so far."""
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
            _failures(failures),
            _review(shown, len(entries), judged),
        ],
        data={entry.name: {key: _plain(entry.row[key]) for key in KEPT} for entry in shown},
        name="cohort",
        policy=POLICY.replace("img-src", "img-src 'self' file:"),
    )


def concern(entry: Entry) -> tuple[bool, int, float, str]:
    """A key that sorts the worst first: results not to use, then most warnings, then no expected
    Dice or the lowest."""
    dice = entry.row["expected_dice"]
    return entry.is_usable, -entry.row["warnings"], -1.0 if math.isnan(dice) else dice, entry.name


def _findings(
    entries: Sequence[Entry], judged: Mapping[str, Sequence[Verdict]]
) -> Iterator[tuple[str, str, str]]:
    if not entries:
        return
    usable = [entry for entry in entries if entry.is_usable]
    if usable:
        volumes = [entry.row["volume_ml"] for entry in usable]
        low, median, high = np.percentile(volumes, [25, 50, 75])
        spread = f"quartiles {low:.2f}, {high:.2f}; range {min(volumes):.2f} to {max(volumes):.2f}"
        yield "Volume of WMH", f"{median:.2f} mL", f"median; {spread}"
        rims = [r for e in usable if not math.isnan(r := e.row["rims_ml"])]
        if rims:
            where = set(map(_convention, usable))
            note = f"median; {where.pop()}" if len(where) == 1 else "median"
            yield "Caps and rims", f"{np.median(rims):.2f} mL", note
        parts = [p for e in usable if not math.isnan(p := e.row["volume_percent_icv"])]
        if parts:
            yield "Share of intracranial volume", f"{np.median(parts):.2f} %", "median"
        yield "Lesions", f"{np.median([entry.row['lesions'] for entry in usable]):.0f}", "median"
    warned = sum(entry.row["warnings"] > 0 for entry in entries)
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
    return RIMS_ARE.get(entry.row["rims"], RIMS_ARE[None])


def _mixture(entries: Sequence[Entry]) -> str:
    """A warning if the masks do not all treat caps and rims alike."""
    counts = Counter(map(_convention, entries))
    if len(counts) < 2:
        return ""
    found = ", ".join(f"{text(where)} ({count})" for where, count in counts.most_common())
    said = (
        f"Caps and rims of the ventricles are treated differently (number of scans): {found}. "
        "Their volumes and lesions cannot be compared; segment all with the same model and --rims."
    )
    return alert([said], "Different conventions for caps and rims", "", name="warn")


def _pictures(entries: Sequence[Entry]) -> str:
    from leuko.report.figures import as_svg, cohort_histogram

    volumes = [entry.row["volume_ml"] for entry in entries if entry.is_usable]
    if not volumes:
        return ""
    figure, bars = cohort_histogram(volumes)
    rows = [(span, [count]) for span, count in bars]
    histogram = drawing(as_svg(figure), "Scans by volume", ["scans"], rows, digits=0)
    return f'<div class="places">{histogram}</div>'


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
    link = f'<a href="{quote(entry.report)}">{name}</a>' if entry.report else name
    found = "".join(
        f'<li class="{ALERTS[finding.level][2]}">{finding.level}: {text(finding.text)}</li>'
        for finding in entry.findings
    )
    verdicts = "; ".join(map(_said, said))
    serious = sum(finding.level != "note" for finding in entry.findings)
    judged = any(verdict["current"] == "yes" for verdict in said)
    choices = "".join(
        f'<label><input type="radio" name="verdict{number}" value="{verdict}"> {verdict}</label>'
        for verdict in VERDICTS
    )
    return (
        f'<li class="card{"" if entry.is_usable else " useless"}" data-name="{name}" '
        f'data-volume="{entry.row["volume_ml"]:.4f}" data-warnings="{serious}" '
        f'data-judged="{int(judged)}">'
        f"<h3>{link}</h3>{_look(entry)}"
        f"<p>{text('; '.join(_numbers(entry.row)))}</p>"
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
    link = f' href="{quote(entry.report)}" tabindex="-1"' if entry.report else ""
    return f'<a class="look"{link}>{image}</a>'


def _numbers(row: Mapping[str, Any]) -> Iterator[str]:
    volume = f"{row['volume_ml']:.2f} mL"
    if not math.isnan(row["volume_low_ml"]):
        volume += f" ({row['volume_low_ml']:.2g} to {row['volume_high_ml']:.2g})"
    yield f"{volume}, lesions: {row['lesions']}"
    if not math.isnan(row["rims_ml"]):
        yield f"caps and rims {row['rims_ml']:.2f} mL"
    if not math.isnan(row["expected_dice"]):
        yield f"expected Dice {row['expected_dice']:.2f}"


def _said(verdict: Verdict) -> str:
    whose = ", ".join(verdict[key] for key in ("rater", "rated") if verdict[key])
    why = ": ".join(verdict[key] for key in ("verdict", "reasons") if verdict[key])
    older = ", on an older mask" if verdict["current"] == "no" else ""
    return f"{why} ({whose}{older})"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
