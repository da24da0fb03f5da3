"""The main job, told in order: two scans and a model become a mask, a probability map, numbers."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leuko import guards, inputs, nifti, runtime, weights
from leuko.align import LEAST_SHARPNESS, LOST_MM, Alignment, Mode, align
from leuko.channels import Pair
from leuko.errors import LeukoError
from leuko.files import read_json, sha256, staged, write_json
from leuko.inputs import Scan
from leuko.itk import without_bias
from leuko.lesions import find_lesions
from leuko.predict import predict_pair, to_mask, to_tissue
from leuko.record import Stopwatch, kept_warnings, versions
from leuko.volume import Array, Orientation, Volume, require_same_grid, resample_onto
from leuko.weights import ModelCard

log = logging.getLogger(__name__)

MASK_FILE = "wmh.nii.gz"
PROBABILITY_FILE = "wmh_prob.nii.gz"
TISSUE_FILE = "tissue.nii.gz"
DICOM_FILE = "wmh.dcm"
T1_FILE, TRANSFORM_FILE = "t1_aligned.nii.gz", "t1_to_flair.tfm"
RECORD_FILE = "run.json"
FILES = {
    MASK_FILE: "mask",
    PROBABILITY_FILE: "probability",
    TISSUE_FILE: "tissue",
    DICOM_FILE: "DICOM",
    T1_FILE: "aligned T1",
    TRANSFORM_FILE: "transform",
    RECORD_FILE: "record",
}


FAR_MM = 3.0  # what a parabola says beyond its three values is no measure


@dataclass(frozen=True)
class Excluded:
    """What an exclusion mask took out of the result, in mL."""

    volume_ml: float  # of the mask
    wmh_ml: float  # of what would have been called WMH in it


@dataclass(frozen=True)
class Segmentation:
    """What `segment` found. Volumes in mL; `seconds` by stage, in order."""

    mask: Volume  # uint8, 1 = WMH
    probability: Volume  # float32, 0 to 1
    tissue: Volume | None  # uint8, the model's classes; None if it knows background and WMH alone
    volume_ml: float
    lesions: int
    excluded: Excluded | None
    alignment: Alignment | None  # of the T1, where the model looked at one
    warnings: list[str]
    seconds: dict[str, float]


def segment(
    flair: Path | Scan,
    t1: Path | Scan | None,
    out: Path,
    *,
    model: str | Path = weights.DEFAULT,
    threshold: float | None = None,
    smallest_lesion_mm3: float | None = None,
    alignment: Mode = "auto",
    bias_correction: bool = False,
    exclude: Path | None = None,
    save_intermediate: bool = False,
    device: runtime.Device = "cpu",
    threads: int | None = None,
) -> Segmentation:
    """Segment one brain and write `wmh.nii.gz`, `wmh_prob.nii.gz` and `run.json` into `out`.

    A model that knows tissues gives `tissue.nii.gz` too, a FLAIR from DICOM `wmh.dcm`, and
    `save_intermediate` the T1 on the FLAIR's grid and the transform that brought it there. All
    are on the grid of the FLAIR as it was stored. `model` is a folder or a name; `threshold` and
    `smallest_lesion_mm3` default to the model's own. In `exclude`, a mask on that grid, nothing
    is WMH. Raises LeukoError, also when the T1 does not come to lie on the FLAIR; `out` then
    holds what it held before.
    """
    _refuse_foreign_files(out, flair, t1)
    watch = Stopwatch()
    threads = threads or runtime.available_cpus()
    with staged(out) as scratch, kept_warnings() as warnings:
        with watch.stage("load model"):
            folder = weights.find(str(model))
            loaded = runtime.load(folder, device=device, threads=threads)
        card = loaded.card
        threshold, smallest_lesion_mm3 = _limits(card, threshold, smallest_lesion_mm3)
        with watch.stage("read"):
            flair_source, t1_source = _opened(flair), _opened(t1) if t1 else None
            warnings[:0] = flair_source.warnings
            inputs.require_pair(flair_source, t1_source)
            outside = _outside(exclude, flair_source.volume) if exclude else None
        flair_scan, t1_scan, moved = (
            flair_source.volume,
            t1_source.volume if t1_source else None,
            None,
        )
        if bias_correction:
            with watch.stage("correct bias"):
                flair_scan = without_bias(flair_scan, threads=threads)
                t1_scan = t1_scan and without_bias(t1_scan, threads=threads)
        if t1_scan is not None and card.preparation.uses_t1:
            with watch.stage("align"):
                moved = _alignment(flair_scan, t1_scan, alignment, threads)
                t1_scan = moved.apply(t1_scan)
        with watch.stage("prepare"):
            pair = Pair.of(flair_scan, t1_scan, card.preparation)
        probabilities = predict_pair(pair, loaded, watch)
        probability = probabilities[-1]
        everywhere = to_mask(
            probability,
            threshold,
            smallest_mm3=smallest_lesion_mm3,
            voxel_mm3=flair_scan.voxel_mm3,
        )
        mask = everywhere if outside is None else everywhere & outside
        tissue = to_tissue(probabilities, mask, flair_scan) if len(card.classes) > 2 else None
        if tissue is not None and card.classes == guards.TISSUES:
            with watch.stage("check"):
                case = guards.Case(
                    flair_source.volume.canonical(),
                    pair.t1 if t1 else None,
                    tissue.canonical().data,
                )
                for warning in guards.warnings(case):
                    log.warning("%s", warning)
        result = Segmentation(
            mask=flair_scan.with_data(mask.astype(np.uint8)),
            probability=flair_scan.with_data(probability),
            tissue=tissue,
            volume_ml=_ml(mask, flair_scan),
            lesions=find_lesions(mask)[1],
            excluded=None
            if outside is None
            else Excluded(
                volume_ml=_ml(~outside, flair_scan),
                wmh_ml=_ml(everywhere & ~outside, flair_scan),
            ),
            alignment=moved,
            warnings=warnings,
            seconds=watch.seconds,
        )
        with watch.stage("write"):
            nifti.write(scratch / MASK_FILE, result.mask)
            nifti.write(scratch / PROBABILITY_FILE, result.probability)
            if tissue is not None:
                nifti.write(scratch / TISSUE_FILE, tissue)
            inputs.write_dicom(scratch / DICOM_FILE, result.mask, flair_source)
            if save_intermediate and t1_scan is not None and moved is not None:
                nifti.write(scratch / T1_FILE, resample_onto(t1_scan, flair_scan))
                moved.write(scratch / TRANSFORM_FILE)
        record = {
            "command": "segment",
            "versions": versions(),
            "inputs": {
                name: {
                    "path": str(scan.path),
                    "series": scan.series and str(scan.series),
                    "sha256": scan.sha256(),
                }
                for name, scan in (("flair", flair_source), ("t1", t1_source))
                if scan
            },
            "model": {
                "name": card.name,
                "path": str(folder),
                "weights_sha256": card.weights_sha256,
            },
            "settings": {
                "threshold": threshold,
                "smallest_lesion_mm3": smallest_lesion_mm3,
                "alignment": alignment,
                "bias_correction": bias_correction,
                "exclude": exclude and {"path": str(exclude), "sha256": sha256(exclude)},
                "device": device,
            },
            "warnings": warnings,
            "volume_ml": round(result.volume_ml, 4),
            "lesions": result.lesions,
            "excluded_ml": result.excluded and asdict(result.excluded),
            "tissue_ml": _volumes_ml(tissue, card.classes),
            "alignment": moved and _described(moved),
            "seconds": watch.seconds,
        }
        write_json(scratch / RECORD_FILE, record)
        written = {path.name for path in scratch.iterdir()}
    for name in FILES.keys() - written:  # of an earlier run with another model or other scans
        (out / name).unlink(missing_ok=True)
    return result


def _refuse_foreign_files(out: Path, *scans: Path | Scan | None) -> None:
    """Raises LeukoError where writing would replace an expert's labels or a training run, for the
    name of an image, and for the folder of a series."""
    if out.name.endswith((".nii", ".nii.gz")):
        raise LeukoError(f"{out} names an image; give -o a folder, the mask will be in it")
    folders = [scan.path if isinstance(scan, Scan) else scan for scan in scans if scan]
    if any(folder.is_dir() and folder.resolve() == out.resolve() for folder in folders):
        raise LeukoError(f"{out} holds the scans; choose another folder with -o")
    record = out / RECORD_FILE
    ours = record.is_file() and read_json(record, what="record").get("command") == "segment"
    there = [name for name in FILES if (out / name).exists()]
    if there and not ours:
        raise LeukoError(
            f"{out / there[0]} is there and was not written by leuko segment; "
            "choose another folder with -o"
        )


def _opened(scan: Path | Scan) -> Scan:
    return scan if isinstance(scan, Scan) else inputs.read(scan)


def _limits(
    card: ModelCard, threshold: float | None, smallest_mm3: float | None
) -> tuple[float, float]:
    """The threshold and the smallest lesion, by default the model's own."""
    threshold = card.threshold if threshold is None else threshold
    smallest_mm3 = card.smallest_lesion_mm3 if smallest_mm3 is None else smallest_mm3
    if not 0 < threshold < 1:
        raise LeukoError(f"the threshold {threshold:g} is not between 0 and 1")
    if not 0 <= smallest_mm3 < math.inf:
        raise LeukoError(f"the smallest lesion of {smallest_mm3:g} mm3 is no volume")
    return threshold, smallest_mm3


