"""Makes scans of simulated scanners far from the training, and measures the model on them.

    python experiments/scanners.py HEADS OUT [--atlas DIR] [--scanner NAME ...] [--model leuko-base]

HEADS and --atlas: as for `leuko train --recipe base`. Each scanner has one appearance, which varies
a little from subject to subject. Writes OUT/<scanner>/train/sub-XX, made of heads that the model
was trained on, and OUT/<scanner>/test/sub-XX, made of held-out heads: FLAIR, T1, wmh and tissue,
axial, 1 x 1 x 3 mm, with at least 1 mL of WMH. OUT/original has the same brains and lesions in the
appearance of the training; OUT/original/fresh has other subjects. Existing subjects are kept.
Prints the mean measures of the test subjects and the differences of Dice from `original`, with 95 %
intervals.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from base_data import HELD_OUT
from tables import interval
from torch import Tensor

from leuko.evaluation.evaluate import Row
from leuko.io import nifti
from leuko.io.files import image_stem, staged
from leuko.io.tissue import Tissue
from leuko.model import runtime, weights
from leuko.synthesis.anatomy import Anatomy, load_head
from leuko.synthesis.images import Scan, synthesise
from leuko.synthesis.random_fields import blurred, smooth_noise
from leuko.synthesis.sampling import Choice, choose
from leuko.training import holdout
from leuko.training.dataset import find_subjects

TRAINING, TEST = 15, 12  # subjects of a scanner
SLICES, SPACING_MM, SIZE = 48, 3.0, (192, 224)
TESTS, FRESH = "test", "fresh"
LEAST_ML = 1.0
SOFT_EDGE = 0.7  # pixels, of the classes when their grey values are moved
JITTER = 0.03  # of levels, in the logarithm of noise and exponent, of the shading's shape
COLUMNS = {"dsc": "Dice", "lesion_f1": "lesion F1", "h95_mm": "H95, mm"}


@dataclass(frozen=True)
class Look:
    """What becomes of one image, in this order. The defaults leave it as it is, but for its scale.

    All is relative to white matter, whose median is 1 to begin with.
    """

    levels: Mapping[int, float] = field(default_factory=dict)  # medians of classes
    resolution_mm: float = 1.0  # in plane, by a cut k-space: edges ring
    shading: float = 0.0  # farthest that a smooth bias field goes from 1
    coil_reach_mm: float = math.inf  # from the back of the image on, signal falls by e in this
    noise: float = 0.0  # Rician, sigma
    exponent: float = 1.0


@dataclass(frozen=True)
class Scanner:
    """A name, whole heads or extracted brains (None: either), the looks of FLAIR and T1."""

    name: str
    head: bool | None
    flair: Look = Look()
    t1: Look = Look()


ORIGINAL = Scanner("original", head=None)
SCANNERS = (
    # 0.1 T at a bedside: little signal, large pixels, an inversion that leaves CSF grey.
    Scanner(
        "low-field",
        head=True,
        flair=Look(
            levels={Tissue.CSF: 0.55, Tissue.VENTRICLE: 0.5, Tissue.GREY: 1.15, Tissue.WMH: 1.42},
            resolution_mm=2.0,
            noise=0.15,
        ),
        t1=Look(
            levels={Tissue.CSF: 0.6, Tissue.VENTRICLE: 0.55, Tissue.GREY: 0.87, Tissue.WMH: 0.87},
            resolution_mm=2.0,
            noise=0.15,
        ),
    ),
    # One receiver behind the head, and nothing done about it.
    Scanner(
        "surface-coil",
        head=True,
        flair=Look(shading=0.6, coil_reach_mm=75, noise=0.06),
        t1=Look(shading=0.6, coil_reach_mm=75, noise=0.06),
    ),
    # A FLAIR in a steep display curve, and a T2 where the T1 should be, of extracted brains.
    Scanner(
        "other-sequence",
        head=False,
        flair=Look(levels={Tissue.GREY: 1.25, Tissue.WMH: 1.6}, exponent=2.2),
        t1=Look(levels={Tissue.CSF: 1.9, Tissue.VENTRICLE: 2.0, Tissue.GREY: 1.3, Tissue.WMH: 1.5}),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--atlas", type=Path)
    names = [scanner.name for scanner in SCANNERS]
    parser.add_argument("--scanner", nargs="+", choices=names, default=names)
    parser.add_argument("--model", default=weights.DEFAULT)
    options = parser.parse_args()
    scanners = [scanner for scanner in SCANNERS if scanner.name in options.scanner]
    make_all(options.heads, options.out, options.atlas, scanners)
    model = runtime.load(weights.find(options.model))
    rows = {
        scanner.name: list(measures(options.out / scanner.name / TESTS, model).values())
        for scanner in (ORIGINAL, *scanners)
    }
    print_table(rows)


def measures(tests: Path, model: runtime.Model) -> dict[str, Row]:
    with TemporaryDirectory() as masks:
        return holdout.measures(find_subjects(tests), model, Path(masks))


def make_all(heads: Path, out: Path, atlas: Path | None, scanners: Sequence[Scanner]) -> None:
    """Write the subjects of all scanners, and those of the ordinary range."""
    masks = [
        torch.from_numpy(nifti.read_mask(path).canonical().data > 0)
        for path in (sorted(atlas.glob("*.nii.gz")) if atlas else [])
    ]
    names = sorted(image_stem(path) for path in heads.glob("*.nii.gz"))
    trained = [name for name in names if name not in HELD_OUT]
    for key, (part, subjects_of_part, brains, wanted) in enumerate(
        (
            ("train", TRAINING, trained, (ORIGINAL, *scanners)),
            (TESTS, TEST, HELD_OUT, (ORIGINAL, *scanners)),
            (FRESH, TEST, HELD_OUT, (ORIGINAL,)),
        )
    ):
        for number in range(subjects_of_part):
            homes = [(s, out / s.name / part / f"sub-{number + 1:02d}") for s in wanted]
            missing = [(scanner, home) for scanner, home in homes if not home.is_dir()]
            if not missing:
                continue
            anatomy = load_head(heads / f"{brains[number % len(brains)]}.nii.gz")
            for scanner, home in missing:
                write(home, scanned(scanner, anatomy, [606, key, number], masks))


def scanned(scanner: Scanner, anatomy: Anatomy, seed: list[int], atlas: Sequence[Tensor]) -> Scan:
    """One subject of a scanner. The seed decides its brain and lesions, whatever the scanner."""
    scan = ordinary(anatomy, seed, atlas, head=scanner.head)
    rng = np.random.default_rng([*seed, 2])
    assert scan.t1 is not None
    flair = seen(scan.flair, scan.truth, scanner.flair, rng)
    return replace(scan, flair=flair, t1=seen(scan.t1, scan.truth, scanner.t1, rng))


def ordinary(
    anatomy: Anatomy, seed: list[int], atlas: Sequence[Tensor], *, head: bool | None
) -> Scan:
    """An axial scan as the training showed such, the first of the seed with enough lesions."""
    for attempt in count():
        choice = axial(anatomy, np.random.default_rng([*seed, attempt, 1]))
        if head is not None:
            choice = replace(choice, head=head)
        scan = synthesise(anatomy, [*seed, attempt], atlas=atlas, choice=choice, size=SIZE)
        if (scan.truth == Tissue.WMH).sum() * SPACING_MM / 1000 >= LEAST_ML:
            break
    return scan


def axial(anatomy: Anatomy, rng: np.random.Generator) -> Choice:
    return replace(
        choose(anatomy, rng),
        axis=2,
        slices=SLICES,
        thickness_mm=SPACING_MM,
        spacing_mm=SPACING_MM,
        parts=2,
        with_t1=True,
    )


def seen(image: Tensor, truth: Tensor, look: Look, rng: np.random.Generator) -> Tensor:
    """The image (N, H, W) as a scanner would have seen it; what is 0 stays 0."""
    inside = image > 0
    image = image / image[truth == Tissue.WHITE].median()
    image = relevelled(image, truth, look.levels, rng)
    image = at_resolution(image, look.resolution_mm)
    image = image * sensitivity(image.shape, look, rng)
    sigma = look.noise * jittered(rng)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = sigma * torch.randn(2, *image.shape, generator=generator)
    image = torch.hypot(image + noise[0], noise[1]) ** (look.exponent ** jittered(rng))
    return image * inside


def jittered(rng: np.random.Generator) -> float:
    return math.exp(rng.normal(0, JITTER))


def relevelled(
    image: Tensor, truth: Tensor, levels: Mapping[int, float], rng: np.random.Generator
) -> Tensor:
    """The image with classes moved to their levels, softly at their edges, never below 0."""
    moved = image
    for number, level in levels.items():
        inside = truth == number
        step = level + rng.normal(0, JITTER) - image[inside].median()
        moved = moved + step * blurred(inside.float(), SOFT_EDGE)
    return moved.clamp(min=0)


def at_resolution(image: Tensor, resolution_mm: float) -> Tensor:
    """The image without the spatial frequencies that pixels of that size in mm cannot hold."""
    if resolution_mm == 1:
        return image
    kept = [torch.fft.fftfreq(n).abs() <= 0.5 / resolution_mm for n in image.shape[1:]]
    spectrum = torch.fft.fft2(image) * (kept[0][:, None] & kept[1])
    coarse: Tensor = torch.fft.ifft2(spectrum).abs()
    return coarse


def sensitivity(shape: Sequence[int], look: Look, rng: np.random.Generator) -> Tensor:
    """Bias field (N, H, W): the same for all subjects, nearly, and its mean in plane about 1."""
    scale = (shape[0] / 2, 90, 90)
    fixed, own = (
        smooth_noise(shape, scale, torch.Generator().manual_seed(seed))
        for seed in (1, int(rng.integers(2**62)))
    )
    bias = fixed + 3 * JITTER * own
    bias = 1 + look.shading * bias / bias.abs().max()
    from_back = torch.arange(shape[2]) - shape[2] / 2 + rng.normal(0, 100 * JITTER)
    return bias * torch.exp(-from_back / look.coil_reach_mm)


def write(home: Path, scan: Scan) -> None:
    with staged(home) as scratch:
        for name, volume in scan.volumes().items():
            nifti.write(scratch / f"{name}.nii.gz", volume)


def subjects(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.iterdir() if path.is_dir())


def print_table(rows: Mapping[str, Sequence[Row]]) -> None:
    """A row a scanner; the first is what the others are compared with, subject by subject."""
    print("| scanner |", " | ".join(COLUMNS.values()), "| Dice, less that of original |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    first = next(iter(rows.values()))
    for name, own in rows.items():
        cells = [
            interval([row[column] for row in own], 1 if column == "h95_mm" else 2)
            for column in COLUMNS
        ]
        lost = [row["dsc"] - other["dsc"] for row, other in zip(own, first, strict=True)]
        print("|", " | ".join([name, *cells, interval(lost, 2)]), "|")


if __name__ == "__main__":
    main()
