"""The report of one segmentation: its numbers, slices and lesions on one page.

The page does not name the patient. File names, which may contain a name, appear only in the
details, which are not printed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np
from PIL import Image

from leuko.io.provenance import RIMS_ARE, RIMS_LIE
from leuko.io.record import FileRecord, RunRecord
from leuko.io.tissue import COLOURS, Tissue
from leuko.lesions.location import REGION_LABELS, REGIONS
from leuko.lesions.measure import Lesion
from leuko.report.answer import answer, counted
from leuko.report.html import (
    Column,
    Kind,
    drawing,
    facts,
    legend,
    page,
    picture,
    plain,
    saved_with_verdict,
    section,
    shown,
    table,
    text,
)
from leuko.report.pictures import mosaic
from leuko.report.plots import bullseye, volume_histogram
from leuko.report.viewer import RIM_KIND, Pane, lesion_slices

KINDS = {label.number: Kind(label.name, label.colour) for label in REGION_LABELS}
ONE_KIND = {1: Kind("WMH", COLOURS[Tissue.WMH])}
RIMS = {RIM_KIND: Kind("caps and rims (not in the mask)", COLOURS[Tissue.RIM])}
KEY_SLICES = 6
OF_AUTOMATIC_MASKS = ("threshold", "lesion_threshold", "smallest_lesion_mm3", "rims", "exclude")
MOST_ROWS = 500  # of the table; more would make the page large
MOST_REGIONS = 40  # likewise, of an atlas
COLUMNS = (
    Column("id", "No.", 0),
    Column("volume_ml", "Volume, mL", 3),
    Column("slice_number", "Slice", 0),
    Column("region", "Region"),
    Column("side", "Side", is_detail=True),
    Column("lobe", "Lobe"),
    Column("ventricle_mm", "To ventricle, mm", 1, is_detail=True),
    Column("cortex_mm", "To cortex, mm", 1, is_detail=True),
    Column("flair_contrast", "FLAIR contrast", 2, is_detail=True),
    Column("t1_contrast", "T1 contrast", 2, is_detail=True),
    Column("mean_probability", "Probability", 2, is_detail=True),
)


def sheet(record: RunRecord, pane: Pane) -> Image.Image:
    """An overview of slices with the outlines of lesions."""
    return mosaic(
        pane.slices(next(iter(pane.images.values()))),
        pane.slices(pane.kinds),
        {number: kind.colour for number, kind in _kinds(record).items()},
        title=_headline(record),
        marks=pane.marks,
        aspect=pane.pixel_aspect,
        later=[RIM_KIND],
    )


def key_slices(record: RunRecord, pane: Pane) -> Image.Image:
    """The slices that matter most, with outlines: those in doubt, and those with most lesion."""
    kinds = pane.slices(pane.kinds)
    doubtful = [number - 1 for number in record.doubtful_slices or ()]
    counts = np.array([np.count_nonzero(kind) for kind in kinds])
    fullest = [int(k) for k in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]]
    chosen: list[int] = []
    for least_apart in (len(fullest) / 8, 0):  # neighbours look alike
        for k in (*doubtful, *fullest):
            apart = min((abs(k - other) for other in chosen), default=len(kinds))
            if apart > least_apart and len(chosen) < KEY_SLICES:
                chosen.append(k)
    return mosaic(
        pane.slices(next(iter(pane.images.values()))),
        kinds,
        {number: kind.colour for number, kind in _kinds(record).items()},
        title="",
        marks=pane.marks,
        aspect=pane.pixel_aspect,
        chosen=sorted(chosen) or None,
        most=KEY_SLICES,
        columns=KEY_SLICES // 2,
    )


def report(record: RunRecord, lesions: Sequence[Lesion], pane: Pane, sheet_jpeg: bytes) -> str:
    """The report as HTML.

    `sheet_jpeg` is the `sheet` for printing, or empty. Values that are None in the record are left
    out.
    """
    where = lesion_slices(pane)
    placed = [
        {**asdict(lesion), "slice": where[lesion.id], "slice_number": where[lesion.id] + 1}
        for lesion in lesions[:MOST_ROWS]
    ]
    return page(
        title="White matter hyperintensities",
        subtitle=_subtitle(record, pane),
        label=record.label,
        before=[answer(record)],
        panes=[pane],
        kinds=_kinds(record),
        beside=table(COLUMNS, placed, caption=_caption(lesions), with_all=True) if lesions else "",
        verdict=saved_with_verdict(record),
        after=[
            section(
                "Numbers",
                facts(_numbers(record), useless=not record.is_usable),
                _rule(record),
                _convention(record),
                name="numbers",
            ),
            section(
                "Slices",
                picture(sheet_jpeg, "Slices with outlines"),
                legend(_kinds(record)),
                name="sheet",
            )
            if sheet_jpeg
            else "",
            section("Location and size", _places(record, lesions), name="location"),
            section("Regions of the atlas", _atlas(record), name="atlas") if record.atlas else "",
            section("Details", _details(record), name="details"),
        ],
    )


def _kinds(record: RunRecord) -> dict[int, Kind]:
    kinds = dict(KINDS if record.regions else ONE_KIND)
    if record.regions and record.regions.juxtacortical_ml is None:
        kinds.pop(REGIONS.index("juxtacortical"))
    return kinds | RIMS if record.has_rims_apart else kinds


def _headline(record: RunRecord) -> str:
    parts = [f"{counted(record)} {record.volume_ml:.2f} mL"]
    if record.has_rims_apart:
        parts.append(f"caps and rims {record.rims_ml:.2f} mL (pink)")
    return ", ".join([*parts, f"lesions: {record.lesions}", _usability(record)])


def _usability(record: RunRecord) -> str:
    return f"warnings: {record.warnings}" if record.is_usable else "DO NOT USE"


def _subtitle(record: RunRecord, pane: Pane) -> str:
    size = "x".join(str(n) for n in pane.grid.data.shape)
    spacing = "x".join(f"{mm:.3g}" for mm in pane.grid.spacing_mm)
    scans = " and T1" if record.inputs.t1 else " alone"
    return (
        f"FLAIR {size}, {spacing} mm{scans}, {record.inputs.flair.sha256[:12]}; "
        f"model {record.model.name}, Leuko {record.leuko_version}; "
        f"{datetime.now(UTC):%Y-%m-%d}"
    )


def _numbers(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    """The numbers below the viewer: those that the answer does not give."""
    if record.rims_ml is not None:
        yield "Caps and rims", f"{record.rims_ml:.2f} mL", RIMS_LIE[record.rims]
        if record.rims == "include":
            yield "WMH without caps and rims", f"{record.wmh_ml:.2f} mL", ""
        elif record.wmh_and_rims_ml is not None:
            yield "WMH, caps and rims", f"{record.wmh_and_rims_ml:.2f} mL", "together"
    if record.quality:
        low, high = record.quality.interval
        spread = f"{low:.2f} to {high:.2f}; overlap with a reader's mask"
        yield "Expected Dice", f"{record.quality.predicted_dice:.2f}", spread
    regions = record.regions
    if regions:
        yield "Periventricular", f"{regions.periventricular_ml:.2f} mL", ""
        yield "Deep", f"{regions.deep_ml:.2f} mL", ""
        yield "Infratentorial", f"{regions.infratentorial_ml:.2f} mL", ""
        yield "In confluent lesions", f"{regions.confluent_ml:.2f} mL", ""
        if regions.juxtacortical_ml is not None:
            yield "Juxtacortical", f"{regions.juxtacortical_ml:.2f} mL", ""
        if regions.left_ml is not None:
            yield "Left | right", f"{regions.left_ml:.2f} | {regions.right_ml:.2f} mL", ""
    outside = record.outside_brain
    if outside and outside.lesions:
        removed = f"{outside.wmh_ml:.2f} mL, not counted"
        yield "Lesions outside the brain", str(outside.lesions), removed
    excluded = record.excluded_ml
    if excluded:
        taken = f"in an exclusion mask of {excluded.volume_ml:.2f} mL"
        yield "WMH excluded", f"{excluded.wmh_ml:.2f} mL", taken


def _rule(record: RunRecord) -> str:
    regions = record.regions
    if not regions:
        return ""
    hint = f"Region rule {regions.rule} ({regions.rule_text})."
    if record.volume_interval_ml:
        hint += " The 90 % interval was tested on scans of hospitals not used in training."
    return f'<p class="hint">{text(hint)}</p>'


def _convention(record: RunRecord) -> str:
    """How the mask treats caps and rims, and which readers count them."""
    are = (
        "not distinguished from WMH in a given mask"
        if record.inputs.mask
        else RIMS_ARE[record.rims]
    )
    hint = (
        f"Normal caps and rims of the ventricles are {are}. "
        "Volumetric studies of all hyperintensities and Fazekas grade 1 count them; readers of MS "
        "lesions, or of pathological WMH alone, mostly do not."
    )
    return f'<p class="hint">{text(hint)}</p>'


def _caption(lesions: Sequence[Lesion]) -> str:
    if len(lesions) == 1:
        return "One lesion; click its row to show it"
    if len(lesions) > MOST_ROWS:
        return f"The {MOST_ROWS} largest of {len(lesions)} lesions; lesions.tsv lists all"
    return f"{len(lesions)} lesions, largest first; click a row to show it"


def _places(record: RunRecord, lesions: Sequence[Lesion]) -> str:
    """Figures of location and size, with their data as tables for screen readers."""
    parts = []
    by_lobe = record.regions.bullseye if record.regions else None
    if by_lobe:
        plot = bullseye(np.array(by_lobe.ml), by_lobe.shells, by_lobe.sectors)
        caption = (
            "WMH in mL by lobe and by depth, in quarters of the distance from the ventricles "
            "(centre) to the cortex (outside); infratentorial WMH are not shown"
        )
        parts.append(drawing(plot, caption))
    if lesions:
        plot = volume_histogram(
            [lesion.volume_ml for lesion in lesions],
            what="lesion volume, mL",
            counted="lesions",
            smallest_ml=0.001,
        )
        parts.append(drawing(plot, "Lesions by volume", digits=0))
    return f'<div class="places">{"".join(parts)}</div>' if parts else ""


def _atlas(record: RunRecord) -> str:
    """WMH by the regions of the user's atlas that have any, the most first."""
    regions = record.atlas.regions if record.atlas else ()
    found = sorted((r for r in regions if r.wmh_ml), key=lambda region: -region.wmh_ml)
    rows = [
        (
            region.name,
            f"{region.wmh_ml:.3f} mL"
            + (
                f", {region.wmh_percent:.3g} % of {region.region_ml:.1f} mL" if region.index else ""
            ),
        )
        for region in found[:MOST_REGIONS]
    ]
    off = record.template
    exact = (
        " The registration to the template is affine; the mean distance between the surfaces of "
        f"the brains is {off.brain_mm:.1f} mm."
        if off
        else ""
    )
    hit = sum(region.index > 0 for region in found)
    hint = f"{hit} of {len(regions) - 1} regions have WMH; atlas.tsv lists all.{exact}"
    return plain("WMH by region", rows) + f'<p class="hint">{text(hint)}</p>'


