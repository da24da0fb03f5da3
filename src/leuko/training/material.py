"""The scans, label maps and lesion masks of a mixed training, with their sources and credits.

A table of sources is tab-separated, with the columns name, source, person, weight and credit. The
name is the folder of a scan, or the file of a label map or lesion mask without its suffix; it may
be a pattern (`tabriz_*`). The first row that matches a name is used.
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
    """The origin of a scan, a label map or a lesion mask."""

    source: str = ""  # data set
    person: str = ""
    weight: float = 1.0  # relative frequency of the source among labelled slices; 0: left out
    credit: str = ""  # authors and licence


@dataclass(frozen=True)
class Table:
    """A table of sources: the origin for each pattern of names.

    Without rows, all names have the same source and each name is a person.
    """

    rows: tuple[tuple[str, Origin], ...] = ()
    path: str = ""

    @classmethod
    def read(cls, path: Path) -> "Table":
        """Read a table of sources. Raises LeukoError if the file is not one."""
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
                lines, columns = list(reader), tuple(reader.fieldnames or ())
        except (OSError, UnicodeError, csv.Error) as error:
            raise LeukoError(f"{path} cannot be read as a table of sources: {error}") from error
        if columns != COLUMNS or not lines:
            raise LeukoError(
                f"{path}: expected the columns {', '.join(COLUMNS)}, separated by tabs, and at "
                f"least one row; found {', '.join(columns) or 'no columns'} and {len(lines)} rows"
            )
        return cls(tuple(_row(line, path) for line in lines), str(path))

    def origin(self, name: str) -> Origin:
        """The origin of a scan, label map or mask. Raises LeukoError if no row matches its name."""
        if not self.rows:
            return Origin(person=name)
        for pattern, origin in self.rows:
            if fnmatchcase(name, pattern):
                return Origin(**asdict(origin) | {"person": origin.person or name})
        raise LeukoError(
            f"{name} matches no row of {self.path}; add a row with its source and licence"
        )


def _row(line: Mapping[str, str | None], path: Path) -> tuple[str, Origin]:
    name, source, person, written, credit = (line[column] or "" for column in COLUMNS)
    if len(line) > len(COLUMNS):  # the surplus cells have the key None
        raise LeukoError(
            f"{path}: the row of {name} has more cells than the {len(COLUMNS)} columns; remove tabs"
        )
    try:
        weight = float(written or 1)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise LeukoError(
            f"{path}: the weight of {name} is {written!r}; expected a number, 0 or larger"
        )
    return name, Origin(source, person, weight, credit)


@dataclass(frozen=True)
class Item:
    """A scan, a label map or a lesion mask: its files by kind, and its origin."""

    name: str
    files: Mapping[str, Path]
    origin: Origin


@dataclass(frozen=True)
class Material:
    """The data of a mixed training."""

    labelled: list[Item]  # scans: `flair`; optional: `t1`, `lesions`, `pathological`
    unlabelled: list[Item]  # scans: `flair`; optional: `t1`
    heads: list[Item]  # label maps, for synthetic scans; empty: the MNI152 brain
    atlas: list[Item]  # lesion masks in MNI space, for synthetic scans

    @property
    def credits(self) -> str:
        """One sentence for the model card: the number of items of each source and their credit."""
        parts = (
            (self.heads, "synthetic slices of {count} label maps of heads"),
            (self.atlas, "with lesion masks of {count} patients"),
            (self.labelled, "{count} labelled scans{of}"),
            (self.unlabelled, "{count} unlabelled scans{of}"),
        )
        entries = [] if self.heads else ["synthetic slices of the MNI152 brain"]
        for items, entry in parts:
            for source, group in groupby(sorted(items, key=_source), _source):
                own = list(group)
                distinct = dict.fromkeys(i.origin.credit for i in own if i.origin.credit)
                credit = f" ({'; '.join(distinct)})" if distinct else ""
                of = f" of {source}" if source else ""
                entries.append(entry.format(count=len(own), of=of) + credit)
        return "; ".join(entries)

    def described(self) -> dict[str, list[Described]]:
        """The scans as JSON: hashes of their files, a fingerprint of their voxels, their origin."""
        return {
            group: [
                _files_described(item) | {"scan": lineage.fingerprint(item.files["flair"])}
                for item in items
            ]
            for group, items in self._scans.items()
        }

    @property
    def label_hashes(self) -> dict[str, str]:
        """The SHA-256 of each label map and lesion mask."""
        return {
            f"{kind}/{item.name}": sha256(item.files["labels"])
            for kind, items in (("heads", self.heads), ("atlas", self.atlas))
            for item in items
        }

    def require_unchanged(self, record: Mapping[str, Any]) -> None:
        """Raises LeukoError if scans, label maps or masks differ from those in a run's record."""
        changed = record["label_hashes"].items() ^ self.label_hashes.items()
        names = {name for name, _ in changed}
        for group, items in self._scans.items():
            then = {entry["name"]: dict(entry) for entry in record["subjects"][group]}
            now = {item.name: _files_described(item) for item in items}
            names |= {
                name
                for name in then.keys() | now.keys()
                if then.get(name, {}) | {"scan": None} != now.get(name, {}) | {"scan": None}
            }
        if names:
            raise LeukoError(
                f"{min(names)}: the files or the row in the table of sources changed since the "
                "run started; restore them, or start a new run"
            )

    @property
    def _scans(self) -> dict[str, list[Item]]:
        return {"train": self.labelled, "unlabelled": self.unlabelled}


