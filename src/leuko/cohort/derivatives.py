"""A segmentation as BIDS derivatives: the files of `results` under BIDS names, with sidecars."""

import csv
import shutil
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage

from leuko.io import nifti
from leuko.io.files import write_json
from leuko.io.outputs import (
    ENTROPY_FILE,
    KEY_SLICES_FILE,
    LESION_TABLE_FILE,
    LESIONS_FILE,
    MASK_FILE,
    PICTURE_FILE,
    PROBABILITY_FILE,
    RECORD_FILE,
    REGION_NAMES_FILE,
    REGIONS_FILE,
    REPORT_FILE,
    RIMS_FILE,
    T1_FILE,
    TISSUE_FILE,
    TRANSFORM_FILE,
    write_table,
)
from leuko.io.provenance import RIMS_ARE
from leuko.io.record import RunRecord
from leuko.volume import Array, Volume

MASK, PROBABILITY = "label-WMH_mask.nii.gz", "label-WMH_probseg.nii.gz"
REPORT = "label-WMH_report.html"
PICTURE, KEY_SLICES = "label-WMH_qc.png", "label-WMH_keyslices.jpg"
RECORD = "label-WMH_stats.json"
RIMS = "desc-rims_mask"
TISSUE, BRAIN, T1 = "seg-tissue_dseg", "label-brain_mask", "desc-preproc_T1w"
LESIONS, REGIONS = "seg-WMHlesions_dseg", "seg-WMHpvdeep_dseg"
NAMES = {
    MASK_FILE: MASK,
    RIMS_FILE: f"{RIMS}.nii.gz",
    PROBABILITY_FILE: PROBABILITY,
    ENTROPY_FILE: "label-WMH_desc-entropy_probseg.nii.gz",
    TISSUE_FILE: f"{TISSUE}.nii.gz",
    LESIONS_FILE: f"{LESIONS}.nii.gz",
    LESION_TABLE_FILE: f"{LESIONS}.tsv",
    REGIONS_FILE: f"{REGIONS}.nii.gz",
    REGION_NAMES_FILE: f"{REGIONS}.tsv",
    T1_FILE: f"{T1}.nii.gz",
    TRANSFORM_FILE: "from-T1w_to-FLAIR_mode-image_xfm.tfm",
    REPORT_FILE: REPORT,
    PICTURE_FILE: PICTURE,
    KEY_SLICES_FILE: KEY_SLICES,
    RECORD_FILE: RECORD,
}
# What a corrected mask has of its own, beside the mask.
EDITED = (
    LESIONS_FILE, LESION_TABLE_FILE, REGIONS_FILE, REGION_NAMES_FILE, REPORT_FILE, RECORD_FILE,
)  # fmt: skip
COLUMNS = {
    "name": "The lesion, numbered by volume, the largest first",
    "voxels": "Number of voxels",
    "volume_mm3": "Volume",
    "volume_ml": "Volume",
    "x_mm": "Centroid, from left to right, in the world of the FLAIR",
    "y_mm": "Centroid, from back to front, in the world of the FLAIR",
    "z_mm": "Centroid, from bottom to top, in the world of the FLAIR",
    "flair_contrast": "(lesion - white) / white on the FLAIR, by the median of normal white matter",
    "t1_contrast": "(lesion - white) / white on the T1w, by the median of normal white matter",
    "mean_probability": "Mean probability of WMH",
    "region": "Periventricular, deep or infratentorial by the rule; confluent",
    "side": "Hemisphere in which most of it lies",
    "lobe": "Lobe in which most of it lies",
    "ventricle_mm": "From its nearest voxel to the lateral ventricles",
    "cortex_mm": "From its nearest voxel to the cortex",
}
UNITS = {"mm3": "mm^3", "ml": "mL", "mm": "mm"}
STRIPPED_MM = 10.0  # distance from the brain at which a whole head shows skull or scalp
STRIPPED_PART = 0.02  # of the brain's mean grey value: less means stripped


def edited(name: str) -> str:
    """The name, without prefix, of what belongs to a corrected mask: desc-edited before the suffix.

    >>> edited("label-WMH_mask.nii.gz")
    'label-WMH_desc-edited_mask.nii.gz'
    """
    entities, suffix = name.rsplit("_", 1)
    return f"{entities}_desc-edited_{suffix}"


def find(out: Path, name: str) -> list[Path]:
    """The files of a derivative dataset that have this name after their prefix, in order."""
    visits = ("sub-*", "sub-*/ses-*")
    found = (path for visit in visits for path in out.glob(f"{visit}/anat/*_space-FLAIR_{name}"))
    return sorted(found, key=attrgetter("name"))


