"""Training recipes as data: `XU2017`, `MODERN`, and variants of `MODERN`.

`XU2017` has the settings of Xu et al. 2017. Settings that the paper does not state are those of the
published Caffe solvers of related networks (FCN, Long et al. 2015; OSVOS, by the authors of DRIU,
Maninis et al. 2016), or our own choice. Each field says which; docs/methods.md lists them.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Phase:
    """A phase of the training, in which the learning rate changes from one value to another.

    `part` is the fraction of all steps. The rate follows half a cosine, or a line. `momentum` is
    used only by SGD.
    """

    part: float
    rate_from: float
    rate_to: float
    momentum: float = 0.0
    shape: Literal["cosine", "linear"] = "cosine"


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a slice. Scaling and rotation are from the paper, the ranges are ours."""

    scale: tuple[float, float]  # factors, uniform on a logarithmic scale
    rotation_degrees: float  # uniform from -r to r
    flip: bool = False  # mirror half of the axial and coronal images left to right
    gain: float = 0.0  # factor of a channel from 1 - g to 1 + g; the residue as its FLAIR
    gamma: float = 0.0  # exponent of a channel from exp(-g) to exp(g)
    noise_grey: float = 0.0  # largest standard deviation of added noise, in grey levels


@dataclass(frozen=True)
class Mixture:
    """Fractions of synthetic, labelled and unlabelled slices in a step, and loss weights."""

    labelled_part: float = 1 / 2  # labelled slices in a step
    unlabelled_part: float = 1 / 6  # unlabelled slices in a step, if it shows whole heads
    painted_part: float = 0.25  # of labelled slices, with small lesions painted in
    rims_weight: float = 0.7  # factor of the sampling weight of scans with labelled rims
    head_part: float = 0.5  # of the steps show whole heads, the others extracted brains
    crop: tuple[int, int] | None = (160, 176)  # pixels; None: the whole canvas
    scans_kept: int = 24  # synthetic scans in memory, from which slices are drawn
    scans_per_step: float = 0.1  # synthetic scans replaced per step
    teacher_part: float = 0.5  # of the loss of synthetic slices, against the teachers
    unlabelled_weight: float = 0.4  # of the loss of unlabelled slices; the others have 1
    rim_weight: float = 0.3  # of the Dice loss of WMH with rims; the other terms have 1


@dataclass(frozen=True)
class Recipe:
    """All settings of a training besides its data, seed and initial weights."""

    name: str
    steps: int  # updates of the weights
    images_per_step: int
    loss: Literal["summed-cross-entropy", "cross-entropy-dice"]
    optimiser: Literal["sgd", "adamw"]
    weight_decay: float
    phases: tuple[Phase, ...]
    augmentation: Augmentation
    lesion_part: float  # at least this fraction of the images shows a lesion
    feature_scale: float  # divisor of the feature maps of ImageNet weights
    mixed_precision: bool  # bfloat16 if the device supports it
    averaged_part: float = 0.0  # of the steps, over which weights are averaged; 0: no average
    normalised: bool = False  # with batch normalisation, folded into the weights at the end
    start_part: float = 0.0  # fraction of the initial weights in the final ones
    frozen_stages: int = 0  # first stages that are frozen during `frozen_part`
    frozen_part: float = 0.0  # of the steps
    synthetic_part: float = 0.0  # fraction of synthetic images in a step
    validate_steps: int = 100  # steps between validations, if there are validation subjects
    # Factors per layer, as in Caffe's solvers (lr_mult, decay_mult). 1 by default, since AdamW
    # adapts the step of each weight; the bundled model was trained so.
    bias_rate: float = 1.0  # of the learning rate of biases
    bias_decay: float = 1.0  # of the weight decay of biases
    fusion_rate: float = 1.0  # of the learning rate of the fusion, including its biases
    # Area of the opening for the residue, for trainings that do not start from a model; others keep
    # that of the model. None: the default of slices.Preparation.
    opening_mm2: float | None = None
    clip_norm: float | None = None  # largest norm of the gradients of a step
    mixture: Mixture | None = None  # for the recipe base; None for the others

    @property
    def synthetic_images(self) -> int:
        """The number of synthetic images in a step."""
        return round(self.synthetic_part * self.images_per_step)


