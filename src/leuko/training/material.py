"""The scans, label maps and lesion masks of a mixed training, with their sources and credits.

A table of sources is tab-separated, with the columns name, source, person, weight and credit. A
name is that of a folder of a scan, or of the file of a label map or of a lesion mask without its
ending, or a pattern of such names (`tabriz_*`); the first row that fits a name counts.
"""

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import Any

from leuko.errors import LeukoError
from leuko.io.files import find_image, image_stem, sha256
from leuko.training import lineage
from leuko.training.lineage import Described
from leuko.training.settings import Settings

log = logging.getLogger(__name__)

COLUMNS = ("name", "source", "person", "weight", "credit")
LABELLED = {
    "flair": "FLAIR",
    "t1": "T1",
    "lesions": "lesions",
    "pathological": "lesions_pathological",
}
UNLABELLED = {"flair": "FLAIR", "t1": "T1"}


@dataclass(frozen=True)
class Origin:
    """Where a scan comes from."""

    source: str = ""  # a data set
    person: str = ""
    weight: float = 1.0  # how often the slices of its source are drawn; 0: never
    credit: str = ""  # and licence


@dataclass(frozen=True)
class Table:
    """Origins by pattern of names. Without rows every name is its own person, of one source."""

    rows: tuple[tuple[str, Origin], ...] = ()
    path: str = ""

    @classmethod
    def read(cls, path: Path) -> "Table":
        """Raises LeukoError for a file that is no table of sources."""
        try:
            with path.open(encoding="utf-8", newline="") as file:
                lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        except (OSError, UnicodeError) as error:
            raise LeukoError(f"{path} cannot be read as a table of sources: {error}") from error
        found = tuple(lines[0]) if lines else ()
        if found != COLUMNS:
            raise LeukoError(
                f"{path}: expected the columns {', '.join(COLUMNS)}, separated by tabs, and a row "
                f"or more; found {', '.join(map(str, found)) or 'none'}"
            )
        return cls(tuple(_row(line, path) for line in lines), str(path))

    def origin(self, name: str) -> Origin:
        """Raises LeukoError for a name that no row fits."""
        if not self.rows:
            return Origin(person=name)
        for pattern, origin in self.rows:
            if fnmatchcase(name, pattern):
                return Origin(**asdict(origin) | {"person": origin.person or name})
        raise LeukoError(
            f"{name} is in no row of {self.path}; add it with its source and its licence"
        )


def _row(line: Mapping[str, str | None], path: Path) -> tuple[str, Origin]:
    name, source, person, written, credit = (line[column] or "" for column in COLUMNS)
    try:
        weight = float(written or 1)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise LeukoError(
            f"{path}: the weight of {name} is {written!r}; expected a number of 0 or more"
        )
    return name, Origin(source, person, weight, credit)


@dataclass(frozen=True)
class Item:
    """A scan, a label map or a lesion mask: its files by kind, and where it comes from."""

    name: str
    files: Mapping[str, Path]
    origin: Origin


@dataclass(frozen=True)
class Material:
    """All that a mixed training is made of."""

    labelled: list[Item]  # scans: `flair`, perhaps `t1`, `lesions` and `pathological`
    unlabelled: list[Item]  # scans: `flair`, perhaps `t1`
    heads: list[Item]  # label maps; none: the MNI152 brain
    atlas: list[Item]  # lesion masks in MNI space

    @property
    def credits(self) -> str:
        """What it is, how much of it, and whose."""
        parts = (
            (self.heads, "synthetic slices of {count} label maps of heads"),
            (self.atlas, "with lesion masks of {count} patients"),
            (self.labelled, "{count} labelled scans{of}"),
            (self.unlabelled, "{count} unlabelled scans{of}"),
        )
        said = [] if self.heads else ["synthetic slices of the MNI152 brain"]
        for items, what in parts:
            for source, group in groupby(sorted(items, key=_source), _source):
                own = list(group)
                credit = f" ({own[0].origin.credit})" if own[0].origin.credit else ""
                of = f" of {source}" if source else ""
                said.append(what.format(count=len(own), of=of) + credit)
        return "; ".join(said)

    def described(self) -> dict[str, list[Described]]:
        """The scans as JSON, with hashes of their files and fingerprints of their voxels."""
        return {
            group: [
                _files_described(item) | {"scan": lineage.fingerprint(item.files["flair"])}
                for item in items
            ]
            for group, items in self._scans.items()
        }

    def require_unchanged(self, described: Mapping[str, Sequence[Described]]) -> None:
        """Raises LeukoError unless the scans are those described."""
        for group, items in self._scans.items():
            then = {entry["name"]: dict(entry) for entry in described[group]}
            now = {item.name: _files_described(item) for item in items}
            for name in sorted(then.keys() | now.keys()):
                if then.get(name, {}) | {"scan": None} != now.get(name, {}) | {"scan": None}:
                    raise LeukoError(
                        f"{name} is not as it was when the run started: its files, or its row in "
                        "the table of sources; put it back, or start another run"
                    )

    @property
    def _scans(self) -> dict[str, list[Item]]:
        return {"train": self.labelled, "unlabelled": self.unlabelled}


