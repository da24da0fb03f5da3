"""Many subjects: what fails is named and alone, what is done stays done, wherever it runs."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cohorts import REASONS, awaited, command, mere_mortal, spoil, stopped, table, written
from leuko.cohort import executor
from leuko.cohort.job import Job, perform
from leuko.cohort.run import STRICT
from leuko.cohort.worker import Limits
from leuko.io import nifti
from leuko.io.files import read_json
from leuko.io.outputs import MASK_FILE, RECORD_FILE, REPORT_FILE
from phantoms import SMALL_MODEL, make_phantom

pytestmark = pytest.mark.linux
MODEL = "--model", SMALL_MODEL
SHAPE, SPACING = (64, 80, 18), (2.7, 2.6, 7.0)


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Folders a to d, each with a made-up head."""
    folder = tmp_path_factory.mktemp("scans")
    for number, name in enumerate("abcd"):
        make_phantom(np.random.default_rng(number), shape=SHAPE, spacing_mm=SPACING).write(
            folder / name
        )
    return folder


def pairs_of(path: Path, scans: Path, names: Iterable[str]) -> Path:
    return table(path, ((name, scans / name) for name in names))


@pytest.fixture
def spoilt(scans, tmp_path) -> Path:
    """The heads, and eight subjects that cannot be done, named by the way they are spoilt."""
    folder = shutil.copytree(scans, tmp_path / "scans")
    folders = {way: folder / way for way in REASONS}
    for way in REASONS.keys() - {"swapped"}:
        shutil.copytree(scans / "a", folder / way)
    # A made-up head is too plain to tell T1 from FLAIR by its anatomy.
    synthetic = tmp_path / "synthetic"
    subprocess.run(command("synth", "-o", synthetic, "--seed", 2), check=True, capture_output=True)
    (synthetic / "sub-01").rename(folders["swapped"])
    spoil(folders)
    return folder


