"""Checks the options of `leuko train` against each other and turns them into settings."""

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
    """Raises LeukoError for an option that is not allowed with --resume."""
    for parameter in context.command.params:
        if parameter.name not in {None, "resume", "minutes"} and is_given(context, parameter.name):
            given = parameter.opts[0] if parameter.param_type_name == "option" else "DATA"
            raise LeukoError(f"--resume uses the settings of the run; remove {given}")


def require_single(context: typer.Context) -> None:
    """Raises LeukoError for an option that is not allowed with cross-validation."""
    if is_given(context, "held_out"):
        raise LeukoError(
            "--held-out does not work with cross-validation, which holds out each subject once; "
            "remove it, or use --folds 0"
        )
    if is_given(context, "minutes"):
        raise LeukoError(
            "--minutes does not work with cross-validation; remove it, or use --folds 0"
        )


def chosen_recipe(
    name: str, init: str | None, *, device: str, rate: float | None, steps: int | None
) -> "Recipe":
    """The recipe of that name, adjusted to the initial weights, device, rate and steps."""
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
    """Raises LeukoError for an option that the recipe does not have."""
    for names, recipes in (
        (MIXED_OPTIONS, ("base",)),
        (SUBJECT_OPTIONS, ("modern", "xu2017", "adapt")),
    ):
        for name in names:
            if recipe not in recipes and is_given(context, name):
                option = f"--{name.replace('_', '-')}"
                raise LeukoError(
                    f"{option} does not work with --recipe {recipe}; remove it, or use --recipe "
                    f"{' or '.join(recipes)}"
                )


def resolved(path: Path | None) -> str | None:
    return str(path.resolve()) if path else None


def model(name: str) -> str:
    """The path of a model folder or a file of weights."""
    from leuko.model.weights import find
    from leuko.training.storage import is_file

    return str((Path(name) if is_file(name) else find(name)).resolve())


def mixed_network(init: str, width: float, stages: int) -> dict[str, Any]:
    """The settings of the network and its input for the recipe base."""
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
    """Raises LeukoError for an option that does not apply to the initial weights."""
    for name, starts in (
        ("imagenet_weights", ("imagenet",)),
        ("imagenet_kind", ("imagenet",)),
        ("width", ("none",)),
        ("stages", ("imagenet", "none")),
    ):
        if init not in starts and is_given(context, name):
            option = f"--{name.replace('_', '-')}"
            raise LeukoError(
                f"{option} does not work with --init {init}; remove it, or use --init "
                f"{' or '.join(starts)}"
            )


def network(
    init: str,
    recipe: "Recipe",
    names: tuple[str, ...],
    channels: "Channels | None",
    width: float,
    stages: int,
) -> dict[str, Any]:
    """The settings of the network and its input; those of the initial model, if there is one."""
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
            f"--channels {channels} does not work with {init}, which was trained with "
            f"{card.preparation.channels}; remove it, or use --init imagenet"
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
