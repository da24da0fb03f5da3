"""A segmentation on disk: the names of its files, what stands in them, what they may replace."""

import csv
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from leuko.errors import LeukoError, in_one_line
from leuko.io import inputs, nifti
from leuko.io.files import read_json
from leuko.io.inputs import Scan
from leuko.io.provenance import LEVELS, OUTPUT, Finding
from leuko.lesions.brain import Outside
from leuko.lesions.delineation import Rims
from leuko.lesions.location import REGIONS, RULES, SECTORS, SHELLS
from leuko.lesions.measure import Analysis, Lesion, Regions
from leuko.model.calibration import Judgement
from leuko.model.card import ModelCard
from leuko.preprocessing.registration import FAR_MM, Alignment
from leuko.preprocessing.slices import Pair
from leuko.report.viewer import RIM_KIND, Pane, as_jpeg
from leuko.volume import Array, Orientation, Volume, resample_onto

MASK_FILE, RIMS_FILE = "wmh.nii.gz", "wmh_rims.nii.gz"
PROBABILITY_FILE, ENTROPY_FILE = "wmh_prob.nii.gz", "wmh_entropy.nii.gz"
TISSUE_FILE = "tissue.nii.gz"
LESIONS_FILE, LESION_TABLE_FILE = "wmh_lesions.nii.gz", "lesions.tsv"
REGIONS_FILE, REGION_NAMES_FILE = "wmh_regions.nii.gz", "wmh_regions.tsv"
DICOM_FILE = "wmh.dcm"
T1_FILE, TRANSFORM_FILE = "t1_aligned.nii.gz", "t1_to_flair.tfm"
REPORT_FILE, PICTURE_FILE = "report.html", "qc.png"
RECORD_FILE = "run.json"
FILES = (
    MASK_FILE, RIMS_FILE, PROBABILITY_FILE, ENTROPY_FILE, TISSUE_FILE, LESIONS_FILE,
    LESION_TABLE_FILE, REGIONS_FILE, REGION_NAMES_FILE, REPORT_FILE, PICTURE_FILE, DICOM_FILE,
    T1_FILE, TRANSFORM_FILE, RECORD_FILE,
)  # fmt: skip

Tell = Callable[[Finding], None]

log = logging.getLogger(__name__)

# What the digits of a map are worth; noise in the others would make the files many times larger.
PROBABILITY_STEP, ENTROPY_STEP = 1e-4, 1e-3
ROUNDING = 1e-3  # of a step: 0.4 in 32 bits may be a little less


