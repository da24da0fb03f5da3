"""Writes a mask as a DICOM segmentation (SEG) of its source series; needs the extra `dicom`.

highdicom gets one header per slice, in the order of the mask; values that the standard forbids are
removed from it. The result is read back and compared with the mask before it is written.
"""

import copy
import importlib.metadata
import logging
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from pydicom.datadict import dictionary_VM
from pydicom.sr.coding import Code
from pydicom.uid import UID, MRImageStorage
from pydicom.valuerep import DA, TM, validate_value

from leuko.errors import LeukoError, in_one_line
from leuko.io.dicom_slices import LPS_TO_RAS, Series, Slice, Source, read_data_set, stack
from leuko.io.record import Edited
from leuko.volume import Volume

log = logging.getLogger(__name__)

TEXT = {"AE", "AS", "CS", "DA", "DS", "IS", "LO", "PN", "SH", "TM", "UI"}  # one-line text VRs
MAY_BE_EMPTY = (  # type 2: the standard requires the element, but it may be empty
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
SEXES = {"M", "F", "O"}
Kind = highdicom.seg.SegmentAlgorithmTypeValues
OFF_GRID_VOXELS = 0.25  # largest distance of a frame from the grid of the mask


def write_segmentation(
    path: Path,
    mask: Volume,
    source: Series,
    *,
    is_given: bool = False,
    edited: Edited | None = None,
) -> None:
    """Write a mask, on the grid of `read_series(source)`, as a DICOM SEG of WMH.

    The mask is that of Leuko or, with `is_given`, of a reader or of another tool, which counts as
    manual: its algorithm is not known. `edited` tells who corrected it. Raises LeukoError, and
    writes nothing, if the segmentation does not match the mask.
    """
    slices = stack(source, pixels=False)
    if (*slices[0].size[::-1], len(slices)) != mask.data.shape:
        raise LeukoError(
            f"series {source} changed since it was read; run again when its files are complete"
        )
    file = BytesIO()
    try:
        with warnings.catch_warnings(action="ignore"):  # pydicom's, on values that are left out
            made = _segmentation(mask, source, slices, is_given=is_given, edited=edited)
            made.save_as(file)
            marked = _marked(pydicom.dcmread(BytesIO(file.getvalue())), mask)
    except Exception as error:  # highdicom documents few of its errors
        raise LeukoError(
            f"no DICOM segmentation of series {source} can be made ({in_one_line(error)}); "
            "use the NIfTI mask"
        ) from error
    if not np.array_equal(marked, mask.data > 0):
        raise LeukoError(
            f"the DICOM segmentation of series {source} does not match the mask and is not "
            "written; use the NIfTI mask"
        )
    path.write_bytes(file.getvalue())


def _segmentation(
    mask: Volume,
    source: Series,
    slices: Sequence[Slice],
    *,
    is_given: bool,
    edited: Edited | None,
) -> Any:
    version = importlib.metadata.version("leuko")
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="Leuko", version=version, family=Code("123110", "DCM", "Artificial Intelligence")
    )
    of_leuko: Kind = Kind.SEMIAUTOMATIC if edited else Kind.AUTOMATIC
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="White matter hyperintensity",
        segmented_property_category=Code("49755003", "SCT", "Morphologically abnormal structure"),
        segmented_property_type=Code("110702", "DCM", "White Matter T2 Hyperintensity"),
        algorithm_type=Kind.MANUAL if is_given else of_leuko,
        algorithm_identification=None if is_given else algorithm,
        anatomic_regions=[Code("68523003", "SCT", "Cerebral white matter")],
    )
    images = _images(source, slices)
    segmentation = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=np.ascontiguousarray((mask.data > 0).T.astype(np.uint8)),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=highdicom.UID(),
        series_number=9000 + source.number % 1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="Leuko",
        manufacturer_model_name="Leuko",
        software_versions=version,
        device_serial_number="none",
        content_label="WMH",
        content_creator_name=_creator(edited.editor) if edited else None,
        series_description=_description(version, is_given=is_given, edited=edited),
        specific_character_set="ISO_IR 192",  # UTF-8, which holds every other character set
        omit_empty_frames=bool(mask.data.any()),
    )
    uids = [image.SOPInstanceUID for image in images]
    _name_sources(segmentation, dict(zip(uids, (each.source for each in slices), strict=True)))
    return segmentation


def _description(version: str, *, is_given: bool, edited: Edited | None) -> str:
    maker = "given mask" if is_given else f"Leuko {version}"
    return f"WMH ({maker}{', corrected by a reader' if edited else ''})"


def _creator(editor: str) -> str | None:
    """The name of a reader; None if it is empty or the standard does not allow it."""
    try:
        return _allowed("PN", editor) or None
    except ValueError:
        return None


