"""The commands around training: train, export, synth."""

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

FOLDS = 5  # to adapt
GROUPS = {
    "train": "to train with",
    "validation": "to stop by",
    "held_out": "held out",
    "unlabelled": "unlabelled",
}


def train(
    context: typer.Context,
    data: Annotated[Path | None, typer.Argument(help="Folder of labelled subjects.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the new run.")] = None,
    recipe: Annotated[
        Literal["modern", "xu2017", "adapt", "base"],
        typer.Option(
            help="How to train; xu2017 has the paper's numbers, adapt is for a few scans, base "
            "mixes labelled, synthetic and unlabelled scans."
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
            help="Start: imagenet, none, or a model's name or folder. By default imagenet, "
            "leuko-base to adapt, and none for base, which also takes a file of weights."
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
            help="FreeSurfer label maps for synthetic images, which adapt and base mix in; by "
            "default the MNI152 brain."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides every random choice.")] = 0,
    device: Device = "cpu",
    threads: Threads = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="By torch.compile: may pay on a GPU.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Stop after so long, with the model as it is then; --resume resumes. No folds.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Resume an interrupted run; takes no other setting, but --minutes."),
    ] = None,
    atlas: Annotated[
        Path | None,
        typer.Option(help="For base: lesion masks in MNI space for synthetic images."),
    ] = None,
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            help="For base: folder of <scan>/FLAIR.nii.gz, and T1.nii.gz, that the teachers label.",
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="For base: a model, or a file of weights, whose probabilities synthetic and "
            "unlabelled images are trained with too; repeat it for the mean of several.",
        ),
    ] = None,
    sources: Annotated[
        Path | None,
        typer.Option(
            help="For base: table of the sources of all scans, separated by tabs: name, source, "
            "person, weight, credit.",
        ),
    ] = None,
    leave: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="For base: scan, person, source or label map to leave out; repeat it for others.",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=1e-9, help="For base: highest learning rate, 1e-4 by default."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="For base: processes that make synthetic images; by default 1, on a GPU 8.",
        ),
    ] = None,
) -> None:
    """Train a model on labelled subjects, or resume an interrupted run."""
    if resume is not None:
        require_resume_alone(context)
        _fit(resume, minutes)
        return
    if data is None or out is None:
        raise LeukoError("give DATA and -o RUN to start a training, or --resume RUN to resume one")
    require(*TRAINING_LIBRARIES, extra="train")
    from leuko.model.imagenet import PUBLISHED
    from leuko.model.weights import DEFAULT
    from leuko.training.plan import begun, start
    from leuko.training.processes import is_first
    from leuko.training.settings import NO_MODELS, Settings

    require_recipe(context, recipe)
    chosen = chosen_recipe(recipe, init, device=device, rate=rate, steps=steps)
    adapts, mixes = recipe == "adapt", recipe == "base"
    folds = (FOLDS if adapts else 0) if folds is None else folds
    if folds:
        require_single(context)
    init = init or {"adapt": DEFAULT, "base": "none"}.get(recipe, "imagenet")
    if adapts and init in NO_MODELS:
        raise LeukoError(f"--recipe adapt needs a trained model; --init is {init}")
    require_start(context, init)
    if imagenet_kind and imagenet_weights in PUBLISHED:
        raise LeukoError("--imagenet-kind goes with --imagenet-weights FILE")
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
    if is_first() and not begun(out, settings, device=device, threads=threads):
        start(out, settings, device=device, threads=threads)
        _print_plan(out)
    _fit(out, minutes)


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


def _print_plan(run: Path) -> None:
    """What is going to be trained with what."""
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
        fewer = f", not {settings.folds}: one for each person" if count < settings.folds else ""
        how, trainings = [f"cross-validated in {count} folds{fewer}"], count + 1
    whose = "1 person" if people == 1 else f"{people} people"
    print(f"data    {counted(len(subjects), 'scan')} of {whose}, {', '.join(how)}")
    print(f"steps   {counted(trainings, 'training')} of {settings.recipe.steps}")
    if settings.recipe.mixture:
        print(f"seen    {record['card']['training']['data']}")
    sys.stdout.flush()


def _fit(run: Path, minutes: float | None) -> None:
    """Train with a progress bar for so many minutes, print the measures of subjects that were not
    trained with."""
    try:
        require(*TRAINING_LIBRARIES, extra="train")
        from leuko.training import cross_validation, loop, plan, processes

        processes.wait_for(run / plan.RUN_FILE)
        settings = plan.read_settings(run)[0]
        with progress_bar(shown=processes.is_first()) as (on_step, doing):
            if settings.folds and minutes is not None:
                raise LeukoError(f"{run} is cross-validated; --minutes is for a single training")
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
        print(f"mean of {count}, each by a model that had not seen it:")
        print(means_as_text(validation.after))
        return
    print(f"report  {run / PAGE_FILE}")
    print(validation_as_text(validation))
    print("\n".join(validation.sentences()))
