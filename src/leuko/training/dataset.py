"""Labelled subjects: finding them on disk, checking them, loading their slices into memory."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from leuko.errors import LeukoError
from leuko.evaluation.labels import IGNORED, WMH, WMH_LABELS, Labelling
from leuko.io import nifti
from leuko.io.background import without_background
from leuko.io.files import find_image, find_images, image_stem
from leuko.preprocessing.registration import align
from leuko.preprocessing.slices import Pair, Placement, Preparation
from leuko.volume import Array, Orientation, Volume, require_same_grid

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """The files of one labelled scan. A `Labelling` defines the values in `labels`."""

    name: str
    flair: Path
    t1: Path | None
    labels: Path


@dataclass(frozen=True, eq=False)
class Slices:
    """Slices of many subjects, on one canvas size."""

    images: Array  # (N, H, W, 3), uint8
    labels: Array  # (N, H, W), uint8: class numbers or `IGNORED`
    sagittal: Array  # (N,), bool
    wmh: int | None = 1  # class number of WMH; None: the labels do not mark WMH

    def draw(self, count: int, *, lesion_part: float, rng: np.random.Generator) -> Array:
        """Indices (count,) of random slices. `lesion_part` of them, on average, are drawn from the
        slices with a lesion, the others from all slices."""
        indices = rng.integers(len(self.images), size=count)
        if len(self.with_lesion):
            chosen = rng.random(count) < lesion_part
            indices[chosen] = rng.choice(self.with_lesion, size=int(chosen.sum()))
        return indices

    @cached_property
    def with_lesion(self) -> Array:
        """Indices of the slices that show a lesion."""
        if self.wmh is None:
            return np.array([], dtype=np.intp)
        return np.flatnonzero((self.labels == self.wmh).any(axis=(1, 2)))


def find_subjects(folder: Path, labelling: Labelling = WMH_LABELS) -> list[Subject]:
    """The labelled subjects under a folder, sorted by name.

    Two layouts are found: `<subject>/{FLAIR,T1,wmh|lesions}.nii.gz` and that of the WMH
    Segmentation Challenge, `<site>/<id>/{pre/FLAIR,pre/T1,wmh}.nii.gz`; files may also be `.nii`.
    Label files are named as in `labelling.files`. The T1 is optional. Folders with only labels or
    only images are not used; a warning names each. Raises LeukoError if there are no subjects, or
    one has several label files.
    """
    if not folder.is_dir():
        raise LeukoError(f"{folder} is not a folder; give one that holds labelled subjects")
    subjects = []
    images = find_images(folder)
    for labels in images:
        if image_stem(labels) not in labelling.files:
            continue
        name = labels.parent.relative_to(folder).as_posix()
        for home in (labels.parent, labels.parent / "pre"):
            flair = find_image(home, "FLAIR")
            if flair:
                subjects.append(Subject(name, flair, find_image(home, "T1"), labels))
                break
        else:
            log.warning("%s has labels but no FLAIR; it is not used", labels.parent)
    twice = {s.name for s in subjects if sum(s.name == other.name for other in subjects) > 1}
    if twice:
        files = " and ".join(str(s.labels) for s in subjects if s.name == min(twice))
        raise LeukoError(f"{min(twice)} has several label files, {files}; keep one of them")
    labelled = {path.parent for path in images if image_stem(path) in labelling.files}
    others = {path.parent for path in images if labelled.isdisjoint(path.parents)}
    for other in sorted(others) if subjects else ():
        names = " or ".join(labelling.files)
        log.warning("%s has images but no labels (%s); it is not used", other, names)
    if not subjects:
        raise LeukoError(
            f"{folder} holds no labelled subject; expected <subject>/FLAIR.nii.gz, T1.nii.gz and "
            f"{' or '.join(f'{name}.nii.gz' for name in labelling.files)}, or the challenge's "
            f"<site>/<id>/pre/FLAIR.nii.gz, pre/T1.nii.gz and {labelling.files[0]}.nii.gz"
        )
    return subjects


def read_pair(subject: Subject, preparation: Preparation) -> tuple[Volume, Volume | None]:
    """The FLAIR of a subject, and its T1 if the model uses it, with their background set to 0."""
    t1 = nifti.read(subject.t1) if subject.t1 and preparation.uses_t1 else None
    return without_background(nifti.read(subject.flair)), t1 and without_background(t1)


def verify(
    subject: Subject, preparation: Preparation, labelling: Labelling = WMH_LABELS
) -> frozenset[str]:
    """Check the files of a subject; return the classes in its labels.

    Warns if the T1 does not appear to be registered to the FLAIR. Raises LeukoError if a file
    cannot be read or prepared, or the labels are not on the grid of the FLAIR.
    """
    try:
        flair, t1 = read_pair(subject, preparation)
        truth = read_classes(subject, labelling)
        require_same_grid(flair, truth)
        Pair.of(flair, t1, preparation)
    except LeukoError as error:
        raise LeukoError(f"{subject.name}: {error}") from error
    doubt = align(flair, t1, mode="never").doubt() if t1 else None
    if doubt:
        log.warning(
            "%s: the T1 may not be registered to the FLAIR (%s); check that both show the same "
            "person, or use the registered T1 from leuko segment --save-intermediate",
            subject.name,
            doubt,
        )
    shown = np.unique(truth.data)
    return frozenset(name for number, name in enumerate(labelling.classes) if number in shown)


def read_classes(subject: Subject, labelling: Labelling) -> Volume:
    """The labels of a subject: class numbers or `IGNORED`, uint8."""
    labels = nifti.read_labels(subject.labels, values=labelling.values)
    return labels.with_data(labelling.classified(labels.data))


def person(name: str) -> str:
    """The person to whom a scan belongs, from the name of the subject.

    Folders `ses-...` are visits: `anna/ses-2` is the person `anna`, `ses-2/sub-01_b` is `sub-01`.
    """
    whose = [part for part in name.split("/") if not part.startswith("ses-")]
    for k, part in enumerate(whose):
        match = re.match(r"sub-[A-Za-z0-9]+", part)
        if match:
            return "/".join([*whose[:k], match.group()])
    return "/".join(whose)


def people(subjects: Iterable[Subject]) -> list[str]:
    """The people to whom the scans belong, sorted, each once."""
    return sorted({person(subject.name) for subject in subjects})


def split(subjects: Sequence[Subject], *, held_out: float, seed: int) -> tuple[list[Subject], ...]:
    """A random split into training subjects and held-out subjects.

    At most the share `held_out` of the people is held out; all scans of a person are in the same
    group. At least one person stays in training. With fewer than 1 / `held_out` people, none is
    held out.
    """
    everyone = people(subjects)
    count = min(int(held_out * len(everyone)), len(everyone) - 1)
    order = np.random.default_rng(seed).permutation(len(everyone))
    measured = {everyone[k] for k in order[:count]}
    return (
        [s for s in subjects if person(s.name) not in measured],
        [s for s in subjects if person(s.name) in measured],
    )


def load(
    subjects: Sequence[Subject],
    preparation: Preparation,
    labelling: Labelling = WMH_LABELS,
    *,
    three_planes: bool = False,
) -> Slices:
    """All slices of the subjects, prepared, on a canvas of the largest size.

    With `three_planes`, nearly isotropic scans are sliced along each axis. Raises LeukoError if a
    file cannot be read or prepared, or labels are not on the grid of the FLAIR.
    """
    parts = [
        part
        for subject in subjects
        for part in _subject_slices(subject, preparation, labelling, three_planes=three_planes)
    ]
    return joined(parts)


def joined(parts: Sequence[Slices]) -> Slices:
    """All slices on a canvas of the largest height and width; smaller slices are centred on it."""
    height = max(part.images.shape[1] for part in parts)
    width = max(part.images.shape[2] for part in parts)
    return Slices(
        np.concatenate([_on_canvas(part.images, height, width) for part in parts]),
        np.concatenate([_on_canvas(part.labels, height, width) for part in parts]),
        np.concatenate([part.sagittal for part in parts]),
        parts[0].wmh,
    )


def _subject_slices(
    subject: Subject, preparation: Preparation, labelling: Labelling, *, three_planes: bool
) -> Iterator[Slices]:
    flair, t1 = read_pair(subject, preparation)
    truth = read_classes(subject, labelling)
    count = len(labelling.classes)
    wmh = count - 1 if WMH in labelling.classes else None
    require_same_grid(flair, truth)
    pair = Pair.of(flair, t1, preparation)
    for axis in range(3) if three_planes and flair.is_nearly_isotropic else (None,):
        images, placement = pair.slices(axis)
        sagittal = np.full(len(images), placement.across == 0)
        yield Slices(images, _label_slices(truth, placement, count), sagittal, wmh)


def _label_slices(truth: Volume, placement: Placement, count: int) -> Array:
    """Labels (N, H, W), uint8: the class or IGNORED, whichever has the largest share of a pixel.

    `count` is the number of classes. Of equal shares, the last class wins, then IGNORED, then the
    higher class number.
    """
    canonical = Orientation.of(truth.affine).apply(truth.data)
    shape = (canonical.shape[placement.across], placement.rows.pixels, placement.columns.pixels)
    labels, largest = np.zeros(shape, dtype=np.uint8), np.zeros(shape, dtype=np.float32)
    for number in (*range(count - 1), IGNORED, count - 1):
        share = placement.slices((canonical == number).astype(np.float32))
        labels[(share > 0) & (share >= largest)] = number
        largest = np.maximum(largest, share)
    return labels


def _on_canvas(array: Array, height: int, width: int) -> Array:
    above, left = (height - array.shape[1]) // 2, (width - array.shape[2]) // 2
    canvas = np.zeros((len(array), height, width, *array.shape[3:]), dtype=array.dtype)
    canvas[:, above : above + array.shape[1], left : left + array.shape[2]] = array
    return canvas
