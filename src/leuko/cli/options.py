"""Options that several commands share, each declared once."""

import functools
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Device = Annotated[Literal["cpu", "cuda", "mps"], typer.Option(help="Where the network runs.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Processors to use; by default all that are allowed.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write the results into.")]
Model = Annotated[str, typer.Option(help="A model's name (leuko models list) or folder.")]

# The options of `SegmentSettings`: for each its field, its type and its default.
SETTINGS: dict[str, tuple[str, Any, Any]] = {
    "model": ("model", Model, "leuko-base"),
    "threshold": (
        "threshold",
        Annotated[
            float | None,
            typer.Option(help="Smallest WMH probability; by default the model's, with interval."),
        ],
        None,
    ),
    "min_lesion_mm3": (
        "smallest_lesion_mm3",
        Annotated[float | None, typer.Option(help="Smallest lesion kept; by default the model's.")],
        None,
    ),
    "rims": (
        "rims",
        Annotated[
            Literal["separate", "include", "exclude"],
            typer.Option(
                help="Normal caps and rims of the ventricles: beside the mask, counted as WMH, or "
                "left out."
            ),
        ],
        "separate",
    ),
    "align": (
        "alignment",
        Annotated[
            Literal["auto", "always", "never"],
            typer.Option(help="Register the T1 to the FLAIR: if needed, always, never."),
        ],
        "auto",
    ),
    "pv_rule": (
        "rule",
        Annotated[
            Literal["voxel10", "shiva2", "contiguity"],
            typer.Option(
                help="What is periventricular: voxels up to 10 mm from the lateral ventricles; "
                "lesions within 2 mm of them; lesions that touch them."
            ),
        ],
        "voxel10",
    ),
    "bias_correction": (
        "bias_correction",
        Annotated[
            bool, typer.Option("--bias-correction", help="Correct the bias fields first (N4).")
        ],
        False,
    ),
    "strict": (
        "strict",
        Annotated[
            bool,
            typer.Option("--strict", help="Refuse what does not look like a FLAIR of a head."),
        ],
        False,
    ),
    "lenient": (
        "strict",
        Annotated[
            bool,
            typer.Option(
                "--lenient", help="Keep results of what does not look like a FLAIR of a head."
            ),
        ],
        False,
    ),
    "device": ("device", Device, "cpu"),
    "threads": ("threads", Threads, None),
}


Command = Callable[..., None]


def with_settings(*, without: Collection[str], **fixed: Any) -> Callable[[Command], Command]:
    """The command has all options but those `without` in place of its parameter `settings`.

    That is a `SegmentSettings`; `fixed` are settings that are no option of the command.
    """

    names = [name for name in SETTINGS if name not in without]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            from leuko.segment import SegmentSettings

            chosen = {SETTINGS[name][0]: given.pop(name) for name in names}
            if "lenient" in names:
                chosen["strict"] = not chosen["strict"]
            command(settings=SegmentSettings(**chosen, **fixed), **given)

        by_name = inspect.Parameter.KEYWORD_ONLY
        own = inspect.signature(command)
        parameters = [
            parameter.replace(kind=by_name)
            for parameter in own.parameters.values()
            if parameter.name != "settings"
        ] + [
            inspect.Parameter(name, by_name, annotation=kind, default=default)
            for name in names
            for _, kind, default in [SETTINGS[name]]
        ]
        run.__dict__["__signature__"] = own.replace(parameters=parameters)
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate
