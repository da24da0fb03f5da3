"""Reads the slices of a DICOM series, each with its position in LPS mm.

Images and segmentations both take their slice order from `stack`.
"""

import logging
import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from leuko.errors import LeukoError, in_one_line
from leuko.io.files import LARGEST_BYTES
from leuko.volume import Array

log = logging.getLogger(__name__)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_DIRECTION = 1e-3  # cosines stored as text differ in the fourth digit between slices
SAME_SPACING = 1e-4  # relative, for rounding in text: 0.05 pixels over 512 pixels
SAME_PLACE_MM = 1e-3
ORTHONORMAL = 5e-3  # error of cosine products; three-digit cosines are off by 2e-3
LONGEST_FIRST_ELEMENT = 1024  # bytes, in a file without preamble


@dataclass(frozen=True)
class Series:
    """The files of one series and its sequence, as described in the headers."""

    paths: tuple[Path, ...]
    number: int
    description: str
    kind: str  # "flair", "t1" or "other"
    enhanced: bool  # with contrast medium, according to the headers
    declared_bytes: int  # size of its pixels as float32
    patient: str  # patient ID; "" if missing
    visit: tuple[str, str]  # study UID and date

    def __str__(self) -> str:
        return f"{self.number} ({self.description or 'no description'}, {len(self.paths)} files)"


