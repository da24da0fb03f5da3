"""A cohort of 50,000 on real dask workers, each subject a stand-in that writes little.

It shows whether the scheduler, the logs and the restart hold, not how fast brains are segmented:

    python benchmarks/scale.py FOLDER [--subjects 50000] [--workers 2]

One subject in a thousand fails. When four tenths are done a worker is killed, at six tenths the
whole run, with SIGKILL; it is then started again.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil

from leuko.cohort import executor, gather
from leuko.cohort.job import Job, Wanted, settle, split
from leuko.cohort.worker import Limits, Outcome
from leuko.io.files import staged
from leuko.io.inputs import file_record
from leuko.io.outputs import MASK_FILE, RECORD_FILE
from leuko.io.record import Inputs, ModelRecord, Quality, RunRecord, ScanRecord, SettingsRecord
from leuko.segment import SegmentSettings

HEADER = b"\0" * 352  # as long as that of a NIfTI file
THREADS = 4  # of each worker


def jobs(folder: Path, subjects: int) -> list[Job]:
    """They have one FLAIR among them, so that 50,000 do not have to be made."""
    out = folder / "out"
    flair = folder / "FLAIR.nii"
    if not flair.exists():
        flair.write_bytes(HEADER)
    return [
        Job(
            name=f"s{number:06}",
            flair=flair,
            t1=None,
            folder=out / f"s{number:06}",
            root=out,
            work=out,
            settings=SegmentSettings(),
            limits=Limits(memory_gb=4, seconds=60, threads=1),
        )
        for number in range(subjects)
    ]


def stand_in(job: Job) -> Outcome:
    """What `subject.perform` leaves behind, without the brain."""
    (job.root / "logs").mkdir(parents=True, exist_ok=True)
    job.log.write_text("stand-in\n")
    if int(job.name[1:]) % 1000 == 999:
        return Outcome("a stand-in's failure", 0.0, 0.0)
    with staged(job.folder) as scratch:
        (scratch / MASK_FILE).write_bytes(HEADER)
        record(job).write(scratch / RECORD_FILE)
    return Outcome(None, 0.0, 0.0)


def record(job: Job) -> RunRecord:
    """The record of a subject that was not segmented."""
    wanted = wanted_of(job.settings)
    used, number = wanted.settings, int(job.name[1:])
    ml = 0.1 * (1 + number % 300)
    return RunRecord(
        command="segment",
        mask_sha256=f"{number:064}",
        versions={"leuko": "stand-in"},
        inputs=Inputs(flair=ScanRecord(**asdict(file_record(job.flair)), series=None)),
        model=ModelRecord(name="stand-in", path=None, weights_sha256=wanted.weights_sha256),
        settings=SettingsRecord(
            threshold=wanted.limits.threshold,
            lesion_threshold=wanted.limits.lesion_threshold,
            smallest_lesion_mm3=wanted.limits.smallest_mm3,
            exclude=None,
            rims=used.rims,
            alignment=used.alignment,
            bias_correction=used.bias_correction,
            rule=used.rule,
            strict=used.strict,
            device=used.device,
        ),
        findings=(),
        checks=(),
        volume_ml=ml,
        volume_interval_ml=(ml / 2, 2 * ml),
        quality=Quality(predicted_dice=0.8, interval=(0.6, 0.9)),
        rims=None,
        wmh_ml=None,
        rims_ml=None,
        wmh_and_rims_ml=None,
        lesions=10,
        intracranial_ml=1400.0,
        volume_percent_icv=ml / 14,
        outside_brain=None,
        excluded_ml=None,
        tissue_ml=None,
        regions=None,
        alignment=None,
        seconds={},
    )


_WANTED: dict[SegmentSettings, Wanted] = {}


def wanted_of(settings: SegmentSettings) -> Wanted:
    if settings not in _WANTED:
        _WANTED[settings] = Wanted.of(settings)
    return _WANTED[settings]


def drive(folder: Path, subjects: int, scheduler: str) -> None:
    """The run itself; prints what it found, as JSON."""
    start = time.perf_counter()
    everything = jobs(folder, subjects)
    done, left = split(everything, wanted_of(everything[0].settings))
    checked = time.perf_counter() - start
    failed = 0
    for job, outcome in executor.run(stand_in, left, scheduler=scheduler):
        settle(job, outcome)
        failed += outcome.reason is not None
    seconds = time.perf_counter() - start - checked
    memory_gb = psutil.Process().memory_info().rss / 1e9
    print(
        json.dumps(
            {
                "done before": len(done),
                "done now": len(left) - failed,
                "failed": failed,
                "seconds to check what is done": round(checked, 1),
                "subjects a second": round(len(left) / seconds),
                "memory of the run, GB": round(memory_gb, 2),
            }
        )
    )


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and workers as processes; the address, and the processes, the scheduler first."""
    place = folder / "scheduler.json"
    place.unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}

    def start(program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", f"distributed.cli.{program}", *arguments]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    processes = [start("dask_scheduler", "--no-dashboard", "--port=0", f"--scheduler-file={place}")]
    while not place.is_file() or not place.read_text():
        time.sleep(0.1)
    address = json.loads(place.read_text())["address"]
    one = ("dask_worker", address, f"--nthreads={THREADS}", "--no-nanny", "--no-dashboard")
    processes += [start(*one) for _ in range(workers)]
    try:
        yield address, processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def written(out: Path) -> dict[str, int]:
    """When each subject's record was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob(f"*/{RECORD_FILE}")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--drive", metavar="ADDRESS")
    given = parser.parse_args()
    if given.drive:
        drive(given.folder, given.subjects, given.drive)
        return
    given.folder.mkdir(parents=True)
    out = given.folder / "out"
    command = [
        sys.executable, __file__, str(given.folder.absolute()), "--subjects", str(given.subjects)
    ]  # fmt: skip
    with cluster(given.folder, given.workers) as (address, processes):
        run = subprocess.Popen([*command, "--drive", address])
        for part, victim in ((0.4, processes[1]), (0.6, run)):
            while len(list(out.glob("s*"))) < part * given.subjects:
                time.sleep(1)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
        time.sleep(5)  # what was at the workers ends
        before = written(out)
        result = subprocess.run(
            [*command, "--drive", address], stdout=subprocess.PIPE, check=True, text=True
        )
        found = json.loads(result.stdout)
        scheduler_gb = psutil.Process(processes[0].pid).memory_info().rss / 1e9
    after = written(out)
    start = time.perf_counter()
    gather.write_batch(out)
    rows = {
        "subjects": given.subjects,
        "there when it was started again": len(before),
        **found,
        "of those that were there, written again": sum(after[n] != before[n] for n in before),
        "results": len(after),
        "failures with their reason": len(list((out / "logs").glob("*.failed"))),
        "memory of the scheduler, GB": round(scheduler_gb, 2),
        "seconds to gather table and page": round(time.perf_counter() - start, 1),
        "size of the page, MB": round((out / gather.PAGE).stat().st_size / 1e6, 1),
    }
    for name, value in rows.items():
        print(f"{name:<42}{value}")


if __name__ == "__main__":
    main()
