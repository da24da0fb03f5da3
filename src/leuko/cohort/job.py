"""One subject of a cohort: its job, whether it is done, and how it is segmented or measured.

That happens in a process of its own, `python -m leuko.cohort.job`, which gets a `Job` as JSON.
"""

import json
import logging
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol, Self

from leuko import results
from leuko.cohort import derivatives, worker
from leuko.cohort.worker import LOGS, Limits, Outcome
from leuko.errors import LeukoError
from leuko.io import outputs
from leuko.io.files import private, replace_text, sha256, staged
from leuko.io.inputs import is_same
from leuko.io.provenance import OUTPUT, Finding, exit_code, stderr_handler
from leuko.io.record import FileRecord, RunRecord
from leuko.model import weights
from leuko.model.card import Limits as LesionLimits
from leuko.model.card import load_card
from leuko.segment import SegmentSettings, measure, segment

FETCH = "fetch it: datalad get, git annex get or git lfs pull"
POINTERS = (b"/annex/objects/", b"version https://git-lfs.github.com/")


@dataclass(frozen=True)
class Job:
    """One subject: its scans, and where its results go.

    With a `prefix` the results are BIDS derivatives; `sources` are the URIs of the scans.
    """

    name: str  # of its log: unique, and a valid file name
    flair: Path
    t1: Path | None
    folder: Path  # for the results
    root: Path  # the output folder of the cohort
    work: Path  # in it a scratch folder is made
    settings: SegmentSettings
    limits: Limits
    exclude: Path | None = None
    given: Path | None = None  # a mask to measure; None: the scan is segmented
    prefix: str = ""
    sources: tuple[str, ...] = ()
    problem: str | None = None  # why it cannot be segmented, if known before it is started
    weights_sha256: str = ""  # of the model; another machine may have other weights of that name

    @property
    def record(self) -> Path:
        """The record of its results; it is written last."""
        return derivatives.located(self.folder, self.prefix, outputs.RECORD_FILE)

    @property
    def mask(self) -> Path:
        return derivatives.located(self.folder, self.prefix, outputs.MASK_FILE)

    @property
    def log(self) -> Path:
        return self.root / LOGS / f"{self.name}.log"

    @property
    def failure(self) -> Path:
        """The file with the reason of a failure."""
        return self.root / LOGS / f"{self.name}.failed"

    def to_json(self) -> str:
        """The job as one line of JSON."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        content = json.loads(text)
        for name in ("flair", "t1", "folder", "root", "work", "exclude", "given"):
            content[name] = content[name] and Path(content[name])
        labels = tuple(content["settings"].pop("lesion_labels"))
        content["settings"] = SegmentSettings(lesion_labels=labels, **content["settings"])
        content["limits"] = Limits(**content["limits"])
        content["sources"] = tuple(content["sources"])
        return cls(**content)


@dataclass(frozen=True)
class Wanted:
    """Model and settings of a cohort, to recognise subjects that are done."""

    weights_sha256: str
    limits: LesionLimits
    settings: SegmentSettings

    @classmethod
    def of(cls, settings: SegmentSettings) -> Self:
        """Load the model's card. Raises LeukoError if there is no such model, if it has no class
        for WMH or for the rims that are to be included, and for a limit out of range."""
        card = load_card(weights.find(settings.model))
        card.require_wmh()
        if settings.rims == "include":
            card.require_rims()
        limits = card.limits(settings.threshold, settings.smallest_lesion_mm3)
        return cls(card.weights_sha256, limits, settings)

    def fits(self, record: RunRecord) -> bool:
        """Whether a run used this model and these settings."""
        used, wanted, limits = record.settings, self.settings, self.limits
        return bool(
            record.model.weights_sha256 == self.weights_sha256
            and used.threshold == limits.threshold
            and used.lesion_threshold == limits.lesion_threshold
            and used.smallest_lesion_mm3 == limits.smallest_mm3
            and used.rims == wanted.rims
            and used.alignment == wanted.alignment
            and used.rule == wanted.rule
            and used.bias_correction == wanted.bias_correction
            and (used.lesion_labels or ()) == wanted.lesion_labels
            and (used.strict or not wanted.strict)
            and (used.fill or not wanted.fill)
            and (used.save_mni or not wanted.save_mni)
            and _is_wanted(wanted.atlas, used.atlas)
            and _is_wanted(wanted.atlas_names, used.atlas_names)
        )


def is_done(job: Job, wanted: Wanted) -> bool:
    """Whether a job has complete results of its scans with the wanted model and settings."""
    try:
        record = RunRecord.read(job.record)
    except LeukoError:
        return False
    return (
        wanted.fits(record)
        and _is_same(job.flair, record.inputs.flair)
        and _is_same(job.t1, record.inputs.t1)
        and _is_same(job.exclude, record.settings.exclude)
        and _is_same(job.given, record.inputs.mask)
        and job.mask.is_file()
        and not any(finding.code == OUTPUT for finding in record.findings)
    )


def split(jobs: Sequence[Job], wanted: Wanted) -> tuple[list[Job], list[Job]]:
    """The jobs that are done, and those that are not; jobs whose scans are missing come first."""

    def checked(job: Job) -> tuple[Job, bool]:
        if is_done(job, wanted):
            return job, True
        return replace(job, problem=job.problem or _lack(job)), False

    with ThreadPoolExecutor() as pool:  # network file systems are slow, but answer in parallel
        seen = list(pool.map(checked, jobs))
    done = [job for job, is_ready in seen if is_ready]
    for job in done:
        job.failure.unlink(missing_ok=True)  # from a run with other settings
    left = [job for job, is_ready in seen if not is_ready]
    return done, sorted(left, key=lambda job: job.problem is None)


class Task(Protocol):
    """A piece of work of a cohort, such as a `Job`."""

    @property
    def name(self) -> str:
        """Its name, unique in the cohort."""

    @property
    def failure(self) -> Path:
        """The file with the reason of a failure."""


def settle(task: Task, outcome: Outcome) -> None:
    """Write the reason of a task's failure; after a success, delete that of an earlier run."""
    if outcome.reason is None:
        task.failure.unlink(missing_ok=True)
    else:
        task.failure.parent.mkdir(parents=True, exist_ok=True)
        replace_text(task.failure, outcome.reason + "\n")