XU2017 = Recipe(
    name="xu2017",
    # As stated in the paper.
    steps=150_000,
    images_per_step=20,
    optimiser="sgd",
    weight_decay=0.0005,
    phases=(
        Phase(1 / 3, 1e-8, 1e-8, momentum=0.99),  # 50k steps
        Phase(2 / 3, 1e-9, 1e-9, momentum=0.999),  # 100k steps
    ),
    # The paper states the multinomial logistic loss. We infer the sum over pixels from the small
    # learning rates, which the solvers of FCN and OSVOS use with a sum.
    loss="summed-cross-entropy",
    # Not in the paper. The solvers of FCN and OSVOS use 2 and 0 for biases, that of OSVOS uses 0.01
    # for the fusion.
    bias_rate=2.0,
    bias_decay=0.0,
    fusion_rate=0.01,
    # The paper states scaling and rotation without ranges; these are ours.
    augmentation=Augmentation(scale=(0.9, 1.1), rotation_degrees=15),
    lesion_part=0.0,  # the paper states no selection of slices
    feature_scale=1.0,  # the paper states none
    mixed_precision=False,  # as in 2017
    # The paper gives no area, but says that large lesions do not appear in the residue. At 1000 mm2
    # nearly all do. Of the areas tried, 100 mm2 removes the large ones and keeps some contrast of
    # the small ones (experiments/README.md).
    opening_mm2=100.0,
)

MODERN = Recipe(
    name="modern",
    steps=6_000,
    images_per_step=8,
    loss="cross-entropy-dice",
    optimiser="adamw",
    weight_decay=0.01,
    phases=(Phase(0.05, 0.0, 3e-4), Phase(0.95, 3e-4, 0.0)),
    augmentation=Augmentation(
        scale=(0.8, 1.25), rotation_degrees=20, flip=True, gain=0.15, gamma=0.2, noise_grey=8
    ),
    lesion_part=0.5,
    feature_scale=64.0,  # steps of AdamW do not depend on the scale: maps must be near 1
    mixed_precision=True,
    averaged_part=0.02,
)

# Random initial weights allow a higher rate than pretrained ones (experiments/README.md).
FROM_NOTHING = replace(
    MODERN,
    name="modern-from-nothing",
    normalised=True,
    phases=(Phase(0.05, 0.0, 1e-3), Phase(0.95, 1e-3, 0.0)),
)

# Fine-tunes a model with a few subjects of another scanner.
ADAPT = replace(
    MODERN,
    name="adapt",
    steps=200,
    phases=(Phase(0.1, 0.0, 1e-4), Phase(0.9, 1e-4, 0.0)),
    averaged_part=0.1,
    start_part=0.5,  # with 0.4, Dice on other scans fell by > 0.02: experiments/README.md
    frozen_stages=2,  # edges look alike on all scanners, and these stages are the slowest
    frozen_part=0.25,
    synthetic_part=0.25,  # to keep the accuracy on other scanners
)

# For the bundled model: synthetic, labelled and unlabelled slices (docs/methods.md).
BASE = Recipe(
    name="base",
    steps=450,
    images_per_step=6,
    loss="cross-entropy-dice",
    optimiser="adamw",
    weight_decay=0.01,
    phases=(
        Phase(0.05, 0.0, 1e-4, shape="linear"),
        Phase(0.35, 1e-4, 1e-4),
        Phase(0.6, 1e-4, 5e-6),
    ),
    augmentation=Augmentation(
        scale=(0.85, 1.2), rotation_degrees=12, flip=True, gain=0.1, gamma=0.15, noise_grey=3
    ),
    lesion_part=0.7,  # of the labelled images
    feature_scale=64.0,  # as in `MODERN`, for ImageNet weights
    mixed_precision=True,
    averaged_part=0.2,
    clip_norm=1.0,
    mixture=Mixture(),
)
# A GPU trains about 40 steps per second, in which 8 processes make about 20 scans.
BASE_ON_GPU = replace(
    BASE,
    images_per_step=32,
    mixture=Mixture(crop=None, scans_kept=96, scans_per_step=0.3),
)

RECIPES = {recipe.name: recipe for recipe in (MODERN, XU2017, ADAPT, BASE)}


def with_rate(recipe: Recipe, highest: float) -> Recipe:
    """The recipe with all learning rates scaled to another peak."""
    factor = highest / max(phase.rate_to for phase in recipe.phases)
    phases = (
        replace(phase, rate_from=factor * phase.rate_from, rate_to=factor * phase.rate_to)
        for phase in recipe.phases
    )
    return replace(recipe, phases=tuple(phases))


def phase_at(recipe: Recipe, step: int, steps: int) -> tuple[Phase, float]:
    """The phase and the learning rate of a step, 0 to steps - 1."""
    done, end = (step + 0.5) / steps, 0.0  # middle of the step, so that the last rate is above 0
    for phase in recipe.phases:
        begin, end = end, end + phase.part
        if done < end:
            break
    part = min(1.0, (done - begin) / phase.part)
    left = 1 - part if phase.shape == "linear" else (1 + math.cos(math.pi * part)) / 2
    return phase, phase.rate_to + (phase.rate_from - phase.rate_to) * left
