"""The commands, and the only place that prints: results to stdout, all else to stderr.

What a command needs is imported inside it, so that `leuko --help` loads nothing heavy.
"""

import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from leuko.errors import LeukoError

if TYPE_CHECKING:
    from leuko.train import Progress as At

app = typer.Typer(
    help="Find white matter hyperintensities in brain MRI.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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
    flair: Annotated[Path, typer.Option(help="FLAIR scan, NIfTI.")],
    model: Annotated[Path, typer.Option(help="Model folder, as leuko train writes it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the results into.")],
    t1: Annotated[Path | None, typer.Option(help="T1 scan of the same brain, aligned.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Smallest WMH probability; by default the model's.")
    ] = None,
    min_lesion_mm3: Annotated[
        float | None, typer.Option(help="Smallest lesion kept; by default the model's.")
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Segment one brain: write wmh.nii.gz, wmh_prob.nii.gz and run.json."""
    from leuko.segment import segment

    result = segment(
        flair,
        t1,
        out,
        model=model,
        threshold=threshold,
        smallest_lesion_mm3=min_lesion_mm3,
        device=device,
        threads=threads,
    )
    print(f"WMH volume  {result.volume_ml:.2f} mL in {_count(result.lesions, 'lesion')}")
    print(f"mask        {out / 'wmh.nii.gz'}")
    print(f"probability {out / 'wmh_prob.nii.gz'}")
    print(f"record      {out / 'run.json'}")
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
        print(json.dumps(json_ready(row), indent=2) if as_json else _measures_as_text(row))
        return
    rows = evaluate_folders(reference, prediction)
    table = {**rows, **summarise(rows)}
    if out:
        write_table(out, rows)
    if as_json:
        print(json.dumps({name: json_ready(row) for name, row in table.items()}, indent=2))
    else:
        print(_table_as_text(table))


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
        str, typer.Option(help="Start: imagenet, none, or the folder of a trained model.")
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
    _require_training()
    from leuko.channels import Preparation
    from leuko.network import SIDE_MAPS, VGG16
    from leuko.recipes import RECIPES
    from leuko.train import Settings, start
    from leuko.weights import load_card

    chosen = RECIPES[recipe]
    preparation, stages, side_maps = Preparation(), VGG16, SIDE_MAPS
    if init not in ("imagenet", "none"):
        card = load_card(Path(init))
        preparation, stages, side_maps = card.preparation, card.stages, card.side_maps
    if channels is not None:
        preparation = replace(preparation, channels=channels)
    settings = Settings(
        data=str(data.resolve()),
        recipe=replace(chosen, steps=steps or chosen.steps),
        preparation=preparation,
        stages=stages,
        side_maps=side_maps,
        init=init if init in ("imagenet", "none") else str(Path(init).resolve()),
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
    """Train a small network on made-up heads, segment an unseen one, measure: about a minute."""
    if out.exists():
        raise LeukoError(f"{out} is there already; delete it, or choose another folder with -o")
    _require_training()
    from leuko import demo
    from leuko.evaluate import evaluate
    from leuko.segment import segment
    from leuko.train import start

    head = demo.make_heads(out)
    print(f"made    {demo.TRAINING_HEADS} labelled heads in {out / 'training'}, 1 in {head}")
    start(out / "run", demo.settings(out / "training"), threads=threads)
    _fit(out / "run")
    result = segment(
        head / "FLAIR.nii.gz",
        head / "T1.nii.gz",
        out / "result",
        model=out / "run",
        threads=threads,
    )
    demo.save_picture(out / "picture.png", head, out / "result" / "wmh.nii.gz")
    lesions = _count(result.lesions, "lesion")
    print(f"found   {result.volume_ml:.2f} mL in {lesions} in the unseen head")
    print(f"mask    {out / 'result' / 'wmh.nii.gz'}")
    print(f"picture {out / 'picture.png'}")
    print()
    print(_measures_as_text(evaluate(head / "wmh.nii.gz", out / "result" / "wmh.nii.gz")))


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


def _require_training() -> None:
    """Raises LeukoError without the extra that training needs."""
    missing = [name for name in ("torch", "lightning_fabric", "safetensors") if not find_spec(name)]
    if missing:
        raise LeukoError(f'training needs {", ".join(missing)}; pip install "leuko[train]"')


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _fit(run: Path) -> None:
    """Train with a progress bar, print the measures of the held-out subjects."""
    _require_training()
    from leuko.evaluate import mean_with_interval
    from leuko.metrics import MEASURES
    from leuko.train import fit

    try:
        with _progress_bar() as on_step:
            measures = fit(run, on_step=on_step)
    except KeyboardInterrupt:
        print(f"stopped; go on with leuko train --resume {run}", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"model   {run}")
    if measures:
        print(f"mean of {_count(len(measures), 'held-out subject')}:")
        for shown in MEASURES:
            mean, low, high = mean_with_interval([row[shown.key] for row in measures.values()])
            print(f"  {shown.name:<24}{_value(mean, shown.unit)}  {_interval(low, high)}".rstrip())


@contextmanager
def _progress_bar() -> Iterator[Callable[["At"], None]]:
    """A bar on a terminal; elsewhere a line for every tenth of the way."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4g}  {task.fields[speed]:.1f} images/s"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task("training", total=None, loss=math.nan, speed=math.nan)

    def on_step(at: "At") -> None:
        bar.update(
            task, total=at.steps, completed=at.step, loss=at.loss, speed=at.images_per_second
        )
        tenth = max(1, at.steps // 10)
        if not console.is_terminal and (at.step % tenth == 0 or at.step == at.steps):
            speed = f"{at.images_per_second:.1f} images/s"
            print(f"step {at.step}/{at.steps}  loss {at.loss:.4g}  {speed}", file=sys.stderr)

    with bar:
        yield on_step


def _measures_as_text(row: Mapping[str, float]) -> str:
    from leuko.metrics import MEASURES

    lines = [f"{m.name:<24}{_value(row[m.key], m.unit):<12}{m.better} is better" for m in MEASURES]
    for side in ("reference", "prediction"):
        lesions = _count(int(row[f"{side}_lesions"]), "lesion")
        lines.append(f"{side:<24}{row[f'{side}_ml']:.2f} mL in {lesions}")
    return "\n".join(lines)


def _table_as_text(rows: Mapping[str, Mapping[str, float]]) -> str:
    from leuko.evaluate import COLUMNS

    width = max(len(name) for name in ("subject", *rows))
    lines = ["  ".join([f"{'subject':<{width}}", *COLUMNS])]
    for name, row in rows.items():
        cells = [f"{_value(row[column], ''):>{len(column)}}" for column in COLUMNS]
        lines.append("  ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)


def _value(value: float, unit: str) -> str:
    """A number with its unit; undefined measures as n/a."""
    if math.isnan(value):
        return "n/a"
    return f"{value:.3g} {unit}".rstrip() if abs(value) < 1000 else f"{value:.0f} {unit}".rstrip()


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"95 % interval {low:.3g} to {high:.3g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


if __name__ == "__main__":
    main()
