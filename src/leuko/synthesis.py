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

from leuko import nifti
from leuko.anatomy import (
    BACKGROUND,
    CLASSES,
    INDEX,
    TISSUES,
    VENTRICLE,
    WHITE,
    WMH,
    Anatomy,
    Range,
    reshape,
)
from leuko.channels import Preparation, area_residue, requantise
from leuko.fields import blurred, smooth_noise
from leuko.files import staged
from leuko.pathology import draw_lesions
from leuko.scanner import acquired, extracted
from leuko.volume import Array, Volume

# The least part of a lesion's full brightness that is labelled, once its edges are soft and slices
# have their thickness: readers mark what they see, and see a little less than half.
LABELLED_PART = 0.35
# The least brightness of a lesion on FLAIR, white matter being 1: dimmer ones teach to guess.
LEAST_CONTRAST = 1.22
LONGEST_SAMPLE_MM = 1.6  # through the thickness of a slice


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


@dataclass(frozen=True)
class Choice:
    """What is decided about one synthetic scan before its pixels are made."""

    axis: int
    slices: int
    thickness_mm: float
    spacing_mm: float
    parts: int  # samples through the thickness of a slice
    head: bool  # with skull and scalp, as the scanner saw it
    with_t1: bool
    ventricle_widening_mm: float
    sulcal_filling_mm: float  # by cortex


class Samples(NamedTuple):
    """What lies at the points of a scan, all (N * parts, H, W)."""

    tissue: Tensor  # int64, indices into TISSUES
    ventricle_mm: Tensor  # distance from the lateral ventricles, negative inside
    lesion: Tensor  # 0 or 1
    damage: Tensor  # noise: above about 1 a lesion has lost its tissue
    back: Tensor  # 0 at the front of the brain, 1 at its back


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


def choose(anatomy: Anatomy, rng: np.random.Generator, *, every_mm: float = 4.0) -> Choice:
    """Slice direction and thickness, whole head or brain, T1 or none.

    Slices stand at least `every_mm` apart: neighbours of thin slices teach nothing new.
    """
    axis = int(rng.choice(3, p=[0.15, 0.15, 0.7]))
    thickness = 1.0 if rng.random() < 0.45 else float(rng.uniform(1.5, 8.0))
    spacing = thickness if rng.random() < 0.6 else thickness * float(rng.uniform(1.0, 1.3))
    extent = anatomy.high[axis] - anatomy.low[axis] + 24
    stride = max(spacing, every_mm)
    return Choice(
        axis=axis,
        slices=int(extent / stride),
        thickness_mm=thickness,
        spacing_mm=stride,
        parts=math.ceil(thickness / LONGEST_SAMPLE_MM),
        head=anatomy.has_skull and bool(rng.random() < 0.5),
        with_t1=bool(rng.random() < 0.75),
        ventricle_widening_mm=float(np.clip(rng.normal(0, 1.2), -1.5, 3)),
        sulcal_filling_mm=float(max(0, rng.uniform(-1.0, 1.6))),
    )


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
    points = _points(anatomy, choice, size, rng, generator)

    samples = _sampled(anatomy, damage, points)
    lesion_part = blurred(samples.lesion, rng.uniform(0.3, 1.1))
    truth, brain = _truth(samples.tissue, lesion_part, choice)
    flair = _flair(samples, lesion_part, choice, rng, generator)
    t1 = None
    if choice.with_t1:
        if rng.random() < 0.5:  # aligned, but not quite
            points = points + torch.as_tensor(rng.normal(0, 0.6, size=3), device=points.device)
            samples = _sampled(anatomy, damage, points.float())
        t1 = _t1(samples, choice, rng, generator)

    flair = acquired(flair, rng, generator)
    t1 = None if t1 is None else acquired(t1, rng, generator)
    if not choice.head:
        kept = extracted(brain, rng, generator)
        flair, truth = flair * kept, torch.where(kept, truth, BACKGROUND)
        t1 = None if t1 is None else t1 * kept
    elif rng.random() < 0.15:
        kept = ~_face(anatomy, points, choice)
        flair = flair * kept
        t1 = None if t1 is None else t1 * kept
    return Scan(flair, t1, truth.to(torch.uint8), choice.axis, choice.spacing_mm)


