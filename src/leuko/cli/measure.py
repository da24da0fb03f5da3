"""The command measure, and what a finished result prints."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leuko.cli.options import Label, Out, with_settings
from leuko.cli.streams import interruptible, stages_shown
from leuko.cli.text import findings_as_text
from leuko.io.provenance import exit_code

if TYPE_CHECKING:
    from leuko.results import Segmentation
    from leuko.segment import SegmentSettings


@with_settings(without={"threshold", "min_lesion_mm3", "rims", "lenient"})
def measure(
    mask: Annotated[
        Path, typer.Argument(help="WMH mask of a reader or another tool: an image file.")
    ],
    out: Out,
    settings: "SegmentSettings",
    flair: Annotated[
        Path, typer.Option(help="FLAIR: an image file, or a folder of one DICOM series.")
    ],
    t1: Annotated[
        Path | None,
        typer.Option(help="T1 of the same brain: an image file, or a folder of one DICOM series."),
    ] = None,
    label: Label = None,
) -> None:
    """Measure a given WMH mask.

    Writes the files of leuko segment for a mask that was made elsewhere: volumes, lesions, regions,
    tissues and a report.
    """
    with interruptible("interrupted; nothing was written"), stages_shown():
        import leuko
        from leuko.results import require_free

        require_free(out, flair, t1, mask, command="measure")
        result = leuko.measure(mask, flair, t1, settings=settings)
        result.save(out, label=label)
    print_result(result, out)


def print_result(result: "Segmentation", out: Path) -> None:
    """Print findings and files of a saved result, and end the command with its exit code."""
    from leuko.io.outputs import DICOM_FILE, MASK_FILE, REPORT_FILE

    print(findings_as_text(result))
    for name, what in ((MASK_FILE, "mask"), (REPORT_FILE, "report"), (DICOM_FILE, "DICOM")):
        if (out / name).is_file():
            print(f"{what:<12}{out / name}")
    print(f"all files   {out}")
    print(f"done in {sum(result.seconds.values()):.1f} s", file=sys.stderr)
    raise typer.Exit(exit_code(result.findings))
