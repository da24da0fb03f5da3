"""Reads DICOM series as Volumes; needs the extra `dicom`.

A series that is no regular grid, such as one with a tilted gantry or missing slices, is refused.
"""

import logging
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leuko.errors import LeukoError, in_one_line
from leuko.io.dicom_slices import (
    LPS_TO_RAS,
    Series,
    Slice,
    begins_as_dicom,
    data_sets_of,
    number_of,
    read_data_set,
    stack,
    text_of,
)
from leuko.io.files import LARGEST_BYTES
from leuko.volume import Array, Volume, require_head_size

log = logging.getLogger(__name__)

DICOM_ENDINGS = (".dcm", ".ima")
FEWEST_SLICES = 8  # fewer are a localiser or an incomplete series
UNEVEN = 0.05  # fraction of the spacing: headers round positions to about 0.01 mm
LARGEST_GAP = 0.35  # fraction of the slice thickness
TILT = 0.01  # sine of the angle between the stack and the normal of its slices

FLAIR_NAMES = re.compile(r"flair|tirm|dark.?fluid|fluid.attenuated", re.IGNORECASE)
T1_NAMES = re.compile(r"t1|mp-?rage|bravo|spgr|fspgr|tfl", re.IGNORECASE)
CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")  # word boundaries in AxDWI, HeadScout
OTHER_NAMES = re.compile(  # whole words: "en bloc", "different" and "diffuse" name no sequence
    r"""(?:(?<![a-z])|(?<=[23]d))(?:
        (?:p|pl|planes?|head|brain)?loc[as]? | locali[sz](?!ation|ed)[a-z]*
        | (?:iso|ms|ss|hr|av|reg|syn|epi|[erbc])?dwi(?:s|bs?|maps?)? | (?:e|d|exp?)?adc(?:s|maps?)?
        | [a-z]*(?:scout|survey)s? | diff(?:w|weighted)? | diff?usi[a-z]* | (?:iso)?trace[sw]?
        | [em]?swip?s? | m(?:in)?ips? | (?:multi)?phase(?:s|maps?)?(?!.?(?:enc|dir|arr|over|wrap))
        | pwi | perf | perfus[a-z]* | (?:pc|p|c|ve)?asl | bold | (?:rs|[rt])?fmri
        | (?:ce|mr)?tof | (?:mr)?angio(?:s|gra[a-z]*)? | (?:n?ce|tof)?mras?
    )(?![a-z])""",
    re.IGNORECASE | re.VERBOSE,
)
WEIGHTINGS = re.compile(r"t2|\bpd|proton|stir|swan|\bgre\b", re.IGNORECASE)
ENHANCED_NAMES = re.compile(r"\+ ?c\b|\bgd\b|gad|post|contrast|\bkm\b|\bce\b", re.IGNORECASE)


def find_series(folder: Path) -> list[Series]:
    """The image series in a folder and its subfolders, sorted by series number.

    Links to folders are followed. Raises LeukoError if there is no series.
    """
    groups: dict[tuple[str, ...], list[tuple[Path, Any]]] = defaultdict(list)
    unplaced: dict[tuple[str, ...], list[tuple[Path, Any]]] = defaultdict(list)
    with warnings.catch_warnings(action="ignore"):  # pydicom's, on values that are not read
        for path in _files(folder):
            header = _header(path)
            if header is None:
                continue
            of_kind = groups if _has_position(header) else unplaced
            of_kind[_series_key(path, header)].append((path, header))
        protocols = _protocols_of_the_examination(groups.values())
        found = {key: _described(files, protocols) for key, files in groups.items()}
        left_out = {key: _described(files, protocols) for key, files in unplaced.items()}
    if not found:
        seen = f"{sum(map(len, unplaced.values()))} DICOM files without an image position"
        raise LeukoError(
            f"{folder} holds {seen if unplaced else 'no DICOM images'}; "
            "give scans in other formats as files with --flair and --t1"
        )
    for key, series in left_out.items():
        if key in found:
            reason = f"{len(series.paths)} more files have no image position and are skipped"
        else:
            reason = "its files have no image position; it is skipped"
        log.warning("series %s: %s", found.get(key, series), reason)
    return sorted(found.values(), key=lambda series: series.number)


