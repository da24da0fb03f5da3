"""How repeatable Leuko is: on other processors, in other number formats, and on second scans.

    python experiments/repeatability.py DATA HEADS SCRATCH [--part processors|formats|turned|visits
        |synthetic] [--scans NAME ...]

DATA: real/ and raw_clinical/, folders of scans with FLAIR and T1. HEADS: as for
`leuko train --recipe base`. What is made is kept in SCRATCH. --scans: only these of DATA.

processors: each scan is segmented by this processor, by one with AVX2 but neither AVX-512 nor VNNI,
which Valgrind emulates, and by one with SSE4.2 alone (Nehalem), which QEMU emulates (the Debian
packages valgrind and qemu-user). This takes some minutes a scan.
formats: the network in 8 bits by onnxruntime, and in float32 by PyTorch, as it runs on a device
that onnxruntime does not know. The weights are the same.
turned: each scan is rotated by 3 to 6 degrees, shifted by up to 6 mm along each axis, resampled
with cubic interpolation and segmented again.
visits: scans of one person at two times, with the experts' volumes where there are some. Volumes
may have changed.
synthetic: a head that the model was never trained with, with random lesions of at least 1 mL, is
scanned twice with slices of 3 mm: in two positions, each with its own blur, bias field and noise.

The last line of a part: the mean difference (second less first) with 95 % limits of agreement
(Bland and Altman 1986), in mL and in percent of the mean of both; the coefficient of variation, the
root mean square of the pairs' own; the median and the least Dice. For Dice the first mask is moved
onto the second scan by linear interpolation, which costs overlap by itself: "moved there and back"
has the first mask alone, and "Dice of truth" the true masks of both positions, treated alike.
"noise": the standard deviation of the FLAIR in air, in percent of white matter.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.ndimage
import torch
from base_data import HELD_OUT
from compare import random_motion, turn

from leuko.evaluation.metrics import dice
from leuko.io import nifti
from leuko.io.outputs import MASK_FILE, PROBABILITY_FILE
from leuko.io.tissue import Tissue
from leuko.model import runtime, weights
from leuko.preprocessing.registration import Mode
from leuko.segment import SegmentSettings, segment
from leuko.synthesis.acquisition import AcquisitionSettings, acquired
from leuko.synthesis.anatomy import Anatomy, load_head
from leuko.synthesis.images import Scan, synthesise
from leuko.synthesis.ranges import Range
from leuko.synthesis.sampling import choose
from leuko.synthesis.settings import SynthesisSettings
from leuko.volume import Array, Volume, resample_onto

PROCESSORS = {
    "AVX2": ["valgrind", "--tool=none", "-q", "--smc-check=all-non-file"],
    "SSE4.2": ["qemu-x86_64", "-cpu", "Nehalem"],
}
VISITS = (
    ("patient01_study1", "patient01_study2"),
    ("patient12_study1", "patient12_study2"),
    ("mslesseg_P14_1", "mslesseg_P14_2"),
    ("mslesseg_P14_2", "mslesseg_P14_3"),
    ("tabriz_107130", "tabriz_112776"),
)
HEADS_SCANNED = 12
SLICES, SIZE, THICKNESS_MM = 168, (192, 224), 3  # of 1 mm, then of the scans
LEAST_ML = 1.0
FLAIR_WHITE, T1_WHITE = 500, 700  # white matter in the files
CORNER = 12  # pixels of air
# One scan without artefacts, of which both scans are made, and what differs between these.
CLEAN = AcquisitionSettings(
    blur_px=Range(0.4, 0.4),
    bias_probability=0,
    coil_probability=0,
    ghost_probability=0,
    low_noise_probability=1,
    low_noise=Range(0, 0),
    interpolation_probability=0,
    gamma_log_sd=0,
    clipping_probability=0,
)
SCANNER = AcquisitionSettings(
    coil_probability=0, ghost_probability=0, gamma_log_sd=0, clipping_probability=0
)


class Pair(NamedTuple):
    """Two masks of one brain: volumes in mL, Dice, and what else is known of them."""

    name: str
    first_ml: float
    second_ml: float
    dice: float = np.nan
    more: tuple[tuple[str, str], ...] = ()

    @property
    def percent(self) -> float:
        """Difference in percent of the mean; 0 if both are 0."""
        mean = (self.first_ml + self.second_ml) / 2
        return 100 * (self.second_ml - self.first_ml) / mean if mean else 0


@dataclass(frozen=True)
class Work:
    """What the parts work on."""

    every: tuple[str, ...]  # names of all scans of DATA, in order
    homes: dict[str, Path]  # folders of the chosen ones
    heads: Path
    scratch: Path

    def segmented(self, home: Path, name: str, alignment: Mode = "auto") -> Path:
        """The result folder of a scan."""
        folder = self.scratch / "runs" / name
        if not (folder / MASK_FILE).is_file():
            settings = SegmentSettings(alignment=alignment, threads=1)
            segment(home / "FLAIR.nii.gz", home / "T1.nii.gz", settings=settings).save(folder)
        return folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("heads", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--scans", nargs="+")
    options = parser.parse_args()
    paths = options.data.glob("r*/*/T1.nii.gz")
    found = {path.parent.name: path.parent for path in sorted(paths)}
    homes = {name: home for name, home in found.items() if name in (options.scans or found)}
    work = Work(tuple(found), homes, options.heads, options.scratch)
    for name in [options.part] if options.part else PARTS:
        print(f"\n{name}", flush=True)
        pairs: list[Pair] = []
        for pair in PARTS[name](work):
            if not pairs:
                heads = [f"pair, {name}", "first, mL", "second, mL", "difference, %", "Dice"]
                heads += [head for head, _ in pair.more]
                print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
            cells = [f"{pair.first_ml:.2f}", f"{pair.second_ml:.2f}", f"{pair.percent:+.1f}"]
            cells += ["" if np.isnan(pair.dice) else f"{pair.dice:.4f}"]
            print(f"| {' | '.join([pair.name, *cells, *(told for _, told in pair.more)])} |")
            sys.stdout.flush()
            pairs.append(pair)
        if name != "visits":
            print(agreement(pairs))


def agreement(pairs: Sequence[Pair]) -> str:
    ml = np.array([pair.second_ml - pair.first_ml for pair in pairs])
    percent = np.array([pair.percent for pair in pairs])
    overlaps = [pair.dice for pair in pairs if not np.isnan(pair.dice)]

    def limits(values: Array) -> str:
        reach = 1.96 * values.std(ddof=1) if len(values) > 1 else np.nan
        return (
            f"{values.mean():+.2f} ({values.mean() - reach:+.2f} to {values.mean() + reach:+.2f})"
        )

    variation = np.sqrt(np.mean(percent**2) / 2)
    told = (
        f"n {len(pairs)}, difference {limits(ml)} mL, {limits(percent)} %, "
        f"coefficient of variation {variation:.1f} %"
    )
    if overlaps:
        told += f", Dice: median {np.median(overlaps):.4f}, least {min(overlaps):.4f}"
    return told


def processors(work: Work) -> Iterator[Pair]:
    for name, home in work.homes.items():
        own = run(home, work.scratch / "processors" / name / "this", [])
        for processor, emulated in PROCESSORS.items():
            other = run(home, work.scratch / "processors" / name / processor, emulated)
            maps = [nifti.read(folder / PROBABILITY_FILE).data for folder in (own, other)]
            furthest = np.abs(maps[0] - maps[1]).max()
            yield same_grid(f"{name}, {processor}", own, other)._replace(
                more=(
                    ("voxels that differ", f"{differing(own, other)}"),
                    ("largest difference of probability", f"{furthest:.4f}"),
                    ("mask, byte by byte", "same" if same_bytes(own, other) else "differs"),
                )
            )


def run(home: Path, out: Path, emulated: Sequence[str]) -> Path:
    """`leuko segment` as a process, on an emulated processor or on this one."""
    if not (out / MASK_FILE).is_file():
        # OpenBLAS must choose its kernels by the processor that it sees.
        kept = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
        scans = ["--flair", home / "FLAIR.nii.gz", "--t1", home / "T1.nii.gz"]
        command = [*emulated, sys.executable, "-m", "leuko.cli", "segment", *scans, "-o", out]
        told = [*map(str, command), "--threads", "1"]
        subprocess.run(told, env=kept, check=True, capture_output=True)
    return out


def same_bytes(first: Path, second: Path) -> bool:
    return (first / MASK_FILE).read_bytes() == (second / MASK_FILE).read_bytes()


def differing(first: Path, second: Path) -> int:
    masks = [nifti.read_mask(folder / MASK_FILE).data for folder in (first, second)]
    return int((masks[0] != masks[1]).sum())


def same_grid(name: str, first: Path, second: Path) -> Pair:
    masks = [nifti.read_mask(folder / MASK_FILE) for folder in (first, second)]
    own, other = (mask.data for mask in masks)
    overlap = dice(prediction=other, reference=own)
    return Pair(name, masks[0].ml(own), masks[1].ml(other), overlap)


def formats(work: Work) -> Iterator[Pair]:
    model = runtime.load(weights.find(weights.DEFAULT), threads=1, by_torch=True)
    for name, home in work.homes.items():
        out = work.scratch / "float" / name
        if not (out / MASK_FILE).is_file():
            settings = SegmentSettings(threads=1)
            scans = home / "FLAIR.nii.gz", home / "T1.nii.gz"
            segment(*scans, model=model, settings=settings).save(out)
        yield same_grid(name, work.segmented(home, name), out)


def turned(work: Work) -> Iterator[Pair]:
    for name, home in work.homes.items():
        twin = work.scratch / "turned" / name
        rng = np.random.default_rng([11, work.every.index(name)])
        motion = random_motion(nifti.read(home / "FLAIR.nii.gz"), rng)
        if not (twin / "T1.nii.gz").is_file():
            turn(home, motion, twin)
        first = nifti.read_mask(work.segmented(home, name) / MASK_FILE)
        # its T1 was turned with it
        second = nifti.read_mask(work.segmented(twin, f"{name}_turned", "never") / MASK_FILE)
        back = moved(moved(first, second, motion), first, np.linalg.inv(motion))
        there_and_back = dice(prediction=back.data, reference=first.data)
        yield moved_pair(name, first, second, motion)._replace(
            more=(("Dice of the first, moved there and back", f"{there_and_back:.4f}"),)
        )


def moved_pair(name: str, first: Volume, second: Volume, motion: Array) -> Pair:
    return Pair(name, first.ml(first.data), second.ml(second.data), overlap(first, second, motion))


def overlap(first: Volume, second: Volume, motion: Array) -> float:
    """Dice of two masks, the first moved onto the grid of the second."""
    return dice(prediction=second.data, reference=moved(first, second, motion).data)


def moved(mask: Volume, grid: Volume, motion: Array) -> Volume:
    """A mask moved in the world and resampled onto a grid."""
    soft = replace(mask, data=mask.data.astype(np.float32), affine=motion @ mask.affine)
    return grid.with_data(resample_onto(soft, grid).data >= 0.5)


def visits(work: Work) -> Iterator[Pair]:
    for names in VISITS:
        if not set(names) <= set(work.homes):
            continue
        masks = [work.segmented(work.homes[name], name) / MASK_FILE for name in names]
        first, second = (nifti.read_mask(path) for path in masks)
        experts = [expert_ml(work.homes[name]) for name in names]
        told = ", ".join(f"{ml:.2f}" for ml in experts if ml is not None)
        pair = Pair(f"{names[0]}, {names[1]}", first.ml(first.data), second.ml(second.data))
        yield pair._replace(more=(("experts, mL", told),))


def expert_ml(home: Path) -> float | None:
    """The volume of the experts' mask, None without one."""
    for name in ("lesions_pathological", "lesions"):
        if (path := home / f"{name}.nii.gz").is_file():
            mask = nifti.read_mask(path)
            return mask.ml(mask.data)
    return None


