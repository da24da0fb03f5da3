"""How fast `leuko train` is on a device, beside the matrix products that it could do at most.

    python benchmarks/training.py [--device cuda] [--batch 8 64] [--steps 6]

One row for each precision, batch and way: slices a second of whole steps, from drawing to the
optimiser, and the part of the measured rate of matrix products in the same precision. A slice costs
three forward passes. Ways take turns. Needs the extras `train` and `dev`.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median

import torch
from speed import SLICE, save_noise_subject
from torch.utils.flop_counter import FlopCounterMode

from leuko.model.network import SpecialisedVGG
from leuko.training.loop import Progress, fit
from leuko.training.plan import start
from leuko.training.recipes import MODERN
from leuko.training.settings import CLASSES, Settings

SIZES = (2048, 4096, 8192)  # of matrices; smaller ones fill no GPU
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    ways = list(product(options.batch, (False, True), (False, True)))
    speeds: dict[tuple[int, bool, bool], list[float]] = {way: [] for way in ways}
    rates: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    with tempfile.TemporaryDirectory() as folder:
        save_noise_subject(Path(folder) / "data" / "subject")
        for turn in range(ROUNDS):
            for dtype, measured in rates.items():
                measured.append(max(matrix_rate(n, dtype, options.device) for n in SIZES))
            for number, way in enumerate(ways):
                run = Path(folder) / f"{turn}-{number}"
                speeds[way].append(trained(run, Path(folder) / "data", way, options))
    gflop = 3 * forward_gflop()
    print(f"device {options.device}, torch {torch.__version__}, {gflop:.0f} GFLOP a slice")
    print("| slices a step | precision | compiled | slices/s | TFLOP/s | matrix product | part |")
    print("|---" * 7 + "|")
    for (batch, mixed, compiled), measured in speeds.items():
        machine = median(rates[torch.bfloat16 if mixed else torch.float32]) / 1e12
        rate = median(measured) * gflop / 1e3
        name = "bfloat16" if mixed else "float32"
        cells = [
            f"{batch}",
            name,
            "yes" if compiled else "no",
            f"{median(measured):.1f}",
            f"{rate:.3g}",
            f"{machine:.3g}",
            f"{100 * rate / machine:.0f} %",
        ]
        print("|", " | ".join(cells), "|")


def trained(
    run: Path, data: Path, way: tuple[int, bool, bool], options: argparse.Namespace
) -> float:
    """Slices a second of a few steps, the median of all but the first half, which sets up."""
    batch, mixed, compiled = way
    recipe = replace(
        MODERN,
        steps=2 * options.steps,
        images_per_step=batch,
        mixed_precision=mixed,
    )
    settings = Settings(data=str(data), recipe=recipe, init="none", held_out=0.0, compiled=compiled)
    start(run, settings, device=options.device)
    steps: list[Progress] = []
    fit(run, on_step=steps.append, checkpoint_seconds=1e9)
    return median(at.images_per_second for at in steps[options.steps :])


def matrix_rate(size: int, dtype: torch.dtype, device: str) -> float:
    """Operations a second of a product of square matrices."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(left, right) for _ in range(4))


def seconds_of(left: torch.Tensor, right: torch.Tensor) -> float:
    begun = time.perf_counter()
    (left @ right)[0, 0].item()  # waits for the device
    return time.perf_counter() - begun


def forward_gflop() -> float:
    with FlopCounterMode(display=False) as counter:
        SpecialisedVGG(len(CLASSES))(torch.zeros(1, 3, *SLICE))
    flops: int = counter.get_total_flops()
    return flops / 1e9


if __name__ == "__main__":
    main()
