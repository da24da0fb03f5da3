"""How a network is trained, as data: `XU2017`, `MODERN`, and its children.

`XU2017` is what Xu et al. 2017 say. What they leave open follows the published Caffe solvers of the
networks that theirs builds on (FCN, Long et al. 2015; OSVOS, by the authors of DRIU, Maninis et al.
2016), or is our own choice; each such field says so. docs/methods.md lists them.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Phase:
    """A part of the training, over which the rate goes from one value to another, by default on a
    half cosine.

    `part` is its share of all steps. `momentum` is for SGD alone.
    """

    part: float
    rate_from: float
    rate_to: float
    momentum: float = 0.0
    shape: Literal["cosine", "linear"] = "cosine"


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a slice. The paper names scaling and rotating; the ranges are ours."""

    scale: tuple[float, float]  # factors, drawn evenly on a logarithmic scale
    rotation_degrees: float  # drawn from -r to r
    flip: bool = False  # half of the axial and coronal images, left to right
    gain: float = 0.0  # a channel times 1 - g to 1 + g; the residue scales with its FLAIR
    gamma: float = 0.0  # a channel's tissue contrast, exponent exp(-g) to exp(g)
    noise_grey: float = 0.0  # largest standard deviation of added noise, in grey levels


@dataclass(frozen=True)
class Mixture:
    """The parts of synthetic, labelled and unlabelled slices in a step, and in its loss."""

    labelled_part: float = 1 / 2  # of the images of a step
    unlabelled_part: float = 1 / 6  # of them too, where there are any and whole heads are shown
    painted_part: float = 0.25  # of the labelled ones have small lesions painted into them
    rims_weight: float = 0.7  # of scans with both masks, beside their source: few, and drawn apart
    head_part: float = 0.5  # of the steps show whole heads, the others extracted brains
    crop: tuple[int, int] | None = (160, 176)  # pixels; on a GPU the whole canvas
    scans_kept: int = 24  # synthetic ones that are drawn from at a time
    scans_per_step: float = 0.1  # synthetic ones that are made anew
    teacher_part: float = 0.5  # of the loss of synthetic slices
    unlabelled_weight: float = 0.4  # of their loss, beside 1
    rim_weight: float = 0.3  # of the Dice loss of WMH and rims, beside 1


@dataclass(frozen=True)
class Recipe:
    """All that decides a training besides its data, its seed and its start."""

    name: str
    steps: int  # updates of the weights
    images_per_step: int
    loss: Literal["summed-cross-entropy", "cross-entropy-dice"]
    optimiser: Literal["sgd", "adamw"]
    weight_decay: float
    phases: tuple[Phase, ...]
    augmentation: Augmentation
    lesion_part: float  # of the images, drawn with replacement, this part surely shows a lesion
    feature_scale: float  # what ImageNet's maps are divided by at the start
    mixed_precision: bool  # bfloat16 where the device computes in it
    averaged_part: float = 0.0  # of the steps, over which weights are averaged; 0: the last ones
    normalised: bool = False  # with batch normalisation, folded away at the end
    start_part: float = 0.0  # of the weights that it started from, in those of the model
    frozen_stages: int = 0  # the first ones, which stay as they are over `frozen_part`
    frozen_part: float = 0.0  # of the steps
    synthetic_part: float = 0.0  # of the images of a step
    validate_steps: int = 100  # between two looks at the validation subjects, if there are any
    # Factors, by which Caffe's solvers set some layers apart (lr_mult, decay_mult). 1 by default:
    # AdamW gives every weight a step of its own, and the bundled model was trained so.
    bias_rate: float = 1.0  # the learning rate of biases
    bias_decay: float = 1.0  # the weight decay of biases
    fusion_rate: float = 1.0  # the learning rate of the fusion, its biases included
    # Area of the residue's opening for models that are begun with this recipe by `leuko train`; one
    # that starts from a model keeps that model's. None: the default of channels.Preparation.
    opening_mm2: float | None = None
    clip_norm: float | None = None  # the largest norm of a step's gradients
    mixture: Mixture | None = None  # None: the slices of labelled subjects alone, or nearly

    @property
    def synthetic_images(self) -> int:
        """Of the images of a step."""
        return round(self.synthetic_part * self.images_per_step)