def synthetic(work: Work) -> Iterator[Pair]:
    for number in range(HEADS_SCANNED):
        homes = [work.scratch / "synthetic" / f"{number + 1:02d}-{k}" for k in (1, 2)]
        if not (homes[1] / "wmh.nii.gz").is_file():
            head = load_head(work.heads / f"{HELD_OUT[number % len(HELD_OUT)]}.nii.gz")
            scan_twice(clean(head, number), homes, number)
        motions = [np.loadtxt(home / "motion.txt") for home in homes]
        motion = motions[1] @ np.linalg.inv(motions[0])
        folders = [work.segmented(home, home.name, "never") for home in homes]
        found = [nifti.read_mask(folder / MASK_FILE) for folder in folders]
        truth = [nifti.read_mask(home / "wmh.nii.gz") for home in homes]
        yield moved_pair(f"head {number + 1}", found[0], found[1], motion)._replace(
            more=(
                ("truth, mL", ", ".join(f"{mask.ml(mask.data):.2f}" for mask in truth)),
                ("Dice of truth", f"{overlap(truth[0], truth[1], motion):.4f}"),
                ("noise, %", ", ".join(f"{noise_percent(home):.1f}" for home in homes)),
            )
        )


def noise_percent(home: Path) -> float:
    """Standard deviation of the FLAIR in the air beside the head, in percent of white matter."""
    corner = nifti.read(home / "FLAIR.nii.gz").data[:CORNER, :CORNER]
    return 100 * float(corner.std()) / FLAIR_WHITE


