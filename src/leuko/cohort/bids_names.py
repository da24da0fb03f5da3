"""Names of images in a BIDS dataset: their entities, and filters by entity."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from leuko.errors import LeukoError
from leuko.io.files import read_json

# In their order within a name.
ENTITIES = (
    "sub", "ses", "sample", "task", "acq", "ce", "trc", "stain", "rec", "dir", "run", "mod",
    "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space", "split", "recording", "chunk",
    "seg", "res", "den", "label", "desc",
)  # fmt: skip
# Long names, which filters use, and the short names in file names.
LONG = {
    "subject": "sub", "session": "ses", "acquisition": "acq", "ceagent": "ce", "tracer": "trc",
    "staining": "stain", "reconstruction": "rec", "direction": "dir", "modality": "mod",
    "inversion": "inv", "mtransfer": "mt", "processing": "proc", "hemisphere": "hemi",
    "segmentation": "seg", "resolution": "res", "density": "den", "description": "desc",
}  # fmt: skip
OWN = ("space", "seg", "res", "den", "label", "desc")  # entities that derivatives set themselves
NOT_MAGNITUDE = ("phase", "real", "imag")
INDICES = ("run", "echo", "flip", "inv", "split", "chunk")  # labels are numbers: 1 equals 01
NAME = re.compile(r"((?:[a-z]+-[A-Za-z0-9+]+_)+)([A-Za-z0-9]+)(\.[A-Za-z0-9.]+)")
SUFFIXES = {"flair": "FLAIR", "t1w": "T1w"}  # by their names in a filter file
# Other images in filter files of fMRIPrep and related programs.
OTHERS = ("bold", "sbref", "fmap", "t2w", "t2star", "roi", "dwi", "asl", "m0scan", "pet", "meg")
OPTIONAL = "Query.OPTIONAL"
# Other arguments of PyBIDS' `get`, to which fMRIPrep passes a filter; they select no image.
NOT_ENTITIES = ("scope", "invalid_filters", "absolute_paths", "return_type", "target")
QUERIES = {"NONE": None, "ANY": "*", "REQUIRED": "*", "OPTIONAL": OPTIONAL}  # of PyBIDS
QUERY = re.compile(rf"<?Query\.({'|'.join(QUERIES)})(: \d+)?>?")

Filter = Mapping[str, Any]  # by entity: a list of labels, "*" for any, None for none

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Image:
    """A file with a BIDS-like name; its entities by their short names."""

    path: Path
    entities: dict[str, str]
    suffix: str
    extension: str

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """The image at a path; None if its name is not entities, a suffix and an extension."""
        match = NAME.fullmatch(path.name)
        if match is None:
            return None
        pairs = (pair.split("-", 1) for pair in match[1].rstrip("_").split("_"))
        return cls(path, dict(pairs), match[2], match[3])

    @cached_property
    def proper_name(self) -> str:
        """The name with the entities that BIDS defines, each once and in order."""
        known = [f"{name}-{self.entities[name]}" for name in ENTITIES if name in self.entities]
        return "_".join([*known, self.suffix]) + self.extension

    @property
    def name(self) -> str:
        """The name of the scan in logs and tables, such as sub-01_ses-1."""
        labels = (f"{name}-{text}" for name, text in self.entities.items() if name not in OWN)
        return "_".join(labels)

    @property
    def place(self) -> Path:
        """The folder, relative to the dataset, in which an image of this name belongs."""
        return visit_folder(self.entities) / "anat"

    @property
    def is_magnitude(self) -> bool:
        return self.entities.get("part") not in NOT_MAGNITUDE

    @property
    def scan(self) -> tuple[Path, frozenset[tuple[str, str]]]:
        """Folder and entities, which all parts and copies of a scan share."""
        shared = {name: self.entities[name] for name in self.entities.keys() - {*OWN, "part"}}
        return self.path.parent, frozenset(shared.items())

    def passes(self, wanted: Filter) -> bool:
        labels = {**self.entities, "suffix": self.suffix, "extension": self.extension}
        labels["datatype"] = "anat"
        return all(
            _passes(labels.get(name), label, name=name, by_regex=wanted.get("regex_search", False))
            for name, label in wanted.items()
            if name != "regex_search"
        )


def read_filter(path: Path) -> dict[str, Filter]:
    """A filter file of fMRIPrep: {"flair": {"acquisition": "3d"}, "t1w": {...}, "bold": {...}}.

    Filters of images other than FLAIR and T1w are ignored. A label may be a text, a number, a list,
    null or "Query.NONE" (the entity is absent), "*" or "Query.ANY" (it is present), or
    "Query.OPTIONAL" (either); with "regex_search": true labels are regular expressions. null as the
    filter of an image means no filter. Arguments of PyBIDS that are not entities are ignored with a
    warning. Raises LeukoError for anything else.
    """
    content = read_json(path, what="filter")
    unknown = [name for name in content if name.lower() not in (*SUFFIXES, *OTHERS)]
    if unknown:
        log.warning("%s: not used: %s; expected flair or t1w", path, ", ".join(unknown))
    return {
        image.lower(): _read_wanted(wanted, f"{path}: {image}")
        for image, wanted in content.items()
        if image.lower() in SUFFIXES and wanted is not None
    }


def _read_wanted(wanted: Any, where: str) -> Filter:
    if not isinstance(wanted, dict):
        raise LeukoError(f"{where} is {wanted!r}; expected an object of entities and their labels")
    by_entity: dict[str, Any] = {}
    for entity, given in wanted.items():
        name = LONG.get(entity, entity)
        if name == "regex_search":
            if not isinstance(given, bool):
                raise LeukoError(f"{where}: regex_search is {given!r}; expected true or false")
            by_entity[name] = given
        elif name in NOT_ENTITIES:
            log.warning("%s: not used: %s; expected entities of BIDS", where, entity)
        elif name in (*ENTITIES, "suffix", "extension", "datatype"):
            labels = [
                _read_label(one, f"{where}: {entity}")
                for one in (given if isinstance(given, list) else [given])
            ]
            if OPTIONAL not in labels:
                by_entity[name] = labels
        else:
            known = ", ".join(LONG)
            raise LeukoError(
                f"{where} filters by {entity!r}; expected an entity of BIDS, such as {known}"
            )
    if wanted.get("regex_search"):
        _require_patterns(by_entity, where)
    return by_entity


def _read_label(given: Any, where: str) -> str | None:
    if given is None or (isinstance(given, str) and given == "*"):
        return given
    if isinstance(given, str):
        query = QUERY.fullmatch(given)
        return QUERIES[query[1]] if query else given
    if isinstance(given, int | float) and not isinstance(given, bool):
        return f"{given:g}"
    raise LeukoError(f"{where} is {given!r}; expected a label, a list of labels, or null")


def _require_patterns(by_entity: Filter, where: str) -> None:
    for entity, labels in by_entity.items():
        for one in labels if isinstance(labels, list) else ():
            try:
                re.compile(one or "")
            except re.error as error:
                if one != "*":
                    raise LeukoError(
                        f"{where}: {entity} {one!r} is not a regular expression: {error}"
                    ) from error


def label(text: str, entity: str) -> str:
    """A label without its entity, whichever way it was written: 01 for sub-01 and for 01."""
    return text.removeprefix(f"{entity}-")


def visit_folder(entities: Mapping[str, str]) -> Path:
    """The folder of a visit in a dataset: sub-01, or sub-01/ses-1."""
    subject = Path(f"sub-{entities.get('sub', '')}")
    return subject / f"ses-{entities['ses']}" if "ses" in entities else subject


def _passes(found: str | None, wanted: Any, *, name: str, by_regex: bool) -> bool:
    if isinstance(wanted, list):
        return any(_passes(found, one, name=name, by_regex=by_regex) for one in wanted)
    if wanted is None or found is None:
        return wanted is None and found is None
    if wanted == "*":
        return True
    if by_regex:
        return re.search(wanted, found) is not None
    if name == "extension":
        return found == f".{wanted.lstrip('.')}"
    return _plain(str(wanted), name) == _plain(found, name)


def _plain(text: str, name: str) -> str:
    return str(int(text)) if name in INDICES and text.isascii() and text.isdigit() else text
