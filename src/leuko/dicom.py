"""Folders of DICOM files become Volumes; needs the extra `dicom`.

What a Volume cannot describe truly, such as a tilted gantry or a missing slice, is refused with the
reason.
"""

import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from leuko.errors import LeukoError, first_line
from leuko.files import LARGEST_BYTES
from leuko.volume import Array, Volume, require_head_size

log = logging.getLogger(__name__)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
DICOM_ENDINGS = (".dcm", ".ima")
FEWEST_SLICES = 8  # fewer are a localiser, or a stack that was not sent whole
SAME_DIRECTION = 1e-3  # between slices, cosines as text differ in the fourth digit
UNEVEN = 0.05  # of the spacing: text rounds positions to about a hundredth of a millimetre
LARGEST_GAP = 0.35  # of a slice's thickness
TILT = 0.01  # sine of the angle between the stack and the normal of its slices

FLAIR_NAMES = re.compile(r"flair|tirm|dark.?fluid", re.IGNORECASE)
T1_NAMES = re.compile(r"t1|mp-?rage|bravo|spgr|fspgr|tfl", re.IGNORECASE)
OTHER_NAMES = re.compile(
    r"loc|scout|survey|adc|dwi|diff|trace|swi|mip|phase|pwi|perf|asl|bold|fmri|tof|angio|mra",
    re.IGNORECASE,
)
ENHANCED_NAMES = re.compile(r"\+ ?c\b|\bgd\b|gad|post|contrast|\bkm\b|\bce\b", re.IGNORECASE)


@dataclass(frozen=True)
class Series:
    """The files of one series and what its headers say of the sequence."""

    paths: tuple[Path, ...]
    number: int
    description: str
    kind: str  # "flair", "t1" or "other"
    enhanced: bool  # with contrast medium, as far as the headers tell
    declared_bytes: int  # of its pixels, as float32
    patient: str  # "" where it is not said
    visit: tuple[str, str]  # the study's UID and date

    def __str__(self) -> str:
        return f"{self.number} ({self.description or 'no description'}, {len(self.paths)} files)"


def find_series(folder: Path) -> list[Series]:
    """The image series in a folder and the folders below it, by their number.

    Raises LeukoError when there is none.
    """
    groups: dict[str, list[tuple[Path, Any]]] = {}
    seen = set()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        header = _header(path)
        if header is not None and header.get("SOPInstanceUID", path) not in seen:
            seen.add(header.get("SOPInstanceUID", path))  # of copies the first is enough
            groups.setdefault(str(header.get("SeriesInstanceUID")), []).append((path, header))
    if not groups:
        raise LeukoError(
            f"{folder} holds no DICOM images; give other scans as files, by --flair, --t1"
        )
    found = [_described(files) for files in groups.values()]
    return sorted(found, key=lambda series: series.number)


def find_pair(
    folder: Path, *, flair: int | None = None, t1: int | None = None
) -> tuple[Series, Series | None]:
    """The FLAIR and the T1 of a study, by the names and the parameters of its sequences.

    `flair` and `t1` are numbers of series that decide. A T1 without contrast medium is preferred.
    Raises LeukoError when there is no FLAIR, or when several series could be meant.
    """
    series = find_series(folder)
    first = _the_one(series, "flair", flair, folder)
    if first is None:
        listed = "; ".join(str(s) for s in series)
        raise LeukoError(
            f"{folder} has no series that is clearly a FLAIR: {listed}; choose one with "
            "--flair-series NUMBER"
        )
    second = _the_one(series, "t1", t1, folder)
    if second is None:
        listed = "; ".join(str(s) for s in series if s is not first)
        log.warning("no T1 was found in %s; left out: %s", folder, listed or "nothing")
    return first, second


def require_one_visit(flair: Series, t1: Series) -> None:
    """Raises LeukoError for series of two patients; warns of series of two visits."""
    if flair.patient and t1.patient and flair.patient != t1.patient:
        raise LeukoError(
            f"series {flair} and {t1} have different patient IDs; expected two scans of one person"
        )
    if flair.visit != t1.visit:
        dates = [series.visit[1] or "no date" for series in (flair, t1)]
        log.warning("series %s and %s are of different studies (%s, %s)", flair, t1, *dates)


def require_flair(series: Series) -> None:
    """Raises LeukoError for what is, by its headers, a T1."""
    if series.kind == "t1":
        raise LeukoError(
            f"series {series} is a T1 by its headers; expected a FLAIR: were the two swapped?"
        )


def the_series(folder: Path) -> Series:
    """The one series in a folder. Raises LeukoError when there is none, or several."""
    series = find_series(folder)
    if len(series) > 1:
        listed = "; ".join(str(s) for s in series)
        raise LeukoError(
            f"{folder} holds {len(series)} series: {listed}; give one series' folder, or all of "
            "them with --study"
        )
    return series[0]


