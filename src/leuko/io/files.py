"""Writing files atomically, walking folders, finding images, hashes and JSON."""

import errno
import gzip
import hashlib
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from leuko.errors import LeukoError, in_one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

UMASK = os.umask(0)  # reading it means setting it: done once, before threads start
os.umask(UMASK)
# Names of files and folders that Windows reserves.
DEVICE = re.compile(r"(con|nul|aux|prn|com\d|lpt\d)(\..*)?", re.IGNORECASE)
GZIP = b"\x1f\x8b"  # first bytes of a compressed file
LARGEST_BYTES = 600 << 20  # limit for an image: a head at 0.5 mm in float64 fits


def require_folder(path: Path) -> None:
    """Raises LeukoError if the path exists and is not a folder."""
    if os.path.lexists(path) and not path.is_dir():
        raise LeukoError(f"{path} exists and is not a folder; choose another output folder")


def require_writable(folder: Path) -> None:
    """Raises LeukoError if files cannot be written into a folder, or it cannot be made; nothing is
    made."""
    require_folder(folder)
    try:
        home = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise LeukoError(
            f"cannot write into {folder}: {error.strerror}; choose another output folder"
        ) from error


@contextmanager
def staged(folder: Path, *, record: str = "*.json") -> Iterator[Path]:
    """A scratch folder that is published as `folder` at the end: outputs are written atomically.

    A new folder appears in one step. In an existing folder the old records (files that match
    `record`) are deleted first and the new ones are moved last, since a result without a record
    counts as incomplete. If the body fails, `folder` is unchanged, or still missing. Raises
    LeukoError if `folder` cannot be made or written.
    """
    require_folder(folder)
    made = [path for path in folder.parents if not path.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, made)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # An existing folder may be a mounted volume whose parent is read-only.
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
            if path.is_dir():  # replaces only an empty folder
                delete(folder / path.name)
            path.replace(folder / path.name)


def delete(path: Path) -> None:
    """Delete a file, or a folder with its content; nothing if it does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def private(home: Path, name: str) -> Iterator[Path]:
    """A scratch folder in `home`, deleted at the end.

    Scratch folders of the same name that a killed process left are deleted too, where the system
    has file locks.
    """
    home.mkdir(parents=True, exist_ok=True)
    for older in home.glob(f".leuko-{escape(name)}-*"):
        if _is_abandoned(older):
            shutil.rmtree(older, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=".leuko-", dir=home))
    with _locked(fresh):  # before it has a name that other processes look for
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
    """Write a text file atomically: readers see the old text or the new one."""
    handle, name = tempfile.mkstemp(prefix=".leuko-", dir=path.parent)
    # Line ends stay as they are: a table brings its own.
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.write(text)
    Path(name).chmod(0o666 & ~UMASK)
    Path(name).replace(path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder against other Leuko processes, where the system has file locks."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # raised by file systems without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def walk(
    folder: Path, *, on_error: Callable[[OSError], None], above: Sequence[tuple[int, int]] = ()
) -> Iterator[tuple[Path, list[Path], list[Path]]]:
    """Each folder at and below `folder` with its subfolders and files, sorted; like os.walk.

    Hidden files and folders are skipped. Links to folders are followed, since cohorts often consist
    of links, unless they lead back to a folder above. Folders that the caller removes from the list
    are not entered. A link without a target counts as a file. `on_error` gets the errors of reading
    a folder or the target of a link.
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
    """Whether a path is a folder; False if it cannot be accessed."""
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
    """An `on_error` for `walk`: raises LeukoError."""
    raise LeukoError(
        f"{error.filename} cannot be read: {error.strerror}; check its permissions"
    ) from error


def find_image(folder: Path, stem: str) -> Path | None:
    """The NIfTI file `stem`.nii.gz or `stem`.nii in a folder; None if there is none."""
    candidates = (folder / f"{stem}{ending}" for ending in (".nii.gz", ".nii"))
    return next((path for path in candidates if path.is_file()), None)


def find_images(folder: Path) -> list[Path]:
    """The .nii and .nii.gz files in a folder and its subfolders, sorted; hidden ones are skipped.

    Raises LeukoError if a folder cannot be read.
    """
    return sorted(
        path
        for _, _, files in walk(folder, on_error=refuse)
        for path in files
        if path.name.endswith((".nii", ".nii.gz"))
    )


def other_half(path: Path) -> Path | None:
    """The .img that belongs to a .hdr, or the reverse; None for one-file formats.

    Raises LeukoError if it is missing.
    """
    for ending, other in ((".hdr", ".img"), (".img", ".hdr")):
        for packed in ("", ".gz"):
            if path.name.endswith(ending + packed):
                stem = path.name.removesuffix(ending + packed)
                for twin in (path.with_name(stem + other + p) for p in ("", ".gz")):
                    if twin.is_file():
                        return twin
                raise LeukoError(
                    f"{path} is half of a pair of files; put {stem}{other} in the same folder"
                )
    return None


def unpacked(path: Path) -> bytes:
    """The decompressed bytes of the file, all of them, so that gzip verifies its checksum.

    Raises LeukoError for a file that is empty, damaged, too large or that cannot be read.
    """
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == GZIP
        with gzip.open(path) if compressed else path.open("rb") as file:
            parts, size = [], 0
            while part := file.read(1 << 24):
                parts.append(part)
                size += len(part)
                if size > LARGEST_BYTES:
                    raise LeukoError(
                        f"{path} holds more than {LARGEST_BYTES >> 20} MB, the limit; give one 3-D "
                        "image"
                    )
    except PermissionError as error:
        raise LeukoError(f"{path} cannot be read; check its permissions") from error
    except (EOFError, OSError, zlib.error) as error:
        raise LeukoError(
            f"{path} is damaged or truncated ({in_one_line(error)}); copy or convert it again"
        ) from error
    if not parts:
        raise LeukoError(f"{path} is empty; copy or convert it again")
    return b"".join(parts)


def write_packed(path: Path, content: bytes) -> None:
    """Write content to a .gz; the same content gives the same bytes."""
    path.write_bytes(gzip.compress(content, compresslevel=1, mtime=0))


def image_stem(path: Path) -> str:
    """The file's name without .nii or .nii.gz."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def sidecar(image: Path) -> Path:
    """The JSON file beside an image."""
    return image.with_name(f"{image_stem(image)}.json")


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON. Raises ValueError for nan and infinity, which JSON does not have."""
    path.write_text(
        json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n",
        encoding="utf-8",
        errors="backslashreplace",  # a path need not be valid UTF-8
    )


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """The object in a JSON file. Raises LeukoError if the file is missing or no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LeukoError(
            f"{what} {path} cannot be read: {error.strerror}; check the path"
        ) from error
    except ValueError as error:
        raise LeukoError(
            f"{what} {path} is not valid JSON: {error}; correct or replace it"
        ) from error
    if not isinstance(content, dict):
        raise LeukoError(f"{what} {path} holds no JSON object; correct or replace it")
    return content
