"""An anatomy and lesions become a random FLAIR and T1 with their truth, slice by slice.

Everything that real scans differ in is drawn anew for each: pose and shape, slice direction and
thickness, contrast, what shines without being a lesion, bias, noise, blur, skull or none. What
follows from one seed is the same on every run on one kind of device.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from leuko.io import nifti
from leuko.io.files import staged
from leuko.preprocessing.slices import Preparation, area_residue, requantise
from leuko.synthesis.acquisition import acquired, extracted
from leuko.synthesis.anatomy import (
    BACKGROUND,
    CLASSES,
    GREY,
    INDEX,
    RIM,
    TISSUES,
    VENTRICLE,
    WHITE,
    WMH,
    Anatomy,
    Range,
    reshape,
)
from leuko.synthesis.lesions import draw_lesions
from leuko.synthesis.random_fields import blurred, smooth_noise
from leuko.synthesis.sampling import (
    Choice,
    Samples,
    choose,
    in_face,
    sample,
    sample_points,
    slabs,
    table,
)
from leuko.volume import Array, Volume

# The least part of its full brightness to which a lesion or a rim is labelled, once its edges are
# soft and slices have their thickness. Readers draw edges at 0.39 to 0.46 (experiments/edges.py).
LABELLED_PART = 0.4
# The least brightness of a lesion on FLAIR, white matter being 1: dimmer ones teach to guess.
LEAST_CONTRAST = 1.22
# The least brightness of a labelled rim, above white matter at 1: dimmer ones are not seen.
LEAST_RIM = 0.12
WIDEST_RIM_MM = 4.0
BELOW_TENTORIUM = ("brain stem", "cerebellar white")


@dataclass(frozen=True, eq=False)
class Scan:
    """A synthetic brain as slices (N, H, W) along one axis of R, A, S."""

    flair: Tensor  # float32, white matter about 1
    t1: Tensor | None
    truth: Tensor  # uint8, indices into CLASSES
    axis: int
    spacing_mm: float  # from slice to slice; pixels are 1 mm

    def volumes(self) -> dict[str, Volume]:
        """FLAIR, T1 (if there is one), wmh and tissue on one grid whose axes run R, A, S."""
        affine = np.diag([1.0, 1.0, 1.0, 1.0])
        affine[self.axis, self.axis] = self.spacing_mm
        arrays = {"FLAIR": (500 * self.flair).round().to(torch.int16)}
        if self.t1 is not None:
            arrays["T1"] = (700 * self.t1).round().to(torch.int16)
        arrays["wmh"] = (self.truth == WMH).to(torch.uint8)
        arrays["tissue"] = self.truth
        stacked = {n: np.moveaxis(a.cpu().numpy(), 0, self.axis) for n, a in arrays.items()}
        affine[:3, 3] = -np.diag(affine)[:3] * (np.array(stacked["wmh"].shape) - 1) / 2
        return {n: Volume(np.ascontiguousarray(a), affine, name=n) for n, a in stacked.items()}

    def slices(self, preparation: Preparation) -> tuple[Array, Array]:
        """Colour slices (N, H, W, 3) and labels (N, H, W), uint8, as `prepare` would make them."""
        grid = Volume(self.flair.cpu().numpy(), np.eye(4), name="synthetic FLAIR")
        flair = requantise(grid, preparation.tissue_grey)
        t1 = np.zeros_like(flair)
        if self.t1 is not None:
            t1 = requantise(grid.with_data(self.t1.cpu().numpy()), preparation.tissue_grey)
        residue = area_residue(flair, round(preparation.opening_mm2))
        return np.stack([residue, flair, t1], axis=-1), self.truth.cpu().numpy()


class Labelled(NamedTuple):
    """Lesions and rims with their soft edges, before slices have their thickness, all
    (N * parts, H, W)."""

    lesion: Tensor  # the part of its full brightness, 0 to 1
    rim: Tensor  # likewise
    rim_excess: Tensor  # what rims add to a FLAIR whose white matter is 1


def write_subjects(
    folder: Path, anatomies: Sequence[Anatomy], *, number: int, seed: int
) -> Iterator[tuple[Path, float]]:
    """Write synthetic subjects (FLAIR, T1, wmh, tissue); their folders and mL of WMH.

    Raises LeukoError when a folder cannot be written.
    """
    for subject in range(number):
        rng = np.random.default_rng([seed, subject, 1])  # apart from that of the scan itself
        anatomy = anatomies[int(rng.integers(len(anatomies)))]
        choice = replace(choose(anatomy, rng, every_mm=0), with_t1=True)
        volumes = synthesise(anatomy, [seed, subject], choice=choice, size=(208, 224)).volumes()
        home = folder / f"sub-{subject + 1:02d}"
        with staged(home) as scratch:
            for name, volume in volumes.items():
                nifti.write(scratch / f"{name}.nii.gz", volume)
        wmh = volumes["wmh"]
        yield home, float(wmh.data.sum()) * wmh.voxel_mm3 / 1000


def synthesise(
    anatomy: Anatomy,
    seed: int | Sequence[int],
    *,
    atlas: Sequence[Tensor] = (),
    choice: Choice | None = None,
    own_lesions: bool = False,
    size: tuple[int, int] = (160, 192),
) -> Scan:
    """A random scan of an anatomy, on the anatomy's device; all follows from the seed.

    Slices are `size` pixels of 1 mm around the brain. `atlas`: masks in MNI space that may be
    carried over; with `own_lesions` the lesions are the anatomy's, not random ones.
    """
    rng = np.random.default_rng(seed)
    choice = choice or choose(anatomy, rng)
    generator = torch.Generator(anatomy.tissue.device).manual_seed(int(rng.integers(2**62)))
    anatomy = reshape(
        anatomy,
        ventricle_widening_mm=choice.ventricle_widening_mm,
        sulcal_filling_mm=choice.sulcal_filling_mm,
    )
    if not own_lesions:
        anatomy = replace(anatomy, lesions=draw_lesions(anatomy, rng, atlas=atlas))
    damage = smooth_noise(anatomy.tissue.shape, 9, generator)
    points = sample_points(anatomy, choice, size, rng, generator)

    samples = sample(anatomy, damage, points)
    lesion = blurred(samples.lesion, rng.uniform(0.3, 1.1)) * rng.uniform(1.0, 1.4)
    labelled = Labelled(lesion.clamp(max=1), *_rim(samples, choice, rng, generator))
    truth, brain = _truth(samples.tissue, labelled, choice)
    flair = _flair(samples, labelled, choice, rng, generator)
    t1 = None
    if choice.with_t1:
        if rng.random() < 0.5:  # aligned, but not quite
            points = points + torch.as_tensor(rng.normal(0, 0.6, size=3), device=points.device)
            samples = sample(anatomy, damage, points.float())
        t1 = _t1(samples, choice, rng, generator)

    flair = acquired(flair, rng, generator)
    t1 = None if t1 is None else acquired(t1, rng, generator)
    if not choice.head:
        kept = extracted(brain, rng, generator)
        flair, truth = flair * kept, torch.where(kept, truth, BACKGROUND)
        t1 = None if t1 is None else t1 * kept
    elif rng.random() < 0.15:
        kept = ~in_face(anatomy, points, choice)
        flair = flair * kept
        t1 = None if t1 is None else t1 * kept
    return Scan(flair, t1, truth.to(torch.uint8), choice.axis, choice.spacing_mm)


def _rim(
    samples: Samples, choice: Choice, rng: np.random.Generator, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The normal caps and rims of the ventricles, `rim` and `rim_excess` of `Labelled`.

    They are smooth, mostly 1 to 3 mm wide, wider at the horns of the lateral ventricles, and not
    seen in a quarter of the scans.
    """
    if rng.random() < 0.25:
        return torch.zeros_like(samples.lesion), torch.zeros_like(samples.lesion)
    solid = table([k.truth >= GREY for k in TISSUES], samples.tissue.device)[samples.tissue]
    coarse, fine = _fields(samples.tissue.shape, choice, generator)
    front = torch.sigmoid((0.34 - samples.back) / 0.03)
    behind = torch.sigmoid((samples.back - 0.62) / 0.03)
    body_mm = math.exp(rng.uniform(math.log(0.4), math.log(2.6)))
    width_mm = body_mm + rng.uniform(0, 3) * (front + behind)
    width_mm = (width_mm * (1 + 0.45 * coarse + 0.2 * fine)).clamp(max=WIDEST_RIM_MM)
    edge_mm = rng.uniform(0.5, 1.2)
    part = solid * ((width_mm - samples.cavity_mm) / edge_mm + 0.5).clamp(0, 1)
    if rng.random() < 0.5:  # less around the third and fourth ventricle
        lateral = samples.ventricle_mm <= samples.cavity_mm + 0.1
        part = torch.where(lateral, part, rng.uniform(0, 1) * part)
    height = rng.uniform(0.05, 0.75) * (1 + 0.4 * coarse + 0.2 * fine).clamp(min=0)
    return part, part * height


