"""Reads scans: image files, images in memory, folders of DICOM files, whole DICOM studies."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from leuko.errors import LeukoError, require
from leuko.io import masks, nifti
from leuko.io.background import without_background
from leuko.io.files import find_images, other_half, sha256
from leuko.io.provenance import Finding, kept_findings
from leuko.io.record import Edited, FileRecord, Inputs, ScanRecord
from leuko.volume import Volume

if TYPE_CHECKING:
    from leuko.io.dicom_slices import Series


@dataclass(frozen=True, eq=False)
class Scan:
    """One image and where it came from."""

    path: Path | None  # None: from memory
    volume: Volume
    files: Sequence[Path]
    series: "Series | None" = None  # if read from DICOM
    findings: Sequence[Finding] = ()  # warnings while it was read
    original: nifti.InMemory | Volume | None = None  # with its background; None: that of the file

    def sha256(self) -> str:
        """SHA-256 of the scan's file.

        For several files it is the SHA-256 of their hashes, sorted by file name; for an image in
        memory, that of its affine and voxels.
        """
        if not self.files:
            content = hashlib.sha256(np.ascontiguousarray(self.volume.affine).data)
            content.update(np.ascontiguousarray(self.volume.data).data)
            return content.hexdigest()
        if len(self.files) == 1:
            return sha256(self.files[0])
        hashes = "".join(sha256(file) for file in sorted(self.files))
        return hashlib.sha256(hashes.encode()).hexdigest()

    def stored(self) -> bytes:
        """The scan before its background was set to 0, as `nifti.stored`."""
        return nifti.stored(self.original or self.path or self.volume)

    def as_record(self) -> FileRecord:
        """The files of the scan for the record of a run."""
        if self.path is not None and self.files == [self.path]:
            return file_record(self.path)
        where = str(self.path.absolute()) if self.path else None
        return FileRecord(path=where, sha256=self.sha256())


# A scan as an argument: a path, a nibabel image or Volume in memory, or a scan already read.
Image = str | Path | nifti.InMemory | Volume | Scan


def opened(image: Image) -> Scan:
    """A scan in whatever form it is given. Raises LeukoError as `read` does."""
    if isinstance(image, Scan):
        return image
    if isinstance(image, str | Path):
        return read(Path(image))
    volume = image if isinstance(image, Volume) else nifti.from_image(image)
    return Scan(None, without_background(volume), [], original=image)


def opened_mask(image: Image, *, labels: Collection[int] | None = None) -> Scan:
    """A mask, bool, in whatever form it is given; `labels` as in `masks.as_mask`.

    Raises LeukoError as `nifti.read_mask` does.
    """
    if isinstance(image, Scan):
        return image
    if isinstance(image, str | Path):
        path = Path(image)
        return Scan(path, nifti.read_mask(path, labels=labels), [path])
    if isinstance(image, Volume):
        mask = masks.as_mask(image.data, Path(image.name or "mask in memory"), labels=labels)
        return Scan(None, image.with_data(mask), [])
    return Scan(None, nifti.mask_from_image(image, labels=labels), [])


def read(path: Path, *, series: str | None = None) -> Scan:
    """An image file, or the only series in a folder of DICOM files, with its background set to 0.

    `series` tells which one of several series, as the record of a run names it. Raises LeukoError
    as `nifti.read`, `dicom.read_series` and `without_background` do, and if a DICOM folder is given
    without the extra dicom.
    """
    if not path.is_dir():
        twin = other_half(path)
        volume = without_background(nifti.read(path))
        return Scan(path, volume, [path] if twin is None else [path, twin])
    images = find_images(path)
    if images:
        raise LeukoError(
            f"{path} is a folder that holds {images[0].name}; give the image file, or a folder of "
            "DICOM files only"
        )
    return _from_series(path, _dicom().the_series(path, name=series))


def read_again(path: Path, was: ScanRecord, *, what: str, of: str, option: str) -> Scan:
    """The scan of a record, which is at `path` now.

    Raises LeukoError as `read` does, and if it is another scan; the message names `what` it is, the
    result `of` which it was, and the `option` that gives its path.
    """
    scan = read(path, series=was.series)
    if scan.sha256() != was.sha256:
        raise LeukoError(
            f"{path} is not the {what} that {of} was made from: its SHA-256 differs; give that "
            f"{what} with --{option}, or segment again"
        )
    return scan


def read_study(
    folder: Path, *, flair: int | None = None, t1: int | None = None
) -> tuple[Scan, Scan | None]:
    """The FLAIR and the T1 in a folder of DICOM files of one visit.

    `flair` and `t1` are series numbers that override automatic selection. Raises LeukoError if
    there is no such folder, and as `dicom.find_pair` does.
    """
    if not folder.is_dir():
        raise LeukoError(f"{folder} does not exist or is not a folder; check the path")
    with kept_findings() as findings:
        first, second = _dicom().find_pair(folder, flair=flair, t1=t1)
        pair = _from_series(folder, first), second and _from_series(folder, second)
    return replace(pair[0], findings=findings), pair[1]


def as_record(scans: Mapping[str, Scan]) -> Inputs:
    """The scans of a run (flair, t1, mask) for its record."""
    return Inputs(
        **{
            name: ScanRecord(
                series=str(scan.series) if scan.series else None,
                spacing_mm=_rounded(scan.volume.spacing_mm),
                slice_mm=round(scan.volume.spacing_mm[scan.volume.through_plane_axis], 4),
                **asdict(scan.as_record()),
            )
            for name, scan in scans.items()
        }
    )


def _rounded(spacing_mm: tuple[float, ...]) -> tuple[float, float, float]:
    x, y, z = (round(mm, 4) for mm in spacing_mm)
    return x, y, z


def file_record(path: Path) -> FileRecord:
    """A file for the record of a run."""
    size, modified_ns = _stamp(path)
    where = str(path.absolute())  # it is read again from other folders
    return FileRecord(path=where, sha256=sha256(path), bytes=size, modified_ns=modified_ns)


def is_same(path: Path, was: FileRecord) -> bool:
    """Whether a scan is unchanged since the record of a run was written.

    Its content is compared only if its path, size or modification time changed, or if it has
    several files.
    """
    try:
        seen = str(path.absolute()), *_stamp(path)
        return seen == (was.path, was.bytes, was.modified_ns) or (read(path).sha256() == was.sha256)
    except (OSError, LeukoError):
        return False


def _stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and modification time in ns."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def require_pair(flair: Scan, t1: Scan | None) -> None:
    """Raises LeukoError if DICOM headers identify the FLAIR as a T1 or show two patients; warns of
    two studies."""
    if flair.series is not None:
        _dicom().require_flair(flair.series)
        if t1 is not None and t1.series is not None:
            _dicom().require_one_visit(flair.series, t1.series)


def write_dicom(
    path: Path, mask: Volume, scans: Mapping[str, Scan], edited: Edited | None = None
) -> None:
    """Write a mask as a DICOM segmentation of its FLAIR; nothing if that is not from DICOM.

    `scans` are as for `as_record`, `edited` tells who corrected the mask. Raises LeukoError as
    `dicom_seg.write_segmentation` does.
    """
    series = scans["flair"].series
    if series is not None:
        from leuko.io.dicom_seg import write_segmentation

        is_given = edited.corrects == "given" if edited else "mask" in scans
        write_segmentation(path, mask, series, is_given=is_given, edited=edited)


def _from_series(folder: Path, series: "Series") -> Scan:
    original = _dicom().read_series(series)
    return Scan(folder, without_background(original), series.paths, series, original=original)


def _dicom() -> ModuleType:
    require("pydicom", "highdicom", extra="dicom")
    from leuko.io import dicom

    return dicom
