"""The report of one segmentation: its numbers, its slices and its lesions on one page.

The page names no patient. File names, which may contain a name, appear only in the details, which
are not printed.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from matplotlib.figure import Figure

from leuko.io.provenance import RIMS_ARE, is_useless, read_findings
from leuko.model.calibration import interval_text
from leuko.report.figures import as_svg, bullseye_figure, lesion_histogram, mosaic_figure
from leuko.report.html import (
    Column,
    Kind,
    alerts,
    drawing,
    facts,
    page,
    picture,
    plain,
    section,
    shown,
    table,
    text,
)
from leuko.report.viewer import RIM_KIND, Pane, lesion_slices

Record = Mapping[str, Any]
Lesions = Sequence[Mapping[str, Any]]

# Okabe and Ito's colours, which colour-blind people tell apart.
KINDS = {
    1: Kind("periventricular", "#e69f00"),
    2: Kind("deep", "#56b4e9"),
    3: Kind("infratentorial", "#009e73"),
}
ONE_KIND = {1: Kind("WMH", "#e69f00")}
RIMS = {RIM_KIND: Kind("caps and rims (not in the mask)", "#cc79a7")}
MOST_ROWS = 500  # of the table; more would make the page large
COLUMNS = (
    Column("id", "No.", 0),
    Column("volume_ml", "Volume, mL", 3),
    Column("slice_number", "Slice", 0),
    Column("region", "Region"),
    Column("side", "Side"),
    Column("lobe", "Lobe"),
    Column("ventricle_mm", "To ventricle, mm", 1),
    Column("cortex_mm", "To cortex, mm", 1),
    Column("flair_contrast", "FLAIR contrast", 2),
    Column("t1_contrast", "T1 contrast", 2),
    Column("mean_probability", "Probability", 2),
)


def sheet(record: Record, pane: Pane) -> Figure:
    """An overview of slices with the outlines of lesions."""
    return mosaic_figure(
        pane.slices(next(iter(pane.images.values()))),
        pane.slices(pane.kinds),
        {number: kind.colour for number, kind in _kinds(record).items()},
        title=_headline(record),
        marks=pane.marks,
        aspect=pane.pixel_aspect,
        later=[RIM_KIND],
    )


def report(record: Record, lesions: Lesions, pane: Pane, sheet_jpeg: bytes) -> str:
    """The report as HTML.

    `record` is the content of run.json, `lesions` the rows of lesions.tsv, `sheet_jpeg` the `sheet`
    for printing, or empty. Values that the record lacks are left out.
    """
    where = lesion_slices(pane)
    placed = [
        {**row, "slice": where[row["id"]], "slice_number": where[row["id"]] + 1}
        for row in lesions[:MOST_ROWS]
    ]
    return page(
        title="White matter hyperintensities",
        subtitle=_subtitle(record, pane),
        before=[
            alerts(record),
            section(
                "Findings",
                facts(_findings(record), useless=is_useless(read_findings(record))),
                _rule(record),
                _convention(record),
            ),
        ],
        panes=[pane],
        kinds=_kinds(record),
        verdict={
            "volume_ml": record["volume_ml"],
            "lesions": record["lesions"],
            "flair_sha256": record["inputs"]["flair"]["sha256"],
            "mask_sha256": record["mask_sha256"],
            "model": record["model"]["name"],
            "leuko_version": record["versions"]["leuko"],
        },
        after=[
            section("Slices", picture(sheet_jpeg, "Slices with outlines", "jpeg"), name="sheet")
            if sheet_jpeg
            else "",
            section("Lesions", table(COLUMNS, placed, caption=_caption(lesions)), name="lesions")
            if lesions
            else "",
            section("Location and size", _places(record, lesions)),
            section("Details", _details(record), name="details"),
        ],
    )


def _kinds(record: Record) -> dict[int, Kind]:
    kinds = KINDS if record.get("regions") else ONE_KIND
    return kinds | RIMS if record["rims"] == "separate" else kinds


def _counted(record: Record) -> str:
    return "WMH and rims" if record["rims"] == "include" else "WMH"


def _headline(record: Record) -> str:
    said = [f"{_counted(record)} {record['volume_ml']:.2f} mL"]
    if record["rims"] == "separate":
        said.append(f"caps and rims {record['rims_ml']:.2f} mL (pink)")
    return ", ".join([*said, f"lesions: {record['lesions']}", _usability(record)])


def _usability(record: Record) -> str:
    findings = read_findings(record)
    if is_useless(findings):
        return "DO NOT USE"
    return f"warnings: {sum(finding.level == 'warning' for finding in findings)}"


def _subtitle(record: Record, pane: Pane) -> str:
    size = "x".join(str(n) for n in pane.grid.data.shape)
    spacing = "x".join(f"{mm:.3g}" for mm in pane.grid.spacing_mm)
    scans = " and T1" if "t1" in record["inputs"] else " alone"
    return (
        f"FLAIR {size}, {spacing} mm{scans}, {record['inputs']['flair']['sha256'][:12]}; "
        f"model {record['model']['name']}, Leuko {record['versions']['leuko']}; "
        f"{datetime.now(UTC):%Y-%m-%d}"
    )


def _findings(record: Record) -> Iterator[tuple[str, str, str]]:
    interval = record.get("volume_interval_ml")
    between = f"90 % interval {interval_text(interval)}" if interval else ""
    yield f"Volume of {_counted(record)}", f"{record['volume_ml']:.2f} mL", between
    if record["rims_ml"] is not None:
        rims = f"{record['rims_ml']:.2f} mL"
        yield "Caps and rims", rims, RIMS_ARE[record["rims"]]
        if record["rims"] == "include":
            yield "WMH without caps and rims", f"{record['wmh_ml']:.2f} mL", ""
        else:
            yield "WMH, caps and rims", f"{record['wmh_and_rims_ml']:.2f} mL", "together"
    quality = record.get("quality")
    if quality:
        low, high = quality["interval"]
        spread = f"{low:.2f} to {high:.2f}; overlap with a reader's mask"
        yield "Expected Dice", f"{quality['predicted_dice']:.2f}", spread
    yield "Lesions", str(record["lesions"]), ""
    if record.get("intracranial_ml"):
        whole = f"of {record['intracranial_ml']:.0f} mL intracranial"
        yield "Share of intracranial volume", f"{record['volume_percent_icv']:.2f} %", whole
    regions = record.get("regions")
    if regions:
        for name in ("periventricular", "deep", "infratentorial"):
            yield name.capitalize(), f"{regions[f'{name}_ml']:.2f} mL", ""
        yield "In confluent lesions", f"{regions['confluent_ml']:.2f} mL", ""
        if regions["left_ml"] is not None:
            sides = f"{regions['left_ml']:.2f} | {regions['right_ml']:.2f} mL"
            yield "Left | right", sides, ""
    outside = record.get("outside_brain")
    if outside and outside["lesions"]:
        removed = f"{outside['wmh_ml']:.2f} mL, not counted"
        yield "Lesions outside the brain", str(outside["lesions"]), removed
    excluded = record.get("excluded_ml")
    if excluded:
        taken = f"in an exclusion mask of {excluded['volume_ml']:.2f} mL"
        yield "WMH excluded", f"{excluded['wmh_ml']:.2f} mL", taken


def _rule(record: Record) -> str:
    regions = record.get("regions")
    if not regions:
        return ""
    said = f"Region rule {regions['rule']} ({regions['rule_text']})."
    if record.get("volume_interval_ml"):
        said += " The 90 % interval was tested on scans of hospitals not used in training."
    return f'<p class="hint">{text(said)}</p>'


def _convention(record: Record) -> str:
    """How the mask treats caps and rims, and which readers count them."""
    said = (
        f"Normal caps and rims of the ventricles are {RIMS_ARE[record['rims']]}. "
        "Volumetric studies of all hyperintensities and Fazekas grade 1 count them; readers of MS "
        "lesions, or of pathological WMH alone, mostly do not."
    )
    return f'<p class="hint">{text(said)}</p>'


def _caption(lesions: Lesions) -> str:
    if len(lesions) == 1:
        return "One lesion; click its row to show its slice"
    if len(lesions) > MOST_ROWS:
        return f"The {MOST_ROWS} largest of {len(lesions)} lesions; lesions.tsv lists all"
    return f"{len(lesions)} lesions, largest first; click a row to show its slice"


def _places(record: Record, lesions: Lesions) -> str:
    """Figures of location and size, with their data as tables for screen readers."""
    parts = []
    bullseye = (record.get("regions") or {}).get("bullseye")
    if bullseye:
        figure = bullseye_figure(bullseye["ml"], bullseye["sectors"])
        caption = (
            "WMH in mL by lobe and by depth, in quarters of the distance from the ventricles "
            "(centre) to the cortex (outside); infratentorial WMH are not shown"
        )
        rows = zip(bullseye["shells"], bullseye["ml"], strict=True)
        parts.append(drawing(as_svg(figure), caption, bullseye["sectors"], rows))
    if lesions:
        figure = lesion_histogram([row["volume_ml"] for row in lesions])
        parts.append(drawing(as_svg(figure), "Lesions by volume"))
    return f'<div class="places">{"".join(parts)}</div>' if parts else ""


def _details(record: Record) -> str:
    rows = dict(_about(record))
    total = sum(record["seconds"].values())
    seconds = {"total": total, **record["seconds"]}
    return (
        "<details><summary>Scans, settings, tissues, seconds</summary>"
        + plain("About this run", {name: text(value) for name, value in rows.items()})
        + plain("Seconds by stage", {name: shown(s, 2) for name, s in seconds.items()})
        + "</details>"
    )


def _about(record: Record) -> Iterator[tuple[str, object]]:
    for name, scan in record["inputs"].items():
        yield name.upper(), scan["series"] or scan["path"]
        yield f"{name.upper()}, SHA-256", scan["sha256"]
    yield "model weights, SHA-256", record["model"]["weights_sha256"]
    for name, value in record["settings"].items():
        shown_as = value["path"] if isinstance(value, Mapping) else value
        yield name.replace("_", " "), "none" if shown_as is None else shown_as
    for name, ml in (record.get("tissue_ml") or {}).items():
        yield f"{name}, mL", shown(ml, 1)
    for name, value in (record.get("alignment") or {}).items():
        if isinstance(value, float):
            yield f"alignment, {name.replace('_', ' ')}", value
    for name, version in record["versions"].items():
        yield f"version of {name}", version
