"""The commands. Results go to stdout, progress and warnings to stderr.

Commands import what they need, so that `leuko --help` loads nothing heavy.
"""

import atexit
import gc
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from leuko.cli.challenge import challenge, challenge_score
from leuko.cli.cohort import BidsCommand, batch, bids
from leuko.cli.compare import compare
from leuko.cli.demo import demo
from leuko.cli.info import info
from leuko.cli.measure import measure, print_result
from leuko.cli.models import models
from leuko.cli.options import Label, Out, with_settings
from leuko.cli.streams import interruptible, printable, stages_shown
from leuko.cli.text import measures_as_text, table_as_text
from leuko.cli.train import export, synth, train
from leuko.cli.view import view
from leuko.errors import LeukoError
from leuko.io.provenance import stderr_handler

if TYPE_CHECKING:
    from leuko.segment import SegmentSettings

# The last line of each command's help.
EXAMPLES = {
    name: f"Example: leuko {name} {arguments}"
    for name, arguments in {
        "segment": "--flair FLAIR.nii.gz --t1 T1.nii.gz -o OUT",
        "measure": "MASK.nii.gz --flair FLAIR.nii.gz --t1 T1.nii.gz -o OUT",
        "evaluate": "reference.nii.gz OUT/wmh.nii.gz",
        "view": "OUT",
        "compare": "BASELINE FOLLOWUP -o OUT",
        "batch": "cohort.tsv -o OUT",
        "bids": "DATASET DERIVATIVES participant",
        "train": "DATA -o RUN --recipe adapt",
        "export": "RUN -o MODEL",
        "synth": "-o OUT -n 3",
        "demo": "-o leuko-demo",
        "challenge": "--input INPUT --output OUTPUT",
        "challenge-score": "DATA -o OUT",
        "info": "--json",
    }.items()
}

# The commands under their headings in `leuko --help`.
GROUPS = {
    "One brain": ("segment", "measure", "view", "compare", "evaluate"),
    "Many brains": ("batch", "bids", "challenge", "challenge-score"),
    "Models": ("models", "train", "export", "synth"),
    "Installation": ("demo", "info"),
}


class Groups(TyperGroup):
    """Lists the commands in `GROUPS`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group."""
        width = max(map(len, self.list_commands(ctx)))
        for title, names in GROUPS.items():
            rows = [
                (f"{name:<{width}}", self.commands[name].get_short_help_str(formatter.width))
                for name in names
            ]
            with formatter.section(title):
                formatter.write_dl(rows)


class SegmentCommand(TyperCommand):
    """Says that scans are given by options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.allow_extra_args = True
        extra = super().parse_args(ctx, args)
        if extra and not ctx.resilient_parsing:
            ctx.fail(
                f"unexpected {' '.join(extra)}; give the FLAIR with --flair, and the T1 with --t1"
            )
        return extra


app = typer.Typer(
    cls=Groups,
    help="Segment white matter hyperintensities in brain MRI.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(models, name="models")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Exit code 0: done; 1: some subjects failed; 2: a problem the user can fix, nothing was written;
    3: done, but a file is missing or a result should not be used; 130: interrupted. A failure to
    print never ends a command (`streams.printable`).
    """
    # Else the interpreter searches all objects for cycles: 0.15 s at its exit.
    atexit.register(gc.freeze)
    with printable():
        logger = logging.getLogger("leuko")
        logger.handlers = [stderr_handler()]
        logger.propagate = False
        try:
            app(args=arguments)
        except LeukoError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


