"""The speed of this checkout beside that of another one, for example the parent commit.

    python benchmarks/beside.py OTHER [PAIR ...] [--repeats 3]

OTHER: another checkout of Leuko. PAIR: folders that hold FLAIR.nii.gz and T1.nii.gz; three pairs
are simulated in any case. Whole processes of the two take turns, so that a busy machine slows both.
Prints a Markdown table of medians; a ratio is the median of the ratios within a turn.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation
from speed import measured, save_pair

from leuko.io import nifti
from leuko.model.runtime import available_cpus

THICK, ISOTROPIC = (240, 240, 48), (182, 218, 182)
TURN_DEGREES, SHIFT_MM = (12, -10, 8), (20, -10, 15)  # of the T1 that needs registration
SCANS = 20

MANY = """
import sys
import leuko
model = leuko.load_model()
for _ in range(int(sys.argv[1])):
    leuko.segment(*sys.argv[2:4], model=model)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("pairs", type=Path, nargs="*")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    checkouts = options.other, Path(__file__).parents[1]
    print(f"{available_cpus()} cores\n")
    print(
        "| | seconds: other | this | ratio | processor seconds: other | this | ratio "
        "| peak memory, MB: other | this |"
    )
    print("|---" * 9 + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in commands(Path(folder), options.pairs):
            turns = [
                [measured((sys.executable, *arguments), source(home)) for home in checkouts]
                for _ in range(options.repeats)
            ]
            other, this = np.median(turns, axis=0)
            ratios = np.median([ours / theirs for theirs, ours in np.array(turns)], axis=0)
            print(
                f"| {name} | {other[0]:.2f} | {this[0]:.2f} | {ratios[0]:.2f} "
                f"| {other[1]:.1f} | {this[1]:.1f} | {ratios[1]:.2f} "
                f"| {other[2]:.0f} | {this[2]:.0f} |",
                flush=True,
            )


def commands(scratch: Path, pairs: Sequence[Path]) -> Iterator[tuple[str, Sequence[str | Path]]]:
    """What is measured, as arguments of Python."""
    yield "import leuko.segment", ("-c", "import leuko.segment")
    thick = save_pair(scratch / "thick", THICK, (0.96, 0.96, 3.0))
    isotropic = save_pair(scratch / "isotropic", ISOTROPIC, (1.0, 1.0, 1.0))
    yield "240x240x48, T1 aligned", segment(*thick, scratch)
    yield "240x240x48, T1 moved", segment(thick[0], moved(thick[1]), scratch)
    yield "182x218x182", segment(*isotropic, scratch)
    for pair in pairs:
        flair, t1 = (pair / f"{name}.nii.gz" for name in ("FLAIR", "T1"))
        size = "x".join(map(str, nifti.read(flair).data.shape))
        yield f"{pair.name}, {size}", segment(flair, t1, scratch)
    yield f"{SCANS} scans of 240x240x48, one process", ("-c", MANY, str(SCANS), *thick)


def segment(flair: Path, t1: Path, scratch: Path) -> Sequence[str | Path]:
    files = ("--flair", flair, "--t1", t1)
    return ("-m", "leuko.cli", "segment", *files, "-o", scratch / "out")


def moved(t1: Path) -> Path:
    """The T1 with another position in its header."""
    scan = nifti.read(t1)
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", TURN_DEGREES, degrees=True).as_matrix()
    motion[:3, 3] = SHIFT_MM
    path = t1.with_name("T1-moved.nii.gz")
    nifti.write(path, replace(scan, affine=motion @ scan.affine, header=None))
    return path


def source(checkout: Path) -> Mapping[str, str]:
    return {"PYTHONPATH": str(checkout / "src")}


if __name__ == "__main__":
    main()
