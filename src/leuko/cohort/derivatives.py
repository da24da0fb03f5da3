"""A segmentation as BIDS derivatives: the files of `results` under BIDS names, with sidecars."""

import csv
import shutil
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage

from leuko.io import lookup_tables, nifti
from leuko.io.files import staged, write_json
from leuko.io.lookup_tables import BACKGROUND, Label, coloured
from leuko.io.outputs import (
    ATLAS_FILE,
    ATLAS_LESIONS_FILE,
    ATLAS_TABLE_FILE,
    ENTROPY_FILE,
    FILLED_FILE,
    KEY_SLICES_FILE,
    LESION_TABLE_FILE,
    LESIONS_FILE,
    LOOKUP_FOLDER,
    MASK_FILE,
    MNI_FLAIR_FILE,
    MNI_MASK_FILE,
    MNI_PROBABILITY_FILE,
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
from leuko.io.tissue import RIM_LABELS, labels_of
from leuko.lesions.location import REGION_LABELS
from leuko.lesions.mni import SPACE
from leuko.volume import Array, Volume

MASK, PROBABILITY = "label-WMH_mask.nii.gz", "label-WMH_probseg.nii.gz"
REPORT = "label-WMH_report.html"
PICTURE, KEY_SLICES = "label-WMH_qc.png", "label-WMH_keyslices.jpg"
RECORD = "label-WMH_stats.json"
RIMS = "desc-rims_mask"
TISSUE, BRAIN, T1 = "seg-tissue_dseg", "label-brain_mask", "desc-preproc_T1w"
LESIONS, REGIONS = "seg-WMHlesions_dseg", "seg-WMHpvdeep_dseg"
ATLAS = "seg-atlas_dseg"
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
    ATLAS_FILE: f"{ATLAS}.nii.gz",
    ATLAS_TABLE_FILE: f"{ATLAS}.tsv",
    ATLAS_LESIONS_FILE: "label-WMH_desc-atlas_stats.tsv",
    REPORT_FILE: REPORT,
    PICTURE_FILE: PICTURE,
    KEY_SLICES_FILE: KEY_SLICES,
    RECORD_FILE: RECORD,
}
PICTURES, FIGURES = (PICTURE, KEY_SLICES), "figures"  # their folder, beside anat
# What a corrected mask has of its own, beside the mask.
EDITED = (
    RIMS_FILE, LESIONS_FILE, LESION_TABLE_FILE, REGIONS_FILE, REGION_NAMES_FILE, ATLAS_TABLE_FILE,
    ATLAS_LESIONS_FILE, REPORT_FILE, PICTURE_FILE, KEY_SLICES_FILE, RECORD_FILE,
)  # fmt: skip
EDITED_ELSEWHERE = (FILLED_FILE, MNI_MASK_FILE)  # likewise, on other grids
OF_MASK = (MASK_FILE, *EDITED, *EDITED_ELSEWHERE)
MNI_MASK = f"space-{SPACE}_label-WMH_mask"
AFFINE = "brought to the template by an affine transform"
# Images that are not on the grid of the FLAIR: name without prefix and extension, and sidecar.
ELSEWHERE: dict[str, tuple[str, dict[str, Any]]] = {
    FILLED_FILE: (
        "desc-filled_T1w",
        {
            "Description": "T1w on its own grid, with white matter hyperintensities filled from "
            "the normal white matter around them",
            "SkullStripped": False,
        },
    ),
    MNI_MASK_FILE: (
        MNI_MASK,
        {"Type": "Lesion", "Description": f"White matter hyperintensities, {AFFINE}"},
    ),
    MNI_PROBABILITY_FILE: (
        f"space-{SPACE}_label-WMH_probseg",
        {"Description": f"Probability of WMH, {AFFINE}"},
    ),
    MNI_FLAIR_FILE: (
        f"space-{SPACE}_FLAIR",
        {"Description": f"FLAIR, {AFFINE}", "SkullStripped": False},
    ),
}
COLUMNS = {
    "name": "The lesion, numbered by volume, the largest first",
    "color": "Colour of the lesion in viewers",
    "voxels": "Number of voxels",
    "volume_mm3": "Volume",
    "volume_ml": "Volume",
    "x_mm": "Centroid, from left to right, in world coordinates of the FLAIR",
    "y_mm": "Centroid, from back to front, in world coordinates of the FLAIR",
    "z_mm": "Centroid, from bottom to top, in world coordinates of the FLAIR",
    "flair_contrast": "(lesion - white) / white on the FLAIR; white: median of normal white matter",
    "t1_contrast": "(lesion - white) / white on the T1w; white: median of normal white matter",
    "mean_probability": "Mean probability of WMH",
    "region": "Periventricular, deep, infratentorial or juxtacortical by the rule, or confluent",
    "side": "Hemisphere of most of the lesion",
    "lobe": "Lobe of most of the lesion",
    "ventricle_mm": "Distance of its nearest voxel from the lateral ventricles",
    "cortex_mm": "Distance of its nearest voxel from the cortex",
}
# Outputs that BIDS does not define. No slash after figures: the validator would report an error.
IGNORED = (
    "*_xfm.*", "*_stats.*", "*.html", "figures", "logs", "verdicts*", "/wmh*", "lookup_tables",
    "longitudinal*",
)  # fmt: skip
UNITS = {"mm3": "mm^3", "ml": "mL", "mm": "mm"}
MOST_LESIONS = 1000  # in their lookup table
STRIPPED_MM = 10.0  # distance from the brain at which a whole head shows skull or scalp
STRIPPED_PART = 0.02  # of the brain's mean grey value: less means stripped


