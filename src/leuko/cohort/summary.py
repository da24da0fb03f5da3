"""The record of a run as one row of a cohort's table, and the meaning of the columns.

Rows of results contain no paths and no times, so the same scans always give the same row.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from leuko.io.outputs import unquoted
from leuko.io.provenance import RIMS_ARE
from leuko.io.record import RegionsRecord, RunRecord
from leuko.io.tissue import CLASSES_WITHOUT_RIM
from leuko.lesions.location import REGIONS, RULES, SECTORS

SIDES = ("left", "right")
ML = "mL"
UNKNOWN = float("nan")
AUTOMATIC = "n/a for given and corrected masks"
# Values of the columns that hold one of a few words.
LEVELS: dict[str, Mapping[Any, str]] = {
    "status": {
        "segmented": "The scan was segmented",
        "failed": "The scan could not be segmented; the column reason says why",
    },
    "mask": {
        "automatic": "Leuko's mask",
        "given": "A mask of a reader or of another tool",
        "corrected": "Leuko's mask or a given one, corrected by a reader",
    },
    "do_not_use": {"yes": "A check found a reason not to use the result", "no": "No check did"},
    "verdict": {
        "PASS": "All readers of this mask passed it",
        "FAIL": "All readers of this mask failed it",
        "flag": "All readers of this mask flagged it",
        "disagree": "The readers gave different verdicts",
    },
    "rims": RIMS_ARE,
    "rule": RULES,
}


def row(record: RunRecord) -> dict[str, Any]:
    """The values of a record by the keys of `COLUMNS`; nan for unknown values."""
    found = dict(_values(record))
    return {name: found.get(name, UNKNOWN) for name in COLUMNS}


def failed_row(reason: str) -> dict[str, Any]:
    """The row of a scan that could not be segmented; everything but the reason is unknown."""
    told = {"status": "failed", "reason": unquoted(reason)}
    return dict.fromkeys(COLUMNS, UNKNOWN) | told


def judged(row: Mapping[str, Any], verdicts: Iterable[str]) -> dict[str, Any]:
    """A row with the readers' verdicts on its mask."""
    found = list(verdicts)
    told = found[0] if len(set(found)) == 1 else "disagree"
    return {**row, "raters": len(found), "verdict": told if found else UNKNOWN}


def dictionary() -> dict[str, dict[str, Any]]:
    """The columns for a BIDS sidecar: a description of each, its unit and its levels if any."""
    return {
        name: {"Description": text}
        | ({"Units": unit} if unit else {})
        | ({"Levels": {str(k): v for k, v in LEVELS[name].items() if k}} if name in LEVELS else {})
        for name, (text, unit) in COLUMNS.items()
    }


def _values(record: RunRecord) -> Iterator[tuple[str, Any]]:
    settings, model, scans = record.settings, record.model, record.inputs
    yield "status", "segmented"
    yield "volume_ml", record.volume_ml
    yield from _ends("volume", record.volume_interval_ml, "_ml")
    yield "wmh_ml", _number(record.wmh_ml)
    yield "rims_ml", _number(record.rims_ml)
    yield "wmh_and_rims_ml", _number(record.wmh_and_rims_ml)
    yield "volume_percent_icv", _number(record.volume_percent_icv)
    yield "intracranial_ml", _number(record.intracranial_ml)
    yield "lesions", record.lesions
    if record.quality:
        yield "expected_dice", record.quality.predicted_dice
        yield from _ends("expected_dice", record.quality.interval)
    if record.regions:
        yield from _regions(record.regions)
    for tissue, ml in (record.tissue_ml or {}).items():
        yield f"{tissue}_tissue_ml", _number(ml)
    if record.excluded_ml:
        yield "excluded_ml", record.excluded_ml.volume_ml
        yield "excluded_wmh_ml", record.excluded_ml.wmh_ml
    if record.alignment:
        yield "t1_moved_mm", record.alignment.moved_mm
    codes = dict.fromkeys(finding.code for finding in record.findings)
    serious = {finding.code for finding in record.findings if finding.level != "note"}
    yield "do_not_use", "no" if record.is_usable else "yes"
    yield "warnings", record.warnings
    yield "warning_codes", ",".join(name for name in codes if name in serious) or "n/a"
    yield "finding_codes", ",".join(codes) or "n/a"
    if record.outside_brain:
        yield "outside_brain_ml", record.outside_brain.wmh_ml
    yield "slice_thickness_mm", _number(scans.flair.slice_mm)
    yield "mask", record.mask_origin
    yield "rims", record.rims or "n/a"
    yield "rule", settings.rule
    if record.mask_origin == "automatic":
        yield "threshold", settings.threshold
        yield "lesion_threshold", settings.lesion_threshold
        yield "smallest_lesion_mm3", settings.smallest_lesion_mm3
    yield "model", model.name
    yield "leuko_version", record.leuko_version
    yield "weights_sha256", model.weights_sha256
    yield "mask_sha256", record.mask_sha256
    yield "flair_sha256", scans.flair.sha256
    yield "t1_sha256", scans.t1.sha256 if scans.t1 else "n/a"


