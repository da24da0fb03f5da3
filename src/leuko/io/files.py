"""Files that are either whole or not there, and what identifies them."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from leuko.errors import LeukoError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

UMASK = os.umask(0)  # asking for it sets it: once, before there are threads
os.umask(UMASK)
LARGEST_BYTES = 600 << 20  # of an image: a head at half a millimetre in float64 fits


def require_folder(path: Path) -> None:
    """Raises LeukoError where something else than a folder is there."""
    if os.path.lexists(path) and not path.is_dir():
        raise LeukoError(f"{path} is there and is no folder; choose another output folder")


@contextmanager
def staged(folder: Path, *, record: str = "*.json") -> Iterator[Path]:
    """A scratch folder that becomes `folder`, or whose files move into it, once all are written.

    A new folder appears whole, in one step. In one that is there already the old records (what
    the pattern `record` names) go first and the new ones come last: without a record a result is
    not whole. If anything fails inside, `folder` keeps what it held (and is not there if it was
    not). Raises LeukoError when `folder` cannot be made or written.
    """
    require_folder(folder)
    made = [path for path in folder.parents if not path.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, made)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # What is there may be a mounted volume in a file system that is read-only.
            home = folder if folder.is_dir() else folder.parent
            scratch = stack.enter_context(private(home, folder.name))
            scratch.chmod(0o777 & ~UMASK)
        except OSError as error:
            raise LeukoError(
                f"cannot write into {folder}: {error.strerror}; choose another output folder"
            ) from error
        try:
            yield scratch
            _publish(scratch, folder, record)
        except OSError as error:
            raise LeukoError(f"writing into {folder} failed: {error.strerror or error}") from error


def _remove_empty(folders: Iterable[Path]) -> None:
    for path in folders:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _publish(scratch: Path, folder: Path, record: str) -> None:
    try:
        scratch.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    else:
        return
    with _locked(folder):
        records = set(scratch.glob(record))
        for path in records:
            (folder / path.name).unlink(missing_ok=True)
        for path in sorted(scratch.iterdir(), key=lambda path: path in records):
            path.replace(folder / path.name)


@contextmanager
def private(home: Path, name: str) -> Iterator[Path]:
    """A folder in `home` for scratch, deleted at the end.

    Those of the same name whose makers were killed are deleted too, where the system can tell.
    """
    home.mkdir(parents=True, exist_ok=True)
    for older in home.glob(f".leuko-{escape(name)}-*"):
        if _is_abandoned(older):
            shutil.rmtree(older, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=".leuko-", dir=home))
    with _locked(fresh):  # before others know it by its name
        own = fresh.rename(home / f".leuko-{name}-{fresh.name.removeprefix('.leuko-')}")
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    if fcntl is None:
        return False
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(handle)


def replace_text(path: Path, text: str) -> None:
    """Write a text file in one step, over an older one: others see the one or the other."""
    handle, name = tempfile.mkstemp(prefix=".leuko-", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    Path(name).chmod(0o666 & ~UMASK)
    Path(name).replace(path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Other processes that would lock the folder wait, where the system can do that."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # of file systems without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def walk(
    folder: Path, *, on_error: Callable[[OSError], None], above: Sequence[tuple[int, int]] = ()
) -> Iterator[tuple[Path, list[Path], list[Path]]]:
    """A folder and all below it, each with its folders and files, sorted, as os.walk does.

    Hidden files and folders are skipped. Links to folders are followed, as cohorts often consist
    of links, except in a circle. Folders that are removed from the list are not entered. A link
    without a target counts as a file. Errors of reading a folder, or the target of a link, are
    given to `on_error`.
    """
    try:
        about = folder.stat()
        entries = [e for e in os.scandir(folder) if not e.name.startswith(".")]
    except OSError as error:
        on_error(error)
        return
    if (about.st_dev, about.st_ino) in above:
        return
    entries.sort(key=lambda entry: entry.name)
    folders: list[Path] = []
    files: list[Path] = []
    for entry in entries:
        try:
            (folders if _leads_to_folder(entry) else files).append(folder / entry.name)
        except OSError as error:
            on_error(error)
    yield folder, folders, files
    for inside in folders:
        yield from walk(inside, on_error=on_error, above=(*above, (about.st_dev, about.st_ino)))


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; False where that cannot be told."""
    try:
        return path.is_dir()
    except OSError:  # PermissionError, before Python 3.14
        return False


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # the link leads to itself: it has no target
            return False
        raise


def refuse(error: OSError) -> None:
    """For `walk`: raises LeukoError for what cannot be read."""
    raise LeukoError(f"{error.filename} cannot be read: {error.strerror}") from error


def find_image(folder: Path, stem: str) -> Path | None:
    """The NIfTI file of that name, compressed or not; None if there is none."""
    candidates = (folder / f"{stem}{ending}" for ending in (".nii.gz", ".nii"))
    return next((path for path in candidates if path.is_file()), None)


def find_images(folder: Path) -> list[Path]:
    """The .nii and .nii.gz files in a folder and below it, sorted; hidden ones are skipped.

    Raises LeukoError where a folder cannot be read.
    """
    return sorted(
        path
        for _, _, files in walk(folder, on_error=refuse)
        for path in files
        if path.name.endswith((".nii", ".nii.gz"))
    )


def image_stem(path: Path) -> str:
    """The file's name without .nii or .nii.gz."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Readable JSON; nan and infinity, which JSON does not know, are refused."""
    path.write_text(
        json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n",
        encoding="utf-8",
        errors="backslashreplace",  # a path need not be valid UTF-8
    )


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """The object in a JSON file. Raises LeukoError when it is missing or is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LeukoError(f"{what} {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise LeukoError(f"{what} {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise LeukoError(f"{what} {path} holds no JSON object")
    return content
