"""A first look without data of one's own: made-up heads, a small network, a minute of training."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from leuko import nifti
from leuko.channels import Preparation, prepare
from leuko.figures import method_figure
from leuko.phantoms import make_phantom
from leuko.recipes import MODERN, Phase
from leuko.train import Settings

TRAINING_HEADS = 8
UNSEEN = "unseen"
PREPARATION = Preparation(pixel_mm=1.3)  # of the phantoms


def make_heads(folder: Path) -> Path:
    """Labelled made-up heads in `folder/training`, and one more, whose path is returned."""
    for number in range(TRAINING_HEADS):
        make_phantom(np.random.default_rng(number)).write(folder / "training" / f"head{number}")
    make_phantom(np.random.default_rng(TRAINING_HEADS)).write(folder / UNSEEN)
    return folder / UNSEEN


def settings(data: Path) -> Settings:
    """A network of three narrow stages, which sees the phantoms at their own pixel size."""
    rate = 2e-3  # a small network takes larger steps
    recipe = replace(
        MODERN, steps=600, phases=(Phase(0.1, 0.0, rate), Phase(0.9, rate, 0.0)), lesion_part=0.7
    )
    return Settings(
        data=str(data),
        recipe=recipe,
        preparation=PREPARATION,
        stages=((16, 16), (32, 32), (64, 64, 64)),
        init="none",
        held_out=0.0,
    )


def save_picture(path: Path, subject: Path, mask: Path) -> None:
    """A PNG of the middle slice of a subject in which most was found, from scans to mask."""
    flair, t1 = nifti.read(subject / "FLAIR.nii.gz"), nifti.read(subject / "T1.nii.gz")
    slices, placement = prepare(flair, t1, PREPARATION)
    found = placement.slices(nifti.read_mask(mask).canonical().data.astype(np.uint8)) > 0
    middle = range(len(slices) // 3, 2 * len(slices) // 3)
    shown = max(middle, key=lambda n: found[n].sum())
    method_figure(slices[shown], found[shown]).savefig(path, dpi=110, facecolor="black")
