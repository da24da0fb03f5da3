"""The HTML that all reports share: one file with its style and script inside.

A page consists of sections, of panes with slices, and of a table whose rows lead to a slice:

    page(title="WMH report", subtitle="...", before=[alerts(findings, checks)],
         panes=[baseline, followup], kinds={1: Kind("new", "#d55e00")},
         after=[table(columns, rows, caption="Lesions")])

A page without panes is a `document`. `text` escapes text from outside, such as file names.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from leuko.io.provenance import Finding, Level
from leuko.io.record import RunRecord
from leuko.report.plots import Plot
from leuko.report.viewer import Pane, encoded

# By level, most serious first: heading for one finding, for several, and class of the section.
ALERTS: dict[Level, tuple[str, str, str]] = {
    "do not use": ("Do not use this result", "Do not use this result", "stop"),
    "warning": ("Warning", "{} warnings", "warn"),
    "note": ("Note", "{} notes", "note"),
}

# A rater's choices, as in ENIGMA (https://enigma.ini.usc.edu), and the columns of the saved CSV.
VERDICTS = ("PASS", "FAIL", "flag")
REASONS = (
    "registration issue", "missed deep", "missed periventricular", "missed both",
    "over-estimation", "under-estimation", "WML outside white matter",
)  # fmt: skip
SAVED = (
    "subject", "verdict", "reasons", "note", "rater", "rated", "volume_ml", "lesions",
    "flair_sha256", "mask_sha256", "model", "leuko_version",
)  # fmt: skip

# The page loads nothing, and runs only its own script: a text from outside that became HTML by
# mistake could not do any harm.
POLICY = (
    "default-src 'none'; img-src {images}; style-src {style}; script-src {script}; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Kind:
    """A kind of voxel: its name in the legend and its colour."""

    name: str
    colour: str


@dataclass(frozen=True)
class Column:
    """A column of a table: the key of its value, its title and its number of decimals."""

    key: str
    title: str
    digits: int | None = None  # None: the value is a text
    is_detail: bool = False  # shown only with all columns


def page(
    *,
    title: str,
    subtitle: str,
    before: Iterable[str],
    panes: Sequence[Pane],
    kinds: Mapping[int, Kind],
    after: Iterable[str],
    beside: str = "",
    label: str | None = None,
    verdict: Mapping[str, Any] | None = None,
) -> str:
    """The HTML of a report: sections before and after the viewer of the panes.

    `beside` is a table beside the viewer, `label` names the scan, `verdict` holds the columns that
    are saved with a reader's verdict; None asks for no verdict.
    """
    data = {
        "panes": encoded(panes),
        "kinds": {number: {"name": k.name, "colour": k.colour} for number, k in kinds.items()},
        "verdict": verdict,
    }
    asked = [_verdict(label or "")] if verdict is not None else []
    return document(
        title=title,
        subtitle=subtitle,
        label=label,
        main=[asset("neighbours.html"), *before, _viewer(panes, kinds, beside), *asked, *after],
        data=data,
        name="report",
    )


def document(
    *,
    title: str,
    subtitle: str,
    main: Iterable[str],
    data: Mapping[str, Any],
    name: str = "",
    label: str | None = None,
    images: str = "data:",
) -> str:
    """The HTML of a page; `name`.css and `name`.js in `assets/` are its own style and script.

    `label` stands in its title, in its header and on every printed page. `images` are the sources
    that its policy allows for images.
    """
    style = asset("common.css") + (asset(f"{name}.css") if name else "")
    style += f"@page {{ @top-right {{ content: {_css_string(label or title)} }} }}"
    script = asset("common.js") + (asset(f"{name}.js") if name else "")
    parts = {
        "POLICY": POLICY.format(images=images, style=_source(style), script=_source(script)),
        "WINDOW": text(f"{label}: {title}" if label else title),
        "TITLE": text(title),
        "LABEL": f' <span class="label">{text(label)}</span>' if label else "",
        "SUBTITLE": text(subtitle),
        "STYLE": style,
        "MAIN": "\n".join(main),
        "DATA": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        "SCRIPT": script,
    }
    html = asset("page.html")
    pieces = html.split("@@")  # texts and names of parts alternate
    return "".join(parts[piece] if k % 2 else piece for k, piece in enumerate(pieces))


def _source(content: str) -> str:
    """A style or script in the page, as its policy names it: by its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _css_string(value: str) -> str:
    """The value as a string of CSS; all but ASCII letters and digits are escaped."""
    escaped = (c if c.isascii() and c.isalnum() else rf"\{ord(c):x} " for c in value)
    return f'"{"".join(escaped)}"'


