"""A BIDS dataset as names: which FLAIR and T1w belong together, what is made of them is called.

Paths and JSON only. The rules are those of BIDS 1.10 (https://bids-specification.readthedocs.io).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from leuko import __version__
from leuko.errors import LeukoError
from leuko.files import read_json, replace_text, require_folder

VERSION = "1.10.0"
# In the order in which they stand in a name; filters may use the long words.
ENTITIES = {
    "sub": "subject", "ses": "session", "acq": "acquisition", "ce": "ceagent",
    "rec": "reconstruction", "run": "run", "echo": "echo", "inv": "inversion", "part": "part",
    "space": "space", "res": "resolution", "den": "density", "desc": "description",
}  # fmt: skip
IMAGE = re.compile(r"((?:[a-z]+-[A-Za-z0-9+]+_)+)([A-Za-z0-9]+)\.nii(\.gz)?")
# What of an output no rule of BIDS covers. No slash after figures: the validator would err.
IGNORED = ("*_xfm.*", "*_stats.*", "*.html", "figures", "logs", "verdicts*", "/wmh.*")

README = """White matter hyperintensities, found by Leuko in the FLAIR and T1w images of a dataset.

Images lie on the grid of the FLAIR (space-FLAIR). label-WMH_mask is the segmentation,
label-WMH_probseg its probability; the reports (label-WMH_report.html) show them. The level "group"
writes wmh.tsv, which has a row for each FLAIR; phenotype holds the same with one row a participant
in each file. For research; not a medical device.
"""

Filter = Mapping[str, Any]  # by entity: a label, several, "*" for any, None for none


@dataclass(frozen=True)
class Image:
    """An image and the entities in its name, by their short names."""

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """None for a name that is none of BIDS."""
        match = IMAGE.fullmatch(path.name)
        if match is None:
            return None
        pairs = (pair.split("-", 1) for pair in match[1].rstrip("_").split("_"))
        return cls(path, dict(pairs), match[2])

    def passes(self, wanted: Filter) -> bool:
        return all(_passes(self.entities.get(entity), label) for entity, label in wanted.items())


@dataclass(frozen=True)
class Pair:
    """One FLAIR of one visit and its T1w, if there is one."""

    flair: Image
    t1: Image | None

    @property
    def entities(self) -> dict[str, str]:
        """Those that name what is made of it: sub, and ses and run if it has them."""
        kept = ("sub", "ses", "run")
        return {name: self.flair.entities[name] for name in kept if name in self.flair.entities}

    @property
    def name(self) -> str:
        return "_".join(f"{entity}-{label}" for entity, label in self.entities.items())

    @property
    def prefix(self) -> str:
        """Of derivatives, which lie on the grid of the FLAIR."""
        return f"{self.name}_space-FLAIR_"

    def sources(self, dataset: Path) -> tuple[str, ...]:
        """BIDS URIs of the scans, the FLAIR first, for a dataset linked as raw."""
        scans = [self.flair] if self.t1 is None else [self.flair, self.t1]
        return tuple(f"bids:raw:{scan.path.relative_to(dataset).as_posix()}" for scan in scans)

    @property
    def visit(self) -> Path:
        """The folder of the visit in a dataset."""
        found = self.entities
        subject = Path(f"sub-{found['sub']}")
        return subject / f"ses-{found['ses']}" if "ses" in found else subject


def find_pairs(
    dataset: Path,
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    filters: Mapping[str, Filter] | None = None,
) -> tuple[list[Pair], list[str]]:
    """The pairs of a dataset, raw or of derivatives, and what was decided among several images.

    Each run of the FLAIR is one pair. Of several FLAIRs of one run the one with the fewest entities
    in its name is taken, then the first by name. Of several T1w of a visit, the one of the same run
    is taken, then the one whose other entities (acq, space, desc) differ least from the FLAIR's,
    then the one with the fewest. `filters` (flair, t1w) choose before that. Raises LeukoError
    where there is no participant, none of the wanted ones, or no FLAIR.
    """
    filters = filters or {}
    visits = list(_visits(dataset, participants, sessions))
    pairs, notes, without = [], [], []
    for folder in visits:
        images, misplaced = _images(folder)
        notes += [
            f"{path} is left out: its name is of another subject or session" for path in misplaced
        ]
        flairs, t1s = (
            [i for i in images if i.suffix == suffix and i.passes(filters.get(suffix.lower(), {}))]
            for suffix in ("FLAIR", "T1w")
        )
        for run in sorted({flair.entities.get("run", "") for flair in flairs}):
            of_run = [flair for flair in flairs if flair.entities.get("run", "") == run]
            flair = min(of_run, key=_size)
            t1 = min(t1s, key=lambda t1: _distance(t1, flair), default=None)
            pair = Pair(flair, t1)
            pairs.append(pair)
            notes += _notes(pair.name, flair, of_run)
            same_run = [t1 for t1 in t1s if t1.entities.get("run", "") == run]
            notes += _notes(pair.name, t1, same_run or t1s) if t1 else []
        if not flairs:
            without.append(folder.relative_to(dataset).as_posix())
    if not pairs:
        what = "that the filter lets pass" if filters else "such as sub-01/anat/sub-01_FLAIR.nii.gz"
        raise LeukoError(f"{dataset} holds no FLAIR {what}")
    if without:
        notes.append(f"without a FLAIR: {', '.join(without)}")
    return pairs, notes


def read_filter(path: Path) -> dict[str, Filter]:
    """A filter file, as fMRIPrep takes it: {"flair": {"acquisition": "3d"}, "t1w": {...}}.

    Raises LeukoError for another image or entity.
    """
    content, short = read_json(path, what="filter"), {long: name for name, long in ENTITIES.items()}
    filters: dict[str, Filter] = {}
    for image, wanted in content.items():
        if image.lower() not in ("flair", "t1w") or not isinstance(wanted, dict):
            raise LeukoError(
                f"{path} filters {image!r}; expected flair or t1w, each with an object"
            )
        by_entity: dict[str, Any] = {}
        filters[image.lower()] = by_entity
        for entity, label in wanted.items():
            if entity in ("datatype", "suffix", "extension"):
                continue  # these two images have one of each
            if (name := short.get(entity, entity)) not in ENTITIES:
                known = ", ".join(ENTITIES.values())
                raise LeukoError(f"{path} filters by {entity!r}; expected one of {known}")
            by_entity[name] = label
    return filters


def start_dataset(out: Path, source: Path) -> None:
    """Make `out` a dataset of derivatives of `source`, if it is none yet.

    Raises LeukoError where it is a dataset of another program, or no folder.
    """
    require_folder(out)
    about = out / "dataset_description.json"
    before = read_json(about, what="description") if about.exists() else None
    if before is not None:
        makers = before.get("GeneratedBy") or [{}]
        if [maker.get("Name") for maker in makers] != ["Leuko"]:
            raise LeukoError(f"{out} is a dataset of its own; choose another folder for the output")
    link = source.resolve().as_uri()
    description = {
        "Name": "Leuko: white matter hyperintensities",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "Leuko", "Version": __version__}],
        "SourceDatasets": [{"URL": link}],
        "DatasetLinks": {"raw": link},
    }
    if before == description:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_text(about, json.dumps(description, indent=2) + "\n")
        replace_text(out / ".bidsignore", "".join(f"{line}\n" for line in IGNORED))
        replace_text(out / "README", README)
    except OSError as error:
        raise LeukoError(f"cannot write into {out}: {error.strerror}") from error


def label(text: str, entity: str) -> str:
    """A label as people write it, with its entity or without."""
    return text.removeprefix(f"{entity}-")


def _visits(dataset: Path, participants: Sequence[str], sessions: Sequence[str]) -> Iterator[Path]:
    """The folders that hold anat, of the wanted participants and sessions."""
    if not dataset.is_dir():
        raise LeukoError(f"{dataset} does not exist or is no folder; give a BIDS dataset")
    there = {label(f.name, "sub"): f for f in sorted(dataset.glob("sub-*")) if f.is_dir()}
    if not there:
        raise LeukoError(f"{dataset} holds no sub-* folder; give the root of a BIDS dataset")
    wanted = [label(text, "sub") for text in participants] or list(there)
    absent = [text for text in wanted if text not in there]
    if absent:
        raise LeukoError(f"{dataset} has no participant {', '.join(absent)}; check the labels")
    chosen = [label(text, "ses") for text in sessions]
    found = False
    for name in dict.fromkeys(wanted):
        visits = sorted(f for f in there[name].glob("ses-*") if f.is_dir()) or [there[name]]
        for visit in visits:
            if not chosen or label(visit.name, "ses") in chosen:
                found = True
                yield visit
    if not found:
        raise LeukoError(f"{dataset} has no session {', '.join(chosen)}; check the labels")


def _images(visit: Path) -> tuple[list[Image], list[Path]]:
    """Of a visit's folder: its images, and those whose names are of another subject or session."""
    images = [i for path in sorted((visit / "anat").glob("*.nii*")) if (i := Image.of(path))]
    place = dict(
        part.split("-", 1) for part in visit.parts[-2:] if part.startswith(("sub-", "ses-"))
    )
    ours = [i for i in images if all(i.entities.get(k) == place.get(k) for k in ("sub", "ses"))]
    return ours, [image.path for image in images if image not in ours]


def _passes(found: str | None, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return any(_passes(found, one) for one in wanted)
    if wanted is None or found is None:
        return wanted is None and found is None
    return wanted == "*" or _plain(str(wanted)) == _plain(found)


def _plain(text: str) -> str:
    """Runs are numbers: 1 is 01."""
    return str(int(text)) if text.isascii() and text.isdigit() else text


def _size(image: Image) -> tuple[int, str]:
    return len(image.entities), image.path.name


def _distance(t1: Image, flair: Image) -> tuple[bool, int, int, str]:
    names = (t1.entities.keys() | flair.entities.keys()) - {"run"}
    others = sum(t1.entities.get(name) != flair.entities.get(name) for name in names)
    return t1.entities.get("run") != flair.entities.get("run"), others, *_size(t1)


def _notes(name: str, chosen: Image, among: Sequence[Image]) -> list[str]:
    if len(among) < 2:
        return []
    taken = f"{name}: of {len(among)} {chosen.suffix} {chosen.path.name} is taken"
    return [f"{taken}; --bids-filter-file decides otherwise"]
