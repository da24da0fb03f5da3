"""The command compare: two or more visits of one person."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from leuko.cli.options import Label, Out, Threads
from leuko.cli.streams import interruptible, stages_shown
from leuko.io.provenance import exit_code

Flairs = Annotated[
    list[Path] | None,
    typer.Option(
        "--flair",
        help="New path of a FLAIR that was moved after segmentation; repeat it for several. Leuko "
        "finds the visit by the content of the file.",
    ),
]
VisitLabels = Annotated[
    list[str] | None,
    typer.Option(
        "--visit-label",
        help="Name of a visit in the report, such as a date; repeat it for each visit, in order.",
    ),
]


def compare(
    visits: Annotated[
        list[Path],
        typer.Argument(
            help="Two or more visits, in order: output folders of leuko segment or leuko measure, "
            "folders or records (label-WMH_stats.json) of leuko bids, or folders with FLAIR.nii.gz "
            "and optionally T1.nii.gz."
        ),
    ],
    *,
    out: Out,
    flair: Flairs = None,
    visit_label: VisitLabels = None,
    label: Label = None,
    threads: Threads = None,
) -> None:
    """Compare two or more visits of one person.

    Finds new, grown, stable, shrunk and resolved lesions, and those that merged or split.
    """
    from leuko.cli.text import changes_as_text

    with interruptible("interrupted; the comparison was not written"), stages_shown():
        from leuko.io.outputs import REPORT_FILE
        from leuko.longitudinal.compare import CHANGE_TABLE_FILE, CHANGES_FILE, VISITS_FILE, compare

        result = compare(
            *visits,
            out,
            flairs=flair or (),
            visit_labels=visit_label or (),
            label=label,
            threads=threads,
        )
    print(changes_as_text(result))
    for name, what in (
        (REPORT_FILE, "report"),
        (CHANGES_FILE, "map"),
        (CHANGE_TABLE_FILE, "lesions"),
        (VISITS_FILE, "by visit"),
    ):
        if (out / name).is_file():
            print(f"{what:<12}{out / name}")
    print(f"all files   {out}")
    print(f"done in {sum(result.seconds.values()):.1f} s", file=sys.stderr)
    raise typer.Exit(exit_code(result.findings))