def serious_findings(job: Job) -> list[Finding]:
    """Serious findings on a job's results: a file is missing, or they should not be used."""
    findings = RunRecord.read(job.record).findings
    return [finding for finding in findings if exit_code([finding])]


def perform(job: Job) -> Outcome:
    """Segment a job's subject in a process of its own. Results are written atomically."""
    job.log.unlink(missing_ok=True)  # from an earlier run
    if job.problem:
        return Outcome(job.problem, 0.0, 0.0)
    try:
        outcome = _perform(job)
    except (OSError, LeukoError) as error:
        outcome = Outcome(str(error), 0.0, 0.0)
    if outcome.reason is not None and is_done(job, Wanted.of(job.settings)):
        return replace(outcome, reason=None)  # another run did it at the same time
    return outcome


def main() -> None:
    """Run in that process: read a `Job` and segment its subject."""
    job = Job.from_json(worker.receive())
    logging.basicConfig(handlers=[stderr_handler()], force=True)
    try:
        _segment(job, Path(sys.argv[1]))
    except LeukoError as error:
        sys.exit(f"error: {error}")
    except MemoryError:
        sys.exit("error: not enough memory")


def _perform(job: Job) -> Outcome:
    if not job.prefix:
        command = "measure" if job.given else "segment"
        results.require_free(job.folder, job.flair, job.t1, command=command)
    with private(job.work, job.name) as scratch:
        made, log = scratch / "results", scratch / "log"
        made.mkdir()
        arguments = ["-m", "leuko.cohort.job", str(made)]
        try:
            outcome = worker.run(arguments, job.to_json(), log, job.limits)
            if outcome.reason is None:
                _publish(made, job)
        finally:
            if log.is_file():
                job.log.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(log, job.log)
    return outcome


def _segment(job: Job, scratch: Path) -> None:
    if Wanted.of(job.settings).weights_sha256 != job.weights_sha256:
        raise LeukoError(
            f"the model {job.settings.model} has other weights on this machine than on the machine "
            "that started the run; install the same model on both"
        )
    folder = scratch / "native" if job.prefix else scratch
    settings = replace(job.settings, threads=job.limits.threads)
    if job.given:
        found = measure(job.given, job.flair, job.t1, settings=settings)
    else:
        found = segment(job.flair, job.t1, exclude=job.exclude, settings=settings)
    found.save(folder, label=job.name, save_intermediate=bool(job.prefix))
    if job.prefix:
        derivatives.arrange(folder, scratch, job.prefix, job.sources)
        shutil.rmtree(folder)


def _publish(scratch: Path, job: Job) -> None:
    """Move results to their folder in place of older ones; BIDS pictures to `figures`."""
    if job.prefix:
        pictures = (job.prefix + name for name in derivatives.PICTURES)
        derivatives.move_pictures(scratch, job.folder, pictures)
    with staged(job.folder, record=job.record.name) as staging:
        for path in scratch.iterdir():
            shutil.move(path, staging)
        written = {path.name for path in staging.iterdir()}
    if job.prefix:
        derivatives.drop_older(job.folder, job.prefix, written)
    else:
        results.drop_older(job.folder, written)


def _is_wanted(path: str | Path | None, was: FileRecord | None) -> bool:
    """Whether a run used a wanted file; any will do if none is wanted."""
    return path is None or (was is not None and sha256(Path(path)) == was.sha256)


def _lack(job: Job) -> str | None:
    for scan in (job.flair, job.t1, job.exclude, job.given):
        if scan is None:
            continue
        try:
            if scan.is_symlink() and not scan.exists():
                return f"{scan} is a link to {scan.readlink()}, which does not exist; {FETCH}"
            if not scan.exists():
                return f"{scan} does not exist or is not a file; check the path"
            if scan.is_file() and _is_pointer(scan):
                return f"{scan} holds only a pointer to its content; {FETCH}"
        except OSError as error:
            return f"{scan} cannot be read: {error.strerror}"
    return None


def _is_pointer(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:  # segmenting reports why it cannot be read
        return file.read(40).startswith(POINTERS)
    return False


def _is_same(path: Path | None, was: FileRecord | None) -> bool:
    if path is None or was is None:
        return path is None and was is None
    return is_same(path, was)


if __name__ == "__main__":
    main()