def _points(
    anatomy: Anatomy,
    choice: Choice,
    size: tuple[int, int],
    rng: np.random.Generator,
    generator: torch.Generator,
) -> Tensor:
    """Where the samples of all slices lie: voxels of the anatomy (N * parts, H, W, 3)."""
    device = anatomy.tissue.device
    across = choice.spacing_mm * (torch.arange(choice.slices, device=device) - choice.slices / 2)
    within = choice.thickness_mm * (
        (torch.arange(choice.parts, device=device) + 0.5) / choice.parts - 0.5
    )
    across = (across[:, None] + within).flatten() + rng.uniform(-2, 2)
    rows, columns = (
        torch.arange(n, device=device) - (n - 1) / 2 + rng.uniform(-12, 12) for n in size
    )
    grid = torch.meshgrid(across, rows, columns, indexing="ij")
    order = {0: (0, 1, 2), 1: (1, 0, 2), 2: (1, 2, 0)}[choice.axis]
    points = torch.stack([grid[k] for k in order], dim=-1)  # (F, H, W, 3), mm around the brain
    centre = torch.tensor(anatomy.low, device=device) + torch.tensor(anatomy.high, device=device)

    turn = np.radians(rng.normal(0, 6, size=3))
    matrix = np.eye(3)
    for axis, angle in enumerate(turn):
        a, b = (k for k in range(3) if k != axis)
        rotation = np.eye(3)
        rotation[[a, a, b, b], [a, b, a, b]] = np.array([1, -1, 1, 1]) * [
            np.cos(angle), np.sin(angle), np.sin(angle), np.cos(angle)
        ]  # fmt: skip
        matrix = matrix @ rotation
    matrix = matrix @ np.diag(np.exp(rng.normal(0, 0.06, size=3)))
    matrix += np.triu(rng.normal(0, 0.03, size=(3, 3)), 1)
    if rng.random() < 0.5:
        matrix[0] *= -1
    points = points @ torch.as_tensor(matrix.T, dtype=torch.float32, device=device)
    bend = rng.uniform(0, 2.5)
    scales = (24 / choice.spacing_mm * choice.parts, 24.0, 24.0)
    for axis in range(3):
        points[..., axis] += bend * smooth_noise(points.shape[:3], scales, generator)
    return points + centre / 2


def _sampled(anatomy: Anatomy, damage: Tensor, points: Tensor) -> Samples:
    sizes = torch.tensor(anatomy.tissue.shape, device=points.device)
    nearest = points.round().long()
    inside = ((nearest >= 0) & (nearest < sizes)).all(dim=-1)
    nearest = torch.minimum(nearest.clamp_(min=0), sizes - 1)
    index = (nearest[..., 0] * sizes[1] + nearest[..., 1]) * sizes[2] + nearest[..., 2]
    tissue = torch.where(inside, anatomy.tissue.flatten()[index], 0).long()
    solid = _table([k.truth > VENTRICLE for k in TISSUES], tissue.device)[tissue]
    front, length = anatomy.high[1], anatomy.high[1] - anatomy.low[1]
    return Samples(
        tissue,
        anatomy.ventricle_mm.flatten()[index].float(),
        (anatomy.lesions.flatten()[index] & solid).float(),
        damage.flatten()[index],
        (front - points[..., 1]) / length,
    )


