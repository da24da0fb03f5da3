"""Accuracy of the registration of a T1 to its FLAIR, on raw pairs moved at random.

    python experiments/registration.py DATA [--motions 20] [--upper 1]

DATA: folders with FLAIR, T1 and T1_to_FLAIR.txt, the ITK transform that the data set provides as
the reference; without it the two scans count as aligned. Each T1, or only its upper part, is
registered as it is and after random rigid motions of up to 20 degrees and 40 mm. Prints the mean
error over the points of the head in mm; an error above 1 mm is a failure. "Another's" are T1 scans
of other patients, which must be refused.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from leuko.io import nifti
from leuko.model.runtime import available_cpus
from leuko.preprocessing.registration import align
from leuko.preprocessing.slices import requantise
from leuko.volume import Array, Volume

DEGREES, MM = 20, 40
HEAD = 25  # grey level, tissue being 100


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--motions", type=int, default=20)
    parser.add_argument("--upper", type=float, default=1.0)
    options = parser.parse_args()
    rng = np.random.default_rng(7)
    threads = available_cpus()
    homes = [path.parent for path in sorted(options.data.glob("*/T1.nii.gz"))]
    scans = {
        home.name: (
            nifti.read(home / "FLAIR.nii.gz"),
            upper(nifti.read(home / "T1.nii.gz"), options.upper),
        )
        for home in homes
    }
    print(
        "| pair | motions | error, mm: mean | worst | failures | not flagged | s: mean | worst "
        "| lost 4 mm away, least | nats before, least | nats after, least |"
    )
    print("|---" * 11 + "|")
    for home in homes:
        flair, t1 = scans[home.name]
        reference, points = read_itk(home / "T1_to_FLAIR.txt"), head_points(flair)
        rows = []
        for number in range(options.motions + 1):
            motion = random_motion(points, rng) if number else np.eye(4)
            start = time.perf_counter()
            found = align(flair, replace(t1, affine=motion @ t1.affine), threads=threads)
            seconds = time.perf_counter() - start
            off = points @ (found.matrix - motion @ reference).T
            error = np.linalg.norm(off[:, :3], axis=1).mean()
            evidence = found.sharpness, found.information_before, found.information
            rows.append((error, seconds, found.is_sure, *evidence))
        errors, spent, sure, *seen = (np.array(column) for column in zip(*rows, strict=True))
        failed = errors > 1
        print(
            f"| {home.name} | {options.motions} | {errors.mean():.2f} | {errors.max():.2f} "
            f"| {failed.sum()} | {(failed & sure).sum()} "
            f"| {spent.mean():.1f} | {spent.max():.1f} | "
            + " | ".join(f"{values.min():.2f}" for values in seen)
            + " |",
            flush=True,
        )
    others = [
        align(scans[a][0], scans[b][1], threads=threads)
        for a in scans
        for b in scans
        if a.split("_")[0] != b.split("_")[0]
    ]
    refused = sum(not found.is_sure for found in others)
    print(
        f"\nanother's T1: {len(others)} pairs, {refused} refused; lost 4 mm away: at most "
        f"{max(found.sharpness for found in others):.2f}, of "
        f"{max(found.information for found in others):.2f} nats at most"
    )


def upper(scan: Volume, part: float) -> Volume:
    grid = scan.canonical()
    low = round((1 - part) * grid.data.shape[2])
    affine = grid.affine.copy()
    affine[:3, 3] += low * affine[:3, 2]
    return Volume(grid.data[:, :, low:], affine, name=scan.name)


def read_itk(path: Path) -> Array:
    """The affine (4, 4) of an ITK text file, in RAS; of none, that which changes nothing."""
    if not path.is_file():
        return np.eye(4)
    values = {
        line.split(":")[0]: np.array(line.split(":")[1].split(), dtype=float)
        for line in path.read_text().splitlines()
        if line.startswith(("Parameters", "FixedParameters"))
    }
    turn, shift = values["Parameters"][:9].reshape(3, 3), values["Parameters"][9:]
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = shift + values["FixedParameters"] - turn @ values["FixedParameters"]
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    turned: Array = flip @ matrix @ flip
    return turned


def head_points(flair: Volume) -> Array:
    voxels = np.argwhere(requantise(flair, 100) > HEAD)[::500]
    points: Array = np.c_[voxels, np.ones(len(voxels))] @ flair.affine.T
    return points


def random_motion(points: Array, rng: np.random.Generator) -> Array:
    """A turn about the middle of the points and a shift, each of random size and direction."""
    axis, way = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    turn = Rotation.from_rotvec(axis * np.radians(rng.uniform(0, DEGREES))).as_matrix()
    middle = points[:, :3].mean(axis=0)
    motion = np.eye(4)
    motion[:3, :3] = turn
    motion[:3, 3] = middle - turn @ middle + way * rng.uniform(0, MM)
    return motion


if __name__ == "__main__":
    main()