def find_pair(
    folder: Path, *, flair: int | None = None, t1: int | None = None
) -> tuple[Series, Series | None]:
    """The FLAIR and the T1 of a study, identified by sequence names and parameters.

    `flair` and `t1` are series numbers that replace this choice. A T1 without contrast medium is
    preferred. Raises LeukoError if there is no FLAIR or several series qualify.
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
        log.warning("no T1 was found in %s; other series: %s", folder, listed or "none")
    return first, second


def require_one_visit(flair: Series, t1: Series) -> None:
    """Raises LeukoError if the series are of two patients; warns if they are of two studies."""
    if flair.patient and t1.patient and flair.patient != t1.patient:
        raise LeukoError(
            f"series {flair} and {t1} have different patient IDs; give two scans of one person"
        )
    if flair.visit != t1.visit:
        dates = [series.visit[1] or "no date" for series in (flair, t1)]
        log.warning("series %s and %s are of different studies (%s, %s)", flair, t1, *dates)


def require_flair(series: Series) -> None:
    """Raises LeukoError if the headers identify the series as a T1."""
    if series.kind == "t1":
        raise LeukoError(
            f"series {series} is a T1 by its headers; expected a FLAIR: check that the two are not "
            "swapped"
        )


def the_series(folder: Path, *, name: str | None = None) -> Series:
    """The only series in a folder, or the one with this `str`.

    Raises LeukoError if there is none, or if there are several and none has the name.
    """
    series = find_series(folder)
    named = [each for each in series if str(each) == name]
    if len(named) == 1:
        return named[0]
    if len(series) > 1:
        listed = "; ".join(str(s) for s in series)
        raise LeukoError(
            f"{folder} holds {len(series)} series: {listed}; give the folder of one series, or all "
            "of them with --study"
        )
    return series[0]


def read_series(series: Series) -> Volume:
    """A series as a Volume (columns, rows, slices) with rescaled grey values; affine in RAS mm.

    Raises LeukoError if the slices are no regular grid: tilted, missing, uneven, or several at one
    position.
    """
    name = f"series {series}"
    if series.declared_bytes > LARGEST_BYTES:
        raise LeukoError(
            f"{name} declares {series.declared_bytes >> 20} MB (limit {LARGEST_BYTES >> 20} MB); "
            "give one 3-D image"
        )
    slices = stack(series, pixels=True)
    first, last = slices[0], slices[-1]
    if len(slices) < FEWEST_SLICES:
        raise LeukoError(
            f"{name} has {len(slices)} slices; expected a whole head, {FEWEST_SLICES} or more: "
            "check that the series is complete"
        )
    step = (last.position - first.position) / (len(slices) - 1)
    _require_regular(np.array([each.position @ first.normal for each in slices]), name)
    lateral = np.linalg.norm(step - first.normal * (step @ first.normal))
    if lateral > TILT * np.linalg.norm(step):
        angle = np.degrees(np.arcsin(lateral / np.linalg.norm(step)))
        raise LeukoError(
            f"{name} has a tilted gantry ({angle:.1f} degrees); expected none: resample it onto a "
            "straight grid (dcm2niix does)"
        )
    _warn_of_shared_uids(slices, name)
    _warn_of_gaps(float(np.linalg.norm(step)), first.thickness_mm, name)
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing_mm[1]
    affine[:3, 1] = first.directions[1] * first.spacing_mm[0]
    affine[:3, 2], affine[:3, 3] = step, first.position
    data = np.stack([each.pixels.T for each in slices if each.pixels is not None], axis=-1)
    if not data.any():
        raise LeukoError(f"{name} is all zeros; check that it is the right series")
    volume = Volume(data, LPS_TO_RAS @ affine, name=name)
    require_head_size(volume)
    return volume


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder and its subfolders; each once, even if several links lead to it."""
    seen = {folder.resolve()}
    lost: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_warn_of_folder):
        folders[:] = [name for name in sorted(folders) if _is_new(Path(parent, name), seen)]
        for path in (Path(parent, name) for name in sorted(names)):
            if _is_lost(path):
                lost.append(path)
            elif path.is_file() and _is_new(path, seen):
                yield path
    if lost:
        log.warning(
            "%s holds %d links without a target, the first is %s; the series may be incomplete: "
            "fetch the files (datalad get, git annex get)",
            folder,
            len(lost),
            lost[0].relative_to(folder),
        )


def _is_lost(path: Path) -> bool:
    """Whether a path is a broken link or cannot be accessed."""
    try:
        path.stat()
    except OSError:
        return True
    return False


def _is_new(path: Path, seen: set[Path]) -> bool:
    real = path.resolve()
    is_new = real not in seen
    seen.add(real)
    return is_new


def _warn_of_folder(error: OSError) -> None:
    log.warning("%s is skipped: %s", error.filename, error.strerror)


def _header(path: Path) -> Any:
    """The header of a DICOM image; None for any other file and for a damaged one."""
    try:
        if not begins_as_dicom(path):
            if path.suffix.lower() in DICOM_ENDINGS:
                log.warning("%s is skipped: it is not a DICOM file", path)
            return None
        header = read_data_set(path, pixels=False)
        data_sets_of(header)  # fails here if its functional groups are damaged
    except Exception as error:  # noqa: BLE001, a damaged file fails in more ways than documented
        log.warning("%s is skipped: it cannot be read (%s)", path, in_one_line(error))
        return None
    if "Rows" in header and "Columns" in header:
        return header
    kind = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID")
    if "Image" in getattr(kind, "name", "Image"):  # reports and others hold no image by design
        log.warning("%s is skipped: it holds no image or is truncated", path)
    return None


def _has_position(header: Any) -> bool:
    return "PerFrameFunctionalGroupsSequence" in header or bool(
        text_of(header, "ImagePositionPatient")
    )


