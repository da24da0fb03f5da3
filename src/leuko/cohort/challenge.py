"""The WMH Segmentation Challenge (Kuijf et al., IEEE TMI 2019, doi 10.1109/TMI.2019.2905770).

Its container, the layout of its data (doi 10.34894/AECRSD), its table and its ranking. Anyone may
download the data; the licence does not allow redistribution, so none of it is included.
"""

import csv
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from leuko.cohort.job import Job
from leuko.cohort.worker import Limits
from leuko.errors import LeukoError
from leuko.evaluation.evaluate import Row, compare, mean_with_interval
from leuko.evaluation.evaluate import write_table as write_scores
from leuko.evaluation.labels import LABEL_VALUES
from leuko.evaluation.metrics import MEASURES
from leuko.io import nifti
from leuko.io.files import refuse, require_writable, staged, walk
from leuko.io.outputs import write_table
from leuko.results import Segmentation
from leuko.segment import SegmentSettings, segment

RESULT_FILE = "result.nii.gz"
REFERENCE_FILE, FLAIR_FILE = "wmh.nii.gz", "FLAIR.nii.gz"
SCORES_FILE, SITES_FILE = "scores.tsv", "sites.tsv"
log = logging.getLogger(__name__)

Split = Literal["training", "test"]
# Number of scans in each folder.
OFFICIAL: dict[str, dict[str, int]] = {
    "training": {"Utrecht": 20, "Singapore": 20, "Amsterdam/GE3T": 20},
    "test": {
        "Utrecht": 30,
        "Singapore": 30,
        "Amsterdam/GE3T": 30,
        "Amsterdam/GE1T5": 10,
        "Amsterdam/Philips_VU .PETMR_01.": 10,
    },
}
RANKED = ("dsc", "h95_mm", "avd_percent", "lesion_recall", "lesion_f1")
HIGHER_IS_BETTER = {m.key for m in MEASURES if m.better == "higher"}
ALL = "all"


@dataclass(frozen=True)
class Scan:
    """One scan of the challenge's data."""

    site: str  # the folders between the split and the number: Utrecht, Amsterdam/GE3T
    number: str
    folder: Path  # holds pre, orig and wmh.nii.gz

    @property
    def name(self) -> str:
        """A valid folder name on any system."""
        return re.sub(r"[^A-Za-z0-9-]+", "_", f"{self.site}_{self.number}")

    @property
    def reference(self) -> Path:
        return self.folder / REFERENCE_FILE


def answer(source: Path, out: Path, settings: SegmentSettings) -> Segmentation:
    """Run as the challenge's container: read `source`/pre, or else orig, write `out`/result.nii.gz.

    Raises LeukoError as `segment`.
    """
    flair, t1 = find_pair(source)
    if not flair.exists():
        raise LeukoError(
            f"{source} holds neither pre/FLAIR.nii.gz nor orig/FLAIR.nii.gz; expected a folder as "
            "the challenge mounts it at /input"
        )
    with staged(out) as scratch:
        result = segment(flair, t1, settings=settings)
        nifti.write(scratch / RESULT_FILE, result.maps.mask)
    return result


def find_pair(folder: Path) -> tuple[Path, Path]:
    """Paths of FLAIR and T1: in orig if only orig has a FLAIR, otherwise in pre."""
    prepared, original = (folder / place / FLAIR_FILE for place in ("pre", "orig"))
    flair = original if original.exists() and not prepared.exists() else prepared
    return flair, flair.with_name("T1.nii.gz")


def find_scans(data: Path, split: Split) -> list[Scan]:
    """The scans of the official training or test set, in the order of sites and numbers.

    `data` is the downloaded folder, which holds the folders training and test. Raises LeukoError if
    it does not, or for a site that the challenge does not have.
    """
    home = data / split
    if not data.is_dir():
        raise LeukoError(f"{data} does not exist or is not a folder; check the path")
    if not home.is_dir():
        raise LeukoError(
            f"{data} holds no folder {split}; expected the challenge's data as it is downloaded "
            "(https://doi.org/10.34894/AECRSD), with training and test"
        )
    known = {_plain(site): site for site in OFFICIAL[split]}
    scans = []
    for folder in _folders(home, REFERENCE_FILE):
        site = folder.parent.relative_to(home).as_posix()
        if _plain(site) not in known:
            raise LeukoError(
                f"{folder} does not belong to any site of the {split} set; expected one of "
                f"{', '.join(known.values())}"
            )
        scans.append(Scan(known[_plain(site)], folder.name, folder))
    if not scans:
        raise LeukoError(f"{home} holds no scan; expected {split}/Utrecht/NUMBER/wmh.nii.gz")
    sites = list(OFFICIAL[split])
    return sorted(scans, key=lambda scan: (sites.index(scan.site), scan.number.zfill(4)))


def without_reference(data: Path, split: Split) -> list[Path]:
    """Folders of scans without wmh.nii.gz, which cannot be measured."""
    homes = {folder.parent for folder in _folders(data / split, FLAIR_FILE)}
    return sorted(home for home in homes if not (home / REFERENCE_FILE).is_file())