@dataclass(frozen=True)
class Excluded:
    """What an exclusion mask took out of the result, in mL."""

    volume_ml: float  # of the mask
    wmh_ml: float  # of what would have been called WMH in it


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What `segment` found. Volumes in mL; `seconds` by stage, in order."""

    mask: Volume  # uint8, 1 = WMH, with caps and rims if the convention is "include"
    probability: Volume  # float32, 0 to 1
    entropy: Volume  # float32, bits, of the probability, calibrated if the model is
    tissue: Volume | None  # uint8, the model's classes; None if it knows background and WMH alone
    rims: Volume | None  # bool, normal caps and rims of the ventricles; None: left out or unknown
    convention: Rims | None  # of the mask; None if the model does not know rims
    volume_ml: float
    analysis: Analysis
    judgement: Judgement | None  # None without calibration, or away from the model's own limits
    excluded: Excluded | None
    outside: Outside | None  # lesions that were removed; None without tissues to tell
    alignment: Alignment | None  # of the T1, where the model looked at one
    findings: list[Finding]
    checks: list[str]  # what was checked
    seconds: dict[str, float]

    @property
    def rims_ml(self) -> float | None:
        """Volume of caps and rims; None if they were left out or are unknown."""
        return None if self.rims is None else self.rims.ml(self.rims.data)

    @property
    def wmh_ml(self) -> float | None:
        """Volume of WMH without caps and rims; None if the model does not know rims."""
        if self.convention is None:
            return None
        return self.volume_ml - (self.rims_ml or 0) * (self.convention == "include")

    @property
    def wmh_and_rims_ml(self) -> float | None:
        """Volume of both; None if rims were left out or are unknown."""
        if self.wmh_ml is None or self.rims_ml is None:
            return None
        return self.wmh_ml + self.rims_ml


def write(folder: Path, result: Segmentation, source: Scan, t1: Volume | None, tell: Tell) -> None:
    """Write the images and tables of a result into `folder`; the T1, if given, as it was used.

    The mask must be written. Any other file that cannot be is left out, and `tell` is given the
    warning that names it.
    """
    nifti.write(folder / MASK_FILE, result.mask)
    analysis = result.analysis

    def stored(array: Array) -> Volume:
        return result.mask.with_data(Orientation.of(result.mask.affine).undo(array))

    images: dict[str, Callable[[], Volume]] = {
        PROBABILITY_FILE: lambda: _cut(result.probability, PROBABILITY_STEP),
        ENTROPY_FILE: lambda: _cut(result.entropy, ENTROPY_STEP),
        LESIONS_FILE: lambda: stored(analysis.numbers),
    }
    if result.rims is not None and result.convention == "separate":
        rims = result.rims
        images[RIMS_FILE] = lambda: rims.with_data(rims.data.astype(np.uint8))
    if result.tissue is not None:
        tissue = result.tissue
        images[TISSUE_FILE] = lambda: tissue
    if analysis.region_map is not None:
        regions = analysis.region_map
        images[REGIONS_FILE] = lambda: stored(regions)
        with side_output(folder, REGION_NAMES_FILE, tell):
            names = [(index, name) for index, name in enumerate(REGIONS) if index]
            write_table(folder / REGION_NAMES_FILE, ["index", "name"], names)
    for name, make in images.items():
        with side_output(folder, name, tell):
            nifti.write(folder / name, make())
    with side_output(folder, LESION_TABLE_FILE, tell):
        columns = [field.name for field in fields(Lesion)]
        write_table(folder / LESION_TABLE_FILE, columns, map(astuple, analysis.lesions))
    with side_output(folder, DICOM_FILE, tell):
        inputs.write_dicom(folder / DICOM_FILE, result.mask, source)
    if t1 is not None and result.alignment is not None:
        with side_output(folder, T1_FILE, tell):
            nifti.write(folder / T1_FILE, resample_onto(t1, result.mask))
        with side_output(folder, TRANSFORM_FILE, tell):
            result.alignment.write(folder / TRANSFORM_FILE)


@contextmanager
def side_output(folder: Path, name: str, tell: Tell) -> Iterator[None]:
    """Write a file that a result can do without: if that fails, delete it and `tell` a warning."""
    try:
        yield
    except Exception as error:  # whatever a library raises, the mask is worth more
        (folder / name).unlink(missing_ok=True)
        log.debug("%s", name, exc_info=error)
        tell(Finding("warning", OUTPUT, f"{name} could not be written ({in_one_line(error)})"))


def write_report(
    folder: Path, result: Segmentation, pair: Pair, record: Mapping[str, Any], tell: Tell
) -> None:
    """Write `report.html` and `qc.png` into `folder`, of a pair as the model saw it; or `tell`
    why not."""
    analysis = result.analysis
    kinds = analysis.numbers > 0 if analysis.region_map is None else analysis.region_map
    kinds = kinds.astype(np.uint8)
    if result.rims is not None and result.convention == "separate":
        kinds[result.rims.canonical().data] = RIM_KIND
    pane = Pane(
        title="FLAIR and T1" if pair.t1.any() else "FLAIR",
        grid=result.mask.canonical(),
        images={"FLAIR": pair.flair} | ({"T1": pair.t1} if pair.t1.any() else {}),
        ids=analysis.numbers,
        kinds=kinds,
    )
    picture, jpeg = folder / PICTURE_FILE, b""
    # matplotlib may be broken, or find no folder to write into.
    with side_output(folder, PICTURE_FILE, tell):
        from leuko.report.single import sheet

        sheet(record, pane).savefig(picture, facecolor="black", dpi=90)
        jpeg = as_jpeg(picture)
    with side_output(folder, REPORT_FILE, tell):
        from leuko.report.single import report

        lesions = [asdict(lesion) for lesion in analysis.lesions]
        page = report(record, lesions, pane, jpeg)
        (folder / REPORT_FILE).write_text(page, encoding="utf-8", errors="backslashreplace")


def as_record(result: Segmentation, card: ModelCard, about: Mapping[str, Any]) -> dict[str, Any]:
    """What `run.json` holds: `about` the run, then what was found, in numbers."""
    analysis = result.analysis
    icv_ml, judgement = analysis.intracranial_ml, result.judgement
    found = {
        "findings": findings_as_record(result.findings),
        "checks": result.checks,
        "volume_ml": round(result.volume_ml, 4),
        "volume_interval_ml": judgement
        and judgement.volume_interval_ml
        and [round(ml, 3) for ml in judgement.volume_interval_ml],
        "quality": judgement and _quality(judgement),
        "rims": result.convention,
        "wmh_ml": _rounded(result.wmh_ml),
        "rims_ml": _rounded(result.rims_ml),
        "wmh_and_rims_ml": _rounded(result.wmh_and_rims_ml),
        "lesions": len(analysis.lesions),
        "intracranial_ml": icv_ml and round(icv_ml, 2),
        "volume_percent_icv": round(100 * result.volume_ml / icv_ml, 4) if icv_ml else None,
        "outside_brain": result.outside
        and {
            "lesions": result.outside.lesions,
            "wmh_ml": round(result.mask.ml(result.outside.voxels), 4),
        },
        "excluded_ml": result.excluded and asdict(result.excluded),
        "tissue_ml": _tissues_ml(result, card),
        "regions": analysis.regions and _regions(analysis.regions),
        "alignment": result.alignment and _alignment(result.alignment),
        "seconds": result.seconds,
    }
    return {**about, **found}


def findings_as_record(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """For `run.json`: level, code and text of each, the most serious first."""
    ranked = sorted(findings, key=lambda finding: -LEVELS[finding.level])
    return [asdict(finding) for finding in ranked]


def refuse_foreign_files(
    out: Path,
    *scans: Path | Scan | None,
    files: Sequence[str] = FILES,
    record: str = RECORD_FILE,
    command: str = "segment",
) -> None:
    """Raises LeukoError where `files`, unless a `record` of `command` is with them, are in the way:
    an expert's labels, a training run; for the name of an image, and for the scans' own folder."""
    if out.name.endswith((".nii", ".nii.gz")):
        raise LeukoError(f"{out} names an image; give -o a folder, the mask will be in it")
    folders = [scan.path if isinstance(scan, Scan) else scan for scan in scans if scan]
    if any(folder.is_dir() and folder.resolve() == out.resolve() for folder in folders):
        raise LeukoError(f"{out} holds the scans; choose another folder with -o")
    about = out / record
    ours = about.is_file() and read_json(about, what="record").get("command") == command
    there = [name for name in files if (out / name).exists()]
    if there and not ours:
        raise LeukoError(
            f"{out / there[0]} is there and was not written by leuko {command}; "
            "choose another folder with -o"
        )


def drop_older(out: Path, written: set[str]) -> None:
    """Delete what an earlier run with another model or other scans left in `out`."""
    for name in set(FILES) - written:
        (out / name).unlink(missing_ok=True)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows under their columns, tab-separated; n/a where a number is not known."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(columns)
        table.writerows([_cell(value) for value in row] for row in rows)


def _cut(image: Volume, step: float) -> Volume:
    """Rounded down, so that a threshold that is a multiple of the step draws the same mask."""
    steps = np.floor(image.data.astype(np.float64) / step + ROUNDING)
    return image.with_data((steps * step).astype(np.float32))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "n/a"
    return str(value)


def _regions(regions: Regions) -> dict[str, Any]:
    """For JSON: rounded, with the rule in words and the names of the bullseye's parts."""
    volumes = {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in asdict(regions).items()
        if name.endswith("_ml") and name != "bullseye_ml"
    }
    bullseye = regions.bullseye_ml and {
        "shells": SHELLS,
        "sectors": SECTORS,
        "ml": [[round(ml, 4) for ml in row] for row in regions.bullseye_ml],
    }
    return {
        "rule": regions.rule,
        "rule_text": RULES[regions.rule],
        **volumes,
        "bullseye": bullseye,
    }


