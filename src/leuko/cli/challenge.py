"""The commands for the WMH Segmentation Challenge: its container and its table."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from leuko.cli.cohort import (
    MemoryGb,
    Processors,
    Scheduler,
    TimeLimit,
    look_at,
    performed,
)
from leuko.cli.options import EXTRAS, Out, with_settings
from leuko.cli.text import findings_as_text, ranks_as_text, sites_as_text
from leuko.errors import COHORT_LIBRARIES, require
from leuko.io.provenance import DONE_WITH_WARNINGS, is_useless

if TYPE_CHECKING:
    from leuko.segment import SegmentSettings


@with_settings(without={"pv_rule", "strict", "lenient", "lesion_label", *EXTRAS})
def challenge(
    source: Annotated[
        Path, typer.Option("--input", help="Folder that contains pre (or orig) with FLAIR and T1.")
    ] = Path("/input"),
    output: Annotated[Path, typer.Option(help="Folder for result.nii.gz.")] = Path("/output"),
    *,
    settings: "SegmentSettings",
) -> None:
    """Segment a scan of the WMH Challenge.

    Reads /input/pre and writes /output/result.nii.gz, as containers of the challenge do.
    """
    from leuko.cohort.challenge import RESULT_FILE, answer

    result = answer(source, output, settings)
    print(f"{'mask':<12}{output / RESULT_FILE}")
    print(findings_as_text(result))
    raise typer.Exit(DONE_WITH_WARNINGS if is_useless(result.findings) else 0)


# The challenge scores every scan, so none is refused.
@with_settings(
    without=EXTRAS
    | {"align", "pv_rule", "bias_correction", "lesion_label", "strict", "lenient", "threads"},
    strict=False,
)
def challenge_score(
    data: Annotated[
        Path,
        typer.Argument(
            help="Downloaded data of the challenge, with the folders training and test."
        ),
    ],
    *,
    out: Out,
    split: Annotated[
        Literal["training", "test"], typer.Option(help="training: 60 scans; test: 110 scans.")
    ] = "test",
    results: Annotated[
        Path | None,
        typer.Option(
            help="Score existing masks instead of segmenting: a folder with the layout of DATA and "
            "a result.nii.gz for each scan."
        ),
    ] = None,
    teams: Annotated[
        Path | None,
        typer.Option(
            help="Rank Leuko among these teams: TSV with the columns team, dsc, h95_mm, "
            "avd_percent, lesion_recall, lesion_f1."
        ),
    ] = None,
    nthreads: Processors = None,
    mem_gb: MemoryGb = 4.0,
    time_limit: TimeLimit = 30.0,
    scheduler: Scheduler = None,
    settings: "SegmentSettings",
) -> None:
    """Score masks on the data of the WMH Challenge.

    Segments the scans, computes the metrics of the challenge by site, and ranks teams.

    Segmenting needs the extra cohort: pip install "leuko[cohort]"
    """
    if results is None:
        require(*COHORT_LIBRARIES, extra="cohort")
    from leuko.cohort import challenge as wmh
    from leuko.cohort.run import portable
    from leuko.cohort.worker import Limits

    others = wmh.read_teams(teams) if teams else {}
    scans = wmh.find_scans(data, split)
    for lack in wmh.missing(scans, split):
        print(f"warning: {lack} scans found", file=sys.stderr)
    unmeasured = wmh.without_reference(data, split)
    for folder in unmeasured:
        print(
            f"warning: {folder} holds no {wmh.REFERENCE_FILE}; the scan is left out",
            file=sys.stderr,
        )
    if results is None:
        limits = Limits(mem_gb, 60 * time_limit, threads=1)
        jobs = wmh.jobs(scans, out.absolute(), portable(settings), limits)
        run = performed(list(jobs.values()), nthreads, scheduler)
        code = look_at(run.done)
        masks = {scan: job.mask for scan, job in jobs.items() if job.name not in run.failed}
    else:
        masks, code = wmh.find_results(scans, data, results), 0
    lacking = [scan.name for scan in scans if scan not in masks]
    if lacking:
        what = "scan has" if len(lacking) == 1 else "scans have"
        print(f"warning: {len(lacking)} {what} no result: {', '.join(lacking)}", file=sys.stderr)
    table = wmh.score(masks, out)
    print(sites_as_text(table))
    if teams:
        own = results.resolve().name if results else Path(settings.model).name
        print(ranks_as_text(wmh.ranks(others | {own: table[wmh.ALL]})))
    print(f"{'tables':<12}{out / wmh.SCORES_FILE}, {out / wmh.SITES_FILE}")
    raise typer.Exit(1 if lacking or unmeasured else code)
