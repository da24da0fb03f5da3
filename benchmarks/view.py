"""How soon `leuko view` shows its first picture: one Markdown table on stdout.

    python benchmarks/view.py [OUT ...] [--repeats 5] [--chromium PATH]

OUT: results of `leuko segment`; by default two simulated pairs are segmented. Measured is the time
from the start of the command, in a new process, until a headless Chromium that is already running
has drawn scan and mask, with WebGL by software. The least of several, since other programs only
slow it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, sync_playwright
from speed import save_pair

from leuko.io import nifti
from leuko.io.outputs import MASK_FILE
from leuko.model.runtime import available_cpus

PAIRS = {
    "thick": ((240, 240, 48), (0.96, 0.96, 3.0)),
    "isotropic": ((182, 218, 182), (1.0, 1.0, 1.0)),
}
SOFTWARE = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
DRAWN = "() => new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(() => r())))"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("results", type=Path, nargs="*")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        results = options.results or list(simulated(Path(folder)))
        browser = playwright.chromium.launch(executable_path=options.chromium, args=[*SOFTWARE])
        print(f"{available_cpus()} cores, load {os.getloadavg()[0]:.1f}\n")
        print("| result | address, s | page and scripts, s | first picture, s | in all, s |")
        print("|---" * 5 + "|")
        for out in results:
            size = "x".join(map(str, nifti.read_mask(out / MASK_FILE).data.shape))
            runs = np.array([opened(browser, out) for _ in range(options.repeats)])
            best = runs[runs.sum(axis=1).argmin()]
            told = " | ".join(f"{seconds:.2f}" for seconds in (*best, best.sum()))
            print(f"| {out.name}, {size} | {told} |", flush=True)
        browser.close()


def simulated(folder: Path) -> Iterator[Path]:
    """Results of simulated pairs."""
    for name, (shape, spacing_mm) in PAIRS.items():
        flair, t1 = save_pair(folder / f"{name}-scans", shape, spacing_mm)
        out = folder / name
        scans = ("--flair", flair, "--t1", t1, "-o", out)
        subprocess.run([sys.executable, "-m", "leuko.cli", "segment", *scans], check=False)
        yield out


def opened(browser: Browser, out: Path) -> tuple[float, float, float]:
    """Seconds from the command to its address, then to the page, then to the first picture."""
    command = [sys.executable, "-m", "leuko.cli", "view", str(out), "--no-browser"]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        told = time.perf_counter()
        try:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(address, wait_until="domcontentloaded")
            loaded = time.perf_counter()
            page.wait_for_selector("body[data-ready]")
            page.evaluate(DRAWN)
            drawn = time.perf_counter()
            page.close()
        finally:
            process.kill()
    return told - start, loaded - told, drawn - loaded


if __name__ == "__main__":
    main()