def arrange(
    folder: Path, out: Path, prefix: str, sources: Sequence[str], *, is_edited: bool = False
) -> None:
    """Move the files of `segment` from `folder` to `out` under BIDS names; add sidecars.

    `prefix` ends with an underscore; `sources` are the URIs of the scans, the FLAIR first. With
    `is_edited` they are of a corrected mask: only those in `EDITED` are moved.
    """
    record = RunRecord.read(folder / RECORD_FILE)
    sidecars = _sidecars(record)
    if (folder / TISSUE_FILE).is_file() and not is_edited:
        names = ["background", *(record.tissue_ml or ())]
        write_table(out / f"{prefix}{TISSUE}.tsv", ["index", "name"], enumerate(names))
        tissue = nifti.read_labels(folder / TISSUE_FILE, values=range(len(names)))
        brain = tissue.with_data((tissue.data > 0).astype(np.uint8))
        nifti.write(out / f"{prefix}{BRAIN}.nii.gz", brain)
        if (folder / T1_FILE).is_file():
            t1 = nifti.read(folder / T1_FILE)
            sidecars[T1]["SkullStripped"] = is_stripped(t1.data, brain)
    if (folder / LESION_TABLE_FILE).is_file():
        with (folder / LESION_TABLE_FILE).open(newline="", encoding="utf-8") as file:
            head, *lesions = csv.reader(file, delimiter="\t")
        rows = [[number, f"lesion {number}", *rest] for number, *rest in lesions]
        write_table(folder / LESION_TABLE_FILE, ["index", "name", *head[1:]], rows)

    def name_of(name: str) -> str:
        return edited(name) if is_edited else name

    for name in EDITED if is_edited else NAMES:
        if (folder / name).is_file():
            shutil.move(folder / name, out / (prefix + name_of(NAMES[name])))
    for name, about in sidecars.items():
        stem = prefix + name_of(name)
        if (out / f"{stem}.nii.gz").is_file():
            shared = {"SpatialReference": sources[0], "Sources": sources}
            write_json(out / f"{stem}.json", about | shared)


def drop_older(folder: Path, prefix: str, written: set[str]) -> None:
    """Delete the files that only an earlier run, with another model or scans, wrote."""
    images = [name.removesuffix(".nii.gz") for name in NAMES.values() if name.endswith(".nii.gz")]
    ours = {
        *NAMES.values(),
        f"{BRAIN}.nii.gz",
        *(f"{i}{end}" for i in [*images, BRAIN] for end in (".json", ".tsv")),
    }
    for name in {prefix + name for name in ours} - written:
        (folder / name).unlink(missing_ok=True)


def is_stripped(image: Array, brain: Volume) -> bool:
    """Whether an image (X, Y, Z) on the grid of a brain mask is nearly 0 far from the brain."""
    inside = brain.data > 0
    beside = scipy.ndimage.distance_transform_edt(~inside, brain.spacing_mm) > STRIPPED_MM
    if not inside.any() or not beside.any():
        return False
    return bool(np.abs(image[beside]).mean() < STRIPPED_PART * np.abs(image[inside]).mean())


def _sidecars(record: RunRecord) -> dict[str, dict[str, Any]]:
    """The sidecars of the images, by file name without prefix and extension."""
    settings, model = record.settings, record.model.name
    counted = " or of caps and rims" if record.rims == "include" else ""
    columns = {
        name: {"Description": text} | ({"Units": unit} if (unit := _unit(name)) else {})
        for name, text in COLUMNS.items()
    }
    lesions = "white matter hyperintensities of presumed vascular origin, or lesions of multiple "
    lesions += "sclerosis"
    automatic = {
        "Description": f"{lesions.capitalize()}; normal caps and rims of the ventricles are "
        f"{RIMS_ARE[record.rims]}",
        "CapsAndRims": record.rims or "n/a",
        "Model": model,
        "Threshold": settings.threshold,
        "LesionThreshold": settings.lesion_threshold,
        "SmallestLesionMm3": settings.smallest_lesion_mm3,
    }
    given = {"Description": f"A given mask of {lesions}, on the grid of the FLAIR"}
    return {
        "label-WMH_mask": {"Type": "Lesion"} | (given if record.inputs.mask else automatic),
        RIMS: {
            "Type": "ROI",
            "Description": "Normal caps and rims of the ventricles, not in the mask of WMH",
            "Model": model,
        },
        "label-WMH_probseg": {
            "Description": f"Probability of WMH{counted}, 0 to 1",
            "Model": model,
        },
        "label-WMH_desc-entropy_probseg": {
            "Description": "Entropy of the calibrated probability, in bits: high where the model "
            "is uncertain",
            "Model": model,
        },
        TISSUE: {"Description": "Tissues", "Model": model},
        BRAIN: {"Type": "Brain", "Description": "The brain with its CSF"},
        LESIONS: {"Description": "Lesions, 26-connected, by their number", **columns},
        REGIONS: {"Description": "Lesions by region", "Rule": settings.rule},
        T1: {
            "Description": "T1w on the grid of the FLAIR, registered rigidly",
            "SkullStripped": False,
        },
    }


def _unit(column: str) -> str | None:
    return UNITS.get(column.rsplit("_", 1)[-1])
