"""Folders of DICOM files become Volumes; needs the extra `dicom`.

What a Volume cannot describe truly, such as a tilted gantry or a missing slice, is refused with the
reason.
"""

import logging
import math
import os
import re
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
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
from leuko.files import LARGEST_BYTES
from leuko.volume import Array, Volume, require_head_size

log = logging.getLogger(__name__)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
DICOM_ENDINGS = (".dcm", ".ima")
FEWEST_SLICES = 8  # fewer are a localiser, or a stack that was not sent whole
SAME_DIRECTION = 1e-3  # between slices, cosines as text differ in the fourth digit
SAME_SPACING = 1e-4  # of it: text rounds, and over 512 pixels this is a twentieth of one
SAME_PLACE_MM = 1e-3
ORTHONORMAL = 1e-2  # how far two direction cosines may be from right angles and from length 1
LONGEST_FIRST_ELEMENT = 1024  # bytes, in a file that begins with its data elements
UNEVEN = 0.05  # of the spacing: text rounds positions to about a hundredth of a millimetre
LARGEST_GAP = 0.35  # of a slice's thickness; clinical protocols leave 0.1 to 0.3
TILT = 0.01  # sine of the angle between the stack and the normal of its slices

FLAIR_NAMES = re.compile(r"flair|tirm|dark.?fluid|fluid.attenuated", re.IGNORECASE)
T1_NAMES = re.compile(r"t1|mp-?rage|bravo|spgr|fspgr|tfl", re.IGNORECASE)
OTHER_NAMES = re.compile(
    r"loc|scout|survey|adc|dwi|diff|trace|swi|mip|phase|pwi|perf|asl|bold|fmri|tof|angio|mra",
    re.IGNORECASE,
)
WEIGHTINGS = re.compile(r"t2|\bpd|proton|stir|swan|\bgre\b", re.IGNORECASE)
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

    Linked folders are entered. Raises LeukoError when there is none.
    """
    groups: dict[tuple[str, ...], list[tuple[Path, Any]]] = defaultdict(list)
    without_position: Counter[tuple[str, ...]] = Counter()
    with warnings.catch_warnings(action="ignore"):  # pydicom's, on values that are not read
        for path in _files(folder):
            header = _header(path)
            if header is None:
                continue
            if _has_position(header):
                groups[_series_key(path, header)].append((path, header))
            else:
                without_position[_series_key(path, header)] += 1
        protocols = _protocols_of_the_examination(groups.values())
        found = {key: _described(files, protocols) for key, files in groups.items()}
    if not found:
        seen = f"{without_position.total()} DICOM files without an image position"
        raise LeukoError(
            f"{folder} holds {seen if without_position else 'no DICOM images'}; "
            "give other scans as files, by --flair, --t1"
        )
    for key, series in found.items():
        if without_position[key]:
            log.warning(
                "series %s: %d more files have no image position and are left out",
                series,
                without_position[key],
            )
    return sorted(found.values(), key=lambda series: series.number)


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


@dataclass(frozen=True)
class Source:
    """The image that a slice comes from, as its header identifies it; "" where it does not."""

    study: str
    series: str
    frame_of_reference: str
    sop_class: str
    instance: str
    frame: int | None = None  # from 1, of a multi-frame image


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice: its place in LPS mm, its image, its grey values (rows, columns)."""

    position: Array
    directions: Array  # (2, 3), orthonormal: of increasing columns, of increasing rows
    spacing_mm: Array  # between rows, between columns
    thickness_mm: float  # nan where it is not given
    size: tuple[int, int]  # rows, columns
    source: Source
    pixels: Array | None = None

    @property
    def normal(self) -> Array:
        normal: Array = np.cross(*self.directions)
        return normal

    def is_copy_of(self, other: "Slice") -> bool:
        """Whether place and grey values are the same; the place alone where none were read."""
        if np.abs(self.position - other.position).max() > SAME_PLACE_MM:
            return False
        if self.pixels is None or other.pixels is None:
            return True
        return np.array_equal(self.pixels, other.pixels)


