"""Many subjects on this machine: what fails is alone, what is done stays done, how fast, how much.

    python benchmarks/cohort.py FOLDER [--part failures|throughput|memory]

Makes 40 synthetic subjects in FOLDER and runs `leuko batch` on them, as a user would. Needs Leuko
with its extras `train`, `demo` and `cohort`; about 40 minutes on two cores.

- failures: eight of the 40 are spoilt, each in its own way. One run is left alone; another is
  killed with SIGKILL half-way and started again.
- throughput: one worker against two, each with one thread, in turns.
- memory: 200 subjects in one run; that of the run itself and of its subjects, as it goes on.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import nibabel
import psutil

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from cohorts import REASONS, command, mere_mortal, spoil, stopped, table, written
from leuko.anatomy import from_mni152
from leuko.synthesis import write_subjects

SUBJECTS, MANY = 40, 200
LIMITS = ("--mem-gb", "3", "--time-limit", "4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", choices=("failures", "throughput", "memory"))
    given = parser.parse_args()
    folder = given.folder.absolute()
    mere_mortal()
    scans = folder / "scans"
    if not scans.exists():
        for _ in write_subjects(scans, [from_mni152()], number=SUBJECTS, seed=0):
            pass
    parts = {"failures": failures, "throughput": throughput, "memory": memory}
    for name, part in parts.items():
        if given.part in (None, name):
            for what, value in part(folder, scans):
                print(f"{what:<56}{value}", flush=True)


def failures(folder: Path, scans: Path) -> Iterator[tuple[str, object]]:
    spoilt = folder / "spoilt"
    shutil.rmtree(spoilt, ignore_errors=True)
    shutil.copytree(scans, spoilt)
    subjects = sorted(spoilt.iterdir())
    bad = dict(zip(REASONS, subjects[2::5], strict=True))  # spread over the run
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
    pairs = table(folder / "eight.tsv", ((name, scans / name) for name in thick(scans)[:8]))
    ratios, rates = [], {1: [], 2: []}
    for _ in range(3):
        for workers in (1, 2):
            out = Path(tempfile.mkdtemp(dir=folder)) / "out"
            start = time.perf_counter()
            batch(pairs, out, "--nthreads", workers)
            rates[workers].append(8 / (time.perf_counter() - start))
        ratios.append(rates[2][-1] / rates[1][-1])
    for workers, found in rates.items():
        yield f"subjects an hour, workers of one thread: {workers}", round(3600 * median(found))
    yield "two workers against one, median of 3 (>= 1.7)", f"{median(ratios):.2f}"
    yield "  each", ", ".join(f"{ratio:.2f}" for ratio in ratios)


def memory(folder: Path, scans: Path) -> Iterator[tuple[str, object]]:
    names = thick(scans)
    subjects = ((f"s{k:03}", scans / names[k % len(names)]) for k in range(MANY))
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


def thick(scans: Path) -> list[str]:
    """The subjects of few slices, which are soon done."""
    shapes = {f.name: nibabel.load(f / "FLAIR.nii.gz").shape for f in sorted(scans.iterdir())}
    return [name for name, shape in shapes.items() if min(shape) < 60]


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
