"""One subject of a cohort: what is asked for, whether it is there, and how it is made.

It is made in a process apart, `python -m leuko.cohort.job`, which is given a `Job` as JSON.
"""

import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from leuko import results
from leuko.cohort import derivatives, worker
from leuko.cohort.worker import LOGS, Limits, Outcome
from leuko.errors import LeukoError
from leuko.io import outputs
from leuko.io.files import private, read_json, replace_text, staged
from leuko.io.inputs import is_same
from leuko.io.provenance import OUTPUT, Finding, exit_code, read_findings, stderr_handler
from leuko.model import weights
from leuko.model.card import load_card
from leuko.segment import SegmentSettings, segment

FETCH = "fetch it: datalad get, git annex get or git lfs pull"
POINTERS = (b"/annex/objects/", b"version https://git-lfs.github.com/")


@dataclass(frozen=True)
class Job:
    """One subject: its scans, and where its results go.

    With a `prefix` they are BIDS derivatives, made of `sources`, the URIs of the scans.
    """

    name: str  # of its log: unique, and fit for a file
    flair: Path
    t1: Path | None
    folder: Path  # for the results
    root: Path  # the output folder of the cohort
    work: Path  # for scratch, which has a folder of its own there
    settings: SegmentSettings
    limits: Limits
    exclude: Path | None = None
    prefix: str = ""
    sources: tuple[str, ...] = ()
    problem: str | None = None  # why it cannot be done, if that is known beforehand
    weights_sha256: str = ""  # of the model that is meant; other machines may have another

    @property
    def record(self) -> Path:
        """Of its results, whole if it is there."""
        name = self.prefix + derivatives.RECORD if self.prefix else outputs.RECORD_FILE
        return self.folder / name

    @property
    def mask(self) -> Path:
        name = self.prefix + derivatives.MASK if self.prefix else outputs.MASK_FILE
        return self.folder / name

    @property
    def log(self) -> Path:
        return self.root / LOGS / f"{self.name}.log"

    @property
    def failure(self) -> Path:
        """Holds why it failed; there is none if it did not."""
        return self.root / LOGS / f"{self.name}.failed"

    def to_json(self) -> str:
        """In one line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        content = json.loads(text)
        for name in ("flair", "t1", "folder", "root", "work", "exclude"):
            content[name] = content[name] and Path(content[name])
        content["settings"] = SegmentSettings(**content["settings"])
        content["limits"] = Limits(**content["limits"])
        return cls(**content)


@dataclass(frozen=True)
class Wanted:
    """What the record of a finished subject tells of model and settings."""

    weights_sha256: str
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, settings: SegmentSettings) -> Self:
        """Raises LeukoError where there is no such model, it finds no WMH or not the rims that are
        asked for, or a limit is none."""
        card = load_card(weights.find(settings.model))
        card.require_wmh()
        if settings.rims == "include":
            card.require_rims()
        limits = card.limits(settings.threshold, settings.smallest_lesion_mm3)
        others = ("rims", "alignment", "rule", "bias_correction")
        return cls(
            card.weights_sha256,
            {
                "threshold": limits.threshold,
                "lesion_threshold": limits.lesion_threshold,
                "smallest_lesion_mm3": limits.smallest_mm3,
            }
            | {name: getattr(settings, name) for name in others},
        )


def is_done(job: Job, wanted: Wanted) -> bool:
    """Whether its results are there, of these scans, this model and these settings."""
    try:
        record = read_json(job.record, what="record")
        scans, settings = record["inputs"], record["settings"]
        return (
            record["model"]["weights_sha256"] == wanted.weights_sha256
            and all(settings[name] == value for name, value in wanted.settings.items())
            and (settings["strict"] or not job.settings.strict)
            and _is_same(job.flair, scans["flair"])
            and _is_same(job.t1, scans.get("t1"))
            and _is_same(job.exclude, settings["exclude"])
            and job.mask.is_file()
            and not any(finding.code == OUTPUT for finding in read_findings(record))
        )
    except (LeukoError, KeyError, TypeError):
        return False


def split(jobs: Sequence[Job], wanted: Wanted) -> tuple[list[Job], list[Job]]:
    """Those that are done, and those that are not: first those of which a scan is not there."""

    def looked_at(job: Job) -> tuple[Job, bool]:
        if is_done(job, wanted):
            return job, True
        return replace(job, problem=job.problem or _lack(job)), False

    with ThreadPoolExecutor() as pool:  # network file systems answer slowly, but many at once
        seen = list(pool.map(looked_at, jobs))
    done = [job for job, is_ready in seen if is_ready]
    for job in done:
        job.failure.unlink(missing_ok=True)  # of a try with other settings
    left = [job for job, is_ready in seen if not is_ready]
    return done, sorted(left, key=lambda job: job.problem is None)


def settle(job: Job, outcome: Outcome) -> None:
    """Keep why it failed, or forget why an earlier try did."""
    if outcome.reason is None:
        job.failure.unlink(missing_ok=True)
    else:
        job.failure.parent.mkdir(parents=True, exist_ok=True)
        replace_text(job.failure, outcome.reason + "\n")


def serious_findings(job: Job) -> list[Finding]:
    """Of its results: files that could not be written, and reasons not to use them."""
    found = read_findings(read_json(job.record, what="record"))
    return [finding for finding in found if exit_code([finding])]


def perform(job: Job) -> Outcome:
    """Do it in a process of its own: results whole or not at all, and if not, why."""
    job.log.unlink(missing_ok=True)  # of an earlier try
    if job.problem:
        return Outcome(job.problem, 0.0, 0.0)
    try:
        outcome = _perform(job)
    except (OSError, LeukoError) as error:
        outcome = Outcome(str(error), 0.0, 0.0)
    if outcome.reason is not None and is_done(job, Wanted.of(job.settings)):
        return replace(outcome, reason=None)  # by another run, at the same time
    return outcome


def main() -> None:
    """In the process: segment the subject of the `Job` that is given."""
    job = Job.from_json(worker.receive())
    logging.basicConfig(handlers=[stderr_handler()], force=True)
    try:
        _segment(job, Path(sys.argv[1]))
    except LeukoError as error:
        sys.exit(f"error: {error}")
    except MemoryError:
        sys.exit("error: the memory is full")


def _perform(job: Job) -> Outcome:
    if not job.prefix:
        results.require_free(job.folder, job.flair, job.t1)
    with private(job.work, job.name) as scratch:
        made, log = scratch / "results", scratch / "log"
        made.mkdir()
        command = ["-m", "leuko.cohort.job", str(made)]
        try:
            outcome = worker.run(command, job.to_json(), log, job.limits)
            if outcome.reason is None:
                _publish(made, job)
        finally:
            if log.is_file():
                job.log.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(log, job.log)
    return outcome


def _segment(job: Job, scratch: Path) -> None:
    if Wanted.of(job.settings).weights_sha256 != job.weights_sha256:
        raise LeukoError(f"the model {job.settings.model} of this machine has other weights")
    folder = scratch / "native" if job.prefix else scratch
    settings = replace(job.settings, threads=job.limits.threads)
    found = segment(job.flair, job.t1, exclude=job.exclude, settings=settings)
    found.save(folder, save_intermediate=bool(job.prefix))
    if job.prefix:
        derivatives.arrange(folder, scratch, job.prefix, job.sources)
        shutil.rmtree(folder)


def _publish(scratch: Path, job: Job) -> None:
    """Move results to their folder, in place of older ones; a picture of BIDS has its own."""
    picture = scratch / (job.prefix + derivatives.PICTURE)
    if job.prefix and picture.is_file():
        with staged(job.folder.parent / "figures") as figures:
            shutil.move(picture, figures)
    elif job.prefix:  # one of an earlier run would show other lesions
        (job.folder.parent / "figures" / picture.name).unlink(missing_ok=True)
    with staged(job.folder, record=job.record.name) as staging:
        for path in scratch.iterdir():
            shutil.move(path, staging)
        written = {path.name for path in staging.iterdir()}
    if job.prefix:
        derivatives.drop_older(job.folder, job.prefix, written)
    else:
        results.drop_older(job.folder, written)


def _lack(job: Job) -> str | None:
    for scan in (job.flair, job.t1, job.exclude):
        if scan is None:
            continue
        try:
            if scan.is_symlink() and not scan.exists():
                return f"{scan} is a link to {scan.readlink()}, which is not here; {FETCH}"
            if not scan.exists():
                return f"{scan} does not exist or is not a file; check the path"
            if scan.is_file() and _is_pointer(scan):
                return f"{scan} holds only a pointer to its content; {FETCH}"
        except OSError as error:
            return f"{scan} cannot be read: {error.strerror}"
    return None


def _is_pointer(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:  # what cannot be read fails with its reason
        return file.read(40).startswith(POINTERS)
    return False


def _is_same(path: Path | None, was: Mapping[str, Any] | None) -> bool:
    if path is None or was is None:
        return path is None and was is None
    return is_same(path, was)


if __name__ == "__main__":
    main()