def _truth(tissue: Tensor, labelled: Labelled, choice: Choice) -> tuple[Tensor, Tensor]:
    """Classes (N, H, W), the commonest through each slice's thickness, and the part of brain.

    A lesion in a rim is a lesion.
    """
    classes = table([k.truth for k in TISSUES], tissue.device)[tissue]
    parts = torch.stack([slabs((classes == k).float(), choice) for k in range(len(CLASSES) - 1)])
    marked = slabs(labelled.lesion, choice) >= LABELLED_PART
    commonest = parts.argmax(dim=0)
    rim = (slabs(labelled.rim, choice) >= LABELLED_PART) & (commonest >= GREY)
    rim = rim & (slabs(labelled.rim_excess, choice) >= LEAST_RIM)
    truth = torch.where(rim, RIM, commonest)
    return torch.where(marked, WMH, truth), parts[VENTRICLE:].sum(dim=0)


def _flair(
    samples: Samples,
    labelled: Labelled,
    choice: Choice,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> Tensor:
    tissue = samples.tissue
    means = _means([k.flair for k in TISSUES], rng)
    coarse, fine = _fields(tissue.shape, choice, generator)
    image = _painted(tissue, means, coarse, fine, rng)
    device = tissue.device

    # Cortex shines in places: insula, cingulate, hippocampus.
    shine = rng.uniform(0, 0.35) * (rng.random() < 0.7)
    grey = tissue == INDEX["cortex"]
    image = image + grey * (shine * (fine + 0.4 * coarse - 0.3).clamp(0, 1.2))
    # White matter is brighter far back and beside the ventricles, without being a lesion.
    white = table([k.truth == WHITE for k in TISSUES], device)[tissue]
    outside = samples.ventricle_mm.clamp(min=0)
    image = image + white * (rng.uniform(0, 0.1) * (2 * samples.back - 1).clamp(0, 1))
    if rng.random() < 0.6:
        image = image + white * (rng.uniform(0, 0.18) * torch.exp(-outside / rng.uniform(3, 9)))
    if rng.random() < 0.35:  # the optic radiation: a band beside the back of the ventricles
        band = torch.exp(-(((outside - rng.uniform(3, 10)) / rng.uniform(2, 4)) ** 2))
        band = band * torch.sigmoid((samples.back - 0.62) / 0.04) * (1 + 0.5 * coarse).clamp(min=0)
        image = image + white * (rng.uniform(0.05, 0.3) * band)
    if rng.random() < 0.5:  # "dirty" white matter: broad, faint, without an edge
        dirt = (0.7 * coarse + 0.3 * fine).clamp(min=0) * torch.exp(-outside / 25)
        image = image + white * (rng.uniform(0, 0.22) * dirt)
    # The lining of the ventricles: a bright line, thinner than a millimetre and a half.
    if rng.random() < 0.3:
        line = torch.exp(-((outside / rng.uniform(0.5, 0.9)) ** 2)) * (samples.ventricle_mm > -0.3)
        image = image + white * (rng.uniform(0, 0.8) * (1 + 0.5 * coarse).clamp(min=0)) * line
    image = image + labelled.rim_excess
    if rng.random() < 0.6:  # glands, vessels, mucosa and marrow shine in places
        outer = table([k.truth == BACKGROUND and k.name != "air" for k in TISSUES], device)[tissue]
        image = image + outer * (rng.uniform(0, 1.1) * (fine + 0.5 * coarse - 0.5).clamp(0, 1.2))
    below = table([k.name in BELOW_TENTORIUM for k in TISSUES], device)[tissue]
    if rng.random() < 0.5:  # brain stem and cerebellum are uneven
        image = image + below * (rng.uniform(0, 0.15) * (fine + coarse).clamp(min=0))
    # Flow in the CSF.
    if rng.random() < 0.45:
        fluid = table([k.name in ("csf", "ventricle") for k in TISSUES], device)[tissue]
        image = image + fluid * (rng.uniform(0.2, 1.3) * (coarse + 0.5 * fine - 0.9).clamp(0, 1))

    # Lesions: brighter than cortex and thalamus, with soft edges, sometimes a haze around.
    brightest = max(means[INDEX["cortex"]], means[INDEX["thalamus"]])
    uneven = 1 + rng.uniform(0, 0.2) * coarse + rng.uniform(0, 0.2) * fine
    # Never so dim that no reader would see it: that would teach to guess.
    level = (brightest * rng.uniform(1.08, 1.7) * uneven).clamp(min=LEAST_CONTRAST)
    level = torch.maximum(level, below * LEAST_CONTRAST * image)  # a cerebellum may be bright
    weight = labelled.lesion
    if rng.random() < 0.5:
        haze = blurred(labelled.lesion, rng.uniform(2, 4)) * white * rng.uniform(0, 0.4)
        weight = torch.maximum(weight, haze)
    image = torch.where(image > level, image, image + weight * (level - image))
    if rng.random() < 0.35:  # cavities
        inner = ((blurred(labelled.lesion, 2.0) - 0.6) / 0.3).clamp(0, 1)
        cavity = inner * (2 * samples.damage - 1.6).clamp(0, 1) * rng.uniform(0.3, 1)
        image = image + cavity * (means[INDEX["csf"]] - image)
    return slabs(image, choice)


def _t1(
    samples: Samples, choice: Choice, rng: np.random.Generator, generator: torch.Generator
) -> Tensor:
    tissue = samples.tissue
    means = _means([k.t1 for k in TISSUES], rng)
    if rng.random() < 0.25:  # with contrast medium
        for name in ("vessel", "choroid plexus", "dura"):
            means[INDEX[name]] = rng.uniform(1.0, 2.2)
    coarse, fine = _fields(tissue.shape, choice, generator)
    image = _painted(tissue, means, coarse, fine, rng)
    if rng.random() < 0.4:  # white matter is uneven on T1 too, lesion or not
        white = table([k.truth == WHITE for k in TISSUES], tissue.device)[tissue]
        image = image - white * (rng.uniform(0, 0.15) * (0.6 * coarse + 0.4 * fine).clamp(min=0))
    # Lesions are hardly to clearly dark; where tissue is lost, as dark as a "black hole".
    hole = rng.uniform(0, 0.55) * (2 * samples.damage - 1.2).clamp(0, 1)
    level = rng.uniform(0.6, 1.0) * (1 + rng.uniform(0, 0.2) * fine) - hole
    weight = blurred(samples.lesion, rng.uniform(0.4, 1.2))
    level = torch.minimum(level.clamp(min=means[INDEX["csf"]]), image)
    return slabs(image + weight * (level - image), choice)


def _painted(
    tissue: Tensor, means: Array, coarse: Tensor, fine: Tensor, rng: np.random.Generator
) -> Tensor:
    """Each tissue at its grey value, which varies from region to region and from pixel to pixel."""
    brain = np.array([k.truth > BACKGROUND for k in TISSUES])
    spread = np.where(brain, rng.uniform(0.005, 0.045), 0.25)
    spread[INDEX["cortex"]] *= 1.5
    far = means * spread * rng.normal(size=len(TISSUES))
    near = 0.6 * means * spread * rng.normal(size=len(TISSUES))
    device = tissue.device
    return (
        table(means, device)[tissue]
        + table(far, device)[tissue] * coarse
        + table(near, device)[tissue] * fine
    )


def _fields(
    shape: Sequence[int], choice: Choice, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Smooth noise that varies over about 20 mm and 6 mm."""
    step = choice.spacing_mm / choice.parts
    return (
        smooth_noise(shape, (20 / step, 20, 20), generator),
        smooth_noise(shape, (max(1, 6 / step), 6, 6), generator),
    )


def _means(ranges: Sequence[Range], rng: np.random.Generator) -> Array:
    return np.array([rng.uniform(low, high) for low, high in ranges])
