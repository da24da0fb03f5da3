"""WMH by the regions of an atlas in MNI152 space that the user gives."""

import csv
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path

import numpy as np

from leuko.errors import LeukoError
from leuko.io import lookup_tables, nifti
from leuko.io.lookup_tables import BACKGROUND, Label
from leuko.io.outputs import (
    ATLAS_FILE,
    ATLAS_LESIONS_FILE,
    ATLAS_TABLE_FILE,
    LOOKUP_FOLDER,
    Tell,
    side_output,
    write_table,
)
from leuko.io.record import AtlasRecord, AtlasRegion
from leuko.lesions.mni import Place
from leuko.volume import Array, Volume, apply_affine, labels_onto, world

# An atlas in MNI152 space has nearly all of its voxels in the template's brain. The margin allows
# for the other MNI152 templates and for cortex that is drawn too thick.
BEYOND_MM, LEAST_INSIDE = 6.0, 0.95
SPARSE = 7  # every 7th voxel is enough to estimate that part
SAMPLE_MM = 1.0  # WMH are divided among regions in parts of voxels of about this size
OUTSIDE = "outside the atlas"
TABLE_COLUMNS = (*lookup_tables.COLUMNS, "region_ml", "wmh_ml", "wmh_percent", "lesions")
LESION_COLUMNS = ("lesion", "index", "name", "volume_ml")


@dataclass(frozen=True, eq=False)
class Atlas:
    """A label image in MNI152 space, with the name of each label."""

    labels: Volume  # uint16
    named: list[Label]  # by number


@dataclass(frozen=True, eq=False)
class AtlasVolumes:
    """WMH of one scan by the regions of an atlas."""

    labels: Volume  # the atlas on the grid of the scan, uint16, axes in RAS order
    named: list[Label]
    regions: tuple[AtlasRegion, ...]  # first what lies outside the atlas, with the index 0
    lesion_ml: list[tuple[int, int, float]]  # lesion, region, volume; by lesion, the most first

    def as_record(self) -> AtlasRecord:
        """For the record of a run."""
        return AtlasRecord(regions=self.regions)

    def write(self, folder: Path, grid: Volume, tell: Tell) -> None:
        """Write image, tables and lookup tables; `grid` is that of the scan as stored."""
        colours = {label.number: label.colour for label in self.named} | {0: BACKGROUND}
        names = {region.index: region.name for region in self.regions}
        rows = [
            (region.index, region.name, colours[region.index], *astuple(region)[2:])
            for region in self.regions
        ]
        lesions = [(lesion, k, names[k], ml) for lesion, k, ml in self.lesion_ml]
        with side_output(folder, ATLAS_FILE, tell):
            nifti.write(folder / ATLAS_FILE, grid.with_canonical(self.labels.data))
        with side_output(folder, ATLAS_TABLE_FILE, tell):
            write_table(folder / ATLAS_TABLE_FILE, TABLE_COLUMNS, rows)
        with side_output(folder, ATLAS_LESIONS_FILE, tell):
            write_table(folder / ATLAS_LESIONS_FILE, LESION_COLUMNS, lesions)
        with side_output(folder, LOOKUP_FOLDER, tell):
            lookup_tables.write(folder / LOOKUP_FOLDER, "atlas", self.named)


def read(path: Path, names: Path | None = None) -> Atlas:
    """An atlas, and its names from a TSV with the columns index and name; without one the labels
    are named by their numbers.

    Raises LeukoError if a file cannot be used, if the image is not in MNI152 space, and if a label
    has no name.
    """
    labels = nifti.read_numbers(path)
    if not labels.data.any():
        raise LeukoError(f"atlas {path} is empty; expected labels above 0")
    _require_mni(labels, path)
    present = [int(k) for k in np.unique(labels.data) if k]
    if names is None:
        return Atlas(labels, lookup_tables.coloured((k, f"label {k}") for k in present))
    by_index = read_names(names)
    lacking = [k for k in present if k not in by_index]
    if lacking:
        shown = ", ".join(map(str, lacking[:5])) + ", ..." * (len(lacking) > 5)
        raise LeukoError(
            f"{names} has no name for {len(lacking)} of the {len(present)} labels in {path}: "
            f"{shown}; add a row for each"
        )
    return Atlas(labels, lookup_tables.coloured((k, by_index[k]) for k in present))