@dataclass(frozen=True)
class Source:
    """The identifiers of the image that a slice comes from; "" where they are missing."""

    study: str
    series: str
    frame_of_reference: str
    sop_class: str
    instance: str
    frame: int | None = None  # from 1, in a multi-frame image


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice: its position in LPS mm, its source image, its grey values (rows, columns)."""

    position: Array
    directions: Array  # (2, 3), orthonormal: increasing column index, increasing row index
    spacing_mm: Array  # between rows, between columns
    thickness_mm: float  # nan if missing
    size: tuple[int, int]  # rows, columns
    source: Source
    pixels: Array | None = None

    @property
    def normal(self) -> Array:
        normal: Array = np.cross(*self.directions)
        return normal

    def is_copy_of(self, other: "Slice") -> bool:
        """Whether position and grey values are the same; grey values only if both were read."""
        if np.abs(self.position - other.position).max() > SAME_PLACE_MM:
            return False
        if self.pixels is None or other.pixels is None:
            return True
        return np.array_equal(self.pixels, other.pixels)


def stack(series: Series, *, pixels: bool) -> list[Slice]:
    """The slices of a series, sorted along their normal.

    Only the first of several copies of a slice is kept. Raises LeukoError if a file cannot be read
    or decoded or has no position, and for slices of several directions or sizes.
    """
    name = f"series {series}"
    with warnings.catch_warnings(action="ignore"):  # pydicom's, on values that are not used
        found = list(_slices(series, name, pixels=pixels))
    first = found[0]
    for other in found:
        if np.abs(other.directions - first.directions).max() > SAME_DIRECTION:
            raise LeukoError(f"{name} has slices of several orientations; separate them")
        if other.size != first.size or not np.allclose(
            other.spacing_mm, first.spacing_mm, rtol=SAME_SPACING, atol=0
        ):
            raise LeukoError(f"{name} has slices of several sizes; separate them")
    found.sort(key=lambda each: float(each.position @ first.normal))
    kept = found[:1] + [new for last, new in pairwise(found) if not new.is_copy_of(last)]
    if pixels and len(kept) < len(found):
        log.warning(
            "%s: %d images are copies of others (same position and pixels) and are skipped",
            name,
            len(found) - len(kept),
        )
    return kept


def read_data_set(path: Path, *, pixels: bool) -> Any:
    """The data set of a DICOM file, with or without preamble and file meta information.

    Raises ValueError for a deflated file that unpacks to more than LARGEST_BYTES; a damaged file
    raises pydicom's own exceptions.
    """
    has_preamble = _has_preamble(path)
    if has_preamble:
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            _require_moderate_inflation(path, meta)
    image = pydicom.dcmread(path, stop_before_pixels=not pixels, force=not has_preamble)
    if not image.file_meta.get("TransferSyntaxUID"):
        is_implicit, is_little_endian = image.original_encoding
        native = ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else native
    return image


def begins_as_dicom(path: Path) -> bool:
    """Whether a file has the DICOM preamble, or begins with a data element."""
    if _has_preamble(path):
        return True
    with path.open("rb") as file:
        start = file.read(8)
    if start[:2] not in {b"\x02\0", b"\x08\0", b"\0\x08"}:  # group 2 or 8, of either endianness
        return False
    return start[4:6].isalpha() or int.from_bytes(start[4:8], "little") <= LONGEST_FIRST_ELEMENT


def text_of(header: Any, name: str) -> str:
    """The value of an element as one line; "" if it is missing or cannot be read."""
    try:
        return " ".join(str(header.get(name) or "").split())
    except Exception:  # noqa: BLE001, pydicom does not document its conversion errors
        return ""


def number_of(data_sets: Sequence[Any], *names: str) -> float:
    """The first value of the first element that is present and not 0; 0 if there is none."""
    for data_set in data_sets:
        for name in names:
            try:
                number = float(np.ravel(data_set.get(name) or 0)[0])
            except Exception:  # noqa: BLE001, S112, a value that is no number counts as missing
                continue
            if number and math.isfinite(number):
                return number
    return 0.0


def data_sets_of(image: Any, k: int = 0) -> list[Any]:
    """The data sets that describe frame `k` of an image, the most specific first."""
    frames = image.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        return [image]
    shared = list(image.get("SharedFunctionalGroupsSequence") or [])
    groups = [
        element.value[0]
        for item in [frames[k], *shared[:1]]
        for element in item
        if element.VR == "SQ" and element.value and not element.tag.is_private
    ]
    return [*groups, image]


def _has_preamble(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _require_moderate_inflation(path: Path, meta: Any) -> None:
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(144 + int(meta.FileMetaInformationGroupLength))  # 144: preamble to that element
        while compressed := inflater.unconsumed_tail or file.read(1 << 20):
            size += len(inflater.decompress(compressed, 1 << 24))
            if size > LARGEST_BYTES:
                raise ValueError(f"deflated DICOM that unpacks to over {LARGEST_BYTES >> 20} MB")


def _slices(series: Series, name: str, *, pixels: bool) -> Iterator[Slice]:
    """The slices, unsorted. Raises LeukoError if a file cannot be decoded or has no position."""
    for path in series.paths:
        try:
            image = read_data_set(path, pixels=pixels)
            if pixels:
                _require_decoder(image, name)
            yield from _slices_of(image, pixels=pixels)
        except LeukoError:
            raise
        except Exception as error:  # a damaged file fails in more ways than pydicom documents
            raise LeukoError(
                f"{name}: {path} cannot be read ({in_one_line(error)}); copy or export it again"
            ) from error


def _require_decoder(image: Any, name: str) -> None:
    syntax = UID(image.file_meta.TransferSyntaxUID)
    if not syntax.is_compressed:
        return
    try:
        if get_decoder(syntax).is_available:
            return
    except NotImplementedError:
        pass
    raise LeukoError(
        f"{name} is compressed as {syntax.name}, which no installed library decodes; "
        'pip install "leuko[dicom]" installs a decoder, python-gdcm; or decompress the files: '
        "gdcmconv --raw"
    )


def _slices_of(image: Any, *, pixels: bool) -> Iterator[Slice]:
    frames = image.get("PerFrameFunctionalGroupsSequence")
    count = len(frames) if frames else 1
    grey = _grey_values(image, count) if pixels else None
    size = int(image.Rows), int(image.Columns)
    source = Source(
        study=text_of(image, "StudyInstanceUID"),
        series=text_of(image, "SeriesInstanceUID"),
        frame_of_reference=text_of(image, "FrameOfReferenceUID"),
        sop_class=text_of(image, "SOPClassUID"),
        instance=text_of(image, "SOPInstanceUID"),
    )
    for k in range(count):
        data_sets = data_sets_of(image, k)
        spacing_mm = _numbers(data_sets, "PixelSpacing", 2)
        if spacing_mm.min() <= 0:
            raise ValueError(f"pixel spacing is {spacing_mm.tolist()} mm; it must be positive")
        yield Slice(
            position=_numbers(data_sets, "ImagePositionPatient", 3),
            directions=_orthonormal(_numbers(data_sets, "ImageOrientationPatient", 6)),
            spacing_mm=spacing_mm,
            thickness_mm=number_of(data_sets, "SliceThickness") or math.nan,
            size=size,
            source=replace(source, frame=k + 1) if frames else source,
            pixels=None if grey is None else _rescaled(grey[k], data_sets),
        )


def _grey_values(image: Any, count: int) -> Array:
    """Stored pixel values (frames, rows, columns)."""
    for name, usual in (("SamplesPerPixel", 1), ("PhotometricInterpretation", "MONOCHROME2")):
        if not image.get(name):
            setattr(image, name, usual)
    syntax = image.file_meta.TransferSyntaxUID
    try:
        grey: Array = image.pixel_array
    except Exception as error:
        if not syntax.is_compressed:
            raise
        raise ValueError(
            f"its pixels, compressed as {syntax.name}, are damaged or not supported; "
            "copy it again, or decompress it: gdcmconv --raw"
        ) from error
    if image.SamplesPerPixel != 1 or grey.size != count * image.Rows * image.Columns:
        raise ValueError("expected a grey-value image with one slice per frame")
    return grey.reshape(count, image.Rows, image.Columns)


def _numbers(data_sets: Sequence[Any], name: str, count: int) -> Array:
    """The `count` values of a position element. Raises ValueError if they are not all given."""
    value = next((data_set[name].value for data_set in data_sets if data_set.get(name)), None)
    numbers = np.array(value, dtype=float)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"no valid position: {name} is {value or 'missing'}")
    return numbers


def _orthonormal(cosines: Array) -> Array:
    """The direction cosines (2, 3) made orthonormal. Raises ValueError if far from it."""
    directions = cosines.reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > ORTHONORMAL:
        raise ValueError("ImageOrientationPatient does not hold perpendicular unit vectors")
    across = directions[0] / np.linalg.norm(directions[0])
    down = directions[1] - across * (across @ directions[1])
    return np.stack([across, down / np.linalg.norm(down)])


def _rescaled(pixels: Array, data_sets: Sequence[Any]) -> Array:
    for data_set in data_sets:
        if data_set.get("RescaleSlope"):
            slope = float(data_set.RescaleSlope)
            intercept = float(data_set.get("RescaleIntercept") or 0)
            if (slope, intercept) != (1.0, 0.0):
                return (slope * pixels + intercept).astype(np.float32)
            return pixels
    return pixels
