"""The commands for many subjects: batch and bids."""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from leuko.cli.options import Out, with_settings
from leuko.cli.streams import interruptible
from leuko.cli.text import cohort_progress
from leuko.cli.train_settings import is_given
from leuko.errors import COHORT_LIBRARIES, LeukoError, require
from leuko.io.provenance import DONE_WITH_WARNINGS

if TYPE_CHECKING:
    from leuko.cohort.job import Job
    from leuko.cohort.run import CohortRun
    from leuko.cohort.worker import Limits
    from leuko.io.provenance import Finding
    from leuko.longitudinal.dataset import SeriesRun
    from leuko.segment import SegmentSettings

Processors = Annotated[
    int | None,
    typer.Option(
        "--nthreads",
        min=1,
        help="Processors to use; by default all that are allowed. Subjects run at the same time, "
        "as many as processors and memory allow.",
    ),
]
MemoryGb = Annotated[
    float, typer.Option("--mem-gb", min=0.1, help="Memory limit of one subject, in GB.")
]
TimeLimit = Annotated[
    float, typer.Option("--time-limit", min=0.01, help="Time limit of one subject, in minutes.")
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="Run on the workers of this dask scheduler, such as tcp://node1:8786."),
]
Work = Annotated[
    Path | None,
    typer.Option(
        "--work-dir", "-w", help="Folder for temporary files; by default in the output folder."
    ),
]
Masks = Annotated[
    str | None,
    typer.Option(
        help="Measure given masks instead of segmenting: the path of the masks, with {id} for the "
        "subject, such as 'lst/{id}/*mask.nii.gz'. In a BIDS dataset, {id} stands for a name such "
        "as sub-01_ses-1 and {visit} for a folder such as sub-01/ses-1."
    ),
]
ONE_SCAN = {"strict", "threads"}  # options of `leuko segment` that cohorts do not have

RESUME = "interrupted; run the same command again to resume"
ANALYSIS = Literal["participant", "longitudinal", "group"]
# Parameters of `leuko bids` that have an effect at the levels after participant.
USED: Mapping[str, Collection[str]] = {
    "longitudinal": {
        "participant_label", "session_label", "nthreads", "mem_gb", "time_limit", "scheduler",
    },
    "group": (),
}  # fmt: skip
LISTS = {
    "--participant-label": "--participant-label",
    "--participant_label": "--participant-label",
    "--session-label": "--session-label",
    "--session_label": "--session-label",
}