def read_names(path: Path) -> dict[int, str]:
    """The names in a TSV with the columns index and name, as in a dseg.tsv of BIDS. Raises
    LeukoError for a table that cannot be used, with the number of the line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LeukoError(
            f"table of names {path} cannot be read ({error}); give a tab-separated text file"
        ) from error
    table = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    if not {"index", "name"} <= set(table.fieldnames or ()):
        raise LeukoError(
            f"{path} has the columns {' | '.join(table.fieldnames or ()) or '(none)'}; expected "
            "index and name, separated by tabs"
        )
    found: dict[int, str] = {}
    for row in table:
        where = f"{path}, line {table.line_num}"
        name = (row["name"] or "").strip()
        try:
            index = int(row["index"])
        except (TypeError, ValueError):
            raise LeukoError(
                f"{where}: the index is {row['index']!r}; expected a whole number"
            ) from None
        if not name:
            raise LeukoError(f"{where}: label {index} has no name; give one")
        if index in found:
            raise LeukoError(f"{where}: label {index} has two names; remove one")
        found[index] = name
    return found


def measure(atlas: Atlas, numbers: Array, grid: Volume, place: Place) -> AtlasVolumes:
    """WMH by region; `numbers` (X, Y, Z) are the ids of lesions on `grid`, axes in RAS order.

    Voxels are divided in parts of about 1 mm. The volume of a region is its volume in the atlas
    divided by the determinant of the registration.
    """
    indices = np.array([0, *(label.number for label in atlas.named)])
    names = [OUTSIDE, *(label.name for label in atlas.named)]
    voxels = np.argwhere(numbers)
    lesion = numbers[numbers > 0].astype(np.intp)
    parts = _parts(grid)
    counts = np.zeros((int(lesion.max(initial=0)) + 1) * len(indices))
    for part in parts:
        found = _at(atlas.labels, place.apply(world(grid, voxels + part)))
        region = np.searchsorted(indices, found)
        counts += np.bincount(lesion * len(indices) + region, minlength=len(counts))
    ml = counts.reshape(-1, len(indices)) * (grid.voxel_mm3 / 1000 / len(parts))
    growth = float(abs(np.linalg.det(place.to_mni)))
    sizes = np.bincount(atlas.labels.data.ravel(), minlength=int(indices[-1]) + 1)[indices]
    region_ml = sizes * atlas.labels.voxel_mm3 / 1000 / growth
    regions = tuple(
        AtlasRegion(
            index=int(index),
            name=name,
            region_ml=round(float(region_ml[k]), 4) if k else None,
            wmh_ml=round(float(ml[:, k].sum()), 4),
            wmh_percent=round(float(100 * ml[:, k].sum() / region_ml[k]), 4) if k else None,
            lesions=int(np.count_nonzero(ml[:, k])),
        )
        for k, (index, name) in enumerate(zip(indices, names, strict=True))
    )
    lesion_ml = [
        (number, int(indices[k]), float(row[k]))
        for number, row in enumerate(ml)
        for k in np.argsort(-row, kind="stable")
        if row[k]
    ]
    here = Volume(atlas.labels.data, np.linalg.inv(place.to_mni) @ atlas.labels.affine)
    return AtlasVolumes(labels_onto(here, grid), atlas.named, regions, lesion_ml)


def _parts(grid: Volume) -> Array:
    """Centres (N, 3) of the parts of a voxel, from its own centre, in voxels."""
    steps = [max(1, round(mm / SAMPLE_MM)) for mm in grid.spacing_mm]
    return np.array(list(product(*((np.arange(n) + 0.5) / n - 0.5 for n in steps))))


def _at(labels: Volume, points_mm: Array) -> Array:
    """The label at each point (N, 3) in the world of the atlas; 0 outside its image."""
    voxels = np.rint(apply_affine(np.linalg.inv(labels.affine), points_mm)).astype(np.intp)
    inside = ((voxels >= 0) & (voxels < labels.data.shape)).all(axis=1)
    found = np.zeros(len(voxels), dtype=labels.data.dtype)
    found[inside] = labels.data[tuple(voxels[inside].T)]
    return found


def _require_mni(labels: Volume, path: Path) -> None:
    """Raises LeukoError unless nearly all labelled voxels lie in the template's brain."""
    points = world(labels, np.argwhere(labels.data)[::SPARSE])
    here = Place(np.eye(4))
    inside = float((here.beyond_brain_mm(points) <= BEYOND_MM).mean())
    if inside < LEAST_INSIDE:
        raise LeukoError(
            f"atlas {path} is not in MNI152 space: {100 * inside:.0f} % of its labelled voxels lie "
            f"in the brain of the template, expected {100 * LEAST_INSIDE:.0f} % or more; give an "
            "atlas in that space"
        )