XU2017 = Recipe(
    name="xu2017",
    # The paper's own numbers.
    steps=150_000,
    images_per_step=20,
    optimiser="sgd",
    weight_decay=0.0005,
    phases=(
        Phase(1 / 3, 1e-8, 1e-8, momentum=0.99),  # 50k steps
        Phase(2 / 3, 1e-9, 1e-9, momentum=0.999),  # 100k steps
    ),
    # The paper names the multinomial logistic loss. That it is summed over the pixels is inferred
    # from rates so small, which FCN's and OSVOS's solvers have for a sum.
    loss="summed-cross-entropy",
    # The paper does not say; the solvers of FCN and OSVOS have 2 and 0, that of OSVOS has 0.01.
    bias_rate=2.0,
    bias_decay=0.0,
    fusion_rate=0.01,
    # The paper names scaling and rotating, and gives no ranges: these are ours.
    augmentation=Augmentation(scale=(0.9, 1.1), rotation_degrees=15),
    lesion_part=0.0,  # the paper tells of no choice among the slices
    feature_scale=1.0,  # the paper tells of none
    mixed_precision=False,  # as in 2017
    # The paper gives no area, but says that large lesions do not appear in the residue. At 1000 mm2
    # nearly all do; of those tried, 100 mm2 loses the large ones and keeps some of the small ones'
    # contrast: see experiments/README.md.
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
    feature_scale=64.0,  # AdamW moves a weight by the rate whatever its scale: maps must be near 1
    mixed_precision=True,
    averaged_part=0.02,
)

# No trained layer can be spoilt by a high rate: see experiments/README.md.
FROM_NOTHING = replace(
    MODERN,
    name="modern-from-nothing",
    normalised=True,
    phases=(Phase(0.05, 0.0, 1e-3), Phase(0.95, 1e-3, 0.0)),
)

# A trained model is trained further with a few subjects of another scanner.
ADAPT = replace(
    MODERN,
    name="adapt",
    steps=200,
    phases=(Phase(0.1, 0.0, 1e-4), Phase(0.9, 1e-4, 0.0)),
    averaged_part=0.1,
    start_part=0.5,  # 0.4 forgets more than 0.02 of Dice: see experiments/README.md
    frozen_stages=2,  # edges look alike on all scanners, and these stages cost most
    frozen_part=0.25,
    synthetic_part=0.25,  # what the model came from, lest it forget
)

# The bundled model's: synthetic, labelled and unlabelled slices (docs/methods.md).
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
    feature_scale=64.0,  # as in `MODERN`, with a start from ImageNet
    mixed_precision=True,
    averaged_part=0.2,
    clip_norm=1.0,
    mixture=Mixture(),
)
# A GPU takes some 40 steps a second, and 8 processes make some 20 scans for it.
BASE_ON_GPU = replace(
    BASE,
    images_per_step=32,
    mixture=Mixture(crop=None, scans_kept=96, scans_per_step=0.3),
)

RECIPES = {recipe.name: recipe for recipe in (MODERN, XU2017, ADAPT, BASE)}


def with_rate(recipe: Recipe, highest: float) -> Recipe:
    """The recipe with another highest learning rate, all others in proportion."""
    factor = highest / max(phase.rate_to for phase in recipe.phases)
    phases = (
        replace(phase, rate_from=factor * phase.rate_from, rate_to=factor * phase.rate_to)
        for phase in recipe.phases
    )
    return replace(recipe, phases=tuple(phases))


def phase_at(recipe: Recipe, step: int, steps: int) -> tuple[Phase, float]:
    """The phase that a step (0 to steps - 1) belongs to, and the learning rate at that step."""
    done, end = (step + 0.5) / steps, 0.0  # the middle of the step: no rate of 0 at the last
    for phase in recipe.phases:
        begin, end = end, end + phase.part
        if done < end:
            break
    part = min(1.0, (done - begin) / phase.part)
    left = 1 - part if phase.shape == "linear" else (1 + math.cos(math.pi * part)) / 2
    return phase, phase.rate_to + (phase.rate_from - phase.rate_to) * left