def _details(record: RunRecord) -> str:
    seconds = {"total": sum(record.seconds.values()), **record.seconds}
    return (
        "<details><summary>Scans, settings, tissues, seconds</summary>"
        + plain("About this run", ((name, text(value)) for name, value in _about(record)))
        + plain("Seconds by stage", ((name, shown(s, 2)) for name, s in seconds.items()))
        + "</details>"
    )


def _about(record: RunRecord) -> Iterator[tuple[str, object]]:
    for name, scan in vars(record.inputs).items():
        if scan:
            yield name.upper(), scan.series or scan.path
            yield f"{name.upper()}, SHA-256", scan.sha256
    yield "model weights, SHA-256", record.model.weights_sha256
    for name, value in vars(record.settings).items():
        if record.inputs.mask and name in OF_AUTOMATIC_MASKS:
            continue
        shown_as = value.path if isinstance(value, FileRecord) else value
        yield name.replace("_", " "), "none" if shown_as is None else shown_as
    for name, ml in (record.tissue_ml or {}).items():
        yield f"{name}, mL", shown(ml, 1)
    for name, value in (vars(record.alignment) if record.alignment else {}).items():
        if isinstance(value, float):
            yield f"alignment, {name.replace('_', ' ')}", value
    for name, version in record.versions.items():
        yield f"version of {name}", version