def text(value: object) -> str:
    """The value as text, escaped for HTML."""
    return escape(str(value))


def section(title: str, *content: str, name: str = "") -> str:
    """A section under a heading; empty if all its content is empty."""
    inside = "\n".join(part for part in content if part)
    return f'<section class="{name}"><h2>{text(title)}</h2>\n{inside}</section>' if inside else ""


def alerts(findings: Sequence[Finding], checks: Sequence[str]) -> str:
    """The findings of a run, most serious first; if there are no warnings, also the checks that
    were done."""
    parts = []
    if not any(finding.level != "note" for finding in findings):
        parts.append(_all_clear(checks))
    for level, (one, many, name) in ALERTS.items():
        found = [text(finding.text) for finding in findings if finding.level == level]
        parts += [alert(found, one, many, name=name)] if found else []
    return "\n".join(parts)


def alert(items: Sequence[str], one: str, many: str, *, name: str) -> str:
    """A list of findings, given as HTML, under a heading for one or for several."""
    listed = "".join(f"<li>{item}</li>" for item in items)
    heading = one if len(items) == 1 else many.format(len(items))
    return f'<section class="alert {name}"><h2>{heading}</h2><ul>{listed}</ul></section>'


def _all_clear(checks: Sequence[str]) -> str:
    return f'<p class="fine"><strong>No warnings.</strong> {what_was_checked(checks)}</p>'


def what_was_checked(checks: Sequence[str]) -> str:
    """The checks that were done, as a sentence of HTML."""
    return text(f"Checked: {', '.join(checks)}.") if checks else "No automatic checks were done."


def saved_with_verdict(record: RunRecord) -> dict[str, Any]:
    """The columns that identify a result in a saved verdict."""
    return {
        "volume_ml": record.volume_ml,
        "lesions": record.lesions,
        "flair_sha256": record.inputs.flair.sha256,
        "mask_sha256": record.mask_sha256,
        "model": record.model.name,
        "leuko_version": record.leuko_version,
    }


def facts(rows: Iterable[tuple[str, str, str]], *, useless: bool = False) -> str:
    """Key numbers: name, value and a note in small print; if `useless`, grey and struck through."""
    items = "".join(
        f"<div><dt>{text(name)}</dt><dd><b>{text(value)}</b> <span>{text(note)}</span></dd></div>"
        for name, value, note in rows
    )
    name = "facts useless" if useless else "facts"
    return f'<dl class="{name}">{items}</dl>' if items else ""


def table(
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Any]],
    *,
    caption: str,
    name: str = "",
    with_all: bool = False,
) -> str:
    """A sortable table; a row with `slice` (from 0) and `id` leads to its slice.

    `with_all` adds a switch that shows all columns.
    """
    head = "".join(
        f'<th scope="col" class="{_class(c)}"><button type="button">{text(c.title)}</button></th>'
        for c in columns
    )
    body = "".join(
        f"<tr{_place(row)}>{''.join(_cell(c, row) for c in columns)}</tr>" for row in rows
    )
    switch = (
        '<label class="switch"><input type="checkbox" class="all-columns"> all columns</label>'
        if with_all
        else ""
    )
    return (
        f'{switch}<div class="wide" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table class="sortable {name}"><caption>{text(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def plain(caption: str, rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and values; the values are HTML."""
    body = "".join(f'<tr><th scope="row">{text(k)}</th><td>{v}</td></tr>' for k, v in rows)
    return f'<table class="plain"><caption>{text(caption)}</caption><tbody>{body}</tbody></table>'


def picture(jpeg: bytes, alt: str) -> str:
    """An image embedded in the page."""
    data = base64.b64encode(jpeg).decode()
    return f'<img alt="{text(alt)}" src="data:image/jpeg;base64,{data}">'


def drawing(plot: Plot, caption: str, *, digits: int = 2) -> str:
    """A plot under its caption, and its data as a table for screen readers."""
    titles = "".join(f'<th scope="col">{text(name)}</th>' for name in plot.head)
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th>'
        f"{''.join(f'<td>{shown(value, digits)}</td>' for value in values)}</tr>"
        for name, values in plot.rows
    )
    listed = (
        f'<div class="unseen"><table><caption>{text(caption)}</caption><thead><tr><td></td>{titles}'
        f"</tr></thead><tbody>{body}</tbody></table></div>"
    )
    return f"<figure><figcaption>{text(caption)}</figcaption>{plot.svg}{listed}</figure>"


