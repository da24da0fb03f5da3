"""The answer of a report, its first screen: what was found, and whether it can be used."""

from collections.abc import Iterator

from leuko.io.provenance import Finding
from leuko.io.record import RegionsRecord, RunRecord
from leuko.model.calibration import interval_text
from leuko.report.html import facts, text, what_was_checked

MOSTLY = 0.6  # least part of the volume in a region that is named alone
SOME = 0.1  # less is not named
PLACES = {
    "periventricular_ml": "around the ventricles",
    "deep_ml": "in the deep white matter",
    "infratentorial_ml": "in the brainstem and cerebellum",
    "juxtacortical_ml": "next to the cortex",
}


def answer(record: RunRecord) -> str:
    """The answer as HTML: a sentence, whether the result can be used, three numbers."""
    serious = [finding for finding in record.findings if finding.level != "note"]
    level = "stop" if not record.is_usable else "warn" if serious else "good"
    numbers = facts(_numbers(record), useless=not record.is_usable)
    return (
        f'<section class="answer {level}"><h2 class="unseen">Result</h2>'
        f'<p class="sentence">{text(sentence(record))}</p>{_origin(record)}{_use(record, serious)}'
        f"{numbers}{_remarks(record)}</section>"
    )


def sentence(record: RunRecord) -> str:
    """What was found, in words."""
    if not record.lesions:
        return f"No {_name(record)} were found.{_rims(record)}"
    lesions = "1 lesion" if record.lesions == 1 else f"{record.lesions} lesions"
    place = f", {_place(record.regions)}" if record.regions else ""
    part = ""
    if record.volume_percent_icv is not None:
        part = f"; {record.volume_percent_icv:.2g}\N{NO-BREAK SPACE}% of the intracranial volume"
    found = f"{short_ml(record.volume_ml)} of {_name(record)} in {lesions}{place}{part}."
    return found + _rims(record)


def counted(record: RunRecord) -> str:
    """What the volume counts, in short."""
    return "WMH and rims" if record.rims == "include" else "WMH"


def short_ml(ml: float) -> str:
    """A volume with two or three digits."""
    digits = 0 if ml >= 10 else 1 if ml >= 1 else 2
    return f"{ml:.{digits}f}\N{NO-BREAK SPACE}mL"


def _name(record: RunRecord) -> str:
    name = "white matter hyperintensities"
    return f"{name}, caps and rims" if record.rims == "include" else name


def _place(regions: RegionsRecord) -> str:
    volumes = {place: getattr(regions, name) or 0.0 for name, place in PLACES.items()}
    whole = sum(volumes.values())
    first, second, *_ = sorted(volumes, key=lambda place: -volumes[place])
    if volumes[first] >= MOSTLY * whole:
        return f"mostly {first}" if volumes[first] < (1 - SOME) * whole else first
    return f"{first} and {second}"


def _rims(record: RunRecord) -> str:
    if record.rims != "separate" or not record.rims_ml:
        return ""
    return f" Normal caps and rims of the ventricles, {short_ml(record.rims_ml)}, are not counted."


def _origin(record: RunRecord) -> str:
    """Who made the mask, if it was not Leuko alone."""
    edited = record.edited
    if edited is None:
        given = "<strong>Given mask:</strong> measured by Leuko, not made by Leuko."
        return f'<p class="edited">{given}</p>' if record.inputs.mask else ""
    said = (
        f"{edited.editor or 'a reader'}, {edited.saved[:10]}: {edited.added_ml:.2f} mL added, "
        f"{edited.removed_ml:.2f} mL removed; the original mask had {edited.automatic_ml:.2f} mL."
    )
    return f'<p class="edited"><strong>Mask corrected by</strong> {text(said)}</p>'


def _use(record: RunRecord, serious: list[Finding]) -> str:
    """Whether the result can be used, and why not."""
    slices = record.doubtful_slices or ()
    look = f"slice{'s' * (len(slices) > 1)} {' and '.join(_links(slices))}" if slices else ""
    if not record.is_usable:
        said = "<strong>Do not use this result.</strong>"
    elif serious:
        said = "<strong>Check before use:</strong> "
        said += f"look at {look} and read these warnings." if look else "read these warnings."
    else:
        said = "<strong>Usable: no warnings.</strong>"
        who = "model" if record.inputs.mask else "mask"
        said += f" The {who} is least certain on {look}." if look else ""
    listed = "".join(f"<li>{_said(finding)}</li>" for finding in serious)
    return f'<p class="use">{said}</p>' + (f"<ul>{listed}</ul>" if listed else "")


def _said(finding: Finding) -> str:
    return f"<b>{finding.level.capitalize()}:</b> {text(finding.text)}"


def _links(slices: tuple[int, ...]) -> Iterator[str]:
    for number in slices:
        yield f'<button type="button" class="go" data-show-slice="{number}">{number}</button>'


def _remarks(record: RunRecord) -> str:
    """Notes and, without warnings, what was checked."""
    notes = [_said(finding) for finding in record.findings if finding.level == "note"]
    if len(notes) == len(record.findings):
        notes.append(what_was_checked(record.checks))
    return "".join(f'<p class="hint">{note}</p>' for note in notes)


def _numbers(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    interval = record.volume_interval_ml
    between = f"90 % interval {interval_text(interval)}" if interval else ""
    yield f"Volume of {counted(record)}", f"{record.volume_ml:.2f} mL", between
    yield "Lesions", str(record.lesions), ""
    if record.intracranial_ml:
        whole = f"of {record.intracranial_ml:.0f} mL"
        yield "Share of intracranial volume", f"{record.volume_percent_icv:.2f} %", whole