def _images(source: Series, slices: Sequence[Slice]) -> list[Any]:
    """Headers of single-frame MR images, one per slice, in the order of the slices.

    They hold the valid elements of the series header, the other elements that the standard
    requires, and new SOPInstanceUIDs.
    """
    clean = _clean(read_data_set(source.paths[0], pixels=False))
    made = {
        name: highdicom.UID()
        for name, uids in (
            ("StudyInstanceUID", {each.source.study for each in slices}),
            ("FrameOfReferenceUID", {each.source.frame_of_reference for each in slices}),
        )
        if len(uids) > 1 or not all(map(_is_uid, uids))
    }
    if made:
        log.warning(
            "series %s has no valid %s; its DICOM segmentation gets a new one, and viewers may not "
            "overlay it on the series",
            source,
            " and no valid ".join(made),
        )
    first, last = slices[0], slices[-1]
    apart_mm = float((last.position - first.position) @ first.normal) / (len(slices) - 1)
    for name, value in {
        **made,
        "SOPClassUID": MRImageStorage,
        "SeriesInstanceUID": highdicom.UID(),
        "Rows": first.size[0],
        "Columns": first.size[1],
        "PixelSpacing": first.spacing_mm.tolist(),
        "SliceThickness": first.thickness_mm if first.thickness_mm > 0 else apart_mm,
        "SpacingBetweenSlices": apart_mm,
        "ImageOrientationPatient": first.directions.ravel().tolist(),
    }.items():
        setattr(clean, name, value)
    images = []
    for each in slices:
        image = copy.deepcopy(clean)
        image.SOPInstanceUID = highdicom.UID()
        image.ImagePositionPatient = each.position.tolist()
        images.append(image)
    return images


def _clean(header: Any) -> Any:
    """The valid text elements of a header; "" for required elements without a valid text."""
    clean = pydicom.Dataset()
    for tag in header.keys():  # noqa: SIM118, iterating would convert values that cannot be
        try:
            element = header[tag]
            if element.VR in TEXT and not tag.is_private and dictionary_VM(tag) == "1":
                clean.add_new(tag, element.VR, _valid(element))
        except Exception:  # noqa: BLE001, S112, an element that cannot be read is not valid
            continue
    if clean.get("PatientSex") not in SEXES:
        clean.PatientSex = ""
    for name in MAY_BE_EMPTY:
        if name not in clean:
            setattr(clean, name, "")
    if clean.get("LossyImageCompression") not in {"00", "01"}:
        clean.LossyImageCompression = "00"
    return clean


def _valid(element: Any) -> str:
    """The text of an element. Raises ValueError if the standard does not allow it."""
    return _allowed(element.VR, str("" if element.value is None else element.value))


def _allowed(representation: str, value: str) -> str:
    """The text of a value. Raises ValueError if the standard does not allow it."""
    if not value.isprintable() or "\ufffd" in value or "\\" in value:
        raise ValueError("the value has characters that DICOM does not allow")
    validate_value(representation, value, pydicom.config.RAISE)
    convert: dict[str, Callable[[str], Any]] = {"DA": DA, "TM": TM}
    convert.get(representation, str)(value)
    return value


def _name_sources(segmentation: Any, origins: Mapping[str, Source]) -> None:
    """Replace the references to the images given to highdicom by references to the source images.

    `origins` maps the UID of each given image to its source. If the sources have no unique
    identifiers, no references are written; the standard allows that for frames with a position.
    """
    named = _are_identified(origins.values())
    for item in segmentation.PerFrameFunctionalGroupsSequence:
        (image,) = item.DerivationImageSequence[0].SourceImageSequence
        source = origins[image.ReferencedSOPInstanceUID]
        image.ReferencedSOPClassUID = source.sop_class
        image.ReferencedSOPInstanceUID = source.instance
        if source.frame is not None:
            image.ReferencedFrameNumber = source.frame
        if not named:
            del item.DerivationImageSequence
    del segmentation.SourceImageSequence, segmentation.ReferencedSeriesSequence
    if named:
        series = pydicom.Dataset()
        (series.SeriesInstanceUID,) = {source.series for source in origins.values()}
        classes = {source.instance: source.sop_class for source in origins.values()}
        images = [_reference(uid, sop_class) for uid, sop_class in classes.items()]
        segmentation.SourceImageSequence = series.ReferencedInstanceSequence = images
        segmentation.ReferencedSeriesSequence = [series]


def _are_identified(sources: Collection[Source]) -> bool:
    """Whether all sources are of one series and have valid, unique UIDs."""
    return (
        len({(source.study, source.series) for source in sources}) == 1
        and len({(source.instance, source.frame) for source in sources}) == len(sources)
        and all(
            _is_uid(uid)
            for source in sources
            for uid in (source.study, source.series, source.sop_class, source.instance)
        )
    )


def _reference(uid: str, sop_class: str) -> Any:
    image = pydicom.Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = sop_class, uid
    return image


def _is_uid(text: str) -> bool:
    return bool(UID(text, validation_mode=pydicom.config.IGNORE).is_valid)


def _marked(segmentation: Any, grid: Volume) -> Any:
    """The voxels of `grid` that a segmentation marks, from its own geometry, bool (X, Y, Z).

    Raises ValueError if a frame does not lie on the voxels of the grid.
    """
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    cosines = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    across, down = np.array(cosines, float).reshape(2, 3)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    columns, rows, _ = grid.data.shape
    corners = np.array([(c, r) for c in (0, columns - 1) for r in (0, rows - 1)])
    from_origin = corners @ np.stack([across * between_columns, down * between_rows])
    to_voxels = np.linalg.inv(LPS_TO_RAS @ grid.affine)
    marked = np.zeros(grid.data.shape, bool)
    frames = segmentation.pixel_array.reshape(-1, rows, columns)
    items = segmentation.PerFrameFunctionalGroupsSequence
    for frame, item in zip(frames, items, strict=True):
        origin = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        voxels = (origin + from_origin) @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        k = round(float(voxels[:, 2].mean()))
        off = np.abs(voxels - np.column_stack([corners, np.full(4, k)])).max()
        if off > OFF_GRID_VOXELS:
            raise ValueError(
                f"a slice is {off:.1f} voxels off the grid (limit {OFF_GRID_VOXELS:g})"
            )
        marked[:, :, k] = frame.T
    return marked