def _quality(judgement: Judgement) -> dict[str, Any] | None:
    if judgement.predicted_dice is None or judgement.dice_interval is None:
        return None
    return {
        "predicted_dice": round(judgement.predicted_dice, 6),
        "interval": [round(dice, 6) for dice in judgement.dice_interval],
    }


def _alignment(alignment: Alignment) -> dict[str, Any]:
    return {
        "moved_mm": round(alignment.moved_mm, 3),
        "off_mm": round(alignment.off_mm, 3) if alignment.off_mm < FAR_MM else None,
        "sharpness": round(alignment.sharpness, 4),
        "mutual_information_before": round(alignment.information_before, 4),
        "mutual_information": round(alignment.information, 4),
        "flair_to_t1": alignment.matrix.round(6).tolist(),
    }


def _tissues_ml(result: Segmentation, card: ModelCard) -> dict[str, float | None] | None:
    """By class, in the order of their numbers in the map; None for rims that were not drawn."""
    tissue = result.tissue
    if tissue is None:
        return None
    counts = np.bincount(tissue.data.ravel(), minlength=len(card.classes))
    volumes: dict[str, float | None] = {
        name: round(float(count) * tissue.voxel_mm3 / 1000, 3)
        for name, count in list(zip(card.classes, counts, strict=True))[1:]
    }
    if card.knows_rims and result.convention != "separate":
        volumes["rim"] = None
    return volumes


def _rounded(ml: float | None) -> float | None:
    return None if ml is None else round(ml, 4)
