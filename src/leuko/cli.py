"""The commands, and what they print: results to stdout, all else to stderr.

What a command needs is imported inside it, so that `leuko --help` loads nothing heavy.
"""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from leuko.cli_models import models
from leuko.errors import LeukoError
from leuko.terminal import (
    counted,
    interval_text,
    measures_as_text,
    progress_bar,
    table_as_text,
    with_unit,
)

app = typer.Typer(
    help="Find white matter hyperintensities in brain MRI.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(models, name="models")

Device = Annotated[Literal["cpu", "cuda", "mps"], typer.Option(help="Where the network runs.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Processors to use; by default all that are allowed.")
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Exit code 0: done; 2: the user can mend what went wrong; 130: interrupted."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    logger = logging.getLogger("leuko")
    logger.handlers = [handler]
    logger.propagate = False
    try:
        app(args=arguments)
    except LeukoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def segment(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the results into.")],
    flair: Annotated[
        Path | None, typer.Option(help="FLAIR: an image file, or a folder of one DICOM series.")
    ] = None,
    t1: Annotated[Path | None, typer.Option(help="T1 of the same brain, likewise.")] = None,
    study: Annotated[
        Path | None, typer.Option(help="Folder of DICOM files in which FLAIR and T1 are found.")
    ] = None,
    flair_series: Annotated[
        int | None, typer.Option(help="Of a study: the number of the FLAIR's series.")
    ] = None,
    t1_series: Annotated[
        int | None, typer.Option(help="Of a study: the number of the T1's series.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="A model's name (leuko models list) or folder.")
    ] = "leuko-base",
    threshold: Annotated[
        float | None, typer.Option(help="Smallest WMH probability; by default the model's.")
    ] = None,
    min_lesion_mm3: Annotated[
        float | None, typer.Option(help="Smallest lesion kept; by default the model's.")
    ] = None,
    align: Annotated[
        Literal["auto", "always", "never"],
        typer.Option(help="Bring the T1 to the FLAIR: where it is needed, always, never."),
    ] = "auto",
    exclude: Annotated[
        Path | None,
        typer.Option(help="Mask on the FLAIR's grid (infarct, tumour) where nothing is WMH."),
    ] = None,
    bias_correction: Annotated[
        bool, typer.Option("--bias-correction", help="Correct the scans' bias fields first (N4).")
    ] = False,
    save_intermediate: Annotated[
        bool, typer.Option("--save-intermediate", help="Keep the aligned T1 and its transform.")
    ] = False,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Segment one brain: write the mask, its probability, the tissues and a record."""
    from leuko.inputs import Scan, read_study
    from leuko.segment import FAR_MM, FILES, segment

    scans: tuple[Path | Scan, Path | Scan | None]
    if study is not None and flair is None and t1 is None:
        scans = read_study(study, flair=flair_series, t1=t1_series)
    elif flair is not None and study is None:
        scans = flair, t1
    else:
        raise LeukoError("give --flair, and --t1 if there is one; or --study alone")
    if study is None and (flair_series, t1_series) != (None, None):
        raise LeukoError("--flair-series and --t1-series choose from a --study")
    result = segment(
        scans[0],
        scans[1],
        out,
        model=model,
        threshold=threshold,
        smallest_lesion_mm3=min_lesion_mm3,
        alignment=align,
        exclude=exclude,
        bias_correction=bias_correction,
        save_intermediate=save_intermediate,
        device=device,
        threads=threads,
    )
    for name, scan in zip(("FLAIR", "T1"), scans, strict=True):
        if isinstance(scan, Scan):
            print(f"{name:<11} series {scan.series}")
    print(f"WMH volume  {result.volume_ml:.2f} mL in {counted(result.lesions, 'lesion')}")
    if result.excluded is not None:
        print(
            f"excluded    {result.excluded.volume_ml:.2f} mL, in which "
            f"{result.excluded.wmh_ml:.2f} mL would be WMH"
        )
    if result.alignment is not None:
        moved_mm, off_mm = result.alignment.moved_mm, result.alignment.off_mm
        off = f"off by {off_mm:.1f} mm" if off_mm < FAR_MM else "not aligned"
        how = f"moved by {moved_mm:.1f} mm" if moved_mm else f"not moved, {off}"
        print(f"alignment   T1 {how}")
    for name, what in FILES.items():
        if (out / name).is_file():
            print(f"{what:<11} {out / name}")
    print(f"done in {sum(result.seconds.values()):.1f} s", file=sys.stderr)


@app.command()
def evaluate(
    reference: Annotated[
        Path, typer.Argument(help="Expert mask (0, 1; 2 is ignored), or a folder of them.")
    ],
    prediction: Annotated[Path, typer.Argument(help="Predicted mask, or a folder of them.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="For folders: write the table here (TSV).")
    ] = None,
) -> None:
    """Measure a mask against a reference, or two folders of them subject by subject."""
    from leuko.evaluate import evaluate, evaluate_folders, json_ready, summarise, write_table

    for path in (reference, prediction):
        if not path.exists():
            raise LeukoError(f"{path} does not exist; check the path")
    if reference.is_dir() != prediction.is_dir():
        raise LeukoError(f"{reference} and {prediction}: give two files, or two folders")
    if not reference.is_dir():
        if out:
            raise LeukoError("-o writes a table of many subjects; give two folders, or use --json")
        row = evaluate(reference, prediction)
        print(json.dumps(json_ready(row), indent=2) if as_json else measures_as_text(row))
        return
    rows = evaluate_folders(reference, prediction)
    table = {**rows, **summarise(rows)}
    if out:
        write_table(out, rows)
    if as_json:
        print(json.dumps({name: json_ready(row) for name, row in table.items()}, indent=2))
    else:
        print(table_as_text(table))


@app.command()
def train(
    context: typer.Context,
    data: Annotated[Path | None, typer.Argument(help="Folder of labelled subjects.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the new run.")] = None,
    recipe: Annotated[
        Literal["modern", "xu2017"], typer.Option(help="How to train; xu2017 is as published.")
    ] = "modern",
    channels: Annotated[
        Literal["flair-t1-residue", "flair-3-slices", "t1-3-slices"] | None,
        typer.Option(help="What the colours of a slice are; flair-t1-residue by default."),
    ] = None,
    init: Annotated[
        str, typer.Option(help="Start: imagenet, none, or a model's name or folder.")
    ] = "imagenet",
    imagenet_weights: Annotated[
        str,
        typer.Option(help="IMAGENET1K_FEATURES, IMAGENET1K_V1, or a file with VGG-16 weights."),
    ] = "IMAGENET1K_FEATURES",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Updates; by default the recipe's.")
    ] = None,
    held_out: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Part of the subjects to measure on, not train with."),
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Decides every random choice.")] = 0,
    device: Device = "cpu",
    threads: Threads = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with a run that was stopped; takes no other setting.")
    ] = None,
) -> None:
    """Train a model on labelled subjects, or go on with a run that was stopped."""
    if resume is not None:
        given = [name for name in context.params if name != "resume" and _is_given(context, name)]
        if given:
            raise LeukoError(f"--resume goes on with the run's own {given[0]}; give it alone")
        _fit(resume)
        return
    if data is None or out is None:
        raise LeukoError("give DATA and -o RUN to start a training, or --resume RUN to go on")
    _require_training_packages()
    from leuko.channels import Preparation
    from leuko.network import SIDE_MAPS, VGG16
    from leuko.recipes import RECIPES
    from leuko.train import CLASSES, Settings, start
    from leuko.weights import find, load_card

    chosen = RECIPES[recipe]
    preparation, stages, side_maps, classes = Preparation(), VGG16, SIDE_MAPS, CLASSES
    if init not in ("imagenet", "none"):
        start_folder = find(init)
        card = load_card(start_folder)
        preparation, classes = card.preparation, card.classes
        stages, side_maps = card.stages, card.side_maps
    if channels is not None:
        preparation = replace(preparation, channels=channels)
    settings = Settings(
        data=str(data.resolve()),
        recipe=replace(chosen, steps=steps or chosen.steps),
        preparation=preparation,
        stages=stages,
        side_maps=side_maps,
        classes=classes,
        init=init if init in ("imagenet", "none") else str(start_folder.resolve()),
        imagenet_weights=imagenet_weights,
        seed=seed,
        held_out=held_out,
    )
    start(out, settings, device=device, threads=threads)
    _fit(out)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="New folder for all that the demo makes.")
    ] = Path("leuko-demo"),
    threads: Threads = None,
) -> None:
    """Put known lesions into the MNI152 brain, segment it with the bundled model, measure."""
    if out.exists():
        raise LeukoError(f"{out} is there already; delete it, or choose another folder with -o")
    from leuko import demo
    from leuko.evaluate import evaluate
    from leuko.segment import segment

    brain = demo.make_subject(out / "brain")
    print(f"made    a brain with known lesions in {brain}")
    result = segment(brain / "FLAIR.nii.gz", brain / "T1.nii.gz", out / "result", threads=threads)
    demo.save_picture(out / "picture.png", brain, out / "result" / "wmh.nii.gz")
    lesions = counted(result.lesions, "lesion")
    seconds = sum(result.seconds.values())
    print(f"found   {result.volume_ml:.2f} mL in {lesions} in {seconds:.1f} s")
    print(f"mask    {out / 'result' / 'wmh.nii.gz'}")
    print(f"picture {out / 'picture.png'}")
    print()
    print(measures_as_text(evaluate(brain / "wmh.nii.gz", out / "result" / "wmh.nii.gz")))


@app.command()
def synth(
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the subjects.")],
    number: Annotated[int, typer.Option("-n", min=1, help="Subjects to make.")] = 1,
    heads: Annotated[
        Path | None,
        typer.Option(help="Folder of FreeSurfer label maps; by default the MNI152 brain."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides every random choice.")] = 0,
) -> None:
    """Make synthetic subjects: FLAIR, T1, wmh and tissue as NIfTI."""
    if out.exists():
        raise LeukoError(f"{out} is there already; delete it, or choose another folder with -o")
    _require_training_packages()
    from leuko.anatomy import from_mni152, load_heads
    from leuko.synthesis import write_subjects

    anatomies = load_heads(heads) if heads else [from_mni152()]
    for folder, volume_ml in write_subjects(out, anatomies, number=number, seed=seed):
        print(f"{folder}  {volume_ml:.2f} mL")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished training.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the model.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Subjects to calibrate on; by default those that trained it."),
    ] = None,
) -> None:
    """Turn a trained model into 8-bit ONNX: a quarter of the size, faster, and without torch."""
    _require_training_packages()
    from leuko.export import export, require_exportable
    from leuko.train import training_slices
    from leuko.weights import ONNX_FILE

    require_exportable(run, out)
    export(run, out, training_slices(run, data))
    print(f"model   {out}  {(out / ONNX_FILE).stat().st_size / 1e6:.1f} MB")


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


def _require_training_packages() -> None:
    """Raises LeukoError without what the extra `train` brings."""
    packages = ("torch", "lightning_fabric", "safetensors", "onnx")
    missing = [name for name in packages if not find_spec(name)]
    if missing:
        raise LeukoError(f'this needs {", ".join(missing)}; pip install "leuko[train]"')


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _fit(run: Path) -> None:
    """Train with a progress bar, print the measures of the held-out subjects."""
    _require_training_packages()
    from leuko.evaluate import mean_with_interval
    from leuko.metrics import MEASURES
    from leuko.train import fit

    try:
        with progress_bar() as on_step:
            measures = fit(run, on_step=on_step)
    except KeyboardInterrupt:
        print(f"stopped; go on with leuko train --resume {run}", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"model   {run}")
    if measures:
        print(f"mean of {counted(len(measures), 'held-out subject')}:")
        for shown in MEASURES:
            mean, low, high = mean_with_interval([row[shown.key] for row in measures.values()])
            interval = interval_text(low, high)
            print(f"  {shown.name:<24}{with_unit(mean, shown.unit)}  {interval}".rstrip())


if __name__ == "__main__":
    main()
