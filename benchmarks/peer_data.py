"""The synthetic subjects that all methods of `peers.py` share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from leuko.io import nifti
from leuko.io.files import image_stem, staged
from leuko.synthesis.anatomy import Anatomy, load_head
from leuko.synthesis.images import synthesise
from leuko.synthesis.sampling import choose
from leuko.training.dataset import Subject
from leuko.volume import Volume

HELD_OUT = ("head04", "head12", "head18")  # not trained with
SLICES, SPACING_MM, SIZE = 48, 3.0, (240, 240)  # the grid of many clinical FLAIR


@dataclass(frozen=True)
class Group:
    """Subjects of one purpose: the seed of their scans, how many, the least WMH of each."""

    name: str
    seed: int
    number: int
    least_ml: float


TRAINING = Group("train", seed=2017, number=60, least_ml=0.0)
TEST = Group("test", seed=2018, number=18, least_ml=0.5)


def make_subjects(folder: Path, heads: Path, atlas: Path | None) -> Iterator[Path]:
    """Write the subjects of both groups that are not there yet; their folders."""
    masks = [
        torch.from_numpy(nifti.read_mask(path).canonical().data > 0)
        for path in (sorted(atlas.glob("*.nii.gz")) if atlas else [])
    ]
    for group in (TRAINING, TEST):
        paths = [
            path
            for path in sorted(heads.glob("*.nii.gz"))
            if (image_stem(path) in HELD_OUT) == (group is TEST)
        ]
        homes = [folder / group.name / f"sub-{k + 1:02d}" for k in range(group.number)]
        for turn, path in enumerate(paths):
            mine = range(turn, group.number, len(paths))
            missing = [k for k in mine if not homes[k].is_dir()]
            if not missing:
                continue
            anatomy = load_head(path)
            for k in missing:
                write(homes[k], scan(anatomy, group, k, masks))
                yield homes[k]


def scan(anatomy: Anatomy, group: Group, number: int, atlas: Sequence[Tensor]) -> dict[str, Volume]:
    """FLAIR, T1, wmh and tissue of one subject, by its first seed with enough WMH."""
    for trial in count():
        seed = [group.seed, number, trial]
        chosen = choose(anatomy, np.random.default_rng([*seed, 1]))
        choice = replace(
            chosen,
            axis=2,
            slices=SLICES,
            thickness_mm=SPACING_MM,
            spacing_mm=SPACING_MM,
            parts=2,
            with_t1=True,
        )
        made = synthesise(anatomy, seed, atlas=atlas, choice=choice, size=SIZE).volumes()
        if made["wmh"].ml(made["wmh"].data > 0) >= group.least_ml:
            return made
    raise AssertionError


def write(folder: Path, volumes: dict[str, Volume]) -> None:
    with staged(folder) as scratch:
        for name, volume in volumes.items():
            nifti.write(scratch / f"{name}.nii.gz", volume)


def read_pair(subject: Subject) -> tuple[Volume, Volume]:
    """FLAIR and T1 of a subject; the peers need both."""
    if subject.t1 is None:
        raise ValueError(f"{subject.name} has no T1")
    return nifti.read(subject.flair), nifti.read(subject.t1)
