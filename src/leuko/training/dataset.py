"""Labelled subjects: find them on disk, check them, load them as slices in memory."""

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
    """The files of one scan; a `Labelling` defines the values in `labels`."""

    name: str
    flair: Path
    t1: Path | None
    labels: Path


@dataclass(frozen=True, eq=False)
class Slices:
    """Slices of many subjects on one canvas: `images` (N, H, W, 3) and `labels` (N, H, W), uint8.

    Labels are class numbers, `wmh` for WMH, or `IGNORED`. `sagittal` (N,), bool.
    """

    images: Array
    labels: Array
    sagittal: Array
    wmh: int | None = 1  # None: the labels do not mark WMH

    def draw(self, count: int, *, lesion_part: float, rng: np.random.Generator) -> Array:
        """Indices of `count` random slices; at least about `lesion_part` of them show a lesion."""
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

    Two layouts: `<subject>/{FLAIR,T1,wmh|lesions}.nii.gz` and the challenge's
    `<site>/<id>/{pre/FLAIR,pre/T1,wmh}.nii.gz`; `.nii` works as well. The label files have
    the names of `labelling.files`. The T1 may be missing. Warnings name folders that have only
    labels or only images. Raises LeukoError if there is no subject, or two label files for one.
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
    """A subject's FLAIR, and its T1 if the model uses it, with their background set to 0."""
    t1 = nifti.read(subject.t1) if subject.t1 and preparation.uses_t1 else None
    return without_background(nifti.read(subject.flair)), t1 and without_background(t1)


def verify(
    subject: Subject, preparation: Preparation, labelling: Labelling = WMH_LABELS
) -> frozenset[str]:
    """The classes in a subject's labels; warns if its T1 seems not to be registered to its FLAIR.

    Raises LeukoError if a file cannot be read or prepared, or the labels are on another grid.
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
            "%s: its T1 may not be registered to its FLAIR (%s); check that both are of one person "
            "or use the T1 that leuko segment --save-intermediate writes",
            subject.name,
            doubt,
        )
    shown = np.unique(truth.data)
    return frozenset(name for number, name in enumerate(labelling.classes) if number in shown)


def read_classes(subject: Subject, labelling: Labelling) -> Volume:
    """A subject's labels as class numbers, or `IGNORED`; uint8."""
    labels = nifti.read_labels(subject.labels, values=labelling.values)
    return labels.with_data(labelling.classified(labels.data))


def person(name: str) -> str:
    """The person to whom a subject's name belongs.

    `ses-...` is a visit: `anna/ses-2` belongs to `anna`, `ses-2/sub-01_b` to `sub-01`.
    """
    whose = [part for part in name.split("/") if not part.startswith("ses-")]
    for k, part in enumerate(whose):
        match = re.match(r"sub-[A-Za-z0-9]+", part)
        if match:
            return "/".join([*whose[:k], match.group()])
    return "/".join(whose)


def people(subjects: Iterable[Subject]) -> list[str]:
    """The people to whom the scans belong, sorted."""
    return sorted({person(subject.name) for subject in subjects})


def split(subjects: Sequence[Subject], *, held_out: float, seed: int) -> tuple[list[Subject], ...]:
    """Subjects to train with, and a random part of about `held_out` to measure on.

    All scans of a person are on one side. At least one person is left for training; with fewer than
    1 / `held_out` people nobody is held out.
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
    """Prepare all slices of the subjects; smaller ones are centred on a canvas of the largest size.

    With `three_planes`, nearly isotropic scans are sliced along each axis.
    """
    parts = [
        part
        for subject in subjects
        for part in _subject_slices(subject, preparation, labelling, three_planes=three_planes)
    ]
    return joined(parts)


def joined(parts: Sequence[Slices]) -> Slices:
    """All slices together; smaller ones are centred on a canvas of the largest size."""
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
    """The class, of `count`, with the largest share of each of the model's pixels; if equal, the
    last one."""
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