def _regions(regions: RegionsRecord) -> Iterator[tuple[str, float]]:
    yield "periventricular_ml", regions.periventricular_ml
    yield "deep_ml", regions.deep_ml
    yield "infratentorial_ml", regions.infratentorial_ml
    yield "juxtacortical_ml", _number(regions.juxtacortical_ml)
    yield "confluent_ml", regions.confluent_ml
    yield "left_ml", _number(regions.left_ml)
    yield "right_ml", _number(regions.right_ml)
    if regions.bullseye:
        for k, sector in enumerate(regions.bullseye.sectors):
            yield _sector(sector), sum(shell[k] for shell in regions.bullseye.ml)


def _ends(name: str, interval: Sequence[float] | None, unit: str = "") -> Iterator[tuple[str, Any]]:
    if interval:
        yield from zip((f"{name}_low{unit}", f"{name}_high{unit}"), interval, strict=True)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _sector(name: str) -> str:
    return f"{name.replace(' ', '_')}_ml"


def _columns() -> Iterator[tuple[str, tuple[str, str]]]:
    yield "status", ("Whether the scan was segmented", "")
    yield "reason", ("Why it could not be segmented", "")
    yield (
        "volume_ml",
        ("Volume of the mask: white matter hyperintensities (WMH), by the convention `rims`", ML),
    )
    for end in ("low", "high"):
        yield f"volume_{end}_ml", (f"The {end} limit of the 90 % interval of the volume", ML)
    wmh_ml = "Volume of WMH without the normal caps and rims of the ventricles"
    yield "wmh_ml", (f"{wmh_ml}; {AUTOMATIC}", ML)
    rims_ml = "Volume of caps and rims; for a given or corrected mask, what the model finds outside"
    yield "rims_ml", (f"{rims_ml} it; n/a if left out or unknown to the model", ML)
    yield "wmh_and_rims_ml", (f"Volume of WMH, caps and rims together; {AUTOMATIC}", ML)
    yield "volume_percent_icv", ("Volume of the mask in % of the intracranial volume", "%")
    yield "intracranial_ml", ("Intracranial volume: brain and CSF", ML)
    yield "lesions", ("Number of lesions, 26-connected", "")
    yield "expected_dice", ("Expected overlap with a reader's mask (Dice)", "")
    for end in ("low", "high"):
        yield (
            f"expected_dice_{end}",
            (f"The {end} limit of the 90 % interval of the expected Dice", ""),
        )
    places = {name: f"Volume of {name} WMH, by the rule in `rule`" for name in REGIONS[1:]}
    places["juxtacortical"] += "; n/a with rules that have no such region"
    places["confluent"] = "Volume of lesions from within 2 mm of the ventricles to beyond 10 mm"
    places |= {side: f"Volume of WMH in the {side} hemisphere" for side in SIDES}
    for name, text in places.items():
        yield f"{name}_ml", (text, ML)
    for sector in SECTORS:
        yield _sector(sector), (f"Volume of WMH, {sector}, without infratentorial WMH", ML)
    for tissue in CLASSES_WITHOUT_RIM[1:-1]:  # the last is WMH itself
        yield f"{tissue}_tissue_ml", (f"Volume of the tissue class {tissue}", ML)
    yield "excluded_ml", ("Volume of the exclusion mask", ML)
    yield "excluded_wmh_ml", ("Volume of WMH removed by the exclusion mask", ML)
    yield "t1_moved_mm", ("Mean displacement of the T1 by its registration to the FLAIR", "mm")
    yield "do_not_use", ("Whether a check found that the result should not be used: yes or no", "")
    yield "warnings", ("Number of warnings; their texts are in the report and in the record", "")
    codes = "of the checks that found something, separated by commas"
    yield "warning_codes", (f"Codes {codes}, without notes", "")
    yield "finding_codes", (f"Codes {codes}, notes included", "")
    yield "outside_brain_ml", ("Volume of lesions removed because they lie outside the brain", ML)
    rims = "Caps and rims: separate (not in the mask), include (in it), exclude (left out); n/a if "
    yield "slice_thickness_mm", ("Distance between slices of the FLAIR", "mm")
    yield "mask", ("Who made the mask: automatic, given or corrected", "")
    yield "rims", (rims + "the model does not distinguish them from WMH or the mask was given", "")
    yield "verdict", ("Verdict of the readers of this mask", "")
    yield "raters", ("Number of verdicts on this mask, one for each reader", "")
    yield "rule", ("Rule for periventricular WMH, see docs/methods.md", "")
    yield "threshold", (f"Smallest probability of a voxel in the mask; {AUTOMATIC}", "")
    kept = "A lesion is kept if its highest probability reaches this value"
    yield "lesion_threshold", (f"{kept}; {AUTOMATIC}", "")
    smallest = "Volume of the smallest lesion that is kept"
    yield "smallest_lesion_mm3", (f"{smallest}; {AUTOMATIC}", "mm^3")
    yield "model", ("Name of the model", "")
    yield "leuko_version", ("Version of Leuko", "")
    for what in ("weights", "mask", "flair", "t1"):
        yield f"{what}_sha256", (f"SHA-256 of the {what}; for several files, of their hashes", "")


COLUMNS = dict(_columns())  # by name: description, unit
