"""Where models are: bundled, in the cache or in a folder; and how one is pulled into the cache.

A model is a folder with the weights and their card; it is named by its folder, or by its name if
it is bundled or in the cache.
"""

import http.client
import os
import re
import shutil
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import platformdirs

from leuko.errors import LeukoError
from leuko.io.files import sha256, staged
from leuko.model.card import CARD_FILE, ONNX_FILE, WEIGHTS_FILE, load_card

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # of a model that is pulled: a folder's
LARGEST_BYTES = 1_000_000_000  # of an archive and of each file in it; the largest VGG-16 is 0.5 GB
BUNDLED = Path(__file__).parents[1] / "data" / "models"
DEFAULT = "leuko-base"


def cache_folder() -> Path:
    """Where pulled models are kept: `LEUKO_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("LEUKO_CACHE") or platformdirs.user_cache_dir("leuko")) / "models"


def installed() -> dict[str, Path]:
    """The folders of all bundled and pulled models, by name."""
    return {
        path.parent.name: path.parent
        for root in (cache_folder(), BUNDLED)  # a bundled name stands for the bundled model
        for path in sorted(root.glob(f"*/{CARD_FILE}"))
    }


def find(model: str) -> Path:
    """The folder of a model, given by name or as a path. Raises LeukoError if there is none, or
    if it could be either of two."""
    named = installed()
    if model in named:
        if (Path(model) / CARD_FILE).is_file():
            raise LeukoError(
                f"{model} is a model folder here and also the name of a model; "
                f"write ./{model} for the folder, or go elsewhere"
            )
        return named[model]
    if Path(model).is_dir():
        return Path(model)
    raise LeukoError(
        f"{model} is neither a model folder nor a model known here ({', '.join(named) or 'none'}); "
        "see leuko models list"
    )


def pull(source: str, *, sha256_expected: str | None = None) -> Path:
    """Fetch a model, a zip archive at a URL or on disk, into the cache; its folder there.

    The archive holds the card and the weights, at its top or in one folder. Raises LeukoError,
    and leaves the cache as it was, if it cannot be read, has another SHA-256 than expected, holds
    no whole model, or has the name of a model that is there.
    """
    with TemporaryDirectory() as temporary:
        archive = Path(temporary) / "model.zip"
        _fetch(source, archive)
        found = sha256(archive)
        if sha256_expected and found != sha256_expected.lower():
            raise LeukoError(
                f"{source} has the SHA-256 {found}, not {sha256_expected}; it was damaged or "
                "changed, so it was not installed"
            )
        unpacked = Path(temporary) / "model"
        _unpack(archive, unpacked, source)
        try:
            card = load_card(unpacked)
        except LeukoError as error:
            raise LeukoError(f"{source} holds no whole model: {error}") from error
        if not NAME.fullmatch(card.name):
            raise LeukoError(f"{source} has a model name that cannot be a folder's: {card.name!r}")
        if card.name in installed():
            raise LeukoError(f"a model {card.name} is there already: {installed()[card.name]}")
        target = cache_folder() / card.name
        with staged(target) as scratch:
            for file in unpacked.iterdir():
                shutil.copyfile(file, scratch / file.name)
    return target


def _fetch(source: str, target: Path) -> None:
    try:
        if source.startswith(("https://", "http://", "file://")):
            with urllib.request.urlopen(source, timeout=60) as response:
                _save(response.read, target, source)
        else:
            with Path(source).open("rb") as file:
                _save(file.read, target, source)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise LeukoError(f"{source} could not be fetched ({error})") from error


def _unpack(archive: Path, target: Path, source: str) -> None:
    """The card and the weights of an archive, and nothing else of it, into a folder."""
    target.mkdir()
    try:
        with zipfile.ZipFile(archive) as content:
            for name in content.namelist():
                file = Path(name).name
                if file in (CARD_FILE, WEIGHTS_FILE, ONNX_FILE):
                    with content.open(name) as stored:
                        _save(stored.read, target / file, source)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise LeukoError(f"{source} is no zip archive of a model ({error})") from error
    if not (target / CARD_FILE).is_file():
        raise LeukoError(f"{source} holds no {CARD_FILE}: it is no model")


def _save(read: Callable[[int], bytes], target: Path, source: str) -> None:
    """Write what is read in pieces. Raises LeukoError when it is more than any model has."""
    with target.open("wb") as file:
        while piece := read(1 << 20):
            if file.tell() + len(piece) > LARGEST_BYTES:
                raise LeukoError(f"{source} is larger than any model: it was not installed")
            file.write(piece)
