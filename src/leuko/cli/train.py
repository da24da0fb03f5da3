"""The commands around training: train, export, synth."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from leuko.cli.options import Device, Threads
from leuko.cli.text import counted, means_as_text, progress_bar, validation_as_text
from leuko.errors import TRAINING_LIBRARIES, LeukoError, require

if TYPE_CHECKING:
    from leuko.preprocessing.slices import Channels
    from leuko.training.adaptation import Validation
    from leuko.training.recipes import Recipe

FOLDS = 5  # to adapt
GROUPS = {"train": "to train with", "validation": "to stop by", "held_out": "held out"}


def train(
    context: typer.Context,
    data: Annotated[Path | None, typer.Argument(help="Folder of labelled subjects.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the new run.")] = None,
    recipe: Annotated[
        Literal["modern", "xu2017", "adapt"],
        typer.Option(
            help="How to train; xu2017 has the paper's numbers, adapt is for a few scans."
        ),
    ] = "modern",
    channels: Annotated[
        Literal["flair-t1-residue", "flair-3-slices", "t1-3-slices"] | None,
        typer.Option(help="What the colours of a slice are; flair-t1-residue by default."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Train with label maps, tissue.nii.gz in place of wmh.nii.gz; the names of their "
            "values 0, 1, 2, ..., for example background,csf,grey,white. Values of one name are "
            "one class, those called unknown are not trained with."
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Start: imagenet, none, or a model's name or folder. By default imagenet, and "
            "leuko-base to adapt."
        ),
    ] = None,
    width: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=1,
            help="Fraction of VGG-16's channels, with --init none; 0.5 is a quarter of the work.",
        ),
    ] = 1.0,
    stages: Annotated[
        int,
        typer.Option(
            min=1, max=5, help="Stages of VGG-16, the finest first; 4 drops the coarsest."
        ),
    ] = 5,
    imagenet_weights: Annotated[
        str,
        typer.Option(help="IMAGENET1K_FEATURES, IMAGENET1K_V1, or a file with VGG-16 weights."),
    ] = "IMAGENET1K_FEATURES",
    imagenet_kind: Annotated[
        Literal["IMAGENET1K_FEATURES", "IMAGENET1K_V1"] | None,
        typer.Option(
            help="Which of the two a file's weights are like: for grey values from 0 to 255, or "
            "for scaled colours. Asked for where the file's values do not tell."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Updates of each training; by default the recipe's.")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=0, help="Parts to cross-validate with; by default 5 to adapt, else 0: none."
        ),
    ] = None,
    held_out: Annotated[
        float,
        typer.Option(
            min=0, max=0.9, help="Part of the subjects to measure on, not train with; no folds."
        ),
    ] = 0.2,
    patience: Annotated[
        int,
        typer.Option(
            min=0,
            help="A fifth of the training subjects is left out, and its loss looked at every 100 "
            "steps; stop after so many looks without a new lowest. 0: never.",
        ),
    ] = 0,
    heads: Annotated[
        Path | None,
        typer.Option(
            help="FreeSurfer label maps for synthetic images, which adapt mixes in; by default the "
            "MNI152 brain."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides every random choice.")] = 0,
    device: Device = "cpu",
    threads: Threads = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="By torch.compile: may pay on a GPU.")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Resume an interrupted run; takes no other setting.")
    ] = None,
) -> None:
    """Train a model on labelled subjects, or resume an interrupted run."""
    if resume is not None:
        for parameter in context.command.params:
            if parameter.name not in (None, "resume") and _is_given(context, parameter.name):
                given = parameter.opts[0] if parameter.param_type_name == "option" else "DATA"
                raise LeukoError(f"--resume takes the settings of the run; remove {given}")
        _fit(resume)
        return
    if data is None or out is None:
        raise LeukoError("give DATA and -o RUN to start a training, or --resume RUN to resume one")
    require(*TRAINING_LIBRARIES, extra="train")
    from leuko.model.imagenet import PUBLISHED
    from leuko.model.weights import DEFAULT
    from leuko.training import processes
    from leuko.training.plan import start
    from leuko.training.recipes import FROM_NOTHING, RECIPES
    from leuko.training.settings import NO_MODELS, Settings

    chosen = FROM_NOTHING if (recipe, init) == ("modern", "none") else RECIPES[recipe]
    adapts = recipe == "adapt"
    folds = (FOLDS if adapts else 0) if folds is None else folds
    if folds and _is_given(context, "held_out"):
        raise LeukoError("with --folds each subject is held out once; leave --held-out away")
    init = init or (DEFAULT if adapts else "imagenet")
    if adapts and init in NO_MODELS:
        raise LeukoError(f"--recipe adapt needs a trained model; --init is {init}")
    _require_start(context, init)
    if imagenet_kind and imagenet_weights in PUBLISHED:
        raise LeukoError("--imagenet-kind goes with --imagenet-weights FILE")
    names = () if classes is None else tuple(name.strip() for name in classes.split(","))
    settings = Settings(
        data=str(data.resolve()),
        recipe=replace(chosen, steps=steps or chosen.steps),
        **_network(init, chosen, names, channels, width, stages),
        label_names=names,
        imagenet_weights=imagenet_weights,
        imagenet_kind=imagenet_kind,
        seed=seed,
        held_out=0 if folds else held_out,
        folds=folds,
        patience=patience,
        heads=str(heads.resolve()) if heads else None,
        compiled=compiled,
    )
    if processes.is_first():
        start(out, settings, device=device, threads=threads)
        _print_plan(out)
    _fit(out)


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished training.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the model.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Subjects that tell the range of 8 bits; by default those that trained it, which "
            "must still be there."
        ),
    ] = None,
) -> None:
    """Turn a trained model into 8-bit ONNX: a quarter of the size, faster, and without torch."""
    require(*TRAINING_LIBRARIES, extra="train")
    from leuko.model.card import ONNX_FILE
    from leuko.model.onnx_export import export, require_exportable
    from leuko.training.loop import rounding, training_slices

    require_exportable(run, out)
    slices = training_slices(run, data)
    export(run, out, slices)
    print(f"model   {out}  {(out / ONNX_FILE).stat().st_size / 1e6:.1f} MB")
    count, dice, change = rounding(run, out, slices)
    if math.isnan(change):
        print(f"8 bits  not compared: nothing was found on {count} slices")
    else:
        masks = f"Dice {dice:.3f} with the masks of float32, {change:+.1f} % of their volume"
        print(f"8 bits  {masks}, on {count} slices")


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
    require("torch", *([] if heads else ["nilearn"]), extra="train")
    from leuko.synthesis.anatomy import from_mni152, load_heads
    from leuko.synthesis.images import write_subjects

    anatomies = load_heads(heads) if heads else [from_mni152()]
    for folder, volume_ml in write_subjects(out, anatomies, number=number, seed=seed):
        print(f"{folder}  {volume_ml:.2f} mL")


def _require_start(context: typer.Context, init: str) -> None:
    """Raises LeukoError for an option of another start."""
    for name, starts, why in (
        ("imagenet_weights", ("imagenet",), f"the start is {init}"),
        ("imagenet_kind", ("imagenet",), f"the start is {init}"),
        ("width", ("none",), f"{init} has its own"),
        ("stages", ("imagenet", "none"), f"{init} has its own"),
    ):
        if init not in starts and _is_given(context, name):
            option = f"--{name.replace('_', '-')}"
            raise LeukoError(f"{option} goes with --init {' or '.join(starts)}; {why}")


def _network(
    init: str,
    recipe: "Recipe",
    names: tuple[str, ...],
    channels: "Channels | None",
    width: float,
    stages: int,
) -> dict[str, Any]:
    """The settings that say what is trained, which a model to start from decides."""
    from leuko.evaluation.labels import WMH_LABELS, tissue_labels
    from leuko.model.card import load_card
    from leuko.model.network import vgg16
    from leuko.model.weights import find
    from leuko.preprocessing.slices import Preparation
    from leuko.training.settings import NO_MODELS

    if init in NO_MODELS:
        preparation = Preparation(channels=channels) if channels else Preparation()
        if recipe.opening_mm2:
            preparation = replace(preparation, opening_mm2=recipe.opening_mm2)
        return {
            "init": init,
            "preparation": preparation,
            "stages": vgg16(width)[:stages],
            "classes": (tissue_labels(names) if names else WMH_LABELS).classes,
        }
    folder = find(init)
    card = load_card(folder)
    if channels not in (None, card.preparation.channels):
        raise LeukoError(
            f"{init} was trained with the channels {card.preparation.channels}, and knows no "
            "other; leave --channels away, or start from imagenet"
        )
    return {
        "init": str(folder.resolve()),
        "preparation": card.preparation,
        "stages": card.stages,
        "side_maps": card.side_maps,
        "classes": card.classes,
    }


def _print_plan(run: Path) -> None:
    """What is going to be trained with what."""
    from leuko.training.dataset import person
    from leuko.training.plan import read_settings

    settings, record = read_settings(run)
    names = {group: [s["name"] for s in subjects] for group, subjects in record["subjects"].items()}
    everyone = [name for group in names.values() for name in group]
    people = len({person(name) for name in everyone})
    how = [f"{len(group)} {GROUPS[what]}" for what, group in names.items() if group]
    trainings = 1
    if settings.folds:
        count = min(settings.folds, people)
        fewer = f", not {settings.folds}: one for each person" if count < settings.folds else ""
        how, trainings = [f"cross-validated in {count} folds{fewer}"], count + 1
    whose = "1 person" if people == 1 else f"{people} people"
    print(f"data    {counted(len(everyone), 'scan')} of {whose}, {', '.join(how)}")
    print(f"steps   {counted(trainings, 'training')} of {settings.recipe.steps}", flush=True)


def _fit(run: Path) -> None:
    """Train with a progress bar, print the measures of subjects that were not trained with."""
    try:
        require(*TRAINING_LIBRARIES, extra="train")
        from leuko.training import cross_validation, loop, plan, processes

        processes.wait_for(run / plan.RUN_FILE)
        settings = plan.read_settings(run)[0]
        with progress_bar(shown=processes.is_first()) as (on_step, doing):
            if settings.folds:
                validation = cross_validation.fit(run, on_step=on_step, doing=doing)
            else:
                measures = loop.fit(run, on_step=on_step, doing=doing)
    except KeyboardInterrupt:
        print(f"stopped; resume with leuko train --resume {run}", file=sys.stderr)
        raise typer.Exit(130) from None
    if not processes.is_first():
        return
    print(f"model   {run}")
    if settings.folds and validation:
        _print_validation(run, validation)
    elif measures:
        print(f"mean of {counted(len(measures), 'held-out subject')}:")
        if not settings.label_names:
            print(means_as_text(measures))
        for name in settings.classes[1:] if settings.label_names else ():
            print(name)
            print(means_as_text(measures, prefix=f"{name}_"))


def _print_validation(run: Path, validation: "Validation") -> None:
    from leuko.training.cross_validation import PAGE_FILE

    if not validation.before:
        count = counted(len(validation.after), "subject")
        print(f"mean of {count}, each by a model that had not seen it:")
        print(means_as_text(validation.after))
        return
    print(f"report  {run / PAGE_FILE}")
    print(validation_as_text(validation))
    print("\n".join(validation.sentences()))


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