class BidsCommand(TyperCommand):
    """Takes lists as BIDS Apps do: --participant-label 01 02 03. Ignores --skip-bids-validator,
    with which many Apps are called."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        option, is_first = None, False
        for argument in args:
            if argument.replace("_", "-") == "--skip-bids-validator":
                continue
            if argument.startswith("-"):
                option, is_first = LISTS.get(argument), True
                spread.append(option or argument)
            elif option is None or is_first:
                spread.append(argument)
                is_first = False
            else:
                spread += [option, argument]
        return super().parse_args(ctx, spread)


def _separated(labels: list[str] | None) -> list[str]:
    """The labels of a list, which commas may separate too."""
    return [label for text in labels or () for label in text.split(",") if label]


@with_settings(without=ONE_SCAN)
def batch(
    table: Annotated[
        Path,
        typer.Argument(
            help="TSV or CSV with the columns id and flair; t1, exclude and mask are optional. "
            "If a subject has a mask, this mask is measured instead of segmenting."
        ),
    ],
    *,
    out: Out,
    masks: Masks = None,
    nthreads: Processors = None,
    mem_gb: MemoryGb = 4.0,
    time_limit: TimeLimit = 30.0,
    scheduler: Scheduler = None,
    work_dir: Work = None,
    settings: "SegmentSettings",
) -> None:
    """Segment the subjects of a table.

    Each subject is segmented in its own process. To resume an interrupted run, run the same command
    again.

    This needs the extra cohort: pip install "leuko[cohort]"
    """
    from leuko.cohort.run import segment_cohort

    with interruptible(RESUME):
        run = segment_cohort(
            table,
            out,
            masks=masks,
            settings=settings,
            processors=nthreads,
            memory_gb=mem_gb,
            minutes=time_limit,
            scheduler=scheduler,
            work_dir=work_dir,
            progress=cohort_progress,
        )
    print_run(run)
    for what, path in run.written.items():
        print(f"{what:<12}{path}")
    code = look_at(run.done)
    raise typer.Exit(1 if run.failed else code or page_code(run.written))


@with_settings(without=ONE_SCAN)
def bids(
    context: typer.Context,
    bids_dir: Annotated[Path, typer.Argument(help="A BIDS dataset, raw or of derivatives.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder of the derivatives.")],
    analysis_level: Annotated[
        ANALYSIS,
        typer.Argument(
            help="participant: segment. longitudinal: compare the sessions of each participant. "
            "group: collect all results in a table and a page."
        ),
    ],
    *,
    participant_label: Annotated[
        list[str] | None,
        typer.Option(
            callback=_separated,
            help="Participants, with or without sub-, separated by spaces; by default all.",
        ),
    ] = None,
    session_label: Annotated[
        list[str] | None,
        typer.Option(
            callback=_separated,
            help="Sessions, with or without ses-, separated by spaces; by default all.",
        ),
    ] = None,
    bids_filter_file: Annotated[
        Path | None,
        typer.Option(help="JSON file that selects images by BIDS entities, as for fMRIPrep."),
    ] = None,
    flair_alone: Annotated[
        bool, typer.Option("--flair-alone", help="Also segment FLAIR images that have no T1w.")
    ] = False,
    masks: Masks = None,
    nthreads: Processors = None,
    mem_gb: MemoryGb = 4.0,
    time_limit: TimeLimit = 30.0,
    scheduler: Scheduler = None,
    work_dir: Work = None,
    settings: "SegmentSettings",
) -> None:
    """Segment a BIDS dataset, as a BIDS App.

    Run participant first, then longitudinal if there are several sessions, then group.

    The first two need the extra cohort: pip install "leuko[cohort]"
    """
    from leuko.cohort.bids import find_pairs
    from leuko.cohort.bids_names import read_filter
    from leuko.cohort.derivative_dataset import start_dataset
    from leuko.cohort.derivatives import write_lookup_tables
    from leuko.cohort.gather import write_dataset
    from leuko.cohort.given_masks import with_mask
    from leuko.cohort.job import Job, Wanted
    from leuko.cohort.run import portable
    from leuko.cohort.worker import Limits
    from leuko.model import weights
    from leuko.model.card import load_card

    _name_unused(context, analysis_level)
    out, dataset = output_dir.absolute(), bids_dir.absolute()
    if analysis_level == "group":
        written = write_dataset(out)
        for what, path in written.items():
            print(f"{what:<12}{path}")
        raise typer.Exit(page_code(written))
    if analysis_level == "longitudinal":
        require(*COHORT_LIBRARIES, extra="cohort")
        limits = Limits(mem_gb, 60 * time_limit, threads=1)
        labels = participant_label or (), session_label or ()
        raise typer.Exit(_compare_sessions(out, dataset, limits, *labels, nthreads, scheduler))
    found = find_pairs(
        dataset,
        participants=participant_label or (),
        sessions=session_label or (),
        filters=read_filter(bids_filter_file) if bids_filter_file else None,
    )
    for line in found.notes:
        print(line, file=sys.stderr)
    for line in found.left_out:
        print(f"left out  {line}", file=sys.stderr)
    if not (flair_alone or participant_label or any(pair.t1 for pair in found.pairs)):
        raise LeukoError("no FLAIR has a T1w; pass --flair-alone to segment without T1w")
    require(*COHORT_LIBRARIES, extra="cohort")
    settings = portable(settings)
    jobs = [
        Job(
            name=pair.name,
            flair=pair.flair.path,
            t1=pair.t1.path if pair.t1 else None,
            folder=out / pair.visit / "anat",
            root=out,
            work=(work_dir or out).absolute(),
            settings=settings,
            limits=Limits(mem_gb, 60 * time_limit, threads=1),
            prefix=pair.prefix,
            sources=pair.sources(dataset),
            problem=None
            if pair.t1 or flair_alone
            else (
                f"{pair.flair.path.name} has no T1w; pass --flair-alone to segment it without one"
            ),
        )
        for pair in found.pairs
    ]
    if masks:
        visits = [pair.visit.as_posix() for pair in found.pairs]
        jobs = [
            with_mask(job, masks, id=job.name, visit=v) for job, v in zip(jobs, visits, strict=True)
        ]
    Wanted.of(settings)  # raises before anything is written
    start_dataset(out, dataset)
    atlas, classes = settings.read_atlas(), load_card(weights.find(settings.model)).classes
    write_lookup_tables(out, classes, atlas.named if atlas else ())
    run = performed(jobs, nthreads, scheduler)
    if found.left_out:
        print(f"{'left out':<12}{len(found.left_out)}; the reasons are printed above")
    print(f"{'results':<12}{out}; to collect them: leuko bids {bids_dir} {output_dir} group")
    code = look_at(run.done)
    raise typer.Exit(1 if run.failed or found.left_out else code)


def _name_unused(context: typer.Context, level: str) -> None:
    """Print a line that names the given options that have no effect at a level."""
    if level == "participant":
        return
    unused = [
        option.opts[0]
        for option in context.command.params
        if option.param_type_name == "option"
        and option.name not in USED[level]
        and is_given(context, str(option.name))
    ]
    if unused:
        print(f"without effect at the level {level}: {', '.join(unused)}", file=sys.stderr)


def _compare_sessions(
    out: Path,
    dataset: Path,
    limits: "Limits",
    participants: Sequence[str],
    sessions: Sequence[str],
    processors: int | None,
    scheduler: str | None,
) -> int:
    """Compare the sessions of each participant; returns the exit code."""
    from leuko.longitudinal.dataset import (
        compare_series,
        find_series,
        serious_findings,
        write_series_table,
    )

    found, without = find_series(out, dataset, limits, participants=participants, sessions=sessions)
    for line in without:
        print(line, file=sys.stderr)
    if not found:
        raise LeukoError(
            f"{out} holds no participant with results of two sessions; run the level participant "
            "for two or more sessions first"
        )
    with interruptible(RESUME):
        run = compare_series(
            found, processors=processors, scheduler=scheduler, progress=cohort_progress
        )
    print_run(run)
    print(f"{'table':<12}{write_series_table(out)}")
    code = _told({series.name: serious_findings(series) for series in run.done})
    return 1 if run.failed else code


def page_code(written: Mapping[str, Path]) -> int:
    """Exit code 3 if the page could not be written, else 0."""
    return 0 if "report" in written else DONE_WITH_WARNINGS


def look_at(jobs: "Sequence[Job]") -> int:
    """Print the serious findings of each subject; exit code 3 if there are any, else 0."""
    from leuko.cohort.job import serious_findings

    return _told({job.name: serious_findings(job) for job in jobs})


def _told(found: "Mapping[str, Sequence[Finding]]") -> int:
    """Print findings by name; exit code 3 if there are any, else 0."""
    for name, findings in found.items():
        for finding in findings:
            print(f"{finding.level:<12}{name}: {finding.text}")
    return DONE_WITH_WARNINGS if any(found.values()) else 0


def performed(jobs: "Sequence[Job]", processors: int | None, scheduler: str | None) -> "CohortRun":
    """Run the jobs that are not done yet and print a summary."""
    from leuko.cohort.run import run_jobs

    with interruptible(RESUME):
        run = run_jobs(jobs, processors=processors, scheduler=scheduler, progress=cohort_progress)
    print_run(run)
    return run


def print_run(run: "CohortRun | SeriesRun") -> None:
    """Print how many subjects are done, and why the others failed."""
    earlier = f", {run.earlier} of them by an earlier run" if run.earlier else ""
    print(f"{'done':<12}{len(run.done)}{earlier}")
    print(f"{'failed':<12}{len(run.failed)}")
    width = max((10, *map(len, run.failed)))
    for name, reason in sorted(run.failed.items()):
        print(f"  {name:<{width}}  {reason}")
    if run.failed:
        print(f"{'logs':<12}{run.jobs[0].log.parent}")
