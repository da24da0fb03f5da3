"""The commands for training: train, export and synth."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from leuko.cli.options import Device, Threads
from leuko.cli.text import counted, means_as_text, progress_bar, validation_as_text
from leuko.cli.train_settings import (
    chosen_recipe,
    mixed_network,
    model,
    network,
    require_recipe,
    require_resume_alone,
    require_single,
    require_start,
    resolved,
)
from leuko.errors import TRAINING_LIBRARIES, LeukoError, require

if TYPE_CHECKING:
    from leuko.training.adaptation import Validation

ADAPT_FOLDS = 5
GROUPS = {
    "train": "for training",
    "validation": "for validation",
    "held_out": "held out",
    "unlabelled": "unlabelled",
}


def train(
    context: typer.Context,
    data: Annotated[Path | None, typer.Argument(help="Folder of labelled subjects.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="New folder for the run.")] = None,
    recipe: Annotated[
        Literal["modern", "xu2017", "adapt", "base"],
        typer.Option(
            help="modern; xu2017 (settings of the paper); adapt (fine-tune a model with a few "
            "scans); or base (labelled, synthetic and unlabelled scans, as for the bundled model)."
        ),
    ] = "modern",
    channels: Annotated[
        Literal["flair-t1-residue", "flair-3-slices", "t1-3-slices"] | None,
        typer.Option(
            help="Input channels of the network; by default those of the --init model, else "
            "flair-t1-residue."
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Train on label maps (tissue.nii.gz instead of wmh.nii.gz). Names of the label "
            "values 0, 1, 2, ..., for example background,csf,grey,white. Values with the same name "
            "form one class; values named unknown are ignored."
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Initial weights: imagenet, none (random), or the name or folder of a model; for "
            "base also a file of weights. Default: imagenet; leuko-base for adapt; none for base."
        ),
    ] = None,
    width: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=1,
            help="Width of the network as a fraction of VGG-16, with --init none; 0.5 needs a "
            "quarter of the computation.",
        ),
    ] = 1.0,
    stages: Annotated[
        int,
        typer.Option(min=1, max=5, help="Number of VGG-16 stages; 4 omits the coarsest one."),
    ] = 5,
    imagenet_weights: Annotated[
        str,
        typer.Option(
            help="ImageNet weights: IMAGENET1K_FEATURES, IMAGENET1K_V1, or a file of VGG-16 "
            "weights."
        ),
    ] = "IMAGENET1K_FEATURES",
    imagenet_kind: Annotated[
        Literal["IMAGENET1K_FEATURES", "IMAGENET1K_V1"] | None,
        typer.Option(
            help="Input that a file of VGG-16 weights expects: grey values from 0 to 255 "
            "(IMAGENET1K_FEATURES) or scaled colours (IMAGENET1K_V1). Needed only if Leuko cannot "
            "recognise it."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of each training; by default those of the recipe."),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of cross-validation folds; 0 disables cross-validation. Default: 5 for "
            "adapt, else 0.",
        ),
    ] = None,
    held_out: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Fraction of the people to hold out from training and measure afterwards; not "
            "with --folds.",
        ),
    ] = 0.2,
    patience: Annotated[
        int,
        typer.Option(
            min=0,
            help="Stop early after this many checks of the validation loss (one every 100 steps) "
            "without improvement; 0 disables. A fifth of the people in training are used for "
            "validation.",
        ),
    ] = 0,
    heads: Annotated[
        Path | None,
        typer.Option(
            help="For adapt and base: folder of FreeSurfer label maps from which synthetic images "
            "are made; by default the MNI152 brain."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
    device: Device = "cpu",
    threads: Threads = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the network with torch.compile; may be faster on a GPU."
        ),
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Stop after this many minutes and save the model trained so far; continue with "
            "--resume. Not with --folds.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Folder of an interrupted run to resume; the only other option allowed is "
            "--minutes."
        ),
    ] = None,
    atlas: Annotated[
        Path | None,
        typer.Option(
            help="For base: folder of lesion masks in MNI space, used in synthetic images."
        ),
    ] = None,
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            help="For base: folder of unlabelled scans, <scan>/FLAIR.nii.gz and optionally "
            "T1.nii.gz; the teachers label them.",
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="For base: model or file of weights whose WMH probabilities are training targets "
            "for synthetic and unlabelled images; repeat it to use the mean of several.",
        ),
    ] = None,
    sources: Annotated[
        Path | None,
        typer.Option(
            help="For base: tab-separated table of the sources of all scans, with the columns "
            "name, source, person, weight, credit.",
        ),
    ] = None,
    leave: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="For base: scan, person, source or label map to exclude; can be repeated.",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=1e-9, help="For base: peak learning rate; by default 1e-4."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="For base: processes that make synthetic images; by default 1, or 8 with "
            "--device cuda.",
        ),
    ] = None,
) -> None:
    """Fine-tune or train a model.

    Trains on labelled subjects, or resumes an interrupted run.
    """
    if resume is not None:
        require_resume_alone(context)
        _fit(resume, minutes)
        return
    if data is None or out is None:
        raise LeukoError("give DATA and -o RUN to start a training, or --resume RUN to resume it")
    require(*TRAINING_LIBRARIES, extra="train")
    from leuko.model.imagenet import PUBLISHED
    from leuko.model.weights import DEFAULT
    from leuko.training.plan import is_resumable, start
    from leuko.training.processes import is_first
    from leuko.training.settings import NO_MODELS, Settings

    require_recipe(context, recipe)
    chosen = chosen_recipe(recipe, init, device=device, rate=rate, steps=steps)
    adapts, mixes = recipe == "adapt", recipe == "base"
    folds = (ADAPT_FOLDS if adapts else 0) if folds is None else folds
    if folds:
        require_single(context)
    init = init or {"adapt": DEFAULT, "base": "none"}.get(recipe, "imagenet")
    if adapts and init in NO_MODELS:
        raise LeukoError(
            f"--recipe adapt needs a trained model, but --init is {init}; give a model, or omit "
            "--init"
        )
    require_start(context, init)
    if imagenet_kind and imagenet_weights in PUBLISHED:
        raise LeukoError(
            f"--imagenet-kind is for a file of weights, not {imagenet_weights}; remove it, or give "
            "--imagenet-weights FILE"
        )
    names = () if classes is None else tuple(name.strip() for name in classes.split(","))
    if mixes:
        shape = mixed_network(init, width, stages)
    else:
        shape = network(init, chosen, names, channels, width, stages)
    settings = Settings(
        data=str(data.resolve()),
        recipe=chosen,
        **shape,
        label_names=names,
        imagenet_weights=imagenet_weights,
        imagenet_kind=imagenet_kind,
        seed=seed,
        held_out=0 if folds or mixes else held_out,
        folds=folds,
        patience=patience,
        heads=resolved(heads),
        compiled=compiled,
        atlas=resolved(atlas),
        unlabelled=resolved(unlabelled),
        sources=resolved(sources),
        leave=tuple(leave or ()),
        teachers=tuple(model(name) for name in teacher or ()),
        processes=processes or (8 if device == "cuda" else 1),
    )
    if is_first() and not is_resumable(out, settings, device=device, threads=threads):
        start(out, settings, device=device, threads=threads)
        _print_plan(out)
    _fit(out, minutes)


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished training.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the model.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of labelled subjects from which the 8-bit rounding is computed; by "
            "default the training subjects, which must not have been moved."
        ),
    ] = None,
) -> None:
    """Convert a trained model to 8-bit ONNX.

    The result is a quarter of the size, faster, and does not need PyTorch.
    """
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
        print(f"8 bits  not compared: the model segments nothing on {count} slices")
    else:
        masks = f"Dice {dice:.3f} with the float32 masks, volume {change:+.1f} %"
        print(f"8 bits  {masks}, on {count} slices")


def synth(
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the subjects.")],
    number: Annotated[int, typer.Option("-n", min=1, help="Number of subjects.")] = 1,
    heads: Annotated[
        Path | None,
        typer.Option(help="Folder of FreeSurfer label maps; by default the MNI152 brain."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
) -> None:
    """Make synthetic subjects.

    Writes a FLAIR, a T1, a WMH mask and a tissue map of each, as NIfTI.
    """
    if out.exists():
        raise LeukoError(f"{out} exists already; delete it, or choose another folder with -o")
    require("torch", *([] if heads else ["nilearn"]), extra="train")
    from leuko.synthesis.anatomy import from_mni152, load_heads
    from leuko.synthesis.images import write_subjects

    anatomies = load_heads(heads) if heads else [from_mni152()]
    for folder, volume_ml in write_subjects(out, anatomies, number=number, seed=seed):
        print(f"{folder}  {volume_ml:.2f} mL")


def _print_plan(run: Path) -> None:
    """Print the number of scans, people and training steps."""
    from leuko.training.dataset import person
    from leuko.training.plan import read_settings

    settings, record = read_settings(run)
    names = {group: [s["name"] for s in subjects] for group, subjects in record["subjects"].items()}
    subjects = [subject for group in record["subjects"].values() for subject in group]
    people = len({s.get("person") or person(s["name"]) for s in subjects})
    how = [f"{len(group)} {GROUPS[what]}" for what, group in names.items() if group]
    trainings = 1
    if settings.folds:
        count = min(settings.folds, people)
        fewer = f" instead of {settings.folds}, one per person" if count < settings.folds else ""
        how, trainings = [f"cross-validated in {count} folds{fewer}"], count + 1
    whose = "1 person" if people == 1 else f"{people} people"
    print(f"data    {counted(len(subjects), 'scan')} of {whose}, {', '.join(how)}")
    print(f"steps   {counted(trainings, 'training')} of {settings.recipe.steps}")
    if settings.recipe.mixture:
        print(f"sources {record['card']['training']['data']}")
    sys.stdout.flush()


def _fit(run: Path, minutes: float | None) -> None:
    """Train with a progress bar until the end or the time limit, then print the measures of
    held-out subjects."""
    try:
        require(*TRAINING_LIBRARIES, extra="train")
        from leuko.training import cross_validation, loop, plan, processes

        processes.wait_for(run / plan.RUN_FILE)
        settings = plan.read_settings(run)[0]
        with progress_bar(shown=processes.is_first()) as (on_step, doing):
            if settings.folds and minutes is not None:
                raise LeukoError(
                    f"--minutes does not work with cross-validation, as in {run}; remove it"
                )
            if settings.folds:
                validation = cross_validation.fit(run, on_step=on_step, doing=doing)
            else:
                measures = loop.fit(run, on_step=on_step, doing=doing, minutes=minutes)
    except KeyboardInterrupt:
        print(f"stopped; resume with leuko train --resume {run}", file=sys.stderr)
        raise typer.Exit(130) from None
    if not processes.is_first():
        return
    print(f"model   {run}")
    if not plan.read_settings(run)[1]["finished"]:
        print(f"stopped; resume with leuko train --resume {run}")
        return
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
        print(f"mean of {count}, each measured with a model trained without it:")
        print(means_as_text(validation.after))
        return
    print(f"report  {run / PAGE_FILE}")
    print(validation_as_text(validation))
    print("\n".join(validation.sentences()))
