"""Writes `leuko bids` and `leuko segment` as Boutiques descriptors, from the commands themselves:
docs/boutiques.json and docs/boutiques-segment.json."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo

from leuko import __version__
from leuko.cli.app import segment
from leuko.cli.cohort import bids
from leuko.io import outputs as files

IMAGE = "leuko"  # as docs/containers.md builds it
KINDS = {Path: "File", str: "String", int: "Number", float: "Number", bool: "Flag"}
# Outputs of `leuko segment`, by the names that the interfaces of contrib/ share.
FILES = {
    "mask": (files.MASK_FILE, "1 = WMH, on the grid of the FLAIR"),
    "probability": (files.PROBABILITY_FILE, "Probability of WMH"),
    "tissue": (files.TISSUE_FILE, "Classes of tissue"),
    "rims_mask": (files.RIMS_FILE, "Normal caps and rims of the ventricles"),
    "lesion_labels": (files.LESIONS_FILE, "Number of the lesion"),
    "lesions": (files.LESION_TABLE_FILE, "Table of lesions"),
    "regions": (files.REGIONS_FILE, "Number of the region of each WMH voxel"),
    "report": (files.REPORT_FILE, "Page for checking the result"),
    "record": (files.RECORD_FILE, "All numbers, and how they were made"),
}
OPTIONAL = {"tissue", "rims_mask", "regions"}  # not of every model, or left out with --rims


def bids_app() -> dict[str, Any]:
    """`leuko bids`."""
    return descriptor(
        bids,
        name="Leuko",
        description="Finds white matter hyperintensities in the FLAIR and T1w images of BIDS",
        outputs=[("derivatives", "[OUTPUT_DIR]", "A BIDS dataset of derivatives")],
        minutes=60,
        errors={
            1: "Some subjects failed; the others have their results",
            2: "An input could not be used; nothing was written",
        },
    )


def one_scan() -> dict[str, Any]:
    """`leuko segment`."""
    return descriptor(
        segment,
        name="leuko segment",
        description="Finds the white matter hyperintensities of one brain",
        outputs=[
            ("results", "[OUT]", "Folder of all files"),
            *((name, f"[OUT]/{file}", text) for name, (file, text) in FILES.items()),
        ],
        minutes=5,
        errors={
            2: "An input could not be used; nothing was written",
            3: "The result should not be used, or a file is missing",
        },
    )


def descriptor(
    command: Callable[..., None],
    *,
    name: str,
    description: str,
    outputs: list[tuple[str, str, str]],
    minutes: int,
    errors: dict[int, str],
) -> dict[str, Any]:
    """Of the schema 0.5 (https://github.com/boutiques/boutiques).

    `outputs`: id, path and description of each.
    """
    hints = get_type_hints(command, include_extras=True)
    inputs = [
        given(parameter, *get_args(hints[parameter])[:2], about.default)
        for parameter, about in inspect.signature(command).parameters.items()
        if hints[parameter] is not typer.Context
    ]
    line = [f"leuko {command.__name__}", *(one["value-key"] for one in inputs)]
    return {
        "name": name,
        "tool-version": __version__,
        "description": description,
        "command-line": " ".join(line),
        "container-image": {"type": "docker", "image": f"{IMAGE}:{__version__}"},
        "schema-version": "0.5",
        "inputs": inputs,
        "output-files": [
            {
                "id": output,
                "name": output.replace("_", " ").capitalize(),
                "path-template": path,
                "description": text,
                **({"optional": True} if output in OPTIONAL else {}),
            }
            for output, path, text in outputs
        ],
        "suggested-resources": {"cpu-cores": 1, "ram": 4, "walltime-estimate": minutes},
        "error-codes": [{"code": code, "description": text} for code, text in errors.items()],
        "tags": {"domain": ["neuroinformatics", "bids", "mri", "flair"]},
    }


def given(name: str, kind: Any, info: Any, default: Any) -> dict[str, Any]:
    """One input: a parameter of the command, with its type, typer's description and its default."""
    kinds = [one for one in get_args(kind) if one is not type(None)] or [kind]
    kind = kind if get_origin(kind) is Literal else kinds[0]
    is_list, choices = get_origin(kind) is list, get_args(kind)
    about: dict[str, Any] = {
        "id": name,
        "name": name.replace("_", " "),
        "description": info.help,
        "type": "String" if is_list or get_origin(kind) is Literal else KINDS[kind],
        "value-key": f"[{name.upper()}]",
        "optional": default is not inspect.Parameter.empty,
    }
    if is_list:
        about["list"] = True
    elif choices:
        about["value-choices"] = list(choices)
    if name in {"output_dir", "out"}:
        about["type"] = "String"  # it need not be there
    if not isinstance(info, ArgumentInfo):
        flags = [flag for flag in info.param_decls or () if flag.startswith("--")]
        about["command-line-flag"] = flags[0] if flags else f"--{name.replace('_', '-')}"
    if about["type"] == "Number":
        about["integer"] = kind is int
    if getattr(info, "min", None) is not None:
        about["minimum"] = info.min
    return about


def texts() -> dict[str, str]:
    """The descriptors by the names of their files."""
    made = {"boutiques.json": bids_app(), "boutiques-segment.json": one_scan()}
    return {name: json.dumps(about, indent=2) + "\n" for name, about in made.items()}


if __name__ == "__main__":
    for name, text in texts().items():
        (Path(__file__).parent / name).write_text(text, encoding="utf-8")
