"""A BIDS dataset: its pairs of FLAIR and T1w, and the names of their derivatives.

Only paths and JSON files are read. The rules are those of BIDS 1.10 (https://bids-specification.readthedocs.io).
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from leuko.cohort.bids_names import OWN, SUFFIXES, Filter, Image, label, visit_folder
from leuko.errors import LeukoError
from leuko.io.files import is_folder, walk

EXTENSIONS = (".nii.gz", ".nii")
FORMATS = (  # extensions of files that may be images
    *EXTENSIONS, ".nii.bz2", ".nii.xz", ".nii.zst", ".img", ".img.gz", ".mgz", ".mgh", ".mnc",
    ".mif", ".mif.gz", ".nrrd", ".mha", ".mhd", ".rec", ".dcm", ".ima",
)  # fmt: skip
APART = ("derivatives", "sourcedata", "code", "stimuli", "phenotype")  # not part of a raw dataset

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Pair:
    """One FLAIR of one visit and its T1w, if there is one."""

    flair: Image
    t1: Image | None

    @property
    def entities(self) -> dict[str, str]:
        """Entities in the names of its derivatives: those that distinguish it within the visit."""
        return {name: label for name, label in self.flair.entities.items() if name not in OWN}

    @property
    def name(self) -> str:
        return "_".join(f"{entity}-{label}" for entity, label in self.entities.items())

    @property
    def prefix(self) -> str:
        """The prefix of its derivatives, which are on the grid of the FLAIR."""
        return f"{self.name}_space-FLAIR_"

    def sources(self, dataset: Path) -> tuple[str, ...]:
        """BIDS URIs of the scans, the FLAIR first, for a dataset linked as raw."""
        scans = [self.flair] if self.t1 is None else [self.flair, self.t1]
        return tuple(f"bids:raw:{scan.path.relative_to(dataset).as_posix()}" for scan in scans)

    @property
    def visit(self) -> Path:
        """The folder of the visit in a dataset."""
        return visit_folder(self.entities)


@dataclass(frozen=True)
class Found:
    """The result of `find_pairs`."""

    pairs: list[Pair]
    notes: list[str]  # choices among T1w and copies of a scan, and ignored folders
    left_out: list[str]  # requested FLAIRs that are not segmented, with reasons


def find_pairs(
    dataset: Path,
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    filters: Mapping[str, Filter] | None = None,
) -> Found:
    """The pairs of a raw or derivative dataset, and every FLAIR that is in none of them.

    `filters` (flair, t1w) are applied first. Each FLAIR makes one pair. If FLAIRs differ only by
    space, resolution or description, the one with the fewest entities is used, then the first by
    name. If a visit has several T1w, the one of the same run is used, then the one whose other
    entities differ least from those of the FLAIR, then the one with the fewest. Raises LeukoError
    if there is no participant or no pair, or if a label does not exist.
    """
    filters = filters or {}
    subjects = _subjects(dataset, participants)
    chosen = _sessions(dataset, subjects, sessions)
    unreadable: dict[Path, str] = {}
    files = [
        path
        for path in _files(dataset, subjects if participants else [dataset], unreadable)
        if _is_in(chosen, path, dataset)
    ]
    unreadable = {f: why for f, why in unreadable.items() if _is_in(chosen, f / "anat", dataset)}
    flairs, misfits = _select("flair", files, dataset, filters)
    t1s, misfit_t1s = _select("t1w", files, dataset, filters)
    apart = [path for path in misfits if _top(path, dataset) in APART]
    notes = _apart(apart, dataset)
    notes += [_said(p, why, dataset) for p, why in misfit_t1s.items() if _is_raw(p, dataset)]
    copies: list[tuple[Image, Image]] = []
    pairs = []
    t1s_of = _grouped(t1s, lambda t1: t1.place)
    for same in _grouped(flairs, lambda flair: Pair(flair, None).name).values():
        flair, *others = sorted(same, key=_size)
        candidates = t1s_of.get(flair.place, [])
        t1 = min(candidates, key=partial(_distance, flair=flair), default=None)
        pairs.append(Pair(flair, t1))
        notes += _choice(pairs[-1], candidates)
        copies += [(other, flair) for other in others]
    scans = {pair.flair.scan for pair in pairs}
    parts = [p for p in misfits if (i := Image.of(p)) and not i.is_magnitude and i.scan in scans]
    notes += [_said(path, misfits[path], dataset) for path in parts]
    noted = {*apart, *parts}
    left_out = [_said(p, why, dataset) for p, why in misfits.items() if p not in noted]
    left_out += [f"{path} {why}" for path, why in unreadable.items()]
    left_out += _without_image(files, dataset, filters)
    for other, flair in copies:
        taken = f"{flair.path.name} is used for this scan; --bids-filter-file can choose another"
        lines = left_out if other.entities == flair.entities else notes
        lines.append(_said(other.path, taken, dataset))
    if not pairs:
        usual = "; expected one such as sub-01/anat/sub-01_FLAIR.nii.gz"
        what = " that passes the filter" if filters else usual
        reasons = "".join(f"; {reason}" for reason in left_out)
        raise LeukoError(f"{dataset} holds no FLAIR{what}{reasons}")
    seen = {pair.visit for pair in pairs}
    for path in (*misfits, *(folder / "anat" for folder in unreadable)):
        seen |= _possible_visits(path, dataset)
    without = [visit for visit in _visits(dataset, subjects, chosen) if visit not in seen]
    if without:
        which = " that passes the filter" if filters.get("flair") else ""
        notes.append(f"visits without a FLAIR{which}: {', '.join(map(str, without))}")
    if participants:
        served = {pair.flair.entities["sub"] for pair in pairs}
        served |= {label(_top(path, dataset), "sub") for path in (*misfits, *unreadable)}
        idle = [s.name for s in subjects if label(s.name, "sub") not in served]
        left_out += [f"{name}: no FLAIR was found" for name in idle]
    return Found(sorted(pairs, key=lambda pair: (pair.visit.parts, pair.name)), notes, left_out)


def _subjects(dataset: Path, participants: Sequence[str]) -> list[Path]:
    """The folders of the wanted participants, or of all."""
    if not dataset.is_dir():
        raise LeukoError(f"{dataset} does not exist or is not a folder; give a BIDS dataset")
    there = {label(f.name, "sub"): f for f in sorted(dataset.glob("sub-*")) if is_folder(f)}
    if not there:
        raise LeukoError(
            f"{dataset} holds no sub-* folder; give the root of a BIDS dataset, or list scans in "
            "another layout in a table for leuko batch"
        )
    wanted = list(dict.fromkeys(label(text, "sub") for text in participants)) or list(there)
    absent = [text for text in wanted if text not in there]
    if absent:
        raise LeukoError(f"{dataset} has no participant {', '.join(absent)}; check the labels")
    return [there[name] for name in wanted]


def _sessions(dataset: Path, subjects: Sequence[Path], sessions: Sequence[str]) -> list[str]:
    """The wanted sessions without their entity. Raises LeukoError for one that no subject has."""
    chosen = list(dict.fromkeys(label(text, "ses") for text in sessions))
    absent = [s for s in chosen if not any(is_folder(folder / f"ses-{s}") for folder in subjects)]
    if absent:
        raise LeukoError(f"{dataset} has no session {', '.join(absent)}; check the labels")
    return chosen


def _visits(dataset: Path, subjects: Sequence[Path], chosen: Sequence[str]) -> Iterator[Path]:
    """The visits that have a folder, as `visit_folder` names them."""
    for subject in subjects:
        visits = sorted(f for f in subject.glob("ses-*") if is_folder(f))
        for visit in visits or [subject]:
            if not chosen or label(visit.name, "ses") in chosen:
                yield visit.relative_to(dataset)


def _files(dataset: Path, folders: Sequence[Path], unreadable: dict[Path, str]) -> Iterator[Path]:
    """All files, and folders that are named like images. Hidden folders are not searched, those
    in `APART` only where BIDS puts images."""

    def note(error: OSError) -> None:
        unreadable[Path(error.filename)] = f"cannot be read: {error.strerror}"

    for top in folders:
        for _, inside, files in walk(top, on_error=note):
            inside[:] = [f for f in inside if _is_entered(f.relative_to(dataset).parts)]
            for path in (f for f in files if _is_raw(f, dataset) and _is_named_as_folder(f)):
                unreadable[path] = "is a file or a broken link; expected a folder"
            yield from files
            yield from (f for f in inside if f.name.endswith(EXTENSIONS))


def _is_named_as_folder(path: Path) -> bool:
    return path.name == "anat" or (path.name.startswith(("sub-", "ses-")) and not path.suffix)


def _is_entered(parts: Sequence[str]) -> bool:
    if parts[0] not in APART or len(parts) <= 2:
        return True  # deeper folders may hold millions of DICOM files
    return parts[-1] == "anat" or parts[-1].startswith(("sub-", "ses-"))


def _is_in(sessions: Sequence[str], path: Path, dataset: Path) -> bool:
    """Whether a file belongs to one of the sessions, by its folder, or else by its name. A file
    without a BIDS name, whose session is unknown, counts as belonging to them."""
    image = Image.of(path)
    found = _place_labels(path, dataset).get("ses")
    if found is None and image is not None:
        found = image.entities.get("ses", "")
    return not sessions or found is None or found in sessions


def _select(
    kind: str, files: Sequence[Path], dataset: Path, filters: Mapping[str, Filter]
) -> tuple[list[Image], dict[Path, str]]:
    """The images of a kind that pass the filter, and the reason for each that cannot be used."""
    suffix, wanted = SUFFIXES[kind], dict(filters.get(kind, {}))
    if wanted.get("suffix") in (suffix, [suffix]):
        del wanted["suffix"]  # as without a filter: similar suffixes are reported
    is_usual = "suffix" not in wanted
    fitting, misfits = [], {}
    for path in files:
        if not path.name.lower().endswith(FORMATS):
            continue
        image = Image.of(path)
        if (is_usual or image is None) and not _resembles(suffix, path, image):
            continue
        if image is not None:
            own = replace(image, entities=_place_labels(path, dataset) | image.entities)
            if not own.passes(wanted):
                continue
        why = next(_misfits(path, image, dataset, suffix if is_usual else None), None)
        if why is not None:
            misfits[path] = why
        elif image is not None:
            fitting.append(image)
    return fitting, misfits


def _place_labels(path: Path, dataset: Path) -> dict[str, str]:
    """The subject and the session of the folders that a file lies in."""
    folders = path.relative_to(dataset).parts[:-1]
    return {f[:3]: f[4:] for f in folders if f.startswith(("sub-", "ses-"))}


def _possible_visits(path: Path, dataset: Path) -> set[Path]:
    """The visits that a misplaced or misnamed file may belong to, by its folders and its name."""
    image, place = Image.of(path), _place_labels(path, dataset)
    named = image.entities if image else {}
    return {visit_folder(labels) for labels in (place, named, place | named)}


def _resembles(suffix: str, path: Path, image: Image | None) -> bool:
    """Whether a file seems to be an image of that suffix, even if its name is incomplete."""
    word = suffix.lower()
    if image is None:
        return word in path.name.lower() or word in path.parent.name.lower()
    if word in image.suffix.lower():
        return True
    return image.suffix == "T2w" and word in image.entities.get("acq", "").lower()


def _misfits(path: Path, image: Image | None, dataset: Path, suffix: str | None) -> Iterator[str]:
    """The reasons why an image cannot be used."""
    if is_folder(path):
        yield "it is a folder; expected an image"
    if image is None:
        yield "its name is not a BIDS name; expected one such as sub-01_ses-1_FLAIR.nii.gz"
        return
    if image.extension not in EXTENSIONS:
        yield f"it ends with {image.extension}; expected .nii.gz or .nii"
    if suffix is not None and image.suffix != suffix:
        yield f"its suffix is {image.suffix}; expected {suffix}"
    if "sub" not in image.entities or image.proper_name != path.name:
        yield f"its name is not a BIDS name; expected entities as in {image.proper_name}"
    if path.parent != dataset / image.place:
        yield f"its name requires the folder {image.place.as_posix()}"
    if not image.is_magnitude:
        yield f"part-{image.entities['part']} is not a magnitude image"


def _without_image(
    files: Sequence[Path], dataset: Path, filters: Mapping[str, Filter]
) -> list[str]:
    """Sidecars of FLAIRs without an image, in the folder of the sidecar or below."""
    wanted = {"suffix": SUFFIXES["flair"], **filters.get("flair", {})}
    wanted.pop("extension", None)
    by_subject = _grouped(
        [image for path in files if (image := Image.of(path)) and image.passes(wanted)],
        lambda image: _top(image.path, dataset),
    )
    return [
        _said(sidecar.path, "this sidecar has no image", dataset)
        for top, images in by_subject.items()
        if top.startswith("sub-")
        for sidecar in images
        if sidecar.extension == ".json"
        and not any(_describes(sidecar, i) for i in images if i.extension in FORMATS)
    ]


def _describes(sidecar: Image, image: Image) -> bool:
    """Whether a sidecar describes an image, by the inheritance principle of BIDS."""
    is_above = sidecar.path.parent in image.path.parents
    return is_above and sidecar.entities.items() <= image.entities.items()


def _apart(paths: Sequence[Path], dataset: Path) -> list[str]:
    notes = []
    for top, inside in _grouped(paths, lambda path: _top(path, dataset)).items():
        shown = ", ".join(_shown(path, dataset) for path in inside[:3]) + ", ..." * bool(inside[3:])
        notes.append(
            f"{top} is not part of a raw dataset; FLAIRs in it are ignored: {shown}; to segment "
            "them, give the folder that holds their sub-* folders as BIDS_DIR"
        )
    return notes


def _top(path: Path, dataset: Path) -> str:
    return path.relative_to(dataset).parts[0]


def _is_raw(path: Path, dataset: Path) -> bool:
    return _top(path, dataset).startswith("sub-")


def _shown(path: Path, dataset: Path) -> str:
    return path.relative_to(dataset).as_posix()


def _said(path: Path, why: str, dataset: Path) -> str:
    return f"{_shown(path, dataset)}: {why}"


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _size(image: Image) -> tuple[int, str]:
    return len(image.entities), image.path.name


def _distance(t1: Image, *, flair: Image) -> tuple[bool, int, int, str]:
    names = (t1.entities.keys() | flair.entities.keys()) - {"run"}
    others = sum(t1.entities.get(name) != flair.entities.get(name) for name in names)
    return t1.entities.get("run") != flair.entities.get("run"), others, *_size(t1)


def _choice(pair: Pair, t1s: Sequence[Image]) -> list[str]:
    """A note on the T1w that is used, if there was a choice."""
    run = pair.flair.entities.get("run")
    among = [t1 for t1 in t1s if t1.entities.get("run") == run] or t1s
    if pair.t1 is None or len(among) < 2:
        return []
    taken = f"{pair.name}: of {len(among)} T1w, {pair.t1.path.name} is used"
    return [f"{taken}; --bids-filter-file can choose another"]
