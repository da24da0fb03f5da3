"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Device = Annotated[Literal["cpu", "cuda", "mps"], typer.Option(help="Where the network runs.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Processors to use; by default all that are allowed.")
]
Model = Annotated[str, typer.Option(help="A model's name (leuko models list) or folder.")]
Threshold = Annotated[
    float | None,
    typer.Option(help="Smallest WMH probability; by default the model's, which has intervals."),
]
SmallestLesion = Annotated[
    float | None,
    typer.Option("--min-lesion-mm3", help="Smallest lesion kept; by default the model's."),
]
Rims = Annotated[
    Literal["separate", "include", "exclude"],
    typer.Option(
        help="Normal caps and rims of the ventricles: apart from the mask, counted as WMH, or left "
        "out."
    ),
]
Align = Annotated[
    Literal["auto", "always", "never"],
    typer.Option(help="Bring the T1 to the FLAIR: where it is needed, always, never."),
]
PvRule = Annotated[
    Literal["voxel10", "shiva2", "contiguity"],
    typer.Option(
        help="What is periventricular: voxels up to 10 mm from the lateral "
        "ventricles; lesions within 2 mm of them; lesions that touch them."
    ),
]
BiasCorrection = Annotated[
    bool, typer.Option("--bias-correction", help="Correct the scans' bias fields first (N4).")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write the results into.")]
