"""Writes docs/boutiques.json: `leuko bids` as a Boutiques descriptor, from the command itself."""

import inspect
import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo

from leuko import __version__
from leuko.cli.cohort import bids

IMAGE = "leuko"  # as docs/containers.md builds it
KINDS = {Path: "File", str: "String", int: "Number", float: "Number", bool: "Flag"}


def descriptor() -> dict[str, Any]:
    """Of the schema 0.5 (https://github.com/boutiques/boutiques)."""
    hints = get_type_hints(bids, include_extras=True)
    inputs = [
        given(name, *get_args(hints[name])[:2], parameter.default)
        for name, parameter in inspect.signature(bids).parameters.items()
    ]
    return {
        "name": "Leuko",
        "tool-version": __version__,
        "description": "Finds white matter hyperintensities in the FLAIR and T1w images of BIDS",
        "command-line": " ".join(["leuko bids", *(one["value-key"] for one in inputs)]),
        "container-image": {"type": "docker", "image": f"{IMAGE}:{__version__}"},
        "schema-version": "0.5",
        "inputs": inputs,
        "output-files": [
            {
                "id": "derivatives",
                "name": "Derivatives",
                "path-template": "[OUTPUT_DIR]",
                "description": "A BIDS dataset of derivatives",
            }
        ],
        "suggested-resources": {"cpu-cores": 1, "ram": 4, "walltime-estimate": 60},
        "error-codes": [
            {"code": 1, "description": "Some subjects failed; the others have their results"},
            {"code": 2, "description": "An input could not be used; nothing was written"},
        ],
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
    if name == "output_dir":
        about["type"] = "String"  # it need not be there
    if not isinstance(info, ArgumentInfo):
        flags = [flag for flag in info.param_decls or () if flag.startswith("--")]
        about["command-line-flag"] = flags[0] if flags else f"--{name.replace('_', '-')}"
    if getattr(info, "min", None) is not None:
        about["minimum"] = info.min
        about["integer"] = kind is int
    return about


def text() -> str:
    return json.dumps(descriptor(), indent=2) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "boutiques.json").write_text(text(), encoding="utf-8")