def jobs(
    scans: Sequence[Scan], out: Path, settings: SegmentSettings, limits: Limits
) -> dict[Scan, Job]:
    """For each scan the job that segments it, into a folder of its own in `out`."""
    found = {}
    for scan in scans:
        flair, t1 = find_pair(scan.folder)
        found[scan] = Job(
            name=scan.name,
            flair=flair,
            t1=t1,
            folder=out / scan.name,
            root=out,
            work=out,
            settings=settings,
            limits=limits,
        )
    return found


def find_results(scans: Sequence[Scan], data: Path, results: Path) -> dict[Scan, Path]:
    """The existing masks of another tool or observer; `results` is laid out as `data`.
    Raises LeukoError if `results` is not a folder."""
    if not results.is_dir():
        raise LeukoError(f"{results} does not exist or is not a folder; check the path")
    places = {scan: results / scan.folder.relative_to(data) / RESULT_FILE for scan in scans}
    for folder in sorted(_folders(results, RESULT_FILE)):
        if folder / RESULT_FILE not in places.values():
            file = folder / RESULT_FILE
            log.warning("%s does not belong to any scan in %s; it is not measured", file, data)
    return {scan: path for scan, path in places.items() if path.is_file()}


def score(masks: Mapping[Scan, Path], out: Path) -> dict[str, Row]:
    """Measure each mask against its reference; write scores.tsv and sites.tsv into `out`.

    Masks are read by the challenge's rule (`nifti.read_prediction`). Returns `by_site`. Raises
    LeukoError if there is no mask, if one is not on the grid of its reference, or if `out` cannot
    be written.
    """
    if not masks:
        raise LeukoError("no scan has a result; nothing can be scored")
    require_writable(out)
    rows = {
        scan: compare(
            nifti.read_labels(scan.reference, values=LABEL_VALUES), nifti.read_prediction(mask)
        )
        for scan, mask in masks.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    write_scores(out / SCORES_FILE, {scan.name: row for scan, row in rows.items()})
    means = by_site(rows)
    columns = ["site", *next(iter(means.values()))]
    write_table(out / SITES_FILE, columns, ([site, *row.values()] for site, row in means.items()))
    return means


def missing(scans: Sequence[Scan], split: Split) -> list[str]:
    """Sites whose number of scans is not the official one: "Utrecht: 28 of 30"."""
    found = {site: sum(scan.site == site for scan in scans) for site in OFFICIAL[split]}
    return [
        f"{site}: {found[site]} of {count}"
        for site, count in OFFICIAL[split].items()
        if found[site] != count
    ]


def by_site(rows: Mapping[Scan, Row]) -> dict[str, Row]:
    """The challenge's table: the mean of each measure over the scans of each site, and of all.

    `scans` is their number. Scans for which a measure is undefined (H95 without a prediction) do
    not count in its mean; nan if it is undefined for all.
    """
    sites = dict.fromkeys(scan.site for scan in rows)
    return {site: _mean([row for s, row in rows.items() if s.site == site]) for site in sites} | {
        ALL: _mean(list(rows.values()))
    }


def ranks(teams: Mapping[str, Row]) -> dict[str, float]:
    """The challenge's rank of each team, best first; 0 is the best team in all measures.

    For each of the five measures the best team gets 0, the worst 1, and the others a value scaled
    linearly between; a team's rank is the mean of the five (Kuijf et al. 2019). An undefined
    measure gets 1; all teams get 0 if they do not differ.
    """
    total = dict.fromkeys(teams, 0.0)
    for key in RANKED:
        values = np.array([row[key] for row in teams.values()], dtype=float)
        loss = -values if key in HIGHER_IS_BETTER else values
        best, worst = np.nanmin(loss), np.nanmax(loss)
        part = (loss - best) / (worst - best) if worst > best else np.zeros_like(loss)
        for team, rank in zip(teams, np.where(np.isnan(loss), 1.0, part), strict=True):
            total[team] += float(rank) / len(RANKED)
    return dict(sorted(total.items(), key=lambda item: item[1]))


def read_teams(path: Path) -> dict[str, Row]:
    """Means of other teams: a TSV with the columns team, dsc, h95_mm, avd_percent, lesion_recall,
    lesion_f1. Raises LeukoError for another table."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        teams = {row["team"]: {key: float(row[key]) for key in RANKED} for row in rows}
    except (OSError, KeyError, TypeError, ValueError) as error:
        why = f"lacks the column {error}" if isinstance(error, KeyError) else error
        raise LeukoError(
            f"{path} is not a table of teams ({why}); expected the columns team, "
            f"{', '.join(RANKED)}, separated by tabs, with numbers"
        ) from error
    if not teams:
        raise LeukoError(f"{path} lists no team; expected a row for each")
    return teams


def _folders(home: Path, name: str) -> list[Path]:
    """Folders that hold a file of that name. Raises LeukoError if a folder cannot be read."""
    return [folder for folder, _, files in walk(home, on_error=refuse) if folder / name in files]


def _mean(rows: Sequence[Row]) -> Row:
    means: Row = {"scans": float(len(rows))}
    for measure in MEASURES:
        means[measure.key] = mean_with_interval([row[measure.key] for row in rows])[0]
    return means


def _plain(site: str) -> str:
    """A site's name for comparison: some systems drop spaces and dots at a folder name's end."""
    return re.sub(r"[ ._]+", "", site).lower()