def _truth(tissue: Tensor, lesion_part: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    """Classes (N, H, W), the commonest through each slice's thickness, and the part of brain.

    `lesion_part`: lesions (N * parts, H, W), 0 to 1, with their soft edges.
    """
    classes = _table([k.truth for k in TISSUES], tissue.device)[tissue]
    parts = torch.stack([_slabs((classes == k).float(), choice) for k in range(len(CLASSES) - 1)])
    marked = _slabs(lesion_part, choice) >= LABELLED_PART
    return torch.where(marked, WMH, parts.argmax(dim=0)), parts[VENTRICLE:].sum(dim=0)


def _flair(
    samples: Samples,
    lesion_part: Tensor,
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
    white = _table([k.truth == WHITE for k in TISSUES], device)[tissue]
    outside = samples.ventricle_mm.clamp(min=0)
    image = image + white * (rng.uniform(0, 0.1) * (2 * samples.back - 1).clamp(0, 1))
    if rng.random() < 0.6:
        image = image + white * (rng.uniform(0, 0.18) * torch.exp(-outside / rng.uniform(3, 9)))
    if rng.random() < 0.5:  # "dirty" white matter: broad, faint, without an edge
        dirt = (0.7 * coarse + 0.3 * fine).clamp(min=0) * torch.exp(-outside / 25)
        image = image + white * (rng.uniform(0, 0.22) * dirt)
    # The lining of the ventricles: a bright line, thinner than a millimetre and a half.
    if rng.random() < 0.6:
        line = torch.exp(-((outside / rng.uniform(0.5, 0.9)) ** 2)) * (samples.ventricle_mm > -0.3)
        image = image + white * (rng.uniform(0, 0.8) * (1 + 0.5 * coarse).clamp(min=0)) * line
    # Flow in the CSF.
    if rng.random() < 0.45:
        fluid = _table([k.name in ("csf", "ventricle") for k in TISSUES], device)[tissue]
        image = image + fluid * (rng.uniform(0.2, 1.3) * (coarse + 0.5 * fine - 0.9).clamp(0, 1))

    # Lesions: brighter than cortex and thalamus, with soft edges, sometimes a haze around.
    brightest = max(means[INDEX["cortex"]], means[INDEX["thalamus"]])
    uneven = 1 + rng.uniform(0, 0.2) * coarse + rng.uniform(0, 0.2) * fine
    # Never so dim that no reader would see it: that would teach to guess.
    level = (brightest * rng.uniform(1.08, 1.7) * uneven).clamp(min=LEAST_CONTRAST)
    weight = (lesion_part * rng.uniform(1.0, 1.4)).clamp(max=1)
    if rng.random() < 0.5:
        haze = blurred(lesion_part, rng.uniform(2, 4)) * white * rng.uniform(0, 0.4)
        weight = torch.maximum(weight, haze)
    image = torch.where(image > level, image, image + weight * (level - image))
    if rng.random() < 0.35:  # cavities
        inner = ((blurred(lesion_part, 2.0) - 0.6) / 0.3).clamp(0, 1)
        cavity = inner * (2 * samples.damage - 1.6).clamp(0, 1) * rng.uniform(0.3, 1)
        image = image + cavity * (means[INDEX["csf"]] - image)
    return _slabs(image, choice)


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
        white = _table([k.truth == WHITE for k in TISSUES], tissue.device)[tissue]
        image = image - white * (rng.uniform(0, 0.15) * (0.6 * coarse + 0.4 * fine).clamp(min=0))
    # Lesions are hardly to clearly dark; where tissue is lost, as dark as a "black hole".
    hole = rng.uniform(0, 0.55) * (2 * samples.damage - 1.2).clamp(0, 1)
    level = rng.uniform(0.6, 1.0) * (1 + rng.uniform(0, 0.2) * fine) - hole
    weight = blurred(samples.lesion, rng.uniform(0.4, 1.2))
    level = torch.minimum(level.clamp(min=means[INDEX["csf"]]), image)
    return _slabs(image + weight * (level - image), choice)


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
        _table(means, device)[tissue]
        + _table(far, device)[tissue] * coarse
        + _table(near, device)[tissue] * fine
    )


def _face(anatomy: Anatomy, points: Tensor, choice: Choice) -> Tensor:
    """Pixels (N, H, W) that a defacing tool would blank: in front of and below the brain."""
    middle = points.view(choice.slices, choice.parts, *points.shape[1:])[:, choice.parts // 2]
    forward = middle[..., 1] - anatomy.high[1]
    upward = middle[..., 2] - anatomy.low[2]
    return forward - 0.6 * upward > -22


def _fields(
    shape: Sequence[int], choice: Choice, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Smooth noise that varies over about 20 mm and 6 mm."""
    step = choice.spacing_mm / choice.parts
    return (
        smooth_noise(shape, (20 / step, 20, 20), generator),
        smooth_noise(shape, (max(1, 6 / step), 6, 6), generator),
    )


def _slabs(fine: Tensor, choice: Choice) -> Tensor:
    """The mean through the thickness of each slice: (N * parts, H, W) to (N, H, W)."""
    return fine.view(choice.slices, choice.parts, *fine.shape[1:]).mean(dim=1)


def _means(ranges: Sequence[Range], rng: np.random.Generator) -> Array:
    return np.array([rng.uniform(low, high) for low, high in ranges])


def _table(values: Sequence[float] | Array, device: torch.device) -> Tensor:
    table = torch.as_tensor(np.asarray(values), device=device)
    return table.float() if table.is_floating_point() else table