def read_series(series: Series) -> Volume:
    """A series as a Volume (columns, rows, slices), rescaled grey values, affine to RAS mm.

    Raises LeukoError for a stack that is no regular grid: tilted, with slices missing or uneven,
    or several images at one place.
    """
    name = f"series {series}"
    if series.declared_bytes > LARGEST_BYTES:
        raise LeukoError(
            f"{name} declares {series.declared_bytes >> 20} MB; expected one 3-D image"
        )
    frames = sorted(_frames(series, name), key=lambda frame: frame.height)
    first, last = frames[0], frames[-1]
    if len(frames) < FEWEST_SLICES:
        raise LeukoError(f"{name} has {len(frames)} slices; expected a whole head")
    for frame in frames:
        if np.abs(frame.directions - first.directions).max() > SAME_DIRECTION:
            raise LeukoError(f"{name} mixes slices of several directions; separate them")
        if frame.pixels.shape != first.pixels.shape or frame.spacing_mm != first.spacing_mm:
            raise LeukoError(f"{name} mixes slices of several sizes; separate them")
    step = (last.position - first.position) / (len(frames) - 1)
    _require_regular(np.array([frame.height for frame in frames]), name)
    lateral = np.linalg.norm(step - first.normal * (step @ first.normal))
    if lateral > TILT * np.linalg.norm(step):
        angle = np.degrees(np.arcsin(lateral / np.linalg.norm(step)))
        raise LeukoError(
            f"{name} was taken with a tilted gantry ({angle:.1f} degrees); resample it onto a "
            "straight grid first (dcm2niix does)"
        )
    _warn_of_gaps(float(np.linalg.norm(step)), first.thickness_mm, name)
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing_mm[1]
    affine[:3, 1] = first.directions[1] * first.spacing_mm[0]
    affine[:3, 2], affine[:3, 3] = step, first.position
    data = np.stack([frame.pixels.T for frame in frames], axis=-1)
    if not data.any():
        raise LeukoError(f"{name} is all zeros; is it the right series?")
    volume = Volume(data, LPS_TO_RAS @ affine, name=name)
    require_head_size(volume)
    return volume


def _header(path: Path) -> Any:
    """All but the pixels of a DICOM image; None for any other file, and for a damaged one."""
    try:
        if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            log.warning("%s is left out: deflated DICOM, which may unpack beyond all measure", path)
            return None
        header = pydicom.dcmread(path, stop_before_pixels=True)
        placed = "ImagePositionPatient" in header or "PerFrameFunctionalGroupsSequence" in header
    except InvalidDicomError:
        if path.suffix.lower() in DICOM_ENDINGS:
            log.warning("%s is left out: it is not DICOM", path)
        return None
    except Exception as error:  # noqa: BLE001, a damaged file fails in more ways than documented
        log.warning("%s is left out: damaged (%s)", path, first_line(error))
        return None
    return header if placed else None


@dataclass(frozen=True, eq=False)
class _Frame:
    """One slice: where it lies, LPS mm, and its grey values (rows, columns)."""

    position: Array
    directions: Array  # (2, 3): of increasing columns, of increasing rows
    spacing_mm: tuple[float, float]  # between rows, between columns
    thickness_mm: float  # nan where it is not given
    pixels: Array

    @property
    def normal(self) -> Array:
        normal: Array = np.cross(*self.directions)
        return normal

    @property
    def height(self) -> float:
        return float(self.position @ self.normal)

    @classmethod
    def of(cls, *sources: Any, pixels: Array | None = None) -> "_Frame":
        """From the data sets of a slice, the first that has an element decides."""

        def numbers(name: str) -> Array:
            value = next((source[name].value for source in sources if name in source), np.nan)
            return np.array(value, dtype=float)

        position, directions, spacing_mm = (
            numbers(name)
            for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        )
        if not all(np.isfinite(place).all() for place in (position, directions, spacing_mm)):
            raise ValueError("it does not say where it lies")
        if pixels is not None and pixels.ndim != 2:
            raise ValueError("it is no grey image of one slice")
        return cls(
            position.reshape(3),
            directions.reshape(2, 3),
            (float(spacing_mm[0]), float(spacing_mm[1])),
            float(numbers("SliceThickness")),
            np.zeros((0, 0)) if pixels is None else pixels,
        )