def find(settings: Settings) -> Material:
    """Raises LeukoError if a folder holds nothing to train with, a name is in no row of the table
    of sources, or `leave` fits nothing."""
    table = Table.read(Path(settings.sources)) if settings.sources else Table()
    every = {
        "labelled": find_scans(Path(settings.data), table),
        "unlabelled": find_scans(_path(settings.unlabelled), table, UNLABELLED),
        "heads": _images(_path(settings.heads), table),
        "atlas": _images(_path(settings.atlas), table),
    }
    left = _left_out([item for items in every.values() for item in items], settings.leave)
    kept = {kind: [item for item in every[kind] if item not in left] for kind in every}
    for kind, folder in (("unlabelled", settings.unlabelled), ("heads", settings.heads)):
        if folder and not kept[kind]:
            raise LeukoError(f"all of {folder} is left out; leave away --{kind}, or --leave")
    if not kept["labelled"]:
        log.warning("%s: all labelled scans are left out", settings.data)
    return Material(**kept)


def find_scans(
    folder: Path | None, table: Table, files: Mapping[str, str] = LABELLED
) -> list[Item]:
    """The scans in the folders of a folder, sorted by name.

    Raises LeukoError if there is none, or one is in no row of the table.
    """
    if folder is None:
        return []
    items = []
    for home in sorted(path for path in folder.glob("*") if path.is_dir()):
        found = {kind: find_image(home, stem) for kind, stem in files.items()}
        if found["flair"]:
            paths = {kind: path for kind, path in found.items() if path}
            items.append(Item(home.name, paths, table.origin(home.name)))
    if not items:
        raise LeukoError(f"{folder} holds no scan; expected folders with FLAIR.nii.gz")
    return items


def _images(folder: Path | None, table: Table) -> list[Item]:
    """Label maps or masks, each a file of a folder."""
    if folder is None:
        return []
    paths = sorted(path for path in folder.glob("*") if path.name.endswith((".nii.gz", ".nii")))
    if not paths:
        raise LeukoError(f"{folder} holds no image; expected .nii.gz files")
    names = [image_stem(path) for path in paths]
    return [
        Item(name, {"labels": path}, table.origin(name))
        for name, path in zip(names, paths, strict=True)
    ]


def _path(folder: str | None) -> Path | None:
    return Path(folder) if folder else None


def _left_out(items: Sequence[Item], leave: Sequence[str]) -> list[Item]:
    """Those of weight 0, and those whose name, person or source is in `leave`. All scans of a
    person are left out together."""
    known = {name for item in items for name in _names(item)}
    unknown = sorted(set(leave) - known)
    if unknown:
        raise LeukoError(
            f"--leave {unknown[0]} fits no scan, person, source, label map or mask; check the name"
        )
    people = {item.origin.person for item in items if item.name in leave}
    return [
        item
        for item in items
        if not item.origin.weight or not _names(item).isdisjoint({*leave, *people})
    ]


def _names(item: Item) -> set[str]:
    return {item.name, item.origin.person, item.origin.source}


def _source(item: Item) -> str:
    return item.origin.source


def _files_described(item: Item) -> dict[str, Any]:
    files = {kind: {"path": str(p), "sha256": sha256(p)} for kind, p in item.files.items()}
    return {"name": item.name, "files": files, **asdict(item.origin)}
