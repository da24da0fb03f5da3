"""Many subjects on this machine: what fails is alone, what is done stays done, how fast, how much.

    python benchmarks/cohort.py FOLDER [--heads LABELS] [--part failures|throughput|memory|cost]

Makes 40 synthetic subjects of few slices in FOLDER (of FreeSurfer label maps, by default of the
MNI152 brain) and runs `leuko batch` on them, as a user would. Needs Leuko with its extras `train`,
`demo` and `cohort`; about an hour on two cores.

Synthetic contrasts go further than scanners do: subjects that the guards take for no FLAIR are
made anew, and the pair that is swapped is one whose swap they see (on real scans they see all,
experiments/README.md).

- failures: eight of the 40 are spoilt, each in its own way. One run is left alone; another is
  killed with SIGKILL half-way and started again.
- throughput: one worker against two, each with one thread, in turns.
- memory: 200 subjects in one run; that of the run itself and of its subjects, as it proceeds.
- cost: what one subject takes with one thread, for a 3-D scan and for one of thick slices.
"""

import argparse
import itertools
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import psutil

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from cohorts import REASONS, command, mere_mortal, spoil, stopped, swap, table, written
from leuko.cohort.worker import THREADS
from leuko.io import nifti
from leuko.io.outputs import RECORD_FILE
from leuko.io.record import RunRecord
from leuko.synthesis.anatomy import Anatomy, from_mni152, load_heads
from leuko.synthesis.images import Scan, synthesise
from leuko.synthesis.sampling import choose

SUBJECTS, SPARE, SOME, MANY, MOST_SLICES = 40, 10, 12, 200, 60
FIRST_BAD, STEP = 2, 5  # of the subjects that are spoilt, spread over the run
# Axis, slices, distance in mm, pixels of a slice: like UK Biobank's FLAIR, and like a clinic's.
COSTLY = {"thin": (0, 192, 1.05, (256, 256)), "thick": (2, 48, 3.0, (240, 240))}
LIMITS = ("--mem-gb", "3", "--time-limit", "1.5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--heads", type=Path)
    parser.add_argument("--part", choices=("failures", "throughput", "memory", "cost"))
    given = parser.parse_args()
    folder = given.folder.absolute()
    mere_mortal()
    scans, costly = folder / "scans", folder / "costly"
    if not (scans.exists() and costly.exists()):
        anatomies = load_heads(given.heads) if given.heads else [from_mni152()]
        if not scans.exists():
            make(folder, anatomies)
        for name, shape in COSTLY.items():
            save(shaped(anatomies[0], *shape), costly / name)
    for part in (failures, throughput, memory, cost):
        if given.part in (None, part.__name__):
            for what, value in part(folder, costly if part is cost else scans):
                print(f"{what:<66}{value}", flush=True)


def make(folder: Path, anatomies: Sequence[Anatomy]) -> None:
    """Write the subjects into folder/scans, the one to be swapped in its place among the others."""
    tried = list(islice(made(folder / "tried", anatomies), SUBJECTS + SPARE))
    turned = [shutil.copytree(home, folder / "turned" / home.name) for home in tried]
    for home in turned:
        swap(home)
    passed = []
    for homes in (tried, turned):
        out = folder / f"out_{homes[0].parent.name}"
        batch(table(folder / "pairs.tsv", ((home.name, home) for home in homes)), out)
        passed.append(written(out).keys())
    good = [home for home in tried if home.name in passed[0]]
    seen = next(home for home in good if home.name not in passed[1])
    good.remove(seen)
    good.insert(FIRST_BAD + STEP * list(REASONS).index("swapped"), seen)
    for number, home in enumerate(good[:SUBJECTS]):
        shutil.copytree(home, folder / "scans" / f"sub-{number:02}")