def stack(series: Series, *, pixels: bool) -> list[Slice]:
    """The slices of a series in the order in which `read_series` stacks them: along their normal.

    Of several copies of a slice only the first is kept. Raises LeukoError when a file cannot be
    read or decoded or has no place, and for slices of several directions or sizes.
    """
    name = f"series {series}"
    with warnings.catch_warnings(action="ignore"):  # pydicom's, on values that are not used
        found = list(_slices(series, name, pixels=pixels))
    first = found[0]
    for other in found:
        if np.abs(other.directions - first.directions).max() > SAME_DIRECTION:
            raise LeukoError(f"{name} mixes slices of several directions; separate them")
        if other.size != first.size or not np.allclose(
            other.spacing_mm, first.spacing_mm, rtol=SAME_SPACING, atol=0
        ):
            raise LeukoError(f"{name} mixes slices of several sizes; separate them")
    found.sort(key=lambda each: float(each.position @ first.normal))
    kept = found[:1] + [new for last, new in pairwise(found) if not new.is_copy_of(last)]
    if pixels and len(kept) < len(found):
        log.warning(
            "%s: %d images are copies of others (same place, same pixels) and are left out",
            name,
            len(found) - len(kept),
        )
    return kept


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
    slices = stack(series, pixels=True)
    first, last = slices[0], slices[-1]
    if len(slices) < FEWEST_SLICES:
        raise LeukoError(f"{name} has {len(slices)} slices; expected a whole head")
    step = (last.position - first.position) / (len(slices) - 1)
    _require_regular(np.array([each.position @ first.normal for each in slices]), name)
    lateral = np.linalg.norm(step - first.normal * (step @ first.normal))
    if lateral > TILT * np.linalg.norm(step):
        angle = np.degrees(np.arcsin(lateral / np.linalg.norm(step)))
        raise LeukoError(
            f"{name} was taken with a tilted gantry ({angle:.1f} degrees); resample it onto a "
            "straight grid first (dcm2niix does)"
        )
    _warn_of_shared_uids(slices, name)
    _warn_of_gaps(float(np.linalg.norm(step)), first.thickness_mm, name)
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing_mm[1]
    affine[:3, 1] = first.directions[1] * first.spacing_mm[0]
    affine[:3, 2], affine[:3, 3] = step, first.position
    data = np.stack([each.pixels.T for each in slices if each.pixels is not None], axis=-1)
    if not data.any():
        raise LeukoError(f"{name} is all zeros; is it the right series?")
    volume = Volume(data, LPS_TO_RAS @ affine, name=name)
    require_head_size(volume)
    return volume