def edited(name: str) -> str:
    """The name, without prefix, of what belongs to a corrected mask: its entity desc says so.

    >>> edited("label-WMH_mask.nii.gz")
    'label-WMH_desc-edited_mask.nii.gz'
    >>> edited("desc-filled_T1w.nii.gz")
    'desc-filledEdited_T1w.nii.gz'
    """
    entities, suffix = name.rsplit("_", 1)
    if "desc-" in entities:
        return f"{entities}Edited_{suffix}"
    return f"{entities}_desc-edited_{suffix}"


def located(folder: Path, prefix: str, file: str, *, is_edited: bool = False) -> Path:
    """Where a file is in a folder: by its own name, or with a prefix by its BIDS name.

    With `is_edited` it is that of a corrected mask, which needs a prefix.
    """
    if not prefix:
        return folder / file
    is_elsewhere = file in ELSEWHERE
    name = f"{ELSEWHERE[file][0]}.nii.gz" if is_elsewhere else NAMES[file]
    if file in (PICTURE_FILE, KEY_SLICES_FILE):
        folder = folder.parent / FIGURES
    stem = native(prefix) if is_elsewhere else prefix
    return folder / f"{stem}{edited(name) if is_edited else name}"


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
        _describe_brain(folder, out / prefix, record, sidecars)
    if (folder / LESION_TABLE_FILE).is_file():
        _name_lesions(folder / LESION_TABLE_FILE)

    def name_of(name: str) -> str:
        return edited(name) if is_edited else name

    for name in EDITED if is_edited else NAMES:
        if (folder / name).is_file():
            shutil.move(folder / name, out / (prefix + name_of(NAMES[name])))
    for name in EDITED_ELSEWHERE if is_edited else ELSEWHERE:
        if (folder / name).is_file():
            stem, about = ELSEWHERE[name]
            image = located(out, prefix, name, is_edited=is_edited)
            shutil.move(folder / name, image)
            write_json(out / f"{native(prefix)}{name_of(stem)}.json", about | {"Sources": sources})
    for name, about in sidecars.items():
        stem = prefix + name_of(name)
        if (out / f"{stem}.nii.gz").is_file():
            shared = {"SpatialReference": sources[0], "Sources": sources}
            write_json(out / f"{stem}.json", about | shared)


