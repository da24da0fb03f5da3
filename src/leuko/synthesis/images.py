"""A random FLAIR and T1 of an anatomy with their truth, as slices.

Pose, shape, slices, lesions, contrast and acquisition are drawn anew for each scan. The same seed
and settings give the same scan on every run on one kind of device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from leuko.io import nifti
from leuko.io.files import staged
from leuko.io.tissue import Tissue
from leuko.preprocessing.slices import Preparation, area_residue, requantise
from leuko.synthesis.acquisition import acquired, extracted
from leuko.synthesis.anatomy import Anatomy, reshape
from leuko.synthesis.labels import label, truth
from leuko.synthesis.lesions import draw_lesions
from leuko.synthesis.painting import paint_flair, paint_t1
from leuko.synthesis.random_fields import coarse_and_fine, smooth_noise
from leuko.synthesis.sampling import Choice, choose, in_face, sample, sample_points
from leuko.synthesis.settings import SynthesisSettings
from leuko.volume import Array, Volume

SUBJECT_SIZE = (208, 224)  # pixels of written slices: whole heads fit
GREY_OF_WHITE = {"FLAIR": 500, "T1": 700}  # of white matter in written scans


@dataclass(frozen=True, eq=False)
class Scan:
    """A synthetic brain as slices (N, H, W) along one axis of R, A, S."""

    flair: Tensor  # float32, white matter about 1
    t1: Tensor | None
    truth: Tensor  # uint8, values of `Tissue`
    axis: int
    spacing_mm: float  # from slice to slice; pixels are 1 mm

    def volumes(self) -> dict[str, Volume]:
        """FLAIR, T1 (if there is one), wmh and tissue on one grid whose axes run R, A, S."""
        affine = np.diag([1.0, 1.0, 1.0, 1.0])
        affine[self.axis, self.axis] = self.spacing_mm
        scans = {"FLAIR": self.flair} | ({} if self.t1 is None else {"T1": self.t1})
        arrays = {n: (GREY_OF_WHITE[n] * a).round().to(torch.int16) for n, a in scans.items()}
        arrays["wmh"] = (self.truth == Tissue.WMH).to(torch.uint8)
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


def write_subjects(
    folder: Path,
    anatomies: Sequence[Anatomy],
    *,
    number: int,
    seed: int,
    settings: SynthesisSettings = SynthesisSettings(),
) -> Iterator[tuple[Path, float]]:
    """Write synthetic subjects (FLAIR, T1, wmh, tissue); yields their folders and mL of WMH.

    Raises LeukoError if a folder cannot be written.
    """
    for subject in range(number):
        rng = np.random.default_rng([seed, subject, 1])  # another stream than that of the scan
        anatomy = anatomies[int(rng.integers(len(anatomies)))]
        choice = choose(anatomy, rng, every_mm=0, settings=settings.sampling)
        scan = synthesise(
            anatomy,
            [seed, subject],
            choice=replace(choice, with_t1=True),
            size=SUBJECT_SIZE,
            settings=settings,
        )
        volumes = scan.volumes()
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
    settings: SynthesisSettings = SynthesisSettings(),
) -> Scan:
    """A random scan of an anatomy, on the anatomy's device; it follows from seed and settings.

    Slices are `size` pixels of 1 mm around the brain. `atlas`: masks in MNI space that may be
    transferred; with `own_lesions` the lesions are the anatomy's, not random ones.
    """
    sampling = settings.sampling
    rng = np.random.default_rng(seed)
    choice = choice or choose(anatomy, rng, settings=sampling)
    generator = torch.Generator(anatomy.structure.device).manual_seed(int(rng.integers(2**62)))
    anatomy = reshape(
        anatomy,
        ventricle_widening_mm=choice.ventricle_widening_mm,
        sulcal_filling_mm=choice.sulcal_filling_mm,
    )
    if not own_lesions:
        lesions = draw_lesions(anatomy, rng, atlas=atlas, settings=settings.lesions)
        anatomy = replace(anatomy, lesions=lesions)
    damage = smooth_noise(anatomy.structure.shape, settings.noise.damage_mm, generator)
    points = sample_points(anatomy, choice, size, rng, generator, settings=sampling)

    samples = sample(anatomy, damage, points)
    step_mm = choice.spacing_mm / choice.parts
    noise = partial(coarse_and_fine, points.shape[:3], step_mm, generator, settings.noise)
    labelled = label(samples, rng, noise, settings.labels)
    tissue, brain = truth(samples.structure, labelled, choice, settings.labels)
    flair = paint_flair(samples, labelled, choice, rng, noise, settings=settings.painting)
    t1 = None
    if choice.with_t1:
        if rng.random() < sampling.t1_misaligned_probability:
            shift_mm = rng.normal(0, sampling.t1_misaligned_sd_mm, size=3)
            points = points + torch.as_tensor(shift_mm, device=points.device)
            samples = sample(anatomy, damage, points.float())
        t1 = paint_t1(samples, choice, rng, noise, settings=settings.painting)

    flair = acquired(flair, rng, generator, settings.acquisition)
    t1 = None if t1 is None else acquired(t1, rng, generator, settings.acquisition)
    if not choice.head:
        kept = extracted(brain, rng, generator, settings.extraction)
        flair, tissue = flair * kept, torch.where(kept, tissue, Tissue.BACKGROUND)
        t1 = None if t1 is None else t1 * kept
    elif rng.random() < sampling.defaced_probability:
        kept = ~in_face(anatomy, points, choice, sampling)
        flair = flair * kept
        t1 = None if t1 is None else t1 * kept
    return Scan(flair, t1, tissue.to(torch.uint8), choice.axis, choice.spacing_mm)