def find(settings: Settings) -> Material:
    """The data of a mixed training, without the items that `leave` names.

    Raises LeukoError if a folder holds no usable files, a name matches no row of the table of
    sources, or a name in `leave` matches no item.
    """
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
            raise LeukoError(
                f"{folder}: all files are left out; remove --{kind}, or change --leave"
            )
    if not kept["labelled"]:
        log.warning("%s: all labelled scans are left out", settings.data)
    return Material(**kept)


def find_scans(
    folder: Path | None, table: Table, files: Mapping[str, str] = LABELLED
) -> list[Item]:
    """The scans in the subfolders of `folder`, one in each, sorted by name; without `folder`, none.

    `files` maps each kind of file to its name without suffix; a subfolder without `flair` is
    skipped. Raises LeukoError if there are no scans, or a scan matches no row of the table.
    """
    if folder is None:
        return []
    items = []
    for home in _sorted_content(folder):
        found = {kind: find_image(home, stem) for kind, stem in files.items()}
        if found["flair"]:
            paths = {kind: path for kind, path in found.items() if path}
            items.append(Item(home.name, paths, table.origin(home.name)))
    if not items:
        raise LeukoError(f"{folder} holds no scan; expected subfolders with FLAIR.nii.gz")
    return items


def _images(folder: Path | None, table: Table) -> list[Item]:
    """The label maps or masks in `folder`, sorted by file name; without `folder`, none."""
    if folder is None:
        return []
    images: dict[str, Path] = {}
    for path in _sorted_content(folder):
        if path.name.endswith((".nii.gz", ".nii")):
            other = images.setdefault(image_stem(path), path)
            if other != path:
                raise LeukoError(f"{other} and {path} have the same name; remove one of them")
    if not images:
        raise LeukoError(f"{folder} holds no image; expected .nii.gz files")
    return [Item(name, {"labels": path}, table.origin(name)) for name, path in images.items()]


def _sorted_content(folder: Path) -> list[Path]:
    """The files and folders of a folder by name. Raises LeukoError if it is not a folder."""
    if not folder.is_dir():
        raise LeukoError(f"{folder} is not a folder; check the path")
    return sorted(folder.iterdir())


def _path(folder: str | None) -> Path | None:
    return Path(folder) if folder else None


def _left_out(items: Sequence[Item], leave: Sequence[str]) -> list[Item]:
    """The items with weight 0, and those whose name, person or source is in `leave`.

    If one scan of a person is left out by name, all scans of that person are.
    """
    known = {name for item in items for name in _names(item)}
    unknown = sorted(set(leave) - known)
    if unknown:
        raise LeukoError(
            f"--leave {unknown[0] or repr('')} matches no scan, person, source, label map or mask; "
            "check the name"
        )
    people = {item.origin.person for item in items if item.name in leave}
    return [
        item
        for item in items
        if not item.origin.weight or not _names(item).isdisjoint({*leave, *people})
    ]


def _names(item: Item) -> set[str]:
    return {item.name, item.origin.person, item.origin.source} - {""}


def _source(item: Item) -> str:
    return item.origin.source


def _files_described(item: Item) -> dict[str, Any]:
    files = {kind: {"path": str(p), "sha256": sha256(p)} for kind, p in item.files.items()}
    return {"name": item.name, "files": files, **asdict(item.origin)}
