"""The options of `leuko train` that depend on each other become settings."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leuko.errors import LeukoError

if TYPE_CHECKING:
    from leuko.preprocessing.slices import Channels
    from leuko.training.recipes import Recipe

SUBJECT_OPTIONS = ("folds", "held_out", "patience", "channels", "classes")
MIXED_OPTIONS = (
    "atlas", "unlabelled", "teacher", "sources", "leave", "rate", "processes",
)  # fmt: skip


def require_resume_alone(context: typer.Context) -> None:
    """Raises LeukoError for an option that --resume does not take."""
    for parameter in context.command.params:
        if parameter.name not in {None, "resume", "minutes"} and is_given(context, parameter.name):
            given = parameter.opts[0] if parameter.param_type_name == "option" else "DATA"
            raise LeukoError(f"--resume takes the settings of the run; remove {given}")


def require_single(context: typer.Context) -> None:
    """Raises LeukoError for an option of a training without cross-validation."""
    if is_given(context, "held_out"):
        raise LeukoError("with --folds each subject is held out once; leave --held-out away")
    if is_given(context, "minutes"):
        raise LeukoError("--minutes is for a single training; leave it away, or use --folds 0")


def chosen_recipe(
    name: str, init: str | None, *, device: str, rate: float | None, steps: int | None
) -> "Recipe":
    """The recipe of that name, for a start and a device."""
    from leuko.training.recipes import BASE_ON_GPU, FROM_NOTHING, RECIPES, with_rate

    recipe = RECIPES[name]
    if (name, init) == ("modern", "none"):
        recipe = FROM_NOTHING
    elif (name, device) == ("base", "cuda"):
        recipe = BASE_ON_GPU
    if rate:
        recipe = with_rate(recipe, rate)
    return replace(recipe, steps=steps or recipe.steps)


def require_recipe(context: typer.Context, recipe: str) -> None:
    """Raises LeukoError for an option of another recipe."""
    for names, recipes in (
        (MIXED_OPTIONS, ("base",)),
        (SUBJECT_OPTIONS, ("modern", "xu2017", "adapt")),
    ):
        for name in names:
            if recipe not in recipes and is_given(context, name):
                option = f"--{name.replace('_', '-')}"
                raise LeukoError(f"{option} goes with --recipe {' or '.join(recipes)}")


def resolved(path: Path | None) -> str | None:
    return str(path.resolve()) if path else None


def model(name: str) -> str:
    """The path of a model, or of a file of weights."""
    from leuko.model.weights import find
    from leuko.training.storage import is_file

    return str((Path(name) if is_file(name) else find(name)).resolve())


def mixed_network(init: str, width: float, stages: int) -> dict[str, Any]:
    """The settings of the recipe base that say what is trained."""
    from leuko.io.tissue import CLASSES
    from leuko.model.network import vgg16
    from leuko.training.settings import MIXED, NO_MODELS
    from leuko.training.storage import read_weights

    shape: dict[str, Any] = {"init": init, "stages": vgg16(width)[:stages]}
    if init not in NO_MODELS:
        path = model(init)
        weights = read_weights(path)
        shape = {"init": path, "stages": weights.stages, "side_maps": weights.side_maps}
    return {"classes": CLASSES, "preparation": MIXED, **shape}


def require_start(context: typer.Context, init: str) -> None:
    """Raises LeukoError for an option of another start."""
    for name, starts, why in (
        ("imagenet_weights", ("imagenet",), f"the start is {init}"),
        ("imagenet_kind", ("imagenet",), f"the start is {init}"),
        ("width", ("none",), f"{init} has its own"),
        ("stages", ("imagenet", "none"), f"{init} has its own"),
    ):
        if init not in starts and is_given(context, name):
            option = f"--{name.replace('_', '-')}"
            raise LeukoError(f"{option} goes with --init {' or '.join(starts)}; {why}")


def network(
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


def is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
