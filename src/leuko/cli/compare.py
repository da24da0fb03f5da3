"""The command compare: two time points of one person."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from leuko.cli.options import Label, Out, Threads
from leuko.io.provenance import exit_code

BaselineFlair = Annotated[
    Path | None, typer.Option(help="FLAIR of the baseline, if it was moved after segmentation.")
]
FollowupFlair = Annotated[
    Path | None, typer.Option(help="FLAIR of the follow-up, if it was moved after segmentation.")
]


def compare(
    baseline: Annotated[
        Path,
        typer.Argument(
            help="Output folder of leuko segment, or a folder with FLAIR.nii.gz and T1.nii.gz."
        ),
    ],
    followup: Annotated[Path, typer.Argument(help="The same for the later time point.")],
    *,
    out: Out,
    baseline_flair: BaselineFlair = None,
    followup_flair: FollowupFlair = None,
    label: Label = None,
    threads: Threads = None,
) -> None:
    """Compare two time points of one person.

    Finds new, grown, stable, shrunk and resolved lesions.
    """
    from leuko.cli.text import changes_as_text
    from leuko.io.outputs import REPORT_FILE
    from leuko.longitudinal.compare import CHANGE_TABLE_FILE, CHANGES_FILE, compare

    result = compare(
        baseline,
        followup,
        out,
        baseline_flair=baseline_flair,
        followup_flair=followup_flair,
        label=label,
        threads=threads,
    )
    print(changes_as_text(result))
    for name, what in (
        (REPORT_FILE, "report"),
        (CHANGES_FILE, "map"),
        (CHANGE_TABLE_FILE, "lesions"),
    ):
        if (out / name).is_file():
            print(f"{what:<12}{out / name}")
    print(f"all files   {out}")
    print(f"done in {sum(result.seconds.values()):.1f} s", file=sys.stderr)
    raise typer.Exit(exit_code(result.findings))