def _series_key(path: Path, header: Any) -> tuple[str, ...]:
    """UID (or folder), number and description, which the files of one series share.

    One alone is not enough: anonymisation may remove the UID or give all series the same one, and
    may empty the number or set it to 0.
    """
    place = text_of(header, "SeriesInstanceUID") or str(path.parent)
    return place, text_of(header, "SeriesNumber"), text_of(header, "SeriesDescription")


def _require_regular(heights: Array, name: str) -> None:
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    if gaps.min() <= 0.01 * max(usual, 0.01):
        raise LeukoError(
            f"{name} has several images at one position (echoes, time points or phases); expected "
            "one: separate them"
        )
    missing = np.rint(gaps / usual) - 1
    if np.abs(gaps - usual * (missing + 1)).max() > UNEVEN * usual:
        raise LeukoError(
            f"{name} has uneven distances between slices (limit {UNEVEN:.0%} of the spacing); "
            "resample it"
        )
    if missing.any():
        first = int(np.flatnonzero(missing)[0]) + 1
        raise LeukoError(
            f"{name} has missing slices: {int(missing.sum())}, the first after slice {first}; "
            "send the series again"
        )


def _warn_of_shared_uids(slices: Sequence[Slice], name: str) -> None:
    images = Counter((each.source.instance, each.source.frame) for each in slices)
    unnamed = sum(times for (uid, _), times in images.items() if times > 1 or not uid)
    if unnamed:
        log.warning(
            "%s: %d of %d slices have no unique SOPInstanceUID; all are kept, ordered by position",
            name,
            unnamed,
            len(slices),
        )


def _warn_of_gaps(apart_mm: float, thickness_mm: float, name: str) -> None:
    if apart_mm > (1 + LARGEST_GAP) * thickness_mm > 0:
        log.warning(
            "%s: slices of %.2g mm thickness are %.2g mm apart; lesions in the gaps are not imaged",
            name,
            thickness_mm,
            apart_mm,
        )


def _protocols_of_the_examination(groups: Collection[Sequence[tuple[Path, Any]]]) -> set[str]:
    """Protocol names shared by series of different descriptions: GE writes the name of the whole
    examination into every series, which does not identify the sequence."""
    descriptions: dict[str, set[str]] = defaultdict(set)
    for (_, header), *_ in groups:
        descriptions[text_of(header, "ProtocolName")].add(text_of(header, "SeriesDescription"))
    return {name for name, of in descriptions.items() if len(of) > 1}


def _described(files: Sequence[tuple[Path, Any]], protocols: Collection[str]) -> Series:
    """The Series of some files; `protocols` are names of whole examinations."""
    header = files[0][1]
    description = text_of(header, "SeriesDescription")
    frames = sum(int(number_of([h], "NumberOfFrames") or 1) for _, h in files)
    slice_bytes = 4 * max(number_of([h], "Rows") * number_of([h], "Columns") for _, h in files)
    agents = [text_of(header, f"ContrastBolusAgent{kind}") for kind in ("", "Sequence")]
    return Series(
        paths=tuple(path for path, _ in files),
        number=int(number_of([header], "SeriesNumber")),
        description=description,
        kind=_kind(header, frames, protocols),
        enhanced=any(agents) or bool(ENHANCED_NAMES.search(description)),
        declared_bytes=int(frames * slice_bytes),
        patient=text_of(header, "PatientID"),
        visit=(text_of(header, "StudyInstanceUID"), text_of(header, "StudyDate")),
    )


def _kind(header: Any, slices: int, protocols: Collection[str]) -> str:
    """ "flair", "t1" or "other": by echo and inversion time, or by names if those are missing."""
    names = _names(header, protocols)
    if slices < FEWEST_SLICES or OTHER_NAMES.search(_in_words(names)):
        return "other"
    data_sets = data_sets_of(header)
    echo = number_of(data_sets, "EchoTime", "EffectiveEchoTime")
    inversion = number_of(data_sets, "InversionTime", "InversionTimes")
    late_echo = echo > 50 if echo else not T1_NAMES.search(names)
    if late_echo and (FLAIR_NAMES.search(names) or inversion > 1500):
        return "flair"
    if not late_echo and T1_NAMES.search(names):
        return "t1"
    return "other"


def _names(header: Any, protocols: Collection[str]) -> str:
    """The first text that names a sequence: series description, sequence name, protocol name.

    `protocols` are names of whole examinations, which do not identify a sequence.
    """
    own = ("SeriesDescription",), ("SequenceName", "PulseSequenceName", "AcquisitionContrast")
    for elements in own:
        names = " ".join(text_of(header, element) for element in elements)
        known = (FLAIR_NAMES, T1_NAMES, OTHER_NAMES, WEIGHTINGS)
        if any(pattern.search(_in_words(names)) for pattern in known):
            return names
    protocol = text_of(header, "ProtocolName")
    return "" if protocol in protocols else protocol


def _in_words(names: str) -> str:
    """The names unchanged (for mIP), then with spaces at capitals (for AxDWI)."""
    return f"{names} {CAMEL_CASE.sub(' ', names)}"


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
                f"give the folder of one study, or the folder of the series with --{kind}"
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