def made(folder: Path, anatomies: Sequence[Anatomy]) -> Iterator[Path]:
    """The folders of synthetic subjects of few slices."""
    for seed in itertools.count():
        anatomy = anatomies[seed % len(anatomies)]
        choice = choose(anatomy, np.random.default_rng([seed, 1]), every_mm=0)
        if choice.slices > MOST_SLICES:
            continue
        choice = replace(choice, with_t1=True)
        home = folder / f"s{seed:03}"
        save(synthesise(anatomy, seed, choice=choice, size=(208, 224)), home)
        yield home


def shaped(
    anatomy: Anatomy, axis: int, slices: int, spacing_mm: float, size: tuple[int, int]
) -> Scan:
    choice = replace(
        choose(anatomy, np.random.default_rng(0)),
        axis=axis,
        slices=slices,
        thickness_mm=spacing_mm,
        spacing_mm=spacing_mm,
        parts=math.ceil(spacing_mm),
        head=True,
        with_t1=True,
    )
    return synthesise(anatomy, 0, choice=choice, size=size)


def save(scan: Scan, home: Path) -> None:
    home.mkdir(parents=True)
    volumes = scan.volumes()
    for name in ("FLAIR", "T1"):
        nifti.write(home / f"{name}.nii.gz", volumes[name])


def failures(folder: Path, scans: Path) -> Iterator[tuple[str, object]]:
    spoilt = folder / "spoilt"
    shutil.rmtree(spoilt, ignore_errors=True)
    shutil.copytree(scans, spoilt)
    subjects = sorted(spoilt.iterdir())
    bad = dict(zip(REASONS, subjects[FIRST_BAD::STEP], strict=True))
    spoil(bad)
    pairs = table(folder / "spoilt.tsv", ((subject.name, subject) for subject in subjects))
    whole, broken = folder / "undisturbed", folder / "killed"
    for out in (whole, broken):
        shutil.rmtree(out, ignore_errors=True)
    with stopped(bad["endless"].name):
        told = batch(pairs, whole).splitlines()
    yield "subjects with results", f"{len(written(whole))} of {SUBJECTS - len(bad)}"
    for way, subject in bad.items():
        line = next((line for line in told if line.startswith(f"  {subject.name} ")), "not named")
        yield f"  {way}", line.removeprefix(f"  {subject.name}").strip()
    with stopped(bad["endless"].name):
        run = subprocess.Popen(
            command("batch", pairs, "-o", broken, *LIMITS),
            stdout=subprocess.DEVNULL,
        )
        while len(written(broken)) < SUBJECTS // 2:
            time.sleep(0.2)
        run.kill()
        run.wait()
    before = written(broken)
    yield "subjects with results when the run was killed", len(before)
    with stopped(bad["endless"].name):
        batch(pairs, broken)
    after = written(broken)
    yield "  of these, done again", sum(after[name] != before[name] for name in before)
    same = (whole / "wmh.tsv").read_bytes() == (broken / "wmh.tsv").read_bytes()
    yield "  table identical to that of the undisturbed run", "yes" if same else "no"


def throughput(folder: Path, scans: Path) -> Iterator[tuple[str, object]]:
    """Beside it what the machine gives: as many bare processes as there are workers."""
    homes = sorted(scans.iterdir())[:SOME]
    ways = {"leuko batch, workers": workers, "bare processes": bare}
    rates: dict[tuple[str, int], list[float]] = {
        (way, count): [] for way in ways for count in (1, 2)
    }
    for _ in range(3):
        for (way, count), found in rates.items():
            out = Path(tempfile.mkdtemp(dir=folder)) / "out"
            start = time.perf_counter()
            ways[way](homes, out, count)
            found.append(3600 * len(homes) / (time.perf_counter() - start))
    for (way, count), found in rates.items():
        yield f"subjects an hour, one thread each; {way}: {count}", round(median(found))
    for way in ways:
        gains = [two / one for one, two in zip(rates[way, 1], rates[way, 2], strict=True)]
        spread = f"{min(gains):.2f} to {max(gains):.2f}"
        yield f"two against one, {way}", f"{median(gains):.2f} ({spread})"


