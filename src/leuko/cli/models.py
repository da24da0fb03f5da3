"""The commands for installed models: list, path, verify and pull."""

import re
from typing import Annotated

import typer

from leuko.errors import LeukoError

models = typer.Typer(help="List, find, verify and install models.", no_args_is_help=True)


@models.command("list", epilog="Example: leuko models list")
def list_models() -> None:
    """List the models that --model accepts by name.

    Prints the folder and the licence of each.
    """
    from leuko.model.card import load_card
    from leuko.model.weights import installed

    for name, folder in installed().items():
        try:
            licence = load_card(folder).licence
        except LeukoError as error:
            licence = f"unknown: {error}"
        print(f"{name}  {folder}")
        print(f"  licence {licence}")


@models.command("path", epilog="Example: leuko models path leuko-base")
def model_path(name: Annotated[str, typer.Argument(help="Name of a model.")]) -> None:
    """Print the folder of a model."""
    from leuko.model.weights import find

    print(find(name))


@models.command("verify", epilog="Example: leuko models verify leuko-base")
def verify_model(
    name: Annotated[
        str | None, typer.Argument(help="Name or folder of a model; by default all models.")
    ] = None,
) -> None:
    """Check the weights of models for damage.

    Compares the SHA-256 of the weights with the model card.
    """
    from leuko.model.card import load_card
    from leuko.model.weights import find, installed

    damaged = []
    for model in [name] if name else list(installed()):
        folder = find(model)
        try:
            print(f"{model}  good  sha256 {load_card(folder).weights_sha256}")
        except LeukoError as error:
            damaged.append(f"{model}: {error}")
    if damaged:
        raise LeukoError("; ".join(damaged))


@models.command("pull", epilog="Example: leuko models pull https://example.org/model.zip")
def pull_model(
    source: Annotated[str, typer.Argument(help="URL or file of a zipped model folder.")],
    sha256: Annotated[str | None, typer.Option(help="Expected SHA-256 of the archive.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model; by default the one in its card.")
    ] = None,
) -> None:
    """Install a model from a URL or file.

    Afterwards, --model accepts it by name. A model that Leuko already contains is not installed
    again.
    """
    from leuko.model.card import load_card
    from leuko.model.weights import BUNDLED, pull

    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise LeukoError(f"--sha256 {sha256} is not a SHA-256; expected 64 hexadecimal digits")
    folder = pull(source, sha256_expected=sha256, name=name)
    card = load_card(folder)
    print(f"{card.name}  {folder}")
    if folder.parent == BUNDLED:
        print("  this model is already bundled with Leuko; nothing was installed")
    print(f"  licence {card.licence}")
