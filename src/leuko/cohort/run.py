"""Segment the subjects of a table, each in a process of its own, and collect the results."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from leuko.cohort.gather import write_batch
from leuko.cohort.given_masks import with_mask
from leuko.cohort.job import Job, Task, Wanted, perform, settle, split
from leuko.cohort.subject_table import read_table
from leuko.cohort.worker import Limits, Outcome
from leuko.errors import COHORT_LIBRARIES, LeukoError, require
from leuko.io.files import require_writable
from leuko.model.runtime import available_cpus
from leuko.segment import SegmentSettings

T = TypeVar("T", bound=Task)

# Called when a subject has ended, with its name and the reason why it failed, or None.
OnEnd = Callable[[str, str | None], None]
# Called with the number of subjects and the number that run at once on this machine.
Progress = Callable[[int, int | None], AbstractContextManager[OnEnd]]
# In a cohort nobody looks at each scan: one that is not a FLAIR of a head must fail.
STRICT = SegmentSettings(strict=True)


@dataclass(frozen=True)
class CohortRun:
    """The outcome of a cohort."""

    jobs: Sequence[Job]
    failed: Mapping[str, str]  # the reason, by name
    earlier: int  # subjects that an earlier run had finished
    written: Mapping[str, Path]  # table, dictionary, report, ratings

    @property
    def done(self) -> list[Job]:
        """The jobs that have results."""
        return [job for job in self.jobs if job.name not in self.failed]


def segment_cohort(
    table: str | Path,
    out: str | Path,
    *,
    masks: str | None = None,
    settings: SegmentSettings = STRICT,
    processors: int | None = None,
    memory_gb: float = 4.0,
    minutes: float = 30.0,
    scheduler: str | None = None,
    work_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> CohortRun:
    """Segment the subjects of a table (TSV or CSV: id, flair; t1, exclude, mask) into `out`/id.

    A subject with a mask in the table is measured instead, as by `leuko.measure`; `masks` is a
    pattern of such masks for all, in which {id} stands for the subject.

    Each is segmented in a process of its own with at most `memory_gb` and `minutes`; subjects that
    are done are skipped. Then the cohort's table and page are written. `processors` are by default
    all that this process may use; `scheduler` is the address of a dask scheduler. Needs the extra
    `cohort`. The result names the subjects that failed. Raises LeukoError for a table, settings or
    a folder that cannot be used.

    >>> import leuko
    >>> settings = leuko.SegmentSettings(rims="include")
    >>> run = leuko.segment_cohort("cohort.tsv", "OUT", settings=settings)
    >>> run.failed
    {}
    """
    rows = read_table(Path(table))
    require(*COHORT_LIBRARIES, extra="cohort")
    out = Path(out).absolute()
    work = Path(work_dir).absolute() if work_dir else out
    jobs = [
        Job(
            name=row.name,
            flair=row.flair.absolute(),
            t1=row.t1 and row.t1.absolute(),
            exclude=row.exclude and row.exclude.absolute(),
            given=row.mask and row.mask.absolute(),
            folder=out / row.name,
            root=out,
            work=work,
            settings=portable(settings),
            limits=Limits(memory_gb, 60 * minutes, threads=1),
        )
        for row in rows
    ]
    if masks:
        if any(job.given for job in jobs):
            raise LeukoError(
                f"{table} gives masks, and so does {masks}; empty the column mask, or omit the "
                "pattern"
            )
        jobs = [with_mask(job, masks, id=job.name) for job in jobs]
    run = run_jobs(jobs, processors=processors, scheduler=scheduler, progress=progress)
    return replace(run, written=write_batch(out))


def run_jobs(
    jobs: Sequence[Job],
    *,
    processors: int | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> CohortRun:
    """Do the jobs that are not done yet. Raises LeukoError for settings that do not fit the model,
    a folder that cannot be written, and if no scheduler answers."""
    wanted = Wanted.of(jobs[0].settings)
    require_writable(jobs[0].root)
    done, left = split(jobs, wanted)
    workers, limits = share(jobs[0].limits, processors, scheduler, len(left))
    left = [replace(j, limits=limits, weights_sha256=wanted.weights_sha256) for j in left]
    failed = carry_out(perform, left, workers=workers, scheduler=scheduler, progress=progress)
    return CohortRun(jobs, failed, len(done), {})


def carry_out(
    work: Callable[[T], Outcome],
    tasks: Sequence[T],
    *,
    workers: int | None,
    scheduler: str | None,
    progress: Progress | None,
) -> dict[str, str]:
    """Run `work` on all tasks and settle each; returns the reasons of failures, by name.

    `workers` and `scheduler` are as in `executor.run`, which raises LeukoError. Raises LeukoError
    if the reasons of failures cannot be written.
    """
    from leuko.cohort import executor

    for folder in {task.failure.parent for task in tasks}:
        require_writable(folder)
    failed: dict[str, str] = {}
    shown = progress(len(tasks), workers) if progress else nullcontext(lambda *_: None)
    with shown as on_end:
        for task, outcome in executor.run(work, tasks, workers=workers, scheduler=scheduler):
            settle(task, outcome)
            on_end(task.name, outcome.reason)
            if outcome.reason is not None:
                failed[task.name] = outcome.reason
    return failed


def share(
    limits: Limits, processors: int | None, scheduler: str | None, pieces: int
) -> tuple[int | None, Limits]:
    """How many pieces run at once on this machine (None: a scheduler decides), and their limits
    with the processors of each."""
    from leuko.cohort import executor

    if scheduler is not None:
        return None, limits
    processors = processors or available_cpus()
    workers = max(1, min(executor.fitting_workers(processors, limits.memory_gb), pieces))
    return workers, replace(limits, threads=max(1, processors // workers))


def portable(settings: SegmentSettings) -> SegmentSettings:
    """The settings with the absolute paths of an atlas and of a model's folder, since workers may
    run in other folders; the name of a model stays. Raises LeukoError for an atlas that cannot be
    used."""
    settings.read_atlas()
    atlas, names = (
        None if path is None else str(Path(path).absolute())
        for path in (settings.atlas, settings.atlas_names)
    )
    folder = Path(settings.model)
    model = str(folder.absolute()) if folder.is_dir() else settings.model
    return replace(settings, model=model, atlas=atlas, atlas_names=names)