def _frames(series: Series, name: str) -> Iterator[_Frame]:
    """Raises LeukoError when a file cannot be decoded or says not where it lies."""
    for path in series.paths:
        try:
            image = pydicom.dcmread(path)
            pixels = image.pixel_array
            if "PerFrameFunctionalGroupsSequence" not in image:
                yield _Frame.of(image, pixels=_rescaled(pixels, image))
                continue
            pixels = pixels.reshape(-1, *pixels.shape[-2:])
            shared = _groups(image.SharedFunctionalGroupsSequence[0])
            for k, frame in enumerate(image.PerFrameFunctionalGroupsSequence):
                groups = [*_groups(frame), *shared]
                yield _Frame.of(*groups, pixels=_rescaled(pixels[k], *groups))
        except Exception as error:  # a damaged file fails in more ways than pydicom documents
            raise LeukoError(f"{name}: {path} cannot be read ({first_line(error)})") from error


def _groups(frame: Any) -> list[Any]:
    """The items of a frame's functional groups."""
    return [element.value[0] for element in frame if element.VR == "SQ" and element.value]


def _rescaled(pixels: Array, *sources: Any) -> Array:
    for source in sources:
        if "RescaleSlope" in source:
            slope, intercept = float(source.RescaleSlope), float(source.get("RescaleIntercept", 0))
            if (slope, intercept) != (1.0, 0.0):
                return (slope * pixels + intercept).astype(np.float32)
    return pixels


def _require_regular(heights: Array, name: str) -> None:
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    if gaps.min() <= 0.01 * max(usual, 0.01):
        raise LeukoError(
            f"{name} has several images at one place (echoes, times or phases); separate them"
        )
    missing = np.rint(gaps / usual) - 1
    if np.abs(gaps - usual * (missing + 1)).max() > UNEVEN * usual:
        raise LeukoError(f"{name} has uneven distances between slices; resample it first")
    if missing.any():
        first = int(np.flatnonzero(missing)[0]) + 1
        raise LeukoError(
            f"{name} lacks {int(missing.sum())} of its slices, the first after slice {first}; "
            "send it again"
        )


def _warn_of_gaps(apart_mm: float, thickness_mm: float, name: str) -> None:
    if apart_mm > (1 + LARGEST_GAP) * thickness_mm > 0:
        log.warning(
            "%s: slices of %.2g mm lie %.2g mm apart; what lies between them was not seen",
            name,
            thickness_mm,
            apart_mm,
        )


def _described(files: Sequence[tuple[Path, Any]]) -> Series:
    header = files[0][1]
    description = str(header.get("SeriesDescription", ""))
    names = f"{description} {header.get('ProtocolName', '')} {header.get('SequenceName', '')}"
    frames = sum(int(_number(h, "NumberOfFrames") or 1) for _, h in files)
    slice_bytes = 4 * max(_number(h, "Rows") * _number(h, "Columns") for _, h in files)
    return Series(
        paths=tuple(path for path, _ in files),
        number=int(_number(header, "SeriesNumber")),
        description=description,
        kind=_kind(header, names, frames),
        enhanced=bool(header.get("ContrastBolusAgent")) or bool(ENHANCED_NAMES.search(description)),
        declared_bytes=int(frames * slice_bytes),
        patient=str(header.get("PatientID") or ""),
        visit=(str(header.get("StudyInstanceUID") or ""), str(header.get("StudyDate") or "")),
    )


def _number(header: Any, name: str) -> float:
    """0 where there is none, or what is there is no number."""
    try:
        number = float(header.get(name) or 0)
    except (TypeError, ValueError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def _kind(header: Any, names: str, slices: int) -> str:
    """What a series is: by its echo and inversion times where they are given, else by its name."""
    if slices < FEWEST_SLICES or OTHER_NAMES.search(names):
        return "other"
    echo, inversion = _number(header, "EchoTime"), _number(header, "InversionTime")
    late_echo = echo > 50 if echo else not T1_NAMES.search(names)
    if late_echo and (FLAIR_NAMES.search(names) or inversion > 1500):
        return "flair"
    if not late_echo and T1_NAMES.search(names):
        return "t1"
    return "other"


def _the_one(
    series: Sequence[Series], kind: str, number: int | None, folder: Path
) -> Series | None:
    if number is not None:
        meant = [s for s in series if s.number == number]
        if len(meant) != 1:
            listed = "; ".join(f"{s} in {s.paths[0].parent}" for s in meant or series)
            raise LeukoError(
                f"{folder} has {len(meant) or 'no'} series {number}: {listed}; "
                "give the folder of one study"
            )
        return meant[0]
    meant = [s for s in series if s.kind == kind]
    plain = [s for s in meant if not s.enhanced]
    meant = plain or meant
    if len(meant) > 1:
        listed = "; ".join(str(s) for s in meant)
        raise LeukoError(
            f"{folder} has {len(meant)} series that could be the {kind.upper()}: {listed}; "
            f"choose one with --{kind}-series NUMBER"
        )
    return meant[0] if meant else None