def shown(value: Any, digits: int) -> str:
    """A number with that many decimals; n/a if it is unknown."""
    if value is None or value != value:  # noqa: PLR0124, nan is not itself
        return "n/a"
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no minus before a zero


def _place(row: Mapping[str, Any]) -> str:
    return f' data-slice="{int(row["slice"])}" data-id="{int(row["id"])}"' if "slice" in row else ""


def _cell(column: Column, row: Mapping[str, Any]) -> str:
    value = row.get(column.key)
    if column.digits is None:
        content = text("n/a" if value is None else value)
    else:
        content = shown(value, column.digits)
    if column.key == "id" and "slice" in row:
        content = f'<button type="button" class="go">{content}</button>'
    return f'<td class="{_class(column)}">{content}</td>'


def _class(column: Column) -> str:
    kind = "words" if column.digits is None else "number"
    return f"{kind} detail" if column.is_detail else kind


def _viewer(panes: Sequence[Pane], kinds: Mapping[int, Kind], beside: str) -> str:
    names = list(dict.fromkeys(name for pane in panes for name in pane.images))
    scans = {"both": "both"} | {name: name for name in names} if len(names) > 1 else {}
    has_three_planes = len(panes) == 1 and panes[0].has_three_planes
    planes = {"one": "slices", "three": "three planes"} if has_three_planes else {}
    has_probability = any(pane.probability is not None for pane in panes)
    heat = '<label><input type="radio" name="overlay" value="probability"> probability</label>'
    return (
        asset("viewer.html")
        .replace("@@LIST@@", beside)
        .replace("@@SCANS@@", _choice("Scans", "scan", scans))
        .replace("@@PLANES@@", _choice("View", "planes", planes))
        .replace("@@PROBABILITY@@", heat if has_probability else "")
        .replace("@@LEGEND@@", legend(kinds))
    )


def legend(kinds: Mapping[int, Kind]) -> str:
    """The colours of the kinds."""
    items = "".join(
        f'<li><svg aria-hidden="true"><rect width="100%" height="100%" fill="{text(kind.colour)}"/>'
        f"</svg>{text(kind.name)}</li>"
        for kind in kinds.values()
    )
    return f'<ul class="legend">{items}</ul>'


def _choice(title: str, name: str, values: Mapping[str, str]) -> str:
    """Radio buttons, the first one checked; empty without values."""
    labels = "".join(
        f'<label><input type="radio" name="{name}" value="{text(value)}"'
        f"{'' if k else ' checked'}> {text(said)}</label>"
        for k, (value, said) in enumerate(values.items())
    )
    return f"<fieldset><legend>{text(title)}</legend>{labels}</fieldset>" if values else ""


def _verdict(subject: str) -> str:
    reasons = "".join(
        f'<label><input type="checkbox" name="reason" value="{text(reason)}"> {text(reason)}'
        "</label>\n"
        for reason in REASONS
    )
    return (
        asset("verdict.html")
        .replace("@@REASONS@@\n", reasons)
        .replace("@@SUBJECT@@", text(subject))
    )


def asset(name: str) -> str:
    """The text of a file in `assets/`."""
    return files("leuko.report").joinpath("assets", name).read_text(encoding="utf-8")