def read_data_set(path: Path, *, pixels: bool) -> Any:
    """A DICOM file, with or without the preamble and the meta information of the standard.

    Raises ValueError for a deflated one that unpacks beyond LARGEST_BYTES, and whatever pydicom
    raises for a damaged one.
    """
    has_preamble = _start(path)[128:132] == b"DICM"
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


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder and the folders below it, each once, however often it is linked."""
    seen = {folder.resolve()}
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_warn_of_folder):
        folders[:] = [name for name in sorted(folders) if _is_new(Path(parent, name), seen)]
        for path in (Path(parent, name) for name in sorted(names)):
            if path.is_file() and _is_new(path, seen):
                yield path


def _is_new(path: Path, seen: set[Path]) -> bool:
    real = path.resolve()
    is_new = real not in seen
    seen.add(real)
    return is_new


def _warn_of_folder(error: OSError) -> None:
    log.warning("%s is left out: %s", error.filename, error.strerror)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(132)


def _begins_as_dicom(start: bytes) -> bool:
    """Whether a file has the mark of the standard, or begins with a data element at once."""
    if start[128:132] == b"DICM":
        return True
    if start[:2] not in {b"\x02\0", b"\x08\0", b"\0\x08"}:  # group 2 or 8, of either endianness
        return False
    return start[4:6].isalpha() or int.from_bytes(start[4:8], "little") <= LONGEST_FIRST_ELEMENT


def _require_moderate_inflation(path: Path, meta: Any) -> None:
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(144 + int(meta.FileMetaInformationGroupLength))  # 144: preamble to that element
        while compressed := inflater.unconsumed_tail or file.read(1 << 20):
            size += len(inflater.decompress(compressed, 1 << 24))
            if size > LARGEST_BYTES:
                raise ValueError(f"deflated DICOM that unpacks to over {LARGEST_BYTES >> 20} MB")


def _header(path: Path) -> Any:
    """All but the pixels of a DICOM image; None for any other file, and for a damaged one."""
    try:
        if not _begins_as_dicom(_start(path)):
            if path.suffix.lower() in DICOM_ENDINGS:
                log.warning("%s is left out: it does not begin as a DICOM file", path)
            return None
        header = read_data_set(path, pixels=False)
    except Exception as error:  # noqa: BLE001, a damaged file fails in more ways than documented
        log.warning("%s is left out: it cannot be read (%s)", path, in_one_line(error))
        return None
    return header if "Rows" in header and "Columns" in header else None


def _has_position(header: Any) -> bool:
    return "PerFrameFunctionalGroupsSequence" in header or bool(header.get("ImagePositionPatient"))


def _series_key(path: Path, header: Any) -> tuple[str, ...]:
    """What the files of one series share; not the UID alone, which an anonymiser may have removed
    or given to all series."""
    uid, number = _text(header, "SeriesInstanceUID"), _text(header, "SeriesNumber")
    if uid:
        return uid, number
    return str(path.parent), number, _text(header, "SeriesDescription")


def _slices(series: Series, name: str, *, pixels: bool) -> Iterator[Slice]:
    """Raises LeukoError when a file cannot be decoded or has no place."""
    for path in series.paths:
        try:
            image = read_data_set(path, pixels=pixels)
            if pixels:
                _require_decoder(image, name)
            yield from _slices_of(image, pixels=pixels)
        except LeukoError:
            raise
        except Exception as error:  # a damaged file fails in more ways than pydicom documents
            raise LeukoError(f"{name}: {path} cannot be read ({in_one_line(error)})") from error


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
        'pip install "leuko[dicom]" brings python-gdcm, or decompress the files first '
        "(gdcmconv --raw)"
    )


def _slices_of(image: Any, *, pixels: bool) -> Iterator[Slice]:
    frames = image.get("PerFrameFunctionalGroupsSequence")
    count = len(frames) if frames else 1
    grey = _grey_values(image, count) if pixels else None
    size = int(image.Rows), int(image.Columns)
    source = Source(
        study=_text(image, "StudyInstanceUID"),
        series=_text(image, "SeriesInstanceUID"),
        frame_of_reference=_text(image, "FrameOfReferenceUID"),
        sop_class=_text(image, "SOPClassUID"),
        instance=_text(image, "SOPInstanceUID"),
    )
    for k in range(count):
        data_sets = _data_sets(image, k)
        spacing_mm = _numbers(data_sets, "PixelSpacing", 2)
        if spacing_mm.min() <= 0:
            raise ValueError(f"its pixel spacing is {spacing_mm.tolist()} mm; expected above 0")
        yield Slice(
            position=_numbers(data_sets, "ImagePositionPatient", 3),
            directions=_orthonormal(_numbers(data_sets, "ImageOrientationPatient", 6)),
            spacing_mm=spacing_mm,
            thickness_mm=_number(data_sets, "SliceThickness") or math.nan,
            size=size,
            source=replace(source, frame=k + 1) if frames else source,
            pixels=None if grey is None else _rescaled(grey[k], data_sets),
        )


def _grey_values(image: Any, count: int) -> Array:
    """(frames, rows, columns)."""
    for name, usual in (("SamplesPerPixel", 1), ("PhotometricInterpretation", "MONOCHROME2")):
        if not image.get(name):
            setattr(image, name, usual)
    grey: Array = image.pixel_array
    if image.SamplesPerPixel != 1 or grey.size != count * image.Rows * image.Columns:
        raise ValueError("it is no grey image of one slice a frame")
    return grey.reshape(count, image.Rows, image.Columns)


def _data_sets(image: Any, k: int = 0) -> list[Any]:
    """The data sets that describe frame `k` of an image; the first that has an element decides."""
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


def _numbers(data_sets: Sequence[Any], name: str, count: int) -> Array:
    """Raises ValueError where they are not given as they must be to place a slice."""
    value = next((data_set[name].value for data_set in data_sets if data_set.get(name)), None)
    numbers = np.array(value, dtype=float)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"it does not say where it lies: {name} is {value or 'missing'}")
    return numbers


def _orthonormal(cosines: Array) -> Array:
    """Raises ValueError for two vectors that are no direction cosines, even roughly."""
    directions = cosines.reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > ORTHONORMAL:
        raise ValueError("the two directions of its pixels are not at right angles")
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


def _warn_of_shared_uids(slices: Sequence[Slice], name: str) -> None:
    images = Counter((each.source.instance, each.source.frame) for each in slices)
    unnamed = sum(times for (uid, _), times in images.items() if times > 1 or not uid)
    if unnamed:
        log.warning(
            "%s: %d of %d slices have no SOPInstanceUID of their own; all are kept, by position",
            name,
            unnamed,
            len(slices),
        )


def _warn_of_gaps(apart_mm: float, thickness_mm: float, name: str) -> None:
    if apart_mm > (1 + LARGEST_GAP) * thickness_mm > 0:
        log.warning(
            "%s: slices of %.2g mm lie %.2g mm apart; what lies between them was not seen",
            name,
            thickness_mm,
            apart_mm,
        )


def _protocols_of_the_examination(groups: Collection[Sequence[tuple[Path, Any]]]) -> set[str]:
    """The protocol names that stand in series of different descriptions: GE writes the name of the
    whole examination into all of them, which tells nothing about one."""
    descriptions: dict[str, set[str]] = defaultdict(set)
    for (_, header), *_ in groups:
        descriptions[_text(header, "ProtocolName")].add(_text(header, "SeriesDescription"))
    return {name for name, of in descriptions.items() if len(of) > 1}


def _described(files: Sequence[tuple[Path, Any]], protocols: Collection[str]) -> Series:
    """`protocols` are names of whole examinations."""
    header = files[0][1]
    description = _text(header, "SeriesDescription")
    frames = sum(int(_number([h], "NumberOfFrames") or 1) for _, h in files)
    slice_bytes = 4 * max(_number([h], "Rows") * _number([h], "Columns") for _, h in files)
    agent = _text(header, "ContrastBolusAgent") or header.get("ContrastBolusAgentSequence")
    return Series(
        paths=tuple(path for path, _ in files),
        number=int(_number([header], "SeriesNumber")),
        description=description,
        kind=_kind(header, frames, protocols),
        enhanced=bool(agent) or bool(ENHANCED_NAMES.search(description)),
        declared_bytes=int(frames * slice_bytes),
        patient=_text(header, "PatientID"),
        visit=(_text(header, "StudyInstanceUID"), _text(header, "StudyDate")),
    )


def _text(header: Any, name: str) -> str:
    """In one line; "" where there is none, or it cannot be read."""
    try:
        return " ".join(str(header.get(name) or "").split())
    except Exception:  # noqa: BLE001, pydicom documents no error of conversion
        return ""


def _number(data_sets: Sequence[Any], *names: str) -> float:
    """The first of the names that is given; of several values the first; 0 where there is none."""
    for data_set in data_sets:
        for name in names:
            try:
                number = float(np.ravel(data_set.get(name) or 0)[0])
            except Exception:  # noqa: BLE001, S112, what is no number is not given
                continue
            if number and math.isfinite(number):
                return number
    return 0.0


def _kind(header: Any, slices: int, protocols: Collection[str]) -> str:
    """What a series is: by its echo and inversion times where they are given, else by its names."""
    names = _names(header, protocols)
    if slices < FEWEST_SLICES or OTHER_NAMES.search(names):
        return "other"
    data_sets = _data_sets(header)
    echo = _number(data_sets, "EchoTime", "EffectiveEchoTime")
    inversion = _number(data_sets, "InversionTime", "InversionTimes")
    late_echo = echo > 50 if echo else not T1_NAMES.search(names)
    if late_echo and (FLAIR_NAMES.search(names) or inversion > 1500):
        return "flair"
    if not late_echo and T1_NAMES.search(names):
        return "t1"
    return "other"


def _names(header: Any, protocols: Collection[str]) -> str:
    """What names a sequence: the description of the series and, where it says nothing, the others.

    `protocols` are names of whole examinations, which say nothing about one series.
    """
    own = ("SeriesDescription",), ("SequenceName", "PulseSequenceName", "AcquisitionContrast")
    for elements in own:
        names = " ".join(_text(header, element) for element in elements)
        if any(known.search(names) for known in (FLAIR_NAMES, T1_NAMES, OTHER_NAMES, WEIGHTINGS)):
            return names
    protocol = _text(header, "ProtocolName")
    return "" if protocol in protocols else protocol


def _the_one(
    series: Sequence[Series], kind: str, number: int | None, folder: Path
) -> Series | None:
    if number is not None:
        same = [s for s in series if s.number == number]
        meant = [s for s in same if s.kind == kind] if len(same) > 1 else same
        if len(meant) != 1:
            listed = "; ".join(f"{s} in {s.paths[0].parent}" for s in same or series)
            raise LeukoError(
                f"{folder} has {len(same) or 'no'} series {number}: {listed}; "
                f"give the folder of one study, or of the series alone with --{kind}"
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
