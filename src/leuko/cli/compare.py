"""The command compare: two times of one brain."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from leuko.cli.options import Out, Threads
from leuko.io.provenance import exit_code

Flair = Annotated[Path | None, typer.Option(help="Its FLAIR, where that has been moved since.")]


def compare(
    baseline: Annotated[
        Path,
        typer.Argument(help="Folder that leuko segment wrote, or with FLAIR.nii.gz, T1.nii.gz."),
    ],
    followup: Annotated[Path, typer.Argument(help="The same of the later time.")],
    *,
    out: Out,
    baseline_flair: Flair = None,
    followup_flair: Flair = None,
    threads: Threads = None,
) -> None:
    """Compare two times of one brain: new, grown, stable, shrunk and resolved lesions."""
    from leuko.cli.text import changes_as_text
    from leuko.io.outputs import REPORT_FILE
    from leuko.longitudinal.compare import CHANGE_TABLE_FILE, CHANGES_FILE, compare

    result = compare(
        baseline,
        followup,
        out,
        baseline_flair=baseline_flair,
        followup_flair=followup_flair,
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
