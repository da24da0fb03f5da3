"""The same scans give the same result: on every run, with any number of threads, and within a bound
on another processor."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from leuko.evaluation.metrics import dice
from leuko.io import nifti
from leuko.io.outputs import MASK_FILE, RECORD_FILE
from leuko.model.weights import DEFAULT
from phantoms import SMALL_MODEL, make_phantom

ROOT = Path(__file__).parents[1]
EMULATOR = shutil.which("qemu-x86_64")
RUNS = [(1, "first"), (1, "again"), (2, "two"), (4, "four")]
NUMBERS = ("mask_sha256", "volume_ml", "volume_interval_ml", "quality", "lesions", "regions")


def segmented(head, out, *, model, threads=1, emulated=()):
    """`leuko segment` as a process; the folder of its results."""
    # OpenBLAS must choose its kernels by the processor that it sees.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    command = [*emulated, sys.executable, "-m", "leuko.cli", "segment", "-o", out]
    scans = ["--flair", head / "FLAIR.nii.gz", "--t1", head / "T1.nii.gz"]
    options = ["--model", model, "--threads", threads]
    told = subprocess.run(
        [*map(str, [*command, *scans, *options])],
        env=kept,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    return out


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A made-up head whose T1 must be registered."""
    folder = tmp_path_factory.mktemp("head")
    rng = np.random.default_rng(5)
    made = make_phantom(rng, shape=(64, 80, 18), spacing_mm=(2.7, 2.6, 7.0))
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", (4, -3, 5), degrees=True).as_matrix()
    motion[:3, 3] = 6, -4, 3
    replace(made, t1=replace(made.t1, affine=motion @ made.t1.affine)).write(folder)
    return folder


@pytest.fixture(scope="module")
def results(head, tmp_path_factory):
    """Results of the bundled model by the names of `RUNS`."""
    home = tmp_path_factory.mktemp("results")
    return {
        name: segmented(head, home / name, model=DEFAULT, threads=threads) for threads, name in RUNS
    }


def files(folder):
    """All images and tables of a result, as bytes."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name.endswith((".nii.gz", ".tsv"))
    }


@pytest.mark.parametrize("name", [name for _, name in RUNS[1:]])
def test_every_run_gives_the_same_bytes_with_any_number_of_threads(results, name):
    first, other = files(results["first"]), files(results[name])
    assert len(first) > 7
    assert first == other
    records = [json.loads((results[run] / RECORD_FILE).read_text()) for run in ("first", name)]
    assert records[0]["lesions"] > 0
    assert records[0]["alignment"]["moved_mm"] > 1
    assert [records[0][key] for key in NUMBERS] == [records[1][key] for key in NUMBERS]


@pytest.mark.slow
@pytest.mark.skipif(not EMULATOR, reason="OTHER PROCESSORS NOT TESTED: qemu-user is not installed")
@pytest.mark.parametrize("processor", ["Haswell", "Nehalem"])  # AVX2; SSE4.2
def test_an_older_processor_gives_nearly_the_same_mask(head, processor, tmp_path):
    own = segmented(head, tmp_path / "own", model=SMALL_MODEL)
    emulated = (EMULATOR, "-cpu", processor)
    other = segmented(head, tmp_path / "other", model=SMALL_MODEL, emulated=emulated)
    first, second = (nifti.read_mask(folder / MASK_FILE).data for folder in (own, other))
    assert first.any()
    assert dice(prediction=second, reference=first) > 0.999


def test_the_page_gives_the_numbers_of_the_log():
    log = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "repeatability.md").read_text(encoding="utf-8")
    row = r"\| (\d+) \w+ \| ([\d.]+) \| (\S+) % (\(.*\)) \| ([\d.]+ %) \|"
    rows = re.findall(row, page)
    assert len(rows) == 3
    for count, overlap, mean, limits, variation in rows:
        told = rf"n {count}: .*, {re.escape(f'{mean} {limits} %')}, .* {variation}, .* {overlap},"
        assert re.search(told, log)
