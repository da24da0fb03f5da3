"""Finds, lists and pulls models: folders that hold weights and their card.

A model is identified by its folder, or by its name if it is bundled or in the cache.
"""

import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from urllib.request import url2pathname

import platformdirs

from leuko.errors import LeukoError
from leuko.io.files import DEVICE, sha256, staged
from leuko.model.card import CARD_FILE, ONNX_FILE, WEIGHTS_FILE, load_card, save_card
from leuko.model.download import download

# A pulled model's name becomes a folder name; Windows drops a dot at the end.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(?<!\.)")
LARGEST_BYTES = 1_000_000_000  # limit for an archive and each file in it; VGG-16 has 0.5 GB
BUNDLED = Path(__file__).parents[1] / "data" / "models"
DEFAULT = "leuko-base"


def cache_folder() -> Path:
    """The folder of pulled models: in `LEUKO_CACHE`, or else in the user's cache folder."""
    return Path(os.environ.get("LEUKO_CACHE") or platformdirs.user_cache_dir("leuko")) / "models"


def installed() -> dict[str, Path]:
    """The folders of all bundled and pulled models, by name."""
    return {
        path.parent.name: path.parent
        for root in (cache_folder(), BUNDLED)  # bundled models take precedence
        for path in sorted(root.glob(f"*/{CARD_FILE}"))
    }


def find(model: str) -> Path:
    """The folder of a model, given by name or as a path. Raises LeukoError if there is none, or
    if a folder here has the name of an installed model."""
    named = installed()
    if model in named:
        if (Path(model) / CARD_FILE).is_file():
            raise LeukoError(
                f"{model} is both a model folder here and the name of an installed model; write "
                f"./{model} for the folder, or run elsewhere for the installed model"
            )
        return named[model]
    if Path(model).is_dir():
        return Path(model)
    raise LeukoError(
        f"{model} is neither a model folder nor an installed model "
        f"({', '.join(named) or 'none'}); see leuko models list"
    )


def pull(source: str, *, sha256_expected: str | None = None, name: str | None = None) -> Path:
    """Install a model from a zip archive, at a URL or on disk, into the cache; returns its folder.

    The archive holds the card and the weights, at its top level or in one folder. `name` replaces
    the name in the card. If the same model is bundled under this name, nothing is installed and its
    folder is returned. Raises LeukoError, with the cache unchanged, if the archive cannot be read,
    has an unexpected SHA-256, holds no complete model, or its model's name is already installed.
    """
    with TemporaryDirectory() as temporary:
        archive = Path(temporary) / "model.zip"
        _fetch(source, archive)
        found = sha256(archive)
        if sha256_expected and found != sha256_expected.lower():
            raise LeukoError(
                f"{source} has SHA-256 {found}, expected {sha256_expected}; it is damaged or "
                "changed and was not installed: download it again"
            )
        unpacked = Path(temporary) / "model"
        _unpack(archive, unpacked, source)
        try:
            card = load_card(unpacked)
        except LeukoError as error:
            raise LeukoError(f"{source} holds no complete model: {error}") from error
        name = card.name if name is None else name
        if not NAME.fullmatch(name) or DEVICE.fullmatch(name):
            raise LeukoError(
                f"{source} has the model name {name!r}; expected up to 64 letters, digits, "
                "dots, dashes and underscores: give another one with --name"
            )
        if name != card.name:
            card = save_card(unpacked, replace(card, name=name))
        # Some file systems do not tell upper from lower case.
        same = {name.lower(): folder for name, folder in installed().items()}
        if folder := same.get(name.lower()):
            bundled = folder.parent == BUNDLED
            if bundled and load_card(folder) == card:
                return folder
            raise LeukoError(
                f"another model {name} is bundled with Leuko; give this one a name of its own "
                "with --name"
                if bundled
                else f"a model {name} is installed already: {folder}; use it, give this one a "
                "name of its own with --name, or delete that folder first"
            )
        target = cache_folder() / name
        with staged(target) as scratch:
            for file in unpacked.iterdir():
                shutil.copyfile(file, scratch / file.name)
    return target


def _fetch(source: str, target: Path) -> None:
    if source.startswith(("https://", "http://")):
        download(source, target, largest_bytes=LARGEST_BYTES)
        return
    try:
        path = url2pathname(urlsplit(source).path) if source.startswith("file://") else source
        with Path(path).open("rb") as file:
            _save(file.read, target, source)
    except (OSError, ValueError) as error:
        raise LeukoError(
            f"{source} could not be fetched ({error}); check the address or path"
        ) from error


def _unpack(archive: Path, target: Path, source: str) -> None:
    """Extract only the card and the weights of an archive into a folder."""
    target.mkdir()
    try:
        with zipfile.ZipFile(archive) as content:
            for name in content.namelist():
                file = Path(name).name
                if file in (CARD_FILE, WEIGHTS_FILE, ONNX_FILE):
                    with content.open(name) as stored:
                        _save(stored.read, target / file, source)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise LeukoError(
            f"{source} is not a readable zip archive ({error}); give a zip archive of a model"
        ) from error
    if not (target / CARD_FILE).is_file():
        raise LeukoError(f"{source} holds no {CARD_FILE}; give a zip archive of a model")


def _save(read: Callable[[int], bytes], target: Path, source: str) -> None:
    """Copy from `read` in pieces. Raises LeukoError beyond LARGEST_BYTES."""
    with target.open("wb") as file:
        while piece := read(1 << 20):
            if file.tell() + len(piece) > LARGEST_BYTES:
                raise LeukoError(
                    f"{source} is larger than {LARGEST_BYTES / 1e6:.0f} MB, the limit; it was not "
                    "installed: give a zip archive of a model"
                )
            file.write(piece)