def clean(head: Anatomy, number: int) -> Scan:
    """A head at 1 mm without artefacts, the first draw with enough lesions."""
    settings = SynthesisSettings()
    sampling = replace(settings.sampling, defaced_probability=0, t1_misaligned_probability=0)
    settings = replace(settings, sampling=sampling, acquisition=CLEAN)
    for attempt in count():
        rng = np.random.default_rng([808, number, attempt, 1])
        choice = replace(
            choose(head, rng),
            axis=2, slices=SLICES, thickness_mm=1, spacing_mm=1, parts=1, head=True, with_t1=True,
        )  # fmt: skip
        seed = [808, number, attempt]
        scan = synthesise(head, seed, choice=choice, size=SIZE, settings=settings)
        if (scan.truth == Tissue.WMH).sum() / 1000 >= LEAST_ML:
            break
    return scan


def scan_twice(scan: Scan, homes: Sequence[Path], number: int) -> None:
    """Write FLAIR, T1, true mask and motion of two scans of a head."""
    assert scan.t1 is not None
    wmh = (scan.truth == Tissue.WMH).float()
    grid = scan.volumes()["wmh"]
    for k, home in enumerate(homes):
        rng = np.random.default_rng([909, number, k])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        motion = random_motion(grid, rng)
        home.mkdir(parents=True, exist_ok=True)
        for name, image, grey in (("FLAIR", scan.flair, FLAIR_WHITE), ("T1", scan.t1, T1_WHITE)):
            seen = acquired(sliced(image, grid, motion), rng, generator, SCANNER)
            nifti.write(home / f"{name}.nii.gz", thick(grey * seen, grid, np.int16))
        truth = sliced(wmh, grid, motion) >= 0.5
        nifti.write(home / "wmh.nii.gz", thick(truth, grid, np.uint8))
        np.savetxt(home / "motion.txt", motion)


def sliced(image: torch.Tensor, grid: Volume, motion: Array) -> torch.Tensor:
    """Slices (N, H, W) of 1 mm moved in the world, and averaged into thick ones."""
    stored = np.moveaxis(image.numpy(), 0, 2)
    back = np.linalg.inv(grid.affine) @ np.linalg.inv(motion) @ grid.affine
    moved = np.moveaxis(scipy.ndimage.affine_transform(stored, back, order=1), 2, 0)
    return torch.from_numpy(moved.reshape(-1, THICKNESS_MM, *moved.shape[1:]).mean(axis=1))


def thick(slices: torch.Tensor, grid: Volume, kind: type) -> Volume:
    """Thick slices (N, H, W) as a volume over the same part of the world as `grid`."""
    data = np.ascontiguousarray(np.moveaxis(np.rint(slices.numpy()), 0, 2).astype(kind))
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (THICKNESS_MM - 1) / 2
    affine[:3, 2] *= THICKNESS_MM
    return Volume(data, affine, name="scan")


PARTS: dict[str, Callable[[Work], Iterator[Pair]]] = {
    "processors": processors,
    "formats": formats,
    "turned": turned,
    "visits": visits,
    "synthetic": synthetic,
}

if __name__ == "__main__":
    main()
