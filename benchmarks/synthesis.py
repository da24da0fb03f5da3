"""The time of one synthetic slice in one process, by part, on a device.

    python benchmarks/synthesis.py HEADS [--device cuda] [--scans 20]

HEADS: as for `leuko train --recipe base`. The synthesis runs on the device; requantisation and area
opening run on the CPU. Prints the milliseconds of each part per slice, as the median over scans,
and the number of tensor operations per slice. Needs the extra `train`.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from leuko.preprocessing.slices import area_residue, requantise
from leuko.synthesis.anatomy import load_head
from leuko.synthesis.images import synthesise
from leuko.synthesis.sampling import choose
from leuko.training.real_slices import CANVAS, PREPARATION
from leuko.volume import Volume

MOST_HEADS = 4


class Counter(TorchDispatchMode):
    """Counts tensor operations."""

    count = 0

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scans", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    paths = sorted(options.heads.glob("*.nii.gz"))[:MOST_HEADS]
    heads = [load_head(path).to(device) for path in paths]
    parts: dict[str, list[float]] = {"synthesis": [], "requantisation": [], "area opening": []}
    operations = []
    for number in range(options.scans + 1):
        head = heads[number % len(heads)]
        choice = choose(head, np.random.default_rng(number))
        size = CANVAS["head" if choice.head else "brain"]
        counter = Counter()  # type: ignore[no-untyped-call]
        with counter, torch.inference_mode():
            start = time.perf_counter()
            scan = synthesise(head, number, choice=choice, size=size)
            images = [image.cpu().numpy() for image in (scan.flair, scan.t1) if image is not None]
            times = [time.perf_counter()]
        grey = [requantise(Volume(i, np.eye(4)), PREPARATION.tissue_grey) for i in images]
        times.append(time.perf_counter())
        area_residue(grey[0], round(PREPARATION.opening_mm2))
        times.append(time.perf_counter())
        if number:  # the first scan starts the device
            operations.append(counter.count / len(grey[0]))
            for part, seconds in zip(parts.values(), np.diff([start, *times]), strict=True):
                part.append(1000 * seconds / len(grey[0]))
    for name, measured in parts.items():
        print(f"{name:<16}{median(measured):8.2f} ms a slice")
    print(f"{'operations':<16}{median(operations):8.0f} a slice")


if __name__ == "__main__":
    main()
