"""The commands around training: train, export, synth."""

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from leuko.cli_options import Device, Threads
from leuko.errors import LeukoError
from leuko.terminal import counted, interval_text, progress_bar, with_unit


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
    from leuko.plan import CLASSES, Settings, start
    from leuko.recipes import RECIPES
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


def _require_training_packages() -> None:
    """Raises LeukoError without what the extra `train` brings."""
    packages = ("torch", "lightning_fabric", "safetensors", "onnx")
    missing = [name for name in packages if not find_spec(name)]
    if missing:
        raise LeukoError(f'this needs {", ".join(missing)}; pip install "leuko[train]"')


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