def _describe_brain(
    folder: Path, prefix: Path, record: RunRecord, sidecars: dict[str, dict[str, Any]]
) -> None:
    """Write the names of the tissues and the brain mask; tell whether the T1 has a skull."""
    names = ["background", *(record.tissue_ml or ())]
    table = [(0, names[0], BACKGROUND), *lookup_tables.rows(labels_of(names))]
    write_table(Path(f"{prefix}{TISSUE}.tsv"), lookup_tables.COLUMNS, table)
    tissue = nifti.read_labels(folder / TISSUE_FILE, values=range(len(names)))
    brain = tissue.with_data((tissue.data > 0).astype(np.uint8))
    nifti.write(Path(f"{prefix}{BRAIN}.nii.gz"), brain)
    if (folder / T1_FILE).is_file():
        t1 = nifti.read(folder / T1_FILE)
        sidecars[T1]["SkullStripped"] = is_stripped(t1.data, brain)


def move_pictures(scratch: Path, folder: Path, names: Iterable[str]) -> None:
    """Move pictures from `scratch` to the folder figures of a subject whose results are in
    `folder`; a picture that was not made is deleted there, since it shows another mask."""
    figures = folder.parent / FIGURES
    for name in names:
        if (scratch / name).is_file():
            with staged(figures) as staging:
                shutil.move(scratch / name, staging)
        else:
            (figures / name).unlink(missing_ok=True)


def _name_lesions(path: Path) -> None:
    """Give a table of lesions the columns of a lookup table."""
    with path.open(newline="", encoding="utf-8") as file:
        head, *lesions = csv.reader(file, delimiter="\t")
    labels = coloured((int(number), f"lesion {number}") for number, *_ in lesions)
    named = lookup_tables.rows(labels)
    rows = [[*label, *rest] for label, (_, *rest) in zip(named, lesions, strict=True)]
    write_table(path, [*lookup_tables.COLUMNS, *head[1:]], rows)


def write_lookup_tables(out: Path, classes: Sequence[str], atlas: Sequence[Label] = ()) -> None:
    """Write the lookup tables of the label images, each one for all subjects.

    `classes` are those of the model, `atlas` the labels of the atlas, if any. Colours of lesions
    follow from their numbers; brains have fewer lesions than the table.
    """
    lesions = coloured((number, f"lesion {number}") for number in range(1, MOST_LESIONS + 1))
    tables = {
        TISSUE: labels_of(classes),
        REGIONS: REGION_LABELS,
        RIMS: RIM_LABELS,
        LESIONS: lesions,
    }
    if atlas:
        tables[ATLAS] = list(atlas)
    for name, labels in tables.items():
        lookup_tables.write(out / LOOKUP_FOLDER, name, labels)


def drop_older(folder: Path, prefix: str, written: set[str]) -> None:
    """Delete the files that only an earlier run, with another model or scans, wrote."""
    images = [name.removesuffix(".nii.gz") for name in NAMES.values() if name.endswith(".nii.gz")]
    ours = {
        *NAMES.values(),
        f"{BRAIN}.nii.gz",
        *(f"{i}{end}" for i in [*images, BRAIN] for end in (".json", ".tsv")),
    }
    elsewhere = {
        f"{native(prefix)}{stem}{end}"
        for stem, _ in ELSEWHERE.values()
        for end in (".nii.gz", ".json")
    }
    for name in {*(prefix + name for name in ours), *elsewhere} - written:
        (folder / name).unlink(missing_ok=True)


def native(prefix: str) -> str:
    """The prefix of images that are not on the grid of the FLAIR."""
    return prefix.removesuffix("space-FLAIR_")


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
    made = "A corrected mask" if record.edited else "A given mask"
    given = {"Description": f"{made} of {lesions}, on the grid of the FLAIR"}
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
        ATLAS: {
            "Description": "Regions of the given atlas, brought from MNI152 space by an affine "
            "transform, and the WMH in each; index 0 is outside the atlas",
            "region_ml": {"Description": "Volume of the region", "Units": "mL"},
            "wmh_ml": {"Description": "Volume of WMH in the region", "Units": "mL"},
            "wmh_percent": {"Description": "WMH in % of the region", "Units": "%"},
            "lesions": {"Description": "Number of lesions that reach into the region"},
        },
        T1: {
            "Description": "T1w on the grid of the FLAIR, registered rigidly",
            "SkullStripped": False,
        },
    }


def _unit(column: str) -> str | None:
    return UNITS.get(column.rsplit("_", 1)[-1])
