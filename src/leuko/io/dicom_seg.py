"""A mask becomes a DICOM segmentation of the series that it is of; needs the extra `dicom`.

highdicom is given slices that are cleaned of what the standard does not allow, in the order of the
mask; the result is read back and compared with the mask before it is written.
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
from leuko.volume import Volume

log = logging.getLogger(__name__)

TEXT = {"AE", "AS", "CS", "DA", "DS", "IS", "LO", "PN", "SH", "TM", "UI"}  # VRs of one line
MAY_BE_EMPTY = (  # of type 2: the standard wants the element, with or without a value
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
SEXES = {"M", "F", "O"}
OFF_GRID_VOXELS = 0.25  # what is nearer to a voxel than this is not taken for its neighbour


def write_segmentation(path: Path, mask: Volume, source: Series) -> None:
    """Write a mask, on the grid that `read_series` gave for `source`, as a DICOM SEG of WMH.

    Raises LeukoError, and writes nothing, where the segmentation would not mark the mask's voxels.
    """
    slices = stack(source, pixels=False)
    if (*slices[0].size[::-1], len(slices)) != mask.data.shape:
        raise LeukoError(f"series {source} is not as it was read: were its files changed?")
    file = BytesIO()
    try:
        with warnings.catch_warnings(action="ignore"):  # pydicom's, on values that are left out
            _segmentation(mask, source, slices).save_as(file)
            marked = _marked(pydicom.dcmread(BytesIO(file.getvalue())), mask)
    except Exception as error:  # highdicom documents few of its errors
        raise LeukoError(
            f"series {source} allows no DICOM segmentation ({in_one_line(error)})"
        ) from error
    if not np.array_equal(marked, mask.data > 0):
        raise LeukoError(
            f"a DICOM segmentation of series {source} would not mark the voxels of the mask"
        )
    path.write_bytes(file.getvalue())


def _segmentation(mask: Volume, source: Series, slices: Sequence[Slice]) -> Any:
    version = importlib.metadata.version("leuko")
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="White matter hyperintensity",
        segmented_property_category=Code("49755003", "SCT", "Morphologically abnormal structure"),
        segmented_property_type=Code("110702", "DCM", "White Matter T2 Hyperintensity"),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="Leuko", version=version, family=Code("123110", "DCM", "Artificial Intelligence")
        ),
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
        series_description=f"WMH (Leuko {version})",
        specific_character_set="ISO_IR 192",  # UTF-8, into which every other can be turned
        omit_empty_frames=bool(mask.data.any()),
    )
    uids = [image.SOPInstanceUID for image in images]
    _name_sources(segmentation, dict(zip(uids, (each.source for each in slices), strict=True)))
    return segmentation


def _images(source: Series, slices: Sequence[Slice]) -> list[Any]:
    """Headers of single-frame MR images, one a slice, in the order of the slices.

    They hold what is valid in the header of the series, what else the standard demands, and a
    SOPInstanceUID of their own.
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
            "series %s has no valid %s; its DICOM segmentation has a new one, and viewers may not "
            "show it over the series",
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
    """The texts of a header that the standard allows; "" for the others that must be there."""
    clean = pydicom.Dataset()
    for tag in header.keys():  # noqa: SIM118, iterating would convert values that cannot be
        try:
            element = header[tag]
            if element.VR in TEXT and not tag.is_private and dictionary_VM(tag) == "1":
                clean.add_new(tag, element.VR, _valid(element))
        except Exception:  # noqa: BLE001, S112, what cannot be read is not allowed
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
    """The text of an element. Raises ValueError for what the standard does not allow."""
    value = str("" if element.value is None else element.value)
    if not value.isprintable() or "\ufffd" in value or "\\" in value:
        raise ValueError(f"{element.keyword} has characters that it may not have")
    validate_value(element.VR, value, pydicom.config.RAISE)
    convert: dict[str, Callable[[str], Any]] = {"DA": DA, "TM": TM}
    convert.get(element.VR, str)(value)
    return value


def _name_sources(segmentation: Any, origins: Mapping[str, Source]) -> None:
    """Put the images that the slices come from in place of those that highdicom was given.

    `origins` has the source by the UID given. Where identifiers do not tell the images apart none
    are named, which the standard allows where frames have a place of their own.
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
    """Whether all sources can be named: of one series, with valid UIDs of their own."""
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
    """What a segmentation marks on a grid, by its own geometry alone: (columns, rows, slices).

    Raises ValueError where a frame does not lie on the voxels of the grid.
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
            raise ValueError(f"a slice lies {off:.1f} voxels off the grid of the others")
        marked[:, :, k] = frame.T
    return marked
