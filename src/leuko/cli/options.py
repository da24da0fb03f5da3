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
Label = Annotated[
    str | None,
    typer.Option(help="Name of the scan or person, shown in the report, also when printed."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write the results into.")]
Model = Annotated[str, typer.Option(help="Name (leuko models list) or folder of a model.")]

# Options of `SegmentSettings`: field, type, default.
SETTINGS: dict[str, tuple[str, Any, Any]] = {
    "model": ("model", Model, "leuko-base"),
    "threshold": (
        "threshold",
        Annotated[
            float | None,
            typer.Option(
                help="Threshold of the WMH probability; by default that of the model. With another "
                "threshold, the volume has no interval."
            ),
        ],
        None,
    ),
    "min_lesion_mm3": (
        "smallest_lesion_mm3",
        Annotated[
            float | None,
            typer.Option(
                help="Volume of the smallest lesion that is kept; by default that of the model. "
                "With another one, the volume has no interval."
            ),
        ],
        None,
    ),
    "rims": (
        "rims",
        Annotated[
            Literal["separate", "include", "exclude"],
            typer.Option(
                help="Normal caps and rims of the ventricles: separate (a mask of their own), "
                "include (in the mask), or exclude."
            ),
        ],
        "separate",
    ),
    "align": (
        "alignment",
        Annotated[
            Literal["auto", "always", "never"],
            typer.Option(help="Register the T1 to the FLAIR: auto (if needed), always or never."),
        ],
        "auto",
    ),
    "pv_rule": (
        "rule",
        Annotated[
            Literal["voxel10", "shiva2", "contiguity", "mcdonald2017"],
            typer.Option(
                help="Rule for periventricular WMH. voxel10: voxels within 10 mm of the lateral "
                "ventricles. shiva2: lesions that touch them or come within 2 mm. contiguity: "
                "lesions that touch them. mcdonald2017: as shiva2, and other lesions at the cortex "
                "are juxtacortical."
            ),
        ],
        "voxel10",
    ),
    "bias_correction": (
        "bias_correction",
        Annotated[
            bool,
            typer.Option(
                "--bias-correction", help="Correct both scans for bias fields first (N4)."
            ),
        ],
        False,
    ),
    "lesion_label": (
        "lesion_labels",
        Annotated[
            list[int] | None,
            typer.Option(
                help="Label of WMH in the given mask, such as 99 of SAMSEG or 77 of FreeSurfer; "
                "repeat it for several. Needed if the mask has several labels."
            ),
        ],
        None,
    ),
    "fill": (
        "fill",
        Annotated[
            bool,
            typer.Option(
                "--fill",
                help="Also write the T1, on its own grid, with WMH filled from normal white "
                "matter, for FreeSurfer, FastSurfer or CAT12.",
            ),
        ],
        False,
    ),
    "save_mni": (
        "save_mni",
        Annotated[
            bool,
            typer.Option(
                "--save-mni", help="Also write mask, probability and FLAIR in MNI152 space."
            ),
        ],
        False,
    ),
    "atlas": (
        "atlas",
        Annotated[
            Path | None,
            typer.Option(
                help="Atlas, a label image in MNI152 space: also give WMH by its regions."
            ),
        ],
        None,
    ),
    "atlas_names": (
        "atlas_names",
        Annotated[
            Path | None,
            typer.Option(
                help="Names of the labels of --atlas: TSV with the columns index and name."
            ),
        ],
        None,
    ),
    "strict": (
        "strict",
        Annotated[
            bool,
            typer.Option(
                "--strict", help="Refuse a scan that does not look like a FLAIR of a head."
            ),
        ],
        False,
    ),
    "lenient": (
        "strict",
        Annotated[
            bool,
            typer.Option(
                "--lenient", help="Also segment scans that do not look like a FLAIR of a head."
            ),
        ],
        False,
    ),
    "device": ("device", Device, "cpu"),
    "threads": ("threads", Threads, None),
}


# Options that write more than the mask and its numbers.
EXTRAS = {"fill", "save_mni", "atlas", "atlas_names"}

Command = Callable[..., None]


def with_settings(*, without: Collection[str], **fixed: Any) -> Callable[[Command], Command]:
    """Give a command the options of `SegmentSettings` in place of its parameter `settings`.

    It has none of the options `without`; `fixed` are settings that are not options.
    """

    names = [name for name in SETTINGS if name not in without]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            from leuko.segment import SegmentSettings

            chosen = {SETTINGS[name][0]: given.pop(name) for name in names}
            if "lesion_label" in names:
                chosen["lesion_labels"] = tuple(chosen["lesion_labels"] or ())
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