@app.command(cls=SegmentCommand, epilog=EXAMPLES["segment"])
@with_settings(without={"lenient", "lesion_label"})
def segment(
    out: Out,
    settings: "SegmentSettings",
    flair: Annotated[
        Path | None, typer.Option(help="FLAIR: an image file, or a folder of one DICOM series.")
    ] = None,
    t1: Annotated[
        Path | None,
        typer.Option(help="T1 of the same brain: an image file, or a folder of one DICOM series."),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(help="Folder of DICOM files; Leuko finds the FLAIR and the T1 in it."),
    ] = None,
    flair_series: Annotated[
        int | None, typer.Option(help="With --study: the series number of the FLAIR.")
    ] = None,
    t1_series: Annotated[
        int | None, typer.Option(help="With --study: the series number of the T1.")
    ] = None,
    exclude: Annotated[
        Path | None,
        typer.Option(
            help="Exclusion mask, on the grid of the FLAIR: voxels that never count as WMH "
            "(infarct, tumour)."
        ),
    ] = None,
    label: Label = None,
    save_intermediate: Annotated[
        bool, typer.Option("--save-intermediate", help="Keep the aligned T1 and its transform.")
    ] = False,
) -> None:
    """Segment one brain.

    Writes the mask, probabilities, tissues, tables of lesions and regions, and a report.
    """
    with interruptible("interrupted; nothing was written"), stages_shown():
        import leuko
        from leuko.io.inputs import Scan, read_study
        from leuko.results import require_free

        scans: tuple[Path | Scan, Path | Scan | None]
        if study is not None and flair is None and t1 is None:
            require_free(out, study)
            scans = read_study(study, flair=flair_series, t1=t1_series)
        elif flair is not None and study is None:
            require_free(out, flair, t1)
            scans = flair, t1
        else:
            raise LeukoError("give --flair, and --t1 if there is one; or --study alone")
        if study is None and (flair_series, t1_series) != (None, None):
            raise LeukoError("--flair-series and --t1-series need --study")
        result = leuko.segment(scans[0], scans[1], exclude=exclude, settings=settings)
        result.save(out, label=label, save_intermediate=save_intermediate)
    for name, scan in zip(("FLAIR", "T1"), scans, strict=True):
        if isinstance(scan, Scan):
            print(f"{name:<12}series {scan.series}")
    print_result(result, out)


@app.command(epilog=EXAMPLES["evaluate"])
def evaluate(
    reference: Annotated[
        Path,
        typer.Argument(
            help="Reference mask (1: WMH; 2: other pathology, which is ignored), or a folder of "
            "masks."
        ),
    ],
    prediction: Annotated[Path, typer.Argument(help="Predicted mask, or a folder of masks.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="With two folders: write the table to this TSV file."),
    ] = None,
) -> None:
    """Evaluate masks against reference masks.

    Give two files, or two folders whose masks are matched by subject.
    """
    from leuko.evaluation.evaluate import (
        evaluate,
        json_ready,
        match_folders,
        summarise,
        write_table,
    )
    from leuko.io.files import require_writable

    for path in (reference, prediction):
        if not path.exists():
            raise LeukoError(f"{path} does not exist; check the path")
    if reference.is_dir() != prediction.is_dir():
        raise LeukoError(
            f"{reference} and {prediction}: one is a folder, the other is not; give two files or "
            "two folders"
        )
    if not reference.is_dir():
        if out:
            raise LeukoError("-o writes a table of many subjects; give two folders, or use --json")
        row = evaluate(reference, prediction)
        print(json.dumps(json_ready(row), indent=2) if as_json else measures_as_text(row))
        return
    if out:
        require_writable(out.parent)
    matched, lacking = match_folders(reference, prediction)
    rows = {subject: evaluate(*masks) for subject, masks in matched.items()}
    table = {**rows, **summarise(rows)}
    if out:
        write_table(out, rows)
    if as_json:
        print(json.dumps({name: json_ready(row) for name, row in table.items()}, indent=2))
    else:
        print(table_as_text(table))
    raise typer.Exit(1 if lacking else 0)


app.command(epilog=EXAMPLES["batch"])(batch)
app.command(cls=BidsCommand, epilog=EXAMPLES["bids"])(bids)
for command in (
    demo, measure, view, compare, train, export, synth, challenge, challenge_score, info
):  # fmt: skip
    app.command(epilog=EXAMPLES[command.__name__.replace("_", "-")])(command)


def _version(*, asked: bool) -> None:
    if asked:
        from leuko import __version__

        print(f"leuko {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    *,
    _: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda asked: _version(asked=asked),
            is_eager=True,
            help="Print the version.",
        ),
    ] = False,
) -> None:
    pass