@pytest.mark.slow
def test_what_fails_is_named_and_nothing_else_is_lost(spoilt, tmp_path):
    names = ["endless", *"abc", *(way for way in REASONS if way != "endless"), "d"]
    pairs, out = pairs_of(tmp_path / "pairs.tsv", spoilt, names), tmp_path / "out"
    batch = command("batch", pairs, *MODEL, "-o", out, "--mem-gb", 1, "--time-limit", 0.5)
    with stopped("endless"):
        process = subprocess.run(
            batch, capture_output=True, text=True, check=False, preexec_fn=mere_mortal
        )
    assert process.returncode == 1, process.stderr
    told = process.stdout.splitlines()
    assert told[0].split() == ["done", "4"]
    assert told[1].split() == ["failed", "8"]
    for name, reason in REASONS.items():
        (line,) = [line for line in told if line.startswith(f"  {name} ")]
        assert reason in line
        assert not (out / name).exists()
    before = written(out)
    assert set(before) == set("abcd")
    assert {path.name for path in out.iterdir()} == {
        *"abcd", "logs", "report.html", "wmh.tsv", "wmh.json"
    }  # fmt: skip
    with (out / "wmh.tsv").open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert [name for name, row in rows.items() if row["status"] == "segmented"] == [*"abcd"]
    for name, reason in REASONS.items():
        assert rows[name]["status"] == "failed"
        assert reason in rows[name]["reason"]

    (spoilt / "forbidden" / "FLAIR.nii.gz").chmod(0o644)
    pairs_of(pairs, spoilt, [*"abcd", "forbidden"])
    again = subprocess.run(batch, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("done        5, 4 of them by an earlier run\n")
    assert {name: written(out)[name] for name in "abcd"} == before
    assert not (out / "logs" / "forbidden.failed").exists()


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(scans, tmp_path):
    pairs = pairs_of(tmp_path / "pairs.tsv", scans, "abcd")
    out = tmp_path / "out"
    run = subprocess.Popen(command("batch", pairs, *MODEL, "-o", out, "--nthreads", 1))
    awaited(lambda: len(written(out)) == 2)
    run.kill()
    run.wait()
    before = written(out)
    assert set(before) < set("abcd")
    assert subprocess.run(command("batch", pairs, *MODEL, "-o", out), check=False).returncode == 0
    after = written(out)
    assert {name: after[name] for name in before} == before
    assert set(after) == set("abcd")
    assert not any(path.name.startswith(".") for path in out.iterdir())

    whole = tmp_path / "undisturbed"
    assert subprocess.run(command("batch", pairs, *MODEL, "-o", whole), check=False).returncode == 0
    assert (out / "wmh.tsv").read_bytes() == (whole / "wmh.tsv").read_bytes()
    for name in "abcd":
        assert (out / name / MASK_FILE).read_bytes() == (whole / name / MASK_FILE).read_bytes()


@pytest.mark.slow
def test_subjects_are_done_again_if_and_only_if_something_they_depend_on_changed(
    leuko, scans, tmp_path
):
    shutil.copytree(scans, tmp_path / "scans")
    pairs, out = pairs_of(tmp_path / "pairs.tsv", tmp_path / "scans", "ab"), tmp_path / "out"

    def redone(*options):
        before = written(out)
        code, told, _ = leuko("batch", pairs, *MODEL, "-o", out, *options)
        assert code == 0, told
        return {name for name, when in written(out).items() if before.get(name) != when}

    assert redone() == set("ab")
    os.utime(tmp_path / "scans" / "a" / "FLAIR.nii.gz")  # touched, not changed
    assert redone() == set()
    t1 = nifti.read(scans / "b" / "T1.nii.gz")
    nifti.write(tmp_path / "scans" / "b" / "T1.nii.gz", t1.with_data(2 * t1.data))
    assert redone() == {"b"}
    (out / "a" / MASK_FILE).unlink()
    assert redone() == {"a"}
    assert redone("--align", "never") == set("ab")
    assert redone("--align", "never", "--nthreads", 1, "--mem-gb", 2) == set()
    pairs.write_text(pairs.read_text().replace(f"{tmp_path}/scans/a/T1.nii.gz", "n/a"))
    assert redone("--align", "never") == {"a"}
    assert set(read_json(out / "a" / RECORD_FILE, what="record")["inputs"]) == {"flair"}
    pairs_of(pairs, tmp_path / "scans", "b")
    assert redone("--align", "never", "--lenient") == set()
    assert redone("--align", "never", "--rims", "exclude", "--lenient") == {"b"}
    assert redone("--align", "never", "--rims", "exclude", "--lenient") == set()
    assert redone("--align", "never", "--threshold", "0.5", "--lenient") == {"b"}
    # A lenient result was not checked for looking like a FLAIR, which a strict run needs.
    assert redone("--align", "never", "--threshold", "0.5") == {"b"}


@contextmanager
def a_cluster(folder: Path, workers: int):
    """A scheduler and workers, each a process of its own; gives its address and the workers."""
    processes = []

    def start(program, *arguments):
        code = [sys.executable, "-m", f"distributed.cli.{program}", *arguments]
        processes.append(subprocess.Popen(code, stderr=subprocess.DEVNULL, cwd=folder))
        return processes[-1]

    place = folder / "scheduler.json"
    start("dask_scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(place))
    awaited(place.is_file)
    address = awaited(lambda: place.read_text() and read_json(place, what="scheduler")["address"])
    try:
        yield (
            address,
            [
                start("dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
                for _ in range(workers)
            ],
        )
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_worker_of_a_cluster_may_die(scans, tmp_path):
    pairs, out = pairs_of(tmp_path / "pairs.tsv", scans, "abcd"), tmp_path / "out"
    with a_cluster(tmp_path, workers=2) as (address, workers):
        run = subprocess.Popen(
            command("batch", pairs, *MODEL, "-o", out, "--scheduler", address),
            stdout=subprocess.PIPE,
        )
        awaited(lambda: len(written(out)) >= 1)
        workers[0].send_signal(signal.SIGKILL)
        told, _ = run.communicate()
    assert run.returncode == 0
    assert told.decode().startswith("done        4\n")
    assert set(written(out)) == set("abcd")
    for name in "abcd":
        assert (out / name / REPORT_FILE).is_file()


@pytest.mark.slow
def test_a_worker_that_is_asked_to_leave_loses_nothing(scans, tmp_path):
    """As at the end of its time on a cluster: its subjects are begun again while it still ends."""
    pairs, out = pairs_of(tmp_path / "pairs.tsv", scans, "abcd"), tmp_path / "out"
    with a_cluster(tmp_path, workers=2) as (address, workers):
        batch = command("batch", pairs, *MODEL, "-o", out, "--scheduler", address)
        run = subprocess.Popen(batch, stdout=subprocess.PIPE)
        awaited(lambda: list(out.glob(".leuko-*")))
        workers[0].terminate()
        told, _ = run.communicate()
        assert told.decode().startswith("done        4\n")
        assert subprocess.run(batch, check=False, stdout=subprocess.DEVNULL).returncode == 0
    assert set(written(out)) == set("abcd")
    assert not list((out / "logs").glob("*.failed"))


def test_a_run_that_is_interrupted_says_how_to_go_on(scans, tmp_path):
    pairs, out = pairs_of(tmp_path / "pairs.tsv", scans, "abcd"), tmp_path / "out"
    run = subprocess.Popen(
        command("batch", pairs, *MODEL, "-o", out),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509, it may be ignored here
    )
    awaited(lambda: list(out.glob(".leuko-*")))
    run.send_signal(signal.SIGINT)
    _, said = run.communicate()
    assert run.returncode == 130
    assert said.endswith("interrupted; run the same command again to resume\n")
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_two_runs_of_one_table_at_once_get_on(scans, tmp_path):
    pairs, out = pairs_of(tmp_path / "pairs.tsv", scans, "ab"), tmp_path / "out"
    batch = command("batch", pairs, *MODEL, "-o", out)
    runs = [subprocess.Popen(batch, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for run in runs:
        told, _ = run.communicate()
        assert (run.returncode, told.splitlines()[1]) == (0, "failed      0")
    assert len((out / "wmh.tsv").read_text().splitlines()) == 3
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert not list((out / "logs").glob("*.failed"))


def test_scratch_may_lie_where_other_things_are(leuko, scans, tmp_path):
    shutil.copytree(scans, tmp_path / "scans")
    pairs, out = pairs_of(tmp_path / "pairs.tsv", tmp_path / "scans", "a"), tmp_path / "out"
    before = sorted((tmp_path / "scans").rglob("*"))
    assert leuko("batch", pairs, *MODEL, "-o", out, "-w", tmp_path / "scans")[0] == 0
    assert sorted((tmp_path / "scans").rglob("*")) == before
    left = out / ".leuko-a-killed"  # by a run that was killed
    left.mkdir()
    (out / "a" / MASK_FILE).unlink()
    assert leuko("batch", pairs, *MODEL, "-o", out)[0] == 0
    assert not left.exists()


def test_a_worker_with_another_model_of_the_same_name_does_nothing(scans, tmp_path):
    job = Job(
        name="a",
        flair=scans / "a" / "FLAIR.nii.gz",
        t1=None,
        folder=tmp_path / "a",
        root=tmp_path,
        work=tmp_path,
        settings=STRICT,
        limits=Limits(memory_gb=4, seconds=60, threads=1),
        weights_sha256="ab" * 32,
    )
    assert "has other weights on this machine" in perform(job).reason
    assert not job.folder.exists()


def test_a_scheduler_that_does_not_answer_is_named(leuko, scans, tmp_path, monkeypatch):
    monkeypatch.setattr("leuko.cohort.executor.CONNECT_SECONDS", 1)
    pairs = pairs_of(tmp_path / "pairs.tsv", scans, "a")
    address = "tcp://127.0.0.1:9"
    code, told, said = leuko("batch", pairs, "-o", tmp_path / "out", "--scheduler", address)
    assert code == 2
    assert told == ""
    assert "error: no dask scheduler answers at tcp://127.0.0.1:9" in said


def test_a_model_or_a_threshold_that_is_none_stops_all_before_it_starts(leuko, scans, tmp_path):
    pairs = pairs_of(tmp_path / "pairs.tsv", scans, "a")
    for option, value in (("--model", "no-such-model"), ("--threshold", "3")):
        code, _, said = leuko("batch", pairs, "-o", tmp_path / "out", option, value)
        assert code == 2
        assert said.startswith("error: ")
        assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_stops_all_before_it_starts(leuko, scans, tmp_path):
    (tmp_path / "out").touch()
    pairs = pairs_of(tmp_path / "pairs.tsv", scans, "a")
    code, told, said = leuko("batch", pairs, "-o", tmp_path / "out")
    assert (code, told) == (2, "")
    assert "out exists and is not a folder; choose another output folder" in said


@pytest.mark.parametrize("where", ["out", "out/logs"])
def test_an_output_that_cannot_be_written_stops_all_before_it_starts(leuko, scans, tmp_path, where):
    """A file where a folder is needed stops root, too."""
    in_the_way = tmp_path / where
    in_the_way.parent.mkdir(exist_ok=True)
    in_the_way.touch()
    out = tmp_path / "out" / ("" if where == "out/logs" else "cohort")
    code, told, said = leuko("batch", pairs_of(tmp_path / "pairs.tsv", scans, "a"), "-o", out)
    assert (code, told) == (2, "")
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    assert "choose another output folder" in said
    assert not (tmp_path / "out" / "a").exists()


def test_missing_files_are_named_first(leuko, scans, tmp_path):
    pairs = pairs_of(tmp_path / "pairs.tsv", scans, ["a", "gone"])
    code, told, said = leuko("batch", pairs, "-o", tmp_path / "out")
    assert code == 1
    assert said.startswith("failed  gone: ")
    assert "gone/FLAIR.nii.gz does not exist or is not a file; check the path" in told


def test_a_result_of_another_hand_is_not_replaced(leuko, scans, tmp_path):
    expert = tmp_path / "out" / "a" / MASK_FILE
    expert.parent.mkdir(parents=True)
    expert.write_bytes(b"an expert's")
    pairs = pairs_of(tmp_path / "pairs.tsv", scans, "a")
    code, told, _ = leuko("batch", pairs, "-o", tmp_path / "out")
    assert code == 1
    assert "was not written by leuko segment" in told
    assert expert.read_bytes() == b"an expert's"


def test_as_many_subjects_run_at_once_as_memory_allows():
    assert executor.fitting_workers(4, 1e-3) == 4
    assert executor.fitting_workers(4, executor.MEMORY_LIMIT / 1e9 / 2.5) == 2
    assert executor.fitting_workers(4, executor.MEMORY_LIMIT / 1e9 * 2) == 1