def workers(homes: Sequence[Path], out: Path, count: int) -> None:
    pairs = table(out.with_suffix(".tsv"), ((home.name, home) for home in homes))
    batch(pairs, out, "--nthreads", count)


def bare(homes: Sequence[Path], out: Path, count: int) -> None:
    """`leuko segment`, subject by subject, in `count` lists side by side."""

    def segment(home: Path) -> None:
        scans = ("--flair", home / "FLAIR.nii.gz", "--t1", home / "T1.nii.gz")
        told = command("segment", *scans, "-o", out / home.name, "--threads", 1)
        alone = os.environ | dict.fromkeys(THREADS, "1")
        subprocess.run(told, check=True, capture_output=True, env=alone)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(segment, homes))


def memory(folder: Path, scans: Path) -> Iterator[tuple[str, object]]:
    homes = sorted(scans.iterdir())
    subjects = ((f"s{k:03}", homes[k % len(homes)]) for k in range(MANY))
    pairs = table(folder / "many.tsv", subjects)
    out = folder / "many"
    shutil.rmtree(out, ignore_errors=True)
    run = subprocess.Popen(command("batch", pairs, "-o", out, *LIMITS), stdout=subprocess.DEVNULL)
    process, seen, largest = psutil.Process(run.pid), {}, 0.0
    while run.poll() is None:
        try:
            seen[len(written(out))] = process.memory_info().rss / 1e6
            for child in process.children():
                largest = max(largest, child.memory_info().rss / 1e6)
        except psutil.Error:
            continue
        time.sleep(0.5)
    for done in (20, 50, 100, 150, MANY - 1):
        at = min(seen, key=lambda count: abs(count - done))
        yield f"memory of the run after {at} subjects, MB", round(seen[at])
    yield "largest memory of a subject, MB", round(largest)
    yield "subjects done", len(written(out))


def cost(folder: Path, scans: Path) -> Iterator[tuple[str, object]]:
    for home in sorted(scans.iterdir()):
        pairs = table(folder / "one.tsv", [(home.name, home)])
        walls, processors, peaks = [], [], []
        for _ in range(3):
            out = Path(tempfile.mkdtemp(dir=folder)) / "out"
            used, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            run = subprocess.Popen(
                command("batch", pairs, "-o", out, "--nthreads", 1, *LIMITS),
                stdout=subprocess.DEVNULL,
            )
            peaks.append(max(watched(run), default=0.0))
            walls.append(time.perf_counter() - start)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            processors.append(after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime)
        stages = RunRecord.read(out / home.name / RECORD_FILE).seconds
        shape = "x".join(map(str, nifti.read(home / "FLAIR.nii.gz").data.shape))
        yield f"{home.name}, {shape}: seconds, start and end of the run too", f"{median(walls):.1f}"
        yield "  of processors", f"{median(processors):.1f}"
        yield "  of segmenting itself", f"{sum(stages.values()):.1f}"
        for stage, seconds in stages.items():
            yield f"    {stage}", f"{seconds:.1f}"
        yield "  memory at most, MB", round(max(peaks))
        yield "  MB read", f"{size_mb(home):.1f}"
        yield "  MB written", f"{size_mb(out / home.name):.1f}"


def watched(run: "subprocess.Popen[bytes]") -> Iterator[float]:
    """The memory of the subject's process in MB, until the run has ended."""
    process = psutil.Process(run.pid)
    while run.poll() is None:
        with suppress(psutil.Error):
            yield from (child.memory_info().rss / 1e6 for child in process.children())
        time.sleep(0.05)


def size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def batch(pairs: Path, out: Path, *options: object) -> str:
    """What it printed."""
    return subprocess.run(
        command("batch", pairs, "-o", out, *LIMITS, *options),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    ).stdout


if __name__ == "__main__":
    main()