def _outside(exclude: Path, flair: Volume) -> Array:
    """Where WMH may be, bool (X, Y, Z) as the FLAIR is stored. Raises LeukoError for a mask on
    another grid."""
    mask = nifti.read_mask(exclude)
    require_same_grid(mask, flair)
    if not mask.data.any():
        log.warning("%s excludes nothing: it is empty", exclude)
    outside: Array = ~Orientation.of(flair.affine).undo(mask.canonical().data)
    return outside


def _alignment(flair: Volume, t1: Volume, mode: Mode, threads: int) -> Alignment:
    """Raises LeukoError when the T1 was to be brought to the FLAIR and that failed."""
    found = align(flair, t1, mode=mode, threads=threads)
    if found.is_sure:
        return found
    if found.sharpness < LEAST_SHARPNESS:
        seen = (
            f"moved by 4 mm it loses {100 * max(0, found.sharpness):.0f} % of what the two have in "
            f"common, expected {100 * LEAST_SHARPNESS:.0f} % or more"
        )
    else:
        way = f"{found.off_mm:.1f} mm away" if found.off_mm < FAR_MM else "elsewhere"
        seen = f"a better place is {way}, expected {LOST_MM:.1f} mm at most"
    evidence = f"{t1.name} does not lie on {flair.name} ({seen})"
    if mode == "never":
        log.warning("%s: are both of one person, not swapped, and aligned?", evidence)
        return found
    raise LeukoError(
        f"{evidence}: are both of one person, and not swapped? Give the FLAIR alone, or --align "
        "never if you know that they are aligned"
    )


def _described(alignment: Alignment) -> dict[str, Any]:
    """An alignment for JSON."""
    return {
        "moved_mm": round(alignment.moved_mm, 3),
        "off_mm": round(alignment.off_mm, 3) if alignment.off_mm < FAR_MM else None,
        "sharpness": round(alignment.sharpness, 4),
        "mutual_information_before": round(alignment.information_before, 4),
        "mutual_information": round(alignment.information, 4),
        "flair_to_t1": alignment.matrix.round(6).tolist(),
    }


def _ml(mask: Array, grid: Volume) -> float:
    return float(np.count_nonzero(mask)) * grid.voxel_mm3 / 1000


def _volumes_ml(tissue: Volume | None, classes: Sequence[str]) -> dict[str, float] | None:
    if tissue is None:
        return None
    counts = np.bincount(tissue.data.ravel(), minlength=len(classes))
    return {
        name: round(float(count) * tissue.voxel_mm3 / 1000, 3)
        for name, count in list(zip(classes, counts, strict=True))[1:]
    }
